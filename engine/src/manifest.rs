//! The manifest in use: two copies written alternately, so that a crash while one is written leaves
//! the other. Changes are durable before any code acts on them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::error::{Corruption, OpenError, Shortage};
use crate::format::file::{FILE_HEADER_LEN, FileHeader, FormatError, Magic};
use crate::format::super_file::{FileEntry, FileKind, FileState, SUPER_BYTES_MAX, SuperState};
use crate::limits::FILES_MAX;
use crate::media::{Files, is_lost, is_out_of_descriptors};
use crate::names::{MANIFESTS, begun_manifest};

/// The reported fault of a file that may hold data and that the manifest does not name.
pub(crate) const NOT_NAMED: &str = "is not one of the files the manifest names";

/// State of the copies.
#[derive(Debug)]
struct Writing {
    /// Sequence number of the newest copy.
    sequence: u64,
    /// Copies whose names are not known to be durable: their creator may have died before it synced
    /// the directory.
    unnamed: usize,
    /// A copy on disk may be valid that this process does not use.
    in_doubt: bool,
}

impl Writing {
    const fn after(sequence: u64) -> Self {
        Self { sequence, unnamed: MANIFESTS.len(), in_doubt: false }
    }
}

/// The manifest of an open store.
#[derive(Debug)]
pub(crate) struct Manifest {
    dir: PathBuf,
    files: Arc<dyn Files>,
    /// Held while a copy is written, to serialize changes.
    writing: Mutex<Writing>,
    state: RwLock<Arc<SuperState>>,
}

impl Manifest {
    /// Writes the manifest of a new store.
    pub(crate) fn create(dir: &Path, files: Arc<dyn Files>, state: SuperState) -> io::Result<Self> {
        let manifest = Self::unwritten(dir, files, state);
        manifest.update(|_| ())?;
        Ok(manifest)
    }

    /// A manifest that is written with its first change. The directory holds none.
    pub(crate) fn unwritten(dir: &Path, files: Arc<dyn Files>, state: SuperState) -> Self {
        let writing = Mutex::new(Writing::after(0));
        let state = RwLock::new(Arc::new(state));
        Self { dir: dir.to_owned(), files, writing, state }
    }

