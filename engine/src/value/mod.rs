//! The values that callers, the log and the wire share: names, ids, hashes, frames. Each is valid
//! by construction: parsing validates. No file is accessed here.

mod appended;
mod condition;
mod cursor;
mod frame;
mod hash;
mod id;
mod import;
mod key;
mod meta;
mod read;
mod store_uuid;
mod summary;
mod topic;
mod ttl;

pub use appended::{Appended, Removal, Stamp};
pub use condition::{Condition, Unmet};
pub use cursor::{Cursor, CursorChange, CursorName, CursorValue, ExpectRevision};
pub use frame::{Body, Frame, FrameRef, NewFrame, Origin};
pub use hash::BlobHash;
pub use id::FrameId;
pub use import::Import;
pub use key::IdempotencyKey;
pub use meta::Meta;
pub use read::{Bound, ReadOptions, ResumePoint, Start};
pub use store_uuid::StoreUuid;
pub use summary::{CursorSummary, TopicSummary};
pub(crate) use topic::is_topic;
pub use topic::{Topic, TopicPattern, TopicPatterns};
pub use ttl::Ttl;

/// Why a value given as text or bytes is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ValueError {
    /// The topic breaks a rule; the text says which.
    #[error("topic {topic:?} {rule}")]
    Topic {
        /// The topic as given, shortened.
        topic: String,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// A list of patterns is empty or too long.
    #[error("{count} topic patterns, between 1 and {max} are allowed")]
    PatternCount {
        /// The number given.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// Not a frame id.
    #[error("{0:?} is not a frame id: 25 digits of base 36 are expected")]
    FrameId(String),
    /// Not a blob hash.
    #[error("{0:?} is not a hash: sha256- and 44 characters of base64 are expected")]
    BlobHash(String),
    /// Not the uuid of a store.
    #[error("{0:?} is not the uuid of a store: 32 hexadecimal digits are expected")]
    StoreUuid(String),
    /// Not a time to live.
    #[error(
        "{0:?} is not a ttl: forever, ephemeral, time:<ms>, time:3d (ms, s, m, h, d, w) or last:<n>, both from 1 on"
    )]
    Ttl(String),
    /// The meta is not JSON.
    #[error("meta is not JSON: {0}")]
    MetaSyntax(String),
    /// The meta is too long.
    #[error("meta of {bytes} bytes is over the limit of {max}; put large content into the body")]
    MetaBytes {
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The meta is nested too deeply.
    #[error("meta is nested deeper than {max} levels")]
    MetaDepth {
        /// The limit.
        max: usize,
    },
    /// An idempotency key is empty, too long or holds control characters.
    #[error("{key:?} is not a key: 1 to {max} bytes without control characters")]
    IdempotencyKey {
        /// The key as given, shortened.
        key: String,
        /// The limit, in bytes.
        max: usize,
    },
    /// A cursor name is empty, too long or holds control characters.
    #[error("{name:?} is not a cursor name: 1 to {max} bytes without control characters")]
    CursorName {
        /// The name as given, shortened.
        name: String,
        /// The limit, in bytes.
        max: usize,
    },
}

/// Text for an error message, truncated to a readable length.
pub(crate) fn shorten(text: &str) -> String {
    const CHARS_MAX: usize = 80;
    match text.char_indices().nth(CHARS_MAX) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}
