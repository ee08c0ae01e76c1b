//! Why a store could not be checked, copied or saved.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Corruption, OpenError, ReadOnlyReason};
use crate::io_error::IoError;

/// Why a store could not be checked, copied or repaired. The source is unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MaintainError {
    /// The store, or the destination, cannot be opened.
    #[error("{0}")]
    Open(#[from] OpenError),
    /// There is no store in the directory.
    #[error("{dir} holds no store; name the directory with super.a and super.b", dir = dir.display())]
    NoStore {
        /// The directory.
        dir: PathBuf,
    },
    /// The destination holds something else.
    #[error("{dir} is not empty; name a directory that is, or that does not exist", dir = dir.display())]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
    },
    /// The destination is a store, or a backup of another one.
    #[error("{dir} is not a backup of this store; name another directory", dir = dir.display())]
    OtherStore {
        /// The directory.
        dir: PathBuf,
    },
    /// The store and the destination are the same directory, or one contains the other: a copy
    /// would be part of its source, and would be deleted with it.
    #[error(
        "{dest} and the store {store} are one directory, or one lies within the other; name a \
         directory beside the store",
        dest = dest.display(), store = store.display()
    )]
    Nested {
        /// The store, with links resolved.
        store: PathBuf,
        /// The destination, with links resolved.
        dest: PathBuf,
    },
    /// A store on disk was not closed cleanly, so its end is not known.
    #[error("{dir} was not closed in order; open and close it once, then try again", dir = dir.display())]
    NotClosed {
        /// The directory.
        dir: PathBuf,
    },
    /// The source is damaged: a copy of it would be damaged too.
    #[error("{0}; repair the store, or restore it from a backup")]
    Corrupt(Corruption),
    /// The store opened read-only, and a file that its manifest names is missing or wrong: a copy
    /// of it would be incomplete.
    #[error("the store is read-only: {0}")]
    ReadOnly(ReadOnlyReason),
    /// A system call failed.
    #[error("cannot {what} {path}: {error}", path = path.display())]
    Io {
        /// The operation that failed.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// Files were replaced faster than they could be copied.
    #[error("the store's files change too fast to be copied; try again")]
    Changing,
    /// A write to the store failed, for this reason, so what it holds is not known.
    #[error("an earlier write to the store failed, {0}; reopen it first")]
    Poisoned(IoError),
    /// The store was closed meanwhile.
    #[error("the store is closed")]
    Closed,
    /// The `watch` callback asked to stop.
    #[error("stopped")]
    Stopped,
}

impl MaintainError {
    pub(super) fn io(what: &'static str, path: &Path, error: io::Error) -> Self {
        Self::Io { what, path: path.to_owned(), error }
    }
}
