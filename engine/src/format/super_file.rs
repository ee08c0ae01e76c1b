//! The layout of the manifest: the store's identity, its epochs, and every file that belongs to it.

use super::file::{FILE_HEADER_LEN, FileHeader, FormatError, Magic};
use super::{bytes_at, u32_at, u64_at};
use crate::limits::{EPOCHS_MAX, FILES_MAX};

const FLAG_CLEAN: u32 = 1;
const FLAG_BACKUP: u32 = 1 << 1;
const COUNTS_LEN: usize = 4 * 4;
const EPOCH_LEN: usize = 3 * 8;
const ENTRY_LEN: usize = 64;
const TRAILER_LEN: usize = 8;

const GENERATION_AT: usize = 4;
const BASE_AT: usize = 8;
const UUID_AT: usize = BASE_AT + 8;
const LENGTH_AT: usize = UUID_AT + 16;
const CRC_AT: usize = LENGTH_AT + 8;
const GONE_AT: usize = CRC_AT + 4;
const COUNT_AT: usize = GONE_AT + 4;
const NEWEST_AT: usize = COUNT_AT + 8;
const _: () = assert!(NEWEST_AT + 8 == ENTRY_LEN);
/// The same field in the entry of a segment.
const PURGED_AT: usize = NEWEST_AT;

/// Maximum bytes of a super file.
pub const SUPER_BYTES_MAX: u64 =
    (FILE_HEADER_LEN + COUNTS_LEN + EPOCHS_MAX * EPOCH_LEN + FILES_MAX * ENTRY_LEN + TRAILER_LEN)
        as u64;

/// The content of the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SuperState {
    /// Uuid of the store.
    pub store: [u8; 16],
    /// Uuid of the store it was copied from, or zero.
    pub parent: [u8; 16],
    /// The store was closed cleanly and not written to since.
    pub clean: bool,
    /// It is a backup of the store with this uuid: it may be read and added to, but not appended
    /// to.
    pub backup: bool,
    /// Salt of the journal that may hold unapplied groups; 0 when there is none.
    pub journal: u32,
    /// The newest epochs, oldest first.
    pub epochs: Vec<EpochStart>,
    /// Every file of the log and the packs.
    pub files: Vec<FileEntry>,
}

/// The beginning of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochStart {
    /// Its number.
    pub epoch: u64,
    /// Offset of the first frame that could be written in it.
    pub first_offset: u64,
    /// Seq of the first batch that could be written in it. Part of the format for people who
    /// inspect the file; no code depends on it.
    pub first_seq: u64,
}

/// The kind of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileKind {
    /// A segment of the log.
    Segment,
    /// A pack of blobs.
    Pack,
}

/// Whether a file may still change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileState {
    /// It may be written to, or was when the store was last open.
    Unmarked,
    /// It never changes again.
    Sealed,
    /// A pack whose blobs are elsewhere or unwanted: its file is being removed.
    Dropped,
}

/// The key of a file, unique within a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileKey {
    /// Segment or pack.
    pub kind: FileKind,
    /// Base offset or pack number.
    pub base: u64,
    /// How often it was rewritten.
    pub generation: u32,
}

/// The entry of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileEntry {
    /// Segment or pack.
    pub kind: FileKind,
    /// Whether it may still change.
    pub state: FileState,
    /// How often it was rewritten.
    pub generation: u32,
    /// Base offset or pack number.
    pub base: u64,
    /// Its uuid.
    pub uuid: [u8; 16],
    /// Sealed: length of the file. Unmarked and clean: end of its last batch or entry.
    pub length: u64,
    /// CRC of the whole file when sealed.
    pub crc: u32,
    /// Frames or blobs in it, when sealed.
    pub count: u64,
    /// Sealed pack: when a blob was last put into it, in milliseconds since 1970. A put that finds
    /// its blob there counts, within a minute.
    pub newest_ms: u64,
    /// Number of frames compacted away from a sealed segment: it covers the offsets from its base
    /// on, as many as these and its frames.
    pub gone: u32,
    /// Every tombstone in a batch with a lower seq for a frame of this sealed segment was applied:
    /// the frame is not in it.
    pub purged_seq: u64,
}

impl FileKey {
    /// Returns the key of a segment.
    #[must_use]
    pub const fn segment(base: u64, generation: u32) -> Self {
        Self { kind: FileKind::Segment, base, generation }
    }

    /// Returns the key of a pack.
    #[must_use]
    pub const fn pack(number: u64, generation: u32) -> Self {
        Self { kind: FileKind::Pack, base: number, generation }
    }
}

