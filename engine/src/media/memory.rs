//! Files that exist only as bytes in memory, for proofs that open a store some hundred thousand
//! times. They do not model syncs: [`sim`](super::sim) does.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use super::sim::Image;
use super::{Files, Media};
use crate::sys::Published;

/// The bytes of a file, copied on write while a reader holds them.
type Content = Arc<RwLock<Arc<Vec<u8>>>>;

/// The files of a store below a root.
#[derive(Debug, Clone)]
pub(crate) struct MemoryDisk {
    root: PathBuf,
    names: Arc<Mutex<BTreeMap<PathBuf, Content>>>,
    frozen: Arc<AtomicBool>,
}

impl MemoryDisk {
    /// A disk that holds an image below `root`.
    pub(crate) fn new(image: &Image, root: &Path) -> Self {
        let content = |bytes: &Arc<Vec<u8>>| Arc::new(RwLock::new(Arc::clone(bytes)));
        let names = image.iter().map(|(path, bytes)| (path.clone(), content(bytes))).collect();
        let (names, frozen) = (Arc::new(Mutex::new(names)), Arc::default());
        Self { root: root.to_owned(), names, frozen }
    }

    /// A snapshot of its content.
    pub(crate) fn image(&self) -> Image {
        let bytes = |content: &Content| Arc::clone(&content.read());
        self.names.lock().iter().map(|(path, content)| (path.clone(), bytes(content))).collect()
    }

    /// Simulates a killed process: later operations change nothing.
    pub(crate) fn freeze(&self) {
        self.frozen.store(true, Ordering::SeqCst);
    }

    fn alive(&self) -> io::Result<()> {
        match self.frozen.load(Ordering::SeqCst) {
            true => Err(io::Error::other("the process is dead")),
            false => Ok(()),
        }
    }

    fn name(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).unwrap().to_owned()
    }

    fn find(&self, path: &Path) -> io::Result<Content> {
        let found = self.names.lock().get(&self.name(path)).cloned();
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn put(&self, path: &Path, bytes: Vec<u8>) -> io::Result<()> {
        self.alive()?;
        self.names.lock().insert(self.name(path), Arc::new(RwLock::new(Arc::new(bytes))));
        Ok(())
    }

    fn open(&self, path: &Path, sealed: bool) -> io::Result<Arc<dyn Media>> {
        let content = self.find(path)?;
        let len = content.read().len() as u64;
        let published = Published::new(if sealed { len } else { 0 });
        let (disk, path) = (self.clone(), path.to_owned());
        Ok(Arc::new(MemoryMedia { disk, content, len, published, path }))
    }
}

#[derive(Debug)]
struct MemoryMedia {
    disk: MemoryDisk,
    content: Content,
    len: u64,
    published: Published,
    path: PathBuf,
}

/// A snapshot of a file's bytes.
struct Seen(Arc<Vec<u8>>);

impl AsRef<[u8]> for Seen {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Media for MemoryMedia {
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.alive()?;
        let end = at + bytes.len() as u64;
        if end > self.len || at < self.published.get() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Arc::make_mut(&mut self.content.write())[at as usize..end as usize].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.alive()
    }

    fn publish(&self, upto: u64) {
        self.published.raise(upto.min(self.len));
    }

    fn published(&self) -> u64 {
        self.published.get()
    }

    fn view(&self, range: Range<u64>) -> io::Result<Bytes> {
        if range.start > range.end || range.end > self.published() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let bytes = Bytes::from_owner(Seen(Arc::clone(&self.content.read())));
        Ok(bytes.slice(range.start as usize..range.end as usize))
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

impl Files for MemoryDisk {
    fn create(&self, path: &Path, len: u64, _zero: bool) -> io::Result<Arc<dyn Media>> {
        self.put(path, vec![0; len as usize])?;
        self.open(path, false)
    }

    fn open_append(&self, path: &Path) -> io::Result<Arc<dyn Media>> {
        self.open(path, false)
    }

    fn open_sealed(&self, path: &Path) -> io::Result<Arc<dyn Media>> {
        self.open(path, true)
    }

    fn open_scan(&self, path: &Path) -> io::Result<Arc<dyn Media>> {
        self.open(path, true)
    }

    fn open_unmapped(&self, path: &Path) -> io::Result<Arc<dyn Media>> {
        self.open(path, true)
    }

    fn forget(&self, _path: &Path, _part: Range<u64>) -> io::Result<()> {
        Ok(())
    }

    fn write_new(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.put(path, bytes.to_vec())
    }

    fn read(&self, path: &Path, max: u64) -> io::Result<Vec<u8>> {
        let bytes = self.find(path)?.read().to_vec();
        if bytes.len() as u64 > max { Err(io::ErrorKind::InvalidData.into()) } else { Ok(bytes) }
    }

    fn len_of(&self, path: &Path) -> io::Result<u64> {
        Ok(self.find(path)?.read().len() as u64)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.alive()?;
        let content = self.find(from)?;
        self.names.lock().insert(self.name(to), content);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.alive()?;
        let mut names = self.names.lock();
        let content = names.remove(&self.name(from)).ok_or(io::ErrorKind::NotFound)?;
        names.insert(self.name(to), content);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.alive()?;
        self.names.lock().remove(&self.name(path));
        Ok(())
    }

    fn cut(&self, path: &Path, len: u64) -> io::Result<()> {
        self.alive()?;
        Arc::make_mut(&mut self.find(path)?.write()).resize(len as usize, 0);
        Ok(())
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        self.alive()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let (names, dir) = (self.names.lock(), self.name(dir));
        let here = names.keys().filter(|path| path.parent() == Some(&*dir));
        Ok(here.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        self.alive()
    }
}
