//! The interface for compaction: how much of a segment is dead, and replacing segments by a
//! rewritten one.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::ops::{Range, RangeInclusive};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;

use super::memory::MemoryIndex;
use super::merge::{covered, is_one};
use super::removed::Marks;
use super::topics::{Layer, Source};
use super::{Index, Kind, Loaded, Noted, SegmentIndex, files};
use crate::format::control::Tombstone;
use crate::format::dead::Expiring;
use crate::format::topic_index::TopicEntry;
use crate::format::topic_table::TableFile;
use crate::log::Segment;
use crate::media::is_full;
use crate::planted::{Bug, is_planted};

/// Topics looked up under one lock.
const LOOKUPS: usize = 1024;

/// Interval after which keys that had to be kept are examined again.
const KEYS_AGAIN_MS: u64 = 60 * 60 * 1000;

/// How much of a segment is dead.
#[derive(Debug, Default)]
pub(super) struct Decay {
    /// Bytes that stay as long as no frame dies, without tombstones, and when frames expire. Known
    /// once the segment is complete. Tombstones count as dead until the whole segment is scanned:
    /// most outlive their frames only briefly.
    complete: OnceLock<(u64, Expiring)>,
    /// Bytes of frames that were removed individually, and of their batches' headers.
    removed: AtomicU64,
    /// The result of the last scan of the whole segment.
    surveyed: Mutex<Option<Surveyed>>,
}

/// The result of scanning a whole segment.
#[derive(Debug, Clone, Copy)]
struct Surveyed {
    /// Dead bytes found.
    dead: u64,
    /// Dead bytes estimated.
    estimate: u64,
    /// Bytes of tombstones and keys that had to be kept.
    control: u64,
    at: Moment,
}

/// The state in which a segment was scanned.
#[derive(Debug, Clone, Copy)]
struct Moment {
    /// The time; keys expire as it passes.
    now_ms: u64,
    /// How often removed frames had been forgotten, which frees tombstones.
    forgotten: u64,
}

/// What is kept of a segment that is rewritten.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stays {
    /// Bytes, including all floors it may need.
    pub(crate) bytes: u64,
    /// How many of them belong to tombstones and keys.
    pub(crate) control: u64,
}

impl Decay {
    pub(super) fn set(&self, kept: u64, expiring: Expiring) {
        // The same segment gives the same values each time.
        let _ = self.complete.set((kept, expiring));
    }

    pub(super) fn add_removed(&self, bytes: u64) {
        self.removed.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn never_expires(&self) -> bool {
        self.complete.get().is_some_and(|(_, expiring)| expiring.is_empty())
    }

    fn kept(&self) -> Option<u64> {
        self.complete.get().map(|&(kept, _)| kept)
    }

    /// Bytes of dead frames, except those below a floor. A frame both removed and expired counts
    /// twice.
    fn dead(&self, now_ms: u64) -> u64 {
        let expired = self.complete.get().map_or(0, |(_, expiring)| expiring.expired(now_ms));
        expired + self.removed.load(Ordering::Relaxed)
    }

    fn expires_after(&self, now_ms: u64) -> Option<u64> {
        self.complete.get().and_then(|(_, expiring)| expiring.after(now_ms))
    }

    /// Corrects an estimate by the last scan: only what died since is estimated.
    fn corrected(&self, estimate: u64, now: Moment) -> u64 {
        let Some(found) = *self.surveyed.lock() else { return estimate };
        let since = estimate.saturating_sub(found.estimate);
        let is_recent = found.at.forgotten == now.forgotten
            && now.now_ms.saturating_sub(found.at.now_ms) < KEYS_AGAIN_MS;
        let control = if is_recent { 0 } else { found.control };
        found.dead.saturating_add(since).saturating_add(control)
    }
}

/// Removed frames that were compacted away, and the readers that may still read segments with them.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    left: Mutex<Vec<Left>>,
    /// Number of floors in `left`.
    floors: AtomicUsize,
    /// How often frames were forgotten because no reader was left.
    forgotten: AtomicU64,
}

/// The segments of one rewrite, and the offsets of removed frames in them.
#[derive(Debug)]
struct Left {
    readers: Vec<Weak<Decay>>,
    /// The offsets of the segments.
    range: Range<u64>,
    offsets: Vec<u64>,
    /// Floors below which no frame is left, so the index no longer knows them.
    floors: HashMap<Arc<str>, u64>,
}

