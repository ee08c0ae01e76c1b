//! Packs: entry headers, the CRC list of long entries, and BLOCKs of small blobs. Pure: compresses
//! and decompresses in memory, does no I/O. Whatever the input, it uses no more memory than the
//! limits here allow.

use std::cell::RefCell;
use std::ops::Range;

use bytes::Bytes;
use zstd::bulk;

use super::file::FormatError;
use super::{align8, bytes_at, u32_at, u64_at};
use crate::limits::{BLOB_BYTES_MAX, SEGMENT_BYTES_MAX};
use crate::value::BlobHash;

/// Bytes of the header of an entry.
pub const ENTRY_HEADER_LEN: usize = 72;
/// Maximum total bytes of the blobs of a BLOCK.
pub const BLOCK_BYTES_MAX: usize = 32 * 1024;
/// Maximum blobs in one BLOCK.
pub const BLOCK_BLOBS_MAX: usize = 512;
/// Stored bytes per CRC, in entries longer than this.
pub const CHUNK_LEN: usize = 64 * 1024;
/// zstd level: higher ones cost much more time than they save space.
pub(crate) const ZSTD_LEVEL: i32 = 1;
/// Bytes compressed as a sample, to see whether a long blob compresses.
const SAMPLE_LEN: usize = 16 * 1024;
/// Largest window a decoder accepts, as a power of two: 8 MiB.
pub const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// First bytes of an entry.
pub const ENTRY_MAGIC: [u8; 4] = *b"XSE1";
const HEADER_CRC_AT: usize = 4;
const KIND_AT: usize = 8;
const KIN_AT: usize = 9;
const SALT_AT: usize = 12;
const STORED_LEN_AT: usize = 16;
const RAW_LEN_AT: usize = 24;
const HASH_AT: usize = 32;
const STORED_CRC_AT: usize = 64;
/// The meaning of this field depends on the kind.
const LAST_AT: usize = 68;
const _: () = assert!(LAST_AT + size_of::<u32>() == ENTRY_HEADER_LEN);
const KIN_LEN: usize = SALT_AT - KIN_AT;

/// Maximum bytes of a blob's length in the table of a BLOCK.
const TABLE_ROW_MAX: usize = 3;
const _: () = assert!(BLOCK_BYTES_MAX < 1 << (7 * TABLE_ROW_MAX));
/// Maximum length of a BLOCK: its table and a zstd frame that did not shrink.
const BLOCK_STORED_MAX: usize = BLOCK_BLOBS_MAX * TABLE_ROW_MAX + BLOCK_BYTES_MAX + 512;

/// The position of an entry as indexes keep it, in units of 8 bytes: every pack is short enough. A
/// position beyond that maps to one where no entry lies.
pub(crate) fn slot_of(at: u64) -> u32 {
    // A long blob has a pack of its own, with the CRCs of its pieces.
    const PACK_BYTES_MAX: u64 = BLOB_BYTES_MAX + BLOB_BYTES_MAX / 1024 + SEGMENT_BYTES_MAX;
    const { assert!(PACK_BYTES_MAX / 8 < u32::MAX as u64) };
    u32::try_from(at / 8).unwrap_or(u32::MAX)
}

/// How an entry stores its blobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum EntryKind {
    /// One blob, uncompressed.
    Raw = 1,
    /// One blob as one zstd frame, shorter than the blob.
    Zstd = 2,
    /// Several small blobs in one zstd frame after a table.
    Block = 3,
}

/// The header of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryHeader {
    /// How the blobs are stored.
    pub kind: EntryKind,
    /// See [`kin_of`]; three bytes. 0 for a BLOCK, and where it is unknown.
    pub kin: u32,
    /// The pack's salt.
    pub salt: u32,
    /// Bytes of the stored form.
    pub stored_len: u64,
    /// Bytes of the blob, or of all blobs of a BLOCK.
    pub raw_len: u64,
    /// SHA-256 of the blob; zero for a BLOCK.
    pub hash: BlobHash,
    /// CRC of the stored bytes, or of the CRC list when there is one.
    pub stored_crc: u32,
    /// Blobs in the entry.
    pub count: u32,
    /// Everything in the pack below this position was durable when the entry was written; a
    /// multiple of 8. 0 in a pack that was sealed from the start, and for a BLOCK.
    pub durable_upto: u64,
}

