//! The store's clock, as the Host knows it: moments in the log are of that clock, and the Host may
//! be on another machine. Only what the clock here is ahead is made up for, since that would have
//! calls end before their time. When it is behind, the server ends them.

use std::sync::atomic::{AtomicU64, Ordering};

use xs_engine::FrameId;

/// How the clock here stands to that of the store.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// Milliseconds that the one here is ahead, as far as that is certain.
    ahead_ms: AtomicU64,
}

impl Clock {
    /// A frame was appended after `sent_ms`, as the clock here goes. Its id is never before its
    /// moment, but may be after it: ids ascend, also where a clock was set back.
    pub(super) fn learn(&self, sent_ms: u64, id: FrameId) {
        self.ahead_ms.fetch_max(sent_ms.saturating_sub(id.time_ms()), Ordering::Relaxed);
    }

    /// What the clock here shows when that of the store shows `ms`.
    pub(super) fn here(&self, ms: u64) -> u64 {
        ms.saturating_add(self.ahead_ms.load(Ordering::Relaxed))
    }

    /// What the clock of the store shows when the one here shows `ms`.
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
