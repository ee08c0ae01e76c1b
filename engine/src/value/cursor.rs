//! Named, durable reader positions.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;

use super::{ValueError, shorten};
use crate::limits::NAME_BYTES_MAX;

/// A cursor's name: 1 to 255 bytes of UTF-8 without control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CursorName(Arc<str>);

impl CursorName {
    /// Validates and copies `text`.
    ///
    /// # Errors
    /// [`ValueError::CursorName`] when it is empty, too long or holds a control character.
    pub fn parse(text: &str) -> Result<Self, ValueError> {
        if text.is_empty() || text.len() > NAME_BYTES_MAX || text.chars().any(char::is_control) {
            return Err(ValueError::CursorName { name: shorten(text), max: NAME_BYTES_MAX });
        }
        Ok(Self(Arc::from(text)))
    }

    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CursorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for CursorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl FromStr for CursorName {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        Self::parse(text)
    }
}

/// The content of a cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// 1 for the first value, one more for each change.
    pub revision: u64,
    /// The epoch in which it was changed.
    pub epoch: u64,
    /// The first frame not yet handled.
    pub offset: u64,
    /// When it was changed, in milliseconds since 1970.
    pub time_ms: u64,
    /// Bytes kept with the position, for example a handler's state.
    pub state: Bytes,
}

/// A change of one cursor, made durable together with the frames of its batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CursorChange {
    /// Which cursor.
    pub name: CursorName,
    /// The condition on the cursor for the batch to be accepted.
    pub expect: ExpectRevision,
    /// The new value of the cursor; `None` removes it.
    pub set: Option<CursorValue>,
}

/// The new value of a cursor.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CursorValue {
    /// The first frame not yet handled.
    pub offset: u64,
    /// Bytes kept with the position, for example a handler's state.
    pub state: Bytes,
}

/// A condition on a cursor's current revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpectRevision {
    /// No condition.
    Any,
    /// The cursor must have this revision; 0 means that it must not exist.
    Is(u64),
}
