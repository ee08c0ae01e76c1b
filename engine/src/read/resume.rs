//! Resume points: offsets that are valid only for the epoch they were seen in. After a loss, or in
//! a copy of the store, an offset can name another frame than before.

use super::follower::Follower;
use super::reader::Reader;
use crate::error::ReadError;
use crate::store::{Inner, Store};
use crate::value::{Bound, ReadOptions, ResumePoint, Start};

impl Store {
    /// Returns the point from which a reader that has seen every frame below `offset` resumes.
    #[must_use]
    pub fn resume_point(&self, offset: u64) -> ResumePoint {
        ResumePoint { store: Some(self.uuid()), epoch: self.inner.epoch, offset }
    }

    /// Whether a reader can resume from a point without missing anything or mistaking a new frame
    /// for one that it saw.
    ///
    /// # Errors
    /// [`ReadError::CursorAhead`] when frames that the reader may have seen are lost,
    /// [`ReadError::OtherStore`] when the point belongs to another store.
    pub fn check_resume(&self, point: &ResumePoint) -> Result<(), ReadError> {
        self.inner.check_resume(point)
    }

    /// Reads the stored frames that `options` select, from `point` on; the start in `options` is
    /// ignored.
    ///
    /// # Errors
    /// As for [`check_resume`](Self::check_resume) and [`read`](Self::read).
    pub fn read_from(
        &self,
        point: &ResumePoint,
        options: &ReadOptions,
    ) -> Result<Reader, ReadError> {
        self.read(&self.inner.resumed(point, options)?)
    }

    /// Reads the stored frames that `options` select, from `point` on, then those appended later;
    /// the start in `options` is ignored.
    ///
    /// # Errors
    /// As for [`check_resume`](Self::check_resume) and [`follow`](Self::follow).
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
        if let Some(store) = point.store.filter(|store| *store.as_bytes() != manifest.store) {
            return Err(ReadError::OtherStore { store });
        }
        let epochs = &manifest.epochs;
        // An epoch ends where the next one that wrote anything began.
        let next = epochs.partition_point(|known| known.epoch <= point.epoch);
        let end = epochs.get(next).map_or(head, |later| later.first_offset).min(head);
        let is_known = point.epoch == self.epoch
            || epochs.binary_search_by_key(&point.epoch, |known| known.epoch).is_ok()
            // The oldest epochs are dropped from the manifest; they end below the first known one.
            || next == 0;
        match is_known && point.offset <= end {
            true => Ok(()),
            false => Err(ReadError::CursorAhead { offset: end.min(point.offset) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::SyncPolicy;
    use crate::read::FollowerEvent;
    use crate::testing::{fast_dir, frame, open};
    use crate::value::StoreUuid;

    #[test]
    fn who_goes_on_from_a_point_sees_what_came_behind_it() {
        let dir = fast_dir();
        let store = open(dir.path(), SyncPolicy::None);
        (0..5).for_each(|n| drop(store.append(frame("a", n).into()).unwrap()));
        let point = store.resume_point(3);
        let options = ReadOptions { start: Start::New, ..ReadOptions::default() };
        let read = store.read_from(&point, &options).unwrap();
        let offsets: Vec<_> = read.map(|frame| frame.unwrap().offset().unwrap()).collect();
        assert_eq!(offsets, [3, 4]);
        let mut follower = store.follow_from(&point, &options).unwrap();
        let Some(FollowerEvent::Frame(first)) = follower.try_recv().unwrap() else {
            panic!("no frame")
        };
        assert_eq!(first.offset(), Some(3));
        let ahead = ResumePoint { offset: 6, ..point };
        let refused = store.read_from(&ahead, &options);
        assert!(matches!(refused, Err(ReadError::CursorAhead { offset: 5 })));
        let elsewhere = ResumePoint { store: Some(StoreUuid::from_bytes([7; 16])), ..point };
        let refused = store.follow_from(&elsewhere, &options);
        assert!(matches!(refused, Err(ReadError::OtherStore { .. })));
    }
}
