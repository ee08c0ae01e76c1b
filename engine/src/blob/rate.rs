//! The rate at which blobs arrive: whether the threads that put them need the processor more than
//! sealed packs need compression. Knows no packs.

use std::time::{Duration, Instant};

/// Shorter periods give no meaningful rate.
const LOOK_MIN: Duration = Duration::from_millis(20);
/// Longer periods do not describe the present rate.
pub(super) const LOOK_MAX: Duration = Duration::from_secs(1);
/// Fewer bytes are not many, at any rate.
const BURST_BYTES: u64 = 16 * 1024 * 1024;

/// The last measurement.
#[derive(Debug)]
pub(super) struct ArrivalRate {
    since: Instant,
    bytes: u64,
    is_busy: bool,
}

impl Default for ArrivalRate {
    fn default() -> Self {
        Self { since: Instant::now(), bytes: 0, is_busy: false }
    }
}

impl ArrivalRate {
    /// Whether the recent rate is at least `many` bytes per second; `bytes` is the running total.
    pub(super) fn look(&mut self, now: Instant, bytes: u64, many: u64) -> bool {
        let (time, came) = (now.saturating_duration_since(self.since), bytes - self.bytes);
        if time >= LOOK_MAX || (time >= LOOK_MIN && came >= BURST_BYTES) {
            self.is_busy = came as f64 >= many as f64 * time.as_secs_f64();
            (self.since, self.bytes) = (now, bytes);
        }
        self.is_busy || many == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn many_bytes_in_a_short_time_are_busy_until_fewer_come() {
        let (mut rate, start) = (ArrivalRate::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let mut bytes = 0;
        let mut look = |ms, more| {
            bytes += more;
            rate.look(at(ms), bytes, 16 * MIB)
        };
        assert!(!look(0, 0));
        // A high rate, but too few bytes.
        assert!(!look(10, MIB) && !look(30, MIB) && !look(50, 13 * MIB));
        assert!(look(100, 2 * MIB), "17 MiB within 100 ms");
        // A look within the same interval repeats the last answer.
        assert!(look(110, 0) && look(600, 0));
        assert!(!look(1200, 15 * MIB), "15 MiB within 1.1 s");
        assert!(look(2300, 18 * MIB), "18 MiB within 1.1 s");
        assert!(!look(60_000, 64 * MIB), "1 MiB a second");
        assert!(look(60_100, 64 * MIB));
    }

    #[test]
    fn with_no_rate_it_is_always_busy() {
        assert!(ArrivalRate::default().look(Instant::now(), 0, 0));
    }
}
