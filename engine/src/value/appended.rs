//! What becomes of a batch.

use super::FrameId;

/// What a frame became.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Its id.
    pub id: FrameId,
    /// Its offset; an ephemeral frame has none.
    pub offset: Option<u64>,
}

/// What became of a frame that was to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It was there and is gone now, on every path.
    Removed,
    /// It was not there: it never was, or was removed before, has expired, or was ephemeral.
    /// Nothing was stored for it.
    Absent,
}

/// The acknowledgement of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Appended {
    /// One for each frame, in order. When it is repeated and the others can no longer be told, the
    /// first frame's alone.
    pub frames: Vec<Stamp>,
    /// The new revision of each cursor, in order; 0 for one that was removed. Empty when it is
    /// repeated.
    pub cursors: Vec<u64>,
    /// The batch was stored before, under the same key; this is what it became then.
    pub repeated: bool,
    /// What became of each frame that was to be removed, in order.
    pub removed: Vec<Removal>,
    /// Whether a power cut can no longer take the batch.
    pub durable: bool,
    /// Offset of the next frame after those that are visible now, these included.
    pub head: u64,
}
