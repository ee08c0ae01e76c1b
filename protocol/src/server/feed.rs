//! A subscription or call: frames are pulled as the client grants credit, so a slow client costs a
//! position in the log and at most one message of frames; with the policy `Latest`, also the offset
//! of the newest frame of each topic of a gap until it was sent.

use std::collections::VecDeque;
use std::sync::Arc;

use xs_engine::{Bound, Frame};

use super::census::SubscriptionOffset;
use super::lag::{Lag, LagAction, Leap};
use super::long_work::Long;
use super::mailbox::Mailbox;
use super::shelf::Kept;
use super::work::Next;
use crate::error::Refusal;
use crate::limits::{DELIVER_BYTES, SCANNED_EVERY};
use crate::message::{Gap, StreamEvent};
use crate::service::{Feed, Pulled, Service};
use crate::session::ServerSession;

/// Newest frames of a gap looked up at a time.
const LOOKS_MAX: usize = 1024;

/// What a feed is for.
pub(crate) enum FeedKind {
    /// The results of a call.
    Call,
    /// It may read backward from the newest frame, and have a policy other than waiting.
    Subscription { reverse: bool, lag: Option<Lag> },
}

/// A subscription or call.
pub(crate) struct FeedWork {
    feed: Box<dyn Feed>,
    bodies_up_to: u32,
    /// Frames that were pulled and not sent yet, and the event after them.
    pulled: VecDeque<Frame>,
    after: Pulled,
    /// Offsets of the newest frames of a gap, which come before the feed's own.
    newest: Option<Kept<u64>>,
    /// Where the last gap ends.
    leapt_to: u64,
    /// The pulled frames are from before the stream ran out of credit: some may be removed since.
    waited: bool,
    /// Where a reader resumes after what was sent.
    sent_to: u64,
    /// The published position; a call has none.
    counted: Option<Arc<SubscriptionOffset>>,
    /// It reads backward from the newest frame.
    reverse: bool,
    /// Only for a subscription with a policy other than waiting.
    lag: Option<Box<Lag>>,
}

impl FeedWork {
    /// Work of a connection; a subscription is counted.
    pub(crate) fn new(
        feed: Box<dyn Feed>,
        bodies_up_to: u32,
        kind: FeedKind,
        mailbox: &Mailbox,
    ) -> Self {
        let sent_to = feed.scanned_to();
        let (counted, reverse, lag) = match kind {
            FeedKind::Call => (None, false, None),
            FeedKind::Subscription { reverse, lag } => {
                (Some(mailbox.seat.subscribed(sent_to)), reverse, lag.map(Box::new))
            }
        };
        Self {
            feed,
            bodies_up_to,
            pulled: VecDeque::new(),
            after: Pulled::More,
            newest: None,
            leapt_to: 0,
            waited: false,
            sent_to,
            counted,
            reverse,
            lag,
        }
    }

    /// Whether it is a call. Draining does not end one: its results may still come in time.
    pub(crate) const fn is_call(&self) -> bool {
        self.counted.is_none()
    }

    /// Where a reader resumes after what was sent.
    pub(crate) const fn resume(&self) -> u64 {
        self.sent_to
    }

    /// Notes a publish: a feed with queued frames pulls again later, and one that cannot send now
    /// is stalled.
    pub(crate) fn note_news(&mut self, may_send: bool) {
        if self.after == Pulled::Idle && self.has_more() {
            self.after = Pulled::More;
        }
        if !may_send && let Some(lag) = &mut self.lag {
            lag.stall();
        }
    }

    /// Whether a publish is news for it: it is idle and might send more, or its lag is watched.
    pub(crate) fn waits(&self, credit: i64) -> bool {
        (credit > 0 && self.after == Pulled::Idle && !self.has_more())
            || self.lag.as_ref().is_some_and(|lag| lag.is_watched())
    }

