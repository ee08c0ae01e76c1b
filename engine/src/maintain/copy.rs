//! Copies the files of a store into another directory. Until the manifest of the copy names them,
//! they have names that end in `.tmp`. So at every moment the directory is either what it was or
//! what it will be, and the next attempt reuses what a crash left. If the directory was no store,
//! the manifest waits too, until all files have their names.

use std::collections::HashSet;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::MaintainError;
use super::finding::Progress;
use super::read_only::aside;
use super::snapshot::Snapshot;
use super::survey::Survey;
use crate::blob::{BadEntry, check_pack_file};
use crate::error::Corruption;
use crate::format::file::{FILE_HEADER_LEN, FileHeader, Magic};
use crate::format::super_file::{FileEntry, FileKind, FileState, SuperState};
use crate::manifest::Manifest;
use crate::media::Files;
use crate::names::{BLOB_DIR, LOG_DIR, unfinished};
use crate::planted::{Bug, is_planted};

/// Bytes copied at a time, after each of which the work can be stopped.
const PIECE_LEN: u64 = 1024 * 1024;
/// Bytes made durable at a time: a stop waits for no more.
const SYNC_LEN: u64 = 64 * PIECE_LEN;

/// Called as work proceeds; breaking stops it.
pub(super) type Watch<'a> = &'a mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>;

/// Asks whether to go on, with the bytes of the current file that are done.
type GoOn<'a> = &'a mut dyn FnMut(u64) -> Result<(), MaintainError>;

/// Counts of what was done with the files of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    pub(super) kept: u64,
    pub(super) linked: u64,
    pub(super) copied: u64,
    pub(super) bytes_copied: u64,
}

/// The source and the destination of a copy.
pub(super) struct Copier<'a> {
    pub(super) from: &'a Path,
    pub(super) from_files: &'a Arc<dyn Files>,
    pub(super) to: &'a Path,
    pub(super) to_files: &'a Arc<dyn Files>,
    /// Hard-link files that never change again, where that is possible.
    pub(super) link: bool,
    /// Compare copies with their CRC and hashes.
    pub(super) check: bool,
    /// The copy is an independent store, which may be opened as soon as it is one.
    pub(super) is_own: bool,
}

/// A file of the destination that may be the one to copy.
struct InPlace<'a> {
    /// Its entry in the manifest of the destination.
    entry: &'a FileEntry,
    /// It replaced a lost file, and may be truncated.
    may_be_cut: bool,
}

/// A file that need not be copied.
struct Kept {
    entry: FileEntry,
    /// It was sealed since it was copied.
    is_newly_sealed: bool,
}

/// Whether entries of two manifests describe the same bytes.
fn is_same(a: &FileEntry, b: &FileEntry) -> bool {
    let of = |file: &FileEntry| (file.key(), file.uuid, file.length);
    of(a) == of(b)
}

/// Whether the CRC of a source file is known and covers all its bytes.
fn is_known(file: &FileEntry) -> bool {
    file.state == FileState::Sealed && file.crc != 0
}

/// Why a directory did not become a store.
enum Unwritten {
    Manifest(io::Error),
    Rest(MaintainError),
}

impl From<io::Error> for Unwritten {
    fn from(error: io::Error) -> Self {
        Self::Manifest(error)
    }
}

