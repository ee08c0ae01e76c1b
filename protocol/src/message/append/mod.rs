//! APPEND: frames, cursor changes and removals in one atomic batch.

mod extensions;
mod frame;

use xs_engine::limits::BATCH_RECORDS_MAX;
use xs_engine::{
    Appended, Bound, Condition, CursorChange, IdempotencyKey, NewFrame, Removal, Stamp, Topic,
    TopicPatterns,
};

pub(super) use self::extensions::{put_within, read_within};
use self::frame::{put_frame, read_frame};
pub(super) use self::frame::{put_origin, read_origin};
use super::coding::{Body, DecodeError, NONE, put_bound};
use super::cursor::{put_cursor_change, read_cursor_change};
use crate::error::{Code, Detail, ProtocolError, Refusal};
use crate::gather::Gather;

const FLAG_DURABLE: u8 = 1;

const REPLY_DURABLE: u8 = 1;
const REPLY_REPEATED: u8 = 2;

/// A batch to append, all or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AppendRequest {
    /// The frames, in the order of their future offsets.
    pub frames: Vec<NewFrame>,
    /// Cursors that move in the same batch.
    pub cursors: Vec<CursorChange>,
    /// Frames to remove, before the new ones are stored. A missing frame is no error.
    pub removes: Vec<Bound>,
    /// If set, nothing is removed or stored when a frame to remove has another topic.
    pub removes_within: Option<TopicPatterns>,
    /// Conditions that must hold, or nothing is stored.
    pub conditions: Vec<Condition>,
    /// With a key the batch is stored once, however often it is sent within 24 hours (or the next
    /// million keys): after a lost answer it can be sent again.
    pub key: Option<IdempotencyKey>,
    /// Ask for an answer only after a sync, whatever the store's policy.
    pub durable: bool,
}

impl AppendRequest {
    /// A batch of frames and nothing else.
    #[must_use]
    pub fn frames(frames: Vec<NewFrame>) -> Self {
        Self { frames, ..Self::default() }
    }

    pub(crate) fn put(&self, out: &mut Gather) {
        out.put_u8(if self.durable { FLAG_DURABLE } else { 0 });
        out.put_u8(0);
        out.put_u16(self.frames.len() as u16);
        out.put_u16(self.cursors.len() as u16);
        out.put_u16(self.removes.len() as u16);
        self.frames.iter().for_each(|frame| put_frame(out, frame));
        self.cursors.iter().for_each(|change| put_cursor_change(out, change));
        self.removes.iter().for_each(|&at| put_bound(out, at));
        extensions::put(out, self);
    }

    pub(crate) fn read(mut body: Body) -> Result<Self, DecodeError> {
        let flags = body.u8("flags")?;
        if flags & !FLAG_DURABLE != 0 {
            return Err(body.wrong("flags").into());
        }
        body.zeros(1)?;
        let frames = usize::from(body.u16("count of frames")?);
        let cursors = usize::from(body.u16("count of cursors")?);
        let removes = usize::from(body.u16("count of removals")?);
        check_records(frames + cursors + removes)?;
        let mut batch = Self { durable: flags & FLAG_DURABLE != 0, ..Self::default() };
        batch.frames.reserve_exact(frames);
        let mut topic: Option<Topic> = None;
        for _ in 0..frames {
            batch.frames.push(read_frame(&mut body, &mut topic)?);
        }
        for _ in 0..cursors {
            batch.cursors.push(read_cursor_change(&mut body)?);
        }
        for _ in 0..removes {
            batch.removes.push(body.bound()?);
        }
        extensions::read(body, &mut batch)?;
        Ok(batch)
    }
}

/// Refuses a batch that has more records than the store accepts.
pub(super) fn check_records(count: usize) -> Result<(), Refusal> {
    if count > BATCH_RECORDS_MAX {
        let text = format!("a batch of {count} records is over the limit of {BATCH_RECORDS_MAX}");
        let refusal = Refusal::new(Code::BatchTooLarge, text);
        return Err(refusal.with(Detail::Limit(BATCH_RECORDS_MAX as u64)));
    }
    Ok(())
}

/// Writes the result of a batch.
pub(crate) fn put_appended(out: &mut Gather, appended: &Appended) {
    let Appended { frames, cursors, repeated, removed, durable, head } = appended;
    out.put_u64(*head);
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    out.put_u8(flag(*durable, REPLY_DURABLE) | flag(*repeated, REPLY_REPEATED));
    out.put_u8(0);
    out.put_u16(frames.len() as u16);
    out.put_u16(cursors.len() as u16);
    out.put_u16(removed.len() as u16);
    for stamp in frames {
        out.put_slice(stamp.id.as_bytes());
        out.put_u64(stamp.offset.unwrap_or(NONE));
    }
    cursors.iter().for_each(|&revision| out.put_u64(revision));
    removed.iter().for_each(|&removal| out.put_u8(u8::from(removal == Removal::Removed)));
}

