//! CALL: call a command and receive its results as a stream.

use std::time::Duration;

use bytes::Bytes;
use xs_engine::{FrameId, Meta, Origin, Topic};

use super::append::{put_origin, read_origin};
use super::coding::{Body, DecodeError, put_extension};
use super::subscribe::{check_bodies, millis};
use crate::error::{Code, ProtocolError, Refusal};
use crate::gather::Gather;
use crate::limits::CALL_DEADLINE_MAX;

/// A call of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallRequest {
    /// The command's name.
    pub name: Topic,
    /// Arguments: JSON, `{}` or nothing when there are none.
    pub args: Meta,
    /// Bytes for the command; empty when there are none.
    pub body: Bytes,
    /// Time for the whole call; `None` leaves it to the command.
    pub deadline: Option<Duration>,
    /// Bodies of results up to this many bytes travel with their frames.
    pub bodies_up_to: u32,
    /// The calling processor, and the input for which it calls. Set by the host, so that chains of
    /// processors that call each other come to an end.
    pub origin: Option<Origin>,
}

/// The extension that carries the origin.
const ORIGIN: u16 = 1;

impl CallRequest {
    /// A call without arguments, body or deadline.
    #[must_use]
    pub fn new(name: Topic) -> Self {
        let (args, body) = (Meta::none(), Bytes::new());
        Self { name, args, body, deadline: None, bodies_up_to: 0, origin: None }
    }

    pub(crate) fn put(&self, credit: u32, out: &mut Gather) {
        out.put_u32(credit);
        out.put_u32(self.bodies_up_to);
        out.put_u64(self.deadline.map_or(0, millis));
        out.put_u32(self.args.as_bytes().len() as u32);
        out.put_u32(self.body.len() as u32);
        out.put_str(self.name.as_str());
        out.put_slice(self.args.as_bytes());
        out.put_shared(&self.body);
        if let Some(origin) = &self.origin {
            put_extension(out, ORIGIN, |out| put_origin(out, origin));
        }
    }

    /// Reads the call and the credit it begins with.
    pub(crate) fn read(mut body: Body) -> Result<(u32, Self), DecodeError> {
        let credit = body.u32("credit")?;
        let bodies_up_to = body.u32("bodies up to")?;
        let deadline = match body.u64("deadline")? {
            0 => None,
            ms => Some(Duration::from_millis(ms)),
        };
        let args_len = body.u32("length of the arguments")? as usize;
        let body_len = body.u32("body length")? as usize;
        let name = body.text("name")?;
        let args = body.take(args_len, "arguments")?;
        let content = body.take(body_len, "body")?;
        let mut origin = None;
        body.extensions_with(|tag, value| match tag {
            ORIGIN => set_origin(&mut origin, value).map(|()| true),
            _ => Ok(false),
        })?;
        check_bodies(bodies_up_to)?;
        if deadline.is_some_and(|deadline| deadline > CALL_DEADLINE_MAX) {
            let text = format!("a deadline must be at most {CALL_DEADLINE_MAX:?} away");
            return Err(Refusal::new(Code::InvalidValue, text).into());
        }
        let (name, args) = (Topic::parse(name.as_str())?, Meta::parse(args)?);
        Ok((credit, Self { name, args, body: content, deadline, bodies_up_to, origin }))
    }
}

fn set_origin(origin: &mut Option<Origin>, mut value: Body) -> Result<(), DecodeError> {
    if origin.is_some() {
        return Err(value.wrong("origin twice").into());
    }
    *origin = Some(read_origin(&mut value)?);
    Ok(value.end()?)
}

/// Reads the reply to CALL: the id of the frame `<name>.call`.
pub(crate) fn read_called(mut body: Body) -> Result<FrameId, ProtocolError> {
    let id = body.id("id")?;
    body.end()?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::testing::{body_of, each_cut_fails};

    #[test]
    fn calls_round_trip() {
        let mut call = CallRequest {
            args: Meta::parse("{}").unwrap(),
            body: Bytes::from_static(b"body"),
            deadline: Some(CALL_DEADLINE_MAX),
            bodies_up_to: 9,
            ..CallRequest::new(Topic::parse("report").unwrap())
        };
        let body = body_of(|out| call.put(5, out));
        let read = |bytes| CallRequest::read(Body::new("CALL", bytes));
        assert_eq!(read(body.clone()).unwrap(), (5, call.clone()));
        each_cut_fails(&body, read);
        let origin = Origin {
            processor: FrameId::first_of_ms(7),
            input: Some(FrameId::first_of_ms(8)),
            input_offset: Some(9),
            hops: 3,
        };
        call.origin = Some(origin);
        let of_host = body_of(|out| call.put(5, out));
        assert_eq!(read(of_host.clone()).unwrap(), (5, call.clone()));
        let twice = [&of_host[..], &of_host[body.len()..]].concat();
        assert!(read(twice.into()).is_err());
        call.origin = None;
        call.deadline = Some(CALL_DEADLINE_MAX + Duration::from_millis(1));
        assert!(matches!(read(body_of(|out| call.put(5, out))), Err(DecodeError::Refused(_))));
    }
}