/// A segment that compaction may rewrite.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) segment: Arc<Segment>,
    /// Its number; numbers ascend along the list of segments.
    pub(crate) ordinal: u32,
    /// Bytes that a rewrite would free, as far as known without reading it.
    pub(crate) dead: u64,
    /// The estimate without the correction by a scan.
    estimate: u64,
    /// Whether it has no known damage.
    pub(crate) usable: bool,
}

/// What a rewrite removes of a topic.
#[derive(Debug, Default)]
pub(crate) struct GoneOf {
    /// Frames that were removed, by `last:n` or individually, or have expired.
    pub(crate) frames: u64,
}

/// The index of a segment that is being written to replace others.
#[derive(Debug)]
pub(crate) struct Rewriting {
    memory: MemoryIndex,
}

/// The replacement of segments.
pub(crate) struct Rewritten<'a> {
    /// The replaced segments, by number; they are consecutive.
    pub(crate) replaced: RangeInclusive<u32>,
    /// The new segment with its index; `None` when nothing is left.
    pub(crate) new: Option<(Arc<Segment>, Rewriting)>,
    /// What was removed of each topic in them.
    pub(crate) gone: &'a HashMap<Arc<str>, GoneOf>,
    /// The floors below which nothing is left of a topic.
    pub(crate) floors: HashMap<Arc<str>, u64>,
    /// The removed frames that were applied: none of them is left.
    pub(crate) marks: &'a Marks,
    /// The offsets they cover.
    pub(crate) offsets: Range<u64>,
}

/// The table at one moment, and the layers that replace it if it must be dropped.
pub(crate) struct Uncovered {
    table: Option<Arc<TableFile>>,
    layers: Option<Vec<Layer>>,
}

impl Rewriting {
    pub(crate) fn new(base: u64) -> Self {
        Self { memory: MemoryIndex::new(base) }
    }

    pub(crate) fn frame(&mut self, noted: &Noted<'_>) {
        self.memory.note(noted);
    }

    pub(crate) fn tombstone(&mut self, seq: u64, tombstone: &Tombstone<'_>) {
        self.memory.note_tombstone(seq, tombstone);
    }

    pub(crate) fn floor(&mut self, topic: &str, floor: u64) {
        self.memory.note_floor(topic, floor);
    }
}

impl Index {
    /// The sealed segments, in order, with what a rewrite would free. Frames below floors count
    /// only with `floors`, because that looks up all topics of a segment.
    pub(crate) fn candidates(&self, now_ms: u64, floors: bool) -> Vec<Candidate> {
        let now = self.moment(now_ms);
        let segments = self.segments();
        let complete = segments.iter().filter(|of| of.segment.is_sealed());
        let candidate = |of: &Arc<SegmentIndex>| {
            let kept = of.decay.kept()?;
            let control = of.segment.published_len().saturating_sub(kept);
            let hidden = if floors { self.below_floors(of, kept) } else { 0 };
            let estimate = (control + of.decay.dead(now_ms)).saturating_add(hidden);
            let segment = of.segment.clone();
            let dead = of.decay.corrected(estimate, now).min(control + kept);
            let (ordinal, usable) = (of.ordinal, self.is_whole(of));
            Some(Candidate { segment, ordinal, dead, estimate, usable })
        };
        complete.filter_map(candidate).collect()
    }

    /// When the next frame of a sealed segment expires, as far as known without reading it.
    pub(crate) fn next_expiry(&self, now_ms: u64) -> u64 {
        let segments = self.segments();
        let sealed = segments.iter().filter(|of| of.segment.is_sealed());
        sealed.filter_map(|of| of.decay.expires_after(now_ms)).min().unwrap_or(u64::MAX)
    }

    /// Whether a frame of any segment expires after the first time, and by the second, as far as
    /// known without reading it.
    pub(crate) fn expires_within(&self, after_ms: u64, by_ms: u64) -> bool {
        let is_within = |at: Option<u64>| at.is_some_and(|at| at <= by_ms);
        let in_active = {
            let topics = self.topics.read();
            let active = topics.active.as_ref();
            active.and_then(|(_, memory)| memory.dead().expiring.after(after_ms))
        };
        let segments = self.segments();
        is_within(in_active)
            || segments.iter().any(|of| is_within(of.decay.expires_after(after_ms)))
    }

