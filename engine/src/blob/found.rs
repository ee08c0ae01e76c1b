//! The result of a blob lookup: an entry of its own, or a row of a BLOCK.

use std::sync::Arc;

use bytes::Bytes;

use super::entry::Entry;
use super::error::BlobError;
use super::reader::BlobReader;
use super::sealed::Opened;
use super::trail::{self, Row};
use crate::format::pack::EntryKind;
use crate::planted::{Bug, is_planted};
use crate::value::BlobHash;

/// The location of a blob.
#[derive(Debug)]
pub(super) enum FoundBlob {
    /// An entry of its own.
    Entry(Entry),
    /// A row of a BLOCK, decompressed and compared with its hash.
    Row {
        bytes: Bytes,
        hash: BlobHash,
        /// The pack.
        opened: Arc<Opened>,
        /// The BLOCK and the number of the blob in it.
        row: Row,
    },
}

impl FoundBlob {
    /// Bytes of the blob.
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Entry(entry) => entry.header().raw_len,
            Self::Row { bytes, .. } => bytes.len() as u64,
        }
    }

    /// Remembers the location of a kin's blob, to guess its next one.
    pub(super) fn note(&self, kin: u32) {
        match self {
            Self::Row { row, .. } => trail::note(kin, *row),
            Self::Entry(entry) => trail::note_entry(entry),
        }
    }

    /// A reader of the blob, its CRC checked and its SHA-256 checked while reading.
    pub(super) fn reader(self) -> Result<BlobReader, BlobError> {
        match self {
            Self::Entry(entry) => BlobReader::open(entry),
            Self::Row { bytes, hash, .. } => Ok(BlobReader::memory(hash, bytes)),
        }
    }

    /// The whole blob. For a short raw one only the CRC is checked: the header before it has the
    /// hash, and computing it again would take longer than everything else.
    pub(super) fn body(self, max: u64) -> Result<Bytes, BlobError> {
        match self {
            Self::Entry(entry) if entry.header().is_raw_and_short() => {
                let len = entry.header().raw_len;
                if len > max {
                    return Err(BlobError::TooLong { len, max });
                }
                entry.stored()
            }
            other => other.reader()?.all(max),
        }
    }

    /// Whether the blob can be read and is exactly `bytes`.
    pub(super) fn is(&self, bytes: &Bytes) -> bool {
        match self {
            Self::Entry(_) if is_planted(Bug::BelieveRotten) => true,
            Self::Entry(entry) if entry.header().kind == EntryKind::Raw => {
                entry.stored().is_ok_and(|stored| stored == bytes)
            }
            Self::Entry(entry) => {
                let read = BlobReader::open(entry.clone());
                read.and_then(|reader| reader.all(bytes.len() as u64)).is_ok_and(|b| b == bytes)
            }
            // The BLOCK may come from the cache: the file is checked too.
            Self::Row { bytes: stored, opened, row, .. } => {
                stored == bytes
                    && opened.entry(row.block.position).and_then(|entry| entry.stored()).is_ok()
            }
        }
    }
}
