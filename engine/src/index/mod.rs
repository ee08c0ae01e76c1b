//! The location of frames: by offset, by id, by topic. All of it is derived from the log and can be
//! rebuilt: sealed segments keep it in `.idx` and `.top` files that are rebuilt when they do not
//! verify, the others in memory. The commit adds each group before the group is published.
//!
//! It returns locations and says nothing about what is there: readers check what they find.

mod entries;
mod files;
mod floor;
mod load;
mod memory;
mod merge;
mod notes;
mod recent;
mod removed;
mod rewrite;
mod runs;
mod seal;
#[cfg(test)]
mod tests;
mod topics;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};

use crate::env::Env;
use crate::error::Corruption;
use crate::format::batch::BATCH_HEADER_LEN;
use crate::format::control::Tombstone;
pub(crate) use crate::format::topic_table::TopicTotals;
use crate::log::Segment;
use crate::planted::{Bug, is_planted};
use crate::value::{FrameId, TopicPatterns, Ttl};

use files::Loaded;
use floor::FloorFilter;
pub(crate) use memory::MemoryIndex;
pub(crate) use notes::Notes;
pub(crate) use removed::Marks;
use removed::Removed;
pub(crate) use rewrite::{Candidate, GoneOf, Rewriting, Rewritten, Stays, Uncovered};
use rewrite::{Decay, Leaving};
pub(crate) use runs::Runs;
pub(crate) use topics::Newest;
use topics::{Layer, Source, Topics};

/// Topics taken from the layers under one lock.
const PAGE: usize = 1024;
/// Maximum topics of the active segment, after which it rolls: this many are kept in memory, and
/// read again by an open after a crash.
const SEGMENT_TOPICS_MAX: usize = 131_072;

/// A frame as it is added to the index.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Noted<'a> {
    pub(crate) offset: u64,
    pub(crate) id: FrameId,
    pub(crate) topic: &'a str,
    /// Position of the batch header in the file.
    pub(crate) batch: u32,
    /// Position of the record in the file.
    pub(crate) record: u32,
    /// Bytes of the record without padding.
    pub(crate) record_len: u32,
    /// Bytes of the body.
    pub(crate) body_len: u64,
    pub(crate) ttl: Ttl,
}

impl Noted<'_> {
    /// When the frame expires, if it does.
    pub(crate) fn expires_ms(&self) -> Option<u64> {
        self.ttl.expires_ms(self.id)
    }
}

/// The index of the store.
#[derive(Debug)]
pub(crate) struct Index {
    env: Arc<Env>,
    segments: RwLock<Arc<[Arc<SegmentIndex>]>>,
    /// The number of the next segment. Numbers are not reused: readers of an older list look up by
    /// them.
    next: AtomicU32,
    topics: RwLock<Topics>,
    /// For each segment that was sealed when the store was opened, by base: the offset after it,
    /// and the batch seq below which tombstones were applied to it.
    purged: BTreeMap<u64, (u64, u64)>,
    /// Frames in the log.
    frames: AtomicU64,
    floors: FloorFilter,
    /// Damage kept frames of some segment out of its index.
    partial: AtomicBool,
    removed: Removed,
    /// Number of compactions that removed frames.
    rewrites: AtomicU64,
    /// Rises when frames were removed, superseded or compacted away.
    gone: AtomicU64,
    leaving: Leaving,
    /// Whether files may be written and removed.
    writable: bool,
    /// Why it is unknown which frames were removed, if so.
    doubt: OnceLock<Corruption>,
    /// Segments with open index files, in the order they were opened.
    loaded: Mutex<VecDeque<Arc<SegmentIndex>>>,
    /// Held while the table is merged.
    merging: Mutex<merge::Generations>,
    /// Sealed segments whose files could not be written.
    refused: Mutex<Vec<Arc<Segment>>>,
}

/// The index of one segment.
#[derive(Debug)]
pub(crate) struct SegmentIndex {
    segment: Arc<Segment>,
    ordinal: u32,
    /// Shared by all states of the segment that only differ in the file they read.
    kind: Arc<Mutex<Kind>>,
    decay: Arc<Decay>,
}

#[derive(Debug)]
enum Kind {
    /// In memory, in [`Topics::active`].
    Active,
    /// In memory, complete. `whole` unless damage hid frames when it was made.
    Frozen { index: Arc<MemoryIndex>, whole: bool },
    /// In files.
    Files(Loaded),
}

