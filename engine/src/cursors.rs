//! The table of cursors. It is small enough to be kept in memory and restated at the beginning of
//! each segment; states that would make it too long for that are stored as blobs.

use std::collections::HashMap;

use bytes::Bytes;

use crate::format::align8;
use crate::format::batch::BATCH_HEADER_LEN;
use crate::format::control::{CHECKPOINT_LEN, Control, CursorRecord, StateRecord};
use crate::format::record::PREFIX_LEN;
use crate::limits::{CURSOR_STATE_INLINE_MAX, CURSORS_MAX, SEGMENT_BYTES_MAX};
use crate::log::{RESTATED_BYTES, RESTATED_COUNT};
use crate::value::{BlobHash, CursorName, CursorSummary};

/// Maximum bytes of a CURSOR record without its name and inline state.
const RECORD_FIXED_MAX: usize = PREFIX_LEN + 4 * 8 + 8 + 32;

/// A cursor in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HeldCursor {
    pub(crate) revision: u64,
    pub(crate) epoch: u64,
    pub(crate) offset: u64,
    pub(crate) time_ms: u64,
    pub(crate) state: HeldState,
}

/// A cursor's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HeldState {
    Inline(Bytes),
    Blob(u64, BlobHash),
}

/// All cursors.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cursors {
    table: HashMap<CursorName, HeldCursor>,
    /// Upper bound of the bytes of the restated table.
    bytes: usize,
    /// States in blobs that were replaced or removed.
    replaced: u64,
}

impl HeldCursor {
    pub(crate) fn summary(&self, name: &CursorName) -> CursorSummary {
        let state_bytes = match &self.state {
            HeldState::Inline(bytes) => bytes.len() as u64,
            HeldState::Blob(len, _) => *len,
        };
        let Self { revision, epoch, offset, time_ms, .. } = *self;
        let name = name.clone();
        CursorSummary { name, revision, epoch, offset, time_ms, state_bytes }
    }

    /// The record of this value.
    pub(crate) fn record<'a>(&'a self, name: &'a CursorName) -> Control<'a> {
        let Self { revision, epoch, offset, time_ms, .. } = *self;
        let state = match &self.state {
            HeldState::Inline(bytes) => StateRecord::Inline(bytes),
            HeldState::Blob(len, hash) => StateRecord::Blob(*len, *hash),
        };
        Control::Cursor(CursorRecord {
            name: name.as_str(),
            revision,
            epoch,
            offset,
            time_ms,
            state,
        })
    }

    /// Upper bound of the bytes of its record.
    pub(crate) fn record_len(&self, name: &CursorName) -> usize {
        record_len(name, Some(&self.state))
    }
}

/// Upper bound of the bytes of a CURSOR record.
pub(crate) fn record_len(name: &CursorName, state: Option<&HeldState>) -> usize {
    let inline = match state {
        Some(HeldState::Inline(bytes)) => bytes.len(),
        Some(HeldState::Blob(..)) | None => 0,
    };
    align8(RECORD_FIXED_MAX + name.as_str().len() + inline)
}

/// Upper bound of the bytes of a checkpoint with a table of this many cursors and bytes.
pub(crate) const fn checkpoint_len(count: usize, bytes: usize) -> usize {
    let batches = 1 + count / RESTATED_COUNT + bytes / RESTATED_BYTES;
    align8(CHECKPOINT_LEN) + bytes + batches * BATCH_HEADER_LEN
}

impl Cursors {
    pub(crate) fn get(&self, name: &CursorName) -> Option<&HeldCursor> {
        self.table.get(name)
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&CursorName, &HeldCursor)> {
        self.table.iter()
    }

    /// Upper bound of the bytes of the restated table.
    pub(crate) const fn restated_bytes(&self) -> usize {
        self.bytes
    }

    /// Upper bound of the bytes of a checkpoint with this table.
    pub(crate) fn checkpoint_len(&self) -> usize {
        checkpoint_len(self.len(), self.bytes)
    }

    /// How many states that were stored as blobs have been replaced or removed.
    pub(crate) const fn replaced(&self) -> u64 {
        self.replaced
    }

    /// Sets a cursor, or removes it.
    pub(crate) fn set(&mut self, name: CursorName, value: Option<HeldCursor>) {
        let added = value.as_ref().map_or(0, |held| held.record_len(&name));
        let old = match value {
            Some(held) => self.table.insert(name.clone(), held),
            None => self.table.remove(&name),
        };
        if let Some(HeldCursor { state: HeldState::Blob(..), .. }) = &old {
            self.replaced += 1;
        }
        let freed = old.map_or(0, |held| held.record_len(&name));
        self.bytes = self.bytes + added - freed;
    }

