//! A filesystem for tests that fails the k-th mutating operation.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use super::{Files, Media};

type Watcher = Arc<dyn Fn(&Path) + Send + Sync>;

/// Called with each file that is opened.
#[derive(Default)]
struct Watch(Mutex<Option<Watcher>>);

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

/// Which operations fail, and how. Shared by the test and the files it watches.
#[derive(Debug)]
pub(crate) struct Faults {
    count: AtomicU64,
    first: AtomicU64,
    last: AtomicU64,
    errno: AtomicU64,
    /// Only operations that allocate space count and fail.
    space: AtomicBool,
    /// Bytes per file that have space; allocating more fails.
    room: AtomicU64,
    /// Unreadable ranges.
    lost: Mutex<Vec<(PathBuf, Range<u64>)>>,
    /// No file can be opened for reading, and no directory synced.
    no_descriptors: AtomicBool,
    opens: Watch,
    /// The thread of this name panics instead of changing anything.
    panicking: Mutex<Option<&'static str>>,
    /// Operations hold it shared, a crash image exclusively: so the image is a snapshot.
    pub(crate) gate: RwLock<()>,
}

impl Faults {
    /// No faults yet; operations are counted.
    pub(crate) fn none() -> Arc<Self> {
        Arc::new(Self {
            count: AtomicU64::new(0),
            first: AtomicU64::new(u64::MAX),
            last: AtomicU64::new(0),
            errno: AtomicU64::new(0),
            space: AtomicBool::new(false),
            room: AtomicU64::new(u64::MAX),
            lost: Mutex::default(),
            no_descriptors: AtomicBool::new(false),
            opens: Watch::default(),
            panicking: Mutex::default(),
            gate: RwLock::new(()),
        })
    }

    /// Operations so far.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// From now on operations `first` to `last` fail (counted from now; 1 is the next one).
    pub(crate) fn set(&self, first: u64, last: u64, errno: rustix::io::Errno) {
        self.count.store(0, Ordering::Relaxed);
        self.errno.store(errno.raw_os_error() as u64, Ordering::Relaxed);
        self.last.store(last, Ordering::Relaxed);
        self.first.store(first, Ordering::Relaxed);
    }

    /// Restricts the faults to operations that need space.
    pub(crate) fn only_space(&self) {
        self.space.store(true, Ordering::Relaxed);
    }

    /// From now on no file gets space for more than its first `bytes`.
    pub(crate) fn room_for(&self, bytes: u64) {
        self.room.store(bytes, Ordering::Relaxed);
    }

    /// From now on this range of a file cannot be read.
    pub(crate) fn lose(&self, path: &Path, place: Range<u64>) {
        self.lost.lock().push((path.to_owned(), place));
    }

    fn read(&self, path: &Path, range: &Range<u64>) -> io::Result<()> {
        let hits = |place: &Range<u64>| place.start < range.end && range.start < place.end;
        match self.lost.lock().iter().any(|(lost, place)| lost == path && hits(place)) {
            true => Err(rustix::io::Errno::IO.into()),
            false => Ok(()),
        }
    }

    /// From now on `watcher` is called before a sealed file is opened.
    pub(crate) fn watch_opens(&self, watcher: impl Fn(&Path) + Send + Sync + 'static) {
        *self.opens.0.lock() = Some(Arc::new(watcher));
    }

    /// From now on the thread of this name panics at its next operation.
    pub(crate) fn panic_on(&self, thread: &'static str) {
        *self.panicking.lock() = Some(thread);
    }

    /// From now on no file can be opened for reading, and no directory synced.
    pub(crate) fn no_descriptors(&self) {
        self.no_descriptors.store(true, Ordering::Relaxed);
    }

    fn open(&self) -> io::Result<()> {
        match self.no_descriptors.load(Ordering::Relaxed) {
            true => Err(rustix::io::Errno::MFILE.into()),
            false => Ok(()),
        }
    }

    /// Clears all faults.
    pub(crate) fn clear(&self) {
        self.no_descriptors.store(false, Ordering::Relaxed);
        self.space.store(false, Ordering::Relaxed);
        self.room.store(u64::MAX, Ordering::Relaxed);
        self.first.store(u64::MAX, Ordering::Relaxed);
    }

    fn step(&self) -> io::Result<RwLockReadGuard<'_, ()>> {
        if self.space.load(Ordering::Relaxed) {
            return Ok(self.gate.read());
        }
        self.step_for_space()
    }

    fn step_for_space(&self) -> io::Result<RwLockReadGuard<'_, ()>> {
        let named = *self.panicking.lock();
        if named.is_some() && std::thread::current().name() == named {
            panic!("planted in {named:?}");
        }
        let gate = self.gate.read();
        let now = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let range = self.first.load(Ordering::Relaxed)..=self.last.load(Ordering::Relaxed);
        if range.contains(&now) {
            let errno = self.errno.load(Ordering::Relaxed);
            return Err(io::Error::from_raw_os_error(errno as i32));
        }
        Ok(gate)
    }
}