impl SegmentIndex {
    pub(crate) const fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    fn frozen(&self) -> Option<Arc<MemoryIndex>> {
        match &*self.kind.lock() {
            Kind::Frozen { index, .. } => Some(index.clone()),
            Kind::Active | Kind::Files(_) => None,
        }
    }

    /// The same segment, read through another file or index.
    fn changed(&self, segment: &Arc<Segment>, kind: Arc<Mutex<Kind>>) -> Self {
        let (segment, decay) = (segment.clone(), self.decay.clone());
        Self { segment, ordinal: self.ordinal, kind, decay }
    }
}

impl Index {
    /// Locks the index to add a group's frames in one segment.
    pub(crate) fn notes<'a>(&'a self, segment: &'a Arc<Segment>) -> Notes<'a> {
        Notes::new(self, segment)
    }

    /// Makes a segment the active one, if it is not.
    fn activate(&self, topics: &mut Topics, segment: &Arc<Segment>) {
        if topics.active.as_ref().is_none_or(|(_, memory)| memory.base() != segment.base()) {
            self.freeze(topics, true);
            let ordinal = self.push(segment, Kind::Active);
            topics.active = Some((ordinal, MemoryIndex::new(segment.base())));
        }
    }

    /// From now on reads a segment through `segment`: its file was mended, with the same batches at
    /// the same positions. Readers of the old file continue.
    pub(crate) fn rewritten(&self, segment: &Arc<Segment>) {
        let _topics = self.topics.write();
        let Some(old) = self.by_base(segment.base()) else { return };
        let new = Arc::new(old.changed(segment, old.kind.clone()));
        let mut segments = self.segments.write();
        *segments = segments
            .iter()
            .map(|of| if of.ordinal == new.ordinal { new.clone() } else { of.clone() })
            .collect();
    }

    /// Completes the active index. `whole` is false when damage kept frames out of it.
    fn freeze(&self, topics: &mut Topics, whole: bool) {
        self.partial.fetch_or(!whole, Ordering::Relaxed);
        if let Some((ordinal, mut memory)) = topics.active.take()
            && let Some(of) = self.segment(ordinal)
        {
            let handed = &mut topics.handed;
            match whole {
                true => memory.complete(|topic, recent| handed.put(topic, recent)),
                false => {
                    memory.complete(|_, _| ());
                    handed.clear();
                }
            }
            of.decay.set(memory.dead().kept_of_frames(), memory.dead().expiring.clone());
            let index = Arc::new(memory);
            let source = Source::Memory(index.clone());
            topics.layers.push(Layer { of: merge::covered(&of.segment), source });
            *of.kind.lock() = Kind::Frozen { index, whole };
        }
    }

    fn push(&self, segment: &Arc<Segment>, kind: Kind) -> u32 {
        let mut segments = self.segments.write();
        // Numbers ascend along the list, with gaps where compaction removed segments.
        let ordinal = self.next.fetch_add(1, Ordering::Relaxed);
        let (segment, kind) = (segment.clone(), Arc::new(Mutex::new(kind)));
        let new = SegmentIndex { segment, ordinal, kind, decay: Arc::default() };
        *segments = segments.iter().cloned().chain([Arc::new(new)]).collect();
        ordinal
    }

    /// All segments with frames, in order.
    pub(crate) fn segments(&self) -> Arc<[Arc<SegmentIndex>]> {
        self.segments.read().clone()
    }

    fn segment(&self, ordinal: u32) -> Option<Arc<SegmentIndex>> {
        let segments = self.segments.read();
        let place = segments.binary_search_by_key(&ordinal, |of| of.ordinal).ok()?;
        segments.get(place).cloned()
    }

    fn by_base(&self, base: u64) -> Option<Arc<SegmentIndex>> {
        let segments = self.segments.read();
        let found = segments.partition_point(|of| of.segment.base() <= base).checked_sub(1)?;
        segments.get(found).filter(|of| of.segment.base() == base).cloned()
    }

    /// The entry of this same segment. Another one may have its base.
    fn by_key(&self, segment: &Segment) -> Option<Arc<SegmentIndex>> {
        let segments = self.segments.read();
        let first = segments.partition_point(|of| of.segment.base() < segment.base());
        let same = segments.get(first..)?.iter();
        let mut same = same.take_while(|of| of.segment.base() == segment.base());
        same.find(|of| of.segment.generation() == segment.generation()).cloned()
    }

