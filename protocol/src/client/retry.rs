//! Backoff: how long to wait before the next attempt to reach a server. Knows no clock and no
//! connection.

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

/// Upper bound on the wait that a server can ask of a client.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// Lower bound on the first wait: without one a lost server would be retried in a busy loop.
const FIRST_MIN: Duration = Duration::from_millis(1);

/// How a [`Follow`](crate::Follow) retries when its server is unreachable or busy: it waits
/// `first`, then twice as long each time, up to `most`. Each wait is drawn between half of it and
/// all of it, so that many clients of one server do not come back at the same moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// The wait before the first attempt; at least 1 ms.
    pub first: Duration,
    /// The longest wait.
    pub most: Duration,
    /// Give up when nothing was received for this long; `None`: never.
    pub give_up: Option<Duration>,
}

impl Default for Retry {
    fn default() -> Self {
        Self { first: Duration::from_millis(50), most: Duration::from_secs(5), give_up: None }
    }
}

/// Backoff state: the waits of successive attempts.
#[derive(Debug)]
pub(super) struct Backoff {
    retry: Retry,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(retry: Retry) -> Self {
        Self { retry, next: retry.first.max(FIRST_MIN) }
    }

    /// An attempt succeeded: start over.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.retry);
    }

    /// The wait before the next attempt. `at_least` is what the server asked for; `chance` is a
    /// random number.
    pub(super) fn wait(&mut self, at_least: Duration, chance: u64) -> Duration {
        let half = self.next / 2;
        let spread = u64::try_from(half.as_micros()).unwrap_or(u64::MAX).saturating_add(1);
        let wait = half + Duration::from_micros(chance % spread);
        self.next = self.next.saturating_mul(2).min(self.retry.most.max(FIRST_MIN));
        wait.max(at_least.min(RETRY_AFTER_MAX))
    }
}

/// A number that differs between calls and processes; not for secrets.
pub(super) fn chance() -> u64 {
    RandomState::new().hash_one(Instant::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_the_longest_and_spread_over_their_upper_half() {
        let retry = Retry { most: Duration::from_millis(300), ..Retry::default() };
        for seed in 0..500_u64 {
            let chance = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut backoff = Backoff::new(retry);
            for full in [50, 100, 200, 300, 300] {
                let wait = backoff.wait(Duration::ZERO, chance);
                let full = Duration::from_millis(full);
                assert!((full / 2..=full).contains(&wait), "{wait:?} of {full:?}");
            }
            backoff.reset();
            assert!(backoff.wait(Duration::ZERO, chance) <= retry.first);
        }
    }

    #[test]
    fn a_server_is_heeded_up_to_a_minute_and_nothing_makes_it_no_wait() {
        let mut backoff = Backoff::new(Retry::default());
        assert_eq!(backoff.wait(Duration::from_secs(9), 0), Duration::from_secs(9));
        assert_eq!(backoff.wait(Duration::from_secs(9_000), 0), RETRY_AFTER_MAX);
        let none = Retry { first: Duration::ZERO, most: Duration::ZERO, give_up: None };
        let mut backoff = Backoff::new(none);
        assert!((0..9).all(|_| backoff.wait(Duration::ZERO, 0) >= FIRST_MIN / 2));
        let endless = Retry { first: Duration::MAX, most: Duration::MAX, give_up: None };
        let mut backoff = Backoff::new(endless);
        assert!((0..9).all(|_| backoff.wait(Duration::ZERO, u64::MAX) >= Duration::MAX / 2));
    }

    #[test]
    fn chance_differs() {
        assert_ne!(chance(), chance());
    }
}
