//! Entries of the journal: the bytes of a group, and the files and positions they belong to.

use super::{bytes_at, u32_at, u64_at};
use crate::format::super_file::FileKind;

/// Bytes of the header of an entry.
pub const ENTRY_HEADER_LEN: usize = 40;
/// The first bytes of an entry.
pub const ENTRY_MAGIC: [u8; 4] = *b"XSJ1";
/// Alignment of entries: a torn one damages no other.
pub const ENTRY_ALIGN: usize = 512;
/// Bytes of the header of a piece.
pub const PIECE_HEADER_LEN: usize = 48;
/// Maximum pieces of an entry: one of the log and one of each unsealed pack.
pub const PIECES_MAX: usize = 64;
/// Maximum bytes of an entry.
pub const ENTRY_BYTES_MAX: usize = 1024 * 1024;
/// Start of the first half of the journal; the file's header is before it.
pub const HALVES_AT: u64 = 4096;

const CRC_AT: usize = 4;
const SALT_AT: usize = CRC_AT + size_of::<u32>();
const LENGTH_AT: usize = SALT_AT + size_of::<u32>();
const EPOCH_AT: usize = LENGTH_AT + size_of::<u32>();
const NUMBER_AT: usize = EPOCH_AT + size_of::<u64>();
const COUNT_AT: usize = NUMBER_AT + size_of::<u64>();
const RESERVED_AT: usize = COUNT_AT + size_of::<u32>();
const _: () = assert!(RESERVED_AT + size_of::<u32>() == ENTRY_HEADER_LEN);

const BASE_AT: usize = 16;
const POSITION_AT: usize = BASE_AT + size_of::<u64>();
const GENERATION_AT: usize = POSITION_AT + size_of::<u64>();
const PIECE_LENGTH_AT: usize = GENERATION_AT + size_of::<u32>();
const KIND_AT: usize = PIECE_LENGTH_AT + size_of::<u32>();
const PIECE_RESERVED_AT: usize = KIND_AT + size_of::<u32>();
const _: () = assert!(PIECE_RESERVED_AT + size_of::<u32>() == PIECE_HEADER_LEN);

/// What is wrong with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// Another magic or another salt: there is no entry.
    #[error("no entry is here")]
    Absent,
    /// The bytes end within it.
    #[error("entry is cut short")]
    Short,
    /// Its CRC does not match: it is torn or damaged.
    #[error("entry fails its CRC")]
    Crc,
    /// A field has an invalid value.
    #[error("entry holds a wrong {0}")]
    Field(&'static str),
}

/// The identity of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryStamp {
    /// The journal's salt.
    pub salt: u32,
    /// Epoch of the opening that wrote it.
    pub epoch: u64,
    /// Number of the entry in that opening, from 1.
    pub number: u64,
}

/// The place that bytes belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceAt {
    /// Segment or pack.
    pub kind: FileKind,
    /// The file's uuid.
    pub file: [u8; 16],
    /// Base offset of the segment, or number of the pack.
    pub base: u64,
    /// How often the file was rewritten.
    pub generation: u32,
    /// Position in the file.
    pub position: u64,
}

/// An entry that passed its CRC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its identity.
    pub stamp: EntryStamp,
    /// Its length: the next one begins at the next multiple of [`ENTRY_ALIGN`].
    pub length: usize,
    /// The bytes, and where they belong.
    pub pieces: Vec<(PieceAt, &'a [u8])>,
}

/// Returns the length of an entry with these pieces.
#[must_use]
pub fn entry_len(pieces: &[(PieceAt, &[u8])]) -> usize {
    let piece = |(_, bytes): &(PieceAt, &[u8])| PIECE_HEADER_LEN + bytes.len();
    ENTRY_HEADER_LEN + pieces.iter().map(piece).sum::<usize>()
}

