//! Errors of what adds to a store: a batch, a blob.

use std::fmt;
use std::sync::Arc;

use super::{ReadError, ReadOnlyReason, Shortage};
use crate::format::record::RecordError;
use crate::io_error::IoError;
use crate::value::{BlobHash, CursorName, FrameId, IdempotencyKey, Unmet};

/// Why a batch was not appended. Except for [`Indeterminate`](Self::Indeterminate), nothing was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The batch has neither frames nor cursor changes nor removals, and does not ask to be
    /// durable; or it has too many.
    #[error("a batch holds 1 to {max} frames, cursor changes and removals, this one has {count}")]
    BatchCount {
        /// How many it has.
        count: usize,
        /// How many it may have.
        max: usize,
    },
    /// The batch is too large.
    #[error("batch of {bytes} bytes is over the limit of {max}; split it, or put bodies as blobs")]
    BatchTooLarge {
        /// Bytes of its records or of its bodies.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// A frame or a cursor change cannot be encoded as a record.
    #[error("{0}")]
    Invalid(RecordError),
    /// A cursor's state is too long.
    #[error("state of {bytes} bytes for cursor {name} is over the limit of {max}")]
    StateTooLarge {
        /// The cursor.
        name: CursorName,
        /// Bytes of the state.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// Two changes of one batch name the same cursor.
    #[error("cursor {0} is changed twice in one batch")]
    CursorTwice(CursorName),
    /// A cursor does not have the revision the batch expects.
    #[error("cursor {name} has revision {actual}, not {expected}; read it again")]
    CursorConflict {
        /// The cursor.
        name: CursorName,
        /// The expected revision; 0 means that it does not exist.
        expected: u64,
        /// The actual revision; 0 means that it does not exist.
        actual: u64,
    },
    /// The batch has too many conditions.
    #[error("a batch has at most {max} conditions, this one has {count}")]
    TooManyConditions {
        /// How many it has.
        count: usize,
        /// How many it may have.
        max: usize,
    },
    /// The conditions of the batch select more topics than may be examined while appends are
    /// blocked, and the most recently stored frames do not tell whether they hold.
    #[error(
        "the conditions of a batch select at most {max} topics where much was stored since; name fewer"
    )]
    ConditionsTooWide {
        /// Topics they may select.
        max: usize,
    },
    /// A condition of the batch does not hold.
    #[error("{0}")]
    ConditionNotMet(Unmet),
    /// Whether a condition holds cannot be determined.
    #[error("cannot check condition {index}: {error}")]
    ConditionUnread {
        /// Its place among the conditions of the batch, from 0.
        index: usize,
        /// What prevents it.
        error: ReadError,
    },
    /// The key was used for a batch with other content.
    #[error("key {key} was used for another batch, whose first frame is {id}; take a new key")]
    KeyReused {
        /// The key.
        key: IdempotencyKey,
        /// The first frame of the batch that used it.
        id: FrameId,
    },
    /// A key came with a batch that stores no frame.
    #[error("a batch with a key needs a frame that is not ephemeral")]
    KeyWithoutFrame,
    /// An import does not name an id for each of its frames.
    #[error("an import names one id for each frame, this one {ids} for {frames} frames")]
    ImportCount {
        /// Frames of the batch.
        frames: usize,
        /// Ids that came with them.
        ids: usize,
    },
    /// A frame that is never stored cannot be imported.
    #[error("frame {index} of the import is ephemeral; leave it out")]
    ImportEphemeral {
        /// Its place in the batch, from 0.
        index: usize,
    },
    /// Imported ids do not ascend, or are not above those the store has.
    #[error(
        "frame {index} of the import has id {id}, which is not above {newest}; import it under a \
         new id, or everything in order into a new store"
    )]
    ImportOrder {
        /// The frame's place in the batch, from 0.
        index: usize,
        /// Its id.
        id: FrameId,
        /// The preceding id: in the batch, or the newest of the store.
        newest: FrameId,
    },
    /// An imported id would leave the store no ids for later frames.
    #[error("id {0} is at the end of all ids; import the frame under a new id")]
    ImportId(FrameId),
    /// Ids that are kept already make an import idempotent.
    #[error("an import that keeps its ids takes no key: its ids cannot be stored twice")]
    ImportKey,
    /// There is no room for another cursor.
    #[error("the store has as many cursors as it can hold; remove some")]
    TooManyCursors,
    /// A frame names a blob the store does not have.
    #[error("the store has no blob {0}; put it first")]
    UnknownBlob(BlobHash),
    /// Whether a frame that is to be removed exists cannot be determined.
    #[error("cannot look up the frame to remove: {0}")]
    Unreadable(ReadError),
    /// A blob could not be hashed, compressed or read back; the store is unharmed.
    #[error("cannot take the blob: {0}")]
    BlobRefused(Arc<str>),
    /// No disk space or no file descriptor is left. Appends succeed again once there is.
    #[error("{0}; {remedy}, appends then go on by themselves", remedy = .0.remedy("make room"))]
    StorageFull(Shortage),
    /// The store is open read-only.
    #[error("the store is read-only: {0}")]
    ReadOnly(ReadOnlyReason),
    /// The write or its sync failed: the batch may or may not be in the store after it is opened
    /// again.
    #[error(
        "a write failed, {0}: whether the batch was stored is known after the store is reopened"
    )]
    Indeterminate(IoError),
    /// An earlier write failed, for this reason; the store takes no more until it is opened again.
    #[error("an earlier write failed, {0}: the store takes no more until it is reopened")]
    Poisoned(IoError),
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

impl AppendError {
    /// The error for a refused blob, with a reason for people to read.
    pub(crate) fn blob_refused(error: impl fmt::Display) -> Self {
        Self::BlobRefused(error.to_string().into())
    }
}

/// Why a blob was not put. Except for [`Indeterminate`](Self::Indeterminate), it was not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PutError {
    /// It is too long.
    #[error("blob is longer than {max} bytes")]
    TooLarge {
        /// The limit.
        max: u64,
    },
    /// It could not be hashed, compressed or read back; the store is unharmed.
    #[error("cannot take the blob: {0}")]
    Refused(Arc<str>),
    /// No disk space or no file descriptor is left. Puts succeed again once there is.
    #[error("{0}; {remedy}, appends then go on by themselves", remedy = .0.remedy("make room"))]
    StorageFull(Shortage),
    /// The store is open read-only.
    #[error("the store is read-only: {0}")]
    ReadOnly(ReadOnlyReason),
    /// The write or its sync failed: the blob may or may not be in the store after it is opened
    /// again.
    #[error(
        "a write failed, {0}: whether the blob was stored is known after the store is reopened"
    )]
    Indeterminate(IoError),
    /// An earlier write failed, for this reason; the store takes no more until it is opened again.
    #[error("an earlier write failed, {0}: the store takes no more until it is reopened")]
    Poisoned(IoError),
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

impl PutError {
    /// The error for a refused blob, with a reason for people to read.
    pub(crate) fn refused(error: impl fmt::Display) -> Self {
        Self::Refused(error.to_string().into())
    }
}
