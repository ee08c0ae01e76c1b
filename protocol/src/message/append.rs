//! APPEND: frames and cursor changes in one atomic batch.

use std::num::NonZeroU64;

use xs_engine::limits::{BATCH_RECORDS_MAX, CURSOR_STATE_BYTES_MAX};
use xs_engine::{
    Body as FrameBody, CursorChange, CursorName, ExpectRevision, FrameId, Meta, NewFrame, Origin,
    Topic, Ttl,
};

use super::coding::{Body, DecodeError, NONE};
use crate::error::{Code, Detail, ProtocolError, Refusal};
use crate::gather::Gather;

const FLAG_DURABLE: u8 = 1;

const BODY_MASK: u8 = 3;
const BODY_INLINE: u8 = 1;
const BODY_STORED: u8 = 2;
const FLAG_ORIGIN: u8 = 4;

const CURSOR_SET: u8 = 1;
const CURSOR_EXPECT: u8 = 2;

/// A batch to append: all of it or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AppendRequest {
    /// The frames, in the order they get offsets in.
    pub frames: Vec<NewFrame>,
    /// Cursors that move in the same batch.
    pub cursors: Vec<CursorChange>,
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
        out.put_u16(0);
        self.frames.iter().for_each(|frame| put_frame(out, frame));
        self.cursors.iter().for_each(|change| put_cursor_change(out, change));
    }

    pub(crate) fn read(mut body: Body) -> Result<Self, DecodeError> {
        let flags = body.u8("flags")?;
        if flags & !FLAG_DURABLE != 0 {
            return Err(body.wrong("flags").into());
        }
        body.zeros(1)?;
        let frames = usize::from(body.u16("count of frames")?);
        let cursors = usize::from(body.u16("count of cursors")?);
        body.zeros(2)?;
        check_records(frames + cursors)?;
        let mut batch = Self { durable: flags & FLAG_DURABLE != 0, ..Self::default() };
        batch.frames.reserve_exact(frames);
        // Frames of one batch mostly share their topic: its name is kept once.
        let mut topic: Option<Topic> = None;
        for _ in 0..frames {
            batch.frames.push(read_frame(&mut body, &mut topic)?);
        }
        for _ in 0..cursors {
            batch.cursors.push(read_cursor_change(&mut body)?);
        }
        body.extensions()?;
        Ok(batch)
    }
}

/// Refuses a batch of more records than the store takes.
fn check_records(count: usize) -> Result<(), Refusal> {
    if count > BATCH_RECORDS_MAX {
        let text = format!("a batch of {count} records is over the limit of {BATCH_RECORDS_MAX}");
        let refusal = Refusal::new(Code::BatchTooLarge, text);
        return Err(refusal.with(Detail::Limit(BATCH_RECORDS_MAX as u64)));
    }
    Ok(())
}

fn put_frame(out: &mut Gather, frame: &NewFrame) {
    let body = match &frame.body {
        FrameBody::None => 0,
        FrameBody::Inline(_) => BODY_INLINE,
        FrameBody::Stored(_) => BODY_STORED,
    };
    let (ttl, ttl_value) = match frame.ttl {
        Ttl::Forever => (0, None),
        Ttl::Ephemeral => (1, None),
        Ttl::TimeMs(ms) => (2, Some(ms)),
        Ttl::Last(n) => (3, Some(n.get())),
    };
    out.put_u8(body | if frame.origin.is_some() { FLAG_ORIGIN } else { 0 });
    out.put_u8(ttl);
    out.put_u8(frame.topic.as_str().len() as u8);
    out.put_u8(0);
    out.put_u32(frame.meta.as_bytes().len() as u32);
    if let Some(value) = ttl_value {
        out.put_u64(value);
    }
    match &frame.body {
        FrameBody::None => {}
        FrameBody::Inline(bytes) => out.put_u32(bytes.len() as u32),
        FrameBody::Stored(hash) => out.put_slice(hash.as_bytes()),
    }
    if let Some(origin) = &frame.origin {
        out.put_slice(origin.processor.as_bytes());
        out.put_slice(origin.input.unwrap_or(FrameId::ZERO).as_bytes());
        out.put_u64(origin.input_offset.unwrap_or(NONE));
        out.put_u32(origin.hops);
        out.put_u32(0);
    }
    out.put_slice(frame.topic.as_str().as_bytes());
    out.put_slice(frame.meta.as_bytes());
    if let FrameBody::Inline(bytes) = &frame.body {
        out.put_shared(bytes);
    }
}

