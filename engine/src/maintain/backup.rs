//! Backup, fork and restore: copies of a store in use, or of one that is closed on disk.
//!
//! A backup keeps the uuid of its store, can be added to, and is never written to by appends. A
//! fork or a restored store is a store of its own, with its own uuid and with epochs that its
//! source never uses, so that no resume point of the source's later life is valid for it.

use std::ops::ControlFlow;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::copy::{Copier, Counts, has_gone};
use super::error::MaintainError;
use super::finding::Progress;
use super::snapshot::Snapshot;
use crate::clock::{Clock as _, SystemClock};
use crate::entropy::Random;
use crate::entropy::SystemEntropy;
use crate::error::OpenError;
use crate::format::super_file::{EpochStart, SuperState};
use crate::limits::EPOCHS_MAX;
use crate::manifest::Manifest;
use crate::media::{Disk, Files, StoreLock};
use crate::names::{
    BLOB_DIR, DEAD, KEYS, LOCK, LOG_DIR, MANIFESTS, PACK_INDEX, SPARSE, TOPICS, UNFINISHED,
    begun_manifest, is_store,
};
use crate::options::MediaChoice;
use crate::recovery;
use crate::store::{Inner, Store};
use crate::value::StoreUuid;

/// Attempts at a copy whose files were replaced meanwhile.
const ATTEMPTS: usize = 16;
/// Minimum distance between a store's epochs and those of its forks.
const EPOCH_GAP: u64 = 1 << 16;

/// How a store is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CopyOptions {
    /// Hard-link files that never change again instead of copying them, where the filesystem
    /// supports that. It takes no time and no space; but damage to the bytes on disk then affects
    /// both.
    pub link: bool,
    /// Compare every copied blob with its hash. Files are compared with their CRC in any case.
    pub check_blobs: bool,
}

impl CopyOptions {
    /// Options for a backup: everything is copied and checked.
    #[must_use]
    pub const fn copies() -> Self {
        Self { link: false, check_blobs: true }
    }

    /// Options for a sandbox: everything that can be linked is linked, and nothing is read for
    /// checks.
    #[must_use]
    pub const fn links() -> Self {
        Self { link: true, check_blobs: false }
    }
}

/// What was copied.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CopyReport {
    /// Uuid of the copy; a backup has that of its store.
    pub uuid: StoreUuid,
    /// Uuid of the store it comes from.
    pub source: StoreUuid,
    /// Offset of the next frame.
    pub head: u64,
    /// Files that existed already.
    pub files_kept: u64,
    /// Files that were hard-linked.
    pub files_linked: u64,
    /// Files that were copied.
    pub files_copied: u64,
    /// Bytes that were copied.
    pub bytes_copied: u64,
    /// Bytes of all segments and packs of the copy.
    pub bytes: u64,
}

/// The kind of copy.
enum Role {
    Backup,
    Store,
}

impl Store {
    /// Copies the store as it is now into `dest`, which is empty, does not exist, or holds an
    /// earlier backup of this store: then only what is new is copied. Appends continue meanwhile.
    /// `watch` is called for each file and each MiB, and can stop the work by breaking.
    ///
    /// The backup opens read-only. [`restore`] makes a writable store from it.
    ///
    /// # Errors
    /// [`MaintainError`]; the destination is then unchanged, or complete except for final renames.
    /// The next attempt reuses what this one has copied.
    pub fn backup(
        &self,
        dest: impl AsRef<Path>,
        options: CopyOptions,
        watch: &mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>,
    ) -> Result<CopyReport, MaintainError> {
        let dest = dest.as_ref();
        check_apart(&self.inner.env.dir, dest)?;
        let to_files = target_files(dest)?;
        self.inner.copy_to(dest, &to_files, &Role::Backup, options, watch)
    }

    /// Makes an independent store in `dest`, which is empty or does not exist, with the present
    /// content of this one.
    ///
    /// # Errors
    /// [`MaintainError`]; the destination then holds no store. The only exception: if the manifest
    /// that makes it a store could be neither made durable nor removed again, it may hold one,
    /// which is complete.
    pub fn fork(&self, dest: impl AsRef<Path>) -> Result<CopyReport, MaintainError> {
        let dest = dest.as_ref();
        check_apart(&self.inner.env.dir, dest)?;
        let to_files = target_files(dest)?;
        let watch = &mut |_: &Progress<'_>| ControlFlow::Continue(());
        self.inner.copy_to(dest, &to_files, &Role::Store, CopyOptions::links(), watch)
    }
}