impl EntryHeader {
    /// Encodes the header.
    #[must_use]
    pub fn encode(&self) -> [u8; ENTRY_HEADER_LEN] {
        let mut out = [0; ENTRY_HEADER_LEN];
        out[..HEADER_CRC_AT].copy_from_slice(&ENTRY_MAGIC);
        out[KIND_AT] = self.kind as u8;
        out[KIN_AT..SALT_AT].copy_from_slice(&self.kin.to_le_bytes()[..KIN_LEN]);
        out[SALT_AT..STORED_LEN_AT].copy_from_slice(&self.salt.to_le_bytes());
        out[STORED_LEN_AT..RAW_LEN_AT].copy_from_slice(&self.stored_len.to_le_bytes());
        out[RAW_LEN_AT..HASH_AT].copy_from_slice(&self.raw_len.to_le_bytes());
        out[HASH_AT..STORED_CRC_AT].copy_from_slice(self.hash.as_bytes());
        out[STORED_CRC_AT..LAST_AT].copy_from_slice(&self.stored_crc.to_le_bytes());
        let last = match self.kind {
            EntryKind::Block => self.count,
            EntryKind::Raw | EntryKind::Zstd => slot_of(self.durable_upto),
        };
        out[LAST_AT..].copy_from_slice(&last.to_le_bytes());
        let crc = crc32fast::hash(&out[KIND_AT..]);
        out[HEADER_CRC_AT..KIND_AT].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads and checks the header at the beginning of `bytes`, which may be longer.
    ///
    /// # Errors
    /// [`FormatError::Magic`] where no entry begins, otherwise what is wrong with the entry.
    pub fn read(bytes: &[u8]) -> Result<Self, FormatError> {
        let header: [u8; ENTRY_HEADER_LEN] = bytes_at(bytes, 0).ok_or(FormatError::Short)?;
        let word = |at| u32_at(&header, at).ok_or(FormatError::Short);
        let long = |at| u64_at(&header, at).ok_or(FormatError::Short);
        if header[..HEADER_CRC_AT] != ENTRY_MAGIC {
            return Err(FormatError::Magic);
        }
        if word(HEADER_CRC_AT)? != crc32fast::hash(&header[KIND_AT..]) {
            return Err(FormatError::Crc);
        }
        let kind = match header[KIND_AT] {
            1 => EntryKind::Raw,
            2 => EntryKind::Zstd,
            3 => EntryKind::Block,
            _ => return Err(FormatError::Field("kind")),
        };
        let (count, durable_upto) = match kind {
            EntryKind::Block => (word(LAST_AT)?, 0),
            EntryKind::Raw | EntryKind::Zstd => (1, u64::from(word(LAST_AT)?) * 8),
        };
        let read = Self {
            kind,
            kin: word(KIND_AT)? >> 8,
            salt: word(SALT_AT)?,
            stored_len: long(STORED_LEN_AT)?,
            raw_len: long(RAW_LEN_AT)?,
            hash: BlobHash::from_bytes(bytes_at(&header, HASH_AT).ok_or(FormatError::Short)?),
            stored_crc: word(STORED_CRC_AT)?,
            count,
            durable_upto,
        };
        read.check_lengths()?;
        Ok(read)
    }

    fn check_lengths(&self) -> Result<(), FormatError> {
        let fits = match self.kind {
            EntryKind::Raw => self.raw_len <= BLOB_BYTES_MAX && self.stored_len == self.raw_len,
            EntryKind::Zstd => self.raw_len <= BLOB_BYTES_MAX && self.stored_len < self.raw_len,
            EntryKind::Block => {
                self.raw_len <= BLOCK_BYTES_MAX as u64 && self.stored_len <= BLOCK_STORED_MAX as u64
            }
        };
        let counted = match self.kind {
            EntryKind::Block => {
                (1..=BLOCK_BLOBS_MAX as u32).contains(&self.count)
                    && self.hash == BlobHash::from_bytes([0; 32])
                    && self.kin == 0
            }
            EntryKind::Raw | EntryKind::Zstd => true,
        };
        match (fits, counted) {
            (false, _) => Err(FormatError::Field("length")),
            (_, false) => Err(FormatError::Field("count")),
            _ => Ok(()),
        }
    }

    /// Returns the number of chunks in which the stored bytes are checked.
    #[must_use]
    pub const fn chunks(&self) -> u64 {
        self.stored_len.div_ceil(CHUNK_LEN as u64)
    }

    /// Whether the entry is one uncompressed blob under one CRC.
    #[must_use]
    pub const fn is_raw_and_short(&self) -> bool {
        matches!(self.kind, EntryKind::Raw) && self.chunks() <= 1
    }

    /// Returns the length of the CRC list after the stored bytes; 0 when one CRC covers them all.
    #[must_use]
    pub const fn crc_list_len(&self) -> u64 {
        if self.chunks() > 1 { self.chunks() * 4 } else { 0 }
    }

    /// Returns the distance from the beginning of the header to the CRC list.
    #[must_use]
    pub const fn crc_list_at(&self) -> u64 {
        ENTRY_HEADER_LEN as u64 + self.stored_len.next_multiple_of(8)
    }

    /// Returns the distance from the beginning of this entry to the next.
    #[must_use]
    pub const fn stride(&self) -> u64 {
        self.crc_list_at() + self.crc_list_len().next_multiple_of(8)
    }

    /// Checks the CRC of stored bytes that have no CRC list.
    ///
    /// # Errors
    /// [`FormatError::Crc`] when they are not what was written.
    pub fn check_stored(&self, stored: &[u8]) -> Result<(), FormatError> {
        if stored.len() as u64 != self.stored_len || stored.len() > CHUNK_LEN {
            return Err(FormatError::Field("length"));
        }
        match crc32fast::hash(stored) == self.stored_crc {
            true => Ok(()),
            false => Err(FormatError::Crc),
        }
    }
}

/// Computes the CRC, or the CRC list, of a stream of stored bytes.
#[derive(Debug, Default, Clone)]
pub struct ChunkCrcs {
    list: Vec<u8>,
    current: crc32fast::Hasher,
    filled: usize,
}

impl ChunkCrcs {
    /// Adds the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.filled == CHUNK_LEN {
                self.end_chunk();
            }
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK_LEN - self.filled));
            self.current.update(now);
            self.filled += now.len();
            bytes = later;
        }
    }

    fn end_chunk(&mut self) {
        let crc = std::mem::take(&mut self.current).finalize();
        self.list.extend_from_slice(&crc.to_le_bytes());
        self.filled = 0;
    }

    /// Returns the `stored_crc` and the list, which is empty for one chunk and padded otherwise.
    #[must_use]
    pub fn finish(mut self) -> (u32, Vec<u8>) {
        if self.list.is_empty() {
            return (self.current.finalize(), Vec::new());
        }
        self.end_chunk();
        let crc = crc32fast::hash(&self.list);
        self.list.resize(align8(self.list.len()), 0);
        (crc, self.list)
    }
}

