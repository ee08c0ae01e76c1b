//! SUBSCRIBE, DELIVER, CREDIT, UNSUBSCRIBE, SUB_EVENT: frames as they are appended.

use std::time::Duration;

use bytes::Bytes;
use xs_engine::{Bound, Frame, ReadOptions, ResumePoint, Start, StoreUuid};

use super::coding::{Body, DecodeError, put_extension};
use super::control::{put_refusal, read_refusal};
use super::read::{put_options, read_options};
use crate::error::{Code, Detail, ProtocolError, Refusal};
use crate::gather::Gather;
use crate::limits::{BODY_WITH_FRAME_MAX, CREDIT_DEFAULT, PULSE_MAX, PULSE_MIN};

const RESUME: u16 = 1;
const SLOW: u16 = 2;

const SLOW_LATEST: u8 = 1;
const SLOW_DROP: u8 = 2;

/// How a subscription is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// Bytes the server may send ahead of the reader.
    pub credit: u32,
    /// Interval of [`SubEvent::Pulse`]; `None`: no pulses.
    pub pulse: Option<Duration>,
    /// Bodies up to this many bytes travel with their frames.
    pub bodies_up_to: u32,
    /// What happens when the reader is slower than the writers.
    pub slow: Slow,
    /// The store and epoch in which the start offset was seen. The subscription is refused with
    /// [`Code::CursorAhead`] when frames seen there are lost, so that others never pass for them,
    /// and with [`Code::OtherStore`] when the offset is another store's.
    pub resume: Option<Resume>,
}

impl Default for SubscribeOptions {
    fn default() -> Self {
        let (slow, resume) = (Slow::Wait, None);
        Self { credit: CREDIT_DEFAULT, pulse: None, bodies_up_to: 0, slow, resume }
    }
}

/// What happens to a subscription whose reader is slower than the writers. Applies from CAUGHT_UP
/// on: frames stored before are always delivered completely.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Slow {
    /// The server waits: the subscription lags, and misses no stored frame.
    #[default]
    Wait,
    /// When it is more than `behind` frames behind and has credit again, it gets a
    /// [`Gap::Conflated`] and the newest frame of each topic in the gap. Cannot be combined with
    /// any bound of a read but its start.
    Latest {
        /// Frames it may be behind.
        behind: u64,
    },
    /// When it is more than `behind` frames behind it is dropped, with the offset to resume from.
    Drop {
        /// Frames it may be behind.
        behind: u64,
    },
}

/// The store and epoch in which an offset was seen, from HELLO.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Resume {
    /// The store's uuid.
    pub store: StoreUuid,
    /// Its epoch.
    pub epoch: u64,
}

impl Resume {
    /// Adds an offset that was seen there: the point to resume from later.
    #[must_use]
    pub const fn point(self, offset: u64) -> ResumePoint {
        ResumePoint { store: Some(self.store), epoch: self.epoch, offset }
    }
}

/// A frame, and its body when that was requested and is small enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// The frame.
    pub frame: Frame,
    /// Its body.
    pub body: Option<Bytes>,
}

/// An event of a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubEvent {
    /// Frames, in log order.
    Frames {
        /// The frames; may be none when only `scanned_to` moved.
        frames: Vec<Delivered>,
        /// The offset to resume from after these frames.
        scanned_to: u64,
    },
    /// All frames that were stored at the start have been delivered; comes once.
    CaughtUp {
        /// The offset of the next frame at that time.
        head: u64,
    },
    /// The requested interval has passed.
    Pulse,
    /// Frames are missing here.
    Gap(Gap),
    /// The server ended the subscription; resume from `resume`.
    Dropped {
        /// Why.
        refusal: Refusal,
        /// The offset to resume from.
        resume: u64,
    },
}

