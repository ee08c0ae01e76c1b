//! Where the blobs of an unsealed pack are, by the prefixes of their hashes: a table of open
//! addresses with linear probing. One thread adds at a time, any number look meanwhile, and neither
//! waits for the other: a cell is one word that is written once.
//!
//! The table answers "may be there"; whoever finds an entry compares the whole hash.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::limits::SEGMENT_BYTES_MAX;

/// Bits of a position divided by 8: a pack is no longer than a segment may be.
const SLOT_BITS: u32 = SEGMENT_BYTES_MAX.ilog2() - 3;
const SLOT_MASK: u64 = (1 << SLOT_BITS) - 1;
/// Cells of a table of which nothing is expected.
const CELLS_MIN: usize = 256;

/// A table of a fixed number of cells, at most half of which are taken.
#[derive(Debug)]
pub(super) struct Slots {
    /// Keeps those who choose what is stored from choosing where it goes.
    seed: u64,
    /// Each 0, or a tag made of a prefix above a position divided by 8, which is never 0. The low
    /// bits of the tag say where the search for it begins.
    cells: Box<[AtomicU64]>,
    taken: AtomicUsize,
}

impl Slots {
    /// An empty table with room for so many blobs.
    pub(super) fn with_room(seed: u64, blobs: usize) -> Self {
        let cells = (blobs * 2).next_power_of_two().max(CELLS_MIN);
        let cells = (0..cells).map(|_| AtomicU64::new(0)).collect();
        Self { seed, cells, taken: AtomicUsize::new(0) }
    }

    /// Blobs it holds.
    pub(super) fn len(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Blobs that can be added.
    pub(super) fn room(&self) -> usize {
        (self.cells.len() / 2).saturating_sub(self.len())
    }

    /// The same blobs in a table with room for twice as many, and for `blobs` at least.
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
            // The entry may still have to be written: what is published of its pack tells who
            // finds it whether it was.
            cell.store(new, Ordering::Release);
            self.taken.store(self.len() + 1, Ordering::Relaxed);
        }
    }

    /// Loads the cells at which the searches for these prefixes begin, all at once: one after the
    /// other each search would wait for memory.
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

    /// The cells in which a tag can be, in the order in which they are filled.
    fn probe(&self, tag: u64) -> impl Iterator<Item = &AtomicU64> {
        let begin = tag as usize & (self.cells.len() - 1);
        let (after, before) = (&self.cells[begin..], &self.cells[..begin]);
        after.iter().chain(before)
    }

    /// A prefix is part of a SHA-256 and evenly spread already.
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
        // A search for what is not there ends at a free cell.
        assert!((0..1_000).filter(|_| slots.may_hold(random(&mut seed))).count() < 10);
        let ends = |cell: &&AtomicU64| cell.load(Ordering::Relaxed) == 0;
        assert!((0..CELLS_MIN as u64).all(|tag| slots.probe(tag).find(ends).is_some()));
        assert!(slots.grown(0).cells.len() == 2 * CELLS_MIN);
    }
}
