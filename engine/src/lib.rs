//! The store of xs: an append-only log of frames in memory-mapped segment files and a
//! content-addressed pack of blobs beside it. Synchronous; knows no network and no JavaScript.

pub mod format;
pub mod limits;
mod value;

pub use format::record::RecordError;
pub use value::{
    BlobHash, Body, Bound, Cursor, CursorChange, CursorName, ExpectRevision, Frame, FrameId, Meta,
    NewFrame, Origin, ReadOptions, Start, Topic, TopicPattern, TopicPatterns, Ttl, ValueError,
};