fn read_frame(body: &mut Body, last_topic: &mut Option<Topic>) -> Result<NewFrame, DecodeError> {
    let flags = body.u8("flags of a frame")?;
    let ttl = body.u8("ttl")?;
    let topic_len = body.u8("topic length")?;
    body.zeros(1)?;
    let meta_len = body.u32("meta length")?;
    if flags & !(BODY_MASK | FLAG_ORIGIN) != 0 {
        return Err(body.wrong("flags of a frame").into());
    }
    let ttl = match ttl {
        0 => Ttl::Forever,
        1 => Ttl::Ephemeral,
        2 => Ttl::TimeMs(body.u64("ttl value")?),
        3 => {
            let n = NonZeroU64::new(body.u64("ttl value")?);
            Ttl::Last(n.ok_or_else(|| body.wrong("ttl value"))?)
        }
        _ => return Err(body.wrong("ttl").into()),
    };
    let mut inline = 0;
    let mut content = FrameBody::None;
    match flags & BODY_MASK {
        0 => {}
        BODY_INLINE => inline = body.u32("body length")?,
        BODY_STORED => content = FrameBody::Stored(body.hash("body hash")?),
        _ => return Err(body.wrong("kind of body").into()),
    }
    let origin = if flags & FLAG_ORIGIN != 0 { Some(read_origin(body)?) } else { None };
    let name = body.text_of(usize::from(topic_len), "topic")?;
    let topic = match last_topic {
        Some(last) if last.as_str() == name.as_str() => last.clone(),
        _ => last_topic.insert(Topic::parse(name.as_str())?).clone(),
    };
    let meta = Meta::parse(body.take(meta_len as usize, "meta")?)?;
    if inline > 0 {
        content = FrameBody::Inline(body.take(inline as usize, "body")?);
    }
    Ok(NewFrame { topic, meta, body: content, ttl, origin })
}

fn read_origin(body: &mut Body) -> Result<Origin, ProtocolError> {
    let processor = body.id("origin")?;
    let input = body.id("origin")?;
    let input_offset = body.u64("origin")?;
    let hops = body.u32("origin")?;
    body.zeros(4)?;
    Ok(Origin {
        processor,
        input: (input != FrameId::ZERO).then_some(input),
        input_offset: (input_offset != NONE).then_some(input_offset),
        hops,
    })
}

pub(crate) fn put_cursor_change(out: &mut Gather, change: &CursorChange) {
    let mut flags = if change.set.is_some() { CURSOR_SET } else { 0 };
    let mut expected = 0;
    if let ExpectRevision::Is(revision) = change.expect {
        (flags, expected) = (flags | CURSOR_EXPECT, revision);
    }
    let empty = bytes::Bytes::new();
    let (offset, state) = change.set.as_ref().map_or((0, &empty), |(at, state)| (*at, state));
    out.put_u8(flags);
    out.put_u8(change.name.as_str().len() as u8);
    out.put_u16(0);
    out.put_u32(state.len() as u32);
    out.put_u64(expected);
    out.put_u64(offset);
    out.put_slice(change.name.as_str().as_bytes());
    out.put_shared(state);
}

