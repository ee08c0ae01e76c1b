//! The key index of a sealed segment (`.key`): the idempotency keys its batches used, and the ids
//! that imported frames had before. Derived: one that does not verify is rebuilt from the segment.

use bytes::Bytes;

use super::file::{END_LEN, FILE_HEADER_LEN, FileHeader, FormatError, Magic, check_end, push_end};
use super::{bytes_at, u32_at, u64_at};
use crate::value::FrameId;

const FIRST_MS_AT: usize = FILE_HEADER_LEN;
const KEYS_AT: usize = FIRST_MS_AT + size_of::<u64>();
const OLD_IDS_AT: usize = KEYS_AT + size_of::<u32>();
const ENTRIES_AT: usize = OLD_IDS_AT + size_of::<u32>();
const KEY_LEN: usize = 16 + 16 + 16 + 8;
const OLD_ID_LEN: usize = 16 + 8;
const _: () = assert!(ENTRIES_AT == 80 && KEY_LEN == 56 && OLD_ID_LEN == 24);

/// A key that a batch used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UsedKey {
    /// First 16 bytes of the SHA-256 of the key.
    pub(crate) key: [u8; 16],
    /// First 16 bytes of the hash of the batch's content.
    pub(crate) content: [u8; 16],
    /// Id of the batch's first frame.
    pub(crate) id: FrameId,
    /// Offset of the first frame that was stored.
    pub(crate) offset: u64,
}

/// The id an imported frame had before, and its offset.
pub(crate) type OldId = (FrameId, u64);

/// Encodes the file. `first_ms` is the time in the id of the segment's first frame. `old_ids` are
/// sorted.
pub(crate) fn encode<'a>(
    header: &FileHeader,
    first_ms: u64,
    keys: &[UsedKey],
    old_ids: impl ExactSizeIterator<Item = &'a OldId>,
) -> Vec<u8> {
    let len = ENTRIES_AT + keys.len() * KEY_LEN + old_ids.len() * OLD_ID_LEN + END_LEN;
    let mut out = Vec::with_capacity(len);
    out.extend_from_slice(&header.encode());
    out.extend_from_slice(&first_ms.to_le_bytes());
    out.extend_from_slice(&(keys.len() as u32).to_le_bytes());
    out.extend_from_slice(&(old_ids.len() as u32).to_le_bytes());
    for used in keys {
        out.extend_from_slice(&used.key);
        out.extend_from_slice(&used.content);
        out.extend_from_slice(used.id.as_bytes());
        out.extend_from_slice(&used.offset.to_le_bytes());
    }
    for (id, offset) in old_ids {
        out.extend_from_slice(id.as_bytes());
        out.extend_from_slice(&offset.to_le_bytes());
    }
    push_end(&mut out);
    out
}

/// A file whose header and CRC were checked.
#[derive(Debug)]
pub(crate) struct KeyFile {
    bytes: Bytes,
    first_ms: u64,
    keys: usize,
    old_ids: usize,
}

impl KeyFile {
    /// Checks the whole file and returns it with its header.
    pub(crate) fn read(bytes: Bytes) -> Result<(FileHeader, Self), FormatError> {
        let header = FileHeader::decode(&bytes, Magic::Key)?;
        let first_ms = u64_at(&bytes, FIRST_MS_AT).ok_or(FormatError::Short)?;
        let keys = u32_at(&bytes, KEYS_AT).ok_or(FormatError::Short)? as usize;
        let old_ids = u32_at(&bytes, OLD_IDS_AT).ok_or(FormatError::Short)? as usize;
        // Both counts are 32 bits wide, so this does not overflow.
        let end = ENTRIES_AT + keys * KEY_LEN + old_ids * OLD_ID_LEN;
        if check_end(&bytes)? != end {
            return Err(FormatError::Field("length"));
        }
        Ok((header, Self { bytes, first_ms, keys, old_ids }))
    }

    /// The time in the id of the segment's first frame: ids of older segments are not later.
    pub(crate) const fn first_ms(&self) -> u64 {
        self.first_ms
    }

