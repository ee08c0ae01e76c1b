//! HELLO: who is there, what both can do, how much is allowed.

use std::fmt;
use std::str::FromStr;

/// What a connection may do. How it came in decides: nothing in a message can raise it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Read everything.
    Read,
    /// Also append to topics outside `xs.*`, put blobs, move cursors, call commands.
    Append,
    /// Also append `xs.<kind>.<name>.create` and `.term`: the owner of the Unix socket.
    Admin,
    /// As append, and also `xs.<kind>.*` and origins: the process that runs modules.
    Host,
}

impl Role {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Append => "append",
            Self::Admin => "admin",
            Self::Host => "host",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Text that names no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a role: read, append, admin or host")]
pub struct UnknownRole(String);

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        [Self::Read, Self::Append, Self::Admin, Self::Host]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| UnknownRole(text.chars().take(40).collect()))
    }
}

/// What one side accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerLimits {
    /// Bytes of a message, header included.
    pub message_bytes: u32,
    /// Requests without an answer; beyond it the server stops reading.
    pub requests: u32,
    /// Subscriptions, uploads, downloads and calls at a time.
    pub streams: u32,
    /// Bytes of a chunk of a blob.
    pub chunk_bytes: u32,
    /// Bytes of an upload that may be sent before the first grant.
    pub upload_window: u32,
    /// Frames and cursor changes in one APPEND.
    pub batch_records: u32,
}

/// The versions of one op that a server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpRange {
    /// The op's number.
    pub op: u8,
    /// Oldest version.
    pub min: u16,
    /// Newest version.
    pub max: u16,
}
