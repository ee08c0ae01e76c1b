//! Reading a blob: at once or as a stream, always checked against its CRC before and its SHA-256
//! before the end. A long blob takes no more memory than a short one.

use std::fmt;
use std::io::{self, Read};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use zstd::stream::read::Decoder;

use super::entry::{Chunks, Entry};
use super::error::BlobError;
use crate::error::ReadError;
use crate::format::file::FormatError;
use crate::format::pack::{CHUNK_LEN, EntryKind, ZSTD_WINDOW_LOG_MAX, unzstd};
use crate::value::BlobHash;

/// A blob being read. It keeps its pack readable, also when the pack is replaced meanwhile.
pub struct BlobReader {
    hash: BlobHash,
    len: u64,
    left: u64,
    source: Source,
}

enum Source {
    /// Checked and whole.
    Memory(Bytes),
    Stream(Box<Stream>),
}

/// A long blob on its way out.
struct Stream {
    bytes: Stored,
    sha: Sha256,
    at: Entry,
}

enum Stored {
    Raw(Chunks),
    Zstd(Decoder<'static, Chunks>),
}

impl fmt::Debug for BlobReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobReader")
            .field("hash", &self.hash)
            .field("len", &self.len)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

impl BlobReader {
    /// A blob whose bytes are known to be those of its hash.
    pub(super) const fn memory(hash: BlobHash, bytes: Bytes) -> Self {
        let len = bytes.len() as u64;
        Self { hash, len, left: len, source: Source::Memory(bytes) }
    }

    /// The blob of a RAW or ZSTD entry.
    pub(super) fn open(entry: Entry) -> Result<Self, BlobError> {
        let (hash, len) = (entry.header().hash, entry.header().raw_len);
        if len <= CHUNK_LEN as u64 {
            let stored = entry.stored()?;
            let bytes = match entry.header().kind {
                EntryKind::Raw => stored,
                _ => unzstd(&stored, len as usize).map_err(|what| entry.corrupt(what))?.into(),
            };
            return match BlobHash::of(&bytes) == hash {
                true => Ok(Self::memory(hash, bytes)),
                false => Err(entry.corrupt(FormatError::Field("SHA-256"))),
            };
        }
        let kind = entry.header().kind;
        let at = entry.clone();
        let chunks = entry.chunks()?;
        let bytes = match kind {
            EntryKind::Raw => Stored::Raw(chunks),
            _ => {
                let decoder = Decoder::with_buffer(chunks).and_then(|mut decoder| {
                    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                    Ok(decoder.single_frame())
                });
                let failed = |_| at.corrupt(FormatError::Field("zstd frame"));
                Stored::Zstd(decoder.map_err(failed)?)
            }
        };
        let stream = Box::new(Stream { bytes, sha: Sha256::new(), at });
        Ok(Self { hash, len, left: len, source: Source::Stream(stream) })
    }

    /// The hash.
    #[must_use]
    pub const fn hash(&self) -> BlobHash {
        self.hash
    }

    /// Bytes of the blob.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether the blob has no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What was not read yet, at once.
    ///
    /// # Errors
    /// [`ReadError::TooLarge`] when that is more than `max` bytes, [`ReadError::Corrupt`] when the
    /// bytes are not those that were stored.
    pub fn bytes(self, max: u64) -> Result<Bytes, ReadError> {
        Ok(self.all(max)?)
    }

    pub(super) fn all(mut self, max: u64) -> Result<Bytes, BlobError> {
        if self.left > max {
            return Err(BlobError::TooLong { len: self.left, max });
        }
        if let Source::Memory(bytes) = self.source {
            return Ok(bytes);
        }
        let mut all = Vec::with_capacity(self.left as usize);
        let mut buffer = vec![0; CHUNK_LEN];
        loop {
            match self.next(&mut buffer)? {
                0 => return Ok(all.into()),
                count => all.extend_from_slice(&buffer[..count]),
            }
        }
    }

    /// Reads to the end and keeps nothing.
    pub(super) fn check(mut self) -> Result<(), BlobError> {
        if matches!(self.source, Source::Memory(_)) {
            return Ok(());
        }
        let mut buffer = vec![0; CHUNK_LEN];
        while self.next(&mut buffer)? > 0 {}
        Ok(())
    }

    fn next(&mut self, out: &mut [u8]) -> Result<usize, BlobError> {
        let want = out.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let out = &mut out[..want];
        if want == 0 {
            return Ok(0);
        }
        let count = match &mut self.source {
            Source::Memory(bytes) => {
                out.copy_from_slice(&bytes.split_to(want));
                want
            }
            Source::Stream(stream) => {
                let Stream { bytes, sha, at } = &mut **stream;
                let count = bytes.read(out).map_err(|error| of_stream(error, at))?;
                sha.update(&out[..count]);
                // The last bytes are held back until the hash over all of them was seen.
                let whole = count as u64 == self.left;
                let early = count == 0;
                if early
                    || (whole && BlobHash::from_bytes(sha.clone().finalize().into()) != self.hash)
                {
                    return Err(at.corrupt(FormatError::Field("SHA-256")));
                }
                count
            }
        };
        self.left -= count as u64;
        Ok(count)
    }
}

impl Stored {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Raw(chunks) => chunks.read(out),
            Self::Zstd(decoder) => decoder.read(out),
        }
    }
}

/// Tells an error of the file from one of the decoder, which says only that it cannot go on.
fn of_stream(error: io::Error, at: &Entry) -> BlobError {
    match error.downcast::<BlobError>() {
        Ok(error) => error,
        Err(error) if error.raw_os_error().is_some() => at.failed(error),
        Err(_) => at.corrupt(FormatError::Field("zstd frame")),
    }
}

impl Read for BlobReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.next(out).map_err(|error| match error {
            BlobError::Io { source, .. } => source,
            other => io::Error::new(io::ErrorKind::InvalidData, ReadError::from(other)),
        })
    }
}
