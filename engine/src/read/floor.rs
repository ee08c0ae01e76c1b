//! The floor of a topic for a reader that began earlier. The index knows the current floor and the
//! one before its last move. Where it has moved further since, the floor is computed from the
//! frames in the reader's segments, which still hold those compacted away since.
//!
//! It is exact with one exception: a frame that a `last:n` kept was removed or expired, and was
//! compacted away, before the reader began; no segment was sealed between that `last:n` and the
//! reader's beginning; and two frames of the topic were appended since. Then the reader may see as
//! many superseded frames as kept frames were lost. It never misses a frame.

use std::sync::Arc;

use super::reader::AsOf;
use super::scan::segment_of;
use super::walk::{WINDOW_POINT, Window};
use crate::error::ReadError;
use crate::format::postings::Chunk;
use crate::index::{Runs, SegmentIndex};
use crate::store::Inner;
use crate::value::Ttl;

/// Maximum number of `last:n` frames tracked separately. Beyond that, frames are merged into one
/// that keeps as few as the strictest and has counted what the oldest did, which keeps no more than
/// each of them would.
const ASKED_MAX: usize = 64;

/// A frame with `last:n`.
#[derive(Debug, Clone, Copy)]
struct Asked {
    offset: u64,
    time_ms: u64,
    /// How many older frames it still keeps, beyond those counted already.
    left: u64,
}

impl Asked {
    /// Whether an older frame existed when this one was appended.
    fn found(&self, older: &Older) -> bool {
        older.expires_ms.is_none_or(|at| at > self.time_ms)
            && older.removed_since.is_none_or(|since| self.offset < since)
    }
}

/// The relevant properties of a frame.
#[derive(Debug, Clone, Copy)]
struct Older {
    offset: u64,
    time_ms: u64,
    ttl: Ttl,
    expires_ms: Option<u64>,
    /// It was removed individually before the frames from this offset on were appended.
    removed_since: Option<u64>,
}

/// What `last:n` left of a topic, computed from its newest frame down. Each frame with `last:n`
/// kept `n` of the frames that existed when it was appended; their later removal does not count.
#[derive(Debug, Default)]
struct Left {
    /// Newest first.
    asked: Vec<Asked>,
}

impl Left {
    /// Counts the next older frame. Returns true if it is the oldest one that `last:n` keeps.
    fn take_older(&mut self, older: &Older) -> bool {
        let mut is_last = false;
        for asked in self.asked.iter_mut().filter(|asked| asked.found(older)) {
            asked.left = asked.left.saturating_sub(1);
            is_last |= asked.left == 0;
        }
        if let Ttl::Last(n) = older.ttl {
            // `n` counts this frame too.
            let Older { offset, time_ms, .. } = *older;
            let own = Asked { offset, time_ms, left: n.get() - 1 };
            is_last |= own.left == 0;
            let is_full = self.asked.len() >= ASKED_MAX;
            match self.asked.last_mut().filter(|_| is_full) {
                Some(last) => *last = Asked { left: last.left.min(own.left), ..own },
                None => self.asked.push(own),
            }
        }
        is_last
    }
}

impl Inner {
    /// Returns [`Self::floor_as_of`], or the current floor if that cannot be determined.
    pub(super) fn floor_for(&self, topic: &str, as_of: &AsOf) -> u64 {
        let floor = self.floor_as_of(topic, as_of);
        floor.unwrap_or_else(|_| self.index.floor(topic, as_of.head))
    }

    /// The floor of a topic for a reader with this snapshot: `last:n` had removed every frame of
    /// the topic with a lower offset.
    fn floor_as_of(&self, topic: &str, as_of: &AsOf) -> Result<u64, ReadError> {
        let &AsOf { head, ref segments, rewrites } = as_of;
        // A rewrite records the floors of its own time, which may be higher than those of the
        // snapshot.
        let known = self.index.known_floor(topic, head);
        if let Some(floor) = known.filter(|_| self.index.rewrites() == rewrites) {
            return Ok(floor);
        }
        let runs = self.runs_as_of(topic, as_of);
        let (mut left, mut least) = (Left::default(), 0);
        let mut below = head.checked_sub(1).and_then(|newest| runs.at_or_before(newest));
        while let Some(number) = below.and_then(|offset| segment_of(segments, offset)) {
            let of = &segments[number];
            if segments.get(number + 1).is_some_and(|next| next.segment().base() <= head) {
                // Frames that this floor kept may have died since, but were counted then.
                least = self.index.floor_at_end(of, topic)?.max(least);
            }
            if let Some(floor) = self.floor_in(of, topic, head, &mut left)? {
                // The count may include frames that did not exist then, so the floor may be too
                // high: frames that are visible now stay visible.
                return Ok(floor.min(self.index.floor(topic, head)).max(least));
            }
            let base = of.segment().base();
            below = base.checked_sub(1).and_then(|below| runs.at_or_before(below));
        }
        Ok(least)
    }

