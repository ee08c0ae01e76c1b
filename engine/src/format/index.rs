//! The sparse index of a sealed segment (`.idx`): the position of the batch that holds an offset or
//! an id. Derived: one that does not verify is rebuilt from the segment.

use bytes::Bytes;

use super::file::{END_LEN, FILE_HEADER_LEN, FileHeader, FormatError, Magic, check_end, push_end};
use super::{u32_at, u64_at};

/// Bytes of the segment per entry.
pub(crate) const STEP_BYTES: u64 = 4096;

const COUNT_AT: usize = FILE_HEADER_LEN;
const ENTRIES_AT: usize = COUNT_AT + size_of::<u64>();
const ENTRY_LEN: usize = 4 + 4 + 8;
const _: () = assert!(ENTRIES_AT == 72 && ENTRY_LEN == 16);

/// The first batch with a frame in a step of the segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SparseEntry {
    /// Offset of its first frame, less the segment's base.
    pub(crate) offset_delta: u32,
    /// Position of its header in the file.
    pub(crate) position: u32,
    /// First 8 bytes of the id of its first frame.
    pub(crate) id_prefix: u64,
}

/// Encodes the file.
pub(crate) fn encode(header: &FileHeader, entries: &[SparseEntry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(ENTRIES_AT + entries.len() * ENTRY_LEN + END_LEN);
    out.extend_from_slice(&header.encode());
    out.extend_from_slice(&(entries.len() as u64).to_le_bytes());
    for entry in entries {
        out.extend_from_slice(&entry.offset_delta.to_le_bytes());
        out.extend_from_slice(&entry.position.to_le_bytes());
        out.extend_from_slice(&entry.id_prefix.to_le_bytes());
    }
    push_end(&mut out);
    out
}

/// A file whose header and CRC were checked.
#[derive(Debug)]
pub(crate) struct SparseFile {
    bytes: Bytes,
    count: usize,
}

impl SparseFile {
    /// Checks the whole file and returns it with its header.
    pub(crate) fn read(bytes: Bytes) -> Result<(FileHeader, Self), FormatError> {
        let header = FileHeader::decode(&bytes, Magic::Index)?;
        let count = u64_at(&bytes, COUNT_AT).ok_or(FormatError::Short)?;
        let entries = usize::try_from(count).ok().and_then(|count| count.checked_mul(ENTRY_LEN));
        let end = entries.and_then(|len| len.checked_add(ENTRIES_AT));
        let end = end.ok_or(FormatError::Field("count"))?;
        if check_end(&bytes)? != end {
            return Err(FormatError::Field("length"));
        }
        Ok((header, Self { bytes, count: count as usize }))
    }

    /// Number of entries.
    pub(crate) const fn len(&self) -> usize {
        self.count
    }

    /// The entry with a number below [`Self::len`].
    pub(crate) fn get(&self, number: usize) -> Option<SparseEntry> {
        let at = ENTRIES_AT + number * ENTRY_LEN;
        (number < self.count).then_some(())?;
        Some(SparseEntry {
            offset_delta: u32_at(&self.bytes, at)?,
            position: u32_at(&self.bytes, at + 4)?,
            id_prefix: u64_at(&self.bytes, at + 8)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> FileHeader {
        FileHeader {
            magic: Magic::Index,
            salt: 0,
            store: [1; 16],
            file: [2; 16],
            base: 7,
            generation: 3,
        }
    }

    #[test]
    fn entries_round_trip_and_damage_is_found() {
        let entry = |n: u32| SparseEntry {
            offset_delta: n * 20,
            position: 64 + n * 4096,
            id_prefix: u64::from(n) << 16,
        };
        let entries: Vec<_> = (0..5).map(entry).collect();
        let bytes = encode(&header(), &entries);
        assert_eq!((bytes.len() % 8, bytes.len()), (0, 72 + 5 * 16 + 8));
        let (read, file) = SparseFile::read(Bytes::from(bytes.clone())).unwrap();
        assert_eq!((read.base, read.generation, file.len()), (7, 3, 5));
        assert!((0..5).all(|n| file.get(n) == Some(entries[n])) && file.get(5).is_none());
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert!(SparseFile::read(Bytes::from(damaged)).is_err(), "{at}");
            assert!(SparseFile::read(Bytes::from(bytes[..at].to_vec())).is_err(), "cut {at}");
        }
    }
}
