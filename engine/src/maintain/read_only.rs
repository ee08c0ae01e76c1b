//! Files of a store that is only looked at: whatever would change one is refused. One that was not
//! closed in order is seen with what its journal holds in its place, and one whose files were being
//! exchanged with all of them under their names, as an opening would put it. Places that the disk
//! has lost are zeros, and told of; nothing is read through a map, where they would be the end of
//! the process, but derived files that were read before.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::MaintainError;
use super::finding::{Finding, Problem, Severity};
use crate::format::super_file::{FileKind, SuperState};
use crate::journal::{self, Kept};
use crate::media::{Files, Holes, Media, is_lost, patched, tolerant};
use crate::names::{JOURNAL, unfinished};
use crate::recovery::is_meant;

/// Bytes read at a time to see whether they can be.
const PIECE_LEN: u64 = 1024 * 1024;

/// The places of each file that cannot be read, as far as they were asked for.
#[derive(Debug, Clone, Default)]
pub(super) struct Unreadable(Arc<Mutex<BTreeMap<PathBuf, Arc<Holes>>>>);

impl Unreadable {
    fn of(&self, path: &Path) -> Arc<Holes> {
        let mut files = self.0.lock();
        Arc::clone(files.entry(path.to_owned()).or_default())
    }

    /// What is to be told of a file, by the path it was opened under.
    pub(super) fn findings(&self, path: &Path) -> Vec<Finding> {
        let holes = self.0.lock().get(path).map(|holes| holes.all()).unwrap_or_default();
        let tell = |(place, why): &(Range<u64>, String)| Finding::unreadable(path, place, why);
        holes.iter().map(tell).collect()
    }

    /// What is to be told of all files.
    pub(super) fn all(&self) -> Vec<Finding> {
        let paths: Vec<PathBuf> = self.0.lock().keys().cloned().collect();
        paths.iter().flat_map(|path| self.findings(path)).collect()
    }
}

/// Files that can be read.
#[derive(Debug)]
pub(super) struct ReadOnlyFiles {
    files: Arc<dyn Files>,
    kept: Kept,
    /// Files that the manifest names and that have another name yet, which is the second one.
    aside: HashMap<PathBuf, PathBuf>,
    unreadable: Unreadable,
}

impl ReadOnlyFiles {
    /// Those of a store that is open: its journal is its own affair.
    pub(super) fn of_open(files: Arc<dyn Files>) -> Self {
        let (kept, aside) = (Kept::default(), HashMap::new());
        Self { files, kept, aside, unreadable: Unreadable::default() }
    }

    /// Those of the store in `dir` that nobody has open, with the manifest that it has.
    pub(super) fn of_closed(
        dir: &Path,
        files: Arc<dyn Files>,
        state: Option<&SuperState>,
    ) -> Result<Self, MaintainError> {
        let aside = state.map_or_else(HashMap::new, |state| aside(&*files, dir, state));
        let seen = Self::of_open(files);
        if state.is_some_and(|state| state.clean) {
            return Ok(Self { aside, ..seen });
        }
        let kept = journal::read(&seen, dir, state);
        let kept = kept.map_err(|error| MaintainError::io("read", &dir.join(JOURNAL), error))?;
        Ok(Self { kept, aside, ..seen })
    }

    /// The places that cannot be read, told as they are met.
    pub(super) fn unreadable(&self) -> Unreadable {
        self.unreadable.clone()
    }

    /// Where a file is.
    fn at<'a>(&'a self, path: &'a Path) -> &'a Path {
        self.aside.get(path).map_or(path, PathBuf::as_path)
    }

    /// What is to be told of the journal of the store in `dir`.
    pub(super) fn finding(&self, dir: &Path) -> Option<Finding> {
        let path = dir.join(JOURNAL);
        let lost = |what| Finding::new(Severity::Lost, Problem::Missing, &path, 0, what);
        self.kept.trouble.map(lost)
    }

    fn seen(&self, path: &Path, media: Arc<dyn Media>) -> Arc<dyn Media> {
        let holes = self.unreadable.of(media.path());
        let media = tolerant(media, &holes);
        match self.kept.files.get(path) {
            Some(pieces) => patched(media, pieces),
            None => media,
        }
    }
}

/// The files of a manifest that have not got their names yet, and where they are.
pub(super) fn aside(
    files: &dyn Files,
    dir: &Path,
    state: &SuperState,
) -> HashMap<PathBuf, PathBuf> {
    let name = |path: &Path| path.file_name().map(OsStr::to_string_lossy).map(Cow::into_owned);
    let pairs = state.files.iter().filter_map(|file| {
        let path = file.path_in(dir);
        let other = unfinished(&path);
        files.len_of(&other).ok()?;
        let names = (name(&other)?, name(&path)?);
        let is_meant = is_meant(files, path.parent()?, (&names.0, &names.1), file);
        is_meant.then_some((path, other))
    });
    pairs.collect()
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
        let own = path.extension().and_then(OsStr::to_str);
        if own.is_some_and(|own| {
            [FileKind::Segment, FileKind::Pack].map(FileKind::end).contains(&own)
        }) {
            return self.open_unmapped(path);
        }
        let media = self.files.open_unmapped(path)?;
        let mut at = 0;
        while at < media.len() {
            let upto = (at + PIECE_LEN).min(media.len());
            at = media.view(at..upto).map(|_| upto)?;
        }
        self.files.open_sealed(path)
    }

    fn open_scan(&self, path: &Path) -> io::Result<Arc<dyn Media>> {
        let opened = match self.files.open_scan(self.at(path)) {
            // What is in the cache may not be on the disk: it is read as it is.
            Err(error) if is_lost(&error) => self.files.open_unmapped(self.at(path)),
            opened => opened,
        };
        Ok(self.seen(path, opened?))
    }

    fn open_unmapped(&self, path: &Path) -> io::Result<Arc<dyn Media>> {
        Ok(self.seen(path, self.files.open_unmapped(self.at(path))?))
    }

    fn forget(&self, path: &Path, part: Range<u64>) -> io::Result<()> {
        self.files.forget(self.at(path), part)
    }

    fn write_new(&self, _path: &Path, _bytes: &[u8]) -> io::Result<()> {
        refused()
    }

    fn read(&self, path: &Path, max: u64) -> io::Result<Vec<u8>> {
        self.files.read(self.at(path), max)
    }

    fn len_of(&self, path: &Path) -> io::Result<u64> {
        self.files.len_of(self.at(path))
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
        let mut names = self.files.list(dir)?;
        for (path, other) in self.aside.iter().filter(|(path, _)| path.parent() == Some(dir)) {
            names.retain(|name| ![path, other].map(|it| dir.join(name) == **it).contains(&true));
            names.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
        }
        Ok(names)
    }

    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        refused()
    }
}
