//! Errors of what takes back space: compaction, garbage collection, removals that leave no bytes.

use super::{AppendError, ReadError, ReadOnlyReason, Shortage};
use crate::io_error::IoError;
use crate::options::OptionsError;

/// Why segments could not be compacted. What can be read stays readable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompactError {
    /// An option is out of its range.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The store is open read-only.
    #[error("the store is read-only: {0}")]
    ReadOnly(ReadOnlyReason),
    /// An earlier write failed, for this reason.
    #[error("an earlier write failed, {0}: the store takes no more until it is reopened")]
    Poisoned(IoError),
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
    /// No disk space or no file descriptor is left for the new segment. Old segments are deleted
    /// only once the new one is complete.
    #[error(
        "{0}; {remedy}",
        remedy = .0.remedy("make room for one segment, compaction then makes more")
    )]
    StorageFull(Shortage),
    /// A segment cannot be read.
    #[error("{0}")]
    Unreadable(ReadError),
    /// A system call failed.
    #[error("cannot compact: {0}")]
    Io(IoError),
}

/// Why garbage was not collected, or only in part. Nothing is lost by that.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GcError {
    /// An option is out of range.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The log or a pack cannot be read. The unreadable part may name any blob, so none is removed.
    #[error("cannot tell which blobs are wanted: {0}")]
    Read(ReadError),
    /// The store is open read-only.
    #[error("the store is read-only: {0}")]
    ReadOnly(ReadOnlyReason),
    /// No disk space or no descriptor is left for the rewritten packs.
    #[error(
        "{0}: {remedy}, or collect without the packs that are rewritten",
        remedy = .0.remedy("make room")
    )]
    StorageFull(Shortage),
    /// A write failed, now or earlier, for this reason; the store accepts no writes until it is
    /// reopened.
    #[error("a write failed, {0}: the store takes no more until it is reopened")]
    Poisoned(IoError),
    /// The store is closed, or being closed.
    #[error("the store is closed")]
    Closed,
}

impl From<ReadError> for GcError {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

/// Why no bytes of removed frames were to be left, and some may be. Except for
/// [`Append`](Self::Append), readers no longer see the frames.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RemoveNowError {
    /// The batch that removes the frames was not appended, unless this error says otherwise.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The segments that hold the frames could not be rewritten.
    #[error(transparent)]
    Compact(#[from] CompactError),
    /// Their bodies could not be removed from the packs.
    #[error(transparent)]
    Blobs(#[from] GcError),
    /// Frames remain in segments that cannot be rewritten because they are damaged.
    #[error("{0} removed frames are still in damaged segments; repair the store, then try again")]
    Left(usize),
}

impl RemoveNowError {
    /// Whether more room may help to complete the removal.
    pub(crate) const fn is_full(&self) -> bool {
        matches!(
            self,
            Self::Compact(CompactError::StorageFull(_)) | Self::Blobs(GcError::StorageFull(_))
        )
    }
}
