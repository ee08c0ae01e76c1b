//! Files of the real filesystem.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::ops::Range;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::mapped::Mapped;
use super::positioned::Positioned;
use super::room::{Room, Take};
use super::{Files, Media, owner};
use crate::options::MediaChoice;
use crate::sys;

/// The real filesystem.
#[derive(Debug)]
pub(crate) struct Disk {
    mapped: bool,
    /// Allocate all space of a file when it is created or opened.
    whole: bool,
    /// Directories kept open.
    held: Mutex<Vec<(PathBuf, Arc<File>)>>,
}

impl Disk {
    /// Decides how files in `dir` are written. `dir` exists.
    pub(crate) fn new(choice: MediaChoice, dir: &Path) -> Self {
        let mapped = match choice {
            MediaChoice::Auto => sys::is_mappable(dir),
            MediaChoice::Mapped => true,
            MediaChoice::Positioned => false,
        };
        Self { mapped, whole: sys::is_memory(dir), held: Mutex::default() }
    }

    fn append(&self, file: File, room: Room, path: &Path) -> io::Result<Arc<dyn Media>> {
        Ok(match self.mapped {
            true => Arc::new(Mapped::append(file, room, path)?),
            false => Arc::new(Positioned::append(file, room, path)),
        })
    }
}

/// Opens a file for writing, truncated.
fn anew(path: &Path) -> io::Result<File> {
    owner::open_or_make(path, owner::options().truncate(true))
}

impl Files for Disk {
    fn create(&self, path: &Path, len: u64, zero: bool) -> io::Result<Arc<dyn Media>> {
        // Unlinked, not truncated: readers of the old file keep it.
        self.remove(path)?;
        let file = owner::make(path)?;
        let take = match (zero, self.whole) {
            (true, _) => Take::Zeros,
            (false, true) => Take::All,
            (false, false) => Take::Step,
        };
        match Room::begin(&file, len, take).and_then(|room| file.sync_all().map(|()| room)) {
            Ok(room) => self.append(file, room, path),
            Err(error) => {
                // Part of the space may have been allocated; on a full disk this frees it. The
                // error to report is that the file was not created.
                let _ = self.remove(path);
                Err(error)
            }
        }
    }

    fn open_append(&self, path: &Path) -> io::Result<Arc<dyn Media>> {
        let file = owner::options().open(path)?;
        // No part is known to have space: a copy of the store may have left holes.
        let room = Room::new(file.metadata()?.len(), 0);
        if self.whole && room.reserve(&file, room.len()).is_err() {
            return Ok(Arc::new(Positioned::append(file, room, path)));
        }
        self.append(file, room, path)
    }

    fn open_sealed(&self, path: &Path) -> io::Result<Arc<dyn Media>> {
        // Reading through a map is sound on every filesystem: the file does not change.
        Ok(Arc::new(Mapped::sealed(&File::open(path)?, path)?))
    }

    fn open_scan(&self, path: &Path) -> io::Result<Arc<dyn Media>> {
        let file = File::open(path)?;
        sys::drop_cache(&file, 0..u64::MAX)?;
        Ok(Arc::new(Positioned::sealed(file, path)?))
    }

    fn open_unmapped(&self, path: &Path) -> io::Result<Arc<dyn Media>> {
        Ok(Arc::new(Positioned::sealed(File::open(path)?, path)?))
    }

    fn forget(&self, path: &Path, part: Range<u64>) -> io::Result<()> {
        sys::drop_cache(&File::open(path)?, part)
    }

