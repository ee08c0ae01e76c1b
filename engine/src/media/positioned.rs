//! A file written with `pwrite` and read with `pread`: for filesystems on which stores into a map
//! can fail late, and for files that must not be mapped.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::room::Room;
use super::{Media, Syncs};
use crate::sys::{Published, data_end};

/// A file without a map.
#[derive(Debug)]
pub(super) struct Positioned {
    file: File,
    room: Room,
    published: Published,
    syncs: Syncs,
    path: PathBuf,
}

impl Positioned {
    pub(super) fn append(file: File, room: Room, path: &Path) -> Self {
        Self::new(file, room, 0, path)
    }

    pub(super) fn sealed(file: File, path: &Path) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self::new(file, Room::new(len, len), len, path))
    }

    fn new(file: File, room: Room, published: u64, path: &Path) -> Self {
        let (published, path) = (Published::new(published), path.to_owned());
        Self { file, room, published, syncs: Syncs::default(), path }
    }
}

impl Media for Positioned {
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let end = at.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.len()) || at < self.published.get() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // `write_all_at` retries after EINTR and short writes.
        self.file.write_all_at(bytes, at)
    }

    fn reserve(&self, upto: u64) -> io::Result<()> {
        self.room.reserve(&self.file, upto)
    }

    fn sync(&self) -> io::Result<()> {
        self.syncs.run(|| self.file.sync_data())
    }

    fn publish(&self, upto: u64) {
        // As for a map: the kernel orders the bytes of `pwrite` and `pread`; this orders everything
        // else the writer did before publishing.
        self.published.raise(upto.min(self.len()));
    }

    fn published(&self) -> u64 {
        self.published.get()
    }

    fn view(&self, range: Range<u64>) -> io::Result<Bytes> {
        if range.start > range.end || range.end > self.published() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.file.read_exact_at(&mut bytes, range.start)?;
        Ok(Bytes::from(bytes))
    }

    fn len(&self) -> u64 {
        self.room.len()
    }

    fn zero_from(&self) -> u64 {
        data_end(&self.file, self.len())
    }

    fn path(&self) -> &Path {
        &self.path
    }
}
