//! Batches that are laid out and not yet published.

use std::sync::Arc;

use crate::append::{Pending, Target};
use crate::error::AppendError;
use crate::format::align8;
use crate::format::batch::BATCH_HEADER_LEN;
use crate::format::key_index::UsedKey;
use crate::format::record::frame_len;
use crate::index::{Index, Noted, Notes};
use crate::log::{BatchAt, position_of};
use crate::value::{Appended, Frame};

/// A batch of this group that was laid out.
#[derive(Default)]
pub(super) struct Placed {
    pub(super) appended: Appended,
    /// Where its records are; `None` for a batch of ephemeral frames only.
    pub(super) at: Option<BatchAt>,
    pub(super) ephemeral: Vec<(u64, Frame)>,
    /// The earlier batch that used its key; then nothing was laid out.
    pub(super) repeats: Option<UsedKey>,
    /// The frames it removes.
    pub(super) removed: Vec<Target>,
}

/// Adds the frames and removals of a group to the index. Returns its ephemeral frames, each with
/// the offset of the stored frame it precedes.
pub(super) fn take_up(
    index: &Index,
    group: &[Pending],
    placed: &mut [Result<Placed, AppendError>],
) -> Vec<(u64, Frame)> {
    let mut ephemeral = Vec::new();
    let mut batches = group
        .iter()
        .zip(placed)
        .filter_map(|(pending, placed)| placed.as_mut().ok().map(|placed| (pending, placed)));
    let mut next = batches.next();
    while let Some((pending, batch)) = next.take() {
        ephemeral.append(&mut batch.ephemeral);
        let Some(at) = &batch.at else {
            next = batches.next();
            continue;
        };
        // One index lock for consecutive batches in the same segment.
        let segment = Arc::clone(&at.segment);
        let mut notes = index.notes(&segment);
        note(pending, batch, &mut notes);
        for (pending, batch) in batches.by_ref() {
            ephemeral.append(&mut batch.ephemeral);
            match &batch.at {
                Some(at) if !Arc::ptr_eq(&at.segment, &segment) => {
                    next = Some((pending, batch));
                    break;
                }
                _ => note(pending, batch, &mut notes),
            }
        }
    }
    ephemeral
}

/// Adds one batch to the index, first its removals, then its frames: the order of the log, because
/// `last:n` counts the frames that exist at that point.
fn note(pending: &Pending, batch: &Placed, notes: &mut Notes<'_>) {
    let Some(at) = &batch.at else { return };
    let mut record = at.position + BATCH_HEADER_LEN as u64;
    for target in &batch.removed {
        let tombstone = target.tombstone();
        notes.tombstone(at.seq, &tombstone, Some(at.next_offset));
        record += tombstone.record_len();
    }
    for (index, (new, stamp)) in pending.batch.frames.iter().zip(&batch.appended.frames).enumerate()
    {
        let Some(offset) = stamp.offset else { continue };
        let body = pending.body(index);
        let len = frame_len(&pending.fields(index, stamp.id, 0));
        notes.frame(&Noted {
            offset,
            id: stamp.id,
            topic: new.topic.as_str(),
            batch: position_of(at.position),
            record: position_of(record),
            record_len: len as u32,
            body_len: body.map_or(0, |(len, _)| len),
            ttl: new.ttl,
        });
        record += align8(len) as u64;
    }
}
