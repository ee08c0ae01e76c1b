//! One frame of a batch: flags and lengths, then the bytes they describe.

use std::num::NonZeroU64;

use xs_engine::{Body as FrameBody, FrameId, Meta, NewFrame, Origin, Topic, Ttl, ValueError};

use crate::error::ProtocolError;
use crate::gather::Gather;
use crate::message::coding::{Body, DecodeError, NONE};

const BODY_MASK: u8 = 3;
const BODY_INLINE: u8 = 1;
const BODY_STORED: u8 = 2;
const FLAG_ORIGIN: u8 = 4;

/// Writes a frame.
pub(super) fn put_frame(out: &mut Gather, frame: &NewFrame) {
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
        put_origin(out, origin);
    }
    out.put_slice(frame.topic.as_str().as_bytes());
    out.put_slice(frame.meta.as_bytes());
    if let FrameBody::Inline(bytes) = &frame.body {
        out.put_shared(bytes);
    }
}

/// Reads a frame. Frames of one batch mostly share their topic, so the name is reused.
pub(super) fn read_frame(
    body: &mut Body,
    last_topic: &mut Option<Topic>,
) -> Result<NewFrame, DecodeError> {
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
        // As in text: nobody would ever see a frame that expires immediately.
        2 => match body.u64("ttl value")? {
            0 => return Err(ValueError::Ttl(Ttl::TimeMs(0).to_string()).into()),
            ms => Ttl::TimeMs(ms),
        },
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

/// Writes which processor made something, and from which input.
pub(in crate::message) fn put_origin(out: &mut Gather, origin: &Origin) {
    out.put_slice(origin.processor.as_bytes());
    out.put_slice(origin.input.unwrap_or(FrameId::ZERO).as_bytes());
    out.put_u64(origin.input_offset.unwrap_or(NONE));
    out.put_u32(origin.hops);
    out.put_u32(0);
}

/// Reads what [`put_origin`] writes.
pub(in crate::message) fn read_origin(body: &mut Body) -> Result<Origin, ProtocolError> {
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
