//! The server's side of a connection over time: deadlines, pulses, and how it ends.

use std::time::{Duration, Instant};

use super::{Phase, ServerSession, Stream, Ticket};
use crate::error::{Code, ProtocolError, Refusal};
use crate::limits::{HELLO_WAIT, LINGER, PING_AFTER, SILENCE_MAX, TOKENS_WAIT, WRITE_STALL_MAX};
use crate::message::{GoAway, Op, StreamEvent, put_refusal};

/// Time in which a client that has said HELLO is admitted or refused. The driver decides within
/// TOKENS_WAIT; this bounds a connection whose decision is lost.
const ADMISSION_MAX: Duration = HELLO_WAIT.saturating_add(TOKENS_WAIT.saturating_mul(2));

impl ServerSession {
    /// Sends GOAWAY, once. The driver ends the subscriptions; other requests and streams may
    /// finish.
    pub(crate) fn go_away(&mut self, drain: Duration, now: Instant) {
        if self.drain_until.is_some() || self.is_closing() {
            return;
        }
        self.drain_until = Some(now + drain);
        let drain_ms = u32::try_from(drain.as_millis()).unwrap_or(u32::MAX);
        let goaway = GoAway { drain_ms, reason: "the server is stopping".to_owned() };
        self.push(Op::GoAway, Code::Draining.number(), 0, |out| goaway.put(out));
    }

    /// Closes the connection because of a protocol error of the peer.
    pub(crate) fn fail(&mut self, error: &ProtocolError, now: Instant) {
        let code = match error {
            ProtocolError::Stalled(_) if self.phase == Phase::Hello => Code::HelloTimeout,
            error => error.code(),
        };
        self.close(&Refusal::new(code, error.to_string()), now);
    }

    /// Schedules, for `at`, the refusal of a client's token and the close of the connection.
    pub(crate) fn refuse_hello_at(&mut self, ticket: Ticket, refusal: Refusal, at: Instant) {
        self.hello_refusal = Some((at, ticket, refusal));
    }

    /// Sends CLOSE with the reason and closes the connection.
    pub(crate) fn close(&mut self, why: &Refusal, now: Instant) {
        if self.is_closing() {
            return;
        }
        // A peer that has not sent our preface would not understand the message.
        if self.codec.has_preface() {
            self.push(Op::Close, why.code.number(), 0, |out| put_refusal(out, why));
        }
        self.linger(now);
    }

    /// Stops sending. Input is read and discarded for a while: unread input would make the system
    /// drop what the client has not read yet.
    fn linger(&mut self, now: Instant) {
        self.streams.clear();
        self.phase = Phase::Closing(now + LINGER);
    }

    /// [Closes](Self::close) at once: the client receives only what the socket accepts immediately.
    pub(crate) fn close_now(&mut self, why: &Refusal, now: Instant) {
        self.close(why, now);
        self.phase = Phase::Closing(now);
    }

    /// Closes a draining connection once it is idle and everything is written.
    pub(crate) fn end_drain(&mut self, now: Instant) {
        let is_done = self.is_idle() && self.out.is_empty();
        if self.drain_until.is_some() && is_done && !self.is_closing() {
            self.linger(now);
        }
    }

    /// When [`tick`](Self::tick) has something to do.
    pub(crate) fn deadline(&self) -> Instant {
        let streams = self.streams.values();
        let streams = streams.flat_map(|stream| {
            [stream.deadline, stream.pulse.map(|(_, next)| next)].into_iter().flatten()
        });
        let own = match self.phase {
            Phase::Hello => self.began + HELLO_WAIT,
            Phase::Greeting => match &self.hello_refusal {
                Some((at, ..)) => *at,
                None => self.began + ADMISSION_MAX,
            },
            Phase::Closing(until) => return until,
            Phase::Open if self.pinged => self.heard + SILENCE_MAX,
            Phase::Open => self.heard + PING_AFTER,
        };
        let stall = self.blocked.map(|since| since + WRITE_STALL_MAX);
        streams.chain(stall).chain(self.drain_until).fold(own, Instant::min)
    }

    /// Handles timeouts; returns the streams whose deadline has passed.
    pub(crate) fn tick(&mut self, now: Instant) -> Vec<u32> {
        match self.phase {
            Phase::Closing(_) => return Vec::new(),
            Phase::Hello if now >= self.began + HELLO_WAIT => {
                self.fail(&ProtocolError::Stalled("no HELLO in time"), now);
            }
            Phase::Greeting => {
                if let Some((_, ticket, refusal)) =
                    self.hello_refusal.take_if(|(at, ..)| now >= *at)
                {
                    self.refuse(ticket, &refusal);
                    self.close(&refusal, now);
                } else if self.hello_refusal.is_none() && now >= self.began + ADMISSION_MAX {
                    self.fail(&ProtocolError::Stalled("it was not admitted in time"), now);
                }
            }
            Phase::Open if now >= self.heard + SILENCE_MAX => {
                self.fail(&ProtocolError::Stalled("nothing was heard from it"), now);
            }
            Phase::Open if now >= self.heard + PING_AFTER && !self.pinged => {
                self.pinged = true;
                self.push(Op::Ping, 0, 0, |_| {});
            }
            Phase::Hello | Phase::Open => {}
        }
        if self.blocked.is_some_and(|since| now >= since + WRITE_STALL_MAX) {
            self.fail(&ProtocolError::Stalled("it takes no bytes"), now);
        }
        if self.drain_until.is_some_and(|until| now >= until) && !self.is_closing() {
            self.linger(now);
        }
        self.pulses(now);
        let late = |stream: &Stream| stream.deadline.is_some_and(|deadline| now >= deadline);
        let late = self.streams.iter().filter(|(_, stream)| late(stream));
        late.map(|(&sub, _)| sub).collect()
    }

    fn pulses(&mut self, now: Instant) {
        let room = self.has_room();
        let mut due = Vec::new();
        for (&sub, stream) in &mut self.streams {
            if let Some((every, next)) = &mut stream.pulse
                && now >= *next
            {
                // Pulses that could not be sent are skipped, not sent later.
                *next = now + *every;
                if room {
                    due.push(sub);
                }
            }
        }
        due.into_iter().for_each(|sub| self.event(sub, &StreamEvent::Pulse));
    }

    /// Whether the connection may be dropped now.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        matches!(self.phase, Phase::Closing(until) if now >= until)
    }

    /// Records that bytes were received.
    pub(crate) const fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.pinged = false;
    }

    /// Records that `count` bytes were written.
    pub(crate) fn wrote(&mut self, count: usize) {
        self.out.advance(count);
        self.blocked = None;
    }

    /// Records that bytes are queued and the peer accepts none.
    pub(crate) fn blocked(&mut self, now: Instant) {
        self.blocked.get_or_insert(now);
    }
}