    /// The base of the segment after the one with this base.
    fn base_after(&self, base: u64) -> Option<u64> {
        let segments = self.segments.read();
        let next = segments.partition_point(|of| of.segment.base() <= base);
        segments.get(next).map(|of| of.segment.base())
    }

    /// Whether the active segment should take no more topics.
    pub(crate) fn is_full(&self) -> bool {
        let topics = self.topics.read();
        topics.active.as_ref().is_some_and(|(_, active)| active.topics() >= SEGMENT_TOPICS_MAX)
    }

    fn count_frames(&self, count: u64) {
        self.frames.fetch_add(count, Ordering::Relaxed);
    }

    /// Sealed segments whose topics are kept in memory.
    #[cfg(test)]
    pub(crate) fn layers_in_memory(&self) -> usize {
        self.topics.read().in_memory()
    }

    /// Frames in the log.
    pub(crate) fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// The location of the newest frame of a topic.
    pub(crate) fn newest(&self, topic: &str) -> Option<Newest> {
        self.topics.read().newest(topic)
    }

    /// The head, which `head` returns, with the location of the newest frame of a topic and the
    /// topic's floor at that head. All under one lock: at most one group is then indexed and not
    /// yet published.
    pub(crate) fn newest_as_of(
        &self,
        topic: &str,
        head: impl FnOnce() -> u64,
    ) -> (u64, Option<(Newest, u64)>) {
        let topics = self.topics.read();
        let head = head();
        let newest = topics.newest(topic);
        let floor = if self.floors.may_have(topic) { topics.floor(topic, head) } else { 0 };
        (head, newest.map(|newest| (newest, floor)))
    }

    /// The segments that hold a topic.
    pub(crate) fn runs(&self, topic: &str) -> Runs {
        self.topics.read().runs(topic)
    }

    /// Up to `limit` topics that any of the patterns selects, with names after `after`, with their
    /// totals, in byte order.
    pub(crate) fn page(
        &self,
        patterns: &TopicPatterns,
        after: Option<&str>,
        limit: usize,
    ) -> Vec<(Arc<str>, TopicTotals)> {
        self.topics.read().page(patterns, after, limit)
    }

    /// The head, which `head` returns, with a page of topics as from [`Self::page`] and their
    /// floors at that head. All under one lock.
    pub(crate) fn page_as_of(
        &self,
        patterns: &TopicPatterns,
        after: Option<&str>,
        limit: usize,
        head: impl FnOnce() -> u64,
    ) -> (u64, Vec<(Arc<str>, TopicTotals)>) {
        let topics = self.topics.read();
        let head = head();
        let mut page = topics.page(patterns, after, limit);
        let overtaken = page.iter_mut().filter(|(_, totals)| totals.last_offset >= head);
        overtaken.for_each(|(name, totals)| totals.floor = topics.floor(name, head));
        (head, page)
    }

    /// A page of topics as from [`Self::page`], with exact counts of what is left of each; expired
    /// frames are counted.
    pub(crate) fn page_counted(
        &self,
        patterns: &TopicPatterns,
        after: Option<&str>,
        limit: usize,
    ) -> Vec<(Arc<str>, TopicTotals)> {
        let topics = self.topics.read();
        let mut page = topics.page(patterns, after, limit);
        for (name, totals) in &mut page {
            if !totals.is_exact {
                let (runs, range) = (topics.runs(name), (totals.floor, u64::MAX));
                totals.left = self.count_between(topics.active.as_ref(), name, &runs, range);
                totals.is_exact = true;
            }
            let removed = topics.removed_from(name, totals.floor);
            totals.left = totals.left.saturating_sub(removed);
        }
        page
    }

    /// Visits all topics that any of the patterns selects, in byte order, until `visit` returns
    /// false; returns whether these were all. The lock is released in between, so a topic may be
    /// slightly stale.
    pub(crate) fn each(
        &self,
        patterns: &TopicPatterns,
        mut visit: impl FnMut(Arc<str>, &TopicTotals) -> bool,
    ) -> bool {
        let mut after: Option<Arc<str>> = None;
        loop {
            let page = self.page(patterns, after.as_deref(), PAGE);
            let is_last = page.len() < PAGE;
            after = page.last().map(|(name, _)| name.clone());
            for (name, totals) in page {
                if !visit(name, &totals) {
                    return false;
                }
            }
            if is_last {
                return true;
            }
        }
    }

