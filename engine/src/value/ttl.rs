//! How long a frame is kept.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use super::{FrameId, ValueError, shorten};

/// How long a frame is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Ttl {
    /// Until it is removed.
    #[default]
    Forever,
    /// Delivered to live readers and never stored: it has an id and no offset.
    Ephemeral,
    /// For this many milliseconds from the time in its id.
    TimeMs(u64),
    /// Each frame with this ttl keeps only the N newest frames of its topic, itself included,
    /// whatever the ttl of the others. Frames with another ttl remove nothing.
    Last(NonZeroU64),
}

impl Ttl {
    /// When a frame with this id expires, in ms since 1970, if it does.
    #[must_use]
    pub(crate) fn expires_ms(self, id: FrameId) -> Option<u64> {
        match self {
            Self::TimeMs(ms) => Some(id.time_ms().saturating_add(ms)),
            Self::Forever | Self::Ephemeral | Self::Last(_) => None,
        }
    }

    /// Parses `forever`, `ephemeral`, `time:<ms>` or `last:<n>`. A time may have a unit instead,
    /// one of ms, s, m, h, d (24 hours) and w: `time:3d`.
    ///
    /// # Errors
    /// [`ValueError::Ttl`] when `text` is anything else, `last:0` and `time:0` included.
    pub fn parse(text: &str) -> Result<Self, ValueError> {
        let number = |digits: &str| {
            let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| digits.parse::<u64>().ok()).flatten()
        };
        let parsed = match text.split_once(':') {
            None if text == "forever" => Some(Self::Forever),
            None if text == "ephemeral" => Some(Self::Ephemeral),
            Some(("time", time)) => {
                let digits = time.trim_end_matches(|end: char| end.is_ascii_alphabetic());
                let unit = unit_ms(time.get(digits.len()..).unwrap_or_default());
                let ms = number(digits).zip(unit).and_then(|(n, unit)| n.checked_mul(unit));
                // A frame that expires at once would never be seen.
                ms.filter(|ms| *ms > 0).map(Self::TimeMs)
            }
            Some(("last", n)) => number(n).and_then(NonZeroU64::new).map(Self::Last),
            _ => None,
        };
        parsed.ok_or_else(|| ValueError::Ttl(shorten(text)))
    }
}

/// Milliseconds of a unit; without a unit, 1.
fn unit_ms(unit: &str) -> Option<u64> {
    const SECOND: u64 = 1000;
    const DAY: u64 = 24 * 60 * 60 * SECOND;
    Some(match unit {
        "" | "ms" => 1,
        "s" => SECOND,
        "m" => 60 * SECOND,
        "h" => 60 * 60 * SECOND,
        "d" => DAY,
        "w" => 7 * DAY,
        _ => return None,
    })
}

impl fmt::Display for Ttl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forever => f.write_str("forever"),
            Self::Ephemeral => f.write_str("ephemeral"),
            Self::TimeMs(ms) => write!(f, "time:{ms}"),
            Self::Last(n) => write!(f, "last:{n}"),
        }
    }
}

impl FromStr for Ttl {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for text in ["forever", "ephemeral", "time:1", "time:86400000", "last:1", "last:7"] {
            assert_eq!(Ttl::parse(text).unwrap().to_string(), text);
        }
        for bad in [
            "", "time:0", "time:0w", "last:0", "last:-1", "last:+1", "last:1d", "time:", "head:1",
            "Forever",
        ] {
            assert!(Ttl::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_may_have_a_unit() {
        for (text, ms) in [
            ("time:7ms", 7),
            ("time:7s", 7_000),
            ("time:2m", 120_000),
            ("time:1h", 3_600_000),
            ("time:3d", 3 * 86_400_000),
            ("time:1w", 7 * 86_400_000),
        ] {
            assert_eq!(Ttl::parse(text), Ok(Ttl::TimeMs(ms)), "{text}");
        }
        let long = format!("time:{}s", u64::MAX);
        for bad in ["time:d", "time:1y", "time:1D", "time:-1d", "time:1d2h", "time:1.5h", &long] {
            assert!(Ttl::parse(bad).is_err(), "{bad}");
        }
    }
}
