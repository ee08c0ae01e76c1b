//! Reading: ranges and topics, single frames, the list of topics, and following. A reader holds
//! offsets, not file positions, so it continues while files under it are rewritten. It never waits
//! for a writer, and a frame reaches it only after its CRC was checked.

mod floor;
mod follower;
mod lookup;
mod newest;
mod postings;
mod reader;
mod repeated;
mod resume;
mod scan;
pub(crate) mod walk;

use std::sync::Arc;

use crate::error::ReadError;
use crate::store::{Inner, Store};
use crate::tail::PublishHook;
use crate::value::{Frame, FrameId, ReadOptions, Topic, TopicPatterns, TopicSummary};

pub use follower::{Follower, FollowerEvent};
pub(crate) use newest::{Gone, Looks, NotFound};
pub use reader::Reader;

impl Inner {
    /// Whether a frame is visible to a reader with this head: it has neither expired nor been
    /// removed, by `last:n` or individually.
    pub(crate) fn is_visible(&self, frame: &Frame, head: u64) -> bool {
        if self.is_expired(frame) {
            return false;
        }
        let hidden = |offset| self.index.is_hidden(frame.topic(), offset, head);
        !(self.index.hides_any() && frame.offset().is_some_and(hidden))
    }

    #[inline]
    fn is_expired(&self, frame: &Frame) -> bool {
        frame.expires_ms().is_some_and(|at| at <= self.env.clock.now_ms())
    }
}

impl Store {
    /// Reads the stored frames that `options` select, as they are now.
    ///
    /// # Errors
    /// [`ReadError::Options`] for `follow`; [`ReadError`] when an index cannot be read. Damaged
    /// frames are errors of the iterator, which continues after them.
    pub fn read(&self, options: &ReadOptions) -> Result<Reader, ReadError> {
        if options.follow {
            return Err(ReadError::Options("a read ends with what is stored: follow to go on"));
        }
        Reader::new(&self.inner, options)
    }

    /// Reads the stored frames that `options` select, then those appended later, also without
    /// `follow`.
    ///
    /// # Errors
    /// [`ReadError::Options`] for `reverse`, which has no end to follow.
    pub fn follow(&self, options: &ReadOptions) -> Result<Follower, ReadError> {
        Follower::new(&self.inner, options)
    }

    /// Returns the frame with this id, or the newest one that had it before it was imported under a
    /// new one; `None` when there is none, or it no longer exists.
    ///
    /// # Errors
    /// [`ReadError::Corrupt`] when it lies in a damaged place.
    pub fn get(&self, id: FrameId) -> Result<Option<Frame>, ReadError> {
        self.inner.get(id)
    }

    /// Returns the frames in the log that have this id or had it before they were imported,
    /// including invisible ones: expired, superseded or removed, and not compacted away yet.
    ///
    /// # Errors
    /// [`ReadError::Corrupt`] when one of them may lie in a damaged place.
    pub fn stored(&self, id: FrameId) -> Result<Vec<Frame>, ReadError> {
        let offsets = self.inner.stored_offsets(id)?.into_iter();
        let frames = offsets.map(|offset| self.inner.stored_at(offset));
        frames.filter_map(Result::transpose).collect()
    }

    /// Returns the frame in the log at an offset, visible or not, as for [`stored`](Self::stored).
    ///
    /// # Errors
    /// [`ReadError::Corrupt`] when it lies in a damaged place.
    pub fn stored_at(&self, offset: u64) -> Result<Option<Frame>, ReadError> {
        if offset < self.head() { self.inner.stored_at(offset) } else { Ok(None) }
    }

    /// Returns the newest id that a frame of this store ever had, including frames that were not
    /// stored or were removed; `None` before the first. Waits for a commit in progress.
    #[must_use]
    pub fn newest_id(&self) -> Option<FrameId> {
        self.inner.writer.lock().newest_id()
    }

    /// Returns the frame at an offset; `None` when there is none, or it no longer exists.
    ///
    /// # Errors
    /// [`ReadError::Corrupt`] when it lies in a damaged place.
    pub fn get_at(&self, offset: u64) -> Result<Option<Frame>, ReadError> {
        self.inner.get_at(offset)
    }

    /// Returns the newest `n` frames of the topics together, in log order.
    ///
    /// # Errors
    /// [`ReadError::Corrupt`] when one of them lies in a damaged place, or may lie there.
    pub fn last(&self, topics: &TopicPatterns, n: u64) -> Result<Vec<Frame>, ReadError> {
        self.inner.last(topics, n)
    }

    /// Returns the newest frame of each of the topics, in log order.
    ///
    /// # Errors
    /// [`ReadError::Corrupt`] when one of them lies in a damaged place, or may lie there.
    pub fn last_per_topic(&self, topics: &TopicPatterns) -> Result<Vec<Frame>, ReadError> {
        self.inner.last_per_topic(topics)
    }

    /// Returns the newest frame of each of at most `limit` of the topics, those with names after
    /// `after`, in log order. It pages through [`last_per_topic`](Self::last_per_topic) for callers
    /// that cannot hold a million frames at once. The next page begins after the returned name; the
    /// last page returns none.
    ///
    /// # Errors
    /// [`ReadError::Corrupt`] when one of them lies in a damaged place, or may lie there.
    pub fn last_per_topic_page(
        &self,
        topics: &TopicPatterns,
        after: Option<&Topic>,
        limit: usize,
    ) -> Result<(Vec<Frame>, Option<Topic>), ReadError> {
        self.inner.last_per_topic_page(topics, after, limit)
    }

    /// Returns a summary of each of the topics, in byte order of their names.
    #[must_use]
    pub fn topics(&self, topics: &TopicPatterns) -> Vec<TopicSummary> {
        self.inner.topics(topics)
    }

    /// Returns a summary of each of at most `limit` of the topics, those with names after `after`,
    /// in byte order. It pages through [`topics`](Self::topics) for callers that cannot hold a
    /// million of them at once. The next page begins after the returned name; the last page returns
    /// none.
    #[must_use]
    pub fn topics_page(
        &self,
        topics: &TopicPatterns,
        after: Option<&Topic>,
        limit: usize,
    ) -> (Vec<TopicSummary>, Option<Topic>) {
        self.inner.topics_page(topics, after, limit)
    }

    /// Calls `waker` after each publish, on the publishing thread, until the hook is dropped. It
    /// should only wake something else.
    pub fn on_publish(&self, waker: Arc<dyn Fn() + Send + Sync>) -> PublishHook {
        self.inner.tail.on_publish(waker)
    }
}
