//! Reads a blob, whole or as a stream, always checked against its CRC first and its SHA-256 before
//! the end. A long blob takes no more memory than a short one.

use std::fmt;
use std::io::{self, Read};
use std::ops::ControlFlow;

use bytes::{Buf as _, Bytes};
use sha2::{Digest as _, Sha256};
use zstd::stream::read::Decoder;

use super::entry::{Chunks, Entry};
use super::error::BlobError;
use crate::error::ReadError;
use crate::format::file::FormatError;
use crate::format::pack::{CHUNK_LEN, EntryKind, ZSTD_WINDOW_LOG_MAX, unzstd};
use crate::value::BlobHash;

/// Compressed blobs up to this length are decompressed at once, which takes half the time of a
/// stream, and this much memory.
const WHOLE_MAX: u64 = 1024 * 1024;
/// Maximum bytes of a compressed stream that are decompressed at a time.
const PIECE_MAX: usize = 256 * 1024;
/// Bytes of a blob after which a check of it asks whether to go on.
const ASK_EVERY: usize = 4 * 1024 * 1024;

/// Asked from time to time whether to go on; breaking stops the work.
pub(super) type GoOn<'a> = &'a mut dyn FnMut(u64) -> ControlFlow<()>;

/// A reader of a blob. It keeps its pack readable, even if the pack is replaced meanwhile.
#[must_use = "nothing is read before it is asked"]
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

/// A long blob being read.
struct Stream {
    bytes: Stored,
    sha: Sha256,
    at: Entry,
}

