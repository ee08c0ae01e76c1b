//! PING, GOAWAY, CLOSE, CREDIT and the body of every refusal.

use xs_engine::CursorName;

use super::coding::{Body, DecodeError};
use crate::error::{Code, Detail, ProtocolError, Refusal};
use crate::gather::{Gather, cut};
use crate::limits::{EXTENSIONS_MAX, PING_BYTES_MAX, REFUSAL_TEXT_MAX};

const DETAIL_RETRY_AFTER: u16 = 1;
const DETAIL_CURSOR: u16 = 2;
const DETAIL_LIMIT: u16 = 3;
const DETAIL_OFFSET: u16 = 4;
const DETAIL_EXTENSION: u16 = 5;
const DETAIL_CONDITION: u16 = 6;
const DETAIL_FRAME: u16 = 7;

/// Writes the body of a refusal; its code is in the header.
pub(crate) fn put_refusal(out: &mut Gather, refusal: &Refusal) {
    out.put_str(cut(&refusal.message, REFUSAL_TEXT_MAX));
    for detail in &refusal.details {
        let mut head = |tag: u16, len: usize| {
            out.put_u16(tag);
            out.put_u16(0);
            out.put_u32(len as u32);
        };
        match detail {
            Detail::RetryAfterMs(ms) => {
                head(DETAIL_RETRY_AFTER, 4);
                out.put_u32(*ms);
            }
            Detail::Cursor { name, revision } => {
                head(DETAIL_CURSOR, 8 + name.as_str().len());
                out.put_u64(*revision);
                out.put_slice(name.as_str().as_bytes());
            }
            Detail::Limit(limit) => {
                head(DETAIL_LIMIT, 8);
                out.put_u64(*limit);
            }
            Detail::Offset(offset) => {
                head(DETAIL_OFFSET, 8);
                out.put_u64(*offset);
            }
            Detail::Extension(tag) => {
                head(DETAIL_EXTENSION, 2);
                out.put_u16(*tag);
            }
            Detail::Condition { index, found } => {
                head(DETAIL_CONDITION, 12);
                out.put_u32(*index);
                out.put_u64(*found);
            }
            Detail::Frame(id) => {
                head(DETAIL_FRAME, 16);
                out.put_slice(id.as_bytes());
            }
        }
    }
}

/// Reads the body of a refusal. Details of unknown kinds are skipped.
pub(crate) fn read_refusal(code: u16, mut body: Body) -> Result<Refusal, ProtocolError> {
    let message = body.text("message")?.as_str().to_owned();
    let mut details = Vec::new();
    for _ in 0..EXTENSIONS_MAX {
        if body.left() == 0 {
            break;
        }
        let tag = body.u16("detail")?;
        body.zeros(2)?;
        let len = body.u32("detail length")?;
        let mut value = Body::new("detail", body.take(len as usize, "detail")?);
        match tag {
            DETAIL_RETRY_AFTER => details.push(Detail::RetryAfterMs(value.u32("retry after")?)),
            DETAIL_CURSOR => {
                let revision = value.u64("revision")?;
                let name = value.text_of(value.left(), "cursor name")?;
                let name = CursorName::parse(name.as_str());
                let name = name.map_err(|_| value.wrong("cursor name"))?;
                details.push(Detail::Cursor { name, revision });
            }
            DETAIL_LIMIT => details.push(Detail::Limit(value.u64("limit")?)),
            DETAIL_OFFSET => details.push(Detail::Offset(value.u64("offset")?)),
            DETAIL_EXTENSION => details.push(Detail::Extension(value.u16("extension")?)),
            DETAIL_CONDITION => {
                let (index, found) = (value.u32("condition")?, value.u64("what is there")?);
                details.push(Detail::Condition { index, found });
            }
            DETAIL_FRAME => details.push(Detail::Frame(value.id("frame")?)),
            _ => {}
        }
    }
    Ok(Refusal { code: Code::from_number(code), message, details })
}

/// Reads PING: the bytes to send back.
pub(crate) fn read_ping(body: Body) -> Result<bytes::Bytes, DecodeError> {
    if body.left() > PING_BYTES_MAX {
        return Err(body.wrong("too many bytes to send back").into());
    }
    Ok(body.rest())
}

/// Reads CREDIT: the number of bytes granted.
pub(crate) fn read_credit(mut body: Body) -> Result<u64, ProtocolError> {
    let bytes = body.u64("credit")?;
    body.end()?;
    Ok(bytes)
}

/// The server is stopping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoAway {
    /// Milliseconds until it closes the connection.
    pub drain_ms: u32,
    /// For people.
    pub reason: String,
}

impl GoAway {
    pub(crate) fn put(&self, out: &mut Gather) {
        out.put_u32(self.drain_ms);
        out.put_str(cut(&self.reason, REFUSAL_TEXT_MAX));
    }

    pub(crate) fn read(mut body: Body) -> Result<Self, ProtocolError> {
        let drain_ms = body.u32("drain time")?;
        Ok(Self { drain_ms, reason: body.text("reason")?.as_str().to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::testing::{body_of, each_cut_fails};

    #[test]
    fn refusals_round_trip() {
        let refusal = Refusal::new(Code::CursorConflict, "the cursor moved")
            .with(Detail::RetryAfterMs(5))
            .with(Detail::Cursor { name: CursorName::parse("c").unwrap(), revision: 3 })
            .with(Detail::Limit(9))
            .with(Detail::Extension(7))
            .with(Detail::Condition { index: 1, found: 8 })
            .with(Detail::Frame(xs_engine::FrameId::MAX))
            .with(Detail::Offset(u64::MAX));
        let body = body_of(|out| put_refusal(out, &refusal));
        let read = |bytes| read_refusal(400, Body::new("REFUSAL", bytes));
        assert_eq!(read(body.clone()).unwrap(), refusal);
        for at in 0..body.len() {
            // A cut between two details yields a refusal with fewer of them.
            assert!(read(body.slice(..at)).map_or(true, |read| read != refusal), "{at}");
        }
    }

    #[test]
    fn goaway_and_credit_round_trip() {
        let goaway = GoAway { drain_ms: 5000, reason: "stopping".to_owned() };
        let body = body_of(|out| goaway.put(out));
        assert_eq!(GoAway::read(Body::new("GOAWAY", body.clone())).unwrap(), goaway);
        each_cut_fails(&body, |bytes| GoAway::read(Body::new("GOAWAY", bytes)));
        let body = body_of(|out| out.put_u64(77));
        assert_eq!(read_credit(Body::new("CREDIT", body.clone())).unwrap(), 77);
        each_cut_fails(&body, |bytes| read_credit(Body::new("CREDIT", bytes)));
    }
}