/// Frames that were skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gap {
    /// Stored frames that cannot be read: `from..to`.
    Corrupt {
        /// The first.
        from: u64,
        /// The one after the last.
        to: u64,
    },
    /// Ephemeral frames came faster than they were read, and were dropped.
    Ephemeral {
        /// How many.
        count: u64,
    },
    /// Of the frames `from..to` only the newest of each topic are delivered, next. Ephemeral ones
    /// are not.
    Conflated {
        /// The first.
        from: u64,
        /// The one after the last.
        to: u64,
    },
}

/// The request of a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SubscribeRequest {
    pub(crate) options: ReadOptions,
    pub(crate) how: SubscribeOptions,
}

impl SubscribeRequest {
    pub(crate) fn put(&self, out: &mut Gather) {
        out.put_u32(self.how.credit);
        out.put_u32(self.how.bodies_up_to);
        out.put_u64(self.how.pulse.map_or(0, millis));
        put_options(out, &self.options);
        if let Some(resume) = &self.how.resume {
            put_extension(out, RESUME, |out| {
                out.put_slice(resume.store.as_bytes());
                out.put_u64(resume.epoch);
            });
        }
        let (policy, behind) = match self.how.slow {
            Slow::Wait => return,
            Slow::Latest { behind } => (SLOW_LATEST, behind),
            Slow::Drop { behind } => (SLOW_DROP, behind),
        };
        put_extension(out, SLOW, |out| {
            out.put_u8(policy);
            out.put_u64(behind);
        });
    }

    pub(crate) fn read(mut body: Body) -> Result<Self, DecodeError> {
        let credit = body.u32("credit")?;
        let bodies_up_to = body.u32("bodies up to")?;
        let pulse = match body.u64("pulse")? {
            0 => None,
            ms => Some(Duration::from_millis(ms)),
        };
        let options = read_options(&mut body)?;
        check_bodies(bodies_up_to)?;
        if pulse.is_some_and(|pulse| !(PULSE_MIN..=PULSE_MAX).contains(&pulse)) {
            let text = format!("a pulse must be {PULSE_MIN:?} to {PULSE_MAX:?} long");
            return Err(Refusal::new(Code::InvalidRead, text).into());
        }
        let mut how =
            SubscribeOptions { credit, pulse, bodies_up_to, ..SubscribeOptions::default() };
        how.read_extensions(body, &options)?;
        Ok(Self { options, how })
    }
}

impl SubscribeOptions {
    fn read_extensions(&mut self, body: Body, options: &ReadOptions) -> Result<(), DecodeError> {
        let mut slow = None;
        body.extensions_with(|tag, mut value| {
            match tag {
                RESUME if self.resume.is_some() => return Err(value.wrong("resume twice").into()),
                RESUME => {
                    let (store, epoch) =
                        (StoreUuid::from_bytes(value.uuid("store")?), value.u64("epoch")?);
                    self.resume = Some(Resume { store, epoch });
                }
                SLOW if slow.is_some() => return Err(value.wrong("slow twice").into()),
                SLOW => {
                    let (policy, behind) = (value.u8("policy")?, value.u64("frames behind")?);
                    slow = Some(match policy {
                        SLOW_LATEST => Slow::Latest { behind },
                        SLOW_DROP => Slow::Drop { behind },
                        _ => return Err(value.wrong("policy").into()),
                    });
                }
                _ => return Ok(false),
            }
            value.end()?;
            Ok(true)
        })?;
        self.slow = slow.unwrap_or_default();
        if self.resume.is_some() && !matches!(options.start, Start::From(Bound::Offset(_))) {
            let text = "what resumes starts from an offset";
            return Err(Refusal::new(Code::InvalidRead, text).into());
        }
        if self.slow != Slow::Wait && !options.follow {
            let text = "only who follows can be too slow; leave out the policy";
            return Err(Refusal::new(Code::InvalidRead, text).into());
        }
        let is_bounded = options.limit.is_some()
            || options.before.is_some()
            || options.since_ms.is_some()
            || options.until_ms.is_some();
        if matches!(self.slow, Slow::Latest { .. }) && is_bounded {
            let text = "the newest of each topic is looked for among all: leave out the policy, or \
                        limit, before, since and until";
            return Err(Refusal::new(Code::InvalidRead, text).into());
        }
        Ok(())
    }
}

