//! What a reader asks for.

use super::{FrameId, TopicPatterns};

/// A place in the log, by offset or by id. An id need not exist: it stands between its neighbours.
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
    /// With the newest so many matching frames, in log order.
    Last(u64),
    /// With the first frame appended from now on.
    New,
}

/// What a reader asks for. The default reads every frame that is not reserved, once.
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
    /// At most so many frames, stored and live together.
    pub limit: Option<u64>,
    /// Newest first; cannot be followed.
    pub reverse: bool,
    /// After the stored frames go on with those appended later. This is for whoever takes either,
    /// as a subscription does: what only reads what is stored refuses it, what only follows does so
    /// without it.
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
