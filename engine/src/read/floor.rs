//! The floor of a topic as a reader saw it that began a while ago. The index knows what it is now
//! and was a moment ago; where it has moved on since, the frames themselves tell.

use std::sync::Arc;

use super::reader::AsOf;
use super::scan::segment_of;
use super::walk::{WINDOW_POINT, Window};
use crate::error::ReadError;
use crate::format::postings::Chunk;
use crate::index::SegmentIndex;
use crate::store::Inner;
use crate::value::Ttl;

/// What `last:n` left of a topic, found from its newest frame down.
#[derive(Debug, Default)]
struct Left {
    /// Frames that count, so far.
    met: u64,
    /// So many stay, as far as is known.
    stay: Option<u64>,
}

impl Left {
    /// Counts the next older frame. True if it is the oldest one that `last:n` keeps. A frame that
    /// was removed one by one since kept as many others when it came.
    fn take_older(&mut self, ttl: Ttl, is_there: bool) -> bool {
        if let Ttl::Last(n) = ttl {
            // Itself and those before it; a newer one may leave fewer.
            let stay = self.met.saturating_add(n.get() - u64::from(!is_there));
            self.stay = Some(self.stay.map_or(stay, |known| known.min(stay)));
        }
        self.met += u64::from(is_there);
        self.stay == Some(self.met)
    }
}

impl Inner {
    /// [`Self::floor_as_of`]; where that cannot be told, what is removed now is hidden.
    pub(super) fn floor_for(&self, topic: &str, as_of: AsOf) -> u64 {
        let floor = self.floor_as_of(topic, as_of);
        floor.unwrap_or_else(|_| self.index.floor(topic, as_of.head))
    }

    /// Every frame of a topic with a lower offset was removed by `last:n`, for a reader that sees
    /// the log as of then.
    fn floor_as_of(&self, topic: &str, as_of: AsOf) -> Result<u64, ReadError> {
        let AsOf { head, rewrites } = as_of;
        if let Some(floor) = self.index.known_floor(topic, head) {
            return Ok(floor);
        }
        let (segments, runs) = (self.index.segments(), self.index.runs(topic));
        let mut left = Left::default();
        let mut below = head.checked_sub(1).and_then(|newest| runs.at_or_before(newest));
        while let Some(number) = below.and_then(|offset| segment_of(&segments, offset)) {
            if let Some(floor) = self.floor_in(&segments[number], topic, head, &mut left)? {
                return Ok(floor);
            }
            let base = segments[number].segment().base();
            below = base.checked_sub(1).and_then(|below| runs.at_or_before(below));
        }
        // What stayed then may be compacted away by now.
        Ok(if self.index.rewrites() == rewrites { 0 } else { self.index.floor(topic, head) })
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
            let is_there = !self.index.is_removed_for(offset, head);
            match window.frame_at(posting.position(), offset)? {
                Some(frame) if self.is_expired(&frame) => {}
                Some(frame) if left.take_older(frame.ttl(), is_there) => return Ok(Some(offset)),
                Some(_) => {}
                None => return Err(window.damaged(posting.position(), offset)),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;

    #[test]
    fn the_strictest_last_n_counts() {
        let floor = |ttls: &[u64]| {
            let mut left = Left::default();
            let ttl = |n: &u64| NonZeroU64::new(*n).map_or(Ttl::Forever, Ttl::Last);
            ttls.iter().map(ttl).position(|ttl| left.take_older(ttl, true))
        };
        assert_eq!(floor(&[1, 1, 1]), Some(0));
        assert_eq!(floor(&[0, 0, 2, 0, 0]), Some(3));
        assert_eq!(floor(&[5, 0, 1, 0, 0]), Some(2));
        assert_eq!(floor(&[2, 0, 1]), Some(1));
        assert_eq!(floor(&[9, 0, 0]), None);
        assert_eq!(floor(&[0, 0]), None);
        let mut left = Left::default();
        let two = Ttl::Last(NonZeroU64::MIN.saturating_add(1));
        assert!(!left.take_older(two, false) && left.take_older(Ttl::Forever, true));
        assert!(Left::default().take_older(Ttl::Last(NonZeroU64::MIN), false));
    }
}
