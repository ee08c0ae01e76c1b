//! Reads of the engine as feeds of the protocol. A feed is pulled on the task of a connection, so
//! it looks at a bounded number of frames and then lets others run.

use xs_engine::{Follower, Frame, Live, PublishHook, ReadError, Reader};
use xs_protocol::{Feed, Pulled, Refusal};

use super::refuse;

/// Frames looked at in one pull.
const LOOK_MAX: usize = 512;

/// A read of what is stored.
pub(super) struct StoredFeed {
    reader: Reader,
    reverse: bool,
    /// What was handed out reaches to here; the head of the opening once all was.
    scanned: u64,
    head: u64,
}

impl StoredFeed {
    /// A feed over `reader`, which was opened when `head` was the next offset.
    pub(super) fn new(reader: Reader, reverse: bool, head: u64) -> Self {
        Self { reader, reverse, scanned: if reverse { head } else { 0 }, head }
    }
}

impl Feed for StoredFeed {
    fn pull(&mut self, frames: &mut Vec<Frame>, room: usize) -> Result<Pulled, Refusal> {
        let mut bytes = 0;
        for _ in 0..LOOK_MAX {
            if bytes >= room {
                break;
            }
            match self.reader.next() {
                None => {
                    self.scanned = if self.reverse { 0 } else { self.head };
                    return Ok(Pulled::End);
                }
                Some(Err(error)) => return gap(&error, self.scanned),
                Some(Ok(frame)) => {
                    if let Some(offset) = frame.offset() {
                        self.scanned = if self.reverse { offset } else { offset + 1 };
                    }
                    bytes += frame.record().len();
                    frames.push(frame);
                }
            }
        }
        Ok(Pulled::More)
    }

    fn scanned_to(&self) -> u64 {
        self.scanned
    }
}

/// A read that goes on with what is appended.
pub(super) struct FollowFeed {
    pub(super) follower: Follower,
    /// Keeps the wake registered.
    pub(super) _hook: PublishHook,
}

impl Feed for FollowFeed {
    fn pull(&mut self, frames: &mut Vec<Frame>, room: usize) -> Result<Pulled, Refusal> {
        let mut bytes = 0;
        for _ in 0..LOOK_MAX {
            if bytes >= room {
                break;
            }
            match self.follower.next() {
                Err(error) => return gap(&error, self.follower.position()),
                Ok(None) if self.follower.is_done() => return Ok(Pulled::End),
                Ok(None) => return Ok(Pulled::Idle),
                Ok(Some(Live::Frame(frame))) => {
                    bytes += frame.record().len();
                    frames.push(frame);
                }
                Ok(Some(Live::CaughtUp { head })) => return Ok(Pulled::CaughtUp { head }),
                Ok(Some(Live::Lost { ephemeral })) => return Ok(Pulled::Lost { ephemeral }),
            }
        }
        Ok(Pulled::More)
    }

    fn scanned_to(&self) -> u64 {
        self.follower.position()
    }
}

/// A damaged place is told and passed by; anything else ends the feed.
fn gap(error: &ReadError, scanned: u64) -> Result<Pulled, Refusal> {
    match error {
        ReadError::Corrupt(corruption) => {
            tracing::error!(%corruption, "frames cannot be read");
            let from = corruption.offset.unwrap_or(scanned);
            Ok(Pulled::Gap { from, to: from.saturating_add(1) })
        }
        other => Err(refuse::read(other)),
    }
}