/// Encodes an entry, replacing the content of `out`. The caller has checked that it is not too
/// long.
pub fn encode(out: &mut Vec<u8>, stamp: EntryStamp, pieces: &[(PieceAt, &[u8])]) {
    out.clear();
    out.extend_from_slice(&ENTRY_MAGIC);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&stamp.salt.to_le_bytes());
    out.extend_from_slice(&(entry_len(pieces) as u32).to_le_bytes());
    out.extend_from_slice(&stamp.epoch.to_le_bytes());
    out.extend_from_slice(&stamp.number.to_le_bytes());
    out.extend_from_slice(&(pieces.len() as u32).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    for (place, bytes) in pieces {
        out.extend_from_slice(&place.file);
        out.extend_from_slice(&place.base.to_le_bytes());
        out.extend_from_slice(&place.position.to_le_bytes());
        out.extend_from_slice(&place.generation.to_le_bytes());
        out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        out.extend_from_slice(&kind_number(place.kind).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
    }
    pieces.iter().for_each(|(_, bytes)| out.extend_from_slice(bytes));
    let crc = crc32fast::hash(&out[SALT_AT..]);
    out[CRC_AT..SALT_AT].copy_from_slice(&crc.to_le_bytes());
}

const fn kind_number(kind: FileKind) -> u32 {
    match kind {
        FileKind::Segment => 1,
        FileKind::Pack => 2,
    }
}

impl<'a> Entry<'a> {
    /// Reads the entry that `bytes` begin with, if it has this salt; without a salt, an entry of
    /// any journal.
    ///
    /// # Errors
    /// [`EntryError`].
    pub fn read(bytes: &'a [u8], salt: Option<u32>) -> Result<Self, EntryError> {
        let word = |at| u32_at(bytes, at).ok_or(EntryError::Short);
        if !bytes.starts_with(&ENTRY_MAGIC) {
            return Err(EntryError::Absent);
        }
        let found = word(SALT_AT)?;
        if salt.is_some_and(|salt| salt != found) {
            return Err(EntryError::Absent);
        }
        let length = word(LENGTH_AT)? as usize;
        if !(ENTRY_HEADER_LEN..=ENTRY_BYTES_MAX).contains(&length) {
            return Err(EntryError::Field("length"));
        }
        let bytes = bytes.get(..length).ok_or(EntryError::Short)?;
        if crc32fast::hash(&bytes[SALT_AT..]) != word(CRC_AT)? {
            return Err(EntryError::Crc);
        }
        let long = |at| u64_at(bytes, at).ok_or(EntryError::Short);
        let stamp = EntryStamp { salt: found, epoch: long(EPOCH_AT)?, number: long(NUMBER_AT)? };
        let count = word(COUNT_AT)? as usize;
        if count > PIECES_MAX {
            return Err(EntryError::Field("number of pieces"));
        }
        if word(RESERVED_AT)? != 0 {
            return Err(EntryError::Field("reserved field"));
        }
        let mut at = ENTRY_HEADER_LEN + count * PIECE_HEADER_LEN;
        let mut pieces = Vec::with_capacity(count);
        for number in 0..count {
            let header = ENTRY_HEADER_LEN + number * PIECE_HEADER_LEN;
            let (place, len) = read_place(bytes, header)?;
            let end = at.checked_add(len).ok_or(EntryError::Short)?;
            pieces.push((place, bytes.get(at..end).ok_or(EntryError::Short)?));
            at = end;
        }
        if at != length {
            return Err(EntryError::Field("length"));
        }
        Ok(Self { stamp, length, pieces })
    }
}

fn read_place(bytes: &[u8], at: usize) -> Result<(PieceAt, usize), EntryError> {
    let word = |field| u32_at(bytes, at + field).ok_or(EntryError::Short);
    let long = |field| u64_at(bytes, at + field).ok_or(EntryError::Short);
    let kind = match word(KIND_AT)? {
        1 => FileKind::Segment,
        2 => FileKind::Pack,
        _ => return Err(EntryError::Field("kind")),
    };
    if word(PIECE_RESERVED_AT)? != 0 {
        return Err(EntryError::Field("reserved field"));
    }
    let place = PieceAt {
        kind,
        file: bytes_at(bytes, at).ok_or(EntryError::Short)?,
        base: long(BASE_AT)?,
        generation: word(GENERATION_AT)?,
        position: long(POSITION_AT)?,
    };
    Ok((place, word(PIECE_LENGTH_AT)? as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: EntryStamp = EntryStamp { salt: 0x0403_0201, epoch: 5, number: 6 };

    fn pieces() -> Vec<(PieceAt, &'static [u8])> {
        let (kind, file) = (FileKind::Segment, [7; 16]);
        let log = PieceAt { kind, file, base: 8, generation: 9, position: 10 };
        let pack = PieceAt { kind: FileKind::Pack, file: [11; 16], base: 12, ..log };
        vec![(log, b"frames"), (pack, b"bodies!")]
    }

    #[test]
    fn the_bytes_are_pinned() {
        let mut out = vec![1; 9];
        encode(&mut out, STAMP, &pieces());
        let mut rest = b"\x01\x02\x03\x04\x95\0\0\0\x05\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0".to_vec();
        rest.extend(b"\x02\0\0\0\0\0\0\0");
        rest.extend([7; 16].iter().chain(b"\x08\0\0\0\0\0\0\0\x0a\0\0\0\0\0\0\0\x09\0\0\0"));
        rest.extend(b"\x06\0\0\0\x01\0\0\0\0\0\0\0");
        rest.extend([11; 16].iter().chain(b"\x0c\0\0\0\0\0\0\0\x0a\0\0\0\0\0\0\0\x09\0\0\0"));
        rest.extend(b"\x07\0\0\0\x02\0\0\0\0\0\0\0framesbodies!");
        let mut golden = b"XSJ1".to_vec();
        golden.extend(crc32fast::hash(&rest).to_le_bytes().iter().chain(&rest));
        assert_eq!(out, golden);
        out.extend([0; 7]);
        let entry = Entry { stamp: STAMP, length: golden.len(), pieces: pieces() };
        assert_eq!(Entry::read(&out, Some(STAMP.salt)).as_ref(), Ok(&entry));
        assert_eq!(Entry::read(&out, None), Ok(entry));
    }

    #[test]
    fn no_damage_passes() {
        let mut out = Vec::new();
        encode(&mut out, STAMP, &pieces());
        assert_eq!(Entry::read(&out, Some(1)), Err(EntryError::Absent));
        for at in 0..out.len() {
            assert!(Entry::read(&out[..at], Some(STAMP.salt)).is_err(), "{at}");
            for bit in 0..8 {
                let mut out = out.clone();
                out[at] ^= 1 << bit;
                assert!(Entry::read(&out, Some(STAMP.salt)).is_err(), "{at}.{bit}");
            }
        }
    }

    #[test]
    fn what_a_right_crc_covers_is_checked_all_the_same() {
        let mut sound = Vec::new();
        encode(&mut sound, STAMP, &pieces());
        let fields =
            [(LENGTH_AT, 1), (COUNT_AT, 65), (COUNT_AT, 3), (COUNT_AT, 1), (RESERVED_AT, 1)];
        let piece = ENTRY_HEADER_LEN;
        let fields = fields.into_iter().chain([
            (piece + KIND_AT, 3),
            (piece + PIECE_RESERVED_AT, 1),
            (piece + PIECE_LENGTH_AT, u32::MAX),
            (piece + PIECE_LENGTH_AT, 5),
        ]);
        for (at, value) in fields {
            let mut out = sound.clone();
            out[at..at + 4].copy_from_slice(&value.to_le_bytes());
            let crc = crc32fast::hash(&out[SALT_AT..]);
            out[CRC_AT..SALT_AT].copy_from_slice(&crc.to_le_bytes());
            assert!(Entry::read(&out, Some(STAMP.salt)).is_err(), "{at} {value}");
        }
    }
}
