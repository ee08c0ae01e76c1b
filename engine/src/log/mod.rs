//! The log: segments in the order of their offsets. This module has what readers share with the
//! single writer: the list of segments and the head. Writing is in `appender`, opening in
//! `recovery`.

mod appender;
mod open_files;
mod sealing;
mod segment;

use std::sync::Arc;

use parking_lot::RwLock;

pub(crate) use appender::{
    Active, Appender, BatchAt, OpenBatch, RESTATED_BYTES, RESTATED_COUNT, unmarked,
};
pub(crate) use open_files::OpenFiles;
pub(crate) use sealing::{Sealing, WriteError};
pub(crate) use segment::{Segment, SegmentKey, position_of};

use crate::sys::Published;

/// The log as readers see it.
#[derive(Debug)]
pub(crate) struct Log {
    segments: RwLock<Arc<[Arc<Segment>]>>,
    head: Published,
}

/// A snapshot of the log. What it lists stays readable as long as it is held.
#[derive(Debug, Clone)]
pub(crate) struct LogView {
    /// Segments in the order of their offsets.
    pub(crate) segments: Arc<[Arc<Segment>]>,
    /// Offset of the next frame: frames at or after it are not visible in this view.
    pub(crate) head: u64,
}

impl Log {
    pub(crate) fn new(segments: Vec<Arc<Segment>>, head: u64) -> Self {
        Self { segments: RwLock::new(segments.into()), head: Published::new(head) }
    }

    /// Offset of the next frame that readers will see.
    pub(crate) fn head(&self) -> u64 {
        // A reader that sees a head sees every published length and every index entry written
        // before it.
        self.head.get()
    }

    /// A snapshot of the log.
    pub(crate) fn view(&self) -> LogView {
        // The head first: segments are listed before frames in them are published, so the list
        // read afterwards covers every offset below this head.
        let head = self.head();
        LogView { segments: Arc::clone(&self.segments.read()), head }
    }

    /// Whether this same segment is still listed.
    pub(crate) fn has(&self, segment: &Segment) -> bool {
        self.segments.read().iter().any(|listed| listed.key() == segment.key())
    }

    /// Makes frames below `head` visible; their bytes were published before.
    pub(crate) fn publish(&self, head: u64) {
        self.head.raise(head);
    }

    /// Adds the next segment.
    pub(crate) fn push(&self, segment: Arc<Segment>) {
        let mut segments = self.segments.write();
        *segments = segments.iter().cloned().chain([segment]).collect();
    }

    /// Replaces the segment with the same base by its mended form.
    pub(crate) fn rewritten(&self, new: &Arc<Segment>) {
        let mut segments = self.segments.write();
        let replace = |old: &Arc<Segment>| if old.base() == new.base() { new } else { old }.clone();
        *segments = segments.iter().map(replace).collect();
    }

    /// Replaces `old` by `new`, or removes `old`.
    pub(crate) fn replace(&self, old: &Segment, new: Option<Arc<Segment>>) {
        let mut segments = self.segments.write();
        let same = |segment: &Arc<Segment>| segment.key() == old.key();
        *segments = segments
            .iter()
            .filter_map(|segment| if same(segment) { new.clone() } else { Some(segment.clone()) })
            .collect();
    }

    /// Replaces segments by `new`.
    pub(crate) fn compacted(&self, old: &[Arc<Segment>], new: Option<Arc<Segment>>) {
        let mut segments = self.segments.write();
        let is_old = |segment: &Arc<Segment>| old.iter().any(|old| old.key() == segment.key());
        let kept = segments.iter().filter(|segment| !is_old(segment)).cloned();
        let mut listed: Vec<_> = kept.chain(new).collect();
        listed.sort_by_key(|segment| (segment.base(), segment.generation()));
        *segments = listed.into();
    }
}