/// Whether a compressed form is worthwhile: it must save 5 %.
#[must_use]
pub const fn worth_it(stored_len: u64, raw_len: u64) -> bool {
    stored_len <= raw_len - raw_len / 20 && stored_len < raw_len
}

/// Returns a number that the blobs of one topic's frames share, so that sealing can group blobs
/// that are read together: the upper half is from the topic up to its first dot, the lower one from
/// all of it.
#[must_use]
pub fn kin_of(topic: &str) -> u32 {
    let first = topic.split_once('.').map_or(topic, |(first, _)| first);
    let half = |text: &str| crc32fast::hash(text.as_bytes()) & 0xfff;
    half(first) << 12 | half(topic)
}

thread_local! {
    /// Creating one costs as much as decompressing some KiB.
    static UNZSTD: RefCell<Option<bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Whether bytes seem compressible, judging by a sample: this avoids wasting time on incompressible
/// ones.
#[must_use]
pub(crate) fn seems_worth_it(bytes: &[u8]) -> bool {
    let sample = &bytes[..bytes.len().min(SAMPLE_LEN)];
    let frame = bulk::compress(sample, ZSTD_LEVEL);
    frame.is_ok_and(|frame| worth_it(frame.len() as u64, sample.len() as u64))
}

/// Decompresses one zstd frame into exactly `raw_len` bytes.
///
/// # Errors
/// [`FormatError::Field`] when the frame is damaged or of another length. The caller must have
/// compared `raw_len` with a limit, because that much memory is allocated.
pub fn unzstd(stored: &[u8], raw_len: usize) -> Result<Vec<u8>, FormatError> {
    let raw = UNZSTD.with_borrow_mut(|kept| {
        let zstd = match kept {
            Some(zstd) => zstd,
            none => none.insert(bulk::Decompressor::new()?),
        };
        zstd.decompress(stored, raw_len)
    });
    match raw {
        Ok(raw) if raw.len() == raw_len => Ok(raw),
        _ => Err(FormatError::Field("zstd frame")),
    }
}

/// The stored bytes of a BLOCK and the total bytes of its blobs. The caller keeps to
/// [`BLOCK_BLOBS_MAX`] and [`BLOCK_BYTES_MAX`].
///
/// # Errors
/// [`FormatError::Field`] when a limit is exceeded or zstd fails.
pub(crate) fn encode_block(
    blobs: &[impl AsRef<[u8]>],
    zstd: &mut bulk::Compressor<'_>,
) -> Result<(Vec<u8>, u64), FormatError> {
    let raw_len: usize = blobs.iter().map(|blob| blob.as_ref().len()).sum();
    if blobs.is_empty() || blobs.len() > BLOCK_BLOBS_MAX || raw_len > BLOCK_BYTES_MAX {
        return Err(FormatError::Field("count"));
    }
    let mut stored = Vec::with_capacity(blobs.len() * TABLE_ROW_MAX + raw_len);
    let mut raw = Vec::with_capacity(raw_len);
    for blob in blobs.iter().map(AsRef::as_ref) {
        let mut len = blob.len();
        while len >= 0x80 {
            stored.push(len as u8 | 0x80);
            len >>= 7;
        }
        stored.push(len as u8);
        raw.extend_from_slice(blob);
    }
    let frame = zstd.compress(&raw).map_err(|_| FormatError::Field("zstd frame"))?;
    stored.extend_from_slice(&frame);
    Ok((stored, raw_len as u64))
}

/// The table of a BLOCK: the range of each blob in the decompressed bytes. It has no hashes: they
/// can be computed from the bytes, and would take more space than the bytes do.
#[derive(Debug, Clone)]
pub struct BlockTable {
    rows: Vec<Range<u16>>,
    frame_at: usize,
}

impl BlockTable {
    /// Reads the table at the beginning of the stored bytes of a BLOCK, whose CRC was checked.
    ///
    /// # Errors
    /// [`FormatError`] when it contradicts the header.
    pub fn read(header: &EntryHeader, stored: &[u8]) -> Result<Self, FormatError> {
        if header.kind != EntryKind::Block {
            return Err(FormatError::Field("kind"));
        }
        let mut rows = Vec::with_capacity(header.count as usize);
        let (mut at, mut end) = (0, 0u16);
        for _ in 0..header.count {
            let (len, read) = read_len(stored.get(at..).unwrap_or_default())?;
            at += read;
            let start = end;
            end = start.checked_add(len).ok_or(FormatError::Field("length"))?;
            rows.push(start..end);
        }
        match u64::from(end) == header.raw_len {
            true => Ok(Self { rows, frame_at: at }),
            false => Err(FormatError::Field("length")),
        }
    }

    /// Returns the length of each blob, in order.
    pub fn lengths(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        self.rows.iter().map(|range| range.len() as u64)
    }
}

/// Reads a length in its shortest form, and the number of bytes read.
fn read_len(bytes: &[u8]) -> Result<(u16, usize), FormatError> {
    let mut len = 0u32;
    for (n, &byte) in bytes.iter().take(TABLE_ROW_MAX).enumerate() {
        len |= u32::from(byte & 0x7f) << (7 * n);
        if byte < 0x80 {
            let len = u16::try_from(len).ok().filter(|_| n == 0 || byte > 0);
            return len.map(|len| (len, n + 1)).ok_or(FormatError::Field("length"));
        }
    }
    match bytes.len() < TABLE_ROW_MAX {
        true => Err(FormatError::Short),
        false => Err(FormatError::Field("length")),
    }
}

/// A BLOCK with its blobs decompressed.
#[derive(Debug, Clone)]
pub struct Block {
    table: BlockTable,
    bytes: Bytes,
}

impl Block {
    /// Reads the stored bytes of a BLOCK and checks their CRC.
    ///
    /// # Errors
    /// [`FormatError`] says what is wrong.
    pub fn decode(header: &EntryHeader, stored: &[u8]) -> Result<Self, FormatError> {
        header.check_stored(stored)?;
        let table = BlockTable::read(header, stored)?;
        let frame = stored.get(table.frame_at..).ok_or(FormatError::Short)?;
        let bytes = unzstd(frame, header.raw_len as usize)?;
        Ok(Self { table, bytes: Bytes::from(bytes) })
    }

    /// Returns the number of blobs in it.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.table.rows.len()
    }

    /// Returns the approximate number of bytes of memory it takes.
    #[must_use]
    pub const fn memory(&self) -> usize {
        size_of::<Self>() + self.bytes.len() + self.count() * size_of::<Range<u16>>()
    }

    /// Returns the bytes of the blob with a number.
    #[must_use]
    pub fn blob(&self, number: u32) -> Option<Bytes> {
        let range = self.table.rows.get(number as usize)?;
        let range = range.start as usize..range.end as usize;
        (range.end <= self.bytes.len()).then(|| self.bytes.slice(range))
    }

    /// Returns the bytes of the blobs, in order, borrowed.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> + '_ {
        let rows = self.table.rows.iter();
        rows.filter_map(|range| self.bytes.get(range.start as usize..range.end as usize))
    }

    /// Returns the blobs, in order.
    pub fn blobs(&self) -> impl Iterator<Item = Bytes> + '_ {
        (0..self.count() as u32).filter_map(|number| self.blob(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: EntryKind, stored: &[u8], raw_len: u64, count: u32) -> EntryHeader {
        let hash = match kind {
            EntryKind::Block => BlobHash::from_bytes([0; 32]),
            _ => BlobHash::of(b"hello"),
        };
        let stored_crc = crc32fast::hash(stored);
        let stored_len = stored.len() as u64;
        let kin = if kind == EntryKind::Block { 0 } else { kin_of("a.b") };
        let durable_upto = if kind == EntryKind::Block { 0 } else { 0x0809_0a08 };
        let salt = 0x0102_0304;
        EntryHeader { kind, kin, salt, stored_len, raw_len, hash, stored_crc, count, durable_upto }
    }

    fn block() -> (EntryHeader, Vec<u8>) {
        let texts: [&'static [u8]; 3] = [b"one one one one one one one one", b"", b"two"];
        let blobs = texts.map(Bytes::from_static);
        let mut zstd = bulk::Compressor::new(ZSTD_LEVEL).unwrap();
        let (stored, raw_len) = encode_block(&blobs, &mut zstd).unwrap();
        assert_eq!(stored[..3], [31, 0, 3]);
        (header(EntryKind::Block, &stored, raw_len, 3), stored)
    }

    #[test]
    fn the_bytes_of_a_header_are_pinned() {
        let bytes = header(EntryKind::Raw, b"hello", 5, 1).encode();
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let want = "58534531c3ef980e015d31e404030201050000000000000005000000000000002cf24dba5fb0\
                    a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b982486a6103641210101";
        assert_eq!(text, want);
    }

    #[test]
    fn headers_round_trip_and_any_damage_is_found() {
        let (block, _) = block();
        for entry in [header(EntryKind::Raw, b"hello", 5, 1), block] {
            let bytes = entry.encode();
            assert_eq!(EntryHeader::read(&bytes), Ok(entry));
            for at in 0..bytes.len() {
                assert!(EntryHeader::read(&bytes[..at]).is_err());
                for bit in 0..8 {
                    let mut bad = bytes;
                    bad[at] ^= 1 << bit;
                    assert!(EntryHeader::read(&bad).is_err(), "{at}.{bit}");
                }
            }
        }
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let good = header(EntryKind::Raw, b"hello", 5, 1);
        let bad = [
            EntryHeader { raw_len: 6, ..good },
            EntryHeader { stored_len: u64::MAX, raw_len: u64::MAX, ..good },
            EntryHeader { count: 0, ..block().0 },
            EntryHeader { kin: 1, ..block().0 },
            EntryHeader { kind: EntryKind::Zstd, ..good },
            EntryHeader { kind: EntryKind::Block, ..good },
            EntryHeader { kind: EntryKind::Zstd, raw_len: BLOB_BYTES_MAX + 1, ..good },
        ];
        for header in bad {
            assert!(matches!(EntryHeader::read(&header.encode()), Err(FormatError::Field(_))));
        }
    }

    #[test]
    fn blocks_give_back_their_blobs_or_an_error() {
        let (header, stored) = block();
        let block = Block::decode(&header, &stored).unwrap();
        assert_eq!((block.blob(1), block.blob(3)), (Some(Bytes::new()), None));
        assert_eq!(block.blobs().map(|blob| blob.len()).collect::<Vec<_>>(), [31, 0, 3]);
        assert_eq!(&block.blobs().last().unwrap()[..], b"two");
        for at in 0..stored.len() {
            assert!(Block::decode(&header, &stored[..at]).is_err());
            for bit in 0..8 {
                let mut bad = stored.clone();
                bad[at] ^= 1 << bit;
                assert!(Block::decode(&header, &bad).is_err(), "{at}.{bit}");
            }
        }
        let lie = EntryHeader { raw_len: 33, ..header };
        assert!(Block::decode(&lie, &stored).is_err());
        let lie = EntryHeader { count: 512, ..header };
        assert!(Block::decode(&lie, &stored).is_err());
    }

    #[test]
    fn lengths_have_one_form() {
        for len in [0, 1, 127, 128, 16_383, 16_384, 32_768] {
            let mut zstd = bulk::Compressor::new(ZSTD_LEVEL).unwrap();
            let blobs = [Bytes::from(vec![7; len])];
            let (stored, raw_len) = encode_block(&blobs, &mut zstd).unwrap();
            let (read, count) = read_len(&stored).unwrap();
            assert_eq!((usize::from(read), raw_len), (len, len as u64));
            assert!((0..count).all(|cut| read_len(&stored[..cut]) == Err(FormatError::Short)));
        }
        for bad in [&[0x80, 0][..], &[0xff, 0x80, 0], &[0x80, 0x80, 4], &[0x80, 0x80, 0x80, 1]] {
            assert_eq!(read_len(bad), Err(FormatError::Field("length")), "{bad:?}");
        }
        let mut zstd = bulk::Compressor::new(ZSTD_LEVEL).unwrap();
        assert!(encode_block(&[Bytes::from(vec![7; BLOCK_BYTES_MAX + 1])], &mut zstd).is_err());
        assert!(encode_block(&vec![Bytes::new(); BLOCK_BLOBS_MAX + 1], &mut zstd).is_err());
    }

    #[test]
    fn kin_tells_topics_apart_and_their_first_parts() {
        let [a, b, c, d] = ["a.b", "a.c", "b.b", "a"].map(kin_of);
        assert!(a != b && a != c && a != d && c != b);
        assert!(a >> 12 == b >> 12 && a >> 12 == d >> 12 && a >> 12 != c >> 12);
        assert!([a, b, c, d].iter().all(|kin| kin >> 24 == 0));
    }

    #[test]
    fn crc_lists_begin_beyond_one_chunk() {
        for (len, words) in [(0, 0), (CHUNK_LEN, 0), (CHUNK_LEN + 1, 2), (3 * CHUNK_LEN, 4)] {
            let bytes: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let mut crcs = ChunkCrcs::default();
            bytes.chunks(1000).for_each(|part| crcs.update(part));
            let (crc, list) = crcs.finish();
            assert_eq!(list.len(), words * 4, "{len}");
            let raw = EntryHeader { stored_len: len as u64, ..header(EntryKind::Raw, b"", 0, 1) };
            let covered = raw.crc_list_len() as usize;
            assert_eq!(align8(covered), list.len());
            match words {
                0 => assert_eq!(crc, crc32fast::hash(&bytes)),
                _ => assert_eq!(crc, crc32fast::hash(&list[..covered])),
            }
            for (chunk, crc) in bytes.chunks(CHUNK_LEN).zip(list.chunks(4)) {
                assert_eq!(crc, crc32fast::hash(chunk).to_le_bytes());
            }
        }
    }

    #[test]
    fn a_frame_longer_than_it_says_takes_no_memory() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
        assert_eq!(unzstd(&bomb, 100), Err(FormatError::Field("zstd frame")));
    }
}
