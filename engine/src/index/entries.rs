//! Lookups in the index of one segment: its sparse entries and the postings of its topics, in
//! memory or in files that are opened on demand.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::files::{self, Loaded};
use super::notes::{Met, scan};
use super::{Index, Kind, MemoryIndex, SegmentIndex};
use crate::env::Env;
use crate::error::ReadError;
use crate::format::index::SparseEntry;
use crate::format::postings::Chunk;
use crate::limits::OPEN_INDEXES_MAX;
use crate::log::Segment;

impl Index {
    /// The last sparse entry of a segment for which `before` holds. `before` must hold for a prefix
    /// of the entries. `None` when it holds for none.
    pub(crate) fn step(
        &self,
        of: &SegmentIndex,
        before: impl Fn(&SparseEntry) -> bool,
    ) -> Result<Option<SparseEntry>, ReadError> {
        self.steps(of, |len, get| {
            let (mut low, mut high) = (0, len);
            while low < high {
                let middle = (low + high) / 2;
                if get(middle).is_some_and(|entry| before(&entry)) {
                    low = middle + 1;
                } else {
                    high = middle;
                }
            }
            low.checked_sub(1).and_then(get)
        })
    }

    /// The first sparse entry of a segment.
    pub(crate) fn first_step(&self, of: &SegmentIndex) -> Result<Option<SparseEntry>, ReadError> {
        self.steps(of, |_, get| get(0))
    }

    /// The time in the id of the first frame of the segment with this base, if known.
    pub(crate) fn first_ms(&self, base: u64) -> Option<u64> {
        let of = self.by_base(base)?;
        self.first_step(&of).ok().flatten().map(|entry| entry.id_prefix >> 16)
    }

    /// The postings of a topic in a segment, in order; empty when it does not hold the topic.
    pub(crate) fn postings(&self, of: &SegmentIndex, topic: &str) -> Result<Vec<Chunk>, ReadError> {
        match self.in_active(of, |memory| memory.postings(topic)) {
            Some(found) => Ok(found),
            None => self.complete_postings(of, topic),
        }
    }

    /// The floor that `last:n` had set for a topic by the end of a segment that is no longer
    /// active: frames with a lower offset were removed. 0 where the segment does not tell.
    pub(crate) fn floor_at_end(&self, of: &SegmentIndex, topic: &str) -> Result<u64, ReadError> {
        if self.in_active(of, |_| ()).is_some() {
            return Ok(0);
        }
        let entry = match of.frozen() {
            Some(frozen) => frozen.find(topic),
            None => self.loaded(of, Loaded::topics)?.and_then(|file| file.find(topic)),
        };
        Ok(entry.map_or(0, |entry| entry.floor))
    }

    /// [`Self::postings`], for a segment that is not the active one.
    pub(super) fn complete_postings(
        &self,
        of: &SegmentIndex,
        topic: &str,
    ) -> Result<Vec<Chunk>, ReadError> {
        if let Some(frozen) = of.frozen() {
            return Ok(frozen.postings(topic));
        }
        let Some(file) = self.loaded(of, Loaded::topics)? else {
            return Ok(of.frozen().map(|frozen| frozen.postings(topic)).unwrap_or_default());
        };
        let entry = file.find(topic);
        Ok(entry.map(|entry| vec![file.postings(&entry, of.segment.base())]).unwrap_or_default())
    }

    /// Whether [`Self::is_whole`] is false for any segment.
    pub(crate) fn is_partial(&self) -> bool {
        self.partial.load(Ordering::Relaxed)
    }

    /// Whether the postings of a segment name all its frames: not when damage hid some.
    pub(crate) fn is_whole(&self, of: &SegmentIndex) -> bool {
        !matches!(&*of.kind.lock(), Kind::Frozen { whole: false, .. })
    }

    fn in_active<R>(&self, of: &SegmentIndex, ask: impl FnOnce(&MemoryIndex) -> R) -> Option<R> {
        let topics = self.topics.read();
        let active = topics.active.as_ref().filter(|(ordinal, _)| *ordinal == of.ordinal);
        active.map(|(_, memory)| ask(memory))
    }

    /// Calls `ask` with the sparse entries of a segment.
    fn steps<R>(
        &self,
        of: &SegmentIndex,
        ask: impl Fn(usize, &dyn Fn(usize) -> Option<SparseEntry>) -> R,
    ) -> Result<R, ReadError> {
        let in_memory = |memory: &MemoryIndex| {
            let entries = memory.sparse();
            ask(entries.len(), &|number| entries.get(number).copied())
        };
        if let Some(answer) = self.in_active(of, in_memory) {
            return Ok(answer);
        }
        loop {
            if let Some(frozen) = of.frozen() {
                return Ok(in_memory(&frozen));
            }
            // `None` means that the file had to be rebuilt, which froze the index in memory.
            if let Some(file) = self.loaded(of, Loaded::sparse)? {
                return Ok(ask(file.len(), &|number| file.get(number)));
            }
        }
    }

    /// A file of a sealed segment. When it does not verify, the index is rebuilt in memory and this
    /// returns `None`: the caller retries.
    pub(super) fn loaded<F>(
        &self,
        of: &SegmentIndex,
        file: impl FnOnce(&mut Loaded, &Env, &Segment) -> Option<Arc<F>>,
    ) -> Result<Option<Arc<F>>, ReadError> {
        let mut kind = of.kind.lock();
        let Kind::Files(loaded) = &mut *kind else { return Ok(None) };
        let was_empty = loaded.is_empty();
        if let Some(found) = file(loaded, &self.env, &of.segment) {
            drop(kind);
            if was_empty {
                self.evict(of.ordinal);
            }
            return Ok(Some(found));
        }
        let mut memory = MemoryIndex::new(of.segment.base());
        let whole = scan(&of.segment, |met| match met {
            Met::Frame(noted) => {
                memory.note(&noted);
            }
            Met::Tombstone(seq, tombstone) => memory.note_tombstone(seq, &tombstone),
            Met::Floor(topic, floor) => memory.note_floor(topic, floor),
        })?;
        self.partial.fetch_or(!whole, Ordering::Relaxed);
        *kind = Kind::Frozen { index: Arc::new(memory), whole };
        if self.writable {
            // The next open, which knows what `last:n` removed, writes them again.
            files::discard(&self.env, &of.segment);
        }
        Ok(None)
    }

    /// Notes that a segment has open files, and closes those opened first when there are too many.
    fn evict(&self, opened: u32) {
        let oldest = {
            let mut loaded = self.loaded.lock();
            // Under this lock: a rewrite that replaces the segment removes it from the list
            // afterwards.
            let Some(opened) = self.segment(opened) else { return };
            loaded.push_back(opened);
            if loaded.len() > OPEN_INDEXES_MAX { loaded.pop_front() } else { None }
        };
        if let Some(oldest) = oldest
            && let Kind::Files(loaded) = &mut *oldest.kind.lock()
        {
            *loaded = Loaded::default();
        }
    }
}
