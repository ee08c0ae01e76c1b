//! What tells one version of a file from another without reading it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// A version of a file: another one has another inode, or another length, or was changed at another
/// moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileVersion {
    inode: u64,
    len: u64,
    changed: (i64, i64),
}

impl FileVersion {
    /// The version that is there; `None` when there is none that can be looked at.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        let changed = (found.ctime(), found.ctime_nsec());
        Some(Self { inode: found.ino(), len: found.len(), changed })
    }
}
