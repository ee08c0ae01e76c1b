//! The locations of the blobs of an unsealed pack, by hash prefix: an open-addressing table with
//! linear probing. One thread adds at a time while any number of threads look up, without waiting
//! for each other: a cell is one word that is written once.
//!
//! A hit means "may be there"; the caller that finds an entry compares the whole hash.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::limits::SEGMENT_BYTES_MAX;

/// Bits of a position divided by 8: a pack is no longer than the longest segment.
const SLOT_BITS: u32 = SEGMENT_BYTES_MAX.ilog2() - 3;
const SLOT_MASK: u64 = (1 << SLOT_BITS) - 1;
/// Minimum number of cells.
const CELLS_MIN: usize = 256;

/// A table of a fixed number of cells, at most half of which are taken.
#[derive(Debug)]
pub(super) struct Slots {
    /// Keeps clients that choose the stored content from choosing its cell.
    seed: u64,
    /// Each cell is 0, or a tag made of the prefix, above a position divided by 8, which is never
    /// 0. The low bits of the tag give the cell where probing begins.
    cells: Box<[AtomicU64]>,
    taken: AtomicUsize,
}

impl Slots {
    /// An empty table with room for `blobs` blobs.
    pub(super) fn with_room(seed: u64, blobs: usize) -> Self {
        let cells = (blobs * 2).next_power_of_two().max(CELLS_MIN);
        let cells = (0..cells).map(|_| AtomicU64::new(0)).collect();
        Self { seed, cells, taken: AtomicUsize::new(0) }
    }

    /// Number of blobs in it.
    pub(super) fn len(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Blobs that can be added.
    pub(super) fn room(&self) -> usize {
        (self.cells.len() / 2).saturating_sub(self.len())
    }

    /// Copies the table into one with room for twice as many blobs, and for at least `blobs`.
    pub(super) fn grown(&self, blobs: usize) -> Self {
        let grown = Self::with_room(self.seed, blobs.max(self.cells.len()));
        let cells = self.cells.iter().map(|cell| cell.load(Ordering::Relaxed));
        cells.filter(|&cell| cell != 0).for_each(|cell| grown.put(cell));
        grown
    }

    /// Adds a blob; one thread at a time, and never to a full table.
    pub(super) fn add(&self, prefix: u64, at: u64) {
        debug_assert!(at >= 8 && at / 8 <= SLOT_MASK && self.room() > 0);
        self.put((self.tag(prefix) << SLOT_BITS) | (at / 8));
    }

    fn put(&self, new: u64) {
        let free = self.probe(new >> SLOT_BITS).find(|cell| cell.load(Ordering::Relaxed) == 0);
        debug_assert!(free.is_some(), "half of all cells are free");
        if let Some(cell) = free {
            // The entry may not be written yet: the published length of its pack tells a reader
            // whether it is.
            cell.store(new, Ordering::Release);
            self.taken.store(self.len() + 1, Ordering::Relaxed);
        }
    }

    /// Loads the first cell for each of these prefixes at once, so that the lookups that follow do
    /// not wait for memory one by one.
    pub(super) fn fetch(&self, prefixes: impl Iterator<Item = u64>) {
        let cells = prefixes.filter_map(|prefix| self.probe(self.tag(prefix)).next());
        black_box(cells.fold(0, |all, cell| all ^ cell.load(Ordering::Relaxed)));
    }

    /// Whether a blob with this prefix may be there.
    pub(super) fn may_hold(&self, prefix: u64) -> bool {
        self.positions(prefix).next().is_some()
    }

    /// Positions at which a blob with this prefix may be, in no order.
    pub(super) fn positions(&self, prefix: u64) -> impl Iterator<Item = u64> {
        let tag = self.tag(prefix);
        let cells = self.probe(tag).map(|cell| cell.load(Ordering::Acquire));
        let same = cells.take_while(|&cell| cell != 0).filter(move |cell| cell >> SLOT_BITS == tag);
        same.map(|cell| (cell & SLOT_MASK) * 8)
    }

    /// The cells of a tag, in probing order.
    fn probe(&self, tag: u64) -> impl Iterator<Item = &AtomicU64> {
        let begin = tag as usize & (self.cells.len() - 1);
        let (after, before) = (&self.cells[begin..], &self.cells[..begin]);
        after.iter().chain(before)
    }

    /// A prefix is part of a SHA-256, hence evenly distributed.
    fn tag(&self, prefix: u64) -> u64 {
        let wide = u128::from(prefix ^ self.seed) * 0x9e37_79b9_7f4a_7c15;
        ((wide as u64) ^ (wide >> 64) as u64) >> SLOT_BITS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::sim::random;

    #[test]
    fn what_was_added_is_found_and_little_else() {
        let mut slots = Slots::with_room(7, 0);
        let mut seed = 1;
        let prefixes: Vec<u64> = (0..20_000).map(|_| random(&mut seed)).collect();
        for (&prefix, at) in prefixes.iter().zip((64..).step_by(8)) {
            if slots.room() == 0 {
                slots = slots.grown(0);
            }
            slots.add(prefix, at);
        }
        assert_eq!(slots.len(), prefixes.len());
        for (&prefix, at) in prefixes.iter().zip((64..).step_by(8)) {
            assert!(slots.positions(prefix).any(|found| found == at), "{prefix:x}");
        }
        let wrong = (0..20_000).filter(|_| slots.may_hold(random(&mut seed))).count();
        assert!(wrong < 10, "{wrong} that were never added");
    }

    #[test]
    fn all_positions_of_a_prefix_are_kept() {
        let slots = Slots::with_room(0, 4);
        let last = SEGMENT_BYTES_MAX - 8;
        [64, 72, last].into_iter().for_each(|at| slots.add(5, at));
        let mut found: Vec<u64> = slots.grown(1_000).positions(5).collect();
        found.sort_unstable();
        assert_eq!(found, [64, 72, last]);
        assert!(slots.positions(6).next().is_none());
    }

    #[test]
    fn a_table_has_a_free_cell_always() {
        let slots = Slots::with_room(3, 1);
        let mut seed = 9;
        while slots.room() > 0 {
            slots.add(random(&mut seed), 64);
        }
        assert_eq!(slots.len() * 2, CELLS_MIN);
        // A search for an absent tag ends at a free cell.
        assert!((0..1_000).filter(|_| slots.may_hold(random(&mut seed))).count() < 10);
        let ends = |cell: &&AtomicU64| cell.load(Ordering::Relaxed) == 0;
        assert!((0..CELLS_MIN as u64).all(|tag| slots.probe(tag).find(ends).is_some()));
        assert!(slots.grown(0).cells.len() == 2 * CELLS_MIN);
    }
}