    /// Reads the manifest, or `None` when the store was never created: neither copy exists, or the
    /// only one was cut off during creation. If one copy says clean and the other is lost and may
    /// be newer, the store is not clean: it may have been written to since. An unreadable copy
    /// counts like a damaged one.
    pub(crate) fn load(dir: &Path, files: Arc<dyn Files>) -> Result<Option<Self>, OpenError> {
        let mut newest: Option<(u64, SuperState)> = None;
        let (mut failure, mut unreadable) = (None, None);
        let mut found = 0;
        let mut lost = 0;
        for name in MANIFESTS {
            let path = dir.join(name);
            let bytes = match files.read(&path, SUPER_BYTES_MAX) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) if is_lost(&error) => {
                    (found, lost) = (found + 1, u64::MAX);
                    unreadable = Some(OpenError::io("read", &path, error));
                    continue;
                }
                Err(error) => return Err(OpenError::io("read", &path, error)),
            };
            found += 1;
            match SuperState::decode(&bytes) {
                Ok((sequence, state)) => {
                    if newest.as_ref().is_none_or(|(best, _)| sequence > *best) {
                        newest = Some((sequence, state));
                    }
                }
                // A newer version is refused even when the other copy is ours: an upgrade may be
                // half done.
                Err(FormatError::Version { found }) => {
                    return Err(OpenError::Version { path, found });
                }
                Err(error) => {
                    let header = FileHeader::decode(&bytes, Magic::Super);
                    lost = lost.max(header.map_or(u64::MAX, |header| header.base));
                    failure = Some(Corruption::new(path, 0, error));
                }
            }
        }
        if newest.is_none()
            && let Some(error) = unreadable
        {
            // It may be the valid one, and there is no other.
            return Err(error);
        }
        match (newest, failure) {
            (Some((sequence, mut state)), _) => {
                // The second write creates the second copy, which is never removed.
                let is_alone = found == 1 && sequence > 1;
                // A backup is written only when it is added to.
                state.clean &= state.backup || !(is_alone || lost > sequence);
                Ok(Some(Self {
                    dir: dir.to_owned(),
                    files,
                    writing: Mutex::new(Writing::after(sequence)),
                    state: RwLock::new(Arc::new(state)),
                }))
            }
            // The first copy is written after everything else of a new store. If it is cut off, it
            // is the only one, and nothing was ever appended.
            (None, Some(corruption)) if found > 1 => Err(OpenError::Corrupt(corruption)),
            (None, Some(corruption)) if !is_first_write(&corruption) => {
                Err(OpenError::Corrupt(corruption))
            }
            (None, _) => Ok(None),
        }
    }

    /// The current content of the manifest.
    pub(crate) fn state(&self) -> Arc<SuperState> {
        Arc::clone(&self.state.read())
    }

    /// Changes the manifest; durable on return. After an error it is unchanged, in memory and for
    /// the next open; a change that would name more than [`FILES_MAX`] files is
    /// [`Shortage::Files`]. If it is unknown which copy is valid, because the copy was complete and
    /// only a sync failed, the error is never a full disk, and the manifest accepts no more
    /// changes.
    pub(crate) fn update(&self, change: impl FnOnce(&mut SuperState)) -> io::Result<()> {
        let mut writing = self.writing.lock();
        if writing.in_doubt {
            return Err(io::Error::other("an earlier write of the manifest failed"));
        }
        let mut state = SuperState::clone(&self.state.read());
        let count = state.files.len();
        change(&mut state);
        if state.files.len() > FILES_MAX.max(count) {
            // Neither copy would be readable.
            return Err(Shortage::Files.into());
        }
        let next = writing.sequence + 1;
        // Odd sequence numbers go to the first copy: a new store begins with super.a.
        let path = self.dir.join(MANIFESTS[usize::from(next.is_multiple_of(2))]);
        let written = self.files.write_new(&path, &state.encode(next));
        // In that case the copy is unchanged.
        let is_unopened = written.as_ref().is_err_and(is_out_of_descriptors);
        if let Err(error) = written.and_then(|()| self.sync_name(&mut writing)) {
            writing.in_doubt = !is_unopened && self.may_count(&path, next);
            // Callers continue after a full-disk error, so this must not be one.
            return Err(match writing.in_doubt {
                true => {
                    io::Error::other(format!("the manifest was written and not synced: {error}"))
                }
                false => error,
            });
        }
        writing.sequence = next;
        *self.state.write() = Arc::new(state);
        Ok(())
    }

    /// Writes a manifest that was not written yet, under a temporary name. Once `rest` has made
    /// everything else durable, it is renamed to its own name, which makes the directory a store.
    /// After an error there is no manifest, unless its name could neither be made durable nor taken
    /// back: then there may be one.
    pub(crate) fn publish<E: From<io::Error>>(
        &self,
        state: SuperState,
        rest: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let mut writing = self.writing.lock();
        if state.files.len() > FILES_MAX {
            return Err(io::Error::from(Shortage::Files).into());
        }
        let (path, begun) = (self.dir.join(MANIFESTS[0]), begun_manifest(&self.dir));
        self.files.write_new(&begun, &state.encode(1))?;
        // Synced before any file has its name, so that files found after a crash can be identified.
        self.files.sync_dir(&self.dir)?;
        rest()?;
        self.files.rename(&begun, &path)?;
        if let Err(error) = self.files.sync_dir(&self.dir) {
            let _ = self.files.rename(&path, &begun);
            return Err(error.into());
        }
        *writing = Writing::after(1);
        *self.state.write() = Arc::new(state);
        Ok(())
    }

    fn sync_name(&self, writing: &mut Writing) -> io::Result<()> {
        if writing.unnamed > 0 {
            self.files.sync_dir(&self.dir)?;
            writing.unnamed -= 1;
        }
        Ok(())
    }

    /// Whether the next open may find the copy with this sequence number, whose write failed. A
    /// torn copy is invalid, and the other one has the state known here.
    fn may_count(&self, path: &Path, sequence: u64) -> bool {
        match self.files.read(path, SUPER_BYTES_MAX) {
            Ok(bytes) => SuperState::decode(&bytes).is_ok_and(|(found, _)| found == sequence),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }
}

