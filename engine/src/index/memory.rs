//! The in-memory index of a segment whose files are not written yet: the future content of `.idx`
//! and `.top`, updated with each frame. No allocation per frame: a topic is interned once per
//! segment, a posting is a few bytes at the end of a run, and a topic with one frame has no run at
//! all.

use std::hash::BuildHasher as _;

use bytes::Bytes;
use hashbrown::{DefaultHashBuilder, HashTable};
use parking_lot::{Mutex, MutexGuard};

use super::Noted;
use super::recent::Recent;
use crate::format::align8;
use crate::format::batch::BATCH_HEADER_LEN;
use crate::format::control::Tombstone;
use crate::format::dead::DeadBuilder;
use crate::format::file::{FILE_HEADER_LEN, FileHeader, FormatError};
use crate::format::index::{STEP_BYTES, SparseEntry};
use crate::format::postings::{Chunk, Posting, push};
use crate::format::topic_index::{TopicEntry, TopicFileBuilder};
use crate::value::FrameId;

/// Bytes of postings after which a run is closed and shared with readers.
const RUN_BYTES: usize = 16 * 1024;

/// All indexes of one segment.
#[derive(Debug)]
pub(crate) struct MemoryIndex {
    base: u64,
    dead: DeadBuilder,
    /// The batch of the newest frame.
    batch: u32,
    sparse: Vec<SparseEntry>,
    /// The step of the segment that the last sparse entry covers.
    step: Option<u64>,
    hasher: DefaultHashBuilder,
    numbers: HashTable<u32>,
    /// The names of all topics, concatenated.
    names: String,
    topics: Vec<MemoryTopic>,
    /// Topic numbers in byte order of their names, sorted on demand.
    sorted: Mutex<Vec<u32>>,
}

/// The entry of one topic in the segment.
#[derive(Debug)]
struct MemoryTopic {
    name_at: u32,
    name_len: u8,
    entry: TopicEntry,
    /// Postings of more than one frame, after the closed runs.
    open: Vec<u8>,
    more: Option<Box<More>>,
}

/// State that few topics have.
#[derive(Debug, Default)]
struct More {
    /// Runs that are shared with readers.
    closed: Vec<Chunk>,
    /// The last posting in them.
    closed_last: Posting,
    /// Offset and expiry time of the frames that expire.
    timed: Vec<(u64, u64)>,
    floor: FloorState,
}

/// The effect of `last:n` on a topic, while frames with it arrive in the segment.
#[derive(Debug, Default)]
struct FloorState {
    /// Every frame with a lower offset is removed; 0 if this segment removed none.
    floor: u64,
    /// Offset of the frame that set the floor.
    by: u64,
    /// The floor before the group of that frame, if it was set in this segment.
    before: u64,
    /// Offset of the frame that set `before`.
    before_by: u64,
    /// The newest live frames; dropped when they are unlikely to be needed.
    recent: Option<Recent>,
}

impl FloorState {
    /// The floor for a reader with this head, 0 when older segments determine it: a removal takes
    /// effect once the frame that causes it is visible.
    const fn at(&self, head: u64) -> u64 {
        if self.by < head { self.floor } else { self.before }
    }

    /// Whether that floor is known: it moved in at most one group since that head.
    const fn is_known_at(&self, head: u64) -> bool {
        self.by < head || self.before_by < head
    }

    /// Adds a frame; `keep` is the n of its `last:n`.
    fn note(&mut self, noted: &Noted<'_>, group: u64, keep: Option<u64>) {
        if keep == Some(1) {
            self.recent = Some(Recent::default());
        }
        let Some(recent) = &mut self.recent else { return };
        recent.push(noted.offset, noted.expires_ms());
        let Some(keep) = keep else {
            if recent.is_long() {
                self.recent = None;
            }
            return;
        };
        // By the id's time, not the clock's: replaying the log must give the same result.
        recent.expire(noted.id.time_ms());
        recent.keep(keep);
        let floor = recent.first().unwrap_or(noted.offset + 1);
        if floor > self.floor {
            if self.by < group {
                (self.before, self.before_by) = (self.floor, self.by);
            }
            (self.floor, self.by) = (floor, noted.offset);
        }
    }

    /// Applies a FLOOR record.
    fn raise(&mut self, floor: u64) {
        if floor > self.floor {
            (self.floor, self.by, self.before, self.before_by) = (floor, floor, floor, floor);
            if let Some(recent) = &mut self.recent {
                recent.keep_from(floor);
            }
        }
    }
}

impl MemoryIndex {
    pub(crate) fn new(base: u64) -> Self {
        Self {
            base,
            dead: DeadBuilder::new(FILE_HEADER_LEN as u64),
            batch: 0,
            sparse: Vec::new(),
            step: None,
            hasher: DefaultHashBuilder::default(),
            numbers: HashTable::new(),
            names: String::new(),
            topics: Vec::new(),
            sorted: Mutex::default(),
        }
    }

