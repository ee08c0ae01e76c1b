//! Reading: frames of a range or of topics, single frames, what topics there are, and following.
//! A reader holds offsets, not places: whatever is rewritten beneath it, it goes on. It never waits
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
pub use resume::ResumePoint;

impl Inner {
    /// Whether a reader that sees frames below `head` may see a frame: it is neither expired nor
    /// removed, by `last:n` or one by one.
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
    /// The stored frames that `options` select, as they are now.
    ///
    /// # Errors
    /// [`ReadError::Options`] for `follow`; [`ReadError`] when an index cannot be read. Damaged
    /// frames are errors of the iterator, which goes on behind them.
    pub fn read(&self, options: &ReadOptions) -> Result<Reader, ReadError> {
        if options.follow {
            return Err(ReadError::Options("a read ends with what is stored: follow to go on"));
        }
        Reader::new(&self.inner, options)
    }

    /// The stored frames that `options` select, then those appended later, also without `follow`.
    ///
    /// # Errors
    /// [`ReadError::Options`] for `reverse`, which has no end to follow.
    pub fn follow(&self, options: &ReadOptions) -> Result<Follower, ReadError> {
        Follower::new(&self.inner, options)
    }

    /// The frame with an id, or the newest one that had it before it was imported under a new one;
    /// nothing when there is none, or none any more.
    ///
    /// # Errors
    /// [`ReadError::Corrupt`] when it lies in a damaged place.
    pub fn get(&self, id: FrameId) -> Result<Option<Frame>, ReadError> {
        self.inner.get(id)
    }

    /// The frames in the log that have an id or had it before they were imported, also those that
    /// nobody sees: expired, superseded or removed, and not compacted away yet.
    ///
    /// # Errors
    /// [`ReadError::Corrupt`] when one of them may lie in a damaged place.
    pub fn stored(&self, id: FrameId) -> Result<Vec<Frame>, ReadError> {
        let offsets = self.inner.stored_offsets(id)?.into_iter();
        let frames = offsets.map(|offset| self.inner.stored_at(offset));
        frames.filter_map(Result::transpose).collect()
    }

    /// The newest id that a frame of this store ever had, also one that was not stored or is gone;
    /// [`FrameId::ZERO`] before the first. Waits for a commit under way.
    pub fn newest_id(&self) -> FrameId {
        self.inner.writer.lock().newest_id()
    }

    /// The frame with an offset; nothing when there is none, or none any more.
    ///
    /// # Errors
    /// [`ReadError::Corrupt`] when it lies in a damaged place.
    pub fn get_at(&self, offset: u64) -> Result<Option<Frame>, ReadError> {
        self.inner.get_at(offset)
    }

    /// The newest `n` frames of the topics together, in log order.
    ///
    /// # Errors
    /// [`ReadError::Corrupt`] when one of them lies in a damaged place, or may lie there.
    pub fn last(&self, topics: &TopicPatterns, n: u64) -> Result<Vec<Frame>, ReadError> {
        self.inner.last(topics, n)
    }

    /// The newest frame of each of the topics, in log order.
    ///
    /// # Errors
    /// [`ReadError::Corrupt`] when one of them lies in a damaged place, or may lie there.
    pub fn last_per_topic(&self, topics: &TopicPatterns) -> Result<Vec<Frame>, ReadError> {
        self.inner.last_per_topic(topics)
    }

    /// The newest frame of each of at most `limit` of the topics, those whose names come after
    /// `after`, in log order: [`last_per_topic`](Self::last_per_topic) for whoever does not want a
    /// million frames at once. The next page begins after the name that is returned; there is none
    /// behind the last page.
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

    /// What the store holds of each of the topics, in byte order of their names.
    #[must_use]
    pub fn topics(&self, topics: &TopicPatterns) -> Vec<TopicSummary> {
        self.inner.topics(topics)
    }

    /// What the store holds of each of at most `limit` of the topics, those whose names come after
    /// `after`, in byte order: [`topics`](Self::topics) for whoever does not want a million of them
    /// at once. The next page begins after the name that is returned; there is none behind the last
    /// page.
    #[must_use]
    pub fn topics_page(
        &self,
        topics: &TopicPatterns,
        after: Option<&Topic>,
        limit: usize,
    ) -> (Vec<TopicSummary>, Option<Topic>) {
        self.inner.topics_page(topics, after, limit)
    }

    /// Calls `waker` after each publish, on the thread that published, until the hook is dropped.
    /// It should do no more than set something off.
    pub fn on_publish(&self, waker: Arc<dyn Fn() + Send + Sync>) -> PublishHook {
        self.inner.tail.on_publish(waker)
    }
}