fn is_first_write(corruption: &Corruption) -> bool {
    corruption.path.ends_with(MANIFESTS[0])
}

/// Whether a temporary file is the one the manifest names: no file has the final name yet, or the
/// file that has it is a different one. That is a shorter form of it, as in a backup that was added
/// to, or another file: numbers of removed packs are reused.
pub(crate) fn is_meant(
    files: &dyn Files,
    dir: &Path,
    (unfinished, place): (&str, &str),
    named: &FileEntry,
) -> bool {
    match files.len_of(&dir.join(place)) {
        Ok(len) => {
            // If the header is unreadable, the length decides.
            let is_other = |name| {
                let uuid = uuid_of(files, &dir.join(name), named.kind);
                uuid.is_some_and(|uuid| uuid != named.uuid)
            };
            let is_long = len > named.length && named.state == FileState::Sealed;
            files.len_of(&dir.join(unfinished)).is_ok_and(|len| len == named.length)
                && (len < named.length || is_long || is_other(place))
                && !is_other(unfinished)
        }
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// The uuid in the header of a file, if it can be read.
fn uuid_of(files: &dyn Files, path: &Path, kind: FileKind) -> Option<[u8; 16]> {
    let magic = match kind {
        FileKind::Segment => Magic::Segment,
        FileKind::Pack => Magic::Pack,
    };
    let media = files.open_unmapped(path).ok()?;
    let head = media.view(0..media.len().min(FILE_HEADER_LEN as u64)).ok()?;
    FileHeader::decode(&head, magic).ok().map(|header| header.file)
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;
    use crate::media::faulty::{Faults, FaultyFiles};
    use crate::media::{Disk, is_full};
    use crate::options::MediaChoice;

    fn load_with(dir: &Path, faults: &Arc<Faults>) -> Result<Option<Manifest>, OpenError> {
        let disk = Disk::new(MediaChoice::Auto, dir);
        Manifest::load(dir, Arc::new(FaultyFiles::new(disk, faults)))
    }

    fn load(dir: &Path) -> Result<Option<Manifest>, OpenError> {
        Manifest::load(dir, Arc::new(Disk::new(MediaChoice::Auto, dir)))
    }

    #[test]
    fn copies_are_written_in_turn_and_a_torn_one_falls_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        assert!(load(path).unwrap().is_none());
        let files = Arc::new(Disk::new(MediaChoice::Auto, path));
        let state = SuperState { store: [7; 16], ..SuperState::default() };
        let manifest = Manifest::create(path, files, state).unwrap();
        assert!(path.join("super.a").exists() && !path.join("super.b").exists());
        manifest.update(|state| state.clean = true).unwrap();
        assert!(load(path).unwrap().unwrap().state().clean);
        let second = std::fs::read(path.join("super.b")).unwrap();
        for len in 0..second.len() {
            std::fs::write(path.join("super.b"), &second[..len]).unwrap();
            let loaded = load(path).unwrap().unwrap();
            assert!(!loaded.state().clean && loaded.state().store == [7; 16]);
        }
        let loaded = load(path).unwrap().unwrap();
        loaded.update(|state| state.clean = true).unwrap();
        assert!(load(path).unwrap().unwrap().state().clean);
    }

    #[test]
    fn a_store_is_not_clean_when_a_newer_copy_may_be_lost() {
        let clean = |dir: &Path| load(dir).unwrap().unwrap().state().clean;
        for backup in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let (a, b) = (dir.path().join("super.a"), dir.path().join("super.b"));
            let files = Arc::new(Disk::new(MediaChoice::Auto, dir.path()));
            let state = SuperState { clean: true, backup, ..SuperState::default() };
            let manifest = Manifest::create(dir.path(), files, state).unwrap();
            assert!(clean(dir.path()), "it is the first one");
            manifest.update(|state| state.clean = backup).unwrap();
            let newest = std::fs::read(&b).unwrap();
            for (at, tells) in [(0, false), (crate::format::file::FILE_HEADER_LEN, true)] {
                let mut damaged = newest.clone();
                damaged[at] ^= 1;
                std::fs::write(&b, &damaged).unwrap();
                assert_eq!(clean(dir.path()), backup, "header whole {tells}");
            }
            std::fs::write(&b, &newest).unwrap();
            let manifest = load(dir.path()).unwrap().unwrap();
            manifest.update(|state| state.clean = true).unwrap();
            manifest.update(|state| state.clean = true).unwrap();
            // Damage to the copy that is older by its own account hides nothing.
            let mut damaged = std::fs::read(&a).unwrap();
            damaged[crate::format::file::FILE_HEADER_LEN] ^= 1;
            std::fs::write(&a, &damaged).unwrap();
            assert!(clean(dir.path()));
            std::fs::remove_file(&a).unwrap();
            assert_eq!(clean(dir.path()), backup);
        }
    }

    #[test]
    fn a_copy_that_may_count_is_not_taken_for_one_that_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let faults = Faults::none();
        let disk = Disk::new(MediaChoice::Auto, dir.path());
        let files = Arc::new(FaultyFiles::new(disk, &faults));
        let manifest = Manifest::create(dir.path(), files, SuperState::default()).unwrap();
        // Half a copy, for lack of space: nothing has changed, and the update can be retried.
        faults.set(1, 1, Errno::NOSPC);
        let full = manifest.update(|state| state.journal = 1).unwrap_err();
        assert!(is_full(&full) && manifest.state().journal == 0);
        assert_eq!(load(dir.path()).unwrap().unwrap().state().journal, 0);
        manifest.update(|state| state.journal = 2).unwrap();
        let manifest = load_with(dir.path(), &faults).unwrap().unwrap();
        // A complete copy, whose name may not be durable.
        faults.set(2, 2, Errno::NOSPC);
        let failed = manifest.update(|state| state.journal = 3).unwrap_err();
        assert!(!is_full(&failed) && manifest.state().journal == 2, "{failed}");
        assert_eq!(load(dir.path()).unwrap().unwrap().state().journal, 3);
        assert!(manifest.update(|state| state.journal = 4).is_err());
        assert_eq!(load(dir.path()).unwrap().unwrap().state().journal, 3);
    }

    #[test]
    fn no_more_files_are_named_than_can_be_read_again() {
        let key = crate::log::SegmentKey { base: 1, generation: 0, uuid: [1; 16], salt: 1 };
        let line = crate::log::unmarked(&key);
        let dir = tempfile::tempdir().unwrap();
        let state = SuperState { files: vec![line; FILES_MAX], ..SuperState::default() };
        let files = Arc::new(Disk::new(MediaChoice::Auto, dir.path()));
        let manifest = Manifest::create(dir.path(), files, state).unwrap();
        for _ in 0..2 {
            let refused = manifest.update(|state| state.files.push(line)).unwrap_err();
            assert_eq!(Shortage::of(&refused), Some(Shortage::Files), "{refused}");
        }
        let named = |dir: &Path| load(dir).unwrap().unwrap().state().files.len();
        assert_eq!((named(dir.path()), manifest.state().files.len()), (FILES_MAX, FILES_MAX));
        manifest.update(|state| state.files.truncate(FILES_MAX - 1)).unwrap();
        manifest.update(|state| state.files.push(line)).unwrap();
        assert_eq!(named(dir.path()), FILES_MAX);
    }

    #[test]
    fn two_bad_copies_are_corruption_and_a_torn_first_one_is_no_store() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("super.a"), b"XSSUPER1").unwrap();
        assert!(load(dir.path()).unwrap().is_none());
        std::fs::write(dir.path().join("super.b"), b"XSSUPER1").unwrap();
        assert!(matches!(load(dir.path()), Err(OpenError::Corrupt(_))));
    }
}
