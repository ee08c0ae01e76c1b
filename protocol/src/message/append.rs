//! APPEND: frames and cursor changes in one atomic batch.

use xs_engine::{CursorChange, FrameId, NewFrame};

/// A batch to append: all of it or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AppendRequest {
    /// The frames, in the order they get offsets in.
    pub frames: Vec<NewFrame>,
    /// Cursors that move in the same batch.
    pub cursors: Vec<CursorChange>,
    /// Ask for an answer only after a sync, whatever the store's policy.
    pub durable: bool,
}

impl AppendRequest {
    /// A batch of frames and nothing else.
    #[must_use]
    pub fn frames(frames: Vec<NewFrame>) -> Self {
        Self { frames, ..Self::default() }
    }
}

/// What a frame got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Its id.
    pub id: FrameId,
    /// Its offset; an ephemeral frame has none.
    pub offset: Option<u64>,
}

/// A batch that was appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// One for each frame, in order.
    pub frames: Vec<Stamp>,
    /// The new revision of each cursor, in order; 0 for one that was removed.
    pub cursors: Vec<u64>,
    /// Whether the batch was durable when this was sent.
    pub durable: bool,
    /// The offset after the last frame readers can see.
    pub head: u64,
}