    /// Estimated dead bytes of the segment that is written to. Looks at its topics, if `last:n` hid
    /// frames of any.
    pub(crate) fn dead_of_active(&self, now_ms: u64) -> u64 {
        let topics = self.topics.read();
        let Some((ordinal, memory)) = &topics.active else { return 0 };
        let removed = self.segment(*ordinal).map_or(0, |of| of.decay.dead(now_ms));
        let (kept, expired) = (memory.dead().kept_of_frames(), &memory.dead().expiring);
        let (mut frames, mut hidden) = (0u64, 0);
        if self.floors.any() {
            for (_, entry) in memory.entries() {
                frames += u64::from(entry.count);
                hidden += below(entry, entry.floor);
            }
        }
        (removed + expired.expired(now_ms) + share(kept, hidden, frames)).min(kept)
    }

    /// Records the result of scanning a whole segment: how many bytes are kept, and how many of
    /// those are tombstones and keys. Without it a segment with a wrong estimate would be scanned
    /// again and again: the estimate assumes that hidden frames have the average length.
    pub(crate) fn surveyed(&self, of: &Candidate, stays: Stays, now_ms: u64) {
        let Some(found) = self.segment(of.ordinal) else { return };
        let dead = of.segment.published_len().saturating_sub(stays.bytes);
        let (control, at) = (stays.control, self.moment(now_ms));
        let surveyed = Surveyed { dead, estimate: of.estimate, control, at };
        *found.decay.surveyed.lock() = Some(surveyed);
    }

    fn moment(&self, now_ms: u64) -> Moment {
        Moment { now_ms, forgotten: self.leaving.forgotten.load(Ordering::Relaxed) }
    }

    /// Estimated bytes of a segment below floors.
    fn below_floors(&self, of: &SegmentIndex, kept: u64) -> u64 {
        if !self.floors.any() {
            return 0;
        }
        let mut frames = 0u64;
        let mut some: Vec<(Arc<str>, TopicEntry)> = Vec::new();
        let mut take = |name: &str, entry: &TopicEntry| {
            frames += u64::from(entry.count);
            if entry.count > 0 && self.floors.may_have(name) {
                some.push((Arc::from(name), *entry));
            }
        };
        match of.frozen() {
            Some(frozen) => frozen.entries().for_each(|(name, entry)| take(name, entry)),
            None => match files::load_topics(&self.env, &of.segment) {
                Some(file) => file.for_each(take),
                None => return 0,
            },
        }
        let mut hidden = 0;
        for entries in some.chunks(LOOKUPS) {
            let topics = self.topics.read();
            for (name, entry) in entries {
                hidden += below(entry, topics.floor(name, u64::MAX));
            }
        }
        share(kept, hidden, frames)
    }

    /// The removed frames of a range that are still in the log.
    pub(crate) fn marks(&self, offsets: Range<u64>) -> Marks {
        self.removed.marks(offsets)
    }

    /// The floor of a topic, and whether it hides frames of segments that are not being rewritten.
    pub(crate) fn floor_beside(&self, topic: &str, replaced: &RangeInclusive<u32>) -> (u64, bool) {
        let (floor, runs) = {
            let topics = self.topics.read();
            (topics.floor(topic, u64::MAX), topics.runs(topic))
        };
        let mut next = runs.at_or_after(0);
        while let Some(of) = next.and_then(|offset| self.holder(offset)) {
            let base = of.segment.base();
            if base >= floor {
                break;
            }
            if !replaced.contains(&of.ordinal) {
                return (floor, true);
            }
            next = self.base_after(base).and_then(|next| runs.at_or_after(next));
        }
        (floor, false)
    }

    /// Prepares to replace segments: if the table covers them, prepares the layers that replace the
    /// table. That may take time proportional to the number of segments.
    ///
    /// # Errors
    /// When files cannot be opened for now.
    pub(crate) fn uncover(&self, replaced: &RangeInclusive<u32>) -> io::Result<Uncovered> {
        let old: Vec<_> = replaced.clone().filter_map(|ordinal| self.segment(ordinal)).collect();
        self.uncovered(&old, |of| self.layer_now(of))
    }

    /// Prepares to replace segments like [`Self::uncover`], treating files that cannot be opened as
    /// damaged.
    fn uncover_somehow(&self, replaced: &RangeInclusive<u32>) -> Uncovered {
        let old: Vec<_> = replaced.clone().filter_map(|ordinal| self.segment(ordinal)).collect();
        let layer = |of: &SegmentIndex| Ok::<_, Infallible>(self.layer_of(of));
        let Ok(uncovered) = self.uncovered(&old, layer);
        uncovered
    }

