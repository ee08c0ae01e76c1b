//! A blob that arrives in pieces. A longer one is compressed on the way if its beginning suggests
//! that this is worthwhile. Its stored form stays in memory while it is short, and is spooled to a
//! file of its own otherwise, so that the commit only copies it and memory use is bounded.

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
use crate::error::PutError;
use crate::format::pack::{CHUNK_LEN, ChunkCrcs, EntryKind, ZSTD_LEVEL, seems_worth_it, worth_it};
use crate::limits::BLOB_BYTES_MAX;
use crate::value::BlobHash;

/// Maximum stored bytes kept in memory.
const KEPT_MAX: usize = 1024 * 1024;

/// Receives a blob; [`finish`](Self::finish) stores it. Dropped before that, it leaves nothing
/// behind.
pub(crate) struct Incoming {
    shared: Arc<Shared>,
    sha: Sha256,
    len: u64,
    sink: Sink,
    /// A write failed: the bytes so far are not the blob.
    failed: Option<io::ErrorKind>,
}

enum Sink {
    Memory(Vec<u8>),
    Zstd(Box<write::Encoder<'static, Spool>>),
    Raw(Spool),
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").field("len", &self.len).finish_non_exhaustive()
    }
}

/// The stored form: in memory, or in an unlinked file, of which nothing is left after a crash.
struct Spool {
    shared: Arc<Shared>,
    kept: Vec<u8>,
    file: Option<File>,
    len: u64,
    crcs: ChunkCrcs,
}

impl Spool {
    fn new(shared: &Arc<Shared>) -> Self {
        let shared = Arc::clone(shared);
        Self { shared, kept: Vec::new(), file: None, len: 0, crcs: ChunkCrcs::default() }
    }

    fn create(shared: &Shared) -> io::Result<File> {
        let random: [u8; 16] = shared.env.random.bytes();
        let name = format!("{:032x}.tmp", u128::from_le_bytes(random));
        let path: PathBuf = shared.env.blob_dir().join(name);
        let file =
            File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(file)
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.file.is_none() && self.kept.len() + bytes.len() > KEPT_MAX {
            let file = Self::create(&self.shared)?;
            file.write_all_at(&self.kept, 0)?;
            (self.file, self.kept) = (Some(file), Vec::new());
        }
        match &self.file {
            Some(file) => file.write_all_at(bytes, self.len)?,
            None => self.kept.extend_from_slice(bytes),
        }
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

    /// Stores the blob and returns its hash and length. It is readable at once and durable after
    /// the next sync.
    ///
    /// # Errors
    /// [`PutError`] when it was not stored, including after an earlier failed write.
    pub(crate) fn finish(self) -> Result<(BlobHash, u64), PutError> {
        match self.failed {
            None => Ok(self.store()?),
            Some(io::ErrorKind::FileTooLarge) => Err(PutError::TooLarge { max: BLOB_BYTES_MAX }),
            Some(kind) => Err(StageError::harmless(kind).into()),
        }
    }

    fn store(self) -> Result<(BlobHash, u64), StageError> {
        let hash = BlobHash::from_bytes(self.sha.finalize().into());
        let (shared, len) = (&self.shared, self.len);
        let (kind, spool) = match self.sink {
            Sink::Memory(bytes) => {
                shared.put(&Prepared::small(hash, Bytes::from(bytes)))?;
                return Ok((hash, len));
            }
            Sink::Zstd(encoder) => {
                (EntryKind::Zstd, encoder.finish().map_err(StageError::harmless)?)
            }
            Sink::Raw(spool) => (EntryKind::Raw, spool),
        };
        let there = shared.look_through(&hash).map_err(StageError::harmless)?;
        let known = || shared.put(&Prepared::known(hash, len, None));
        let put = if there == Some(true) { known() } else { Err(StageError::Gone) };
        match put {
            Err(StageError::Gone) => {
                let blob = spool.prepare(kind, hash, len).map_err(StageError::harmless)?;
                shared.put(&blob.rotten(there == Some(false)))?;
            }
            put => put?,
        }
        Ok((hash, len))
    }
}

impl Spool {
    fn prepare(self, kind: EntryKind, hash: BlobHash, raw_len: u64) -> io::Result<Prepared> {
        if kind == EntryKind::Raw || worth_it(self.len, raw_len) {
            return Ok(self.stored(kind, (hash, raw_len)));
        }
        let mut raw = Self::new(&self.shared);
        match &self.file {
            Some(file) => io::copy(&mut read::Decoder::new(Reading { file, at: 0 })?, &mut raw)?,
            None => io::copy(&mut read::Decoder::new(&self.kept[..])?, &mut raw)?,
        };
        if raw.len != raw_len {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(raw.stored(EntryKind::Raw, (hash, raw_len)))
    }

    fn stored(self, kind: EntryKind, blob: (BlobHash, u64)) -> Prepared {
        match self.file {
            Some(file) => Prepared::spooled(blob, kind, self.crcs, (file, 0, self.len)),
            None => Prepared::stored(blob, kind, self.crcs, Bytes::from(self.kept)),
        }
    }
}

/// Reads a file from a position of its own.
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
    /// Pretends that this many bytes were received.
    #[cfg(test)]
    pub(super) const fn pretend_len(&mut self, len: u64) {
        self.len = len;
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.len + bytes.len() as u64 > BLOB_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.sha.update(bytes);
        self.len += bytes.len() as u64;
        let mut rest = bytes;
        if let Sink::Memory(kept) = &mut self.sink
            && kept.len() + bytes.len() >= CHUNK_LEN
        {
            let first;
            (first, rest) = bytes.split_at(CHUNK_LEN.saturating_sub(kept.len()));
            kept.extend_from_slice(first);
            let mut spool = Spool::new(&self.shared);
            self.sink = if seems_worth_it(kept) {
                let mut encoder = write::Encoder::new(spool, ZSTD_LEVEL)?;
                encoder.write_all(kept.as_slice())?;
                Sink::Zstd(Box::new(encoder))
            } else {
                spool.write_all(kept.as_slice())?;
                Sink::Raw(spool)
            };
        }
        match &mut self.sink {
            Sink::Memory(kept) => kept.extend_from_slice(rest),
            Sink::Zstd(encoder) => encoder.write_all(rest)?,
            Sink::Raw(spool) => spool.write_all(rest)?,
        }
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
