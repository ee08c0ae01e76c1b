//! FETCH, GET, LAST, TOPICS: bounded reads.

use xs_engine::{FrameId, Topic, TopicPatterns};

/// Which newest frames are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastRequest {
    /// Among which topics.
    pub topics: TopicPatterns,
    /// How many; at most [`LAST_MAX`](crate::limits::LAST_MAX).
    pub n: u64,
    /// So many of each topic instead of all together.
    pub per_topic: bool,
}

/// What the store holds of one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSummary {
    /// The topic.
    pub topic: Topic,
    /// Frames in it.
    pub count: u64,
    /// Bytes of its records and bodies.
    pub bytes: u64,
    /// Id of its oldest frame.
    pub first: FrameId,
    /// Id of its newest frame.
    pub last: FrameId,
    /// Offset of its newest frame.
    pub last_offset: u64,
}
