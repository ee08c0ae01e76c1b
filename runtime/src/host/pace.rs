//! How much a processor may say in its log: a number of lines in a stretch of time. What is over it
//! is counted, so that the gap is told.

use std::time::{Duration, Instant};

/// Lines in one stretch.
const LINES_MAX: u32 = 100;
/// The stretch.
const STRETCH: Duration = Duration::from_secs(10);

/// Counts the lines of one processor.
#[derive(Debug, Default)]
pub(super) struct Pace {
    began: Option<Instant>,
    lines: u32,
    dropped: u64,
}

/// What becomes of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is written, after so many that were not.
    Write {
        /// Lines that were left out before it and not told yet.
        dropped: u64,
    },
    /// It is left out.
    Drop,
}

impl Pace {
    /// Judges a line said at `now`.
    pub(super) fn line(&mut self, now: Instant) -> Verdict {
        let over = self.began.is_none_or(|began| now.duration_since(began) >= STRETCH);
        if over {
            self.began = Some(now);
            self.lines = 0;
        }
        if self.lines >= LINES_MAX {
            self.dropped += 1;
            return Verdict::Drop;
        }
        self.lines += 1;
        Verdict::Write { dropped: std::mem::take(&mut self.dropped) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_told() {
        let start = Instant::now();
        let mut pace = Pace::default();
        let written = (0..1_000)
            .filter(|i| pace.line(start + Duration::from_millis(*i)) != Verdict::Drop)
            .count();
        assert_eq!(written, 100);
        assert_eq!(pace.line(start + STRETCH), Verdict::Write { dropped: 900 });
        assert_eq!(pace.line(start + STRETCH), Verdict::Write { dropped: 0 });
    }
}
