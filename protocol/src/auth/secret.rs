//! A token's secret and the hash that is stored of it.

use std::fmt;
use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::crypto::aws_lc_rs;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// The prefix of every token, so that people and leak scanners recognize one.
const PREFIX: &str = "xst_";
/// Random bytes in a token.
const SECRET_BYTES: usize = 32;

/// The text of a token: `xst_` and 43 characters. Never printed by `Debug`, and not comparable:
/// compare hashes instead.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Generates a secret from 256 random bits of the kernel's generator.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate() -> io::Result<Self> {
        let mut bytes = [0; SECRET_BYTES];
        let random = aws_lc_rs::default_provider().secure_random;
        random.fill(&mut bytes).map_err(|_| io::Error::other("the system gives no randomness"))?;
        Ok(Self(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))))
    }

    /// The secret that a client presented.
    pub(crate) const fn shown(text: String) -> Self {
        Self(text)
    }

    /// The text, to be shown to its owner once.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The text to send to a server.
    pub(crate) fn into_text(self) -> String {
        self.0
    }

    pub(crate) fn hash(&self) -> TokenHash {
        TokenHash::of(&self.0)
    }
}

impl From<String> for Secret {
    /// A token that was issued before.
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The stored form of a token: the SHA-256 of its text.
///
/// Slow, salted hashes (Argon2, bcrypt) make guessing a password expensive, because passwords are
/// drawn from few candidates. A token is 256 random bits: it cannot be guessed with any hash, there
/// is no table of them, and no two are equal. One fast hash is enough to keep a reader of the file
/// from using what it holds, and it gives an attacker no slow computation to trigger on the server.
#[derive(Clone, Copy)]
pub(crate) struct TokenHash([u8; 32]);

impl TokenHash {
    pub(crate) fn of(text: &str) -> Self {
        Self(Sha256::digest(text.as_bytes()).into())
    }

    /// Parses 64 hexadecimal digits.
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

    /// Constant-time equality, independent of where the difference lies. The only way to compare
    /// hashes.
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
