//! Files as the store needs them. [`Media`] is one append-only file in space that is allocated
//! ahead of use, step by step; [`Files`] is every other operation on files and directories. A crash
//! or a fault can fall between any two calls, and tests inject faults there. Nothing here knows
//! what the bytes mean.

mod disk;
#[cfg(test)]
pub(crate) mod faulty;
mod find;
mod lock;
mod mapped;
#[cfg(test)]
pub(crate) mod memory;
mod owner;
mod patched;
mod positioned;
mod prefix;
mod room;
#[cfg(test)]
pub(crate) mod sim;
mod tolerant;

use std::fmt::Debug;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::error::Shortage;
pub(crate) use disk::Disk;
pub(crate) use find::find_first;
pub(crate) use lock::{LockError, StoreLock};
pub(crate) use owner::leads_away;
pub(crate) use patched::patched;
pub(crate) use prefix::prefix;
pub(crate) use tolerant::{Holes, is_lost, tolerant};

/// One file. Bytes are written once, above the published length; publishing makes them final.
pub(crate) trait Media: Send + Sync + Debug {
    /// Writes `bytes` at `at`: within [`len`](Self::len), above [`published`](Self::published), and
    /// never from two threads at a time in one place.
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes sure that writes below `upto` cannot fail for lack of space. A full disk is an error
    /// here. Only the writer calls this.
    fn reserve(&self, upto: u64) -> io::Result<()> {
        let _ = upto;
        Ok(())
    }
    /// Makes everything written durable (`fdatasync`). After an error nothing is known about the
    /// file's unsynced bytes, and a second call proves nothing.
    fn sync(&self) -> io::Result<()>;
    /// Makes the bytes below `upto` final and readable. All of them were written before.
    fn publish(&self, upto: u64);
    /// The published length.
    fn published(&self) -> u64;
    /// A range of published bytes. Costs one allocation or one read: request a large range and
    /// slice it.
    fn view(&self, range: Range<u64>) -> io::Result<Bytes>;
    /// All published bytes, if that needs no memory and no read.
    fn mapped(&self) -> Option<Bytes> {
        None
    }
    /// Length of the file. Only the reserved part has space on the disk.
    fn len(&self) -> u64;
    /// Everything from this position on is zero, as far as can be told without reading it.
    fn zero_from(&self) -> u64 {
        self.len()
    }
    /// The path at which the file was opened; a file renamed since keeps its old path here.
    fn path(&self) -> &Path;
}

/// Operations on files and directories.
pub(crate) trait Files: Send + Sync + Debug {
    /// Creates a file of `len` bytes, replacing an old one, and syncs it. Its name is durable only
    /// after [`sync_dir`](Self::sync_dir). Its beginning has space, with `zero` all of it. A full
    /// disk is an error here.
    fn create(&self, path: &Path, len: u64, zero: bool) -> io::Result<Arc<dyn Media>>;
    /// Opens a file for appending; nothing in it is published.
    fn open_append(&self, path: &Path) -> io::Result<Arc<dyn Media>>;
    /// Opens a file that no longer changes; all of it is published.
    fn open_sealed(&self, path: &Path) -> io::Result<Arc<dyn Media>>;
    /// Opens a file to read it as the disk has it: by `pread`, after dropping its cached pages.
    /// Nothing of it is mapped, so it may be truncated while it is open.
    fn open_scan(&self, path: &Path) -> io::Result<Arc<dyn Media>>;
    /// Opens a file to read it by `pread`, as the page cache has it. Nothing of it is mapped, so it
    /// may be truncated while it is open.
    fn open_unmapped(&self, path: &Path) -> io::Result<Arc<dyn Media>>;
    /// Drops the cached pages of a part of a file: reads then see what the disk has of it.
    fn forget(&self, path: &Path, part: Range<u64>) -> io::Result<()>;
    /// Writes a small file whole and syncs it; its directory is not synced.
    fn write_new(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Writes a whole file, piece by piece as `fill` does, and syncs it; its directory is not
    /// synced.
    fn write_stream(
        &self,
        path: &Path,
        fill: &mut dyn FnMut(&mut dyn io::Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut bytes = Vec::new();
        fill(&mut bytes)?;
        self.write_new(path, &bytes)
    }
    /// Reads a file of at most `max` bytes.
    fn read(&self, path: &Path, max: u64) -> io::Result<Vec<u8>>;
    /// Bytes of a file.
    fn len_of(&self, path: &Path) -> io::Result<u64>;
    /// Creates a hard link to a file. Not every filesystem supports them.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Renames a file over another.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Unlinks a file; a missing one is not an error.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Truncates a file and syncs it.
    fn cut(&self, path: &Path, len: u64) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Keeps a directory open, so that [`sync_dir`](Self::sync_dir) needs no descriptor for it:
    /// without one it is unknown which names are durable, and no operation can continue.
    fn hold_dir(&self, dir: &Path) -> io::Result<()> {
        let _ = dir;
        Ok(())
    }
    /// Names of the files in a directory, those that are UTF-8, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Creates a directory if there is none, and makes its name durable.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
}

/// Serializes the syncs of one file, and refuses any after one that failed. The kernel reports a
/// lost write once; a concurrent or later sync would succeed nevertheless.
#[derive(Debug, Default)]
pub(crate) struct Syncs {
    failed: Mutex<bool>,
}

impl Syncs {
    /// Runs a sync, unless one failed before.
    pub(crate) fn run(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut failed = self.failed.lock();
        if *failed {
            return Err(io::Error::other("an earlier sync failed"));
        }
        let synced = sync();
        *failed = synced.is_err();
        synced
    }
}

/// Whether an error reports a lack of space or descriptors: nothing was lost, and the shortage may
/// pass.
pub(crate) fn is_full(error: &io::Error) -> bool {
    Shortage::of(error).is_some()
}

/// Whether a file could not be opened because the process, or the system, has too many open.
pub(crate) fn is_out_of_descriptors(error: &io::Error) -> bool {
    Shortage::of(error) == Some(Shortage::Descriptors)
}
