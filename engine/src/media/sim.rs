//! A simulated disk for tests that loses unsynced data at a power cut: any subset of the dirty
//! sectors of 512 bytes, and names whose directory was not synced. Files live in memory and are
//! written through the same media as real ones, so the page cache holds what those media put there;
//! the disk holds what was in the cache when a sync returned.
//!
//! A failed sync loses its data, as in the kernel: the pages count as clean afterwards, no later
//! sync writes them, and reads after the cache is dropped see the old bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::{Range, RangeInclusive};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::MemfdFlags;
use rustix::io::Errno;

use super::mapped::Mapped;
use super::positioned::Positioned;
use super::room::Room;
use super::{Files, Media};
use crate::options::MediaChoice;

/// Bytes that reach the disk together.
const SECTOR: usize = 512;

/// The files of a disk: paths below the store's directory, and bytes.
pub(crate) type Image = BTreeMap<PathBuf, Arc<Vec<u8>>>;

/// Called before each mutating operation.
type Watch = Box<dyn FnMut(u64, &Moment) + Send>;

/// The disk, shared by the files on it.
#[derive(Debug, Clone)]
pub(crate) struct SimDisk {
    root: PathBuf,
    mapped: bool,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    names: BTreeMap<PathBuf, Arc<Content>>,
    synced_names: BTreeMap<PathBuf, Arc<Content>>,
    /// Mutating operations so far.
    count: u64,
    watch: Option<Watch>,
    /// The operations that fail, and their error.
    failing: Option<(RangeInclusive<u64>, Errno)>,
    /// Nothing changes any more: the process that used the disk is dead.
    frozen: bool,
    /// The power is cut before this operation; the content of the disk at that point is kept.
    cut_at: u64,
    seed: u64,
    left: Option<Image>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("count", &self.count).finish_non_exhaustive()
    }
}

/// A file: its page cache, and what the disk has.
#[derive(Debug)]
struct Content {
    cache: File,
    /// The cache may differ from the disk.
    dirty: AtomicBool,
    disk: Mutex<OnDisk>,
}

#[derive(Debug)]
struct OnDisk {
    bytes: Arc<Vec<u8>>,
    /// What the kernel believes is on the disk, if a failed sync made that differ.
    believed: Option<Arc<Vec<u8>>>,
}

impl OnDisk {
    fn believed(&self) -> &Arc<Vec<u8>> {
        self.believed.as_ref().unwrap_or(&self.bytes)
    }
}