/// Makes an independent store in `dest`, which is empty or does not exist, from a backup or a store
/// in `from`, which must not be open.
///
/// # Errors
/// [`MaintainError::NotClosed`] when `from` was not closed cleanly; other variants name other
/// obstacles. The destination then holds no store, with the exception described at [`Store::fork`].
pub fn restore(
    from: impl AsRef<Path>,
    dest: impl AsRef<Path>,
    options: CopyOptions,
    watch: &mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>,
) -> Result<CopyReport, MaintainError> {
    let (from, dest) = (from.as_ref(), dest.as_ref());
    let from_files: Arc<dyn Files> = Arc::new(Disk::new(MediaChoice::Positioned, from));
    if !is_store(from) {
        return Err(MaintainError::NoStore { dir: from.to_owned() });
    }
    check_apart(from, dest)?;
    let _lock = lock_to_read(from)?;
    let to_files = target_files(dest)?;
    let snapshot = Snapshot::of_closed(from, &from_files)?;
    let _dest_lock = lock(dest)?;
    let ends = (from, &from_files, dest, &to_files);
    copy(&Copier::new(ends, &Role::Store, options), &snapshot, &Role::Store, watch)
}

/// Takes the lock of a store.
pub(super) fn lock(dir: &Path) -> Result<StoreLock, OpenError> {
    recovery::lock(dir, SystemClock.now_ms())
}

