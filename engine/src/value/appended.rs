//! The result of a batch.

use super::FrameId;

/// The id and offset that a frame got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Its id.
    pub id: FrameId,
    /// Its offset; an ephemeral frame has none.
    pub offset: Option<u64>,
}

/// The result of a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// The frame existed and is removed now, for every way of reading.
    Removed,
    /// The frame did not exist: it never did, was removed before, has expired, or was ephemeral.
    /// Nothing was stored for it.
    Absent,
}

/// The acknowledgement of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Appended {
    /// One for each frame, in order. For a repeated batch whose other stamps are no longer known,
    /// only the first frame's.
    pub frames: Vec<Stamp>,
    /// The new revision of each cursor, in order; 0 for a removed one. Empty for a repeated batch.
    pub cursors: Vec<u64>,
    /// The batch was stored before, under the same key; this is its result from then.
    pub repeated: bool,
    /// The result of each removal, in order.
    pub removed: Vec<Removal>,
    /// Whether the batch survives a power cut from here on.
    pub durable: bool,
    /// Offset of the next frame, after everything that is visible now, including this batch.
    pub head: u64,
}
