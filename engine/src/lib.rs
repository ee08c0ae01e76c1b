//! The store of xs: an append-only log of frames in memory-mapped segment files and a
//! content-addressed pack of blobs beside it. Synchronous; knows no network and no JavaScript.

mod clock;
mod env;
mod error;
pub mod format;
pub mod limits;
mod log;
mod manifest;
mod media;
mod options;
mod sys;
mod value;

pub use clock::{Clock, SystemClock};
pub use error::{AppendError, Corruption, OpenError, ReadError, ReadOnlyReason, StoreError};
pub use format::record::RecordError;
pub use options::{MediaChoice, OptionsError, StoreOptions, SyncPolicy};
pub use value::{
    BlobHash, Body, Bound, Cursor, CursorChange, CursorName, ExpectRevision, Frame, FrameId, Meta,
    NewFrame, Origin, ReadOptions, Start, Topic, TopicPattern, TopicPatterns, Ttl, ValueError,
};
