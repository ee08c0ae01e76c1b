//! A shared memory map of a file. See the contract in the parent module.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use memmap2::{MmapOptions, MmapRaw, UncheckedAdvice};

use super::Published;

/// A shared map of a whole file, of which the first `published` bytes are final.
pub(crate) struct Map {
    raw: MmapRaw,
    published: Published,
    writable: bool,
}

/// Number of maps of this process.
static MAPS_OPEN: AtomicU64 = AtomicU64::new(0);

/// Number of maps of this process.
pub(crate) fn maps_open() -> u64 {
    MAPS_OPEN.load(Ordering::Relaxed)
}

impl Drop for Map {
    fn drop(&mut self) {
        MAPS_OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Map {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Map").field("len", &self.raw.len()).finish_non_exhaustive()
    }
}

impl Map {
    /// Maps a file for writing; nothing of it is published yet.
    pub(crate) fn writable(file: &File) -> io::Result<Self> {
        let raw = MmapOptions::new().map_raw(file)?;
        MAPS_OPEN.fetch_add(1, Ordering::Relaxed);
        Ok(Self { raw, published: Published::new(0), writable: true })
    }

    /// Maps a file that no longer changes; all of it is published.
    pub(crate) fn read_only(file: &File) -> io::Result<Self> {
        let raw = MmapOptions::new().map_raw_read_only(file)?;
        MAPS_OPEN.fetch_add(1, Ordering::Relaxed);
        let published = Published::new(raw.len() as u64);
        Ok(Self { raw, published, writable: false })
    }

    /// Whether `bytes` may be written at `at`: within the file, above what is published.
    pub(crate) fn check(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let end = at.checked_add(bytes.len() as u64);
        let fits = end.is_some_and(|end| end <= self.raw.len() as u64);
        match fits && self.writable && at >= self.published.get() {
            true => Ok(()),
            false => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Copies `bytes` to `at`, above what is published.
    pub(crate) fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.check(at, bytes)?;
        // SAFETY: the range was just checked to lie in the map, which is writable. No reference to
        // these bytes exists: they are not published, and `view` hands out published bytes only.
        // There is one writer (module contract). `bytes` cannot overlap them, being a reference.
        unsafe {
            let to = self.raw.as_mut_ptr().add(at as usize);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
        Ok(())
    }

    /// Removes a range from this process's page tables; pages return unchanged when they are
    /// touched. A sync write-protects mapped pages, one page and one interrupt of the other
    /// processors at a time; releasing them together costs a single one.
    pub(crate) fn release(&self, range: Range<u64>) {
        let end = range.end.min(self.raw.len() as u64);
        let Some(len) = end.checked_sub(range.start) else { return };
        // SAFETY: the range lies in the map. The map is shared, so the pages are those of the file:
        // none of their bytes changes, whichever thread reads or writes them meanwhile.
        let released = unsafe {
            let advice = UncheckedAdvice::DontNeed;
            self.raw.unchecked_advise_range(advice, range.start as usize, len as usize)
        };
        // Only an optimization: pages that are not released are write-protected as before.
        drop(released);
    }

    /// Makes the bytes below `upto` final and readable.
    pub(crate) fn publish(&self, upto: u64) {
        self.published.raise(upto.min(self.raw.len() as u64));
    }

    /// Bytes that are final.
    pub(crate) fn published(&self) -> u64 {
        self.published.get()
    }

    /// Bytes of the map.
    pub(crate) fn len(&self) -> u64 {
        self.raw.len() as u64
    }

    /// A range of published bytes, which keeps the map alive.
    pub(crate) fn view(self: &Arc<Self>, range: Range<u64>) -> io::Result<Bytes> {
        if range.start > range.end || range.end > self.published() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (at, len) = (range.start as usize, (range.end - range.start) as usize);
        Ok(Bytes::from_owner(View { map: Arc::clone(self), at, len }))
    }
}

/// A published range of a map.
struct View {
    map: Arc<Map>,
    at: usize,
    len: usize,
}

impl AsRef<[u8]> for View {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `Map::view` checked that the range was published before this value was made, so
        // it lies in the map and nothing writes to it again; the map lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.map.raw.as_ptr().add(self.at), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_published_bytes_are_seen_and_none_of_them_changes() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let map = Arc::new(Map::writable(&file).unwrap());
        map.write(0, b"hello").unwrap();
        assert!(map.view(0..5).is_err());
        map.publish(5);
        let view = map.view(0..5).unwrap();
        assert!(map.write(4, b"x").is_err());
        assert!(map.write(4095, b"xy").is_err());
        assert!(map.write(u64::MAX, b"xy").is_err());
        map.write(5, b" world").unwrap();
        map.publish(3);
        assert_eq!(map.published(), 5);
        drop(map);
        assert_eq!(&view[..], b"hello");
        let sealed = Arc::new(Map::read_only(&file).unwrap());
        assert_eq!(&sealed.view(0..11).unwrap()[..], b"hello world");
        assert!(sealed.write(100, b"x").is_err());
    }
}
