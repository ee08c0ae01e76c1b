//! What `last:n` removed: the floor of a topic is the first offset that remains. Kept exact as
//! frames arrive, at O(1) amortised for each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::memory::MemoryIndex;
use super::recent::Recent;
use super::runs::Runs;
use super::topics::Topics;
use super::{Index, Noted, SegmentIndex};
use crate::error::ReadError;
use crate::format::floors::{Floors, place};
use crate::format::postings::{Chunk, Posting};
use crate::read::walk::{WINDOW_VISIT, Window};

/// A filter that rules out most topics without a floor at the cost of one load, so that reading
/// them takes no lock.
#[derive(Debug, Default)]
pub(super) struct FloorFilter {
    any: AtomicBool,
    bits: [AtomicU64; 16],
}

impl FloorFilter {
    pub(super) fn add(&self, topic: &str) {
        let (word, bit) = place(topic.as_bytes());
        if self.bits[word].load(Ordering::Relaxed) & bit == 0 {
            self.bits[word].fetch_or(bit, Ordering::Release);
            self.any.store(true, Ordering::Release);
        }
    }

    /// Adds all topics of a file.
    pub(super) fn add_all(&self, floors: &Floors) {
        for (mine, &bits) in self.bits.iter().zip(&floors.0) {
            mine.fetch_or(bits, Ordering::Release);
        }
        if *floors != Floors::default() {
            self.any.store(true, Ordering::Release);
        }
    }

    /// Whether any topic has a floor.
    #[inline]
    pub(super) fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    pub(super) fn may_have(&self, topic: &str) -> bool {
        let (word, bit) = place(topic.as_bytes());
        self.bits[word].load(Ordering::Acquire) & bit != 0
    }
}

impl Index {
    /// Loads the newest frames of a topic, which applying the `last:n` of a frame requires. Returns
    /// false when they could not be read: then nothing is removed.
    pub(super) fn prepare_floor(&self, topics: &mut Topics, noted: &Noted<'_>, n: u64) -> bool {
        let active = topics.active.as_ref();
        // With n = 1 only the frame itself is left.
        if n == 1 || !active.is_some_and(|(_, active)| active.wants_recent(noted.topic)) {
            return true;
        }
        let recent = match topics.handed.take(noted.topic) {
            Some(recent) => recent,
            // Including this frame there are at most `n`.
            None if topics.at_most(noted.topic) < n => return true,
            None => match self.newest_frames(topics, noted, n) {
                Ok(recent) => recent,
                Err(_) => return false,
            },
        };
        if let Some((_, active)) = &mut topics.active {
            active.set_recent(noted.topic, recent);
        }
        true
    }

    /// The newest frames of a topic that exist when a frame is appended: `n`, or all if there are
    /// fewer.
    fn newest_frames(
        &self,
        topics: &Topics,
        noted: &Noted<'_>,
        n: u64,
    ) -> Result<Recent, ReadError> {
        let now_ms = noted.id.time_ms();
        let mut recent = Recent::default();
        let (floor, runs) = (topics.floor(noted.topic, u64::MAX), topics.runs(noted.topic));
        let mut below = runs.at_or_before(u64::MAX);
        while let Some(of) =
            below.filter(|_| recent.live() < n).and_then(|offset| self.holder(offset))
        {
            let active = topics.active.as_ref().filter(|(active, _)| *active == of.ordinal);
            let chunks = match active {
                Some((_, memory)) => memory.postings(noted.topic),
                None => self.complete_postings(&of, noted.topic)?,
            };
            let mut expiries = match active {
                Some((_, memory)) => Expiries::Memory(memory),
                None => Expiries::of(&of),
            };
            let base = of.segment.base();
            for posting in chunks.into_iter().rev().flat_map(Chunk::backward) {
                let offset = base + u64::from(posting.delta);
                if offset < floor || recent.live() == n {
                    break;
                }
                if self.removed.contains(offset, u64::MAX) {
                    continue;
                }
                let expires_ms = expiries.of_frame(noted.topic, offset, posting)?;
                if expires_ms.is_none_or(|at| at > now_ms) {
                    recent.push_older(offset, expires_ms);
                }
            }
            // Frames below the floor are removed, however few are left.
            let older = base.checked_sub(1).filter(|&older| older >= floor);
            below = older.and_then(|older| runs.at_or_before(older));
        }
        Ok(recent)
    }

    /// Number of frames of a topic with an offset in `from..to`. Frames that cannot be read are not
    /// counted.
    pub(super) fn count_between(
        &self,
        active: Option<&(u32, MemoryIndex)>,
        topic: &str,
        runs: &Runs,
        (from, to): (u64, u64),
    ) -> u64 {
        let (mut count, mut next) = (0, self.holder(from).map(|of| of.segment.base()));
        while let Some(of) = next
            .and_then(|offset| runs.at_or_after(offset))
            .filter(|&offset| offset < to)
            .and_then(|offset| self.holder(offset))
        {
            let base = of.segment.base();
            let chunks = match active.filter(|(active, _)| *active == of.ordinal) {
                Some((_, memory)) => memory.postings(topic),
                None => self.complete_postings(&of, topic).unwrap_or_default(),
            };
            let offsets = chunks.into_iter().flat_map(Chunk::forward);
            let offsets = offsets.map(|posting| base + u64::from(posting.delta));
            count += offsets.filter(|offset| (from..to).contains(offset)).count() as u64;
            next = self.base_after(base);
        }
        count
    }
}

/// Where to look up when frames of a segment expire.
enum Expiries<'a> {
    Memory(&'a MemoryIndex),
    Frozen(Arc<MemoryIndex>),
    /// None of its frames expires.
    Never,
    /// The frame's record.
    Records(Window),
}

impl Expiries<'_> {
    fn of(of: &SegmentIndex) -> Self {
        match of.frozen() {
            Some(frozen) => Self::Frozen(frozen),
            None if of.decay.never_expires() => Self::Never,
            None => Self::Records(Window::new(of.segment.clone(), WINDOW_VISIT)),
        }
    }

    fn of_frame(
        &mut self,
        topic: &str,
        offset: u64,
        posting: Posting,
    ) -> Result<Option<u64>, ReadError> {
        Ok(match self {
            Self::Memory(memory) => memory.expires(topic, offset),
            Self::Frozen(memory) => memory.expires(topic, offset),
            Self::Never => None,
            Self::Records(window) => match window.frame_at(posting.position(), offset)? {
                Some(frame) => frame.expires_ms(),
                None => return Err(window.damaged(posting.position(), offset)),
            },
        })
    }
}
