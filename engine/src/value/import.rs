//! The ids of imported frames.

use super::FrameId;

/// The ids that the frames of an imported batch had in their source, one for each, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Import {
    /// The frames keep them. They must ascend and be above every id that the store has given.
    Verbatim(Vec<FrameId>),
    /// The frames get new ids; the old ones are stored with them, and a frame is found by either. A
    /// ttl of `time` counts from the new id.
    NewIds(Vec<FrameId>),
}

impl Import {
    /// Returns the ids.
    #[must_use]
    pub fn ids(&self) -> &[FrameId] {
        match self {
            Self::Verbatim(ids) | Self::NewIds(ids) => ids,
        }
    }
}
