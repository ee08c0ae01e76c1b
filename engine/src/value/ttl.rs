//! How long a frame is kept.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use super::{ValueError, shorten};

/// How long a frame is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Ttl {
    /// Until it is removed.
    #[default]
    Forever,
    /// Delivered to live readers and never stored: it has an id and no offset.
    Ephemeral,
    /// For so many milliseconds from the time in its id.
    TimeMs(u64),
    /// Each frame that comes with it leaves so many of its topic, the newest ones, itself
    /// included, whatever the others came with. Frames with another ttl remove nothing.
    Last(NonZeroU64),
}

impl Ttl {
    /// Reads `forever`, `ephemeral`, `time:<ms>` or `last:<n>`.
    ///
    /// # Errors
    /// [`ValueError::Ttl`] when `text` is anything else, `last:0` included.
    pub fn parse(text: &str) -> Result<Self, ValueError> {
        let number = |digits: &str| {
            let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| digits.parse::<u64>().ok()).flatten()
        };
        let parsed = match text.split_once(':') {
            None if text == "forever" => Some(Self::Forever),
            None if text == "ephemeral" => Some(Self::Ephemeral),
            Some(("time", ms)) => number(ms).map(Self::TimeMs),
            Some(("last", n)) => number(n).and_then(NonZeroU64::new).map(Self::Last),
            _ => None,
        };
        parsed.ok_or_else(|| ValueError::Ttl(shorten(text)))
    }
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
        for text in ["forever", "ephemeral", "time:0", "time:86400000", "last:1", "last:7"] {
            assert_eq!(Ttl::parse(text).unwrap().to_string(), text);
        }
        for bad in ["", "last:0", "last:-1", "last:+1", "time:", "time:1s", "head:1", "Forever"] {
            assert!(Ttl::parse(bad).is_err(), "{bad}");
        }
    }
}
