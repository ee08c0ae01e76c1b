//! The newest offsets of one topic, as `last:n` needs them: what is there is counted, what was
//! removed or has expired is not. Each change takes O(log n) amortised, and O(1) when nothing is
//! removed and nothing expires.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// Live frames of a topic remembered for `last:n` beyond what n asks for.
const SPARE: u64 = 65_536;

/// Offsets ascending. Those that died in the middle stay until they are first.
#[derive(Debug, Default)]
pub(super) struct Recent {
    frames: VecDeque<(u64, bool)>,
    live: usize,
    /// The n of the newest `last:n`.
    wanted: u64,
    expiring: BinaryHeap<Reverse<(u64, u64)>>,
}

impl Recent {
    /// Takes up the newest frame, which expires at a time or never.
    pub(super) fn push(&mut self, offset: u64, expires_ms: Option<u64>) {
        self.frames.push_back((offset, true));
        self.live += 1;
        self.expiring.extend(expires_ms.map(|at| Reverse((at, offset))));
    }

    /// A frame was removed, if it is among these.
    pub(super) fn remove(&mut self, offset: u64) {
        let Ok(at) = self.frames.binary_search_by_key(&offset, |&(offset, _)| offset) else {
            return;
        };
        if let Some((_, live)) = self.frames.get_mut(at)
            && std::mem::replace(live, false)
        {
            self.live -= 1;
        }
        self.trim();
    }

    /// Forgets what has expired.
    pub(super) fn expire(&mut self, now_ms: u64) {
        while let Some(Reverse((at, offset))) = self.expiring.peek().copied()
            && at <= now_ms
        {
            self.expiring.pop();
            self.remove(offset);
        }
    }

    /// Keeps only the newest `keep`.
    pub(super) fn keep(&mut self, keep: u64) {
        self.wanted = keep;
        while self.live as u64 > keep {
            self.frames.pop_front();
            self.live -= 1;
            self.trim();
        }
    }

    /// Keeps only those from an offset on.
    pub(super) fn keep_from(&mut self, offset: u64) {
        while let Some(&(first, live)) = self.frames.front()
            && first < offset
        {
            self.frames.pop_front();
            self.live -= usize::from(live);
        }
        self.trim();
    }

    /// The first one keeps its place only as long as it lives.
    fn trim(&mut self) {
        while let Some((_, false)) = self.frames.front() {
            self.frames.pop_front();
        }
        // Expiries of frames that are gone are forgotten once they are most of them.
        if self.expiring.len() > 2 * self.frames.len() + 64 {
            let first = self.frames.front().map_or(u64::MAX, |&(first, _)| first);
            self.expiring.retain(|Reverse((_, offset))| *offset >= first);
        }
    }

    pub(super) fn first(&self) -> Option<u64> {
        self.frames.front().map(|&(offset, _)| offset)
    }

    /// Whether there are more than it pays to remember.
    pub(super) fn is_long(&self) -> bool {
        self.frames.len() as u64 > self.wanted.saturating_add(SPARE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dead_do_not_count() {
        let mut recent = Recent::default();
        for offset in 0..10 {
            recent.push(offset, (offset == 7).then_some(100));
        }
        recent.remove(8);
        recent.remove(8);
        recent.remove(99);
        recent.expire(99);
        assert_eq!((recent.live, recent.first()), (9, Some(0)));
        recent.expire(100);
        recent.keep(3);
        assert_eq!((recent.live, recent.first()), (3, Some(5)));
        recent.remove(5);
        assert_eq!((recent.live, recent.first()), (2, Some(6)));
        recent.keep_from(7);
        assert_eq!((recent.live, recent.first()), (1, Some(9)));
        recent.remove(9);
        assert_eq!((recent.live, recent.first()), (0, None));
    }

    #[test]
    fn what_n_asks_for_is_remembered_however_much() {
        let mut recent = Recent::default();
        (0..100_000).for_each(|offset| recent.push(offset, None));
        recent.keep(100_000);
        assert!(!recent.is_long());
        (0..=SPARE).for_each(|more| recent.push(100_000 + more, None));
        assert!(recent.is_long());
        recent.keep(1);
        assert!(!recent.is_long());
    }

    #[test]
    fn expiries_of_what_is_gone_are_forgotten() {
        let mut recent = Recent::default();
        for offset in 0..10_000 {
            recent.push(offset, Some(u64::MAX));
            recent.keep(5);
        }
        assert!(recent.expiring.len() < 100 && recent.live == 5);
    }
}