    fn write_new(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = anew(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    fn write_stream(
        &self,
        path: &Path,
        fill: &mut dyn FnMut(&mut dyn io::Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut file = anew(path)?;
        fill(&mut file)?;
        file.sync_all()
    }

    fn read(&self, path: &Path, max: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > max {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(bytes)
    }

    fn len_of(&self, path: &Path) -> io::Result<u64> {
        fs::metadata(path).map(|metadata| metadata.len())
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.remove(to)?;
        fs::hard_link(from, to)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn cut(&self, path: &Path, len: u64) -> io::Result<()> {
        let file = owner::options().open(path)?;
        file.set_len(len)?;
        file.sync_all()
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let held =
            self.held.lock().iter().find(|(held, _)| held == dir).map(|(_, dir)| dir.clone());
        match held {
            Some(dir) => dir.sync_all(),
            None => File::open(dir)?.sync_all(),
        }
    }

    fn hold_dir(&self, dir: &Path) -> io::Result<()> {
        let file = Arc::new(File::open(dir)?);
        let mut held = self.held.lock();
        held.retain(|(other, _)| other != dir);
        held.push((dir.to_owned(), file));
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
        let made = match fs::read_dir(dir).map(|mut names| names.next().is_some()) {
            // A non-empty directory was completed by an earlier call.
            Ok(true) => return Ok(()),
            // Its creator may have been killed before the name was durable.
            Ok(false) => {
                owner::give_empty(dir);
                false
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                parent.map_or(Ok(()), |parent| self.create_dir(parent))?;
                match DirBuilder::new().mode(0o700).create(dir) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    made => made?,
                }
                owner::give_empty(dir);
                true
            }
            // A directory that may be used but not listed exists.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
            Err(error) => return Err(error),
        };
        match self.sync_dir(parent.unwrap_or_else(|| Path::new("."))) {
            // A directory that another user made, in one that we may not open.
            Err(error) if !made && error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            synced => synced,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn space_is_taken_before_it_is_written_and_not_much_earlier() {
        const LEN: u64 = 64 << 20;
        let dir = tempfile::tempdir().unwrap();
        if sys::is_memory(dir.path()) {
            // A memory filesystem allocates everything at once.
            return;
        }
        for choice in [MediaChoice::Mapped, MediaChoice::Positioned] {
            let path = dir.path().join(format!("{choice:?}"));
            let taken = || fs::metadata(&path).unwrap().blocks() * 512;
            let disk = Disk::new(choice, dir.path());
            let media = disk.create(&path, LEN, false).unwrap();
            assert_eq!((media.len(), fs::metadata(&path).unwrap().len()), (LEN, LEN));
            let mut least = 0;
            for upto in (0..=LEN).step_by(300_000) {
                media.reserve(upto).unwrap();
                assert!(taken() >= upto.max(least), "{upto}");
                assert!(taken() <= upto + (11 << 20) && taken() <= upto * 2 + (5 << 20));
                least = taken();
            }
            media.reserve(LEN).unwrap();
            let beyond = media.reserve(LEN + 1).unwrap_err();
            assert_eq!(beyond.kind(), io::ErrorKind::InvalidInput, "{beyond}");
            assert!(taken() >= LEN);
            let media = disk.create(&path, LEN, true).unwrap();
            assert!(taken() >= LEN && media.len() == LEN);
        }
    }

    #[test]
    fn a_directory_that_is_held_is_not_opened_to_be_synced() {
        let dir = tempfile::tempdir().unwrap();
        let (held, elsewhere) = (dir.path().join("held"), dir.path().join("elsewhere"));
        let disk = Disk::new(MediaChoice::Auto, dir.path());
        disk.create_dir(&held).unwrap();
        disk.hold_dir(&held).unwrap();
        fs::rename(&held, &elsewhere).unwrap();
        assert!(File::open(&held).is_err());
        disk.sync_dir(&held).unwrap();
        disk.sync_dir(&elsewhere).unwrap();
    }

    #[test]
    fn holes_get_their_space_before_they_are_written() {
        const LEN: u64 = 256 * 1024;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let disk = Disk::new(MediaChoice::Mapped, dir.path());
        fs::write(&path, b"what is there stays").unwrap();
        owner::options().open(&path).unwrap().set_len(LEN).unwrap();
        assert!(fs::metadata(&path).unwrap().blocks() * 512 < LEN);
        let media = disk.open_append(&path).unwrap();
        media.write_at(LEN - 1, b"x").unwrap();
        assert!(fs::metadata(&path).unwrap().blocks() * 512 >= LEN);
        media.publish(LEN);
        assert!(media.view(0..LEN).unwrap().starts_with(b"what is there stays\0"));
    }
}