    /// The floor of a topic for a reader with this head: `last:n` removed every frame with a lower
    /// offset. 0 when it removed none.
    pub(crate) fn floor(&self, topic: &str, head: u64) -> u64 {
        if !self.floors.may_have(topic) {
            return 0;
        }
        let floor = self.topics.read().floor(topic, head);
        floor.max(self.leaving.floor(topic))
    }

    /// The floor of a topic for a reader with this head, if it is still known.
    pub(crate) fn known_floor(&self, topic: &str, head: u64) -> Option<u64> {
        let known = self.topics.read().known_floor(topic, head);
        known.filter(|&floor| self.leaving.floor(topic) <= floor)
    }

    /// Whether `last:n` may have removed frames of a topic.
    pub(crate) fn may_have_floor(&self, topic: &str) -> bool {
        self.floors.any() && self.floors.may_have(topic)
    }

    /// Whether `last:n` may have removed frames of any topic.
    pub(crate) fn has_floors(&self) -> bool {
        self.floors.any()
    }

    /// Whether anything was removed.
    #[inline]
    pub(crate) fn hides_any(&self) -> bool {
        self.floors.any() || self.removed.any()
    }

    /// Whether a frame was removed, for a reader with this head.
    pub(crate) fn is_hidden(&self, topic: &str, offset: u64, head: u64) -> bool {
        self.is_removed_for(offset, head) || offset < self.floor(topic, head)
    }

    /// Whether a frame was removed by a tombstone, for a reader with this head.
    pub(crate) fn is_removed_for(&self, offset: u64, head: u64) -> bool {
        self.removed.contains(offset, head)
    }

    /// If a frame was removed by a tombstone, an offset from which on all frames were appended
    /// later.
    pub(crate) fn removed_since(&self, offset: u64) -> Option<u64> {
        self.removed.since(offset)
    }

    /// Whether a frame was removed by a tombstone.
    pub(crate) fn is_removed(&self, offset: u64) -> bool {
        self.removed.contains(offset, u64::MAX)
    }

    /// Number of compactions that removed frames: results of earlier lookups may be stale.
    pub(crate) fn rewrites(&self) -> u64 {
        self.rewrites.load(Ordering::Acquire)
    }

    /// A count that rises when frames are removed, superseded or compacted away, and with frames of
    /// topics where `last:n` hid any; it does not rise when frames expire.
    pub(crate) fn gone(&self) -> u64 {
        self.gone.load(Ordering::Relaxed)
    }

    fn count_gone(&self, count: u64) {
        if count > 0 {
            self.gone.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Why it is unknown which frames were removed, if so.
    pub(crate) fn doubt(&self) -> Option<&Corruption> {
        self.doubt.get()
    }

    /// Applies a tombstone for readers with a head of at least `from`. `None` while the store is
    /// being opened: it then applies to all, and the frame it names may be compacted away already.
    fn remove(&self, topics: &mut Topics, seq: u64, tombstone: &Tombstone<'_>, from: Option<u64>) {
        let Tombstone { offset, topic, .. } = *tombstone;
        if !topics.holds(topic) {
            return;
        }
        let Some(of) = self.holder(offset) else { return };
        if from.is_none()
            && let Some(&(end, purged)) = self.purged.get(&of.segment.base())
            && (offset >= end || seq < purged)
            && !is_planted(Bug::IgnorePurged)
        {
            return;
        }
        if !self.removed.mark(offset, from.unwrap_or(0)) {
            return;
        }
        topics.remove(topic, offset);
        self.count_gone(1);
        // Estimated as if the frame were alone in its batch, whose header is then removed too; a
        // scan of the whole segment corrects this.
        of.decay.add_removed(tombstone.target_len() + BATCH_HEADER_LEN as u64);
    }

    /// The segment that an offset belongs to.
    fn holder(&self, offset: u64) -> Option<Arc<SegmentIndex>> {
        let segments = self.segments.read();
        let found = segments.partition_point(|of| of.segment.base() <= offset).checked_sub(1)?;
        segments.get(found).cloned()
    }
}
