//! Reads of the engine as feeds of the protocol. A feed is pulled on a connection's task, so it
//! examines a bounded number of frames and then yields.

use std::sync::Arc;

use xs_engine::{Follower, FollowerEvent, Frame, ReadError, Reader};
use xs_protocol::{Feed, Pulled, Refusal};

use super::hooks::Hook;
use super::refuse;

/// Frames examined in one pull, whether delivered or not.
const LOOK_MAX: usize = 512;

/// A read of the stored frames.
pub(super) struct StoredFeed(pub(super) Reader);

impl Feed for StoredFeed {
    fn pull(&mut self, frames: &mut Vec<Frame>, room: usize) -> Result<Pulled, Refusal> {
        let (mut bytes, mut looks) = (0, LOOK_MAX);
        while bytes < room {
            let before = self.0.next_offset();
            match self.0.next_within(&mut looks) {
                None if looks == 0 => break,
                None => return Ok(Pulled::End),
                Some(Err(error)) => return gap(&error, before, self.0.next_offset()),
                Some(Ok(frame)) => {
                    bytes += frame.record().len();
                    frames.push(frame);
                }
            }
        }
        Ok(Pulled::More)
    }

    fn scanned_to(&self) -> u64 {
        self.0.next_offset()
    }
}

/// A read that continues with new frames.
pub(super) struct FollowFeed {
    pub(super) follower: Follower,
    /// Keeps the wake registered.
    pub(super) _hook: Arc<Hook>,
}

impl Feed for FollowFeed {
    fn pull(&mut self, frames: &mut Vec<Frame>, room: usize) -> Result<Pulled, Refusal> {
        let (mut bytes, mut looks) = (0, LOOK_MAX);
        while bytes < room {
            let before = self.follower.next_offset();
            match self.follower.try_recv_within(&mut looks) {
                Err(error) => return gap(&error, before, self.follower.next_offset()),
                Ok(None) if looks == 0 => break,
                Ok(None) if self.follower.is_done() => return Ok(Pulled::End),
                Ok(None) => return Ok(Pulled::Idle),
                Ok(Some(FollowerEvent::Frame(frame))) => {
                    bytes += frame.record().len();
                    frames.push(frame);
                }
                Ok(Some(FollowerEvent::CaughtUp { head })) => return Ok(Pulled::CaughtUp { head }),
                Ok(Some(FollowerEvent::Lost { ephemeral })) => {
                    return Ok(Pulled::Lost { ephemeral });
                }
            }
        }
        Ok(Pulled::More)
    }

    fn scanned_to(&self) -> u64 {
        self.follower.next_offset()
    }
}

/// A damaged range is reported and skipped, if it contained frames; any other error ends the feed.
fn gap(error: &ReadError, before: u64, behind: u64) -> Result<Pulled, Refusal> {
    match error {
        ReadError::Corrupt(corruption) => {
            tracing::error!(%corruption, "frames cannot be read");
            // Not where the damage begins if the read began inside it.
            let lowest = before.min(behind);
            let from = corruption.offset.map_or(lowest, |offset| offset.max(lowest));
            // Upwards, the gap extends to where the read resumes. Downwards, the damage tells how
            // far it extends, and everything above the read's position has been delivered.
            let until = corruption.until.unwrap_or_else(|| from.saturating_add(1));
            let to = if behind > before { behind } else { until.min(before) };
            // The damaged record may not be a frame, so that none is missing.
            Ok(if from < to { Pulled::Gap { from, to } } else { Pulled::More })
        }
        other => Err(refuse::read(other)),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use xs_engine::{
        Batch, Corruption, NewFrame, ReadError, ReadOptions, Store, StoreOptions, Topic, Ttl,
    };
    use xs_protocol::{Feed, Pulled};

    use super::{Arc, FollowFeed, LOOK_MAX, StoredFeed, gap};
    use crate::serve::hooks::Hooks;

    #[test]
    fn a_gap_is_what_damage_took_of_what_had_not_come() {
        let gap = |offset, until, before, behind| {
            let what = "bytes".into();
            let damage = Corruption { path: "a".into(), position: 0, offset, until, what };
            match gap(&ReadError::Corrupt(damage), before, behind).unwrap() {
                Pulled::Gap { from, to } => Some(from..to),
                Pulled::More => None,
                other => panic!("{other:?}"),
            }
        };
        // Ascending, a gap ends where the read resumes and begins no earlier than the read.
        assert_eq!(gap(Some(5), None, 3, 9), Some(5..9));
        assert_eq!(gap(Some(2), None, 3, 9), Some(3..9));
        // Descending, it ends where frames are found again, but not above the position of the read.
        assert_eq!(gap(Some(5), Some(9), 12, 5), Some(5..9));
        assert_eq!(gap(Some(5), Some(20), 12, 5), Some(5..12));
        assert_eq!(gap(Some(2), Some(9), 12, 3), Some(3..9));
        assert_eq!(gap(Some(5), None, 12, 5), Some(5..6));
        // No frame was lost between the frames before and after it.
        assert_eq!(gap(Some(5), None, 3, 5), None);
        assert_eq!(gap(Some(5), None, 5, 5), None);
        assert_eq!(gap(Some(5), Some(5), 5, 5), None);
    }

    /// A thread serves many connections in turn, so a pull that finds nothing must end too.
    #[test]
    fn a_pull_ends_where_all_is_superseded() {
        let frames = 4 * LOOK_MAX as u64;
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
        let ttl = Ttl::Last(NonZeroU64::MIN);
        let one = || NewFrame { ttl, ..NewFrame::new(Topic::parse("a").unwrap()) };
        let frames_of_all = (0..frames).map(|_| one()).collect();
        store.append(Batch { frames: frames_of_all, ..Batch::default() }).unwrap();
        let options = ReadOptions::default();
        let follow = ReadOptions { follow: true, ..ReadOptions::default() };
        let hook = Arc::new(Hooks::default()).add(&store, Arc::new(|| ()));
        let follow = FollowFeed { follower: store.follow(&follow).unwrap(), _hook: hook };
        let feeds: [Box<dyn Feed>; 2] =
            [Box::new(StoredFeed(store.read(&options).unwrap())), Box::new(follow)];
        for mut feed in feeds {
            let (mut found, mut pulls) = (Vec::new(), 0);
            while found.is_empty() {
                let before = feed.scanned_to();
                assert_eq!(feed.pull(&mut found, 1).unwrap(), Pulled::More);
                assert!(feed.scanned_to() - before <= LOOK_MAX as u64);
                pulls += 1;
            }
            assert_eq!((pulls, found[0].offset()), (4, Some(frames - 1)));
        }
    }
}
