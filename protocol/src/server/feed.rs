//! A subscription or call: frames are pulled as the client has credit, so a slow client costs a
//! place in the log and at most one message of frames.

use std::collections::VecDeque;

use xs_engine::Frame;

use super::mailbox::ReadyFlag;
use super::work::Next;
use crate::limits::DELIVER_BYTES;
use crate::message::{Gap, StreamEvent};
use crate::service::{Feed, Pulled, Service};
use crate::session::ServerSession;

/// A filtered subscription that finds nothing says how far it has looked when it is so many
/// offsets further than it said last.
const SCANNED_STEP: u64 = 1024;

/// A subscription or call.
pub(crate) struct FeedWork {
    feed: Box<dyn Feed>,
    flag: ReadyFlag,
    bodies_up_to: u32,
    /// A call is not ended by a drain: its results may still come in time.
    pub(crate) is_call: bool,
    /// Frames that were pulled and not yet sent, and what comes after them.
    pulled: VecDeque<Frame>,
    after: Pulled,
    /// Where a reader goes on after what was sent.
    sent_to: u64,
}

impl FeedWork {
    pub(crate) fn new(
        feed: Box<dyn Feed>,
        flag: ReadyFlag,
        bodies_up_to: u32,
        is_call: bool,
    ) -> Self {
        let sent_to = feed.scanned_to();
        let pulled = VecDeque::new();
        Self { feed, flag, bodies_up_to, is_call, pulled, after: Pulled::More, sent_to }
    }

    /// Where a reader goes on after what was sent.
    pub(crate) const fn resume(&self) -> u64 {
        self.sent_to
    }

    /// Sends one message of frames, or what is said between them.
    pub(crate) fn step(
        &mut self,
        sub: u32,
        session: &mut ServerSession,
        service: &dyn Service,
        scratch: &mut Vec<Frame>,
    ) -> Next {
        let credit = session.credit(sub);
        if credit <= 0 {
            return Next::Wait;
        }
        let room = usize::try_from(credit).unwrap_or(usize::MAX).min(DELIVER_BYTES);
        if self.pulled.is_empty() {
            self.flag.clear();
            scratch.clear();
            self.after = match self.feed.pull(scratch, room) {
                Ok(after) => after,
                Err(refusal) => {
                    let resume = self.sent_to;
                    session.event(sub, &StreamEvent::Dropped { refusal, resume });
                    return Next::Done;
                }
            };
            if self.bodies_up_to == 0 {
                if !scratch.is_empty() {
                    self.sent_to = self.feed.scanned_to();
                    session.deliver(sub, scratch, &[], self.sent_to);
                }
                return self.say_after(sub, session);
            }
            self.pulled.extend(scratch.drain(..));
        }
        if !self.pulled.is_empty() {
            self.deliver_with_bodies(sub, room, session, service);
            if !self.pulled.is_empty() {
                return Next::Again;
            }
        }
        self.say_after(sub, session)
    }

    /// Sends the first of the pulled frames with their bodies, as many as have room.
    fn deliver_with_bodies(
        &mut self,
        sub: u32,
        room: usize,
        session: &mut ServerSession,
        service: &dyn Service,
    ) {
        let (mut bytes, mut frames, mut bodies) = (0, Vec::new(), Vec::new());
        while bytes < room
            && let Some(frame) = self.pulled.pop_front()
        {
            bytes += frame.record().len();
            if let Some(hash) = frame.hash()
                && frame.body_len() <= u64::from(self.bodies_up_to)
                // A body that cannot be read is left out; asking for the blob says why.
                && let Ok(Some(body)) = service.small_blob(&hash, self.bodies_up_to as usize)
                && body.len() as u64 == frame.body_len()
            {
                bytes += body.len();
                bodies.push((frames.len() as u32, body));
            }
            frames.push(frame);
        }
        self.sent_to = match frames.iter().rev().find_map(Frame::offset) {
            _ if self.pulled.is_empty() => self.feed.scanned_to(),
            Some(offset) => offset + 1,
            None => self.sent_to,
        };
        session.deliver(sub, &frames, &bodies, self.sent_to);
    }

    fn say_after(&mut self, sub: u32, session: &mut ServerSession) -> Next {
        let event = match self.after {
            Pulled::More => return Next::Again,
            Pulled::Idle => {
                let scanned_to = self.feed.scanned_to();
                if scanned_to >= self.sent_to.saturating_add(SCANNED_STEP) {
                    self.sent_to = scanned_to;
                    session.deliver(sub, &[], &[], scanned_to);
                }
                return Next::Wait;
            }
            Pulled::CaughtUp { head } => StreamEvent::CaughtUp { head },
            Pulled::Lost { ephemeral } => StreamEvent::Gap(Gap::Ephemeral { count: ephemeral }),
            Pulled::Gap { from, to } => StreamEvent::Gap(Gap::Corrupt { from, to }),
            Pulled::End => StreamEvent::Ended { scanned_to: self.feed.scanned_to() },
        };
        session.event(sub, &event);
        if event.is_last() { Next::Done } else { Next::Again }
    }
}
