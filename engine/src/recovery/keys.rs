//! Reads the idempotency keys and old ids of a segment out of its batches.

use std::io;

use super::replay::replay_sealed;
use super::scan::WholeBatch;
use crate::format::control::{self, Control};
use crate::format::key_index::UsedKey;
use crate::format::record::{FLAG_OLD_ID, FrameLayout, RecordKind};
use crate::keys::{SegmentKeys, key_hash, short};
use crate::log::Segment;

/// The keys and old ids of a sealed segment, and whether it was read to its end. Reading stops at
/// damage.
///
/// # Errors
/// The I/O error.
pub(crate) fn keys_of(segment: &Segment) -> io::Result<(SegmentKeys, bool)> {
    let media = segment.media()?;
    let mut held = SegmentKeys::default();
    let reached = replay_sealed(&media, segment, |batch| take(&mut held, batch))?;
    Ok((held, reached.position == segment.published_len()))
}

/// Adds what a batch holds.
pub(super) fn take(held: &mut SegmentKeys, batch: &WholeBatch) {
    if held.first_ms.is_some() && !batch.kinds.has_keys() {
        return;
    }
    for (_, prefix, record) in batch.records() {
        match prefix.kind {
            RecordKind::Frame if held.first_ms.is_none() || prefix.flags & FLAG_OLD_ID != 0 => {
                let Ok(layout) = FrameLayout::of_checked(record, &prefix) else { continue };
                held.first_ms.get_or_insert_with(|| layout.id(record).time_ms());
                let delta = u64::from(layout.offset_delta());
                let offset = batch.header.base_offset.checked_add(delta);
                held.old_ids.extend(layout.old_id(record).zip(offset));
            }
            RecordKind::Key => {
                let Ok(Control::Key { id, offset, content, key, .. }) =
                    control::decode(record, &prefix)
                else {
                    continue;
                };
                let (key, content) = (key_hash(key), short(&content));
                held.keys.push(UsedKey { key, content, id, offset });
            }
            _ => {}
        }
    }
}