impl Copier<'_> {
    /// Makes the copy match the snapshot, and its manifest `state`, except for the files.
    pub(super) fn run(
        &self,
        snapshot: &Snapshot,
        manifest: &Manifest,
        state: SuperState,
        watch: Watch<'_>,
        counts: &mut Counts,
    ) -> Result<(), MaintainError> {
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |error| MaintainError::io(what, &path, error)
        };
        for sub in [LOG_DIR, BLOB_DIR] {
            let dir = self.to.join(sub);
            self.to_files.create_dir(&dir).map_err(failed("make", &dir))?;
        }
        let before = manifest.state();
        let named = self.finish(&before)?;
        let (mut brought, mut sealed) = (Vec::new(), Vec::new());
        let mut files = Vec::with_capacity(snapshot.state.files.len());
        let bytes_total = snapshot.state.files.iter().map(|file| file.length).sum();
        let mut bytes = 0;
        for file in &snapshot.state.files {
            let path = snapshot.path_of(self.from, file);
            let go_on = &mut |done| {
                let bytes = bytes + done;
                match watch(&Progress { path: &path, bytes, bytes_total }) {
                    ControlFlow::Continue(()) => Ok(()),
                    ControlFlow::Break(()) => Err(MaintainError::Stopped),
                }
            };
            go_on(0)?;
            let there = before.files.iter().find(|old| is_same(old, file));
            let place = file.path_in(self.to);
            let kept = match there.filter(|_| self.is_in_place(file)) {
                Some(entry) => {
                    let there = InPlace { entry, may_be_cut: named.contains(&place) };
                    self.keep(&there, file, go_on)?
                }
                None => None,
            };
            files.push(match kept {
                Some(kept) => {
                    sealed.extend(kept.is_newly_sealed.then_some(*file));
                    counts.kept += 1;
                    kept.entry
                }
                None => {
                    let entry = self.bring(file, &path, counts, go_on)?;
                    brought.push(place);
                    sealed.extend(Some(*file).filter(is_known));
                    entry
                }
            });
            bytes += file.length;
        }
        self.sync_dirs()?;
        let next = SuperState { files, ..state };
        if self.is_own {
            let settle = || self.settle(&next, &brought, &sealed).map_err(Unwritten::Rest);
            return manifest.publish(next.clone(), settle).map_err(|error| match error {
                Unwritten::Rest(error) => error,
                Unwritten::Manifest(error) => failed("write the manifest in", self.to)(error),
            });
        }
        let update = manifest.update(|state| *state = next);
        update.map_err(failed("write the manifest in", self.to))?;
        self.settle(&manifest.state(), &brought, &sealed)
    }

    /// Renames temporary files that the manifest names, which an earlier attempt did not get to
    /// rename, as an open does: this attempt needs the temporary names. Returns the final names.
    fn finish(&self, before: &SuperState) -> Result<HashSet<PathBuf>, MaintainError> {
        let aside = aside(&**self.to_files, self.to, before);
        for (path, unfinished) in &aside {
            self.rename(unfinished, path)?;
        }
        if !aside.is_empty() {
            self.sync_dirs()?;
        }
        Ok(aside.into_keys().collect())
    }

    fn is_in_place(&self, file: &FileEntry) -> bool {
        let path = file.path_in(self.to);
        self.to_files.len_of(&path).is_ok_and(|len| len == file.length)
    }

    /// Keeps a file that is in place; `None` unless it is whole.
    fn keep(
        &self,
        there: &InPlace<'_>,
        file: &FileEntry,
        go_on: GoOn<'_>,
    ) -> Result<Option<Kept>, MaintainError> {
        let (place, old) = (file.path_in(self.to), there.entry);
        if old.state == file.state
            && (!there.may_be_cut || (old.crc != 0 && self.sync_if_whole(&place, old, go_on)?))
        {
            let newest_ms = old.newest_ms.max(file.newest_ms);
            let entry = FileEntry { newest_ms, ..*old };
            return Ok(Some(Kept { entry, is_newly_sealed: false }));
        }
        // It may have been sealed without further appends.
        let is_whole = file.crc != 0 && self.sync_if_whole(&place, file, go_on)?;
        Ok(is_whole.then_some(Kept { entry: *file, is_newly_sealed: true }))
    }

    /// Brings a file under its temporary name and returns its entry. If it is stopped, the next
    /// attempt writes that file again from its beginning.
    fn bring(
        &self,
        file: &FileEntry,
        from: &Path,
        counts: &mut Counts,
        go_on: GoOn<'_>,
    ) -> Result<FileEntry, MaintainError> {
        let sealed = file.state == FileState::Sealed;
        // The CRC of a file that was just unmarked is not known yet.
        let expected = is_known(file).then_some(file.crc);
        let to = unfinished(&file.path_in(self.to));
        let mut file = *file;
        // Existing derived files were made from a shorter form of the file.
        file.kind.derived().iter().for_each(|kind| self.remove(&file.path_of(self.to, kind)));
        if self.link && expected.is_some() {
            match self.to_files.link(from, &to) {
                Ok(()) => {
                    counts.linked += 1;
                    return Ok(file);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(MaintainError::io("link", from, error));
                }
                // Another filesystem, or one without hard links.
                Err(_) => {}
            }
        }
        if expected.is_some() && self.sync_if_whole(&to, &file, go_on)? {
            counts.kept += 1;
            return Ok(file);
        }
        let crc = self.copy(from, &to, file.length, go_on)?;
        if expected.is_some_and(|expected| expected != crc) {
            let corruption = Corruption::new(from, 0, "the file fails the CRC of its sealing");
            return Err(MaintainError::Corrupt(corruption));
        }
        self.check(&mut file, (from, &to), expected.is_none(), go_on)?;
        if sealed {
            file.crc = crc;
        }
        counts.copied += 1;
        counts.bytes_copied += file.length;
        Ok(file)
    }

    /// Checks what no CRC of the whole file covers: that it is the right file, the batches of a
    /// segment that was not sealed, and the hashes of blobs. Counts the blobs of a pack that was
    /// not sealed.
    fn check(
        &self,
        file: &mut FileEntry,
        (from, to): (&Path, &Path),
        was_open: bool,
        go_on: GoOn<'_>,
    ) -> Result<(), MaintainError> {
        let failed = |error| MaintainError::io("read", to, error);
        let media = self.to_files.open_sealed(to).map_err(failed)?;
        let head = media.view(0..media.len().min(FILE_HEADER_LEN as u64)).map_err(failed)?;
        let magic = match file.kind {
            FileKind::Segment => Magic::Segment,
            FileKind::Pack => Magic::Pack,
        };
        let corrupt = |position, what: &dyn std::fmt::Display| {
            MaintainError::Corrupt(Corruption::new(from, position, what))
        };
        let header = FileHeader::decode(&head, magic).map_err(|error| corrupt(0, &error))?;
        if !file.owns(&header) {
            return Err(corrupt(0, &"is not the file the manifest names"));
        }
        if file.kind == FileKind::Segment && was_open {
            let key = (header.salt, header.base);
            let mut survey = Survey::new(Arc::clone(&media), key, (file.length, true), false);
            let failed = |error| MaintainError::io("read", to, error);
            while let Some(stretch) = survey.next().map_err(failed)? {
                if let Some((position, what)) = stretch.bad {
                    return Err(corrupt(position, &what));
                }
                go_on(file.length)?;
            }
        }
        if file.kind == FileKind::Pack && (self.check || was_open) {
            let mut checked = Ok(());
            let blobs = check_pack_file(&media, header.salt, &mut |position, _, what| {
                checked = match what {
                    BadEntry::None => go_on(file.length),
                    bad => Err(corrupt(position, bad)),
                };
                if checked.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            let blobs = blobs.map_err(|error| MaintainError::io("read", to, error))?;
            checked?;
            if was_open {
                file.count = blobs;
            }
        }
        Ok(())
    }

    /// Makes an existing file durable if it is the complete sealed file; returns whether it is.
    fn sync_if_whole(
        &self,
        path: &Path,
        file: &FileEntry,
        go_on: GoOn<'_>,
    ) -> Result<bool, MaintainError> {
        let Ok(media) = self.to_files.open_scan(path) else { return Ok(false) };
        let mut crc = crc32fast::Hasher::new();
        let mut at = 0;
        while at < media.len() && media.len() == file.length {
            let upto = (at + PIECE_LEN).min(media.len());
            let Ok(bytes) = media.view(at..upto) else { return Ok(false) };
            crc.update(&bytes);
            at = upto;
            go_on(0)?;
        }
        // What was read may not be durable yet.
        Ok(crc.finalize() == file.crc && at == file.length && self.sync(path).is_ok())
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        self.to_files.open_append(path)?.sync()
    }

    /// Copies the first `len` bytes of a file, durably, and returns their CRC.
    fn copy(
        &self,
        from: &Path,
        to: &Path,
        len: u64,
        go_on: GoOn<'_>,
    ) -> Result<u32, MaintainError> {
        let source = self.from_files.open_scan(from);
        let source = source.map_err(|error| MaintainError::io("open", from, error))?;
        if source.len() < len {
            let what = "the file is shorter than the manifest says";
            return Err(MaintainError::Corrupt(Corruption::new(from, source.len(), what)));
        }
        let failed = |error| MaintainError::io("write", to, error);
        let target = self.to_files.create(to, len, false).map_err(failed)?;
        let mut crc = crc32fast::Hasher::new();
        let mut at = 0;
        while at < len {
            let upto = (at + PIECE_LEN).min(len);
            let bytes = source.view(at..upto);
            let bytes = bytes.map_err(|error| MaintainError::io("read", from, error))?;
            crc.update(&bytes);
            target.write_at(at, &bytes).map_err(failed)?;
            at = upto;
            if (at == len || at % SYNC_LEN == 0) && !is_planted(Bug::SkipBackupSync) {
                target.sync().map_err(failed)?;
            }
            go_on(at)?;
        }
        Ok(crc.finalize())
    }

    /// Copies the derived files of a sealed file. Missing ones are rebuilt. They are copied once
    /// the file has its final name: next to a shorter form of it they would list frames and
    /// removals that it does not have.
    fn bring_derived(&self, file: &FileEntry) {
        for kind in file.kind.derived() {
            let (from, to) = (file.path_of(self.from, kind), file.path_of(self.to, kind));
            if self.link && self.to_files.link(&from, &to).is_ok() {
                continue;
            }
            let Ok(len) = self.from_files.len_of(&from) else { continue };
            if self.copy(&from, &unfinished(&to), len, &mut |_| Ok(())).is_ok() {
                let _ = self.to_files.rename(&unfinished(&to), &to);
            }
        }
    }

    fn sync_dirs(&self) -> Result<(), MaintainError> {
        for sub in [LOG_DIR, BLOB_DIR] {
            let dir = self.to.join(sub);
            let synced = self.to_files.sync_dir(&dir);
            synced.map_err(|error| MaintainError::io("sync", &dir, error))?;
        }
        Ok(())
    }

    /// Renames the copied files to their final names and removes files that the manifest does not
    /// name, including leftovers of an interrupted attempt next to a kept file. If this is
    /// interrupted, an open completes it.
    fn settle(
        &self,
        state: &SuperState,
        brought: &[PathBuf],
        sealed: &[FileEntry],
    ) -> Result<(), MaintainError> {
        for path in brought {
            self.rename(&unfinished(path), path)?;
        }
        sealed.iter().for_each(|file| self.bring_derived(file));
        self.sync_dirs()?;
        for kind in [FileKind::Segment, FileKind::Pack] {
            let dir = self.to.join(kind.dir());
            let names = self.to_files.list(&dir);
            for name in names.map_err(|error| MaintainError::io("list", &dir, error))? {
                let stem = name.rsplit_once('.').map_or("", |(stem, _)| stem);
                let is_named =
                    state.files.iter().any(|file| file.kind == kind && stem == file.stem());
                if !is_named {
                    self.remove(&dir.join(&name));
                }
            }
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), MaintainError> {
        let renamed = self.to_files.rename(from, to);
        renamed.map_err(|error| MaintainError::io("rename", to, error))
    }

    fn remove(&self, path: &Path) {
        // If it remains, it takes space and does no harm; an open removes it.
        let _ = self.to_files.remove(path);
    }
}

/// Whether a file was replaced by another before it could be copied.
pub(super) fn has_gone(error: &MaintainError) -> bool {
    matches!(error, MaintainError::Io { error, .. } if error.kind() == io::ErrorKind::NotFound)
}
