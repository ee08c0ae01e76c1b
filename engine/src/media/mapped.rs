//! A file written through a shared map: a short write is a copy without a system call, a long one
//! is a `pwrite`.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::room::Room;
use super::{Media, Syncs};
use crate::sys::Map;

/// Writes of at least this length, one page, use `pwrite`: the kernel takes pages that are covered
/// whole as they are, where a store through the map faults in and zeroes each one first.
const LONG: usize = 4096;

/// If at least this many bytes were stored through the map since the last sync, their pages are
/// released before the next one. Below that, releasing saves no more than it costs.
const RELEASE_MIN: u64 = 16 * 4096;

/// A mapped file.
#[derive(Debug)]
pub(super) struct Mapped {
    /// `None` for a file that does not change: its map needs no descriptor.
    file: Option<(File, Room)>,
    map: Arc<Map>,
    /// End of what was stored through the map: so far, and at the last sync.
    written: AtomicU64,
    synced: AtomicU64,
    syncs: Syncs,
    path: PathBuf,
}

impl Mapped {
    pub(super) fn append(file: File, room: Room, path: &Path) -> io::Result<Self> {
        let map = Map::writable(&file)?;
        Ok(Self::new(Some((file, room)), map, path))
    }

    pub(super) fn sealed(file: &File, path: &Path) -> io::Result<Self> {
        Ok(Self::new(None, Map::read_only(file)?, path))
    }

    fn new(file: Option<(File, Room)>, map: Map, path: &Path) -> Self {
        Self {
            file,
            map: Arc::new(map),
            written: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            syncs: Syncs::default(),
            path: path.to_owned(),
        }
    }
}

impl Media for Mapped {
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.map.check(at, bytes)?;
        // A store into a map without allocated space kills the process.
        self.reserve(at + bytes.len() as u64)?;
        match &self.file {
            Some((file, _)) if bytes.len() >= LONG => {
                // The page cache is unified: readers of published bytes see them through the map.
                // `write_all_at` retries after EINTR and short writes.
                file.write_all_at(bytes, at)
            }
            _ => {
                self.map.write(at, bytes)?;
                self.written.fetch_max(at + bytes.len() as u64, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    fn reserve(&self, upto: u64) -> io::Result<()> {
        match &self.file {
            Some((file, room)) => room.reserve(file, upto),
            None => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        // The page cache is unified: fdatasync covers pages dirtied through the map.
        match &self.file {
            Some((file, _)) => self.syncs.run(|| {
                // Both are only hints for what to release; the kernel knows which pages are dirty.
                let written = self.written.load(Ordering::Relaxed);
                let synced = self.synced.load(Ordering::Relaxed);
                if written.saturating_sub(synced) >= RELEASE_MIN {
                    self.map.release(synced..written);
                }
                file.sync_data()?;
                self.synced.fetch_max(written, Ordering::Relaxed);
                Ok(())
            }),
            None => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn publish(&self, upto: u64) {
        self.map.publish(upto);
    }

    fn published(&self) -> u64 {
        self.map.published()
    }

    fn view(&self, range: Range<u64>) -> io::Result<Bytes> {
        self.map.view(range)
    }

    fn mapped(&self) -> Option<Bytes> {
        self.map.view(0..self.published()).ok()
    }

    fn len(&self) -> u64 {
        self.map.len()
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_writes_and_short_ones_share_their_pages() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let options = File::options().read(true).write(true).create_new(true).open(&path);
        let file = options.unwrap();
        file.set_len(4 * LONG as u64).unwrap();
        let media = Mapped::append(file, Room::new(4 * LONG as u64, 0), &path).unwrap();
        let mut want = Vec::new();
        for (n, len) in [(1, 100), (2, LONG), (3, 100), (4, LONG + 1), (5, LONG - 1)] {
            let bytes = vec![n; len];
            media.write_at(want.len() as u64, &bytes).unwrap();
            want.extend_from_slice(&bytes);
            media.publish(want.len() as u64);
            assert_eq!(media.view(0..want.len() as u64).unwrap(), want);
        }
        let long = vec![9; LONG];
        for at in [0, want.len() as u64 - 1, 3 * LONG as u64 + 1, u64::MAX] {
            let refused = media.write_at(at, &long).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput, "{at}");
        }
        media.sync().unwrap();
        assert_eq!(std::fs::read(&path).unwrap()[..want.len()], want);
    }

    #[test]
    fn released_pages_are_what_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let options = File::options().read(true).write(true).create_new(true).open(&path);
        let file = options.unwrap();
        file.set_len(3 * RELEASE_MIN).unwrap();
        let media = Mapped::append(file, Room::new(3 * RELEASE_MIN, 0), &path).unwrap();
        let (mut want, mut views) = (Vec::new(), Vec::new());
        let mut released = 0;
        for n in 0..1_900_u64 {
            let bytes = n.to_le_bytes().repeat(12);
            media.write_at(want.len() as u64, &bytes).unwrap();
            want.extend_from_slice(&bytes);
            // What is written is not always published when it is synced.
            if n % 3 == 0 {
                media.publish(want.len() as u64);
                views.push(media.view(0..want.len() as u64).unwrap());
            }
            if n % 700 == 699 {
                let before = media.synced.load(Ordering::Relaxed);
                media.sync().unwrap();
                let synced = media.synced.load(Ordering::Relaxed);
                assert_eq!(synced, want.len() as u64);
                released += u32::from(synced - before >= RELEASE_MIN);
                assert_eq!(std::fs::read(&path).unwrap()[..want.len()], want);
            }
        }
        assert_eq!(released, 2);
        assert!(views.iter().all(|view| view[..] == want[..view.len()]));
    }
}
