//! Messages from a client: every request as a value, with its encoding.

use bytes::Bytes;
use xs_engine::{BlobHash, Bound, CursorChange, CursorName, TopicPatterns};

use super::blob::read_has;
use super::coding::{Body, put_bound, put_patterns};
use super::control::{read_credit, read_ping};
use super::cursor::{put_cursor_change, read_cursor_change, read_name};
use super::read::read_topics_request;
use super::{
    AppendRequest, BlobGetRequest, CallRequest, DecodeError, FetchRequest, HelloRequest,
    ImportRequest, LastRequest, MaintainRequest, Op, OpRange, RemoveRequest, SubscribeRequest,
};
use crate::codec::{Envelope, FLAG_MORE, FLAG_RESPONSE, Header};
use crate::error::{Code, ProtocolError, Refusal};
use crate::gather::Gather;
use crate::limits::CHUNK_BYTES_MAX;

/// A message from a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    Hello(HelloRequest),
    Ping(Bytes),
    /// The answer to the server's PING.
    Pong(Bytes),
    Append(AppendRequest),
    Remove(RemoveRequest),
    Import(ImportRequest),
    Fetch(FetchRequest),
    Get(Bound),
    Last(LastRequest),
    Topics(TopicPatterns),
    Subscribe(SubscribeRequest),
    Credit(u64),
    Unsubscribe,
    CursorSet(CursorChange),
    CursorGet(CursorName),
    CursorList,
    BlobHas(BlobHash),
    BlobPut,
    BlobGet(BlobGetRequest),
    BlobChunk {
        bytes: Bytes,
        last: bool,
    },
    Call {
        credit: u32,
        call: CallRequest,
    },
    Stats,
    Maintain(MaintainRequest),
}

impl Request {
    /// The op it is sent as.
    pub(crate) const fn op(&self) -> Op {
        match self {
            Self::Hello(_) => Op::Hello,
            Self::Ping(_) | Self::Pong(_) => Op::Ping,
            Self::Append(_) => Op::Append,
            Self::Remove(_) => Op::Remove,
            Self::Import(_) => Op::Import,
            Self::Fetch(_) => Op::Fetch,
            Self::Get(_) => Op::Get,
            Self::Last(_) => Op::Last,
            Self::Topics(_) => Op::Topics,
            Self::Subscribe(_) => Op::Subscribe,
            Self::Credit(_) => Op::Credit,
            Self::Unsubscribe => Op::Unsubscribe,
            Self::CursorSet(_) => Op::CursorSet,
            Self::CursorGet(_) => Op::CursorGet,
            Self::CursorList => Op::CursorList,
            Self::BlobHas(_) => Op::BlobHas,
            Self::BlobPut => Op::BlobPut,
            Self::BlobGet(_) => Op::BlobGet,
            Self::BlobChunk { .. } => Op::BlobChunk,
            Self::Call { .. } => Op::Call,
            Self::Stats => Op::Stats,
            Self::Maintain(_) => Op::Maintain,
        }
    }

    /// Queues the message. Fails with its size if it has more than `max` bytes.
    pub(crate) fn put(&self, corr: u32, sub: u32, max: u32, out: &mut Gather) -> Result<(), u64> {
        let (flags, code) = match self {
            Self::BlobChunk { last: false, .. } => (FLAG_MORE, Op::VERSION),
            Self::Pong(_) => (FLAG_RESPONSE, 0),
            _ => (0, Op::VERSION),
        };
        let header = Header { op: self.op() as u8, flags, code, corr, sub };
        put_within(header, max, out, |out| self.put_body(out))
    }

    /// Queues a request whose body is written by `put`, out of what it borrows.
    pub(crate) fn put_borrowed(
        op: Op,
        corr: u32,
        max: u32,
        out: &mut Gather,
        put: impl FnOnce(&mut Gather),
    ) -> Result<(), u64> {
        let header = Header { op: op as u8, flags: 0, code: Op::VERSION, corr, sub: 0 };
        put_within(header, max, out, put)
    }

    fn put_body(&self, out: &mut Gather) {
        match self {
            Self::Hello(hello) => hello.put(out),
            Self::Ping(bytes) | Self::Pong(bytes) => out.put_slice(bytes),
            Self::Append(batch) => batch.put(out),
            Self::Remove(remove) => remove.put(out),
            Self::Import(import) => import.put(out),
            Self::Fetch(fetch) => fetch.put(out),
            Self::Get(at) => put_bound(out, *at),
            Self::Last(last) => last.put(out),
            Self::Topics(topics) => put_patterns(out, topics),
            Self::Subscribe(subscribe) => subscribe.put(out),
            Self::Credit(bytes) => out.put_u64(*bytes),
            Self::Unsubscribe | Self::CursorList | Self::BlobPut | Self::Stats => {}
            Self::CursorSet(change) => put_cursor_change(out, change),
            Self::CursorGet(name) => out.put_str(name.as_str()),
            Self::BlobHas(hash) => out.put_slice(hash.as_bytes()),
            Self::BlobGet(get) => get.put(out),
            Self::BlobChunk { bytes, .. } => out.put_shared(bytes),
            Self::Call { credit, call } => call.put(*credit, out),
            Self::Maintain(maintain) => maintain.put(out),
        }
    }

