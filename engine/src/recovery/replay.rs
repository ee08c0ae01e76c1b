//! Replays whole batches in order into tables, ids and the index.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::scan::{Scan, ScanPosition, WholeBatch};
use crate::blob::{BlobError, Blobs};
use crate::cursors::Cursors;
use crate::format::control::{self, Control};
use crate::format::record::{FLAG_RESTATED, FrameLayout, RecordKind, frame_id};
use crate::index::{Index, Noted};
use crate::log::{Segment, position_of};
use crate::media::Media;
use crate::value::FrameId;

/// The state of the log up to the point read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tables {
    pub(crate) cursors: Cursors,
    pub(crate) last_id: Option<FrameId>,
    /// Whether some frame has an old id.
    pub(crate) has_old_ids: bool,
    /// The restatement being read: number of records to come, and the cursors so far.
    restating: Option<(u64, Cursors)>,
    /// Whether a checkpoint was completed since [`begin_segment`](Self::begin_segment).
    pub(crate) complete: bool,
}

impl Tables {
    /// Starts a new segment, which should begin with a checkpoint.
    pub(crate) fn begin_segment(&mut self) {
        self.restating = None;
        self.complete = false;
    }

    /// Applies the records of a batch that are not frames, and the ids of its frames.
    pub(crate) fn take(&mut self, batch: &WholeBatch) {
        // Ids ascend.
        self.last_id = self.last_id.max(batch.last_frame().and_then(frame_id));
        self.has_old_ids |= batch.kinds.old_ids;
        if batch.kinds.is_frames_alone() {
            return;
        }
        for (_, prefix, record) in batch.records() {
            if prefix.kind == RecordKind::Frame {
                continue;
            }
            // An undecodable record in a sound batch was not written by us.
            let Ok(control) = control::decode(record, &prefix) else { continue };
            let restated = prefix.flags & FLAG_RESTATED != 0;
            match (control, &mut self.restating) {
                (Control::Checkpoint(checkpoint), _) => {
                    self.last_id = self.last_id.max(Some(checkpoint.last_id));
                    self.has_old_ids |= checkpoint.has_old_ids;
                    self.restating = Some((checkpoint.count, Cursors::default()));
                }
                (control, Some((left, cursors))) if restated => {
                    *left = left.saturating_sub(1);
                    if let Control::Cursor(cursor) = control {
                        cursors.apply(&cursor);
                    }
                }
                (Control::Cursor(cursor), _) if !restated => self.cursors.apply(&cursor),
                _ => {}
            }
            if let Some((0, cursors)) = &mut self.restating {
                self.cursors = std::mem::take(cursors);
                self.restating = None;
                self.complete = true;
            }
        }
    }
}

/// Walks all batches of a sealed segment, which may have been compacted.
pub(super) fn replay_sealed(
    media: &Arc<dyn Media>,
    segment: &Segment,
    mut visit: impl FnMut(&WholeBatch),
) -> io::Result<ScanPosition> {
    let walk = Scan::new(Arc::clone(media), &segment.key(), segment.published_len());
    replay_on(walk.sealed(), |batch| {
        visit(batch);
        ControlFlow::Continue(())
    })
}

/// Walks the remaining batches until `visit` breaks. Returns where it stopped.
pub(super) fn replay_on(
    mut walk: Scan,
    mut visit: impl FnMut(&WholeBatch) -> ControlFlow<()>,
) -> io::Result<ScanPosition> {
    loop {
        // A copy of the position, as a rejected batch was not passed.
        let before = walk.at;
        let Ok(batch) = walk.next()? else { return Ok(walk.at) };
        if visit(&batch).is_break() {
            return Ok(ScanPosition { seq: before.seq.or(Some(batch.header.seq)), ..before });
        }
    }
}

/// Whether every blob that the frames of a batch name exists; damaged blobs exist.
///
/// # Errors
/// That of a pack that cannot be read: it may hold the blob.
pub(crate) fn has_blobs(batch: &WholeBatch, blobs: &Blobs) -> io::Result<bool> {
    for (_, prefix, record) in batch.records() {
        let Some(hash) = control::named_blob(record, &prefix) else { continue };
        match blobs.len_of(&hash) {
            Ok(None) => return Ok(false),
            Ok(Some(_)) | Err(BlobError::Corrupt(_)) => {}
            Err(error) => return Err(io::Error::other(error)),
        }
    }
    Ok(true)
}

/// Adds the frames and the tombstones of a batch to the index.
pub(crate) fn note(index: &Index, segment: &Arc<Segment>, batch: &WholeBatch) {
    let mut notes = index.notes(segment);
    if batch.kinds.has(RecordKind::Tombstone) {
        for (_, prefix, record) in batch.records() {
            if prefix.kind == RecordKind::Tombstone
                && let Ok(Control::Tombstone(tombstone)) = control::decode(record, &prefix)
            {
                notes.tombstone(batch.header.seq, &tombstone, None);
            }
        }
    }
    for (at, prefix, record) in batch.records() {
        if prefix.kind != RecordKind::Frame {
            continue;
        }
        let Ok(layout) = FrameLayout::of_checked(record, &prefix) else { continue };
        let offset = batch.header.base_offset.checked_add(u64::from(layout.offset_delta()));
        let Some(offset) = offset else { continue };
        notes.frame(&Noted {
            offset,
            id: layout.id(record),
            topic: layout.topic(record),
            batch: position_of(batch.position),
            record: position_of(at),
            record_len: prefix.len,
            body_len: layout.body(record).map_or(0, |(len, _)| len),
            ttl: layout.ttl(record),
        });
    }
}
