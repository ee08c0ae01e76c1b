//! Reads of stored frames, of new ones, and of the answers of a command.

use xs_engine::{Frame, FrameId, ReadOptions, TopicPatterns};
use xs_protocol::{Feed, Pulled, Refusal, Wake};

use super::{Inner, Memory};

/// Frames that a read examines in one pull.
pub(crate) const LOOK_MAX: usize = 512;

pub(super) struct Bounded {
    pub(super) store: Memory,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) at: u64,
    pub(super) topics: TopicPatterns,
    pub(super) limit: Option<u64>,
    pub(super) reverse: bool,
}

impl Feed for Bounded {
    fn pull(&mut self, frames: &mut Vec<Frame>, room: usize) -> Result<Pulled, Refusal> {
        let store = self.store.clone();
        let mut inner = store.0.lock();
        inner.pulls += 1;
        let mut bytes = 0;
        for _ in 0..LOOK_MAX {
            if bytes >= room {
                break;
            }
            let last = if self.reverse { self.start } else { self.end };
            if self.at == last || self.limit == Some(0) {
                return Ok(Pulled::End);
            }
            let index = if self.reverse { self.at - 1 } else { self.at };
            let frame = &inner.frames[index as usize];
            self.at = if self.reverse { self.at - 1 } else { self.at + 1 };
            if inner.damaged == Some(index) {
                return Ok(Pulled::Gap { from: index, to: index + 1 });
            }
            if self.topics.matches(frame.topic()) && !inner.removed.contains(&index) {
                bytes += frame.record().len();
                frames.push(frame.clone());
                self.limit = self.limit.map(|limit| limit - 1);
            }
        }
        Ok(Pulled::More)
    }

    fn scanned_to(&self) -> u64 {
        self.at
    }
}

pub(super) struct Follow {
    pub(super) store: Memory,
    pub(super) options: ReadOptions,
    pub(super) at: u64,
    pub(super) threshold: u64,
    pub(super) caught_up: bool,
    pub(super) seen_ephemeral: usize,
    /// Keeps the wake registered.
    pub(super) wake: Wake,
}

impl Feed for Follow {
    fn pull(&mut self, frames: &mut Vec<Frame>, room: usize) -> Result<Pulled, Refusal> {
        let _ = &self.wake;
        let store = self.store.clone();
        let mut inner = store.0.lock();
        let before = frames.len();
        let pulled = self.pull_from(&inner, frames, room);
        inner.pulled += frames.len() - before;
        Ok(pulled)
    }

    fn scanned_to(&self) -> u64 {
        self.at
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.store.0.lock().followers -= 1;
    }
}

impl Follow {
    fn pull_from(&mut self, inner: &Inner, frames: &mut Vec<Frame>, room: usize) -> Pulled {
        let mut bytes = 0;
        while bytes < room {
            if !self.caught_up && self.at >= self.threshold {
                self.caught_up = true;
                return Pulled::CaughtUp { head: self.threshold };
            }
            let is_past = |end| self.at >= inner.at(end);
            if self.options.limit == Some(0) || self.options.before.is_some_and(is_past) {
                return Pulled::End;
            }
            let ephemeral = inner.ephemeral.get(self.seen_ephemeral);
            let frame = match ephemeral.filter(|(at, _)| *at <= self.at) {
                Some((_, frame)) => {
                    self.seen_ephemeral += 1;
                    frame
                }
                None => match inner.frames.get(self.at as usize) {
                    Some(frame) => {
                        self.at += 1;
                        if inner.removed.contains(&(self.at - 1)) {
                            continue;
                        }
                        frame
                    }
                    None => return Pulled::Idle,
                },
            };
            if self.options.topics.matches(frame.topic()) {
                bytes += frame.record().len();
                frames.push(frame.clone());
                self.options.limit = self.options.limit.map(|limit| limit - 1);
            }
        }
        Pulled::More
    }
}

pub(super) struct Results {
    pub(super) store: Memory,
    pub(super) id: FrameId,
    pub(super) at: u64,
    pub(super) left: u64,
    pub(super) ended: bool,
    pub(super) _wake: Wake,
}

impl Feed for Results {
    fn pull(&mut self, frames: &mut Vec<Frame>, _room: usize) -> Result<Pulled, Refusal> {
        let inner = self.store.0.lock();
        if self.left == 0 {
            return Ok(Pulled::Idle);
        }
        frames.extend(inner.frames[self.at as usize..][..self.left as usize].iter().cloned());
        self.at += self.left;
        self.ended = true;
        Ok(Pulled::End)
    }

    fn scanned_to(&self) -> u64 {
        self.at
    }
}

impl Drop for Results {
    fn drop(&mut self) {
        if !self.ended {
            self.store.0.lock().cancelled.push(self.id);
        }
    }
}
