//! Reads one entry of a pack. The header is checked when the entry is found, the stored bytes
//! whenever they are read, chunk by chunk: only bytes that a CRC covers are returned.

use std::io::{self, BufRead, Read};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};

use super::error::BlobError;
use crate::format::file::FormatError;
use crate::format::pack::{Block, CHUNK_LEN, ENTRY_HEADER_LEN, EntryHeader};
use crate::media::Media;

/// Bytes read together with a header: most blobs are shorter, so one read gets all of them.
pub(super) const NEAR_LEN: u64 = 4096;

/// An entry with a checked header.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    media: Arc<dyn Media>,
    at: u64,
    header: EntryHeader,
    near: Bytes,
}

impl Entry {
    /// Reads the header at `at`.
    pub(super) fn read(media: &Arc<dyn Media>, at: u64, salt: u32) -> Result<Self, BlobError> {
        let end = at.saturating_add(ENTRY_HEADER_LEN as u64 + NEAR_LEN).min(media.published());
        Self::at_hand(media, (at, view(media, at.min(end), end)?), salt)
    }

    /// Parses the header at the beginning of bytes that were read at position `at`.
    pub(super) fn at_hand(
        media: &Arc<dyn Media>,
        (at, near): (u64, Bytes),
        salt: u32,
    ) -> Result<Self, BlobError> {
        let corrupt = |what| BlobError::corrupt(media.path(), at, what);
        let header = EntryHeader::read(&near).map_err(corrupt)?;
        if header.salt != salt {
            return Err(corrupt(FormatError::Field("salt")));
        }
        match at.checked_add(header.stride()) {
            Some(end) if end <= media.published() => {}
            _ => return Err(corrupt(FormatError::Short)),
        }
        Ok(Self { media: Arc::clone(media), at, header, near })
    }

    pub(super) const fn media(&self) -> &Arc<dyn Media> {
        &self.media
    }

    pub(super) const fn header(&self) -> &EntryHeader {
        &self.header
    }

    pub(super) const fn at(&self) -> u64 {
        self.at
    }

    /// Where the next entry begins.
    pub(super) const fn end(&self) -> u64 {
        self.at + self.header.stride()
    }

    pub(super) fn corrupt(&self, what: FormatError) -> BlobError {
        BlobError::corrupt(self.media.path(), self.at, what)
    }

    pub(super) fn failed(&self, source: io::Error) -> BlobError {
        BlobError::io(self.media.path(), source)
    }

    /// The stored bytes of an entry of one chunk, checked.
    pub(super) fn stored(&self) -> Result<Bytes, BlobError> {
        if self.header.chunks() > 1 {
            return Err(self.corrupt(FormatError::Field("length")));
        }
        let stored = self.part(0, self.header.stored_len)?;
        self.header.check_stored(&stored).map_err(|what| self.corrupt(what))?;
        Ok(stored)
    }

    /// The blobs of a BLOCK.
    pub(super) fn block(&self) -> Result<Block, BlobError> {
        let stored = self.part(0, self.header.stored_len.min(CHUNK_LEN as u64))?;
        Block::decode(&self.header, &stored).map_err(|what| self.corrupt(what))
    }

    /// The stored bytes in chunks, each checked when it is read.
    pub(super) fn chunks(self) -> Result<Chunks, BlobError> {
        let list_at = self.header.crc_list_at() - ENTRY_HEADER_LEN as u64;
        let list = self.part(list_at, self.header.crc_list_len())?;
        let list = if list.is_empty() {
            Bytes::copy_from_slice(&self.header.stored_crc.to_le_bytes())
        } else if crc32fast::hash(&list) == self.header.stored_crc {
            list
        } else {
            return Err(self.corrupt(FormatError::Crc));
        };
        Ok(Chunks { entry: self, list, next: 0, current: Bytes::new() })
    }

    /// Unchecked bytes; `at` counts from the end of the header.
    fn part(&self, at: u64, len: u64) -> Result<Bytes, BlobError> {
        let at = ENTRY_HEADER_LEN as u64 + at;
        if at + len <= self.near.len() as u64 {
            return Ok(self.near.slice(at as usize..(at + len) as usize));
        }
        view(&self.media, self.at + at, self.at + at + len)
    }
}

fn view(media: &Arc<dyn Media>, from: u64, to: u64) -> Result<Bytes, BlobError> {
    media.view(from..to).map_err(|source| BlobError::io(media.path(), source))
}

/// The stored bytes of an entry as a stream.
#[derive(Debug)]
pub(super) struct Chunks {
    entry: Entry,
    list: Bytes,
    next: u64,
    current: Bytes,
}

impl Chunks {
    /// The CRCs of the remaining chunks.
    pub(super) fn crc_list(&self) -> Bytes {
        self.list.clone()
    }

    /// The stored bytes up to the end of the last chunk that was read.
    pub(super) fn read_so_far(&self) -> u64 {
        (self.next * CHUNK_LEN as u64).min(self.entry.header.stored_len)
    }

    /// The next chunk, empty at the end.
    pub(super) fn next_chunk(&mut self) -> Result<Bytes, BlobError> {
        if !self.current.is_empty() {
            return Ok(std::mem::take(&mut self.current));
        }
        let at = self.next * CHUNK_LEN as u64;
        let len = self.entry.header.stored_len.saturating_sub(at).min(CHUNK_LEN as u64);
        if len == 0 {
            return Ok(Bytes::new());
        }
        self.take(at, len)
    }

    /// The next chunks, at least one and otherwise at most `max` bytes; empty at the end.
    pub(super) fn next_chunks(&mut self, max: usize) -> Result<Bytes, BlobError> {
        if !self.current.is_empty() {
            return Ok(std::mem::take(&mut self.current));
        }
        let at = self.next * CHUNK_LEN as u64;
        let whole = (max - max % CHUNK_LEN).max(CHUNK_LEN) as u64;
        self.take(at, self.entry.header.stored_len.saturating_sub(at).min(whole))
    }

    /// Puts back checked bytes; they are returned first.
    pub(super) fn put_back(&mut self, bytes: Bytes) {
        self.current = bytes;
    }

    /// Bytes from the next chunk on, each chunk checked.
    fn take(&mut self, at: u64, len: u64) -> Result<Bytes, BlobError> {
        let bytes = self.entry.part(at, len)?;
        for chunk in bytes.chunks(CHUNK_LEN) {
            if self.list.try_get_u32_le().ok() != Some(crc32fast::hash(chunk)) {
                return Err(self.entry.corrupt(FormatError::Crc));
            }
            self.next += 1;
        }
        Ok(bytes)
    }
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.current.is_empty() {
            self.current = self.next_chunk()?;
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        self.current.advance(amount.min(self.current.len()));
    }
}

impl Read for Chunks {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let ready = self.fill_buf()?;
        let count = ready.len().min(out.len());
        out[..count].copy_from_slice(&ready[..count]);
        self.consume(count);
        Ok(count)
    }
}
