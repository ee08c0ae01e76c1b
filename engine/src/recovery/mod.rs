//! Opening a store: which files there are, how far the log is whole, what to do about the rest. See
//! docs/recovery.md for the table of what is found and what is done.
//!
//! D is the highest `durable_upto` of any header that verifies: all batches below it were
//! acknowledged as durable or could have been. A bad batch below D is damage: nothing is cut, the
//! store opens for reading. A bad batch at or above D is the end of the log: a write that a crash
//! tore, and whatever lies behind it was never acknowledged either.

mod files;
mod keys;
mod opening;
pub(crate) mod replay;
mod report;
mod rewrite;
pub(crate) mod scan;

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::blob::{BlobError, Blobs};
use crate::entropy::Random;
use crate::env::Env;
use crate::error::{OpenError, ReadOnlyReason, Shortage};
use crate::format::super_file::{FileEntry, SuperState};
use crate::holds::Holds;
use crate::journal::{self, Kept};
use crate::log::{Active, OpenFiles, Segment, SegmentKey};
use crate::manifest::Manifest;
use crate::media::{Disk, Files, LockError, Media, StoreLock, is_full, leads_away};
use crate::names::{self, BLOB_DIR, LOCK, LOG_DIR, SEGMENT};
use crate::options::StoreOptions;
use crate::store::Inner;
pub(crate) use files::{NOT_NAMED, is_meant, segments_to_read};
pub(crate) use keys::keys_of;
use opening::Opening;
pub use report::{Cut, RecoveryReport};
pub(crate) use rewrite::Plan;
use scan::Scanned;

/// An unmarked segment under examination.
#[derive(Debug)]
struct Examined {
    file: FileEntry,
    key: SegmentKey,
    media: Arc<dyn Media>,
    scanned: Scanned,
}

/// The log as it will be used.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    /// Those that were not sealed when the store was opened.
    pub(crate) segments: Vec<Arc<Segment>>,
    /// Of those the ones that are sealed now; their derived files are not written yet.
    pub(crate) sealed_now: Vec<Arc<Segment>>,
    pub(crate) active: Option<Active>,
    /// The disk was too full to make the log fit to be written.
    deferred: Option<Plan>,
    next_seq: u64,
    next_offset: u64,
    durable_upto: u64,
}

impl Recovered {
    fn push_active(&mut self, active: Active) {
        self.segments.push(Arc::clone(&active.segment));
        self.active = Some(active);
    }
}

/// Opens the store in `dir`, on the real filesystem.
pub(crate) fn open(dir: &Path, options: StoreOptions) -> Result<Inner, OpenError> {
    options.check()?;
    let made = |error| OpenError::io("make", dir, error);
    // The directory must exist before its filesystem can be told.
    Disk::new(options.media, dir).create_dir(dir).map_err(made)?;
    let files: Arc<dyn Files> = Arc::new(Disk::new(options.media, dir));
    open_with(dir, options, files)
}

/// Opens the store in `dir`, which exists, through `files`.
pub(crate) fn open_with(
    dir: &Path,
    options: StoreOptions,
    files: Arc<dyn Files>,
) -> Result<Inner, OpenError> {
    let lock = lock(dir, options.clock.now_ms())?;
    let env = Arc::new(environment(dir, options, files)?);
    hold_dirs(&env)?;
    let clean = env.manifest.state().clean;
    let journal = match clean {
        // It was removed, or holds nothing that is not in its place.
        true => Kept { there: env.files.len_of(&env.journal_path()).is_ok(), ..Kept::default() },
        false => journal::replay(&env).map_err(|error| not_put_back(&env, error))?,
    };
    let blobs = Blobs::open(Arc::clone(&env), clean).map_err(|error| match error {
        BlobError::Corrupt(corruption) => OpenError::Corrupt(corruption),
        BlobError::Io { path, error } => OpenError::io("open", &path, error),
        error => OpenError::io("open", &env.blob_dir(), error.into()),
    })?;
    let open_files = Arc::new(OpenFiles::new(Arc::clone(&env.files)));
    let found = files::look(&env, &open_files)?;
    let backup = env.manifest.state().backup.then_some(ReadOnlyReason::Backup);
    let lost = |what| ReadOnlyReason::Files { path: env.journal_path(), what };
    let trouble = journal.trouble.map(lost).or_else(|| blobs.trouble().cloned()).or(backup);
    let report = RecoveryReport { clean, journal_groups: journal.groups, ..Default::default() };
    let mut opening = Opening { env, blobs, open_files, clean, report, journal: journal.there };
    opening.report.blobs_dropped = opening.blobs.dropped().to_vec();
    let inner = opening.finish(found, trouble, lock)?;
    if inner.read_only.is_none() {
        // One that was not finished; one that stays is in nobody's way.
        let _ = inner.env.files.remove(&journal::unfinished(&inner.env));
    }
    Ok(inner)
}

