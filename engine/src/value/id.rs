//! Frame ids: SCRU128.

use std::fmt;
use std::str::FromStr;

use super::{ValueError, shorten};

/// A frame's id: 16 opaque bytes whose order is the order of the log (SCRU128: 48 bits of Unix
/// milliseconds, two counters, entropy). Written as 25 digits of base 36.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameId([u8; 16]);

impl FrameId {
    /// The smallest id, used as "none" where a field always exists.
    pub const ZERO: Self = Self([0; 16]);
    /// The largest id.
    pub const MAX: Self = Self([0xff; 16]);

    /// Creates an id from its bytes; every value of 16 bytes is one.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Returns the time in the id, in milliseconds since 1970.
    #[must_use]
    pub fn time_ms(&self) -> u64 {
        self.prefix() >> 16
    }

    /// Returns the first 8 bytes as a number, which orders ids up to ties.
    #[must_use]
    pub fn prefix(&self) -> u64 {
        self.0[..8].iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
    }

    /// Returns the smallest id of a millisecond.
    #[must_use]
    pub fn first_of_ms(time_ms: u64) -> Self {
        let high = u128::from(time_ms.min((1 << 48) - 1)) << 80;
        Self(scru128::Id::from_u128(high).to_bytes())
    }

    /// Returns the id after this one, or [`FrameId::MAX`] itself.
    #[must_use]
    pub fn next(&self) -> Self {
        let number = scru128::Id::from_bytes(self.0).to_u128();
        Self(scru128::Id::from_u128(number.saturating_add(1)).to_bytes())
    }

    /// Parses the 25 digits, in either case.
    ///
    /// # Errors
    /// [`ValueError::FrameId`] when `text` is anything else.
    pub fn parse(text: &str) -> Result<Self, ValueError> {
        match text.parse::<scru128::Id>() {
            Ok(id) => Ok(Self(id.to_bytes())),
            Err(_) => Err(ValueError::FrameId(shorten(text))),
        }
    }
}

impl fmt::Display for FrameId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&scru128::Id::from_bytes(self.0), f)
    }
}

impl fmt::Debug for FrameId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FrameId({self})")
    }
}

impl FromStr for FrameId {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_orders_like_bytes() {
        let early = FrameId::first_of_ms(1_700_000_000_000);
        let late = early.next();
        assert_eq!(early.time_ms(), 1_700_000_000_000);
        assert!(early < late && early.to_string() < late.to_string());
        assert_eq!(FrameId::parse(&late.to_string()).unwrap(), late);
        assert_eq!(FrameId::parse(&late.to_string().to_uppercase()).unwrap(), late);
        assert_eq!(FrameId::MAX.next(), FrameId::MAX);
        for bad in ["", "0", "!", "00000000000000000000000000", "zzzzzzzzzzzzzzzzzzzzzzzzz"] {
            assert!(FrameId::parse(bad).is_err(), "{bad}");
        }
    }
}
