//! Helpers shared by the unit tests of the store: small stores, crash images, fault sweeps.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tempfile::TempDir;

use crate::clock::Clock;
use crate::error::OpenError;
use crate::media::faulty::{Faults, FaultyFiles};
use crate::media::{Disk, Files};
use crate::options::{MediaChoice, StoreOptions, SyncPolicy};
use crate::store::Store;
use crate::value::{Meta, NewFrame, ReadOptions, Topic};

/// A clock that stands still at a set time.
#[derive(Debug)]
pub(crate) struct StillClock(pub(crate) AtomicU64);

impl StillClock {
    pub(crate) fn at(now_ms: u64) -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(now_ms)))
    }
}

impl Clock for StillClock {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A directory where syncs are cheap, if the machine has one.
pub(crate) fn fast_dir() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

pub(crate) fn options(sync: SyncPolicy) -> StoreOptions {
    const SMALL: u64 = 64 * 1024;
    // Compaction runs only when a test calls it.
    let compaction = None;
    let default = StoreOptions::default();
    StoreOptions { segment_bytes: SMALL, pack_bytes: SMALL, sync, compaction, ..default }
}

pub(crate) fn open(dir: &Path, sync: SyncPolicy) -> Store {
    Store::open(dir, options(sync)).unwrap()
}

/// Opens a store whose file operations fail as configured.
pub(crate) fn open_faulty(
    dir: &Path,
    options: StoreOptions,
    faults: &Arc<Faults>,
) -> Result<Store, OpenError> {
    let disk = Disk::new(MediaChoice::Auto, dir);
    open_on(dir, options, Arc::new(FaultyFiles::new(disk, faults)))
}

/// Opens a store on given files. The lock is taken in `dir` of the real filesystem.
pub(crate) fn open_on(
    dir: &Path,
    options: StoreOptions,
    files: Arc<dyn Files>,
) -> Result<Store, OpenError> {
    let inner = Arc::new(crate::recovery::open_with(dir, options, files)?);
    if inner.read_only.is_none() {
        inner.upkeep.start(&inner).unwrap();
    }
    Ok(Store { inner })
}

/// Prints a count, even if the test passes. `scripts/test` repeats these lines.
pub(crate) fn tell(line: &str) {
    std::io::stdout().lock().write_all(format!("counted: {line}\n").as_bytes()).unwrap();
}

/// A frame with a number in its meta.
pub(crate) fn frame(topic: &str, n: u64) -> NewFrame {
    let meta = Meta::parse(n.to_string()).unwrap();
    NewFrame { meta, ..NewFrame::new(Topic::parse(topic).unwrap()) }
}

/// The numbers of all readable frames, in order. Skips damaged ones.
pub(crate) fn numbers(store: &Store) -> Vec<u64> {
    let frames = store.read(&ReadOptions::default()).unwrap().flatten();
    frames.map(|frame| std::str::from_utf8(frame.meta()).unwrap().parse().unwrap()).collect()
}

/// What a crash leaves of a store whose file operations go through `faults`.
pub(crate) fn crash_now(dir: &Path, faults: &Faults) -> TempDir {
    let _gate = faults.gate.write();
    crash(dir)
}

/// What a crash leaves: the files as they are now, without the lock. Nothing may be changing them.
pub(crate) fn crash(dir: &Path) -> TempDir {
    let image = fast_dir();
    copy(dir, image.path());
    image
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let place = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir_all(&place).unwrap();
            copy(&entry.path(), &place);
        } else if entry.file_name() != crate::names::LOCK {
            fs::copy(entry.path(), place).unwrap();
        }
    }
}

/// Incompressible bytes, so that they can be searched for in files; they differ by seed.
pub(crate) fn noise(seed: u64, len: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// The files with an extension in a directory of a store, in order of their names.
pub(crate) fn files_in(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|found| found == extension));
    paths.sort();
    paths
}

/// The segments of a store, oldest first.
pub(crate) fn segment_files(dir: &Path) -> Vec<PathBuf> {
    files_in(&dir.join("log"), "seg")
}

/// Where the batches of a segment begin, and where the last one ends.
pub(crate) fn batches(path: &Path) -> Vec<usize> {
    use crate::format::batch::BatchHeader;
    let bytes = fs::read(path).unwrap();
    let mut places = vec![crate::format::file::FILE_HEADER_LEN];
    while let Ok(header) = BatchHeader::read(&bytes[*places.last().unwrap()..]) {
        places.push(places.last().unwrap() + header.batch_len() as usize);
    }
    places
}

/// Changes the bytes of a file.
pub(crate) fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}