/// Reads the result of a batch.
pub(crate) fn read_appended(mut body: Body) -> Result<Appended, ProtocolError> {
    let head = body.u64("head")?;
    let flags = body.u8("flags")?;
    if flags & !(REPLY_DURABLE | REPLY_REPEATED) != 0 {
        return Err(body.wrong("flags"));
    }
    body.zeros(1)?;
    let frames = usize::from(body.u16("count of frames")?);
    let cursors = usize::from(body.u16("count of cursors")?);
    let removes = usize::from(body.u16("count of removals")?);
    if body.left() < frames * 24 + cursors * 8 + removes {
        return Err(body.wrong("stamps"));
    }
    let mut stamps = Vec::with_capacity(frames);
    for _ in 0..frames {
        let id = body.id("id")?;
        let offset = body.u64("offset")?;
        stamps.push(Stamp { id, offset: (offset != NONE).then_some(offset) });
    }
    let revisions = (0..cursors).map(|_| body.u64("revision")).collect::<Result<_, _>>()?;
    let mut removed = Vec::with_capacity(removes);
    for _ in 0..removes {
        removed.push(match body.u8("removal")? {
            0 => Removal::Absent,
            _ => Removal::Removed,
        });
    }
    Ok(Appended {
        frames: stamps,
        cursors: revisions,
        removed,
        repeated: flags & REPLY_REPEATED != 0,
        durable: flags & REPLY_DURABLE != 0,
        head,
    })
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use bytes::Bytes;
    use xs_engine::{
        BlobHash, Body as FrameBody, CursorName, CursorValue, ExpectRevision, FrameId, Meta,
        Origin, Ttl,
    };

    use super::*;
    use crate::message::testing::{body_of, each_cut_fails};

    fn batch() -> AppendRequest {
        let frame = NewFrame::new(Topic::parse("a.b").unwrap());
        let origin = Origin {
            processor: FrameId::first_of_ms(5),
            input: Some(FrameId::MAX),
            input_offset: None,
            hops: 2,
        };
        AppendRequest {
            frames: vec![
                frame.clone(),
                NewFrame {
                    meta: Meta::parse("{\"n\":1}").unwrap(),
                    body: FrameBody::Inline(Bytes::from(vec![1; 5000])),
                    ttl: Ttl::Last(NonZeroU64::MIN),
                    origin: Some(origin),
                    ..frame.clone()
                },
                NewFrame {
                    topic: Topic::parse("c").unwrap(),
                    body: FrameBody::Stored(BlobHash::of(b"x")),
                    ttl: Ttl::TimeMs(60_000),
                    ..frame.clone()
                },
                NewFrame { ttl: Ttl::Ephemeral, ..frame },
            ],
            cursors: vec![
                CursorChange {
                    name: CursorName::parse("one").unwrap(),
                    expect: ExpectRevision::Is(4),
                    set: Some(CursorValue { offset: 9, state: Bytes::from_static(b"state") }),
                },
                CursorChange {
                    name: CursorName::parse("two").unwrap(),
                    expect: ExpectRevision::Any,
                    set: None,
                },
            ],
            removes: vec![Bound::Offset(3), Bound::Id(FrameId::MAX)],
            durable: true,
            ..AppendRequest::default()
        }
    }

    fn read(bytes: Bytes) -> Result<AppendRequest, DecodeError> {
        AppendRequest::read(Body::new("APPEND", bytes))
    }

    #[test]
    fn requests_round_trip() {
        let body = body_of(|out| batch().put(out));
        assert_eq!(read(body.clone()).unwrap(), batch());
        each_cut_fails(&body, read);
    }

    #[test]
    fn unknown_extensions_are_refused_unless_they_are_optional() {
        let with = |tag: u16| {
            let body = body_of(|out| {
                batch().put(out);
                out.put_u16(tag);
                out.put_u16(0);
                out.put_u32(3);
                out.put_slice(b"abc");
            });
            read(body)
        };
        assert_eq!(with(0x8001).unwrap(), batch());
        let Err(DecodeError::Refused(refusal)) = with(0x7fff) else { panic!("accepted") };
        assert_eq!(refusal.code, Code::UnknownExtension);
        assert_eq!(refusal.details, [Detail::Extension(0x7fff)]);
    }

    #[test]
    fn wrong_values_are_refused_and_wrong_structure_is_an_error() {
        let body = body_of(|out| batch().put(out)).to_vec();
        let changed = |at: usize, byte: u8| {
            let mut bytes = body.clone();
            bytes[at] = byte;
            read(Bytes::from(bytes)).unwrap_err()
        };
        assert!(
            matches!(changed(16, b'-'), DecodeError::Refused(r) if r.code == Code::InvalidValue)
        );
        assert!(matches!(changed(16, 0xff), DecodeError::Protocol(_)), "not UTF-8");
        for (at, byte) in [(0, 2), (1, 1), (6, 3), (8, 3), (8, 8), (9, 4), (11, 1)] {
            assert!(matches!(changed(at, byte), DecodeError::Protocol(_)), "{at}");
        }
        assert!(
            matches!(changed(3, 0xff), DecodeError::Refused(r) if r.code == Code::BatchTooLarge)
        );
    }

    #[test]
    fn replies_round_trip() {
        let reply = Appended {
            frames: vec![
                Stamp { id: FrameId::MAX, offset: Some(3) },
                Stamp { id: FrameId::ZERO, offset: None },
            ],
            cursors: vec![5, 0],
            removed: vec![Removal::Removed, Removal::Absent],
            repeated: true,
            durable: true,
            head: 4,
        };
        let body = body_of(|out| put_appended(out, &reply));
        let read = |bytes| read_appended(Body::new("APPEND", bytes));
        assert_eq!(read(body.clone()).unwrap(), reply);
        each_cut_fails(&body, read);
    }
}
