//! Files of a store that is only looked at: whatever would change one is refused.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::media::{Files, Media};

/// Files that can be read.
#[derive(Debug)]
pub(super) struct ReadOnlyFiles(pub(super) Arc<dyn Files>);

fn refused<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl Files for ReadOnlyFiles {
    fn create(&self, _path: &Path, _len: u64, _zero: bool) -> io::Result<Arc<dyn Media>> {
        refused()
    }

    fn open_append(&self, _path: &Path) -> io::Result<Arc<dyn Media>> {
        refused()
    }

    fn open_sealed(&self, path: &Path) -> io::Result<Arc<dyn Media>> {
        self.0.open_sealed(path)
    }

    fn open_scan(&self, path: &Path) -> io::Result<Arc<dyn Media>> {
        self.0.open_scan(path)
    }

    fn open_unmapped(&self, path: &Path) -> io::Result<Arc<dyn Media>> {
        self.0.open_unmapped(path)
    }

    fn forget(&self, path: &Path, part: Range<u64>) -> io::Result<()> {
        self.0.forget(path, part)
    }

    fn write_new(&self, _path: &Path, _bytes: &[u8]) -> io::Result<()> {
        refused()
    }

    fn read(&self, path: &Path, max: u64) -> io::Result<Vec<u8>> {
        self.0.read(path, max)
    }

    fn len_of(&self, path: &Path) -> io::Result<u64> {
        self.0.len_of(path)
    }

    fn link(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        refused()
    }

    fn rename(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        refused()
    }

    fn remove(&self, _path: &Path) -> io::Result<()> {
        refused()
    }

    fn cut(&self, _path: &Path, _len: u64) -> io::Result<()> {
        refused()
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        refused()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.0.list(dir)
    }

    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        refused()
    }
}
