//! The streams of a connection, and whether each has something to do.

use super::feed::FeedWork;
use super::transfer::{Download, Upload};

/// A stream, and whether it is in the queue of those with something to do.
pub(crate) struct Slot {
    pub(crate) work: Work,
    pub(crate) queued: bool,
}

/// The kind of a stream.
pub(crate) enum Work {
    Feed(FeedWork),
    Upload(Upload),
    Download(Download),
}

/// Whether a stream has more to do right away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    Again,
    /// It waits for credit, a wake or a blocking thread.
    Wait,
    Done,
}
