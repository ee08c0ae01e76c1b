//! Detects that a file has changed, without reading it, and when it must be read again.

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

/// Which version of a file, or of several, was read last, and whether they must be read again.
#[derive(Debug)]
pub(crate) struct Watched<V> {
    /// The version that was read last, even if it was unusable.
    read: V,
    /// The version that could not even be read at the last check.
    unread: Option<V>,
}

impl<V: Copy + PartialEq> Watched<V> {
    /// What is watched, of which this version was read.
    pub(crate) const fn new(read: V) -> Self {
        Self { read, unread: None }
    }

    /// Whether the version found is another one than was read.
    pub(crate) fn is_new(&self, found: V) -> bool {
        self.read != found
    }

    /// Whether the version found must be read. One that could not be read is due at every check:
    /// the cause may be temporary, such as a lack of descriptors.
    pub(crate) fn is_due(&self, found: V) -> bool {
        self.is_new(found) || self.unread.is_some()
    }

    /// Notes that a version was read, whether or not it is usable.
    pub(crate) fn note_read(&mut self, found: V) {
        *self = Self::new(found);
    }

    /// Notes that a version could not be read; returns whether that is news.
    pub(crate) fn note_unread(&mut self, found: V) -> bool {
        self.unread.replace(found) != Some(found)
    }
}