    /// The keys, newest first.
    pub(crate) fn keys_backward(&self) -> impl Iterator<Item = UsedKey> + '_ {
        (0..self.keys).rev().filter_map(|number| {
            let at = ENTRIES_AT + number * KEY_LEN;
            Some(UsedKey {
                key: bytes_at(&self.bytes, at)?,
                content: bytes_at(&self.bytes, at + 16)?,
                id: FrameId::from_bytes(bytes_at(&self.bytes, at + 32)?),
                offset: u64_at(&self.bytes, at + 48)?,
            })
        })
    }

    /// The smallest and the largest old id.
    pub(crate) fn old_ids_range(&self) -> Option<(FrameId, FrameId)> {
        let last = self.old_ids.checked_sub(1)?;
        Some((self.old_id(0)?.0, self.old_id(last)?.0))
    }

    /// The offset, below `head`, of the newest frame that had this id.
    pub(crate) fn find(&self, id: FrameId, head: u64) -> Option<u64> {
        let (mut low, mut high) = (0, self.old_ids);
        while low < high {
            let middle = (low + high) / 2;
            if self.old_id(middle).is_some_and(|old| old < (id, head)) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let (found, offset) = self.old_id(low.checked_sub(1)?)?;
        (found == id).then_some(offset)
    }

    fn old_id(&self, number: usize) -> Option<OldId> {
        let at = ENTRIES_AT + self.keys * KEY_LEN + number * OLD_ID_LEN;
        Some((FrameId::from_bytes(bytes_at(&self.bytes, at)?), u64_at(&self.bytes, at + 16)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> FileHeader {
        FileHeader {
            magic: Magic::Key,
            salt: 0,
            store: [1; 16],
            file: [2; 16],
            base: 7,
            generation: 3,
        }
    }

    fn key(n: u8) -> UsedKey {
        let id = FrameId::first_of_ms(u64::from(n));
        UsedKey { key: [n; 16], content: [n + 1; 16], id, offset: 7 + u64::from(n) }
    }

    fn old_ids() -> Vec<OldId> {
        let id = FrameId::first_of_ms;
        vec![(id(3), 9), (id(5), 8), (id(5), 11), (id(8), 10)]
    }

    #[test]
    fn the_bytes_are_pinned() {
        let bytes = encode(&header(), 5, &[key(1)], old_ids()[..1].iter());
        let mut golden = header().encode().to_vec();
        golden.extend(b"\x05\0\0\0\0\0\0\0\x01\0\0\0\x01\0\0\0");
        golden.extend([1; 16].iter().chain(&[2; 16]));
        golden.extend(b"\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0");
        golden.extend(b"\0\0\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0");
        golden.extend(crc32fast::hash(&golden).to_le_bytes());
        golden.extend([0; 4]);
        assert_eq!(bytes, golden);
    }

    #[test]
    fn entries_are_found_and_damage_is_too() {
        let (keys, old_ids) = ([key(1), key(2)], old_ids());
        let bytes = encode(&header(), 5, &keys, old_ids.iter());
        let (read, file) = KeyFile::read(Bytes::from(bytes.clone())).unwrap();
        assert_eq!((read, file.first_ms()), (header(), 5));
        assert_eq!(file.keys_backward().collect::<Vec<_>>(), [key(2), key(1)]);
        let id = FrameId::first_of_ms;
        assert_eq!(file.old_ids_range(), Some((id(3), id(8))));
        let found = [2, 3, 4, 5, 8, 9].map(|ms| file.find(id(ms), u64::MAX));
        assert_eq!(found, [None, Some(9), None, Some(11), Some(10), None]);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert!(KeyFile::read(Bytes::from(damaged)).is_err(), "{at}");
            assert!(KeyFile::read(Bytes::from(bytes[..at].to_vec())).is_err(), "cut {at}");
        }
        let none = encode(&header(), 0, &[], [].iter());
        let (_, file) = KeyFile::read(Bytes::from(none)).unwrap();
        assert_eq!((file.old_ids_range(), file.find(id(3), u64::MAX)), (None, None));
    }
}
