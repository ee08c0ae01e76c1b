//! The newest offsets of one topic, as `last:n` needs them: live frames count, removed and expired
//! ones do not. Each change takes O(log n) amortised, and O(1) when nothing is removed and nothing
//! expires.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

/// Live frames of a topic kept for `last:n` beyond its n.
const SPARE: u64 = 65_536;
/// Maximum frames kept of topics that are not in the active segment yet, in each of two
/// generations.
const HANDED_MAX: usize = 1 << 21;
/// Cost of a topic, in frames.
const TOPIC_COST: usize = 16;

/// Offsets in ascending order. Dead ones in the middle stay until they are first.
#[derive(Debug, Default)]
pub(super) struct Recent {
    frames: VecDeque<(u64, bool)>,
    live: usize,
    /// The n of the newest `last:n`.
    wanted: u64,
    expiring: BinaryHeap<Reverse<(u64, u64)>>,
}

impl Recent {
    /// Adds the newest frame, with its expiry time if any.
    pub(super) fn push(&mut self, offset: u64, expires_ms: Option<u64>) {
        self.frames.push_back((offset, true));
        self.live += 1;
        self.expiring.extend(expires_ms.map(|at| Reverse((at, offset))));
    }

    /// Adds a frame that is older than all of these.
    pub(super) fn push_older(&mut self, offset: u64, expires_ms: Option<u64>) {
        self.frames.push_front((offset, true));
        self.live += 1;
        self.expiring.extend(expires_ms.map(|at| Reverse((at, offset))));
    }

    /// Number of live frames.
    pub(super) const fn live(&self) -> u64 {
        self.live as u64
    }

    /// Marks a frame as removed, if it is among these.
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

    /// Removes expired frames.
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

    /// Removes dead frames from the front.
    fn trim(&mut self) {
        while let Some((_, false)) = self.frames.front() {
            self.frames.pop_front();
        }
        // Expiries of removed frames are dropped once they are the majority.
        if self.expiring.len() > 2 * self.frames.len() + 64 {
            let first = self.frames.front().map_or(u64::MAX, |&(first, _)| first);
            self.expiring.retain(|Reverse((_, offset))| *offset >= first);
        }
    }

    pub(super) fn first(&self) -> Option<u64> {
        self.frames.front().map(|&(offset, _)| offset)
    }

    /// Whether there are more than is worthwhile to keep.
    pub(super) fn is_long(&self) -> bool {
        self.frames.len() as u64 > self.wanted.saturating_add(SPARE)
    }
}

/// The newest frames of topics that are not in the active segment yet, from earlier segments:
/// without them the first `last:n` of each would have to search the log again. Entries that have
/// not been used for a while are evicted.
#[derive(Debug, Default)]
pub(super) struct Handed {
    young: HashMap<Box<str>, Recent>,
    old: HashMap<Box<str>, Recent>,
    /// Cost of the young generation: its frames and topics.
    weight: usize,
}

impl Handed {
    pub(super) fn is_empty(&self) -> bool {
        self.young.is_empty() && self.old.is_empty()
    }

    /// Adds the newest frames of a topic.
    pub(super) fn put(&mut self, topic: &str, recent: Recent) {
        if recent.wanted == 1 {
            return;
        }
        if self.weight >= HANDED_MAX {
            self.old = std::mem::take(&mut self.young);
            self.weight = 0;
        }
        self.weight += TOPIC_COST + recent.frames.len();
        self.old.remove(topic);
        self.young.insert(topic.into(), recent);
    }

    /// Removes and returns the newest frames of a topic.
    pub(super) fn take(&mut self, topic: &str) -> Option<Recent> {
        let young = self.young.remove(topic);
        if let Some(recent) = &young {
            // Some of its frames may have been removed since.
            self.weight = self.weight.saturating_sub(TOPIC_COST + recent.frames.len());
        }
        young.or_else(|| self.old.remove(topic))
    }

    /// The newest frames of a topic, to be updated.
    pub(super) fn get_mut(&mut self, topic: &str) -> Option<&mut Recent> {
        self.young.get_mut(topic).or_else(|| self.old.get_mut(topic))
    }

    /// Drops everything, because frames are added of which it is not notified.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_asks_for_is_forgotten() {
        let mut handed = Handed::default();
        let recent = |count: u64| {
            let mut recent = Recent::default();
            (0..count).for_each(|offset| recent.push(offset, None));
            recent
        };
        let half = HANDED_MAX as u64 / 2;
        handed.put("a", recent(half));
        handed.put("b", recent(half));
        handed.put("c", recent(half));
        assert!(handed.get_mut("a").is_some(), "kept for one more round");
        let b = handed.take("b").unwrap();
        assert!(handed.take("b").is_none());
        handed.put("b", b);
        handed.put("d", recent(1));
        assert!(handed.get_mut("a").is_none() && handed.get_mut("b").is_some());
        handed.clear();
        assert!(handed.is_empty() && handed.take("d").is_none());
    }

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
