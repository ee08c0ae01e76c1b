//! A disk in memory for tests that forgets at a power cut what was not synced: bytes in pieces of
//! 512, in any subset, and names whose directory was not synced.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Files, Media};

/// Bytes that reach the disk together.
const SECTOR: usize = 512;

/// The disk, shared by the files on it.
#[derive(Debug, Clone, Default)]
pub(crate) struct SimDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    names: BTreeMap<PathBuf, Arc<Mutex<Content>>>,
    synced_names: BTreeMap<PathBuf, Arc<Mutex<Content>>>,
    /// Operations that changed something.
    count: u64,
    /// The power is cut before this operation; what the disk then has is kept.
    cut_at: u64,
    seed: u64,
    left: Option<BTreeMap<PathBuf, Vec<u8>>>,
}

#[derive(Debug, Default, Clone)]
struct Content {
    bytes: Vec<u8>,
    synced: Vec<u8>,
}

/// A small generator: the states a seed leads to are the same each time.
fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mixed = (*seed ^ (*seed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed ^ (mixed >> 31)
}

impl State {
    fn step(&mut self) {
        self.count += 1;
        if self.count == self.cut_at {
            self.left = Some(self.power_cut());
        }
    }

    fn power_cut(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut seed = self.seed;
        let mut left = BTreeMap::new();
        let paths = self.names.keys().chain(self.synced_names.keys());
        for path in paths {
            let (now, synced) = (self.names.get(path), self.synced_names.get(path));
            // Half of the seeds keep no name that was not synced, as most filesystems do.
            let takes_new = self.seed.is_multiple_of(2) && random(&mut seed).is_multiple_of(2);
            if let Some(content) = if takes_new { now } else { synced } {
                left.entry(path.clone()).or_insert_with(|| content.lock().after_cut(&mut seed));
            }
        }
        left
    }
}

impl Content {
    fn after_cut(&self, seed: &mut u64) -> Vec<u8> {
        let mut bytes = self.synced.clone();
        for (at, sector) in bytes.chunks_mut(SECTOR).enumerate() {
            let Some(new) = self.bytes.get(at * SECTOR..) else { break };
            let new = &new[..new.len().min(sector.len())];
            if *new != sector[..new.len()] && random(seed).is_multiple_of(2) {
                sector[..new.len()].copy_from_slice(new);
            }
        }
        bytes
    }
}

impl SimDisk {
    /// An empty disk whose power is cut before operation number `cut_at`.
    pub(crate) fn new(cut_at: u64, seed: u64) -> Self {
        let disk = Self::default();
        (disk.state.lock().cut_at, disk.state.lock().seed) = (cut_at, seed);
        disk
    }

    /// Operations so far.
    pub(crate) fn count(&self) -> u64 {
        self.state.lock().count
    }

    /// What a power cut at the set operation left, if it was reached; now, if not.
    pub(crate) fn after_cut(&self) -> Self {
        let mut state = self.state.lock();
        let left = state.left.take().unwrap_or_else(|| state.power_cut());
        let disk = Self::default();
        for (path, bytes) in left {
            let content = Content { synced: bytes.clone(), bytes };
            let content = Arc::new(Mutex::new(content));
            disk.state.lock().names.insert(path.clone(), Arc::clone(&content));
            disk.state.lock().synced_names.insert(path, content);
        }
        disk
    }

    /// Whether the power was cut.
    pub(crate) fn is_cut(&self) -> bool {
        self.state.lock().left.is_some()
    }

    fn find(&self, path: &Path) -> io::Result<Arc<Mutex<Content>>> {
        self.state.lock().names.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn media(&self, path: &Path, published: bool) -> io::Result<Arc<dyn Media>> {
        let content = self.find(path)?;
        let len = content.lock().bytes.len() as u64;
        let published = AtomicU64::new(if published { len } else { 0 });
        let (disk, path) = (self.clone(), path.to_owned());
        Ok(Arc::new(SimMedia { disk, content, path, len, published }))
    }
}

#[derive(Debug)]
struct SimMedia {
    disk: SimDisk,
    content: Arc<Mutex<Content>>,
    path: PathBuf,
    len: u64,
    published: AtomicU64,
}

impl Media for SimMedia {
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        assert!(at >= self.published() && at + bytes.len() as u64 <= self.len);
        let mut state = self.disk.state.lock();
        state.step();
        self.content.lock().bytes[at as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        state.step();
        let mut content = self.content.lock();
        content.synced = content.bytes.clone();
        Ok(())
    }

    fn publish(&self, upto: u64) {
        self.published.fetch_max(upto, Ordering::Release);
    }

    fn published(&self) -> u64 {
        self.published.load(Ordering::Acquire)
    }

    fn view(&self, range: Range<u64>) -> io::Result<Bytes> {
        assert!(range.end <= self.published());
        let content = self.content.lock();
        let bytes = content.bytes.get(range.start as usize..range.end as usize);
        bytes.map(Bytes::copy_from_slice).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

impl Files for SimDisk {
    fn create(&self, path: &Path, len: u64, _zero: bool) -> io::Result<Arc<dyn Media>> {
        {
            let mut state = self.state.lock();
            state.step();
            let bytes = vec![0; len as usize];
            let content = Content { synced: bytes.clone(), bytes };
            state.names.insert(path.to_owned(), Arc::new(Mutex::new(content)));
        }
        self.media(path, false)
    }

    fn open_append(&self, path: &Path) -> io::Result<Arc<dyn Media>> {
        self.media(path, false)
    }

    fn open_sealed(&self, path: &Path) -> io::Result<Arc<dyn Media>> {
        self.media(path, true)
    }

    fn open_scan(&self, path: &Path) -> io::Result<Arc<dyn Media>> {
        self.media(path, true)
    }

    fn write_new(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock();
        let content = Arc::clone(state.names.entry(path.to_owned()).or_default());
        {
            // Opened, truncated and written, and the power may go before the sync.
            let mut content = content.lock();
            content.bytes = bytes.to_vec();
            content.synced = vec![0; bytes.len()];
        }
        state.step();
        content.lock().synced = bytes.to_vec();
        Ok(())
    }

    fn read(&self, path: &Path, max: u64) -> io::Result<Vec<u8>> {
        let bytes = self.find(path)?.lock().bytes.clone();
        if bytes.len() as u64 > max { Err(io::ErrorKind::InvalidData.into()) } else { Ok(bytes) }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step();
        let content = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), content);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step();
        state.names.remove(path);
        Ok(())
    }

    fn cut(&self, path: &Path, len: u64) -> io::Result<()> {
        let content = self.find(path)?;
        let mut state = self.state.lock();
        state.step();
        let mut content = content.lock();
        content.bytes.truncate(len as usize);
        content.synced = content.bytes.clone();
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.step();
        let State { names, synced_names, .. } = &mut *state;
        synced_names.retain(|path, _| path.parent() != Some(dir));
        let here = names.iter().filter(|(path, _)| path.parent() == Some(dir));
        synced_names.extend(here.map(|(path, content)| (path.clone(), Arc::clone(content))));
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state.lock();
        let here = state.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(here.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }
}
