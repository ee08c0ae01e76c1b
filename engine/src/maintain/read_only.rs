//! Files of a store that is only looked at: whatever would change one is refused. One that was not
//! closed in order is seen with what its journal holds in its place, as an opening would put it.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::MaintainError;
use super::finding::{Finding, Problem, Severity};
use crate::format::super_file::SuperState;
use crate::journal::{self, Kept};
use crate::media::{Files, Media, patched};

/// Files that can be read.
#[derive(Debug)]
pub(super) struct ReadOnlyFiles {
    files: Arc<dyn Files>,
    kept: Kept,
}

impl ReadOnlyFiles {
    /// Those of a store that is open: its journal is its own affair.
    pub(super) fn of_open(files: Arc<dyn Files>) -> Self {
        Self { files, kept: Kept::default() }
    }

    /// Those of the store in `dir` that nobody has open, with the manifest that it has.
    pub(super) fn of_closed(
        dir: &Path,
        files: Arc<dyn Files>,
        state: Option<&SuperState>,
    ) -> Result<Self, MaintainError> {
        if state.is_some_and(|state| state.clean) {
            return Ok(Self::of_open(files));
        }
        let kept = journal::read(&*files, dir, state);
        let kept = kept.map_err(|error| MaintainError::io("read", &dir.join("journal"), error))?;
        Ok(Self { files, kept })
    }

    /// What is to be told of the journal of the store in `dir`.
    pub(super) fn finding(&self, dir: &Path) -> Option<Finding> {
        let path = dir.join("journal");
        let lost = |what| Finding::new(Severity::Lost, Problem::Missing, &path, 0, what);
        self.kept.trouble.map(lost)
    }

    fn seen(&self, path: &Path, media: Arc<dyn Media>) -> Arc<dyn Media> {
        match self.kept.files.get(path) {
            Some(pieces) => patched(media, pieces),
            None => media,
        }
    }
}

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
        Ok(self.seen(path, self.files.open_sealed(path)?))
    }

    fn open_scan(&self, path: &Path) -> io::Result<Arc<dyn Media>> {
        Ok(self.seen(path, self.files.open_scan(path)?))
    }

    fn open_unmapped(&self, path: &Path) -> io::Result<Arc<dyn Media>> {
        Ok(self.seen(path, self.files.open_unmapped(path)?))
    }

    fn forget(&self, path: &Path, part: Range<u64>) -> io::Result<()> {
        self.files.forget(path, part)
    }

    fn write_new(&self, _path: &Path, _bytes: &[u8]) -> io::Result<()> {
        refused()
    }

    fn read(&self, path: &Path, max: u64) -> io::Result<Vec<u8>> {
        self.files.read(path, max)
    }

    fn len_of(&self, path: &Path) -> io::Result<u64> {
        self.files.len_of(path)
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
        self.files.list(dir)
    }

    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        refused()
    }
}