    /// Whether the table is still the one that was prepared for.
    pub(crate) fn is_current(&self, uncovered: &Uncovered) -> bool {
        is_one(self.topics.read().table.as_ref(), uncovered.table.as_ref())
    }

    /// Replaces segments by their rewrite. The caller holds the writer, so that nothing is appended
    /// or removed meanwhile. Readers of the old segments continue.
    pub(crate) fn rewrite(&self, rewritten: Rewritten<'_>, prepared: Uncovered) {
        let Rewritten { replaced, new, gone, floors, marks, offsets } = rewritten;
        let old: Vec<_> = replaced.clone().filter_map(|ordinal| self.segment(ordinal)).collect();
        let new = new.map(|(segment, rewriting)| (segment, Arc::new(rewriting.memory)));
        let mut prepared = Some(prepared);
        let mut topics = loop {
            let Uncovered { table, layers } =
                prepared.take().unwrap_or_else(|| self.uncover_somehow(&replaced));
            let mut topics = self.topics.write();
            // A merge may have replaced it at the last moment.
            if !is_one(topics.table.as_ref(), table.as_ref()) {
                continue;
            }
            if let Some(layers) = layers {
                topics.outdated = topics.table.take();
                topics.layers.splice(..0, layers);
            }
            break topics;
        };
        let is_old = |layer: &Layer| old.iter().any(|of| covered(&of.segment) == layer.of);
        let at = topics.layers.iter().position(is_old).unwrap_or(topics.layers.len());
        topics.layers.retain(|layer| !is_old(layer));
        if let Some((segment, index)) = &new {
            let source = Source::Memory(index.clone());
            topics.layers.insert(at, Layer { of: covered(segment), source });
        }
        for (name, gone) in gone {
            self.frames.fetch_sub(gone.frames, Ordering::Relaxed);
            self.count_gone(gone.frames);
            topics.forget_removed(name, |at| offsets.contains(&at) && marks.contains(at));
        }
        // Before and after: a reader that sees the same count twice saw no state in between.
        self.rewrites.fetch_add(1, Ordering::AcqRel);
        self.place(&old, new);
        // `decay` is shared by all states of a segment, and lives until its last reader is gone.
        let mut readers: Vec<_> = old.iter().map(|of| Arc::downgrade(&of.decay)).collect();
        let (range, offsets) = (offsets.clone(), marks.iter(offsets).collect());
        self.leaving.floors.fetch_add(floors.len(), Ordering::Relaxed);
        let mut left = self.leaving.left.lock();
        // Readers of segments that an earlier rewrite of these offsets replaced need these marks
        // too.
        let overlaps = |of: &&Left| of.range.start < range.end && range.start < of.range.end;
        readers.extend(left.iter().filter(overlaps).flat_map(|of| of.readers.iter().cloned()));
        readers.retain(|reader| reader.strong_count() > 0);
        left.push(Left { readers, range, offsets, floors });
        drop(left);
        // Before the topics are unlocked: the new runs of a topic go with the new count.
        self.rewrites.fetch_add(1, Ordering::AcqRel);
        drop(topics);
        self.loaded.lock().retain(|of| !replaced.contains(&of.ordinal));
    }

    /// Lists the replacement of segments, under the number of the last of them, if anything is
    /// left. The other numbers are not reused.
    fn place(&self, old: &[Arc<SegmentIndex>], new: Option<(Arc<Segment>, Arc<MemoryIndex>)>) {
        let Some(last) = old.last().map(|last| last.ordinal) else { return };
        let new = new.map(|(segment, index)| SegmentIndex::complete(segment, last, index));
        let mut new = new.map(Arc::new);
        let is_old = |of: &SegmentIndex| old.iter().any(|old| old.ordinal == of.ordinal);
        let put = |of: &Arc<SegmentIndex>| match is_old(of) {
            true if of.ordinal == last => new.take(),
            true => None,
            false => Some(Arc::clone(of)),
        };
        let mut segments = self.segments.write();
        *segments = segments.iter().filter_map(put).collect();
    }

