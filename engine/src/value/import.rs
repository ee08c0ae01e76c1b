//! Frames that come from elsewhere with the ids they had there.

use super::FrameId;

/// The ids that the frames of an imported batch had where they come from, one for each, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Import {
    /// The frames keep them. They must ascend and lie above every id the store gave.
    Verbatim(Vec<FrameId>),
    /// The frames get new ids; the old ones are kept with them, and a frame is found by either. A
    /// ttl of `time` counts from the new id.
    NewIds(Vec<FrameId>),
}

impl Import {
    /// The ids.
    #[must_use]
    pub fn ids(&self) -> &[FrameId] {
        match self {
            Self::Verbatim(ids) | Self::NewIds(ids) => ids,
        }
    }
}
