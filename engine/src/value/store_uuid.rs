//! Uuids of stores.

use std::fmt;
use std::str::FromStr;

use super::{ValueError, shorten};

/// The identity of a store: 16 random bytes, shown as 32 hexadecimal digits. A copy that can be
/// written has its own; a backup has that of its store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreUuid([u8; 16]);

impl StoreUuid {
    /// Creates a uuid from its bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Returns the uuid in a header, where zeros mean that there is none.
    pub(crate) fn known(bytes: [u8; 16]) -> Option<Self> {
        (bytes != [0; 16]).then_some(Self(bytes))
    }

    /// Parses 32 hexadecimal digits.
    ///
    /// # Errors
    /// [`ValueError::StoreUuid`] when `text` is anything else.
    pub fn parse(text: &str) -> Result<Self, ValueError> {
        let wrong = || ValueError::StoreUuid(shorten(text));
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let mut bytes = [0; 16];
        for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
            let digits = text.get(at..at + 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for StoreUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for StoreUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreUuid({self})")
    }
}

impl FromStr for StoreUuid {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_what_was_written() {
        let uuid = StoreUuid([0, 1, 0x2f, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0xff]);
        assert_eq!(uuid.to_string(), "00012f030405060708090a0b0c0d0eff");
        assert_eq!(uuid.to_string().parse(), Ok(uuid));
        for wrong in ["", "00012f030405060708090a0b0c0d0ef", "+0012f030405060708090a0b0c0d0eff"] {
            assert_eq!(StoreUuid::parse(wrong), Err(ValueError::StoreUuid(wrong.to_owned())));
        }
        assert_eq!(StoreUuid::known([0; 16]), None);
        assert_eq!(StoreUuid::known([1; 16]), Some(StoreUuid([1; 16])));
    }
}
