//! Idempotency keys.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{ValueError, shorten};
use crate::limits::NAME_BYTES_MAX;

/// The key of a batch, which keeps a batch that is sent again from being stored twice: 1 to 255
/// bytes of UTF-8 without control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdempotencyKey(Arc<str>);

impl IdempotencyKey {
    /// Validates and copies `text`.
    ///
    /// # Errors
    /// [`ValueError::IdempotencyKey`] when it is empty, too long or holds a control character.
    pub fn parse(text: &str) -> Result<Self, ValueError> {
        if text.is_empty() || text.len() > NAME_BYTES_MAX || text.chars().any(char::is_control) {
            return Err(ValueError::IdempotencyKey { key: shorten(text), max: NAME_BYTES_MAX });
        }
        Ok(Self(Arc::from(text)))
    }

    /// Returns the key.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl FromStr for IdempotencyKey {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        Self::parse(text)
    }
}