/// Refuses bodies with frames beyond the limit.
pub(crate) fn check_bodies(up_to: u32) -> Result<(), Refusal> {
    if up_to > BODY_WITH_FRAME_MAX {
        let text = format!("bodies with frames are limited to {BODY_WITH_FRAME_MAX} bytes");
        let refusal = Refusal::new(Code::InvalidRead, text);
        return Err(refusal.with(Detail::Limit(u64::from(BODY_WITH_FRAME_MAX))));
    }
    Ok(())
}

/// Whole milliseconds, at least 1.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}

const EVENT_CAUGHT_UP: u8 = 1;
const EVENT_PULSE: u8 = 2;
const EVENT_GAP: u8 = 3;
const EVENT_DROPPED: u8 = 4;
const EVENT_ENDED: u8 = 5;

const GAP_CORRUPT: u8 = 1;
const GAP_EPHEMERAL: u8 = 2;
const GAP_CONFLATED: u8 = 3;

/// The content of a SUB_EVENT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StreamEvent {
    CaughtUp { head: u64 },
    Pulse,
    Gap(Gap),
    Dropped { refusal: Refusal, resume: u64 },
    Ended { scanned_to: u64 },
}

impl StreamEvent {
    /// The code for the header.
    pub(crate) const fn code(&self) -> u16 {
        match self {
            Self::Dropped { refusal, .. } => refusal.code.number(),
            _ => 0,
        }
    }

    /// Whether it ends the stream.
    pub(crate) const fn is_last(&self) -> bool {
        matches!(self, Self::Dropped { .. } | Self::Ended { .. })
    }

    pub(crate) fn put(&self, out: &mut Gather) {
        match self {
            Self::CaughtUp { head } => {
                out.put_u8(EVENT_CAUGHT_UP);
                out.put_u64(*head);
            }
            Self::Pulse => out.put_u8(EVENT_PULSE),
            Self::Gap(gap) => {
                out.put_u8(EVENT_GAP);
                let (kind, from, to) = match *gap {
                    Gap::Corrupt { from, to } => (GAP_CORRUPT, from, to),
                    Gap::Ephemeral { count } => (GAP_EPHEMERAL, count, 0),
                    Gap::Conflated { from, to } => (GAP_CONFLATED, from, to),
                };
                out.put_u8(kind);
                out.put_u64(from);
                out.put_u64(to);
            }
            Self::Dropped { refusal, resume } => {
                out.put_u8(EVENT_DROPPED);
                out.put_u64(*resume);
                put_refusal(out, refusal);
            }
            Self::Ended { scanned_to } => {
                out.put_u8(EVENT_ENDED);
                out.put_u64(*scanned_to);
            }
        }
    }

