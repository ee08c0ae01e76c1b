//! Opening a store: which files exist, how far the log is whole, and what to do with the rest. The
//! table of cases is in docs/recovery.md.
//!
//! D is the highest `durable_upto` of any header that verifies: all batches below it were
//! acknowledged as durable or could have been. A bad batch below D is damage: nothing is cut, and
//! the store opens read-only. A bad batch at or above D is the end of the log: a write that a crash
//! tore, and nothing after it was acknowledged either.

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
use crate::journal::{self, Kept, Trouble};
use crate::log::{Active, OpenFiles, Segment, SegmentKey};
use crate::manifest::Manifest;
use crate::media::{Disk, Files, LockError, Media, StoreLock, is_full, leads_away};
use crate::names::{self, BLOB_DIR, LOCK, LOG_DIR, SEGMENT};
use crate::options::StoreOptions;
use crate::store::Inner;
pub(crate) use files::segments_to_read;
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

/// The log in the form in which it will be used.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    /// Segments that were not sealed when the store was opened.
    pub(crate) segments: Vec<Arc<Segment>>,
    /// Those of them that are sealed now; their derived files are not written yet.
    pub(crate) sealed_now: Vec<Arc<Segment>>,
    pub(crate) active: Option<Active>,
    /// What is left to do because the disk was too full to make the log writable.
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
    // The directory must exist before its filesystem can be determined.
    Disk::new(options.media, dir).create_dir(dir).map_err(made)?;
    let files: Arc<dyn Files> = Arc::new(Disk::new(options.media, dir));
    open_with(dir, options, files)
}

/// Opens the store in the existing directory `dir`, through `files`.
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
        // It was removed, or everything in it is applied.
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
    let of_journal = |trouble| {
        let path = env.journal_path();
        match trouble {
            Trouble::Lost(what) => ReadOnlyReason::Files { path, what },
            Trouble::Version(found) => ReadOnlyReason::Version { path, found },
        }
    };
    let trouble = journal.trouble.map(of_journal).or_else(|| blobs.trouble().cloned()).or(backup);
    let report = RecoveryReport { clean, journal_groups: journal.groups, ..Default::default() };
    let mut opening = Opening { env, blobs, open_files, clean, report, journal: journal.there };
    opening.report.blobs_dropped = opening.blobs.dropped().to_vec();
    let inner = opening.finish(found, trouble, lock)?;
    if inner.read_only.is_none() {
        // An unfinished journal; if it remains, it does no harm.
        let _ = inner.env.files.remove(&journal::unfinished(&inner.env));
    }
    Ok(inner)
}

/// Keeps the directories of the store open. One that cannot be opened for another reason than a
/// lack of descriptors may be missing, which is handled later.
fn hold_dirs(env: &Env) -> Result<(), OpenError> {
    for dir in [env.dir.clone(), env.log_dir(), env.blob_dir()] {
        match env.files.hold_dir(&dir) {
            Err(error) if is_full(&error) => return Err(OpenError::io("open", &dir, error)),
            _ => {}
        }
    }
    // The owner of the store may have placed a link since the lock was taken.
    check_links(&env.dir)
}

/// Refuses a store with a directory that is a link which root must not follow.
fn check_links(dir: &Path) -> Result<(), OpenError> {
    let mut subs = [LOG_DIR, BLOB_DIR].map(|sub| dir.join(sub)).into_iter();
    match subs.find(|sub| leads_away(sub)) {
        Some(path) => Err(OpenError::Link { path }),
        None => Ok(()),
    }
}

/// The error when the journal cannot be applied. On a copy-on-write filesystem overwriting takes
/// space; a retry gives the same result.
fn not_put_back(env: &Env, error: io::Error) -> OpenError {
    let path = env.journal_path();
    match Shortage::of(&error) {
        Some(Shortage::Space) => OpenError::StorageFull { path },
        _ => OpenError::io("put back the groups of", &path, error),
    }
}

/// Takes the lock of the store in `dir`, before anything else is done there.
pub(crate) fn lock(dir: &Path, now_ms: u64) -> Result<StoreLock, OpenError> {
    check_links(dir)?;
    let path = dir.join(LOCK);
    StoreLock::take(&path, now_ms).map_err(|error| match error {
        LockError::Held { pid, since_ms } => {
            OpenError::Locked { dir: dir.to_owned(), pid, since: since_ms }
        }
        LockError::Io(error) => OpenError::Lock { path, error },
    })
}

/// The environment with the manifest, which is created if there is no store yet.
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
            // The manifest makes a directory a store, so it comes last. The new store is empty,
            // hence clean.
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
