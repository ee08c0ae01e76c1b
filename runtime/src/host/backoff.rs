//! The delay before the next attempt: 1 s, doubling up to 30 s, with jitter, and reset by a run of
//! 60 s. Reads neither a clock nor a random source.

use std::time::Duration;

/// The delay after the first failure.
const FIRST: Duration = Duration::from_secs(1);
/// The longest delay.
const LONGEST: Duration = Duration::from_secs(30);
/// A run of at least this length resets the delay.
const HEALTHY: Duration = Duration::from_secs(60);

/// Counts consecutive attempts without a healthy run between them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Backoff {
    tries: u32,
}

impl Backoff {
    /// The delay after a run that lasted `ran`. `random` is any number; it spreads the restarts of
    /// processors that failed together over the upper half of the delay.
    pub(crate) fn next(&mut self, ran: Duration, random: u64) -> Duration {
        if ran >= HEALTHY {
            self.tries = 0;
        }
        let full = FIRST.saturating_mul(1 << self.tries.min(10)).min(LONGEST);
        self.tries = self.tries.saturating_add(1);
        let half_ms = u64::try_from(full.as_millis() / 2).unwrap_or(u64::MAX);
        Duration::from_millis(half_ms + random % (half_ms + 1))
    }

    /// Attempts since the last healthy run.
    #[must_use]
    pub(crate) const fn tries(&self) -> u32 {
        self.tries
    }
}

/// A number that differs between calls and processes, for [`Backoff::next`]; not for secrets.
#[must_use]
pub(crate) fn random() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(std::time::Instant::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(backoff: &mut Backoff, ran: Duration, random: u64, n: usize) -> Vec<u64> {
        (0..n).map(|_| backoff.next(ran, random).as_millis() as u64).collect()
    }

    #[test]
    fn it_doubles_to_thirty_seconds_and_stays() {
        let longest = waits(&mut Backoff::default(), Duration::ZERO, 500, 1);
        assert_eq!(longest, [1_000]);
        let shortest = waits(&mut Backoff::default(), Duration::ZERO, 0, 8);
        assert_eq!(shortest, [500, 1_000, 2_000, 4_000, 8_000, 15_000, 15_000, 15_000]);
    }

    #[test]
    fn the_jitter_stays_between_half_and_full() {
        for seed in 0..1_000u64 {
            let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut backoff = Backoff::default();
            for full in [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000] {
                let wait = backoff.next(Duration::ZERO, random).as_millis();
                assert!((full / 2..=full).contains(&wait), "{wait} of {full}");
            }
        }
    }

    #[test]
    fn a_healthy_minute_starts_it_again() {
        let mut backoff = Backoff::default();
        waits(&mut backoff, Duration::ZERO, 0, 6);
        assert_eq!(waits(&mut backoff, Duration::from_secs(59), 0, 1), [15_000]);
        assert_eq!(waits(&mut backoff, Duration::from_secs(60), 0, 1), [500]);
        assert_eq!(backoff.tries(), 1);
    }

    #[test]
    fn random_numbers_differ() {
        assert_ne!(random(), random());
    }
}
