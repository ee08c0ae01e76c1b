//! Errors, one enum for each thing a caller does: open, append, put, read, reclaim space, close. A
//! message includes its cause; the cause is therefore not also a `source`, or callers that print
//! both would repeat it.

mod append;
mod reclaim;
mod unwritable;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use crate::clock;
use crate::io_error::IoError;
use crate::limits::FILES_MAX;
use crate::options::OptionsError;
use crate::value::{BlobHash, StoreUuid};
pub use append::{AppendError, PutError};
pub use reclaim::{CompactError, GcError, RemoveNowError};
pub(crate) use unwritable::Unwritable;

/// A place where a file does not hold what it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corruption {
    /// The file.
    pub path: PathBuf,
    /// Where in the file, in bytes.
    pub position: u64,
    /// The offset of the affected frame, when known.
    pub offset: Option<u64>,
    /// The offset from which frames are readable again, set when a backward read met the damage and
    /// more than that one frame may be affected.
    pub until: Option<u64>,
    /// What is wrong there.
    pub what: Arc<str>,
}

impl Corruption {
    /// A corruption whose frame is not known.
    pub(crate) fn new(path: impl Into<PathBuf>, position: u64, what: impl fmt::Display) -> Self {
        let what = what.to_string().into();
        Self { path: path.into(), position, offset: None, until: None, what }
    }

    /// Adds the offset of the affected frame.
    pub(crate) fn at_offset(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is damaged at byte {}", self.path.display(), self.position)?;
        if let Some(offset) = self.offset {
            write!(f, " (frame {offset})")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// Why a store is open read-only.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadOnlyReason {
    /// Acknowledged data is damaged; further writes could hide that.
    #[error("acknowledged data is damaged, restore it from a backup or repair it: {0}")]
    Corrupt(Corruption),
    /// It is a backup, which only the store it was made from adds to.
    #[error("it is a backup: restore it into a directory of its own to write to it")]
    Backup,
    /// A file of the store was written by another version of the format.
    #[error("{path} has format version {found}, which this program cannot read", path = path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The version it has.
        found: u32,
    },
    /// A file that the manifest names is missing, or one exists that it does not name.
    #[error("{path} {what}: the store's files are not complete, put back what is missing")]
    Files {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// Describes the process that has a store open, as far as it is known.
fn holder(pid: Option<u32>, since: Option<u64>) -> String {
    let pid = pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
    let since = since.map(|ms| format!(" (since {})", clock::utc_text(ms)));
    pid + &since.unwrap_or_default()
}

/// A resource that ran out. Nothing is damaged, and nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortage {
    /// Room on the disk, or in the quota of the user.
    Space,
    /// File descriptors, of the process or of the system.
    Descriptors,
    /// Entries for files in the manifest, which holds [`FILES_MAX`] at most.
    Files,
}

impl Shortage {
    /// Returns the shortage that an I/O error reports, if it is one.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<Self> {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        if let Some(own) = error.get_ref().and_then(|own| own.downcast_ref::<Self>()) {
            return Some(*own);
        }
        match (error.kind(), Errno::from_io_error(error)) {
            (StorageFull | QuotaExceeded, _) => Some(Self::Space),
            (_, Some(Errno::MFILE | Errno::NFILE)) => Some(Self::Descriptors),
            _ => None,
        }
    }

    /// What to do about it; `room` is the advice where space is missing.
    pub(crate) const fn remedy(self, room: &'static str) -> &'static str {
        match self {
            Self::Space => room,
            Self::Descriptors => "let the process have more open files",
            Self::Files => "remove frames and compact the store, or collect its garbage",
        }
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Space => f.write_str("the disk is full"),
            Self::Descriptors => f.write_str("no file descriptor is left"),
            Self::Files => write!(f, "the store has {FILES_MAX} files, as many as it may"),
        }
    }
}

impl std::error::Error for Shortage {}

impl From<Shortage> for io::Error {
    fn from(shortage: Shortage) -> Self {
        match shortage {
            Shortage::Space => io::ErrorKind::StorageFull.into(),
            Shortage::Descriptors => Errno::MFILE.into(),
            // The system has no such error.
            Shortage::Files => Self::new(io::ErrorKind::StorageFull, shortage),
        }
    }
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process has it open.
    #[error("{dir} is open in {}; stop it or connect to it", holder(*.pid, *.since))]
    Locked {
        /// The store.
        dir: PathBuf,
        /// The other process, if it has recorded its id yet.
        pid: Option<u32>,
        /// Since when, in milliseconds since 1970, if known.
        since: Option<u64>,
    },
    /// An option is out of its range.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The store was written by another version of the format.
    #[error("{path} has format version {found}, which this program cannot read; use the program that wrote it", path = path.display())]
    Version {
        /// The file with that version.
        path: PathBuf,
        /// The version it has.
        found: u32,
    },
    /// There are segments, but no manifest that names them.
    #[error("{dir} holds segments and no manifest: repair it into another directory, or delete what an unfinished repair left", dir = dir.display())]
    NoManifest {
        /// The directory.
        dir: PathBuf,
    },
    /// The process runs as root, the store belongs to another user, and one of its directories is a
    /// link: root would change files wherever that user points it.
    #[error("{path} is a link, and root follows none in the store of another user: open it as that user, or put the directory itself there", path = path.display())]
    Link {
        /// The link.
        path: PathBuf,
    },
    /// The manifest, without which nothing can be read, is damaged.
    #[error("{0}; restore the store from a backup")]
    Corrupt(Corruption),
    /// The filesystem needs space to overwrite existing data, and there is none. Nothing is lost.
    #[error("no space to put back the groups of {path}; nothing is lost: make room on the disk and open the store again", path = path.display())]
    StorageFull {
        /// The journal that holds the groups to put back.
        path: PathBuf,
    },
    /// The file that keeps other processes out cannot be locked. That is the first step of an open:
    /// nothing was read.
    #[error("cannot lock {path}: {error}", path = path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
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
}