    /// Reads a message from a client in one of the served versions.
    pub(crate) fn read(envelope: Envelope, served: &[OpRange]) -> Result<Self, DecodeError> {
        let Envelope { header, body } = envelope;
        let op = known(header, served)?;
        let body = Body::new(op.name(), body);
        if header.is_response() {
            return match op {
                Op::Ping => Ok(Self::Pong(read_ping(body)?)),
                _ => Err(body.wrong("a response from the client").into()),
            };
        }
        let more_allowed = if op == Op::BlobChunk { FLAG_MORE } else { 0 };
        if header.flags & !more_allowed != 0 {
            return Err(body.wrong("flags").into());
        }
        Ok(match op {
            Op::Hello => Self::Hello(HelloRequest::read(body)?),
            Op::Ping => Self::Ping(read_ping(body)?),
            Op::Append => Self::Append(AppendRequest::read(body)?),
            Op::Remove => Self::Remove(RemoveRequest::read(body)?),
            Op::Import => Self::Import(ImportRequest::read(body)?),
            Op::Fetch => Self::Fetch(FetchRequest::read(body)?),
            Op::Get => Self::Get(read_get(body)?),
            Op::Last => Self::Last(LastRequest::read(body)?),
            Op::Topics => Self::Topics(read_topics_request(body)?),
            Op::Subscribe => Self::Subscribe(SubscribeRequest::read(body)?),
            Op::Credit => Self::Credit(read_credit(body)?),
            Op::Unsubscribe => body.end().map(|()| Self::Unsubscribe)?,
            Op::CursorSet => Self::CursorSet(read_cursor_set(body)?),
            Op::CursorGet => Self::CursorGet(read_name(body)?),
            Op::CursorList => body.extensions().map(|()| Self::CursorList)?,
            Op::BlobHas => Self::BlobHas(read_has(body)?),
            Op::BlobPut => body.extensions().map(|()| Self::BlobPut)?,
            Op::BlobGet => Self::BlobGet(BlobGetRequest::read(body)?),
            Op::BlobChunk if body.left() > CHUNK_BYTES_MAX => {
                return Err(body.wrong("a chunk over the limit").into());
            }
            Op::BlobChunk => Self::BlobChunk { bytes: body.rest(), last: !header.has_more() },
            Op::Call => {
                let (credit, call) = CallRequest::read(body)?;
                Self::Call { credit, call }
            }
            Op::Stats => body.extensions().map(|()| Self::Stats)?,
            Op::Maintain => Self::Maintain(MaintainRequest::read(body)?),
            Op::GoAway | Op::Close | Op::Deliver | Op::SubEvent => {
                return Err(body.wrong("only a server sends it").into());
            }
        })
    }
}

fn put_within(
    header: Header,
    max: u32,
    out: &mut Gather,
    put: impl FnOnce(&mut Gather),
) -> Result<(), u64> {
    out.begin(header);
    put(out);
    let size = out.message_len() as u64;
    if size > u64::from(max) {
        out.abandon();
        return Err(size);
    }
    out.finish();
    Ok(())
}

fn known(header: Header, served: &[OpRange]) -> Result<Op, DecodeError> {
    let Some(op) = Op::from_byte(header.op) else {
        let text = format!("op {:#04x} is not known to this server", header.op);
        return Err(Refusal::new(Code::UnknownOp, text).into());
    };
    let range = served.iter().find(|range| range.op == header.op);
    if !header.is_response()
        && let Some(range) = range.filter(|range| !range.has(header.code))
    {
        let text = format!(
            "{} is served in versions {} to {}, not {}",
            op.name(),
            range.min,
            range.max,
            header.code
        );
        return Err(Refusal::new(Code::OpVersion, text).into());
    }
    Ok(op)
}

fn read_get(mut body: Body) -> Result<Bound, DecodeError> {
    let at = body.bound()?;
    body.extensions()?;
    Ok(at)
}

fn read_cursor_set(mut body: Body) -> Result<CursorChange, DecodeError> {
    let change = read_cursor_change(&mut body)?;
    body.extensions()?;
    Ok(change)
}

/// Whether messages of this op have no answer, so that a refusal closes the connection.
pub(crate) const fn is_one_way(op: u8) -> bool {
    match Op::from_byte(op) {
        Some(op) => op.ways().one_way,
        None => false,
    }
}

/// The error for an invalid message of a one-way op.
pub(crate) const ONE_WAY: ProtocolError =
    ProtocolError::Malformed { op: "one-way message", what: "version or value" };