    pub(super) const fn base(&self) -> u64 {
        self.base
    }

    /// Number of topics.
    pub(super) const fn topics(&self) -> usize {
        self.topics.len()
    }

    /// The number of a topic, if the segment holds it.
    pub(super) fn number_of(&self, topic: &str) -> Option<u32> {
        self.number_of_hash(topic, self.hasher.hash_one(topic))
    }

    fn number_of_hash(&self, topic: &str, hash: u64) -> Option<u32> {
        self.numbers.find(hash, |&number| self.name(number) == topic).copied()
    }

    /// The name of a topic.
    pub(super) fn name(&self, number: u32) -> &str {
        self.topics[number as usize].name(&self.names)
    }

    /// The number of a topic, assigned if it is new to the segment.
    fn intern(&mut self, name: &str) -> u32 {
        let hash = self.hasher.hash_one(name);
        if let Some(number) = self.number_of_hash(name, hash) {
            return number;
        }
        let number = self.topics.len() as u32;
        self.topics.push(MemoryTopic {
            name_at: self.names.len() as u32,
            name_len: name.len() as u8,
            entry: TopicEntry {
                count: 0,
                postings_at: 0,
                postings_len: 0,
                last_slot: 0,
                first_offset: 0,
                last_offset: 0,
                bytes: 0,
                floor: 0,
                first_id: FrameId::ZERO,
                last_id: FrameId::ZERO,
            },
            open: Vec::new(),
            more: None,
        });
        self.names.push_str(name);
        let Self { numbers, hasher, topics, names, .. } = self;
        numbers.insert_unique(hash, number, |&other| {
            hasher.hash_one(topics[other as usize].name(names))
        });
        number
    }

    /// Adds a frame; returns its topic's number.
    pub(crate) fn note(&mut self, noted: &Noted<'_>) -> u32 {
        let delta = (noted.offset - self.base) as u32;
        let step = u64::from(noted.batch) / STEP_BYTES;
        if self.step != Some(step) {
            self.step = Some(step);
            self.sparse.push(SparseEntry {
                offset_delta: delta,
                position: noted.batch,
                id_prefix: noted.id.prefix(),
            });
        }
        let mut len = align8(noted.record_len as usize) as u64;
        if std::mem::replace(&mut self.batch, noted.batch) != noted.batch {
            len += BATCH_HEADER_LEN as u64;
        }
        self.dead.kept += len;
        let number = self.intern(noted.topic);
        let base = self.base;
        let topic = &mut self.topics[number as usize];
        if let Some(expires_ms) = noted.expires_ms() {
            self.dead.expiring.add(expires_ms, len);
            topic.more.get_or_insert_default().timed.push((noted.offset, expires_ms));
        }
        topic.note(noted, base);
        number
    }

    /// Applies the `last:n` of a frame, with n in `keep`, after the frame was added. `group` is the
    /// offset of the first frame of the group. Returns whether the topic has a floor.
    pub(super) fn apply_last(
        &mut self,
        number: u32,
        noted: &Noted<'_>,
        group: u64,
        keep: Option<u64>,
    ) -> bool {
        let topic = &mut self.topics[number as usize];
        if keep.is_some() {
            topic.more.get_or_insert_default();
        }
        let Some(more) = &mut topic.more else { return false };
        more.floor.note(noted, group, keep);
        topic.entry.floor = topic.entry.floor.max(more.floor.floor);
        more.floor.floor > 0
    }

    /// Applies a FLOOR record of a topic, of which the segment may hold no frame.
    pub(super) fn note_floor(&mut self, topic: &str, floor: u64) {
        let number = self.intern(topic);
        let topic = &mut self.topics[number as usize];
        topic.entry.floor = topic.entry.floor.max(floor);
        topic.more.get_or_insert_default().floor.raise(floor);
    }

    /// Adds a tombstone of the batch with this seq.
    pub(super) fn note_tombstone(&mut self, seq: u64, tombstone: &Tombstone<'_>) {
        self.dead.kept += tombstone.record_len();
        self.dead.tombstone(seq, tombstone);
    }

    pub(super) const fn dead(&self) -> &DeadBuilder {
        &self.dead
    }

    /// Whether `last:n` first needs the newest frames of a topic loaded.
    pub(super) fn wants_recent(&self, topic: &str) -> bool {
        self.more(topic).is_none_or(|more| more.floor.recent.is_none())
    }

    /// Sets the newest live frames of a topic.
    pub(super) fn set_recent(&mut self, topic: &str, recent: Recent) {
        let number = self.intern(topic);
        let more = self.topics[number as usize].more.get_or_insert_default();
        more.floor.recent = Some(recent);
    }

