//! The offset between the Host's clock and the store's. Times in the log come from the store's
//! clock, and the Host may be on another machine. Only a local clock that is ahead is corrected
//! for, since it would end calls before their deadline. When the local clock is behind, the server
//! ends them.

use std::sync::atomic::{AtomicU64, Ordering};

use xs_engine::FrameId;

/// The offset of the local clock from the store's.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// Milliseconds by which the local clock is known to be ahead: a lower bound.
    ahead_ms: AtomicU64,
}

impl Clock {
    /// Records that a frame sent at `sent_ms` by the local clock got this id. The time in an id is
    /// never earlier than the append but may be later: ids ascend even if a clock is set back.
    pub(super) fn learn(&self, sent_ms: u64, id: FrameId) {
        self.ahead_ms.fetch_max(sent_ms.saturating_sub(id.time_ms()), Ordering::Relaxed);
    }

    /// The local clock's time when the store's clock shows `ms`.
    pub(super) fn here(&self, ms: u64) -> u64 {
        ms.saturating_add(self.ahead_ms.load(Ordering::Relaxed))
    }

    /// The store's time when the local clock shows `ms`.
    pub(super) fn there(&self, ms: u64) -> u64 {
        ms.saturating_sub(self.ahead_ms.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_it_is_ahead_is_made_up_for() {
        let clock = Clock::default();
        let at = FrameId::first_of_ms;
        clock.learn(1_000_000, at(1_000_400));
        clock.learn(1_000_000, at(9_000_000));
        assert_eq!((clock.here(5), clock.there(5)), (5, 5));
        clock.learn(1_000_000, at(990_000));
        clock.learn(1_000_000, at(990_300));
        assert_eq!((clock.here(990_000), clock.there(1_000_000)), (1_000_000, 990_000));
        assert_eq!((clock.here(u64::MAX), clock.there(1)), (u64::MAX, 0));
    }
}
