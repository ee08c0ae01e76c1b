//! CURSOR_GET, CURSOR_SET, CURSOR_LIST, and the changes of cursors that a batch carries.

use xs_engine::limits::CURSOR_STATE_BYTES_MAX;
use xs_engine::{Cursor, CursorChange, CursorName, CursorSummary, CursorValue, ExpectRevision};

use super::coding::{Body, DecodeError};
use crate::error::{Code, Detail, ProtocolError, Refusal};
use crate::gather::Gather;

const CURSOR_SET: u8 = 1;
const CURSOR_EXPECT: u8 = 2;

/// Writes a change.
pub(crate) fn put_cursor_change(out: &mut Gather, change: &CursorChange) {
    let mut flags = if change.set.is_some() { CURSOR_SET } else { 0 };
    let mut expected = 0;
    if let ExpectRevision::Is(revision) = change.expect {
        (flags, expected) = (flags | CURSOR_EXPECT, revision);
    }
    let none = CursorValue::default();
    let CursorValue { offset, state } = change.set.as_ref().unwrap_or(&none);
    out.put_u8(flags);
    out.put_u8(change.name.as_str().len() as u8);
    out.put_u16(0);
    out.put_u32(state.len() as u32);
    out.put_u64(expected);
    out.put_u64(*offset);
    out.put_slice(change.name.as_str().as_bytes());
    out.put_shared(state);
}

/// Reads a change.
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
    let set = (flags & CURSOR_SET != 0).then_some(CursorValue { offset, state });
    Ok(CursorChange { name: CursorName::parse(name.as_str())?, expect, set })
}

/// Reads the request of CURSOR_GET.
pub(crate) fn read_name(mut body: Body) -> Result<CursorName, DecodeError> {
    let name = CursorName::parse(body.text("cursor name")?.as_str())?;
    body.extensions()?;
    Ok(name)
}

/// Writes a cursor, if there is one.
pub(crate) fn put_cursor(out: &mut Gather, cursor: Option<&Cursor>) {
    let Some(cursor) = cursor else { return };
    for number in [cursor.revision, cursor.epoch, cursor.offset, cursor.time_ms] {
        out.put_u64(number);
    }
    out.put_shared(&cursor.state);
}

/// Reads a cursor; an empty body means none.
pub(crate) fn read_cursor(mut body: Body) -> Result<Option<Cursor>, ProtocolError> {
    if body.left() == 0 {
        return Ok(None);
    }
    Ok(Some(Cursor {
        revision: body.u64("revision")?,
        epoch: body.u64("epoch")?,
        offset: body.u64("offset")?,
        time_ms: body.u64("time")?,
        state: body.rest(),
    }))
}

/// Writes an entry of a list.
pub(crate) fn put_cursor_summary(out: &mut Gather, cursor: &CursorSummary) {
    let CursorSummary { name, revision, epoch, offset, time_ms, state_bytes } = cursor;
    for number in [revision, epoch, offset, time_ms, state_bytes] {
        out.put_u64(*number);
    }
    out.put_str(name.as_str());
}

/// Reads a list up to the end of the body.
pub(crate) fn read_cursor_summaries(mut body: Body) -> Result<Vec<CursorSummary>, ProtocolError> {
    let mut all = Vec::new();
    while body.left() > 0 {
        let (revision, epoch) = (body.u64("revision")?, body.u64("epoch")?);
        let (offset, time_ms) = (body.u64("offset")?, body.u64("time")?);
        let state_bytes = body.u64("state bytes")?;
        let name = CursorName::parse(body.text("cursor name")?.as_str());
        let name = name.map_err(|_| body.wrong("cursor name"))?;
        all.push(CursorSummary { name, revision, epoch, offset, time_ms, state_bytes });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::message::testing::{body_of, each_cut_fails};

    #[test]
    fn cursors_round_trip() {
        let cursor = Cursor {
            revision: 1,
            epoch: 2,
            offset: 3,
            time_ms: 4,
            state: Bytes::from_static(b"state"),
        };
        for cursor in [None, Some(cursor)] {
            let body = body_of(|out| put_cursor(out, cursor.as_ref()));
            assert_eq!(read_cursor(Body::new("CURSOR_GET", body)).unwrap(), cursor);
        }
        let name = body_of(|out| out.put_str("name"));
        let read = |bytes| read_name(Body::new("CURSOR_GET", bytes));
        assert_eq!(read(name.clone()).unwrap().as_str(), "name");
        each_cut_fails(&name, read);
    }

    #[test]
    fn summaries_round_trip() {
        let one = |name: &str| CursorSummary {
            name: CursorName::parse(name).unwrap(),
            revision: 1,
            epoch: 2,
            offset: 3,
            time_ms: 4,
            state_bytes: 5,
        };
        let both = [one("a"), one("b")];
        let body = body_of(|out| both.iter().for_each(|one| put_cursor_summary(out, one)));
        let read = |bytes| read_cursor_summaries(Body::new("CURSOR_LIST", bytes));
        assert_eq!(read(body.clone()).unwrap(), both);
        for at in 0..body.len() {
            assert!(read(body.slice(..at)).map_or(true, |list| list.len() < 2), "{at}");
        }
    }
}
