//! The options of a read.

use super::{FrameId, StoreUuid, TopicPatterns};

/// A position in the log, by offset or by id. An id need not exist: its position is between its
/// neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// The frame with this offset.
    Offset(u64),
    /// The frame with this id.
    Id(FrameId),
}

/// Where a read begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// With the first frame of the log.
    #[default]
    First,
    /// With this frame.
    From(Bound),
    /// With the frame after this one.
    After(Bound),
    /// With the newest N matching frames, in log order.
    Last(u64),
    /// With the first frame appended from now on.
    New,
}

/// Where a reader resumes, and the store and epoch in which it was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResumePoint {
    /// Uuid of the store; `None` when the caller guarantees that it is this one.
    pub store: Option<StoreUuid>,
    /// The epoch in which the reader saw the frame before it, if any.
    pub epoch: u64,
    /// The first frame not yet seen.
    pub offset: u64,
}

/// The options of a read. The default reads every frame that is not reserved, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadOptions {
    /// The topics.
    pub topics: TopicPatterns,
    /// The first frame.
    pub start: Start,
    /// The frame to end before.
    pub before: Option<Bound>,
    /// Only frames whose id has at least this time, in milliseconds since 1970.
    pub since_ms: Option<u64>,
    /// Only frames whose id has less than this time, in milliseconds since 1970.
    pub until_ms: Option<u64>,
    /// Maximum number of frames, stored and live together.
    pub limit: Option<u64>,
    /// Newest first; cannot be combined with following.
    pub reverse: bool,
    /// Continue after the stored frames with those appended later. For APIs that do both, such as a
    /// subscription: a read of stored frames refuses it, and a follower does it in any case.
    pub follow: bool,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            topics: TopicPatterns::all(),
            start: Start::First,
            before: None,
            since_ms: None,
            until_ms: None,
            limit: None,
            reverse: false,
            follow: false,
        }
    }
}