    /// Removes a frame from a topic's newest frames.
    pub(super) fn remove_recent(&mut self, topic: &str, offset: u64) {
        let Some(number) = self.number_of(topic) else { return };
        let more = self.topics[number as usize].more.as_mut();
        if let Some(recent) = more.and_then(|more| more.floor.recent.as_mut()) {
            recent.remove(offset);
        }
    }

    /// Hands over the state that only new frames need, because the segment is complete.
    pub(super) fn complete(&mut self, mut take: impl FnMut(&str, Recent)) {
        let Self { topics, names, .. } = self;
        for topic in topics {
            let recent = topic.more.as_mut().and_then(|more| more.floor.recent.take());
            if let Some(recent) = recent {
                take(topic.name(names), recent);
            }
        }
    }

    /// Number of frames of the topic with this number.
    pub(super) fn count(&self, number: u32) -> u64 {
        u64::from(self.topics[number as usize].entry.count)
    }

    /// When a frame of a topic expires.
    pub(super) fn expires(&self, topic: &str, offset: u64) -> Option<u64> {
        let timed = &self.more(topic)?.timed;
        let at = timed.binary_search_by_key(&offset, |&(offset, _)| offset).ok()?;
        timed.get(at).map(|&(_, expires_ms)| expires_ms)
    }

    /// The entry of each topic.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, &TopicEntry)> {
        self.topics.iter().map(|topic| (topic.name(&self.names), &topic.entry))
    }

    fn more(&self, topic: &str) -> Option<&More> {
        self.topics[self.number_of(topic)? as usize].more.as_deref()
    }

    /// The entry of a topic.
    pub(super) fn find(&self, topic: &str) -> Option<TopicEntry> {
        self.number_of(topic).and_then(|number| self.entry(number))
    }

    /// The entry of the topic with this number.
    pub(super) fn entry(&self, number: u32) -> Option<TopicEntry> {
        self.topics.get(number as usize).map(|topic| topic.entry)
    }

    /// The floor that this segment set for a topic, for a reader with this head; 0 when it set
    /// none.
    pub(super) fn floor(&self, topic: &str, head: u64) -> u64 {
        self.more(topic).map_or(0, |more| more.floor.at(head))
    }

    /// Whether [`Self::floor`] is the floor at that head.
    pub(super) fn is_floor_known(&self, topic: &str, head: u64) -> bool {
        self.more(topic).is_none_or(|more| more.floor.is_known_at(head))
    }

    pub(crate) fn sparse(&self) -> &[SparseEntry] {
        &self.sparse
    }

    /// The postings of a topic, in order.
    pub(super) fn postings(&self, topic: &str) -> Vec<Chunk> {
        let number = self.number_of(topic);
        number.map(|number| self.topics[number as usize].postings(self.base)).unwrap_or_default()
    }

    /// The numbers of all topics, in byte order of the names.
    pub(super) fn sorted(&self) -> MutexGuard<'_, Vec<u32>> {
        let mut sorted = self.sorted.lock();
        if sorted.len() < self.topics.len() {
            let known = sorted.len() as u32;
            sorted.extend(known..self.topics.len() as u32);
            // A stable merge sort, which takes advantage of the sorted prefix.
            sorted.sort_by(|&a, &b| self.name(a).cmp(self.name(b)));
        }
        sorted
    }

    /// The bytes of the `.top` file.
    pub(crate) fn encode_topics(&self, header: &FileHeader) -> Result<Vec<u8>, FormatError> {
        let mut builder = TopicFileBuilder::new();
        for &number in self.sorted().iter() {
            let topic = &self.topics[number as usize];
            let runs = topic.postings(self.base);
            let runs = runs.iter().map(|run| &run.bytes[..]);
            builder.add(topic.name(&self.names), topic.entry, runs)?;
        }
        builder.finish(header)
    }
}

