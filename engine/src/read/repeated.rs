//! The answer to a batch whose key was used before, from the current log.

use super::scan::{segment_of, walk_to};
use super::walk::WINDOW_POINT;
use crate::append::Batch;
use crate::format::key_index::UsedKey;
use crate::store::Inner;
use crate::value::{FrameId, NewFrame, Stamp, Ttl};

impl Inner {
    /// The stamps of the batch that used a key first; `batch` is its repetition. Only the first
    /// stamp when the others are unknown: ephemeral frames are not stored, others may be removed.
    pub(crate) fn first_stamps(&self, batch: &Batch, used: &UsedKey) -> Vec<Stamp> {
        let stored = |frame: &NewFrame| frame.ttl != Ttl::Ephemeral;
        let starts_stored = batch.frames.first().is_some_and(stored);
        let first = Stamp { id: used.id, offset: starts_stored.then_some(used.offset) };
        let rest = batch.frames.get(1..).unwrap_or_default();
        if rest.is_empty() || !rest.iter().all(stored) {
            return vec![first];
        }
        let from = used.offset + u64::from(starts_stored);
        let Some(ids) = self.ids_from(from, rest.len()) else { return vec![first] };
        let stamps = ids.into_iter().zip(from..);
        let stamps = stamps.map(|(id, offset)| Stamp { id, offset: Some(offset) });
        std::iter::once(first).chain(stamps).collect()
    }

    /// The ids of `count` consecutive frames, if all can be read.
    fn ids_from(&self, from: u64, count: usize) -> Option<Vec<FrameId>> {
        let segments = self.index.segments();
        let of = segments.get(segment_of(&segments, from)?)?;
        let mut walk = walk_to(&self.index, of, from, WINDOW_POINT).ok()?;
        let mut ids = Vec::with_capacity(count);
        while ids.len() < count {
            let found = walk.next()?.ok()?;
            let wanted = from + ids.len() as u64;
            if found.offset > wanted {
                return None;
            }
            if found.offset == wanted {
                ids.push(walk.frame(&found).ok()?.id());
            }
        }
        Some(ids)
    }
}
