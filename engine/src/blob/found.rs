//! A blob that was found, and the few blocks kept decompressed because their neighbours in the log
//! tend to be read next.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::entry::Entry;
use super::error::BlobError;
use super::reader::BlobReader;
use crate::format::pack::{Block, EntryKind};
use crate::planted::{Bug, is_planted};
use crate::value::BlobHash;

/// Blocks kept: with at most 32 KiB of blobs each, about 2 MiB.
const BLOCKS_MAX: usize = 64;

/// Where a blob is.
#[derive(Debug)]
pub(super) enum Found {
    /// It is an entry of its own.
    Entry(Entry),
    /// It is in a BLOCK, decompressed and compared with its hash.
    Row { bytes: Bytes, hash: BlobHash },
}

impl Found {
    /// Bytes of the blob.
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Entry(entry) => entry.header().raw_len,
            Self::Row { bytes, .. } => bytes.len() as u64,
        }
    }

    /// The blob, its CRC checked and its SHA-256 to be checked on the way.
    pub(super) fn reader(self) -> Result<BlobReader, BlobError> {
        match self {
            Self::Entry(entry) => BlobReader::open(entry),
            Self::Row { bytes, hash } => Ok(BlobReader::memory(hash, bytes)),
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
            Self::Row { bytes: stored, .. } => stored == bytes,
        }
    }
}

/// Decompressed blocks by pack and position, the last used in front.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    kept: Mutex<VecDeque<(Place, Arc<Block>)>>,
}

/// Uuid of a pack, which changes with each generation, and the position of an entry in it.
pub(super) type Place = ([u8; 16], u64);

impl Blocks {
    /// The block of an entry, decompressed.
    pub(super) fn get(&self, pack: [u8; 16], entry: &Entry) -> Result<Arc<Block>, BlobError> {
        let place = (pack, entry.at());
        let mut kept = self.kept.lock();
        if let Some(at) = kept.iter().position(|(other, _)| *other == place)
            && let Some(hit) = kept.remove(at)
        {
            let block = Arc::clone(&hit.1);
            kept.push_front(hit);
            return Ok(block);
        }
        drop(kept);
        let stored = entry.stored()?;
        let block = Block::decode(entry.header(), &stored).map_err(|what| entry.corrupt(what))?;
        let block = Arc::new(block);
        let mut kept = self.kept.lock();
        kept.truncate(BLOCKS_MAX - 1);
        kept.push_front((place, Arc::clone(&block)));
        Ok(block)
    }
}
