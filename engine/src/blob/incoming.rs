//! A blob that comes in piece by piece. A short one stays in memory; a longer one is compressed
//! into a file of its own on the way, so that the commit only copies it and memory stays flat.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use zstd::stream::{read, write};

use super::Shared;
use super::error::StageError;
use super::prepared::Prepared;
use crate::format::pack::{CHUNK_LEN, ChunkCrcs, EntryKind, ZSTD_LEVEL_LONG, worth_it};
use crate::limits::BLOB_BYTES_MAX;
use crate::value::BlobHash;

/// Takes a blob as it comes; [`finish`](Self::finish) stores it. Dropped before, it leaves nothing.
pub(crate) struct Incoming {
    shared: Arc<Shared>,
    sha: Sha256,
    len: u64,
    sink: Sink,
    /// A write failed: what came before it is not the blob.
    failed: Option<io::ErrorKind>,
}

enum Sink {
    Memory(Vec<u8>),
    Spool(Box<write::Encoder<'static, Spool>>),
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").field("len", &self.len).finish_non_exhaustive()
    }
}

/// The compressed form, in a file that has no name any more: nothing is left of it after a crash.
struct Spool {
    file: File,
    len: u64,
    crcs: ChunkCrcs,
}

impl Spool {
    fn create(shared: &Shared) -> io::Result<Self> {
        let random: [u8; 16] = shared.env.random.bytes();
        let name = format!("{:032x}.tmp", u128::from_le_bytes(random));
        let path: PathBuf = shared.env.blob_dir().join(name);
        let file =
            File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(Self { file, len: 0, crcs: ChunkCrcs::default() })
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all_at(bytes, self.len)?;
        self.crcs.update(bytes);
        self.len += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Incoming {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, sha: Sha256::new(), len: 0, sink: Sink::Memory(Vec::new()), failed: None }
    }

    /// Stores the blob and returns its hash and length. It can be read at once and is durable after
    /// the next sync.
    ///
    /// # Errors
    /// [`StageError`] when it was not stored, also when a write failed before.
    pub(crate) fn finish(self) -> Result<(BlobHash, u64), StageError> {
        match self.failed {
            None => {}
            Some(io::ErrorKind::FileTooLarge) => return Err(StageError::TooLong),
            Some(kind) => return Err(StageError::harmless(kind)),
        }
        let hash = BlobHash::from_bytes(self.sha.finalize().into());
        let shared = &self.shared;
        match self.sink {
            Sink::Memory(bytes) => shared.put(&Prepared::small(hash, Bytes::from(bytes)))?,
            Sink::Spool(encoder) => {
                let spool = encoder.finish().map_err(StageError::harmless)?;
                let there = shared.look_through(&hash).map_err(StageError::harmless)?;
                let known = || shared.put(&Prepared::known(hash, self.len, None));
                let put = if there == Some(true) { known() } else { Err(StageError::Gone) };
                match put {
                    Err(StageError::Gone) => {
                        let blob = spool.prepare(shared, hash, self.len);
                        let blob = blob.map_err(StageError::harmless)?;
                        shared.put(&blob.rotten(there == Some(false)))?;
                    }
                    put => put?,
                }
            }
        }
        Ok((hash, self.len))
    }
}

impl Spool {
    fn prepare(self, shared: &Shared, hash: BlobHash, raw_len: u64) -> io::Result<Prepared> {
        if worth_it(self.len, raw_len) {
            let place = (self.file, 0, self.len);
            return Ok(Prepared::spooled((hash, raw_len), EntryKind::Zstd, self.crcs, place));
        }
        let mut raw = Self::create(shared)?;
        let compressed = Reading { file: &self.file, at: 0 };
        io::copy(&mut read::Decoder::new(compressed)?, &mut raw)?;
        if raw.len != raw_len {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let place = (raw.file, 0, raw.len);
        Ok(Prepared::spooled((hash, raw_len), EntryKind::Raw, raw.crcs, place))
    }
}

/// Reads a file from a place of its own.
struct Reading<'a> {
    file: &'a File,
    at: u64,
}

impl io::Read for Reading<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(out, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Incoming {
    /// As if so many bytes had come.
    #[cfg(test)]
    pub(super) const fn pretend_len(&mut self, len: u64) {
        self.len = len;
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.len + bytes.len() as u64 > BLOB_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if let Sink::Memory(kept) = &mut self.sink
            && kept.len() + bytes.len() >= CHUNK_LEN
        {
            let spool = Spool::create(&self.shared)?;
            let mut encoder = write::Encoder::new(spool, ZSTD_LEVEL_LONG)?;
            encoder.write_all(kept)?;
            self.sink = Sink::Spool(Box::new(encoder));
        }
        match &mut self.sink {
            Sink::Memory(kept) => kept.extend_from_slice(bytes),
            Sink::Spool(encoder) => encoder.write_all(bytes)?,
        }
        self.sha.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }
}

impl Write for Incoming {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(kind) = self.failed {
            return Err(kind.into());
        }
        match self.take(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(error) => {
                self.failed = Some(error.kind());
                Err(error)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