    /// Sends one message of frames, or an event between them.
    pub(crate) fn step(
        &mut self,
        sub: u32,
        session: &mut ServerSession,
        service: &Arc<dyn Service>,
        long: &mut Long,
        scratch: &mut Vec<Frame>,
    ) -> Next {
        let credit = session.credit(sub);
        if credit <= 0 {
            self.waited = true;
        }
        if self.lag.is_some()
            && let Some(next) = self.heed_lag(sub, credit, session, service, long)
        {
            return next;
        }
        if credit <= 0 {
            return Next::Wait;
        }
        if std::mem::take(&mut self.waited) && !self.pulled.is_empty() {
            // Frames removed or expired meanwhile are not sent.
            let is_gone = |frame: &Frame| matches!(service.get(Bound::Id(frame.id())), Ok(None));
            self.pulled.retain(|frame| frame.offset().is_none() || !is_gone(frame));
            if !self.has_more() {
                // The event that follows them must still be sent.
                self.moved_to(self.behind(None));
                return self.say_after(sub, session);
            }
        }
        let room = usize::try_from(credit).unwrap_or(usize::MAX).min(DELIVER_BYTES);
        if self.pulled.is_empty() {
            scratch.clear();
            self.after = match self.pull(room, &**service, scratch) {
                Ok(after) => after,
                Err(refusal) => return self.end(sub, refusal, session),
            };
            if scratch.is_empty()
                && let Some(counted) = &self.counted
            {
                counted.set(self.behind(None));
            }
            if self.is_call() {
                // Results of a command on other topics are sent only if the client may read those.
                let read = &session.access().read;
                scratch.retain(|frame| read.holds(frame.topic()));
            }
            if self.bodies_up_to == 0 {
                if let Some(last) = scratch.last() {
                    self.moved_to(self.behind(last.offset()));
                    session.deliver(sub, scratch, &[], self.sent_to);
                    self.note_sent(session);
                }
                return self.say_after(sub, session);
            }
            self.pulled.extend(scratch.drain(..));
        }
        if !self.pulled.is_empty() {
            self.deliver_with_bodies(sub, room, session, &**service, scratch);
            if !self.pulled.is_empty() {
                return Next::Again;
            }
        }
        self.say_after(sub, session)
    }

    /// Sends the first of the pulled frames with their bodies, as many as fit.
    fn deliver_with_bodies(
        &mut self,
        sub: u32,
        room: usize,
        session: &mut ServerSession,
        service: &dyn Service,
        scratch: &mut Vec<Frame>,
    ) {
        let max = u64::from(self.bodies_up_to);
        let (mut count, mut bytes) = (0, 0);
        while bytes < room
            && let Some(frame) = self.pulled.get(count)
        {
            let body = Some(frame.body_len()).filter(|len| *len <= max).unwrap_or(0);
            bytes += frame.record().len() + body as usize;
            count += 1;
        }
        scratch.clear();
        scratch.extend(self.pulled.drain(..count));
        let mut bodies = Vec::with_capacity(count);
        service.bodies(scratch, max, &mut bodies);
        bodies.retain(|(at, body)| body.len() as u64 == scratch[*at as usize].body_len());
        self.moved_to(self.behind(scratch.iter().rev().find_map(Frame::offset)));
        session.deliver(sub, scratch, &bodies, self.sent_to);
        self.note_sent(session);
    }

    /// Whether there are frames to send that the feed is already past.
    fn has_more(&self) -> bool {
        !self.pulled.is_empty() || self.newest.is_some()
    }

    /// Pulls the next frames: the newest ones of a gap, or the feed's own.
    fn pull(
        &mut self,
        room: usize,
        service: &dyn Service,
        out: &mut Vec<Frame>,
    ) -> Result<Pulled, Refusal> {
        let Some(newest) = &mut self.newest else { return self.feed.pull(out, room) };
        let mut bytes = 0;
        for _ in 0..LOOKS_MAX {
            if bytes >= room {
                break;
            }
            let Some(offset) = newest.next()? else { break };
            // The frame was removed or expired since it was found, or superseded by one still to
            // come.
            let Some(frame) = service.get(Bound::Offset(offset))? else { continue };
            bytes += frame.record().len();
            out.push(frame);
        }
        if newest.is_empty() {
            self.newest = None;
        }
        Ok(Pulled::More)
    }

    /// Where a reader resumes after everything up to the frame at an offset was sent.
    fn behind(&self, offset: Option<u64>) -> u64 {
        match offset {
            _ if !self.has_more() => match self.after {
                // A reader that misses the event resumes before the gap.
                Pulled::Gap { from, to } => {
                    if self.reverse {
                        to
                    } else {
                        from
                    }
                }
                _ => self.feed.scanned_to(),
            },
            Some(offset) if self.reverse => offset,
            Some(offset) => offset + 1,
            None => self.sent_to,
        }
    }

