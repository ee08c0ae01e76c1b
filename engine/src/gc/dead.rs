//! Frames that the log still holds but no reader sees again: a collection may remove their bodies.

use std::collections::{HashMap, HashSet};

use crate::index::Marks;
use crate::store::Inner;
use crate::value::FrameRef;

/// Frames whose names of blobs do not count, as no reader sees them again.
#[derive(Debug)]
pub(super) enum Dead {
    /// Those with these offsets, which are being removed for good.
    These(HashSet<u64>),
    /// All that were removed, superseded or had expired at one moment.
    Unseen(Unseen),
}

/// Frames that were unseen at one moment.
#[derive(Debug)]
pub(crate) struct Unseen {
    /// Frames that were removed one by one.
    removed: Marks,
    /// Frames that expired after this moment still count as seen: the clock may be set back.
    expired_by_ms: u64,
    /// Floors of the topics that have one.
    floors: HashMap<Box<str>, u64>,
    /// Whether a frame that names a body, or a cursor's record, was skipped.
    pub(super) passed: bool,
}

impl Unseen {
    /// The frames unseen now. One that expired less than `grace_ms` ago still counts as seen.
    pub(crate) fn now(inner: &Inner, grace_ms: u64) -> Self {
        let removed = inner.index.marks(0..inner.log.head());
        let expired_by_ms = inner.env.clock.now_ms().saturating_sub(grace_ms);
        Self { removed, expired_by_ms, floors: HashMap::new(), passed: false }
    }

    /// Whether no reader sees a frame. That is final once everything appended before this call is
    /// durable: a power cut could undo what removed or superseded the frame.
    pub(crate) fn has(&mut self, inner: &Inner, frame: &FrameRef<'_>) -> bool {
        let offset = frame.offset().unwrap_or(u64::MAX);
        self.removed.contains(offset)
            || frame.expires_ms().is_some_and(|at| at <= self.expired_by_ms)
            || offset < self.floor(inner, frame.topic())
    }

    fn floor(&mut self, inner: &Inner, topic: &str) -> u64 {
        if !inner.index.may_have_floor(topic) {
            return 0;
        }
        if let Some(&floor) = self.floors.get(topic) {
            return floor;
        }
        let floor = inner.index.floor(topic, u64::MAX);
        self.floors.insert(topic.into(), floor);
        floor
    }
}

impl Dead {
    /// Whether the names of a frame do not count.
    pub(super) fn has(&mut self, inner: &Inner, frame: &FrameRef<'_>) -> bool {
        match self {
            Self::These(offsets) => frame.offset().is_some_and(|offset| offsets.contains(&offset)),
            Self::Unseen(unseen) => {
                let has = unseen.has(inner, frame);
                unseen.passed |= has;
                has
            }
        }
    }
}