    /// Applies a CURSOR record. One with an invalid name is skipped: something else wrote the
    /// record, and no caller could ask for it.
    pub(crate) fn apply(&mut self, record: &CursorRecord<'_>) {
        let Ok(name) = CursorName::parse(record.name) else { return };
        let state = match record.state {
            StateRecord::Removed => return self.set(name, None),
            StateRecord::Inline(bytes) => HeldState::Inline(Bytes::copy_from_slice(bytes)),
            StateRecord::Blob(len, hash) => HeldState::Blob(len, hash),
        };
        let CursorRecord { revision, epoch, offset, time_ms, .. } = *record;
        self.set(name, Some(HeldCursor { revision, epoch, offset, time_ms, state }));
    }
}

/// The part of a segment that the table may take.
const TABLE_PART: u64 = 4;

/// Limits of the table: it is restated at the beginning of every segment, and must leave most of it
/// to frames.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CursorRoom {
    segment_bytes: usize,
}

/// Bytes of a segment that begins with a checkpoint of this length. A store that was opened with
/// smaller segments than before may have a table that does not fit into one: its segments are as
/// much longer as it takes to leave most of them to frames all the same.
pub(crate) fn segment_len(segment_bytes: u64, checkpoint: usize) -> u64 {
    // A third, because a checkpoint is a little longer than its table. A batch takes at most half.
    if checkpoint as u64 <= segment_bytes / 3 {
        return segment_bytes;
    }
    let longer = (checkpoint as u64).saturating_mul(TABLE_PART).checked_next_power_of_two();
    longer.unwrap_or(u64::MAX).clamp(segment_bytes, SEGMENT_BYTES_MAX)
}

impl CursorRoom {
    pub(crate) const fn new(segment_bytes: u64) -> Self {
        Self { segment_bytes: segment_bytes as usize }
    }

    /// Whether a state of this length is stored in its record. `used` is the length of the table.
    pub(crate) const fn is_inline(&self, used: usize, len: usize) -> bool {
        len <= CURSOR_STATE_INLINE_MAX && used + len <= self.segment_bytes / 8
    }

    /// Whether the table may have this many cursors and bytes.
    pub(crate) const fn fits(&self, count: usize, used: usize) -> bool {
        count <= CURSORS_MAX && used <= self.segment_bytes / TABLE_PART as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_counts_what_restating_it_takes() {
        let mut cursors = Cursors::default();
        let name = CursorName::parse("a").unwrap();
        let held = |state: &'static [u8]| HeldCursor {
            revision: 1,
            epoch: 1,
            offset: 0,
            time_ms: 0,
            state: HeldState::Inline(Bytes::from_static(state)),
        };
        cursors.set(name.clone(), Some(held(b"12345678")));
        let before = cursors.restated_bytes();
        cursors.set(name.clone(), Some(held(b"1234567812345678")));
        assert_eq!(cursors.restated_bytes(), before + 8);
        let mut out = Vec::new();
        for (name, held) in cursors.iter() {
            crate::format::control::encode(&mut out, &held.record(name), true).unwrap();
        }
        assert!(out.len() <= cursors.restated_bytes());
        cursors.set(name.clone(), None);
        cursors.set(name, None);
        assert_eq!((cursors.restated_bytes(), cursors.len()), (0, 0));
    }

    #[test]
    fn a_segment_is_longer_only_for_a_table_that_it_could_not_have_taken() {
        const KIB: usize = 1024;
        for (bytes, checkpoint, len) in [
            (64, 0, 64),
            // The longest table that a store with such segments takes, and its overhead.
            (64, 16 * KIB + 200, 64),
            (64, 22 * KIB, 128),
            (64, 100 * KIB, 512),
            (1024, 100 * KIB, 1024),
            (64, 256 * KIB * KIB, KIB * KIB),
            (KIB * KIB, 300 * KIB * KIB, KIB * KIB),
        ] {
            let found = segment_len((bytes * KIB) as u64, checkpoint);
            assert_eq!(found, (len * KIB) as u64, "{bytes} KiB, {checkpoint}");
        }
        assert_eq!(segment_len(64 * 1024, usize::MAX), SEGMENT_BYTES_MAX);
    }
}
