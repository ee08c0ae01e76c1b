//! Errors of reading and of storing blobs.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Corruption, PutError, ReadError, Shortage};
use crate::format::file::FormatError;
use crate::io_error::IoError;

/// Why a blob cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BlobError {
    /// The system cannot read or write a file of the pack.
    #[error("{path}: {error}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// A pack does not hold what was written.
    #[error("{0}; restore the blob from a backup or put it again")]
    Corrupt(Corruption),
    /// The blob is longer than the caller can take at once.
    #[error("blob of {len} bytes is over the limit of {max} here; read it as a stream")]
    TooLong {
        /// Bytes of the blob.
        len: u64,
        /// The caller's limit.
        max: u64,
    },
}

impl BlobError {
    pub(super) fn io(path: &Path, error: io::Error) -> Self {
        Self::Io { path: path.to_owned(), error }
    }

    pub(super) fn corrupt(path: &Path, position: u64, what: FormatError) -> Self {
        Self::Corrupt(Corruption::new(path, position, format_args!("the blob entry {what}")))
    }

    pub(super) const fn is_corrupt(&self) -> bool {
        matches!(self, Self::Corrupt(_))
    }
}

impl From<BlobError> for io::Error {
    fn from(error: BlobError) -> Self {
        match error {
            BlobError::Io { error, .. } => error,
            BlobError::Corrupt(_) => Self::new(io::ErrorKind::InvalidData, error),
            BlobError::TooLong { .. } => Self::new(io::ErrorKind::FileTooLarge, error),
        }
    }
}

impl From<BlobError> for ReadError {
    fn from(error: BlobError) -> Self {
        match error {
            BlobError::Io { path, error } => Self::io(&path, &error),
            BlobError::Corrupt(corruption) => Self::Corrupt(corruption),
            BlobError::TooLong { len, max } => Self::TooLarge { bytes: len, max },
        }
    }
}

/// Why blobs were not stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StageError {
    /// No disk space or no descriptor is left. Nothing is broken, and a retry may succeed.
    #[error("no room for blobs: {0}")]
    Full(Shortage),
    /// The blob could not be compressed, hashed or read back; the store is unharmed.
    #[error("cannot take the blob: {0}")]
    Refused(io::Error),
    /// The blob existed when it was looked up and was swept since; it must be put again.
    #[error("the blob was swept meanwhile; put it again")]
    Gone,
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
    /// A write or sync failed: the content of the packs is unknown until the store is reopened.
    #[error("writing blobs failed: {0}")]
    Failed(io::Error),
}

impl From<&StageError> for IoError {
    fn from(error: &StageError) -> Self {
        match error {
            StageError::Full(shortage) => Self::from(*shortage).described(error),
            StageError::Refused(cause) | StageError::Failed(cause) => {
                Self::from(cause).described(error)
            }
            StageError::Gone | StageError::Closed => Self::other(error),
        }
    }
}

impl StageError {
    /// An error of a step that leaves nothing acknowledged in doubt.
    pub(super) fn harmless(error: impl Into<io::Error>) -> Self {
        let error = error.into();
        match Shortage::of(&error) {
            Some(shortage) => Self::Full(shortage),
            None => Self::Refused(error),
        }
    }
}

impl From<StageError> for PutError {
    /// The error for who puts a blob. Whether it poisons the store is decided elsewhere.
    fn from(error: StageError) -> Self {
        match error {
            StageError::Full(shortage) => Self::StorageFull(shortage),
            StageError::Refused(cause) => Self::refused(cause),
            StageError::Gone => Self::refused(error),
            StageError::Closed => Self::Closed,
            StageError::Failed(_) => Self::Indeterminate(IoError::from(&error)),
        }
    }
}

/// Why packs may no longer be changed.
#[derive(Debug)]
pub(super) enum Unusable {
    /// A write or sync failed, for this reason.
    Failed(IoError),
    Closed,
}

impl From<Unusable> for StageError {
    fn from(why: Unusable) -> Self {
        match why {
            Unusable::Failed(why) => Self::Failed(why.into()),
            Unusable::Closed => Self::Closed,
        }
    }
}
