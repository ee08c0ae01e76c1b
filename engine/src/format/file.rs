//! The file header: the first 64 bytes of every file of a store.

use super::{bytes_at, u32_at, u64_at};

/// Bytes of the header.
pub const FILE_HEADER_LEN: usize = 64;
/// The version of all layouts here.
pub const FORMAT_VERSION: u32 = 1;

const VERSION_AT: usize = 8;
const SALT_AT: usize = VERSION_AT + size_of::<u32>();
const STORE_AT: usize = SALT_AT + size_of::<u32>();
const FILE_AT: usize = STORE_AT + 16;
const BASE_AT: usize = FILE_AT + 16;
const GENERATION_AT: usize = BASE_AT + size_of::<u64>();
const CRC_AT: usize = GENERATION_AT + size_of::<u32>();
const _: () = assert!(CRC_AT + size_of::<u32>() == FILE_HEADER_LEN);

/// The kind of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Magic {
    /// A copy of the manifest.
    Super,
    /// A segment of the log.
    Segment,
    /// A sparse index.
    Index,
    /// A topic index.
    Topic,
    /// A key index.
    Key,
    /// A list of tombstones, and when frames expire.
    Dead,
    /// The table of all topics.
    Table,
    /// A pack of blobs.
    Pack,
    /// The index of a pack.
    PackIndex,
    /// The journal.
    Journal,
}

impl Magic {
    /// Returns the first 8 bytes of such a file.
    #[must_use]
    pub const fn bytes(self) -> &'static [u8; 8] {
        match self {
            Self::Super => b"XSSUPER1",
            Self::Segment => b"XSSEGMT1",
            Self::Index => b"XSINDEX1",
            Self::Topic => b"XSTOPIC1",
            Self::Key => b"XSKEYED1",
            Self::Dead => b"XSDEADS1",
            Self::Table => b"XSTABLE1",
            Self::Pack => b"XSPACKS1",
            Self::PackIndex => b"XSPKIDX1",
            Self::Journal => b"XSJOURN1",
        }
    }
}

/// What is wrong with the structure of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// Fewer bytes than the structure needs.
    #[error("is cut short")]
    Short,
    /// The magic is wrong.
    #[error("is not such a file: its magic is wrong")]
    Magic,
    /// Another version of the format, with a valid CRC.
    #[error("has format version {found}, this program reads version {FORMAT_VERSION}")]
    Version {
        /// The version it names.
        found: u32,
    },
    /// A CRC does not match.
    #[error("fails its CRC")]
    Crc,
    /// A field has an invalid value.
    #[error("holds a wrong {0}")]
    Field(&'static str),
}

/// The header of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileHeader {
    /// The kind of the file.
    pub magic: Magic,
    /// Random for segments, packs and the journal, otherwise 0.
    pub salt: u32,
    /// Uuid of the store.
    pub store: [u8; 16],
    /// Uuid of the file, of the file it derives from, or of the parent store.
    pub file: [u8; 16],
    /// Base offset, pack number or sequence number.
    pub base: u64,
    /// How often the file was rewritten.
    pub generation: u32,
}