    /// The segments of a reader's snapshot that hold a topic.
    pub(super) fn runs_as_of(&self, topic: &str, as_of: &AsOf) -> Runs {
        let runs = self.index.runs(topic);
        match self.index.rewrites() == as_of.rewrites {
            true => runs,
            false => Runs::anywhere(),
        }
    }

    fn floor_in(
        &self,
        of: &Arc<SegmentIndex>,
        topic: &str,
        head: u64,
        left: &mut Left,
    ) -> Result<Option<u64>, ReadError> {
        let base = of.segment().base();
        let mut window = Window::new(of.segment().clone(), WINDOW_POINT);
        let chunks = self.index.postings(of, topic)?;
        for posting in chunks.into_iter().rev().flat_map(Chunk::backward) {
            let offset = base + u64::from(posting.delta);
            if offset >= head {
                continue;
            }
            let Some(frame) = window.frame_at(posting.position(), offset)? else {
                return Err(window.damaged(posting.position(), offset));
            };
            let older = Older {
                offset,
                time_ms: frame.id().time_ms(),
                ttl: frame.ttl(),
                expires_ms: frame.expires_ms(),
                removed_since: self.index.removed_since(offset),
            };
            if left.take_older(&older) {
                return Ok(Some(offset));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;

    fn older(offset: u64, n: u64) -> Older {
        let ttl = NonZeroU64::new(n).map_or(Ttl::Forever, Ttl::Last);
        Older { offset, time_ms: offset * 10, ttl, expires_ms: None, removed_since: None }
    }

    /// The index of the oldest frame that stays, counting down from frame 1,000.
    fn oldest_left(frames: impl IntoIterator<Item = Older>) -> Option<usize> {
        let mut left = Left::default();
        frames.into_iter().position(|older| left.take_older(&older))
    }

    #[test]
    fn the_strictest_last_n_counts() {
        let floor =
            |ttls: &[u64]| oldest_left((0..).zip(ttls).map(|(n, &last)| older(1000 - n, last)));
        assert_eq!(floor(&[1, 1, 1]), Some(0));
        assert_eq!(floor(&[0, 0, 2, 0, 0]), Some(3));
        assert_eq!(floor(&[5, 0, 1, 0, 0]), Some(2));
        assert_eq!(floor(&[2, 0, 1]), Some(1));
        assert_eq!(floor(&[9, 0, 0]), None);
        assert_eq!(floor(&[0, 0]), None);
    }

    #[test]
    fn what_was_there_when_a_frame_came_counts() {
        let with = |change: fn(&mut Older)| {
            let mut frames = [older(1000, 2), older(999, 0), older(998, 0)];
            change(&mut frames[1]);
            oldest_left(frames)
        };
        assert_eq!(with(|_| ()), Some(1));
        assert_eq!(with(|older| older.expires_ms = Some(10_001)), Some(1), "expired later");
        assert_eq!(with(|older| older.expires_ms = Some(10_000)), Some(2), "expired by then");
        assert_eq!(with(|older| older.removed_since = Some(1001)), Some(1), "removed later");
        assert_eq!(with(|older| older.removed_since = Some(1000)), Some(2), "removed by then");
        // A frame that was removed later still kept others when it was appended.
        let gone = Older { removed_since: Some(1001), ..older(1000, 2) };
        assert_eq!(oldest_left([gone, older(999, 0), older(998, 0)]), Some(1));
        let gone = Older { removed_since: Some(1001), ..older(1000, 1) };
        assert_eq!(oldest_left([gone]), Some(0));
    }

    #[test]
    fn of_many_no_fewer_are_removed() {
        const MANY: u64 = 4 * ASKED_MAX as u64;
        let mut left = Left::default();
        let last = (0..MANY).position(|n| left.take_older(&older(1000 - n, MANY / 2)));
        assert_eq!((last, left.asked.len()), (Some(MANY as usize / 2 - 1), ASKED_MAX));
    }
}
