//! What listings tell.

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

/// What a store holds of one topic. Frames that expired may count until they are compacted away;
/// all others that are gone do not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSummary {
    /// The topic.
    pub topic: Topic,
    /// Frames.
    pub count: u64,
    /// Bytes of the records and bodies in the store, those of frames that are gone too as long as
    /// they are not compacted away.
    pub bytes: u64,
    /// Id of the oldest frame.
    pub first: FrameId,
    /// Id of the newest frame.
    pub last: FrameId,
    /// Offset of the newest frame.
    pub last_offset: u64,
}
