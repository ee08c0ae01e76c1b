//! Messages from a server: responses and pushes as values.

use bytes::Bytes;
use xs_engine::{Appended, BlobHash, Cursor, CursorSummary, Frame, FrameId, TopicSummary};

use super::append::read_appended;
use super::blob::{read_flag, read_number, read_stored};
use super::call::read_called;
use super::coding::Body;
use super::control::{read_credit, read_refusal};
use super::cursor::{read_cursor, read_cursor_summaries};
use super::frames::read_frames;
use super::read::{read_page, read_topic_summaries};
use super::{FrameList, GoAway, HelloReply, Imported, Op, Page, StreamEvent};
use crate::codec::{Envelope, FLAG_PUSH, Header};
use crate::error::{ProtocolError, Refusal};
use crate::limits::{PING_BYTES_MAX, SERVER_MESSAGE_BYTES_MAX};

/// A message from a server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    /// The answer, or part of it, to a request.
    Response { header: Header, result: Result<Response, Refusal> },
    /// Frames of a stream; `cost` counts against its credit.
    Deliver { sub: u32, list: FrameList, cost: usize },
    /// An event on a stream.
    Event { sub: u32, event: StreamEvent },
    /// A piece of a download.
    Chunk { sub: u32, bytes: Bytes, last: bool },
    /// More bytes of an upload may be sent.
    Credit { sub: u32, bytes: u64 },
    /// Must be answered with the same bytes.
    Ping(Bytes),
    /// The server is stopping.
    GoAway(GoAway),
    /// The server closes the connection.
    Close(Refusal),
}

/// The answer to a request, by op.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Response {
    Hello(HelloReply),
    Pong,
    /// APPEND and REMOVE.
    Appended(Appended),
    Imported(Imported),
    Page(Page),
    /// GET and LAST.
    Frames(Vec<Frame>),
    Topics(Vec<TopicSummary>),
    /// SUBSCRIBE.
    Accepted,
    /// CURSOR_SET: the revision; BLOB_GET: the length.
    Number(u64),
    Cursor(Option<Cursor>),
    Cursors(Vec<CursorSummary>),
    Has(bool),
    Stored(BlobHash, u64),
    Called(FrameId),
    /// STATS and MAINTAIN: JSON.
    Told(String),
}

impl Incoming {
    /// Reads a message from a server.
    pub(crate) fn read(envelope: Envelope) -> Result<Self, ProtocolError> {
        let Envelope { header, body } = envelope;
        let cost = body.len();
        let Some(op) = Op::from_byte(header.op) else {
            return Err(ProtocolError::Unexpected("an op that was never sent"));
        };
        let mut body = Body::new(op.name(), body);
        if header.is_response() {
            let result = match header.code {
                0 => Ok(Response::read(op, body)?),
                code => Err(read_refusal(code, body)?),
            };
            return Ok(Self::Response { header, result });
        }
        if header.flags & FLAG_PUSH == 0 {
            return Err(body.wrong("flags"));
        }
        let sub = header.sub;
        Ok(match op {
            Op::Deliver => Self::Deliver { sub, list: read_frames(body)?, cost },
            Op::SubEvent => Self::Event { sub, event: StreamEvent::read(header.code, body)? },
            Op::BlobChunk => Self::Chunk { sub, bytes: body.rest(), last: !header.has_more() },
            Op::Credit => Self::Credit { sub, bytes: read_credit(body)? },
            Op::Ping if cost > PING_BYTES_MAX => return Err(body.wrong("a PING so long")),
            Op::Ping => Self::Ping(body.take(cost, "ping")?),
            Op::GoAway => Self::GoAway(GoAway::read(body)?),
            Op::Close => Self::Close(read_refusal(header.code, body)?),
            _ => return Err(body.wrong("a request from the server")),
        })
    }
}

impl Response {
    fn read(op: Op, body: Body) -> Result<Self, ProtocolError> {
        let frames = |body| {
            let list = read_frames(body)?;
            Ok(Self::Frames(list.frames.into_iter().map(|one| one.frame).collect()))
        };
        match op {
            Op::Hello => HelloReply::read(body).map(Self::Hello),
            Op::Ping => Ok(Self::Pong),
            Op::Append | Op::Remove => read_appended(body).map(Self::Appended),
            Op::Import => Imported::read(body).map(Self::Imported),
            Op::Fetch => read_page(body).map(Self::Page),
            Op::Get | Op::Last => frames(body),
            Op::Topics => read_topic_summaries(body).map(Self::Topics),
            Op::Subscribe => Ok(Self::Accepted),
            Op::CursorSet | Op::BlobGet => read_number(body).map(Self::Number),
            Op::CursorGet => read_cursor(body).map(Self::Cursor),
            Op::CursorList => read_cursor_summaries(body).map(Self::Cursors),
            Op::BlobHas => read_flag(body).map(Self::Has),
            Op::BlobPut => read_stored(body).map(|(hash, len)| Self::Stored(hash, len)),
            Op::Call => read_called(body).map(Self::Called),
            Op::Stats | Op::Maintain => {
                let mut body = body;
                let text = body.text_of(body.left(), "report")?;
                Ok(Self::Told(text.as_str().to_owned()))
            }
            Op::GoAway
            | Op::Close
            | Op::Deliver
            | Op::Credit
            | Op::Unsubscribe
            | Op::SubEvent
            | Op::BlobChunk => Err(body.wrong("a response to what has none")),
        }
    }

    /// Approximate bytes it occupies as one part of a multi-message answer.
    pub(crate) fn part_bytes(&self) -> usize {
        match self {
            Self::Frames(all) => all.iter().map(|frame| frame.record().len()).sum(),
            Self::Topics(all) => {
                all.iter().map(|one| size_of::<TopicSummary>() + one.topic.as_str().len()).sum()
            }
            Self::Cursors(all) => {
                all.iter().map(|one| size_of::<CursorSummary>() + one.name.as_str().len()).sum()
            }
            _ => SERVER_MESSAGE_BYTES_MAX as usize,
        }
    }

    /// Appends the next part of a multi-message answer.
    pub(crate) fn extend(&mut self, next: Self) -> Result<(), ProtocolError> {
        match (self, next) {
            (Self::Frames(all), Self::Frames(next)) => all.extend(next),
            (Self::Topics(all), Self::Topics(next)) => all.extend(next),
            (Self::Cursors(all), Self::Cursors(next)) => all.extend(next),
            _ => return Err(ProtocolError::Unexpected("a second part of a whole answer")),
        }
        Ok(())
    }
}
