//! The index of a segment whose files are not written yet: what `.idx` and `.top` will hold, kept
//! up to date frame by frame. No allocation per frame: a topic is interned once per segment, a
//! posting is a few bytes at the end of a run.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::Noted;
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
    /// The step of the segment that the last sparse entry stands for.
    step: Option<u64>,
    numbers: HashMap<Arc<str>, u32>,
    topics: Vec<MemoryTopic>,
}

/// What the segment holds of one topic.
#[derive(Debug)]
pub(crate) struct MemoryTopic {
    name: Arc<str>,
    /// Its number in the table of the store.
    pub(super) table: u32,
    entry: TopicEntry,
    runs: Vec<Chunk>,
    open: Vec<u8>,
    open_before: Posting,
    last: Posting,
    /// Offsets of the frames that expire, and when.
    timed: Vec<(u64, u64)>,
}

impl MemoryIndex {
    pub(crate) fn new(base: u64) -> Self {
        Self {
            base,
            dead: DeadBuilder::new(FILE_HEADER_LEN as u64),
            batch: 0,
            sparse: Vec::new(),
            step: None,
            numbers: HashMap::new(),
            topics: Vec::new(),
        }
    }

    /// The number of a topic that the segment already holds.
    pub(super) fn number_of(&self, topic: &str) -> Option<u32> {
        self.numbers.get(topic).copied()
    }

    /// Makes room for a topic new to the segment. `table` is its number in the store's table.
    pub(super) fn intern(
        &mut self,
        name: Arc<str>,
        table: u32,
        first_offset: u64,
        first_id: FrameId,
    ) -> u32 {
        let number = self.topics.len() as u32;
        self.numbers.insert(name.clone(), number);
        self.topics.push(MemoryTopic {
            name,
            table,
            entry: TopicEntry {
                count: 0,
                postings_at: 0,
                postings_len: 0,
                last_slot: 0,
                first_offset,
                last_offset: first_offset,
                bytes: 0,
                floor: 0,
                first_id,
                last_id: first_id,
            },
            runs: Vec::new(),
            open: Vec::new(),
            open_before: Posting::default(),
            last: Posting::default(),
            timed: Vec::new(),
        });
        number
    }

    /// Takes up a frame of the topic with this number in the segment; returns the topic's number in
    /// the store's table.
    pub(super) fn note(&mut self, number: u32, noted: &Noted<'_>) -> u32 {
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
        let len = align8(noted.record_len as usize) as u64;
        self.dead.kept += len;
        if std::mem::replace(&mut self.batch, noted.batch) != noted.batch {
            self.dead.kept += BATCH_HEADER_LEN as u64;
        }
        let topic = &mut self.topics[number as usize];
        if let Some(expires_ms) = noted.expires_ms() {
            self.dead.expiring.add(expires_ms, len);
            topic.timed.push((noted.offset, expires_ms));
        }
        let next = Posting { delta, slot: noted.record / 8 };
        push(&mut topic.open, topic.last, next);
        topic.last = next;
        topic.entry.count += 1;
        topic.entry.bytes += u64::from(noted.record_len) + noted.body_len;
        topic.entry.last_offset = noted.offset;
        topic.entry.last_id = noted.id;
        topic.entry.last_slot = next.slot;
        if topic.open.len() >= RUN_BYTES {
            let bytes = Bytes::from(std::mem::take(&mut topic.open));
            topic.runs.push(Chunk { bytes, before: topic.open_before, last: next });
            topic.open_before = next;
        }
        topic.table
    }

    /// Records that a frame of this segment removed all frames of the topic below an offset.
    pub(super) fn set_floor(&mut self, number: u32, floor: u64) {
        self.topics[number as usize].entry.floor = floor;
    }

    /// The same for a topic that the segment may hold no frame of.
    pub(super) fn note_floor(&mut self, topic: &str, floor: u64) {
        let number = self
            .number_of(topic)
            .unwrap_or_else(|| self.intern(Arc::from(topic), u32::MAX, 0, FrameId::ZERO));
        let entry = &mut self.topics[number as usize].entry;
        entry.floor = entry.floor.max(floor);
    }

    /// Takes up a tombstone of the batch with number `seq`.
    pub(super) fn note_tombstone(&mut self, seq: u64, tombstone: &Tombstone<'_>) {
        self.dead.kept += tombstone.record_len();
        self.dead.tombstone(seq, tombstone);
    }

    pub(super) const fn dead(&self) -> &DeadBuilder {
        &self.dead
    }

    /// When a frame of a topic expires.
    pub(super) fn expires(&self, topic: &str, offset: u64) -> Option<u64> {
        let timed = &self.topics[self.number_of(topic)? as usize].timed;
        let at = timed.binary_search_by_key(&offset, |&(offset, _)| offset).ok()?;
        timed.get(at).map(|&(_, expires_ms)| expires_ms)
    }

    /// What it holds of each topic.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&Arc<str>, &TopicEntry)> {
        self.topics.iter().map(|topic| (&topic.name, &topic.entry))
    }

    /// What it holds of a topic.
    pub(super) fn entry(&self, topic: &str) -> Option<&TopicEntry> {
        self.number_of(topic).map(|number| &self.topics[number as usize].entry)
    }

    pub(crate) fn sparse(&self) -> &[SparseEntry] {
        &self.sparse
    }

    /// The postings of a topic, in order.
    pub(super) fn postings(&self, topic: &str) -> Vec<Chunk> {
        let number = self.number_of(topic);
        number.map(|number| self.topics[number as usize].postings()).unwrap_or_default()
    }

    /// Takes up a frame outside the store's table: the segment is indexed once more, after its
    /// files were lost.
    pub(crate) fn note_unlisted(&mut self, noted: &Noted<'_>) {
        let number = self.number_of(noted.topic).unwrap_or_else(|| {
            self.intern(Arc::from(noted.topic), u32::MAX, noted.offset, noted.id)
        });
        let entry = &mut self.topics[number as usize].entry;
        if entry.count == 0 {
            (entry.first_offset, entry.first_id) = (noted.offset, noted.id);
        }
        self.note(number, noted);
    }

    /// The bytes of the `.top` file.
    pub(crate) fn encode_topics(&self, header: &FileHeader) -> Result<Vec<u8>, FormatError> {
        let mut sorted: Vec<&MemoryTopic> = self.topics.iter().collect();
        sorted.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let mut builder = TopicFileBuilder::new();
        for topic in sorted {
            let runs = topic.runs.iter().map(|run| &run.bytes[..]);
            builder.add(&topic.name, topic.entry, runs.chain([&topic.open[..]]))?;
        }
        builder.finish(header)
    }
}

impl MemoryTopic {
    /// All postings. The open run is copied; it has at most a few KiB.
    pub(super) fn postings(&self) -> Vec<Chunk> {
        let bytes = Bytes::copy_from_slice(&self.open);
        let open = Chunk { bytes, before: self.open_before, last: self.last };
        self.runs
            .iter()
            .cloned()
            .chain([open].into_iter().filter(|c| !c.bytes.is_empty()))
            .collect()
    }
}