/// Keeps the directories of the store open as long as it is. One that cannot be opened for another
/// reason than want of a descriptor may be missing: what that means is found out later.
fn hold_dirs(env: &Env) -> Result<(), OpenError> {
    for dir in [env.dir.clone(), env.log_dir(), env.blob_dir()] {
        match env.files.hold_dir(&dir) {
            Err(error) if is_full(&error) => return Err(OpenError::io("open", &dir, error)),
            _ => {}
        }
    }
    // Whoever owns the store may have put one there since the lock was taken.
    check_links(&env.dir)
}

/// Refuses a store one of whose directories is a link that root must not follow.
fn check_links(dir: &Path) -> Result<(), OpenError> {
    let mut subs = [LOG_DIR, BLOB_DIR].map(|sub| dir.join(sub)).into_iter();
    match subs.find(|sub| leads_away(sub)) {
        Some(path) => Err(OpenError::Link { path }),
        None => Ok(()),
    }
}

/// Why the groups of the journal are not in their places. Where a filesystem copies what is written
/// over, that takes space; done again it ends in the same.
fn not_put_back(env: &Env, error: io::Error) -> OpenError {
    let path = env.journal_path();
    match Shortage::of(&error) {
        Some(Shortage::Space) => OpenError::StorageFull { path },
        _ => OpenError::io("put back the groups of", &path, error),
    }
}

/// Takes the lock of the store in `dir`, which comes before anything else that is done there.
pub(crate) fn lock(dir: &Path, now_ms: u64) -> Result<StoreLock, OpenError> {
    check_links(dir)?;
    let path = dir.join(LOCK);
    StoreLock::take(&path, now_ms).map_err(|error| match error {
        LockError::Held { pid, since_ms } => {
            OpenError::Locked { dir: dir.to_owned(), pid, since: since_ms }
        }
        LockError::Io(error) => OpenError::io("lock", &path, error),
    })
}

/// The manifest, made if there is no store yet, and all that goes with it.
fn environment(dir: &Path, options: StoreOptions, files: Arc<dyn Files>) -> Result<Env, OpenError> {
    let random = Random::new(&*options.entropy)
        .map_err(|error| OpenError::io("seed ids for", dir, error))?;
    let manifest = match Manifest::load(dir, Arc::clone(&files))? {
        Some(manifest) => manifest,
        None => {
            let made = |error| OpenError::io("make a store in", dir, error);
            let log = files.list(&dir.join(LOG_DIR)).unwrap_or_default();
            if log.iter().any(|name| names::parse(name, &[SEGMENT]).is_some()) {
                return Err(OpenError::NoManifest { dir: dir.to_owned() });
            }
            for sub in [LOG_DIR, BLOB_DIR] {
                files.create_dir(&dir.join(sub)).map_err(made)?;
            }
            // A store is what has a manifest, so that comes last. Nothing is in it: it is clean.
            let store = random.bytes();
            let state = SuperState { store, clean: true, ..SuperState::default() };
            Manifest::create(dir, Arc::clone(&files), state).map_err(made)?
        }
    };
    let clock = Arc::clone(&options.clock);
    let holds = Holds::default();
    Ok(Env { dir: dir.to_owned(), files, manifest, clock, options, random, holds })
}

#[cfg(test)]
mod tests;