    /// The table, and if it covers any of these segments, the layers that replace it. The table is
    /// stale once they are removed, except for the floors.
    fn uncovered<E>(
        &self,
        old: &[Arc<SegmentIndex>],
        layer: impl Fn(&SegmentIndex) -> Result<Source, E>,
    ) -> Result<Uncovered, E> {
        let Some(table) = self.topics.read().table.clone() else {
            return Ok(Uncovered { table: None, layers: None });
        };
        let end = table.segments().last().map_or(0, |last| last.base);
        if old.iter().all(|of| of.segment.base() > end) {
            return Ok(Uncovered { table: Some(table), layers: None });
        }
        let segments = self.segments();
        let layers = table.segments().iter().filter_map(|named| {
            let first = segments.partition_point(|of| of.segment.base() < named.base);
            let mut same = segments[first..].iter();
            let of = same.find(|of| covered(&of.segment) == *named)?;
            Some(layer(of).map(|source| Layer { of: *named, source }))
        });
        let layers = layers.collect::<Result<_, _>>()?;
        Ok(Uncovered { table: Some(table), layers: Some(layers) })
    }

    /// The topics of a complete segment, or an error if its files cannot be opened for now: the
    /// caller then retries, where [`Self::layer_of`] would treat the segment as damaged.
    fn layer_now(&self, of: &SegmentIndex) -> io::Result<Source> {
        let opened = self.env.files.open_unmapped(of.segment.path());
        match opened {
            Err(error) if is_full(&error) => Err(error),
            _ => Ok(self.layer_of(of)),
        }
    }

    /// The topics of a complete segment, from its file or rebuilt.
    pub(super) fn layer_of(&self, of: &SegmentIndex) -> Source {
        if of.frozen().is_none()
            && let Some(file) = files::load_topics(&self.env, &of.segment)
        {
            return Source::File(Arc::new(file));
        }
        // A reader may still have the file open.
        if let Ok(Some(file)) = self.loaded(of, Loaded::topics) {
            return Source::File(file);
        }
        let frozen = of.frozen().unwrap_or_else(|| {
            // Neither can be read: a read of everything must report the error, not skip the
            // segment.
            let index = Arc::new(MemoryIndex::new(of.segment.base()));
            *of.kind.lock() = Kind::Frozen { index: index.clone(), whole: false };
            self.partial.store(true, Ordering::Relaxed);
            index
        });
        Source::Memory(frozen)
    }

    /// Forgets removed frames that are compacted away and that no reader can reach any more.
    pub(crate) fn forget_gone(&self) -> bool {
        let mut forgot = false;
        self.leaving.left.lock().retain(|Left { readers, offsets, floors, .. }| {
            let is_read = readers.iter().any(|reader| reader.strong_count() > 0)
                && !is_planted(Bug::ForgetWhileRead);
            if !is_read {
                self.removed.forget(offsets.iter().copied());
                self.leaving.floors.fetch_sub(floors.len(), Ordering::Relaxed);
                forgot |= !offsets.is_empty();
                let some = u64::from(!offsets.is_empty());
                self.leaving.forgotten.fetch_add(some, Ordering::Relaxed);
            }
            is_read
        });
        forgot
    }
}

/// Estimated frames of a topic below a floor, in the segment with this entry.
fn below(entry: &TopicEntry, floor: u64) -> u64 {
    let span = u128::from(entry.last_offset.saturating_sub(entry.first_offset)) + 1;
    let below = u128::from(floor.saturating_sub(entry.first_offset)).min(span);
    (u128::from(entry.count) * below / span) as u64
}

/// The share of some frames in the bytes of all.
fn share(bytes: u64, some: u64, all: u64) -> u64 {
    (u128::from(bytes) * u128::from(some) / u128::from(all.max(1))) as u64
}

impl Leaving {
    /// The floor of a topic whose frames below it are left only in segments that are still read; 0
    /// when there is none.
    pub(super) fn floor(&self, topic: &str) -> u64 {
        if self.floors.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let left = self.left.lock();
        left.iter().filter_map(|left| left.floors.get(topic)).max().copied().unwrap_or(0)
    }
}

impl SegmentIndex {
    fn complete(segment: Arc<Segment>, ordinal: u32, index: Arc<MemoryIndex>) -> Self {
        let decay = Arc::new(Decay::default());
        decay.set(index.dead().kept_of_frames(), index.dead().expiring.clone());
        let kind = Kind::Frozen { index, whole: true };
        Self { segment, ordinal, kind: Arc::new(Mutex::new(kind)), decay }
    }
}
