//! Resume points: offsets that are good only for the epoch they were seen in. After a loss, or in a
//! copy of the store, an offset can stand for another frame than the one it stood for.

use super::follower::Follower;
use super::reader::Reader;
use crate::error::ReadError;
use crate::store::{Inner, Store};
use crate::value::{Bound, ReadOptions, Start};

/// Where a reader goes on, and which epoch of which store it was seen in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResumePoint {
    /// Uuid of the store; `None` when the caller makes sure itself that it is this one.
    pub store: Option<[u8; 16]>,
    /// The epoch in which the frame before it, or nothing, was seen.
    pub epoch: u64,
    /// The first frame not yet seen.
    pub offset: u64,
}

impl Store {
    /// The point from which a reader goes on later that has seen every frame below `offset`.
    #[must_use]
    pub fn resume_point(&self, offset: u64) -> ResumePoint {
        let store = self.inner.env.manifest.state().store;
        ResumePoint { store: Some(store), epoch: self.inner.epoch, offset }
    }

    /// Whether a reader can go on from a point without missing anything or taking a new frame for
    /// one that it saw.
    ///
    /// # Errors
    /// [`ReadError::CursorAhead`] when frames that the reader may have seen are lost,
    /// [`ReadError::OtherStore`] when the point belongs to another store.
    pub fn check_resume(&self, point: &ResumePoint) -> Result<(), ReadError> {
        self.inner.check_resume(point)
    }

    /// The stored frames that `options` select, from `point` on; the start in `options` does not
    /// count.
    ///
    /// # Errors
    /// As [`check_resume`](Self::check_resume) and [`read`](Self::read).
    pub fn read_from(
        &self,
        point: &ResumePoint,
        options: &ReadOptions,
    ) -> Result<Reader, ReadError> {
        self.read(&self.inner.resumed(point, options)?)
    }

    /// The stored frames that `options` select, from `point` on, then those appended later; the
    /// start in `options` does not count.
    ///
    /// # Errors
    /// As [`check_resume`](Self::check_resume) and [`follow`](Self::follow).
    pub fn follow_from(
        &self,
        point: &ResumePoint,
        options: &ReadOptions,
    ) -> Result<Follower, ReadError> {
        self.follow(&self.inner.resumed(point, options)?)
    }
}

impl Inner {
    fn resumed(
        &self,
        point: &ResumePoint,
        options: &ReadOptions,
    ) -> Result<ReadOptions, ReadError> {
        self.check_resume(point)?;
        Ok(ReadOptions { start: Start::From(Bound::Offset(point.offset)), ..options.clone() })
    }

    fn check_resume(&self, point: &ResumePoint) -> Result<(), ReadError> {
        let head = self.log.head();
        let manifest = self.env.manifest.state();
        if let Some(store) = point.store.filter(|store| *store != manifest.store) {
            return Err(ReadError::OtherStore { store });
        }
        let epochs = &manifest.epochs;
        // An epoch ends where the next one that wrote began.
        let next = epochs.partition_point(|known| known.epoch <= point.epoch);
        let end = epochs.get(next).map_or(head, |later| later.first_offset).min(head);
        let is_known = point.epoch == self.epoch
            || epochs.binary_search_by_key(&point.epoch, |known| known.epoch).is_ok()
            // The oldest epochs are forgotten; what they wrote is below the first one that is
            // known.
            || next == 0;
        match is_known && point.offset <= end {
            true => Ok(()),
            false => Err(ReadError::CursorAhead { offset: end.min(point.offset) }),
        }
    }
}
