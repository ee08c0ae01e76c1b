//! A read-only view of a store's files: every change is refused. A store that was not closed
//! cleanly is seen with its journal applied, and one whose files were being switched with all of
//! them under their final names, as an open would leave it. Unreadable places read as zeros and are
//! reported; nothing is read through a map, where they would kill the process, except derived files
//! that were read completely before.

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
use crate::error::OpenError;
use crate::format::super_file::{FileKind, SuperState};
use crate::journal::{self, Kept, Trouble};
use crate::manifest::is_meant;
use crate::media::{Files, Holes, Media, is_lost, patched, tolerant};
use crate::names::{JOURNAL, unfinished};

/// Bytes read at a time to check that they are readable.
const PIECE_LEN: u64 = 1024 * 1024;

/// The unreadable places of each file, as far as it was read.
#[derive(Debug, Clone, Default)]
pub(super) struct Unreadable(Arc<Mutex<BTreeMap<PathBuf, Arc<Holes>>>>);

impl Unreadable {
    fn of(&self, path: &Path) -> Arc<Holes> {
        let mut files = self.0.lock();
        Arc::clone(files.entry(path.to_owned()).or_default())
    }

    /// The findings for a file, by the path it was opened under.
    pub(super) fn findings(&self, path: &Path) -> Vec<Finding> {
        let holes = self.0.lock().get(path).map(|holes| holes.all()).unwrap_or_default();
        let tell = |(place, why): &(Range<u64>, String)| Finding::unreadable(path, place, why);
        holes.iter().map(tell).collect()
    }

    /// The findings for all files.
    pub(super) fn all(&self) -> Vec<Finding> {
        let paths: Vec<PathBuf> = self.0.lock().keys().cloned().collect();
        paths.iter().flat_map(|path| self.findings(path)).collect()
    }
}

/// A read-only view of files.
#[derive(Debug)]
pub(super) struct ReadOnlyFiles {
    files: Arc<dyn Files>,
    kept: Kept,
    /// Files that the manifest names and that still have a temporary name, mapped to that name.
    aside: HashMap<PathBuf, PathBuf>,
    unreadable: Unreadable,
}

impl ReadOnlyFiles {
    /// The files of an open store, which handles its journal itself.
    pub(super) fn of_open(files: Arc<dyn Files>) -> Self {
        let (kept, aside) = (Kept::default(), HashMap::new());
        Self { files, kept, aside, unreadable: Unreadable::default() }
    }

    /// The files of the store in `dir`, which must not be open, with its manifest.
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
        if let Some(Trouble::Version(found)) = kept.trouble {
            return Err(OpenError::Version { path: dir.join(JOURNAL), found }.into());
        }
        Ok(Self { kept, aside, ..seen })
    }

    /// The unreadable places, recorded as they are met.
    pub(super) fn unreadable(&self) -> Unreadable {
        self.unreadable.clone()
    }

    /// The actual path of a file.
    fn at<'a>(&'a self, path: &'a Path) -> &'a Path {
        self.aside.get(path).map_or(path, PathBuf::as_path)
    }

    /// The finding for the journal of the store in `dir`.
    pub(super) fn finding(&self, dir: &Path) -> Option<Finding> {
        let path = dir.join(JOURNAL);
        match self.kept.trouble? {
            Trouble::Lost(what) => {
                Some(Finding::new(Severity::Lost, Problem::Missing, &path, 0, what))
            }
            // Such a store is not looked at.
            Trouble::Version(_) => None,
        }
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

/// The files of a manifest that still have a temporary name, mapped to it.
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
            // The cached bytes may differ from the disk's: they are read anyway.
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
