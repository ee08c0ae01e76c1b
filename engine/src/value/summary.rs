//! The entries of listings.

use super::{CursorName, FrameId, Topic};

/// A cursor without its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CursorSummary {
    /// Its name.
    pub name: CursorName,
    /// 1 for the first value, one more for each change.
    pub revision: u64,
    /// The epoch in which it was changed.
    pub epoch: u64,
    /// The first frame not yet handled.
    pub offset: u64,
    /// When it was changed, in milliseconds since 1970.
    pub time_ms: u64,
    /// Bytes of its state.
    pub state_bytes: u64,
}

/// The content of a store for one topic. Expired frames may count until they are compacted away;
/// frames removed otherwise do not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSummary {
    /// The topic.
    pub topic: Topic,
    /// Frames.
    pub count: u64,
    /// Bytes of the records and bodies in the store, including those of removed frames until they
    /// are compacted away.
    pub bytes: u64,
    /// Id of the oldest frame.
    pub first: FrameId,
    /// Id of the newest frame.
    pub last: FrameId,
    /// Offset of the newest frame.
    pub last_offset: u64,
}
