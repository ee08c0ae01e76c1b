//! A file whose bytes are stored through a shared map: a write is a copy, no system call.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::{Media, Syncs};
use crate::sys::Map;

/// A mapped file.
#[derive(Debug)]
pub(super) struct Mapped {
    /// Nothing for a file that does not change: its map needs no descriptor.
    file: Option<File>,
    map: Arc<Map>,
    syncs: Syncs,
    path: PathBuf,
}

impl Mapped {
    pub(super) fn append(file: File, path: &Path) -> io::Result<Self> {
        let map = Arc::new(Map::writable(&file)?);
        Ok(Self { file: Some(file), map, syncs: Syncs::default(), path: path.to_owned() })
    }

    pub(super) fn sealed(file: &File, path: &Path) -> io::Result<Self> {
        let map = Arc::new(Map::read_only(file)?);
        Ok(Self { file: None, map, syncs: Syncs::default(), path: path.to_owned() })
    }
}

impl Media for Mapped {
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.map.write(at, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        // The page cache is one: fdatasync covers pages dirtied through the map.
        match &self.file {
            Some(file) => self.syncs.run(|| file.sync_data()),
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

    fn len(&self) -> u64 {
        self.map.len()
    }

    fn path(&self) -> &Path {
        &self.path
    }
}