impl FileEntry {
    /// Returns the key of the file.
    #[must_use]
    pub const fn key(&self) -> FileKey {
        FileKey { kind: self.kind, base: self.base, generation: self.generation }
    }

    /// Whether a header belongs to this file, or to one derived from it. The store's uuid is not
    /// compared: an ancestor may have written the file.
    #[must_use]
    pub fn owns(&self, header: &FileHeader) -> bool {
        (header.file, header.base, header.generation) == (self.uuid, self.base, self.generation)
    }
}

impl SuperState {
    /// Returns the entry of a file.
    #[must_use]
    pub fn file(&self, key: FileKey) -> Option<&FileEntry> {
        self.files.iter().find(|file| file.key() == key)
    }

    /// Encodes the copy with this sequence number.
    #[must_use]
    pub fn encode(&self, sequence: u64) -> Vec<u8> {
        let header = FileHeader {
            magic: Magic::Super,
            salt: 0,
            store: self.store,
            file: self.parent,
            base: sequence,
            generation: 0,
        };
        let mut out = header.encode().to_vec();
        let mut flags = if self.clean { FLAG_CLEAN } else { 0 };
        flags |= if self.backup { FLAG_BACKUP } else { 0 };
        for word in [flags, self.epochs.len() as u32, self.files.len() as u32, self.journal] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        for epoch in &self.epochs {
            for number in [epoch.epoch, epoch.first_offset, epoch.first_seq] {
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
        self.files.iter().for_each(|file| file.encode(&mut out));
        let crc = crc32fast::hash(&out[FILE_HEADER_LEN..]);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out
    }

    /// Decodes a copy: its sequence number and its content.
    ///
    /// # Errors
    /// [`FormatError`] says what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<(u64, Self), FormatError> {
        let header = FileHeader::decode(bytes, Magic::Super)?;
        let word = |at| u32_at(bytes, at).ok_or(FormatError::Short);
        let long = |at| u64_at(bytes, at).ok_or(FormatError::Short);
        let flags = word(FILE_HEADER_LEN)?;
        let (epochs, files) = (word(FILE_HEADER_LEN + 4)? as usize, word(FILE_HEADER_LEN + 8)?);
        let files = files as usize;
        if epochs > EPOCHS_MAX || files > FILES_MAX {
            return Err(FormatError::Field("count"));
        }
        let epochs_at = FILE_HEADER_LEN + COUNTS_LEN;
        let files_at = epochs_at + epochs * EPOCH_LEN;
        let crc_at = files_at + files * ENTRY_LEN;
        if bytes.len() != crc_at + TRAILER_LEN {
            return Err(FormatError::Short);
        }
        let covered = bytes.get(FILE_HEADER_LEN..crc_at).ok_or(FormatError::Short)?;
        if crc32fast::hash(covered) != word(crc_at)? {
            return Err(FormatError::Crc);
        }
        if flags & !(FLAG_CLEAN | FLAG_BACKUP) != 0 || word(crc_at + 4)? != 0 {
            return Err(FormatError::Field("reserved field"));
        }
        let epoch = |index: usize| {
            let at = epochs_at + index * EPOCH_LEN;
            let (epoch, first_offset, first_seq) = (long(at)?, long(at + 8)?, long(at + 16)?);
            Ok(EpochStart { epoch, first_offset, first_seq })
        };
        let file = |index: usize| {
            let at = files_at + index * ENTRY_LEN;
            FileEntry::decode(bytes.get(at..at + ENTRY_LEN).ok_or(FormatError::Short)?)
        };
        let state = Self {
            store: header.store,
            parent: header.file,
            clean: flags & FLAG_CLEAN != 0,
            backup: flags & FLAG_BACKUP != 0,
            journal: word(FILE_HEADER_LEN + 12)?,
            epochs: (0..epochs).map(epoch).collect::<Result<_, FormatError>>()?,
            files: (0..files).map(file).collect::<Result<_, _>>()?,
        };
        Ok((header.base, state))
    }
}

impl FileEntry {
    /// Returns the offset after those that a sealed segment covers.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.base.saturating_add(self.count).saturating_add(self.gone as u64)
    }