pub(crate) fn read_cursor_change(body: &mut Body) -> Result<CursorChange, DecodeError> {
    let flags = body.u8("flags of a cursor")?;
    let name_len = body.u8("name length")?;
    body.zeros(2)?;
    let state_len = body.u32("state length")? as usize;
    let expected = body.u64("revision")?;
    let offset = body.u64("offset")?;
    if flags & !(CURSOR_SET | CURSOR_EXPECT) != 0 {
        return Err(body.wrong("flags of a cursor").into());
    }
    let name = body.text_of(usize::from(name_len), "cursor name")?;
    let state = body.take(state_len, "state")?;
    if state_len > CURSOR_STATE_BYTES_MAX {
        let text = format!("a state of {state_len} bytes is over {CURSOR_STATE_BYTES_MAX}");
        let refusal = Refusal::new(Code::InvalidValue, text);
        return Err(refusal.with(Detail::Limit(CURSOR_STATE_BYTES_MAX as u64)).into());
    }
    let expect = match flags & CURSOR_EXPECT {
        0 => ExpectRevision::Any,
        _ => ExpectRevision::Is(expected),
    };
    let set = (flags & CURSOR_SET != 0).then_some((offset, state));
    Ok(CursorChange { name: CursorName::parse(name.as_str())?, expect, set })
}

/// What a frame got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Its id.
    pub id: FrameId,
    /// Its offset; an ephemeral frame has none.
    pub offset: Option<u64>,
}

/// A batch that was appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// One for each frame, in order.
    pub frames: Vec<Stamp>,
    /// The new revision of each cursor, in order; 0 for one that was removed.
    pub cursors: Vec<u64>,
    /// Whether the batch was durable when this was sent.
    pub durable: bool,
    /// The offset after the last frame readers can see.
    pub head: u64,
}

impl Appended {
    pub(crate) fn put(&self, out: &mut Gather) {
        out.put_u64(self.head);
        out.put_u8(u8::from(self.durable));
        out.put_u8(0);
        out.put_u16(self.frames.len() as u16);
        out.put_u16(self.cursors.len() as u16);
        out.put_u16(0);
        for stamp in &self.frames {
            out.put_slice(stamp.id.as_bytes());
            out.put_u64(stamp.offset.unwrap_or(NONE));
        }
        self.cursors.iter().for_each(|&revision| out.put_u64(revision));
    }

    pub(crate) fn read(mut body: Body) -> Result<Self, ProtocolError> {
        let head = body.u64("head")?;
        let durable = body.u8("durable")? != 0;
        body.zeros(1)?;
        let frames = usize::from(body.u16("count of frames")?);
        let cursors = usize::from(body.u16("count of cursors")?);
        body.zeros(2)?;
        if body.left() < frames * 24 + cursors * 8 {
            return Err(body.wrong("stamps"));
        }
        let mut stamps = Vec::with_capacity(frames);
        for _ in 0..frames {
            let id = body.id("id")?;
            let offset = body.u64("offset")?;
            stamps.push(Stamp { id, offset: (offset != NONE).then_some(offset) });
        }
        let revisions = (0..cursors).map(|_| body.u64("revision")).collect::<Result<_, _>>()?;
        Ok(Self { frames: stamps, cursors: revisions, durable, head })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use xs_engine::BlobHash;

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
                    set: Some((9, Bytes::from_static(b"state"))),
                },
                CursorChange {
                    name: CursorName::parse("two").unwrap(),
                    expect: ExpectRevision::Any,
                    set: None,
                },
            ],
            durable: true,
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
        let Err(DecodeError::Refused(refusal)) = with(1) else { panic!("accepted") };
        assert_eq!(refusal.code, Code::UnknownExtension);
        assert_eq!(refusal.details, [Detail::Extension(1)]);
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
        for (at, byte) in [(0, 2), (1, 1), (8, 3), (8, 8), (9, 4), (11, 1)] {
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
            durable: true,
            head: 4,
        };
        let body = body_of(|out| reply.put(out));
        let read = |bytes| Appended::read(Body::new("APPEND", bytes));
        assert_eq!(read(body.clone()).unwrap(), reply);
        each_cut_fails(&body, read);
    }
}
