//! The manifest in use: two copies written in turn, so that a crash in the middle of one leaves
//! the other. What it says is durable before anybody acts on it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::error::{Corruption, OpenError};
use crate::format::file::{FileHeader, FormatError, Magic};
use crate::format::super_file::{SUPER_BYTES_MAX, SuperState};
use crate::media::Files;

const NAMES: [&str; 2] = ["super.a", "super.b"];

/// How far the copies are.
#[derive(Debug)]
struct Writing {
    /// Sequence of the newest copy.
    sequence: u64,
    /// Copies whose names are not known to be durable: the process that made them may have died
    /// before it synced the directory.
    unnamed: usize,
}

impl Writing {
    const fn after(sequence: u64) -> Self {
        Self { sequence, unnamed: NAMES.len() }
    }
}

/// The manifest of an open store.
#[derive(Debug)]
pub(crate) struct Manifest {
    dir: PathBuf,
    files: Arc<dyn Files>,
    /// Held while a copy is written: changes are one after another.
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

    /// A manifest that is not on disk before its first change is. The directory holds none.
    pub(crate) fn unwritten(dir: &Path, files: Arc<dyn Files>, state: SuperState) -> Self {
        let writing = Mutex::new(Writing::after(0));
        let state = RwLock::new(Arc::new(state));
        Self { dir: dir.to_owned(), files, writing, state }
    }

    /// Reads the manifest, or nothing when the store was never made: neither copy exists, or the
    /// only one there is was cut off while the store was being made. A store that one copy calls
    /// clean is not when the other one is lost and may be newer: it may have been written since.
    pub(crate) fn load(dir: &Path, files: Arc<dyn Files>) -> Result<Option<Self>, OpenError> {
        let mut newest: Option<(u64, SuperState)> = None;
        let mut failure = None;
        let mut found = 0;
        let mut lost = 0;
        for name in NAMES {
            let path = dir.join(name);
            let bytes = match files.read(&path, SUPER_BYTES_MAX) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(OpenError::io("read", &path, error)),
            };
            found += 1;
            match SuperState::decode(&bytes) {
                Ok((sequence, state)) => {
                    if newest.as_ref().is_none_or(|(best, _)| sequence > *best) {
                        newest = Some((sequence, state));
                    }
                }
                // A newer version is refused even when the other copy is ours: half of an upgrade.
                Err(FormatError::Version { found }) => {
                    return Err(OpenError::Version { path, found });
                }
                Err(error) => {
                    let header = FileHeader::decode(&bytes, Magic::Super);
                    lost = header.map_or(u64::MAX, |header| header.base);
                    failure = Some(Corruption::new(path, 0, error));
                }
            }
        }
        match (newest, failure) {
            (Some((sequence, mut state)), _) => {
                // A second write makes the second copy, and it stays.
                let is_alone = found == 1 && sequence > 1;
                // A backup is never written but by who adds to it.
                state.clean &= state.backup || !(is_alone || lost > sequence);
                Ok(Some(Self {
                    dir: dir.to_owned(),
                    files,
                    writing: Mutex::new(Writing::after(sequence)),
                    state: RwLock::new(Arc::new(state)),
                }))
            }
            // The first copy is written after everything else of a new store. Cut off, it is
            // alone, and nothing was ever appended.
            (None, Some(corruption)) if found > 1 => Err(OpenError::Corrupt(corruption)),
            (None, Some(corruption)) if !is_first_write(&corruption) => {
                Err(OpenError::Corrupt(corruption))
            }
            (None, _) => Ok(None),
        }
    }

    /// What the manifest says now.
    pub(crate) fn state(&self) -> Arc<SuperState> {
        Arc::clone(&self.state.read())
    }

    /// Changes the manifest; durable when it returns. After an error it is as before, in memory and
    /// for the next open, unless the copy was complete and only its sync failed.
    pub(crate) fn update(&self, change: impl FnOnce(&mut SuperState)) -> io::Result<()> {
        let mut writing = self.writing.lock();
        let mut state = SuperState::clone(&self.state.read());
        change(&mut state);
        let next = writing.sequence + 1;
        // Odd sequences go to the first copy: a new store begins with super.a.
        let path = self.dir.join(NAMES[usize::from(next.is_multiple_of(2))]);
        self.files.write_new(&path, &state.encode(next))?;
        if writing.unnamed > 0 {
            self.files.sync_dir(&self.dir)?;
            writing.unnamed -= 1;
        }
        writing.sequence = next;
        *self.state.write() = Arc::new(state);
        Ok(())
    }
}

fn is_first_write(corruption: &Corruption) -> bool {
    corruption.path.ends_with(NAMES[0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::Disk;
    use crate::options::MediaChoice;

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
            // What says of itself that it is the older one hides nothing.
            let mut damaged = std::fs::read(&a).unwrap();
            damaged[crate::format::file::FILE_HEADER_LEN] ^= 1;
            std::fs::write(&a, &damaged).unwrap();
            assert!(clean(dir.path()));
            std::fs::remove_file(&a).unwrap();
            assert_eq!(clean(dir.path()), backup);
        }
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