impl OpenError {
    pub(crate) fn io(what: &'static str, path: &Path, error: io::Error) -> Self {
        Self::Io { what, path: path.to_owned(), error }
    }
}

/// Why something could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The bytes are not those that were written. Other frames are still readable.
    #[error("{0}")]
    Corrupt(Corruption),
    /// A read failed.
    #[error("cannot read {path}: {error}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: IoError,
    },
    /// The options contradict each other.
    #[error("{0}")]
    Options(&'static str),
    /// A resume point lies beyond the end of its epoch, or its epoch is not one of this store:
    /// frames that its reader saw may be lost, and other frames may have their offsets.
    #[error("the position lies beyond what its epoch holds; go on from offset {offset}")]
    CursorAhead {
        /// Where the reader can resume. It has not seen anything from this offset on.
        offset: u64,
    },
    /// A resume point belongs to another store, for example the one this one was forked from.
    #[error("the position belongs to another store; begin anew, or read from that one")]
    OtherStore {
        /// Uuid of that store.
        store: StoreUuid,
    },
    /// A blob is longer than the caller wants to hold at once.
    #[error("blob of {bytes} bytes is over the {max} asked for; read it as a stream")]
    TooLarge {
        /// Bytes of the blob.
        bytes: u64,
        /// The caller's maximum.
        max: u64,
    },
    /// A blob that is referenced does not exist.
    #[error("the blob {0} is missing; restore it from a backup")]
    MissingBlob(BlobHash),
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

impl ReadError {
    pub(crate) fn io(path: &Path, error: &io::Error) -> Self {
        Self::Io { path: path.to_owned(), error: error.into() }
    }
}

impl From<Corruption> for ReadError {
    fn from(corruption: Corruption) -> Self {
        Self::Corrupt(corruption)
    }
}

/// Why a store could not be closed cleanly. What was acknowledged under its policy is kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CloseError {
    /// An earlier write failed, for this reason.
    #[error("an earlier write failed, {0}: the next open finds out what was stored")]
    Poisoned(IoError),
    /// A write or sync failed while closing.
    #[error("cannot close the store in order: {0}; the next open recovers it")]
    Io(IoError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locked_store_says_since_when() {
        let locked = |pid, since| OpenError::Locked { dir: "s".into(), pid, since }.to_string();
        assert_eq!(locked(Some(7), None), "s is open in process 7; stop it or connect to it");
        assert_eq!(locked(None, None), "s is open in another process; stop it or connect to it");
        let text = |since| locked(Some(7), Some(since));
        for (ms, time) in [
            (1, "1970-01-01T00:00:00Z"),
            (951_782_400_000, "2000-02-29T00:00:00Z"),
            (1_709_251_199_999, "2024-02-29T23:59:59Z"),
            (1_795_518_000_000, "2026-11-24T11:00:00Z"),
            (4_102_444_800_000, "2100-01-01T00:00:00Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00Z"),
        ] {
            assert!(text(ms).contains(&format!("7 (since {time});")), "{}", text(ms));
        }
    }

    #[test]
    fn who_has_too_few_descriptors_is_not_told_that_the_disk_is_full() {
        let of = |errno: Errno| Shortage::of(&errno.into());
        for (errnos, shortage, text) in [
            ([Errno::NOSPC, Errno::DQUOT], Shortage::Space, "the disk is full; make room"),
            (
                [Errno::MFILE, Errno::NFILE],
                Shortage::Descriptors,
                "no file descriptor is left; let the process have more open files",
            ),
        ] {
            assert_eq!(errnos.map(of), [Some(shortage); 2]);
            assert_eq!(Shortage::of(&shortage.into()), Some(shortage));
            let told = AppendError::StorageFull(shortage).to_string();
            assert_eq!(told, format!("{text}, appends then go on by themselves"));
            let told = CompactError::StorageFull(shortage).to_string();
            assert!(told.starts_with(text), "{told}");
        }
        let own = Shortage::Files;
        assert_eq!(Shortage::of(&own.into()), Some(own));
        assert_eq!(
            AppendError::StorageFull(own).to_string(),
            "the store has 1048576 files, as many as it may; remove frames and compact the store, \
             or collect its garbage, appends then go on by themselves"
        );
        assert_eq!(of(Errno::IO), None);
    }

    #[test]
    fn a_cause_that_the_text_says_is_no_source_as_well() {
        use std::error::Error as _;
        let closed = GcError::from(ReadError::Closed);
        assert!(closed.to_string().ends_with(&ReadError::Closed.to_string()));
        assert!(closed.source().is_none());
    }
}