/// A small deterministic random generator.
pub(crate) fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mixed = (*seed ^ (*seed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

fn sectors(len: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(SECTOR).map(move |at| at..(at + SECTOR).min(len))
}

impl Content {
    fn new(bytes: Arc<Vec<u8>>) -> io::Result<Arc<Self>> {
        let cache = File::from(rustix::fs::memfd_create("sim", MemfdFlags::CLOEXEC)?);
        cache.set_len(bytes.len() as u64)?;
        // The hole after the last non-zero sector reads as zeros and needs no memory.
        let zero = |sector: &[u8]| sector == &[0; SECTOR][..sector.len()];
        let end = bytes.chunks(SECTOR).rposition(|sector| !zero(sector));
        let end = end.map_or(0, |last| ((last + 1) * SECTOR).min(bytes.len()));
        cache.write_all_at(&bytes[..end], 0)?;
        let disk = Mutex::new(OnDisk { bytes, believed: None });
        Ok(Arc::new(Self { cache, dirty: AtomicBool::new(false), disk }))
    }

    fn cached(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.cache.metadata()?.len() as usize];
        self.cache.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Writes the dirty sectors to the disk, or loses them.
    fn sync(&self, fails: bool) -> io::Result<()> {
        let now = Arc::new(self.cached()?);
        let mut disk = self.disk.lock();
        if fails {
            disk.believed = Some(now);
        } else if let Some(believed) = disk.believed.take() {
            let mut bytes = disk.bytes.to_vec();
            bytes.resize(now.len(), 0);
            for range in sectors(now.len()) {
                if believed.get(range.clone()) != Some(&now[range.clone()]) {
                    bytes[range.clone()].copy_from_slice(&now[range.clone()]);
                }
            }
            disk.bytes = Arc::new(bytes);
            disk.believed = Some(now);
        } else {
            disk.bytes = now;
            self.dirty.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Drops the clean pages of a part of the cache: reads then see what the disk has of them.
    fn drop_cache(&self, part: Range<u64>) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let Some(believed) = disk.believed.clone() else { return Ok(()) };
        let (now, mut believed) = (self.cached()?, believed.to_vec());
        believed.resize(now.len(), 0);
        for range in sectors(now.len()) {
            if range.end as u64 <= part.start || part.end <= range.start as u64 {
                continue;
            }
            let is_clean = believed[range.clone()] == now[range.clone()];
            if let Some(bytes) = disk.bytes.get(range.clone()).filter(|_| is_clean) {
                self.cache.write_all_at(bytes, range.start as u64)?;
                believed[range].copy_from_slice(bytes);
            }
        }
        disk.believed = Some(Arc::new(believed)).filter(|believed| **believed != *disk.bytes);
        Ok(())
    }
}

/// The disk just before an operation.
pub(crate) struct Moment {
    names: Vec<Name>,
}

/// A name: its file now, and its file when its directory was last synced.
struct Name {
    path: PathBuf,
    now: Option<Dirty>,
    synced: Option<Dirty>,
    /// Names changed by one rename share this, so that the rename is done or not, never half.
    change: usize,
}

/// A file and its dirty sectors, each of which may or may not reach the disk.
#[derive(Clone)]
struct Dirty {
    disk: Arc<Vec<u8>>,
    cache: Arc<Vec<u8>>,
    sectors: Arc<Vec<Range<usize>>>,
}

impl Dirty {
    fn of(content: &Content) -> Self {
        let disk = content.disk.lock();
        if !content.dirty.load(Ordering::Relaxed) {
            let (disk, cache) = (Arc::clone(&disk.bytes), Arc::clone(&disk.bytes));
            return Self { disk, cache, sectors: Arc::default() };
        }
        let cache = content.cached().unwrap();
        let believed = disk.believed();
        let is_dirty =
            |range: &Range<usize>| believed.get(range.clone()) != cache.get(range.clone());
        let dirty = sectors(cache.len().min(disk.bytes.len())).filter(is_dirty).collect();
        let (disk, cache) = (Arc::clone(&disk.bytes), Arc::new(cache));
        Self { disk, cache, sectors: Arc::new(dirty) }
    }

    fn left(&self, seed: &mut u64) -> Arc<Vec<u8>> {
        if self.sectors.is_empty() {
            return Arc::clone(&self.disk);
        }
        let mut bytes = self.disk.to_vec();
        for range in self.sectors.iter() {
            if random(seed).is_multiple_of(2) {
                bytes[range.clone()].copy_from_slice(&self.cache[range.clone()]);
            }
        }
        Arc::new(bytes)
    }
}

impl Moment {
    fn of(state: &State) -> Self {
        let mut paths: Vec<_> = state.names.keys().chain(state.synced_names.keys()).collect();
        paths.sort_unstable();
        paths.dedup();
        let names = paths.into_iter().map(|path| {
            let (now, synced) = (state.names.get(path), state.synced_names.get(path));
            let is_same = now.zip(synced).is_some_and(|(now, synced)| Arc::ptr_eq(now, synced));
            let change = now.or(synced).map_or(0, |content| Arc::as_ptr(content) as usize);
            let now = now.map(|content| Dirty::of(content));
            let synced = if is_same { now.clone() } else { synced.map(|old| Dirty::of(old)) };
            Name { path: path.clone(), now, synced, change }
        });
        Self { names: names.collect() }
    }

    /// What a power cut at this moment leaves; the seed chooses among the possible outcomes.
    pub(crate) fn power_cut(&self, seed: u64) -> Image {
        let mut image = Image::new();
        let mut random_seed = seed;
        let mut done = BTreeMap::new();
        for Name { path, now, synced, change } in &self.names {
            // Half of the seeds keep no name that was not synced, as most filesystems do.
            let takes_new = *done.entry(change).or_insert_with(|| {
                seed.is_multiple_of(2) && random(&mut random_seed).is_multiple_of(2)
            });
            if let Some(content) = if takes_new { now } else { synced } {
                image.insert(path.clone(), content.left(&mut random_seed));
            }
        }
        image
    }
}

impl State {
    fn alive(&self) -> io::Result<()> {
        if self.frozen { Err(io::Error::other("the process is dead")) } else { Ok(()) }
    }

    /// Counts an operation and shows the watcher the disk before it; an error if it is to fail.
    fn step(&mut self) -> io::Result<()> {
        self.alive()?;
        self.count += 1;
        if self.count == self.cut_at {
            self.left = Some(Moment::of(self).power_cut(self.seed));
        }
        if let Some(mut watch) = self.watch.take() {
            watch(self.count, &Moment::of(self));
            self.watch = Some(watch);
        }
        match &self.failing {
            Some((range, errno)) if range.contains(&self.count) => Err((*errno).into()),
            _ => Ok(()),
        }
    }
}

impl SimDisk {
    /// An empty disk, written through maps, whose power is cut before operation number `cut_at`.
    pub(crate) fn empty(cut_at: u64, seed: u64) -> Self {
        let disk = Self::new(&Image::new(), Path::new("/"), MediaChoice::Mapped);
        disk.cut_before(cut_at, seed);
        disk
    }

    /// A disk that holds an image below `root`, written through maps or not.
    pub(crate) fn new(image: &Image, root: &Path, media: MediaChoice) -> Self {
        let mut state = State::default();
        for (path, bytes) in image {
            let content = Content::new(Arc::clone(bytes)).unwrap();
            state.names.insert(path.clone(), Arc::clone(&content));
            state.synced_names.insert(path.clone(), content);
        }
        let mapped = media != MediaChoice::Positioned;
        Self { root: root.to_owned(), mapped, state: Arc::new(Mutex::new(state)) }
    }

    /// Operations so far.
    pub(crate) fn count(&self) -> u64 {
        self.state.lock().count
    }

    /// Cuts the power before operation number `cut_at`, counted from 1. The disk continues as if
    /// nothing happened; what the cut left is kept.
    pub(crate) fn cut_before(&self, cut_at: u64, seed: u64) {
        let mut state = self.state.lock();
        (state.cut_at, state.seed, state.left) = (cut_at, seed, None);
    }

    /// Whether the power was cut.
    pub(crate) fn is_cut(&self) -> bool {
        self.state.lock().left.is_some()
    }

    /// The disk after the power cut, or after one now if the set operation was not reached.
    pub(crate) fn after_cut(&self) -> Self {
        let mut state = self.state.lock();
        let left = state.left.take();
        let left = left.unwrap_or_else(|| Moment::of(&state).power_cut(state.seed));
        let media = if self.mapped { MediaChoice::Mapped } else { MediaChoice::Positioned };
        Self::new(&left, &self.root, media)
    }

    /// Calls `watch` before each operation with its number, counted from 1.
    pub(crate) fn watch(&self, watch: impl FnMut(u64, &Moment) + Send + 'static) {
        self.state.lock().watch = Some(Box::new(watch));
    }

    /// Removes the watcher.
    pub(crate) fn unwatch(&self) {
        let watch = self.state.lock().watch.take();
        drop(watch);
    }

    /// Makes the operations with these numbers fail.
    pub(crate) fn fail(&self, operations: RangeInclusive<u64>, errno: Errno) {
        self.state.lock().failing = Some((operations, errno));
    }

    /// Clears all faults.
    pub(crate) fn heal(&self) {
        self.state.lock().failing = None;
    }

    /// Simulates a killed process: later operations change nothing.
    pub(crate) fn freeze(&self) {
        self.state.lock().frozen = true;
    }

    /// Simulates the start of another process.
    pub(crate) fn thaw(&self) {
        self.state.lock().frozen = false;
    }

    /// A snapshot of the disk.
    pub(crate) fn moment(&self) -> Moment {
        Moment::of(&self.state.lock())
    }

    /// What a killed process leaves: everything it wrote.
    pub(crate) fn image(&self) -> Image {
        let state = self.state.lock();
        let cached = |content: &Arc<Content>| Arc::new(content.cached().unwrap());
        state.names.iter().map(|(path, content)| (path.clone(), cached(content))).collect()
    }

    /// Changes a byte of a file, as readers see it.
    pub(crate) fn flip(&self, path: &Path, at: usize, mask: u8) {
        let content = self.find(&self.root.join(path)).unwrap();
        let mut byte = [0];
        content.cache.read_exact_at(&mut byte, at as u64).unwrap();
        content.cache.write_all_at(&[byte[0] ^ mask], at as u64).unwrap();
    }

    /// A path below the root.
    fn name(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).unwrap().to_owned()
    }

    fn find(&self, path: &Path) -> io::Result<Arc<Content>> {
        self.state
            .lock()
            .names
            .get(&self.name(path))
            .cloned()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn appending(&self, path: &Path) -> io::Result<Arc<dyn Media>> {
        let content = self.find(path)?;
        let file = content.cache.try_clone()?;
        let room = Room::new(file.metadata()?.len(), u64::MAX);
        let media: Arc<dyn Media> = if self.mapped {
            Arc::new(Mapped::append(file, room, path)?)
        } else {
            Arc::new(Positioned::append(file, room, path))
        };
        Ok(Arc::new(SimMedia { disk: self.clone(), content, media }))
    }
}

#[derive(Debug)]
struct SimMedia {
    disk: SimDisk,
    content: Arc<Content>,
    media: Arc<dyn Media>,
}

impl Media for SimMedia {
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        // Under the lock: no one sees the disk between this and the write.
        let stepped = state.step();
        self.content.dirty.store(true, Ordering::Relaxed);
        match stepped {
            Ok(()) => self.media.write_at(at, bytes),
            // A failed write may be partial.
            Err(error) => {
                if !state.frozen {
                    self.media.write_at(at, &bytes[..bytes.len() / 2])?;
                }
                Err(error)
            }
        }
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        let stepped = state.step();
        if !state.frozen {
            self.content.sync(stepped.is_err())?;
        }
        stepped
    }

    fn publish(&self, upto: u64) {
        self.media.publish(upto);
    }

    fn published(&self) -> u64 {
        self.media.published()
    }

    fn view(&self, range: Range<u64>) -> io::Result<Bytes> {
        self.media.view(range)
    }

    fn len(&self) -> u64 {
        self.media.len()
    }

    fn path(&self) -> &Path {
        self.media.path()
    }
}

impl Files for SimDisk {
    fn create(&self, path: &Path, len: u64, _zero: bool) -> io::Result<Arc<dyn Media>> {
        {
            let mut state = self.state.lock();
            state.step()?;
            let content = Content::new(Arc::new(vec![0; len as usize]))?;
            state.names.insert(self.name(path), content);
        }
        self.appending(path)
    }

    fn open_append(&self, path: &Path) -> io::Result<Arc<dyn Media>> {
        self.appending(path)
    }

    fn open_sealed(&self, path: &Path) -> io::Result<Arc<dyn Media>> {
        Ok(Arc::new(Mapped::sealed(&self.find(path)?.cache.try_clone()?, path)?))
    }

    fn open_scan(&self, path: &Path) -> io::Result<Arc<dyn Media>> {
        let content = self.find(path)?;
        content.drop_cache(0..u64::MAX)?;
        Ok(Arc::new(Positioned::sealed(content.cache.try_clone()?, path)?))
    }

    fn open_unmapped(&self, path: &Path) -> io::Result<Arc<dyn Media>> {
        Ok(Arc::new(Positioned::sealed(self.find(path)?.cache.try_clone()?, path)?))
    }

    fn forget(&self, path: &Path, part: Range<u64>) -> io::Result<()> {
        self.find(path)?.drop_cache(part)
    }

    fn write_new(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock();
        state.alive()?;
        // An existing file is truncated and overwritten, and the power may fail before the sync.
        let content = Content::new(Arc::new(vec![0; bytes.len()]))?;
        content.cache.write_all_at(bytes, 0)?;
        content.dirty.store(true, Ordering::Relaxed);
        let old = state.names.insert(self.name(path), Arc::clone(&content));
        let was_synced = old.as_ref().zip(state.synced_names.get(&self.name(path)));
        if was_synced.is_some_and(|(old, synced)| Arc::ptr_eq(old, synced)) {
            state.synced_names.insert(self.name(path), Arc::clone(&content));
        }
        let stepped = state.step();
        content.sync(stepped.is_err())?;
        if stepped.is_err() {
            // A failed write may be partial.
            content.cache.set_len(bytes.len() as u64 / 2)?;
        }
        stepped
    }

    fn read(&self, path: &Path, max: u64) -> io::Result<Vec<u8>> {
        let bytes = self.find(path)?.cached()?;
        if bytes.len() as u64 > max { Err(io::ErrorKind::InvalidData.into()) } else { Ok(bytes) }
    }

    fn len_of(&self, path: &Path) -> io::Result<u64> {
        Ok(self.find(path)?.cache.metadata()?.len())
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let content = self.find(from)?;
        let mut state = self.state.lock();
        state.step()?;
        state.names.insert(self.name(to), content);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        let content = state.names.remove(&self.name(from)).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(self.name(to), content);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        state.names.remove(&self.name(path));
        Ok(())
    }

    fn cut(&self, path: &Path, len: u64) -> io::Result<()> {
        let content = self.find(path)?;
        let mut state = self.state.lock();
        state.step()?;
        content.cache.set_len(len)?;
        content.sync(false)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step()?;
        let dir = self.name(dir);
        let State { names, synced_names, .. } = &mut *state;
        synced_names.retain(|path, _| path.parent() != Some(&*dir));
        let here = names.iter().filter(|(path, _)| path.parent() == Some(&*dir));
        synced_names.extend(here.map(|(path, content)| (path.clone(), Arc::clone(content))));
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let (state, dir) = (self.state.lock(), self.name(dir));
        let here = state.names.keys().filter(|path| path.parent() == Some(&*dir));
        Ok(here.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "/dir/file";

    fn disk_with_file(cut_at: u64, seed: u64) -> (SimDisk, Arc<dyn Media>) {
        let disk = SimDisk::empty(cut_at, seed);
        let media = disk.create(Path::new(FILE), 4096, false).unwrap();
        disk.sync_dir(Path::new("/dir")).unwrap();
        (disk, media)
    }

    #[test]
    fn what_was_not_synced_is_kept_in_any_subset_of_sectors() {
        let mut kept = std::collections::BTreeSet::new();
        for seed in 0..64 {
            let (disk, media) = disk_with_file(5, seed);
            media.write_at(0, &[1; 512]).unwrap();
            media.sync().unwrap();
            media.write_at(512, &[2; 1024]).unwrap();
            assert!(disk.is_cut());
            let left = disk.after_cut().read(Path::new(FILE), 4096).unwrap();
            assert_eq!(left[..512], [1; 512]);
            assert!(left[512..].iter().all(|&byte| byte == 0), "the cut came before the write");
            disk.cut_before(u64::MAX, seed);
            let left = disk.after_cut().read(Path::new(FILE), 4096).unwrap();
            assert!(left[512..].chunks(512).all(|sector| sector.iter().all(|b| *b == sector[0])));
            kept.insert((left[512], left[1024]));
        }
        assert_eq!(kept.len(), 4, "{kept:?}");
    }

    #[test]
    fn a_sync_that_fails_loses_what_it_was_to_write() {
        let (disk, media) = disk_with_file(u64::MAX, 0);
        media.write_at(0, &[1; 512]).unwrap();
        let failing = disk.count() + 1;
        disk.fail(failing..=failing, Errno::IO);
        assert!(media.sync().is_err());
        media.write_at(512, &[2; 512]).unwrap();
        media.sync().unwrap();
        // The cache has both writes, the disk only the one after the failure.
        media.publish(1024);
        assert_eq!(media.view(0..1024).unwrap()[..], [[1; 512], [2; 512]].concat()[..]);
        let left = disk.after_cut().read(Path::new(FILE), 4096).unwrap();
        assert_eq!(left[..1024], [[0; 512], [2; 512]].concat()[..]);
        let dropped = disk.open_scan(Path::new(FILE)).unwrap();
        assert_eq!(dropped.view(0..1024).unwrap()[..], [[0; 512], [2; 512]].concat()[..]);
    }

    #[test]
    fn names_are_kept_once_their_directory_was_synced_and_a_rename_is_whole() {
        for seed in 0..32 {
            let (disk, _media) = disk_with_file(u64::MAX, seed);
            disk.rename(Path::new(FILE), Path::new("/dir/other")).unwrap();
            disk.create(Path::new("/dir/new"), 512, false).unwrap();
            let mut names = disk.after_cut().list(Path::new("/dir")).unwrap();
            names.retain(|name| name != "new");
            assert!(names == ["file"] || names == ["other"], "{names:?}");
        }
    }
}