enum Stored {
    Raw(Chunks),
    Zstd(Decoder<'static, Chunks>),
    /// Decompressed at once. The hash is still computed piece by piece, so a server can send one
    /// meanwhile.
    Whole(Bytes),
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
    /// A blob whose bytes are known to match its hash.
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
        let mut chunks = entry.chunks()?;
        let bytes = match kind {
            EntryKind::Raw => Stored::Raw(chunks),
            EntryKind::Zstd if len <= WHOLE_MAX => {
                let stored = chunks.next_chunks(WHOLE_MAX as usize)?;
                let bytes = unzstd(&stored, len as usize).map_err(|what| at.corrupt(what))?;
                Stored::Whole(bytes.into())
            }
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

    /// Returns the hash of the blob.
    #[must_use]
    pub const fn hash(&self) -> BlobHash {
        self.hash
    }

    /// Returns the length of the blob in bytes.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether the blob has no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the remaining bytes at once.
    ///
    /// # Errors
    /// [`ReadError::TooLarge`] when that is more than `max` bytes, [`ReadError::Corrupt`] when the
    /// bytes are not those that were stored.
    pub fn bytes(self, max: u64) -> Result<Bytes, ReadError> {
        Ok(self.all(max)?)
    }

    /// Returns the next bytes, at most `max` and empty at the end. Raw bytes come straight from the
    /// file, without a copy.
    ///
    /// # Errors
    /// [`ReadError::Corrupt`] when the bytes are not those that were stored.
    pub fn next_bytes(&mut self, max: usize) -> Result<Bytes, ReadError> {
        Ok(self.piece(max)?)
    }

    pub(super) fn all(mut self, max: u64) -> Result<Bytes, BlobError> {
        if self.left > max {
            return Err(BlobError::TooLong { len: self.left, max });
        }
        let first = self.piece(usize::try_from(self.left).unwrap_or(usize::MAX))?;
        if self.left == 0 {
            return Ok(first);
        }
        let mut all = Vec::with_capacity(first.len() + self.left as usize);
        all.extend_from_slice(&first);
        while self.left > 0 {
            all.extend_from_slice(&self.piece(PIECE_MAX)?);
        }
        Ok(all.into())
    }

    fn piece(&mut self, max: usize) -> Result<Bytes, BlobError> {
        let want = max.min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(Bytes::new());
        }
        let piece = match &mut self.source {
            Source::Memory(bytes) => bytes.split_to(want),
            Source::Stream(stream) => match &mut stream.bytes {
                Stored::Raw(chunks) => {
                    let mut bytes = chunks.next_chunks(want)?;
                    chunks.put_back(bytes.split_off(want.min(bytes.len())));
                    stream.pass(&bytes, self.left, &self.hash)?;
                    bytes
                }
                Stored::Whole(bytes) => {
                    let bytes = bytes.split_to(want.min(bytes.len()));
                    stream.pass(&bytes, self.left, &self.hash)?;
                    bytes
                }
                Stored::Zstd(_) => {
                    let mut bytes = vec![0; want.min(PIECE_MAX)];
                    let mut filled = 0;
                    while filled < bytes.len() {
                        // The last bytes are held back until the hash was checked, so it is never
                        // short.
                        filled += self.next(&mut bytes[filled..])?;
                    }
                    return Ok(bytes.into());
                }
            },
        };
        self.left -= piece.len() as u64;
        Ok(piece)
    }

    /// Reads to the end and discards the bytes.
    pub(super) fn check(self) -> Result<(), BlobError> {
        self.check_while(&mut |_| ControlFlow::Continue(())).map(drop)
    }

    /// Like [`check`](Self::check), and asks meanwhile whether to go on, with the number of stored
    /// bytes read so far.
    pub(super) fn check_while(mut self, go_on: GoOn<'_>) -> Result<ControlFlow<()>, BlobError> {
        let Source::Stream(stream) = &self.source else { return Ok(ControlFlow::Continue(())) };
        let is_zstd = matches!(stream.bytes, Stored::Zstd(_));
        let mut buffer = vec![0; if is_zstd { CHUNK_LEN } else { 0 }];
        let mut unasked = 0;
        loop {
            let count = match is_zstd {
                true => self.next(&mut buffer)?,
                false => self.piece(PIECE_MAX)?.len(),
            };
            if count == 0 {
                return Ok(ControlFlow::Continue(()));
            }
            unasked += count;
            if unasked >= ASK_EVERY {
                unasked = 0;
                if go_on(self.stored_read()).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
    }

    /// The stored bytes of a stream that were read so far.
    fn stored_read(&self) -> u64 {
        let Source::Stream(stream) = &self.source else { return 0 };
        match &stream.bytes {
            Stored::Raw(chunks) => chunks.read_so_far(),
            Stored::Zstd(decoder) => decoder.get_ref().read_so_far(),
            Stored::Whole(_) => 0,
        }
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
                let count = stream.bytes.read(out).map_err(|error| of_stream(error, &stream.at))?;
                stream.pass(&out[..count], self.left, &self.hash)?;
                count
            }
        };
        self.left -= count as u64;
        Ok(count)
    }
}

impl Stream {
    /// Hashes bytes before they are returned; `left` counts them and those to come. The last ones
    /// are held back until the hash of everything was checked.
    fn pass(&mut self, bytes: &[u8], left: u64, hash: &BlobHash) -> Result<(), BlobError> {
        self.sha.update(bytes);
        let whole = bytes.len() as u64 == left;
        let same = || BlobHash::from_bytes(self.sha.clone().finalize().into()) == *hash;
        match bytes.is_empty() || (whole && !same()) {
            true => Err(self.at.corrupt(FormatError::Field("SHA-256"))),
            false => Ok(()),
        }
    }
}

impl Stored {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Raw(chunks) => chunks.read(out),
            Self::Zstd(decoder) => decoder.read(out),
            Self::Whole(bytes) => bytes.as_ref().read(out).inspect(|count| bytes.advance(*count)),
        }
    }
}

/// Distinguishes an I/O error of the file from an error of the decoder.
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
            BlobError::Io { error, .. } => error,
            other => io::Error::new(io::ErrorKind::InvalidData, ReadError::from(other)),
        })
    }
}
