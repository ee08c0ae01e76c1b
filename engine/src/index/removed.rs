//! Which frames were removed by a tombstone and still lie in the log: one bit each, in pieces of
//! 1,024 offsets, so that memory is used only for removed frames.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::RwLock;

/// Offsets per piece.
const PIECE: u64 = 1024;
const WORDS: usize = PIECE as usize / 64;
/// Removals that are still distinguished by head, for readers with an older one.
const NEWEST_MAX: usize = 4096;
const FILTER_WORDS: usize = 64;

type Pieces = BTreeMap<u64, [u64; WORDS]>;

/// Removed frames that are not compacted away yet.
#[derive(Debug, Default)]
pub(crate) struct Removed {
    any: AtomicBool,
    /// One bit per group of pieces that may hold a removed frame, so that most reads take no lock.
    filter: Filter,
    state: RwLock<State>,
}

#[derive(Debug)]
struct Filter([AtomicU64; FILTER_WORDS]);

impl Default for Filter {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; FILTER_WORDS])
    }
}

#[derive(Debug, Default)]
struct State {
    marks: Marks,
    /// The newest removals that came with frames: the head at which they take effect, and the
    /// offset. Heads ascend.
    newest: VecDeque<(u64, u64)>,
}

/// A set of frames, for example a snapshot of the removed ones.
#[derive(Debug, Clone, Default)]
pub(crate) struct Marks {
    pieces: Pieces,
}

fn place(offset: u64) -> (u64, usize, u64) {
    let within = (offset % PIECE) as usize;
    (offset / PIECE, within / 64, 1 << (within % 64))
}

fn filter_place(piece: u64) -> (usize, u64) {
    let mixed = piece.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed >> 58) as usize % FILTER_WORDS, 1 << (mixed >> 52 & 63))
}

impl Marks {
    /// Whether a frame is in the set.
    pub(crate) fn contains(&self, offset: u64) -> bool {
        let (piece, word, bit) = place(offset);
        self.pieces.get(&piece).is_some_and(|words| words[word] & bit != 0)
    }

    /// Adds a frame. Returns false if it was in the set.
    pub(crate) fn set(&mut self, offset: u64) -> bool {
        let (piece, word, bit) = place(offset);
        let words = self.pieces.entry(piece).or_insert([0; WORDS]);
        let new = words[word] & bit == 0;
        words[word] |= bit;
        new
    }

    fn clear(&mut self, offset: u64) {
        let (piece, word, bit) = place(offset);
        if let Some(words) = self.pieces.get_mut(&piece) {
            words[word] &= !bit;
            if *words == [0; WORDS] {
                self.pieces.remove(&piece);
            }
        }
    }

    /// The frames of a range, ascending.
    pub(crate) fn iter(&self, range: Range<u64>) -> impl Iterator<Item = u64> + '_ {
        let pieces = self.pieces.range(range.start / PIECE..range.end.div_ceil(PIECE));
        let bits = pieces.flat_map(|(piece, words)| {
            let base = piece * PIECE;
            let each = (0..PIECE).filter(|&n| words[n as usize / 64] >> (n % 64) & 1 != 0);
            each.map(move |n| base + n)
        });
        bits.filter(move |offset| range.contains(offset))
    }
}

impl Removed {
    /// Whether any frame was removed.
    #[inline]
    pub(crate) fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// Whether a frame was removed, for a reader with this head.
    pub(crate) fn contains(&self, offset: u64, head: u64) -> bool {
        if !self.any() {
            return false;
        }
        let (word, bit) = filter_place(offset / PIECE);
        if self.filter.0[word].load(Ordering::Acquire) & bit == 0 {
            return false;
        }
        let state = self.state.read();
        if !state.marks.contains(offset) {
            return false;
        }
        let later = state.newest.partition_point(|&(from, _)| from <= head);
        !state.newest.range(later..).any(|&(_, removed)| removed == offset)
    }