impl FileHeader {
    /// Encodes the header.
    #[must_use]
    pub fn encode(&self) -> [u8; FILE_HEADER_LEN] {
        let mut out = [0; FILE_HEADER_LEN];
        out[..VERSION_AT].copy_from_slice(self.magic.bytes());
        out[VERSION_AT..SALT_AT].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        out[SALT_AT..STORE_AT].copy_from_slice(&self.salt.to_le_bytes());
        out[STORE_AT..FILE_AT].copy_from_slice(&self.store);
        out[FILE_AT..BASE_AT].copy_from_slice(&self.file);
        out[BASE_AT..GENERATION_AT].copy_from_slice(&self.base.to_le_bytes());
        out[GENERATION_AT..CRC_AT].copy_from_slice(&self.generation.to_le_bytes());
        let crc = crc32fast::hash(&out[..CRC_AT]);
        out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the header of a file that should have this magic.
    ///
    /// # Errors
    /// [`FormatError`]; another version than ours is reported only if the CRC is valid.
    pub fn decode(bytes: &[u8], magic: Magic) -> Result<Self, FormatError> {
        let header: [u8; FILE_HEADER_LEN] = bytes_at(bytes, 0).ok_or(FormatError::Short)?;
        let word = |at| u32_at(&header, at).ok_or(FormatError::Short);
        if !header.starts_with(magic.bytes()) {
            return Err(FormatError::Magic);
        }
        if crc32fast::hash(&header[..CRC_AT]) != word(CRC_AT)? {
            return Err(FormatError::Crc);
        }
        let found = word(VERSION_AT)?;
        if found != FORMAT_VERSION {
            return Err(FormatError::Version { found });
        }
        Ok(Self {
            magic,
            salt: word(SALT_AT)?,
            store: bytes_at(&header, STORE_AT).ok_or(FormatError::Short)?,
            file: bytes_at(&header, FILE_AT).ok_or(FormatError::Short)?,
            base: u64_at(&header, BASE_AT).ok_or(FormatError::Short)?,
            generation: word(GENERATION_AT)?,
        })
    }
}

/// Bytes of the end of a derived file: the CRC of everything before it, and zeros.
pub(crate) const END_LEN: usize = 8;

/// Appends the end of a derived file.
pub(crate) fn push_end(out: &mut Vec<u8>) {
    let crc = crc32fast::hash(out);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
}

/// Checks a whole derived file by the CRC at its end; returns where the end begins.
pub(crate) fn check_end(bytes: &[u8]) -> Result<usize, FormatError> {
    let end = bytes.len().checked_sub(END_LEN).ok_or(FormatError::Short)?;
    if u32_at(bytes, end) != Some(crc32fast::hash(&bytes[..end])) {
        return Err(FormatError::Crc);
    }
    match u32_at(bytes, end + 4) {
        Some(0) => Ok(end),
        _ => Err(FormatError::Field("reserved field")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: FileHeader = FileHeader {
        magic: Magic::Segment,
        salt: 0x0403_0201,
        store: [5; 16],
        file: [6; 16],
        base: 7,
        generation: 8,
    };

    #[test]
    fn the_bytes_are_pinned() {
        let bytes = HEADER.encode();
        let crc = crc32fast::hash(&bytes[..60]).to_le_bytes();
        let mut golden = b"XSSEGMT1\x01\0\0\0\x01\x02\x03\x04".to_vec();
        golden.extend([5; 16].iter().chain(&[6; 16]));
        golden.extend(b"\x07\0\0\0\0\0\0\0\x08\0\0\0".iter().chain(&crc));
        assert_eq!(bytes[..], golden[..]);
        assert_eq!(crc32fast::hash(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn damage_is_found() {
        let bytes = HEADER.encode();
        assert_eq!(FileHeader::decode(&bytes, Magic::Segment), Ok(HEADER));
        assert_eq!(FileHeader::decode(&bytes, Magic::Pack), Err(FormatError::Magic));
        for at in 0..FILE_HEADER_LEN {
            assert_eq!(FileHeader::decode(&bytes[..at], Magic::Segment), Err(FormatError::Short));
            for bit in 0..8 {
                let mut bytes = bytes;
                bytes[at] ^= 1 << bit;
                assert!(FileHeader::decode(&bytes, Magic::Segment).is_err(), "{at}.{bit}");
            }
        }
    }

    #[test]
    fn a_newer_version_is_named() {
        let mut bytes = HEADER.encode();
        bytes[8] = 2;
        let crc = crc32fast::hash(&bytes[..60]).to_le_bytes();
        bytes[60..].copy_from_slice(&crc);
        let found = FileHeader::decode(&bytes, Magic::Segment);
        assert_eq!(found, Err(FormatError::Version { found: 2 }));
    }
}
