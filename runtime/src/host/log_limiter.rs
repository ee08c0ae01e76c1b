//! Limits how many lines a processor may log per period. Lines over the limit are dropped and
//! counted, so that the gap is reported.

use std::time::{Duration, Instant};

/// Maximum lines in one period.
const LINES_MAX: u32 = 100;
/// The period.
const STRETCH: Duration = Duration::from_secs(10);

/// Counts the lines of one processor.
#[derive(Debug, Default)]
pub(super) struct LogLimiter {
    began: Option<Instant>,
    lines: u32,
    dropped: u64,
}

/// The decision about a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// Write it; `dropped` lines before it were not written.
    Write {
        /// Lines dropped before it and not reported yet.
        dropped: u64,
    },
    /// Drop it.
    Drop,
}

impl LogLimiter {
    /// Decides about a line logged at `now`.
    pub(super) fn line(&mut self, now: Instant) -> Decision {
        let over = self.began.is_none_or(|began| now.duration_since(began) >= STRETCH);
        if over {
            self.began = Some(now);
            self.lines = 0;
        }
        if self.lines >= LINES_MAX {
            self.dropped += 1;
            return Decision::Drop;
        }
        self.lines += 1;
        Decision::Write { dropped: std::mem::take(&mut self.dropped) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_told() {
        let start = Instant::now();
        let mut limiter = LogLimiter::default();
        let written = (0..1_000)
            .filter(|i| limiter.line(start + Duration::from_millis(*i)) != Decision::Drop)
            .count();
        assert_eq!(written, 100);
        assert_eq!(limiter.line(start + STRETCH), Decision::Write { dropped: 900 });
        assert_eq!(limiter.line(start + STRETCH), Decision::Write { dropped: 0 });
    }
}
