//! A token's secret and what is kept of it.

use std::fmt;
use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::crypto::aws_lc_rs;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// What every token begins with, so that people and scanners of leaked secrets know one.
const PREFIX: &str = "xst_";
/// Random bytes in a token.
const SECRET_BYTES: usize = 32;

/// The text of a token: `xst_` and 43 characters. Never printed by `Debug`, and there is nothing to
/// compare two by: hashes are compared.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// A new one, from 256 random bits of the kernel's.
    ///
    /// # Errors
    /// When there is no randomness to be had.
    pub fn generate() -> io::Result<Self> {
        let mut bytes = [0; SECRET_BYTES];
        let random = aws_lc_rs::default_provider().secure_random;
        random.fill(&mut bytes).map_err(|_| io::Error::other("the system gives no randomness"))?;
        Ok(Self(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))))
    }

    /// What a client has shown.
    pub(crate) const fn shown(text: String) -> Self {
        Self(text)
    }

    /// What its owner must be given, once.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What is sent to a server.
    pub(crate) fn into_text(self) -> String {
        self.0
    }

    pub(crate) fn hash(&self) -> TokenHash {
        TokenHash::of(&self.0)
    }
}

impl From<String> for Secret {
    /// A token that its owner was given.
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What is kept of a token: the SHA-256 of its text.
///
/// Slow, salted hashes (Argon2, bcrypt) make guessing a password dear, because passwords come from
/// few guesses. A token is 256 random bits: nobody guesses one with any hash, there is no table of
/// them, and no two are equal. One fast hash is all that is needed to keep a reader of the file
/// from using what it holds, and it leaves an attacker no slow computation to ask the server for.
#[derive(Clone, Copy)]
pub(crate) struct TokenHash([u8; 32]);

impl TokenHash {
    pub(crate) fn of(text: &str) -> Self {
        Self(Sha256::digest(text.as_bytes()).into())
    }

    /// Reads 64 digits of base 16.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        let mut hash = [0; 32];
        if digits.len() != 2 * hash.len() || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(hash))
    }

    /// Equality in a time that does not depend on where the difference lies. It is all that there
    /// is to compare hashes by.
    pub(super) fn is(&self, other: &Self) -> subtle::Choice {
        self.0.ct_eq(&other.0)
    }
}

impl PartialEq for TokenHash {
    fn eq(&self, other: &Self) -> bool {
        self.is(other).into()
    }
}

impl Eq for TokenHash {}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_differ_and_do_not_print_themselves() {
        let (one, other) = (Secret::generate().unwrap(), Secret::generate().unwrap());
        assert!(one.reveal() != other.reveal() && one.hash() != other.hash());
        assert_eq!(one.reveal().len(), PREFIX.len() + 43);
        let printed = format!("{one:?} {:?}", one.hash());
        assert!(!printed.contains(&one.reveal()[PREFIX.len()..]), "{printed}");
        assert!(!printed.contains(&one.hash().to_string()), "{printed}");
    }

    #[test]
    fn hashes_are_read_as_they_are_written() {
        let hash = TokenHash::of("abc");
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hash.to_string(), text);
        assert_eq!(TokenHash::parse(text), Some(hash));
        for bad in ["", &text[1..], "+a".repeat(32).as_str(), "\u{e4}".repeat(32).as_str()] {
            assert!(TokenHash::parse(bad).is_none(), "{bad}");
        }
    }
}
