//! Goes through whole batches in order and takes up what they say: tables, ids, index.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::scan::{Batch, Walk};
use crate::blob::Blobs;
use crate::cursors::Cursors;
use crate::format::control::{self, Control};
use crate::format::record::{FLAG_OLD_ID, FLAG_RESTATED, RecordKind};
use crate::index::{Index, Noted};
use crate::log::{Segment, SegmentKey};
use crate::media::Media;
use crate::value::{Frame, FrameId};

/// What the log says, as far as it was read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tables {
    pub(crate) cursors: Cursors,
    pub(crate) last_id: Option<FrameId>,
    /// Some frame has an old id.
    pub(crate) has_old_ids: bool,
    /// The restatement that is being read: records to come, and what they said so far.
    restating: Option<(u64, Cursors)>,
    /// A checkpoint was complete since [`begin_segment`](Self::begin_segment).
    pub(crate) complete: bool,
}

impl Tables {
    /// A new segment begins, and with it should a checkpoint.
    pub(crate) fn begin_segment(&mut self) {
        self.restating = None;
        self.complete = false;
    }

    /// Takes up the records of a batch that are not frames, and the ids of those that are.
    pub(crate) fn take(&mut self, batch: &Batch) {
        for (_, prefix, record) in batch.records() {
            if prefix.kind == RecordKind::Frame {
                self.has_old_ids |= prefix.flags & FLAG_OLD_ID != 0;
                if let Ok(frame) = Frame::from_record(record, None) {
                    self.last_id = self.last_id.max(Some(frame.id()));
                }
                continue;
            }
            // A record of a sound batch that cannot be read was not written by us.
            let Ok(control) = control::decode(&record, &prefix) else { continue };
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

/// Walks the batches of a segment below `end`, until `visit` breaks. Says where it stood.
pub(crate) fn replay(
    media: &Arc<dyn Media>,
    key: &SegmentKey,
    end: u64,
    visit: impl FnMut(&Batch) -> ControlFlow<()>,
) -> io::Result<Walk> {
    replay_on(Walk::new(Arc::clone(media), key, end), visit)
}

/// Walks all batches of a sealed segment, which may have been compacted.
pub(super) fn replay_sealed(
    media: &Arc<dyn Media>,
    segment: &Segment,
    mut visit: impl FnMut(&Batch),
) -> io::Result<Walk> {
    let walk = Walk::new(Arc::clone(media), &segment.key(), segment.published_len());
    replay_on(walk.sealed(), |batch| {
        visit(batch);
        ControlFlow::Continue(())
    })
}

fn replay_on(mut walk: Walk, mut visit: impl FnMut(&Batch) -> ControlFlow<()>) -> io::Result<Walk> {
    loop {
        // A copy of the place, as a batch that is refused was not passed.
        let (position, seq, prev_crc, offset) =
            (walk.position, walk.seq, walk.prev_crc, walk.offset);
        let Ok(batch) = walk.next()? else { return Ok(walk) };
        if visit(&batch).is_break() {
            (walk.position, walk.prev_crc, walk.offset) = (position, prev_crc, offset);
            walk.seq = seq.or(Some(batch.header.seq));
            return Ok(walk);
        }
    }
}

/// Whether every blob that the frames of a batch name is there.
pub(crate) fn has_blobs(batch: &Batch, blobs: &Blobs) -> bool {
    batch.records().all(|(_, prefix, record)| match prefix.kind {
        RecordKind::Frame => match Frame::from_record(record, None) {
            Ok(frame) => frame.hash().is_none_or(|hash| blobs.contains(&hash)),
            Err(_) => true,
        },
        RecordKind::Cursor => match control::decode(&record, &prefix) {
            Ok(Control::Cursor(control::CursorRecord {
                state: control::StateRecord::Blob(_, hash),
                ..
            })) => blobs.contains(&hash),
            _ => true,
        },
        _ => true,
    })
}

/// Tells the index of the frames and the tombstones of a batch.
pub(crate) fn note(index: &Index, segment: &Arc<Segment>, batch: &Batch) {
    let frames: Vec<(u64, Frame)> = batch
        .records()
        .filter(|(_, prefix, _)| prefix.kind == RecordKind::Frame)
        .filter_map(|(at, _, record): (u64, _, Bytes)| {
            let frame = Frame::from_record(record, Some(batch.header.base_offset));
            Some((at, frame.ok()?))
        })
        .collect();
    let mut notes = index.notes(segment);
    for (_, prefix, record) in batch.records() {
        if prefix.kind == RecordKind::Tombstone
            && let Ok(Control::Tombstone(tombstone)) = control::decode(&record, &prefix)
        {
            notes.tombstone(batch.header.seq, &tombstone, None);
        }
    }
    for (at, frame) in &frames {
        notes.frame(&Noted {
            offset: frame.offset().unwrap_or(batch.header.base_offset),
            id: frame.id(),
            topic: frame.topic(),
            batch: batch.position as u32,
            record: *at as u32,
            record_len: frame.record().len() as u32,
            body_len: frame.body_len(),
            ttl: frame.ttl(),
        });
    }
}