    pub(crate) fn read(code: u16, mut body: Body) -> Result<Self, ProtocolError> {
        let event = match body.u8("event")? {
            EVENT_CAUGHT_UP => Self::CaughtUp { head: body.u64("head")? },
            EVENT_PULSE => Self::Pulse,
            EVENT_GAP => {
                let kind = body.u8("kind of gap")?;
                let (from, to) = (body.u64("gap")?, body.u64("gap")?);
                match kind {
                    GAP_CORRUPT => Self::Gap(Gap::Corrupt { from, to }),
                    GAP_EPHEMERAL => Self::Gap(Gap::Ephemeral { count: from }),
                    GAP_CONFLATED => Self::Gap(Gap::Conflated { from, to }),
                    _ => return Err(body.wrong("kind of gap")),
                }
            }
            EVENT_DROPPED => {
                let resume = body.u64("resume offset")?;
                return Ok(Self::Dropped { refusal: read_refusal(code, body)?, resume });
            }
            EVENT_ENDED => Self::Ended { scanned_to: body.u64("scanned_to")? },
            _ => return Err(body.wrong("event")),
        };
        body.end()?;
        Ok(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::testing::{body_of, each_cut_fails};

    #[test]
    fn requests_round_trip() {
        let how = SubscribeOptions {
            credit: 7,
            pulse: Some(Duration::from_secs(1)),
            bodies_up_to: BODY_WITH_FRAME_MAX,
            ..SubscribeOptions::default()
        };
        let options = ReadOptions { follow: true, ..ReadOptions::default() };
        let request = SubscribeRequest { options: options.clone(), how };
        let body = body_of(|out| request.put(out));
        let read = |bytes| SubscribeRequest::read(Body::new("SUBSCRIBE", bytes));
        assert_eq!(read(body.clone()).unwrap(), request);
        each_cut_fails(&body, read);
        let too_much = [
            SubscribeOptions { bodies_up_to: BODY_WITH_FRAME_MAX + 1, ..how },
            SubscribeOptions { pulse: Some(PULSE_MIN - Duration::from_millis(1)), ..how },
            SubscribeOptions { pulse: Some(PULSE_MAX + Duration::from_millis(1)), ..how },
        ];
        for how in too_much {
            let request = SubscribeRequest { options: options.clone(), how };
            let error = read(body_of(|out| request.put(out))).unwrap_err();
            assert!(matches!(error, DecodeError::Refused(r) if r.code == Code::InvalidRead));
        }
    }

    #[test]
    fn policies_and_resume_points_round_trip() {
        let start = Start::From(Bound::Offset(9));
        let options = ReadOptions { start, follow: true, ..ReadOptions::default() };
        let read = |bytes| SubscribeRequest::read(Body::new("SUBSCRIBE", bytes));
        let resume = Some(Resume { store: StoreUuid::from_bytes([3; 16]), epoch: 7 });
        for slow in [Slow::Wait, Slow::Latest { behind: 0 }, Slow::Drop { behind: u64::MAX }] {
            let how = SubscribeOptions { slow, resume, ..SubscribeOptions::default() };
            let request = SubscribeRequest { options: options.clone(), how };
            assert_eq!(read(body_of(|out| request.put(out))).unwrap(), request);
        }
        let refused = |options: ReadOptions, how| {
            let request = SubscribeRequest { options, how };
            let error = read(body_of(|out| request.put(out))).unwrap_err();
            assert!(matches!(error, DecodeError::Refused(r) if r.code == Code::InvalidRead));
        };
        let how = SubscribeOptions { resume, ..SubscribeOptions::default() };
        refused(ReadOptions { start: Start::New, ..options.clone() }, how);
        let how =
            SubscribeOptions { slow: Slow::Drop { behind: 1 }, ..SubscribeOptions::default() };
        refused(ReadOptions { follow: false, ..options.clone() }, how);
        let how =
            SubscribeOptions { slow: Slow::Latest { behind: 1 }, ..SubscribeOptions::default() };
        refused(ReadOptions { limit: Some(5), ..options.clone() }, how);
        refused(ReadOptions { before: Some(Bound::Offset(5)), ..options.clone() }, how);
        refused(ReadOptions { since_ms: Some(5), ..options.clone() }, how);
        refused(ReadOptions { until_ms: Some(5), ..options }, how);
    }

    #[test]
    fn events_round_trip() {
        let refusal = Refusal::new(Code::Draining, "stopping");
        let events = [
            StreamEvent::CaughtUp { head: 1 },
            StreamEvent::Pulse,
            StreamEvent::Gap(Gap::Corrupt { from: 2, to: 3 }),
            StreamEvent::Gap(Gap::Ephemeral { count: 4 }),
            StreamEvent::Gap(Gap::Conflated { from: 2, to: 9 }),
            StreamEvent::Dropped { refusal, resume: 5 },
            StreamEvent::Ended { scanned_to: 6 },
        ];
        for event in events {
            let body = body_of(|out| event.put(out));
            let read = |bytes| StreamEvent::read(event.code(), Body::new("SUB_EVENT", bytes));
            assert_eq!(read(body.clone()).unwrap(), event);
            each_cut_fails(&body, read);
        }
    }
}