/// Files that fail as configured.
#[derive(Debug)]
pub(crate) struct FaultyFiles<F> {
    files: F,
    faults: Arc<Faults>,
    held: Mutex<Vec<PathBuf>>,
}

impl<F: Files> FaultyFiles<F> {
    pub(crate) fn new(files: F, faults: &Arc<Faults>) -> Self {
        Self { files, faults: Arc::clone(faults), held: Mutex::default() }
    }

    fn wrap(&self, media: Arc<dyn Media>) -> Arc<dyn Media> {
        Arc::new(FaultyMedia { media, faults: Arc::clone(&self.faults) })
    }
}

#[derive(Debug)]
struct FaultyMedia {
    media: Arc<dyn Media>,
    faults: Arc<Faults>,
}

impl Media for FaultyMedia {
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let _gate = self.faults.step()?;
        self.media.write_at(at, bytes)
    }

    fn reserve(&self, upto: u64) -> io::Result<()> {
        if upto > self.faults.room.load(Ordering::Relaxed) {
            return Err(rustix::io::Errno::NOSPC.into());
        }
        self.media.reserve(upto)
    }

    fn sync(&self) -> io::Result<()> {
        let _gate = self.faults.step()?;
        self.media.sync()
    }

    fn publish(&self, upto: u64) {
        self.media.publish(upto);
    }

    fn published(&self) -> u64 {
        self.media.published()
    }

    fn view(&self, range: Range<u64>) -> io::Result<Bytes> {
        self.faults.read(self.media.path(), &range)?;
        self.media.view(range)
    }

    fn mapped(&self) -> Option<Bytes> {
        self.media.mapped()
    }

    fn len(&self) -> u64 {
        self.media.len()
    }

    fn path(&self) -> &Path {
        self.media.path()
    }
}

impl<F: Files> Files for FaultyFiles<F> {
    fn create(&self, path: &Path, len: u64, zero: bool) -> io::Result<Arc<dyn Media>> {
        let _gate = self.faults.step_for_space()?;
        self.files.create(path, len, zero).map(|media| self.wrap(media))
    }

    fn open_append(&self, path: &Path) -> io::Result<Arc<dyn Media>> {
        self.files.open_append(path).map(|media| self.wrap(media))
    }

    fn open_sealed(&self, path: &Path) -> io::Result<Arc<dyn Media>> {
        let watcher = self.faults.opens.0.lock().clone();
        if let Some(watcher) = watcher {
            watcher(path);
        }
        self.faults.open()?;
        self.files.open_sealed(path).map(|media| self.wrap(media))
    }

    fn open_scan(&self, path: &Path) -> io::Result<Arc<dyn Media>> {
        self.faults.open()?;
        self.files.open_scan(path).map(|media| self.wrap(media))
    }

    fn open_unmapped(&self, path: &Path) -> io::Result<Arc<dyn Media>> {
        self.faults.open()?;
        self.files.open_unmapped(path).map(|media| self.wrap(media))
    }

    fn forget(&self, path: &Path, part: Range<u64>) -> io::Result<()> {
        self.files.forget(path, part)
    }

    fn write_new(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        match self.faults.step_for_space() {
            Ok(_gate) => self.files.write_new(path, bytes),
            Err(error) => {
                // What a crash in the middle leaves: half of the bytes.
                let _gate = self.faults.gate.read();
                self.files.write_new(path, &bytes[..bytes.len() / 2])?;
                Err(error)
            }
        }
    }

    fn read(&self, path: &Path, max: u64) -> io::Result<Vec<u8>> {
        self.faults.read(path, &(0..max))?;
        self.files.read(path, max)
    }

    fn len_of(&self, path: &Path) -> io::Result<u64> {
        self.files.len_of(path)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let _gate = self.faults.step_for_space()?;
        self.files.link(from, to)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let _gate = self.faults.step()?;
        self.files.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let _gate = self.faults.step()?;
        self.files.remove(path)
    }

    fn cut(&self, path: &Path, len: u64) -> io::Result<()> {
        let _gate = self.faults.step()?;
        self.files.cut(path, len)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let _gate = self.faults.step()?;
        if !self.held.lock().iter().any(|held| held == dir) {
            self.faults.open()?;
        }
        self.files.sync_dir(dir)
    }

    fn hold_dir(&self, dir: &Path) -> io::Result<()> {
        self.faults.open()?;
        self.held.lock().push(dir.to_owned());
        self.files.hold_dir(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.files.list(dir)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let _gate = self.faults.step()?;
        self.files.create_dir(dir)
    }
}
