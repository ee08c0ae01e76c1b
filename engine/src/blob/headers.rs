//! The entries of an unsealed pack, found by their headers alone: they are contiguous. Their
//! content is not read.

use std::sync::Arc;

use bytes::Bytes;

use super::error::BlobError;
use crate::format::pack::{ENTRY_HEADER_LEN, EntryHeader, EntryKind, slot_of};
use crate::media::Media;

/// Bytes taken from the file at a time.
const WINDOW_LEN: u64 = 4 * 1024 * 1024;

/// Consecutive entries.
#[derive(Debug, Default)]
pub(super) struct Headers {
    /// The hash prefix and the position divided by 8 of each entry, in order.
    pub(super) slots: Vec<(u64, u32)>,
    /// Where the last of them ends and no other begins.
    pub(super) end: u64,
    /// Every entry below was durable at some point: the highest such position in any header.
    pub(super) durable_upto: u64,
}

impl Headers {
    /// Reads entries from `from` up to `upto`, which is published, or to the first invalid one.
    pub(super) fn read(
        media: &Arc<dyn Media>,
        salt: u32,
        from: u64,
        upto: u64,
    ) -> Result<Self, BlobError> {
        let mut found = Self { end: from, ..Self::default() };
        let (mut at, mut window) = (from, Bytes::new());
        loop {
            let here = window.get((found.end - at) as usize..).unwrap_or_default();
            if here.len() < ENTRY_HEADER_LEN {
                if found.end.saturating_add(ENTRY_HEADER_LEN as u64) > upto {
                    return Ok(found);
                }
                at = found.end;
                let view = media.view(at..at.saturating_add(WINDOW_LEN).min(upto));
                window = view.map_err(|source| BlobError::io(media.path(), source))?;
                continue;
            }
            match EntryHeader::read(here) {
                Ok(header) if header.salt == salt && header.kind != EntryKind::Block => {
                    let end = found.end.saturating_add(header.stride());
                    if end > upto {
                        return Ok(found);
                    }
                    found.slots.push((header.hash.prefix(), slot_of(found.end)));
                    found.durable_upto = found.durable_upto.max(header.durable_upto);
                    found.end = end;
                }
                _ => return Ok(found),
            }
        }
    }

    /// Whether an entry begins at a position, or could.
    pub(super) fn is_edge(&self, at: u64) -> bool {
        let slot = |slot: &(u64, u32)| u64::from(slot.1) * 8;
        at == self.end || self.slots.binary_search_by_key(&at, slot).is_ok()
    }
}
