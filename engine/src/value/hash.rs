//! Blob hashes: SHA-256, in the notation of browsers (SRI) and cross.stream.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use super::{ValueError, shorten};

/// The identity of a blob: SHA-256 of its raw bytes, shown as `sha256-<base64>` (SRI).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobHash([u8; 32]);

impl BlobHash {
    const PREFIX: &'static str = "sha256-";

    /// Hashes bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Creates a hash from its bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the first 8 bytes as a number, which orders hashes up to ties.
    #[must_use]
    pub fn prefix(&self) -> u64 {
        self.0[..8].iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
    }

    /// Parses `sha256-` and 44 characters of base64.
    ///
    /// # Errors
    /// [`ValueError::BlobHash`] when `text` is anything else.
    pub fn parse(text: &str) -> Result<Self, ValueError> {
        let decoded = text.strip_prefix(Self::PREFIX).and_then(|rest| STANDARD.decode(rest).ok());
        match decoded.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()) {
            Some(bytes) => Ok(Self(bytes)),
            None => Err(ValueError::BlobHash(shorten(text))),
        }
    }
}

impl fmt::Display for BlobHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", Self::PREFIX, STANDARD.encode(self.0))
    }
}

impl fmt::Debug for BlobHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlobHash({self})")
    }
}

impl FromStr for BlobHash {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_form_is_sri() {
        let hash = BlobHash::of(b"");
        assert_eq!(hash.to_string(), "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
        assert_eq!(BlobHash::parse(&hash.to_string()).unwrap(), hash);
        for bad in
            ["", "sha256-", "sha256-AAAA", "sha512-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="]
        {
            assert!(BlobHash::parse(bad).is_err(), "{bad}");
        }
    }
}