    /// Whether it is a pack that was sealed as written, and could be compressed: every other pack
    /// has an earlier generation, or holds one long blob.
    #[must_use]
    pub const fn is_plain_pack(&self) -> bool {
        matches!((self.kind, self.state), (FileKind::Pack, FileState::Sealed))
            && self.generation == 0
            && self.count > 1
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let kind = match self.kind {
            FileKind::Segment => 1,
            FileKind::Pack => 2,
        };
        let state = match self.state {
            FileState::Unmarked => 1,
            FileState::Sealed => 2,
            FileState::Dropped => 3,
        };
        out.extend_from_slice(&[kind, state, 0, 0]);
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&self.base.to_le_bytes());
        out.extend_from_slice(&self.uuid);
        out.extend_from_slice(&self.length.to_le_bytes());
        out.extend_from_slice(&self.crc.to_le_bytes());
        out.extend_from_slice(&self.gone.to_le_bytes());
        out.extend_from_slice(&self.count.to_le_bytes());
        let last = match self.kind {
            FileKind::Segment => self.purged_seq,
            FileKind::Pack => self.newest_ms,
        };
        out.extend_from_slice(&last.to_le_bytes());
    }

    fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let word = |at| u32_at(bytes, at).ok_or(FormatError::Short);
        let long = |at| u64_at(bytes, at).ok_or(FormatError::Short);
        let [kind, state, reserved @ ..] =
            bytes_at::<GENERATION_AT>(bytes, 0).ok_or(FormatError::Short)?;
        if reserved != [0, 0] || (kind == 2 && word(GONE_AT)? != 0) {
            return Err(FormatError::Field("reserved field"));
        }
        Ok(Self {
            kind: match kind {
                1 => FileKind::Segment,
                2 => FileKind::Pack,
                _ => return Err(FormatError::Field("file kind")),
            },
            state: match state {
                1 => FileState::Unmarked,
                2 => FileState::Sealed,
                3 if kind == 2 => FileState::Dropped,
                _ => return Err(FormatError::Field("file state")),
            },
            generation: word(GENERATION_AT)?,
            base: long(BASE_AT)?,
            uuid: bytes_at(bytes, UUID_AT).ok_or(FormatError::Short)?,
            length: long(LENGTH_AT)?,
            crc: word(CRC_AT)?,
            gone: word(GONE_AT)?,
            count: long(COUNT_AT)?,
            newest_ms: if kind == 2 { long(NEWEST_AT)? } else { 0 },
            purged_seq: if kind == 1 { long(PURGED_AT)? } else { 0 },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> SuperState {
        let segment = FileEntry {
            kind: FileKind::Segment,
            state: FileState::Sealed,
            generation: 1,
            base: 2,
            uuid: [3; 16],
            length: 4,
            crc: 5,
            count: 6,
            newest_ms: 0,
            gone: 0,
            purged_seq: 0,
        };
        let pack = FileEntry { kind: FileKind::Pack, newest_ms: 7, ..segment };
        SuperState {
            store: [1; 16],
            parent: [2; 16],
            clean: true,
            backup: false,
            journal: 8,
            epochs: vec![EpochStart { epoch: 1, first_offset: 2, first_seq: 3 }],
            files: vec![
                segment,
                FileEntry { state: FileState::Unmarked, ..pack },
                FileEntry { state: FileState::Dropped, ..pack },
            ],
        }
    }

    #[test]
    fn the_bytes_are_pinned() {
        let bytes = sample().encode(9);
        let mut golden = bytes[..FILE_HEADER_LEN].to_vec();
        golden.extend(b"\x01\0\0\0\x01\0\0\0\x03\0\0\0\x08\0\0\0");
        golden.extend(b"\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0");
        for (kind, state, newest) in [(1, 2, 0), (2, 1, 7), (2, 3, 7)] {
            golden.extend([kind, state, 0, 0, 1, 0, 0, 0]);
            golden.extend(b"\x02\0\0\0\0\0\0\0".iter().chain(&[3; 16]));
            golden.extend(b"\x04\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0");
            golden.extend([newest, 0, 0, 0, 0, 0, 0, 0]);
        }
        golden.extend(crc32fast::hash(&golden[FILE_HEADER_LEN..]).to_le_bytes());
        golden.extend([0; 4]);
        assert_eq!(bytes, golden);
        assert_eq!(SuperState::decode(&bytes), Ok((9, sample())));
    }

    #[test]
    fn damage_is_found_at_every_bit_and_cut() {
        let bytes = sample().encode(9);
        for at in 0..bytes.len() {
            assert!(SuperState::decode(&bytes[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut bytes = bytes.clone();
                bytes[at] ^= 1 << bit;
                assert!(SuperState::decode(&bytes).is_err(), "{at}.{bit}");
            }
        }
    }
}