    /// If a frame was removed, an offset from which on all frames were appended later. Where the
    /// time of the removal is no longer known, some earlier frames may be later too.
    pub(crate) fn since(&self, offset: u64) -> Option<u64> {
        if !self.any() {
            return None;
        }
        let state = self.state.read();
        if !state.marks.contains(offset) {
            return None;
        }
        // The time of removals before the store was opened is unknown.
        let known = state.newest.partition_point(|&(from, _)| from == 0);
        let mut known = state.newest.range(known..);
        let first = known.clone().next().map_or(u64::MAX, |&(from, _)| from);
        Some(known.find(|&&(_, removed)| removed == offset).map_or(first, |&(from, _)| from))
    }

    /// Removes a frame for readers with a head of at least `from`. Returns false if it was removed
    /// already.
    pub(super) fn mark(&self, offset: u64, from: u64) -> bool {
        let (word, bit) = filter_place(offset / PIECE);
        let mut state = self.state.write();
        if !state.marks.set(offset) {
            return false;
        }
        let newest = &mut state.newest;
        if newest.len() >= NEWEST_MAX {
            newest.pop_front();
        }
        let from = newest.back().map_or(from, |&(last, _)| last.max(from));
        newest.push_back((from, offset));
        self.filter.0[word].fetch_or(bit, Ordering::Release);
        self.any.store(true, Ordering::Release);
        true
    }

    /// The removed frames of a range.
    pub(crate) fn marks(&self, range: Range<u64>) -> Marks {
        let state = self.state.read();
        let mut marks = Marks::default();
        for offset in state.marks.iter(range) {
            marks.set(offset);
        }
        marks
    }

    /// Drops frames that are compacted away.
    pub(super) fn forget(&self, gone: impl Iterator<Item = u64>) {
        let mut state = self.state.write();
        gone.for_each(|offset| state.marks.clear(offset));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_seen_from_their_head_on() {
        let removed = Removed::default();
        assert!(!removed.contains(5, 100));
        assert!(removed.mark(5, 10) && !removed.mark(5, 11));
        assert!(removed.mark(5000, 12));
        assert!(!removed.contains(5, 9) && removed.contains(5, 10) && removed.contains(5, 11));
        assert!(!removed.contains(5000, 11) && removed.contains(5000, 12));
        assert!(!removed.contains(6, 100));
        let since = [5, 5000, 6].map(|offset| removed.since(offset));
        assert_eq!(since, [Some(10), Some(12), None]);
        let marks = removed.marks(0..5001);
        assert_eq!(marks.iter(0..u64::MAX).collect::<Vec<_>>(), [5, 5000]);
        assert_eq!(marks.iter(6..5000).count(), 0);
        removed.forget([5].into_iter());
        assert!(!removed.contains(5, 100) && removed.contains(5000, 100));
        assert_eq!(removed.state.read().marks.pieces.len(), 1);
    }

    #[test]
    fn what_was_removed_long_ago_came_before_what_is_known() {
        let removed = Removed::default();
        // Removed while the store was opened.
        assert!(removed.mark(3, 0) && removed.since(3) == Some(u64::MAX));
        (0..NEWEST_MAX as u64).for_each(|n| _ = removed.mark(1000 + n, 10_000 + n));
        assert_eq!([3, 1000, 1005].map(|n| removed.since(n)), [10_000, 10_000, 10_005].map(Some));
        assert!(removed.mark(4, 20_000));
        assert_eq!([1000, 1001, 4].map(|n| removed.since(n)), [10_001, 10_001, 20_000].map(Some));
    }

    #[test]
    fn memory_is_bounded_by_what_is_removed() {
        let removed = Removed::default();
        assert!((0..100_000).all(|n| removed.mark(n, n)));
        let state = removed.state.read();
        assert!(state.marks.pieces.len() < 100 && state.newest.len() <= NEWEST_MAX);
    }
}