/// The lock of a store that is only read; `None` where not even a lock file can be written.
pub(super) fn lock_to_read(dir: &Path) -> Result<Option<StoreLock>, OpenError> {
    use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    match lock(dir) {
        Err(OpenError::Lock { error, .. })
            if matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem) =>
        {
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// Refuses a destination that is the store, lies within it, or contains it, after resolving links.
pub(super) fn check_apart(store: &Path, dest: &Path) -> Result<(), MaintainError> {
    let resolve =
        |path: &Path| resolved(path).map_err(|error| MaintainError::io("resolve", path, error));
    let (store, dest) = (resolve(store)?, resolve(dest)?);
    match store.starts_with(&dest) || dest.starts_with(&store) {
        true => Err(MaintainError::Nested { store, dest }),
        false => Ok(()),
    }
}

/// The absolute path, with links resolved as far as it exists.
fn resolved(path: &Path) -> std::io::Result<PathBuf> {
    let whole = std::path::absolute(path)?;
    let mut there = PathBuf::new();
    for part in whole.components() {
        match part {
            Component::ParentDir => {
                there.pop();
            }
            part => there.push(part),
        }
        match there.canonicalize() {
            Ok(resolved) => there = resolved,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(there)
}

/// The files of a directory, which is created if necessary. They are written with `pwrite`: copies
/// are never read through a map, and their filesystem may not support one.
pub(super) fn target_files(dest: &Path) -> Result<Arc<dyn Files>, MaintainError> {
    let files: Arc<dyn Files> = Arc::new(Disk::new(MediaChoice::Positioned, dest));
    files.create_dir(dest).map_err(|error| MaintainError::io("make", dest, error))?;
    Ok(files)
}

impl Inner {
    /// A backup through a test's files.
    #[cfg(test)]
    pub(crate) fn backup_on(
        &self,
        dest: &Path,
        to_files: &Arc<dyn Files>,
        options: CopyOptions,
        watch: &mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>,
    ) -> Result<CopyReport, MaintainError> {
        self.copy_to(dest, to_files, &Role::Backup, options, watch)
    }

    /// A fork through a test's files.
    #[cfg(test)]
    pub(crate) fn fork_on(
        &self,
        dest: &Path,
        to_files: &Arc<dyn Files>,
        options: CopyOptions,
    ) -> Result<CopyReport, MaintainError> {
        let watch = &mut |_: &Progress<'_>| ControlFlow::Continue(());
        self.copy_to(dest, to_files, &Role::Store, options, watch)
    }

    fn copy_to(
        &self,
        dest: &Path,
        to_files: &Arc<dyn Files>,
        role: &Role,
        options: CopyOptions,
        watch: &mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>,
    ) -> Result<CopyReport, MaintainError> {
        let _lock = lock(dest)?;
        // Segments are not rewritten meanwhile, and replaced packs stay on disk.
        let _still = self.compaction.hold();
        let _hold = self.env.hold();
        let watch = &mut |progress: &Progress<'_>| match self.closed.load(Ordering::Acquire) {
            true => ControlFlow::Break(()),
            false => watch(progress),
        };
        let ends = (&*self.env.dir, &self.env.files, dest, to_files);
        let copier = Copier::new(ends, role, options);
        for attempt in 0..ATTEMPTS {
            let snapshot = Snapshot::of_durable(self)?;
            match copy(&copier, &snapshot, role, watch) {
                Err(_) if self.closed.load(Ordering::Acquire) => return Err(MaintainError::Closed),
                // A file was replaced before it was opened. The next attempt reuses what was
                // copied.
                Err(error) if has_gone(&error) => {
                    if let Some(reason) = &self.read_only {
                        // Nothing is replaced in a read-only store: the file is missing.
                        return Err(MaintainError::ReadOnly(reason.clone()));
                    }
                    std::thread::sleep(Duration::from_millis(1 << attempt.min(9)));
                }
                done => return done,
            }
        }
        Err(MaintainError::Changing)
    }
}

/// The source directory and its files, and the destination and its files.
type Ends<'a> = (&'a Path, &'a Arc<dyn Files>, &'a Path, &'a Arc<dyn Files>);

impl<'a> Copier<'a> {
    fn new((from, from_files, to, to_files): Ends<'a>, role: &Role, options: CopyOptions) -> Self {
        let (link, check, is_own) =
            (options.link, options.check_blobs, matches!(role, Role::Store));
        Self { from, from_files, to, to_files, link, check, is_own }
    }
}

/// Makes `copier.to` a copy of the snapshot.
fn copy(
    copier: &Copier<'_>,
    snapshot: &Snapshot,
    role: &Role,
    watch: &mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>,
) -> Result<CopyReport, MaintainError> {
    let dir = copier.to;
    let source = snapshot.state.store;
    let loaded = Manifest::load(dir, Arc::clone(copier.to_files))?;
    let (manifest, state) = match (role, loaded) {
        (Role::Backup, Some(manifest)) => {
            let there = manifest.state();
            if !there.backup || there.store != source {
                return Err(MaintainError::OtherStore { dir: dir.to_owned() });
            }
            (manifest, SuperState { backup: true, ..snapshot.state.clone() })
        }
        (Role::Store, Some(_)) => return Err(MaintainError::NotEmpty { dir: dir.to_owned() }),
        (role, None) => {
            check_empty(dir, copier.to_files)?;
            let state = match role {
                Role::Backup => SuperState { backup: true, ..snapshot.state.clone() },
                Role::Store => own(snapshot)?,
            };
            let blank = SuperState { store: state.store, ..SuperState::default() };
            (Manifest::unwritten(dir, Arc::clone(copier.to_files), blank), state)
        }
    };
    let uuid = StoreUuid::from_bytes(state.store);
    let mut counts = Counts::default();
    copier.run(snapshot, &manifest, state, watch, &mut counts)?;
    Ok(CopyReport {
        uuid,
        source: StoreUuid::from_bytes(source),
        head: snapshot.head,
        files_kept: counts.kept,
        files_linked: counts.linked,
        files_copied: counts.copied,
        bytes_copied: counts.bytes_copied,
        bytes: manifest.state().files.iter().map(|file| file.length).sum(),
    })
}

/// The manifest of an independent store: a new uuid, and its own epochs from here on.
fn own(snapshot: &Snapshot) -> Result<SuperState, MaintainError> {
    let random = Random::new(&SystemEntropy);
    let random = random
        .map_err(|error| MaintainError::io("seed ids from", "/dev/urandom".as_ref(), error))?;
    let mut state = snapshot.state.clone();
    (state.parent, state.store) = (state.store, random.bytes());
    state.backup = false;
    jump(&mut state, snapshot.head, &random);
    Ok(state)
}

/// Ends the epochs of the source at `head`, and adds one with a number that its later ones will not
/// have.
pub(super) fn jump(state: &mut SuperState, head: u64, random: &Random) {
    let last = state.epochs.last().copied();
    let gaps = u64::from(u32::from_le_bytes(random.bytes()) >> 4);
    state.epochs.push(EpochStart {
        epoch: last.map_or(0, |last| last.epoch) + EPOCH_GAP * (1 + gaps),
        first_offset: head,
        first_seq: last.map_or(0, |last| last.first_seq),
    });
    let over = state.epochs.len().saturating_sub(EPOCHS_MAX);
    state.epochs.drain(..over);
}

/// Refuses a directory that holds anything except the leftovers of an earlier attempt.
pub(super) fn check_empty(dir: &Path, files: &Arc<dyn Files>) -> Result<(), MaintainError> {
    let begun = begun_manifest(dir);
    if files.len_of(&begun).is_ok() {
        for sub in [LOG_DIR, BLOB_DIR].map(|sub| dir.join(sub)) {
            for name in files.list(&sub).unwrap_or_default() {
                let path = sub.join(name);
                files.remove(&path).map_err(|error| MaintainError::io("remove", &path, error))?;
            }
            let synced = files.sync_dir(&sub);
            synced.map_err(|error| MaintainError::io("sync", &sub, error))?;
        }
        files.remove(&begun).map_err(|error| MaintainError::io("remove", &begun, error))?;
    }
    let list = |dir: &Path| match files.list(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other.map_err(|error| MaintainError::io("list", dir, error)),
    };
    let known = [LOCK, LOG_DIR, BLOB_DIR, MANIFESTS[0]];
    let mut strange = list(dir)?.iter().any(|name| !known.contains(&name.as_str()));
    for sub in [LOG_DIR, BLOB_DIR] {
        let left = |name: &String| {
            [UNFINISHED, SPARSE, TOPICS, KEYS, DEAD, PACK_INDEX]
                .iter()
                .any(|end| name.ends_with(end))
        };
        strange |= list(&dir.join(sub))?.iter().any(|name| !left(name));
    }
    match strange {
        true => Err(MaintainError::NotEmpty { dir: dir.to_owned() }),
        false => Ok(()),
    }
}