impl MemoryTopic {
    fn name<'a>(&self, names: &'a str) -> &'a str {
        let at = self.name_at as usize;
        &names[at..at + usize::from(self.name_len)]
    }

    fn note(&mut self, noted: &Noted<'_>, base: u64) {
        let next = Posting { delta: (noted.offset - base) as u32, slot: noted.record / 8 };
        match self.entry.count {
            0 => (self.entry.first_offset, self.entry.first_id) = (noted.offset, noted.id),
            count => {
                let last = self.last(base);
                if count == 1 {
                    push(&mut self.open, Posting::default(), last);
                }
                push(&mut self.open, last, next);
            }
        }
        self.entry.count += 1;
        self.entry.bytes += u64::from(noted.record_len) + noted.body_len;
        self.entry.last_offset = noted.offset;
        self.entry.last_id = noted.id;
        self.entry.last_slot = next.slot;
        if self.open.len() >= RUN_BYTES {
            let bytes = Bytes::from(std::mem::take(&mut self.open));
            let more = self.more.get_or_insert_default();
            more.closed.push(Chunk { bytes, before: more.closed_last, last: next });
            more.closed_last = next;
        }
    }

    /// The posting of the last frame.
    const fn last(&self, base: u64) -> Posting {
        let delta = self.entry.last_offset.saturating_sub(base) as u32;
        Posting { delta, slot: self.entry.last_slot }
    }

    /// All postings. The open run is copied; it is at most a few KiB long.
    fn postings(&self, base: u64) -> Vec<Chunk> {
        let last = self.last(base);
        let more = self.more.as_deref();
        let before = more.map_or_else(Posting::default, |more| more.closed_last);
        let mut all = more.map(|more| more.closed.clone()).unwrap_or_default();
        let mut open = Bytes::copy_from_slice(&self.open);
        if self.entry.count == 1 {
            let mut single = Vec::new();
            push(&mut single, before, last);
            open = single.into();
        }
        if !open.is_empty() {
            all.push(Chunk { bytes: open, before, last });
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Ttl;

    fn noted(topic: &str, offset: u64) -> Noted<'_> {
        Noted {
            offset,
            id: FrameId::first_of_ms(offset),
            topic,
            batch: 64 + offset as u32 * 400,
            record: 128 + offset as u32 * 400,
            record_len: 40,
            body_len: 2,
            ttl: Ttl::Forever,
        }
    }

    #[test]
    fn topics_are_found_sorted_and_hold_their_postings() {
        let mut index = MemoryIndex::new(100);
        let names: Vec<String> = (0..500).map(|n| format!("t{}", n * 7 % 500)).collect();
        let mut offset = 100;
        for round in 0..3 {
            for name in names.iter().filter(|name| name.len() > round + 1) {
                index.note(&noted(name, offset));
                offset += 1;
            }
            let mut sorted = names.clone();
            sorted.sort();
            let found: Vec<_> = index.sorted().iter().map(|&n| index.name(n).to_owned()).collect();
            assert_eq!(found, sorted);
        }
        assert_eq!(index.topics(), 500);
        let of = |name: &str| {
            let chunks = index.postings(name);
            let places = chunks.into_iter().flat_map(Chunk::forward);
            places.map(|place| (place.delta, place.slot)).collect::<Vec<_>>()
        };
        let slot = |delta: u32| 16 + (delta + 100) * 50;
        assert_eq!(of("t0"), [(0, slot(0))]);
        assert_eq!(of("t7").first(), Some(&(1, slot(1))));
        assert_eq!((of("t7").len(), of("t10").len(), of("t100").len()), (1, 2, 3));
        assert_eq!((of("t"), index.find("t")), (vec![], None));
        assert_eq!(index.find("t100").unwrap().bytes, 126);
    }

    #[test]
    fn long_postings_are_closed_and_still_whole() {
        let mut index = MemoryIndex::new(0);
        let frames = RUN_BYTES as u64 * 5 / 4;
        for offset in 0..frames {
            index.note(&noted("a", offset));
        }
        let chunks = index.postings("a");
        assert!(chunks.len() > 2);
        let all: Vec<_> = chunks.into_iter().flat_map(Chunk::forward).collect();
        assert!(
            all.iter().zip(0..).all(|(place, n)| place.delta == n) && all.len() as u64 == frames
        );
    }

    #[test]
    fn last_n_moves_the_floor() {
        let mut index = MemoryIndex::new(0);
        let mut note = |offset: u64, keep: Option<u64>| {
            let frame = noted("a", offset);
            if keep.is_some_and(|n| n > 1) && index.wants_recent("a") {
                let mut recent = Recent::default();
                let first = offset.saturating_sub(keep.unwrap_or(0));
                (first..offset).for_each(|offset| recent.push(offset, None));
                index.set_recent("a", recent);
            }
            let number = index.note(&frame);
            index.apply_last(number, &frame, offset, keep);
            (index.find("a").unwrap().floor, index.floor("a", offset))
        };
        assert_eq!((note(0, None), note(1, None), note(2, None)), ((0, 0), (0, 0), (0, 0)));
        assert_eq!(note(3, Some(2)), (2, 0));
        assert_eq!(note(4, None), (2, 2));
        assert_eq!(note(5, Some(3)), (3, 2));
        assert_eq!(note(6, Some(100)), (3, 3));
        assert_eq!(note(7, Some(1)), (7, 3));
        assert_eq!(note(8, Some(2)), (7, 7));
        index.note_floor("b", 6);
        assert_eq!((index.find("b").unwrap().floor, index.floor("b", 7)), (6, 6));
        assert_eq!(index.find("b").unwrap().count, 0);
    }
}
