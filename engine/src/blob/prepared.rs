//! Blobs prepared for storing before any lock is taken: hashed, compressed when long, with their
//! CRCs.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use bytes::Bytes;
use zstd::bulk;

use crate::format::pack::{
    CHUNK_LEN, ChunkCrcs, ENTRY_HEADER_LEN, EntryHeader, EntryKind, ZSTD_LEVEL, kin_of,
    seems_worth_it, worth_it,
};
use crate::value::BlobHash;

/// A blob ready to be staged.
#[derive(Debug)]
pub(crate) struct Prepared {
    hash: BlobHash,
    raw_len: u64,
    kind: EntryKind,
    kin: u32,
    stored_crc: u32,
    crc_list: Vec<u8>,
    stored: Stored,
    rotten: bool,
}

#[derive(Debug)]
enum Stored {
    /// Stored already, and verified by reading it. The bytes, if available, serve if it is swept
    /// before it is staged.
    Known(Option<Bytes>),
    Memory(Bytes),
    Spool {
        file: File,
        from: u64,
        len: u64,
    },
}

impl Prepared {
    /// A blob shorter than [`CHUNK_LEN`], kept raw: sealing compresses it with its neighbours.
    pub(super) fn small(hash: BlobHash, bytes: Bytes) -> Self {
        Self {
            hash,
            raw_len: bytes.len() as u64,
            kind: EntryKind::Raw,
            kin: 0,
            stored_crc: crc32fast::hash(&bytes),
            crc_list: Vec::new(),
            stored: Stored::Memory(bytes),
            rotten: false,
        }
    }

    /// A longer blob, compressed if that is worthwhile.
    pub(super) fn long(hash: BlobHash, bytes: Bytes) -> io::Result<Self> {
        let raw_len = bytes.len() as u64;
        let (kind, bytes) = match compress(&bytes)? {
            Some(frame) => (EntryKind::Zstd, frame),
            None => (EntryKind::Raw, bytes),
        };
        let mut crcs = ChunkCrcs::default();
        crcs.update(&bytes);
        let (stored_crc, crc_list) = crcs.finish();
        let stored = Stored::Memory(bytes);
        Ok(Self { hash, raw_len, kind, kin: 0, stored_crc, crc_list, stored, rotten: false })
    }

    /// A longer blob whose stored form is given.
    pub(super) fn stored(
        (hash, raw_len): (BlobHash, u64),
        kind: EntryKind,
        crcs: ChunkCrcs,
        bytes: Bytes,
    ) -> Self {
        let (stored_crc, crc_list) = crcs.finish();
        let stored = Stored::Memory(bytes);
        Self { hash, raw_len, kind, kin: 0, stored_crc, crc_list, stored, rotten: false }
    }

    /// A blob of which the packs have a sound copy.
    pub(super) const fn known(hash: BlobHash, raw_len: u64, bytes: Option<Bytes>) -> Self {
        Self {
            hash,
            raw_len,
            kind: EntryKind::Raw,
            kin: 0,
            stored_crc: 0,
            crc_list: Vec::new(),
            stored: Stored::Known(bytes),
            rotten: false,
        }
    }

    /// A blob whose stored form lies in a file, from `from` on.
    pub(super) fn spooled(
        (hash, raw_len): (BlobHash, u64),
        kind: EntryKind,
        crcs: ChunkCrcs,
        (file, from, len): (File, u64, u64),
    ) -> Self {
        let (stored_crc, crc_list) = crcs.finish();
        let stored = Stored::Spool { file, from, len };
        Self { hash, raw_len, kind, kin: 0, stored_crc, crc_list, stored, rotten: false }
    }

    /// Sets whether the stored copy is damaged, so that this one must be written.
    pub(super) fn rotten(mut self, rotten: bool) -> Self {
        self.rotten = rotten;
        self
    }

    /// Sets the topic that it will be read with: see [`kin_of`].
    pub(crate) fn of_topic(mut self, topic: &str) -> Self {
        self.kin = kin_of(topic);
        self
    }

    pub(super) const fn is_rotten(&self) -> bool {
        self.rotten
    }

    /// The hash.
    pub(crate) const fn hash(&self) -> BlobHash {
        self.hash
    }

    /// Bytes of the blob.
    pub(crate) const fn len(&self) -> u64 {
        self.raw_len
    }

    pub(super) const fn is_known(&self) -> bool {
        matches!(self.stored, Stored::Known(_))
    }

    /// Prepares a blob again that the packs no longer have.
    pub(super) fn again(&self) -> Option<io::Result<Self>> {
        match &self.stored {
            Stored::Known(Some(bytes)) => Some(Self::long(self.hash, bytes.clone())),
            _ => None,
        }
    }

    /// The bytes of a raw blob in memory, to compare with what is stored.
    pub(super) fn raw(&self) -> Option<&Bytes> {
        match &self.stored {
            Stored::Memory(bytes) if self.kind == EntryKind::Raw => Some(bytes),
            _ => None,
        }
    }

    pub(super) fn stored_len(&self) -> u64 {
        match &self.stored {
            Stored::Known(_) => 0,
            Stored::Memory(bytes) => bytes.len() as u64,
            Stored::Spool { len, .. } => *len,
        }
    }

    pub(super) fn header(&self, salt: u32) -> EntryHeader {
        EntryHeader {
            kind: self.kind,
            kin: self.kin,
            salt,
            stored_len: self.stored_len(),
            raw_len: self.raw_len,
            hash: self.hash,
            stored_crc: self.stored_crc,
            count: 1,
            durable_upto: 0,
        }
    }

    /// Passes the whole entry to `write`, piece by piece in order, for a pack with this salt and
    /// durable position.
    pub(super) fn entry(
        &self,
        (salt, durable_upto): (u32, u64),
        write: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        write(&EntryHeader { durable_upto, ..self.header(salt) }.encode())?;
        self.pieces(write)?;
        write(padding(ENTRY_HEADER_LEN as u64 + self.stored_len()))?;
        if self.crc_list.is_empty() { Ok(()) } else { write(&self.crc_list) }
    }

    fn pieces(&self, write: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        match &self.stored {
            Stored::Known(_) => Ok(()),
            Stored::Memory(bytes) => write(bytes),
            Stored::Spool { file, from, len } => {
                let mut buffer = vec![0; CHUNK_LEN];
                let mut done = 0;
                while done < *len {
                    let part = (*len - done).min(CHUNK_LEN as u64) as usize;
                    file.read_exact_at(&mut buffer[..part], from + done)?;
                    write(&buffer[..part])?;
                    done += part as u64;
                }
                Ok(())
            }
        }
    }
}

/// Compresses a long blob, if that is worthwhile. Tries its beginning and its middle first.
fn compress(bytes: &Bytes) -> io::Result<Option<Bytes>> {
    if !seems_worth_it(bytes) && !seems_worth_it(&bytes[bytes.len() / 2..]) {
        return Ok(None);
    }
    let frame = bulk::compress(bytes, ZSTD_LEVEL)?;
    Ok(worth_it(frame.len() as u64, bytes.len() as u64).then(|| Bytes::from(frame)))
}

/// Zeros from `len` to the next multiple of 8.
pub(super) const fn padding(len: u64) -> &'static [u8] {
    let zeros: &'static [u8] = &[0; 8];
    zeros.split_at((len.next_multiple_of(8) - len) as usize).0
}