    fn moved_to(&mut self, offset: u64) {
        self.sent_to = offset;
        if let Some(counted) = &self.counted {
            counted.set(offset);
        }
    }

    fn note_sent(&mut self, session: &ServerSession) {
        if let Some(lag) = &mut self.lag {
            lag.sent();
            if !session.has_room() {
                lag.stall();
            }
        }
    }

    /// Applies the policy of a subscription; `None` to continue as usual.
    fn heed_lag(
        &mut self,
        sub: u32,
        credit: i64,
        session: &mut ServerSession,
        service: &Arc<dyn Service>,
        long: &mut Long,
    ) -> Option<Next> {
        let from = if self.has_more() { self.sent_to } else { self.feed.scanned_to() };
        // The newest frames of a gap still to be sent do not count as lag: that would cause another
        // gap.
        let position = from.max(self.leapt_to);
        let lag = self.lag.as_mut()?;
        if credit <= 0 {
            lag.stall();
        }
        match lag.judge(position, &**service) {
            LagAction::Go => {
                if credit > 0 {
                    lag.sent();
                }
                None
            }
            LagAction::Wait => Some(Next::Wait),
            LagAction::Drop(refusal) => {
                session.event(sub, &StreamEvent::Dropped { refusal, resume: self.sent_to });
                Some(Next::Done)
            }
            LagAction::Conflate if credit <= 0 => None,
            LagAction::Conflate => {
                // Pulled frames that were not sent are part of the gap.
                self.pulled.clear();
                self.newest = None;
                lag.look(sub, from, service, long);
                Some(Next::Wait)
            }
        }
    }

    /// Continues after a gap, once the newest frames in it are found.
    pub(crate) fn leap(
        &mut self,
        sub: u32,
        leap: Leap,
        newest: Kept<u64>,
        session: &mut ServerSession,
    ) -> Next {
        let Some(lag) = &mut self.lag else { return Next::Again };
        lag.found();
        self.feed = leap.feed;
        let gap = Gap::Conflated { from: leap.from, to: leap.to };
        session.event(sub, &StreamEvent::Gap(gap));
        // Nothing of the gap was sent yet: a reader that resumes elsewhere starts before it.
        self.moved_to(if newest.is_empty() { leap.to } else { leap.from });
        (self.newest, self.leapt_to) = (Some(newest).filter(|one| !one.is_empty()), leap.to);
        self.after = Pulled::More;
        Next::Again
    }

    /// Ends the stream, and reports where to resume.
    pub(crate) fn end(&self, sub: u32, refusal: Refusal, session: &mut ServerSession) -> Next {
        session.event(sub, &StreamEvent::Dropped { refusal, resume: self.sent_to });
        Next::Done
    }

    fn say_after(&mut self, sub: u32, session: &mut ServerSession) -> Next {
        let event = match self.after {
            Pulled::More => return Next::Again,
            Pulled::Idle => {
                let scanned_to = self.feed.scanned_to();
                if scanned_to >= self.sent_to.saturating_add(SCANNED_EVERY) {
                    self.moved_to(scanned_to);
                    session.deliver(sub, &[], &[], scanned_to);
                } else if let Some(counted) = &self.counted {
                    // It has no lag, though its progress is not reported each time.
                    counted.set(scanned_to);
                }
                return Next::Wait;
            }
            Pulled::CaughtUp { .. } if self.lag.as_mut().is_some_and(|lag| !lag.catch_up()) => {
                return Next::Again;
            }
            Pulled::CaughtUp { head } => StreamEvent::CaughtUp { head },
            Pulled::Lost { ephemeral } => StreamEvent::Gap(Gap::Ephemeral { count: ephemeral }),
            Pulled::Gap { from, to } => {
                self.after = Pulled::More;
                self.moved_to(self.feed.scanned_to());
                StreamEvent::Gap(Gap::Corrupt { from, to })
            }
            Pulled::End => StreamEvent::Ended { scanned_to: self.feed.scanned_to() },
        };
        session.event(sub, &event);
        if event.is_last() { Next::Done } else { Next::Again }
    }
}
