//! Detects that a file has changed, without reading it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// A version of a file. Another version differs in its inode, its length or the time of its last
/// change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileVersion {
    inode: u64,
    len: u64,
    changed: (i64, i64),
}

impl FileVersion {
    /// The current version; `None` when there is no file that can be examined.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        let changed = (found.ctime(), found.ctime_nsec());
        Some(Self { inode: found.ino(), len: found.len(), changed })
    }
}
