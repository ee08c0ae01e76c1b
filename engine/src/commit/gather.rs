//! Decides whether a group that will be synced waits a moment for the callers answered just before.
//!
//! Callers that append again as soon as they are answered return while the next leader is already
//! at work: they would split into two parties that take turns, each with half of the syncs. So a
//! leader expects as many batches as were answered last or queued meanwhile, and waits for them for
//! at most a fraction of a commit's time. If they do not come, as with callers that append on a
//! timer, it soon stops expecting them. This module reads no clock.

use std::time::Duration;

/// The longest wait.
const PATIENCE_MAX: Duration = Duration::from_millis(1);
/// Divisor: a wait may take this fraction of the last commit's time.
const PATIENCE_PART: u32 = 2;
/// Maximum number of batches that a leader waits for; with more expected it waits for none.
const EXPECTED_MAX: usize = 8;
/// Maximum number of groups that do not wait, after waits in vain.
const REST_MAX: u32 = 256;

/// What is expected of the next group.
#[derive(Debug, Default)]
pub(super) struct Gather {
    /// Batches that were answered last or queued meanwhile.
    expected: usize,
    /// How long the last commit took.
    took: Duration,
    /// Waits in vain, in a row.
    in_vain: u32,
    /// Groups that go without a wait.
    rest: u32,
    /// Number of batches a leader waits for; 0 when none does.
    wanted: usize,
}

impl Gather {
    /// Notes a commit: how many batches it answered, how many are queued now, and how long it took.
    pub(super) fn answered(&mut self, answered: usize, waiting: usize, took: Duration) {
        self.expected = answered + waiting;
        self.took = took;
    }

    /// Whether more than one caller is expected.
    pub(super) const fn expects_others(&self) -> bool {
        self.expected > 1
    }

    /// How long to wait for batches beyond the queued ones, if at all.
    pub(super) fn begin(&mut self, waiting: usize) -> Option<Duration> {
        if waiting >= self.expected || self.expected > EXPECTED_MAX {
            return None;
        }
        if self.rest > 0 {
            self.rest -= 1;
            return None;
        }
        self.wanted = self.expected;
        Some((self.took / PATIENCE_PART).min(PATIENCE_MAX))
    }

    /// Whether a leader waits and this many batches are enough for it.
    pub(super) const fn is_enough(&self, waiting: usize) -> bool {
        self.wanted != 0 && waiting >= self.wanted
    }

    /// Notes the result of a wait.
    pub(super) fn end(&mut self, waiting: usize) {
        if waiting >= std::mem::take(&mut self.wanted) {
            self.in_vain = 0;
        } else {
            self.in_vain = self.in_vain.saturating_add(1);
            self.rest = (1 << self.in_vain.min(31)).min(REST_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYNC: Duration = Duration::from_micros(200);

    #[test]
    fn callers_who_come_back_are_waited_for() {
        let mut gather = Gather::default();
        assert_eq!(gather.begin(1), None);
        gather.answered(2, 6, SYNC);
        assert_eq!(gather.begin(6), Some(SYNC / 2));
        assert!(!gather.is_enough(7) && gather.is_enough(8));
        gather.end(8);
        assert!(!gather.is_enough(8), "nobody waits any more");
        gather.answered(8, 0, SYNC);
        assert_eq!(gather.begin(2), Some(SYNC / 2));
    }

    #[test]
    fn one_caller_never_waits() {
        let mut gather = Gather::default();
        for _ in 0..10 {
            assert!(!gather.expects_others());
            assert_eq!(gather.begin(1), None);
            gather.answered(1, 0, SYNC);
        }
    }

    #[test]
    fn waits_are_short_and_never_for_many() {
        let mut gather = Gather::default();
        gather.answered(EXPECTED_MAX, 0, Duration::from_secs(1));
        assert_eq!(gather.begin(1), Some(PATIENCE_MAX));
        gather.end(EXPECTED_MAX);
        gather.answered(EXPECTED_MAX, 1, Duration::from_secs(1));
        assert!(gather.expects_others());
        assert_eq!(gather.begin(1), None);
        assert!(!gather.is_enough(1), "nobody waits");
    }

    #[test]
    fn waits_in_vain_become_rare() {
        let mut gather = Gather::default();
        let mut waits = 0;
        for _ in 0..10_000 {
            gather.answered(8, 0, SYNC);
            if gather.begin(1).is_some() {
                waits += 1;
                gather.end(1);
            }
        }
        assert!(waits < 60, "{waits} waits");
        // A wait that succeeds restores regular waits.
        while gather.begin(1).is_none() {}
        gather.end(8);
        assert!(gather.begin(1).is_some());
    }
}
