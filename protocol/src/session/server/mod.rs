//! The server's side of a connection: a state machine without sockets.

mod clock;
mod send;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use xs_engine::{BlobHash, CursorName, Frame};

use crate::access;
use crate::auth::{Access, KnownBlobs, Secret};
use crate::codec::{Codec, Header, PREFACE};
use crate::error::{Code, Detail, ProtocolError, Refusal};
use crate::gather::Gather;
use crate::limits::{
    CREDIT_MAX, HELLO_BYTES_MAX, HOST_STREAMS_MAX, OUTBOUND_BYTES_MAX, REQUEST_BYTES_MAX,
    REQUESTS_MAX, SERVER_MESSAGE_BYTES_MAX, STREAMS_MAX, UNREAD_BYTES_MAX, UPLOAD_WINDOW,
};
use crate::message::{
    DecodeError, HelloRequest, HostClaim, ONE_WAY, Op, OpRange, Request, Role, is_one_way,
    put_refusal,
};
use crate::server::CLASSES;

/// An unanswered request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) op: Op,
    corr: u32,
    cost: usize,
}

#[cfg(test)]
impl Ticket {
    /// A ticket without a request.
    pub(crate) const fn of(op: Op) -> Self {
        Self { op, corr: 0, cost: 0 }
    }
}

/// Something for the driver to do.
#[derive(Debug)]
pub(crate) enum Action {
    /// Answer with [`ServerSession::welcome`], or, for a host that is refused, with
    /// [`ServerSession::refuse_hello`].
    Welcome { ticket: Ticket, host: Option<HostClaim> },
    /// A client presents its token, or none: call [`ServerSession::let_in`] and welcome it, or
    /// [`ServerSession::refuse_hello_at`]. No other message is read until then.
    Admit { ticket: Ticket, token: Secret, host: Option<HostClaim> },
    /// Answer the ticket. `sub` is the number of the stream, if the request opens one.
    Serve { ticket: Ticket, sub: u32, request: Request },
    /// More may be sent on a stream.
    Credit { sub: u32 },
    /// A piece of an upload.
    Chunk { sub: u32, bytes: Bytes, last: bool },
    /// The client ended a stream, or its deadline has passed: forget it.
    Cancel { sub: u32 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Hello,
    /// HELLO was received and is not answered yet.
    Greeting,
    Open,
    /// Nothing more is sent; input is discarded until this instant.
    Closing(Instant),
}

/// A subscription, call, download or upload.
#[derive(Debug)]
struct Stream {
    /// Bytes that may still be sent on it; for an upload, bytes that may still be received.
    credit: i64,
    upload: bool,
    pulse: Option<(Duration, Instant)>,
    deadline: Option<Instant>,
}

/// One connection as the server sees it.
#[derive(Debug)]
pub(crate) struct ServerSession {
    access: Access,
    /// Whether HELLO must carry a token.
    asks: bool,
    /// When to refuse a client's token, and how.
    hello_refusal: Option<(Instant, Ticket, Refusal)>,
    /// The blobs that a connection limited to some topics may use.
    blobs: Option<KnownBlobs>,
    name: String,
    codec: Codec,
    out: Gather,
    /// Bytes of downloads that are being read and will be queued.
    coming: usize,
    phase: Phase,
    /// Unanswered requests, and their bytes.
    requests: u32,
    request_bytes: usize,
    /// Unanswered uploads, which count as streams.
    uploads: u32,
    streams: HashMap<u32, Stream>,
    last_sub: u32,
    drain_until: Option<Instant>,
    began: Instant,
    heard: Instant,
    pinged: bool,
    /// Since when the peer accepts no queued bytes.
    blocked: Option<Instant>,
    client_name: String,
    /// The ops and versions that are served.
    ops: &'static [OpRange],
    /// Refusals not yet counted in the metrics, by class.
    refused: Option<[u32; CLASSES]>,
}

impl ServerSession {
    pub(crate) fn new(role: Role, name: &str, now: Instant) -> Self {
        let mut out = Gather::default();
        out.put_raw(&PREFACE);
        Self {
            access: Access::of(role),
            asks: false,
            hello_refusal: None,
            blobs: None,
            name: name.to_owned(),
            codec: Codec::new(HELLO_BYTES_MAX),
            out,
            coming: 0,
            phase: Phase::Hello,
            requests: 0,
            uploads: 0,
            request_bytes: 0,
            streams: HashMap::new(),
            last_sub: 0,
            drain_until: None,
            began: now,
            heard: now,
            pinged: false,
            blocked: None,
            client_name: String::new(),
            ops: Op::RANGES,
            refused: None,
        }
    }

    /// The session of a host of one processor.
    pub(crate) fn alone(processor: &Arc<str>, name: &str, now: Instant) -> Self {
        Self { access: Access::alone(processor), ..Self::new(Role::Host, name, now) }
    }

    /// A session whose client must show a token.
    pub(crate) fn guarded(name: &str, now: Instant) -> Self {
        Self { asks: true, ..Self::new(Role::Read, name, now) }
    }

    /// Makes the session serve other versions than this build.
    #[cfg(test)]
    pub(crate) fn serve_versions(&mut self, ops: &'static [OpRange]) {
        self.ops = ops;
    }

    /// The name that the client gave.
    pub(crate) fn client_name(&self) -> &str {
        &self.client_name
    }

    /// Reads messages from `buf` until one requires an action. `None`: read more, if
    /// [`wants_input`](Self::wants_input).
    pub(crate) fn receive(&mut self, buf: &mut BytesMut, now: Instant) -> Option<Action> {
        loop {
            if !self.wants_input() {
                return None;
            }
            if matches!(self.phase, Phase::Closing(_)) {
                buf.clear();
                return None;
            }
            let envelope = match self.codec.next(buf) {
                Ok(Some(envelope)) => envelope,
                Ok(None) => return None,
                Err(error) => {
                    self.fail(&error, now);
                    continue;
                }
            };
            let (header, cost) = (envelope.header, envelope.body.len());
            if self.phase == Phase::Hello && header.op != Op::Hello as u8 {
                self.fail(&ProtocolError::Hello("HELLO comes first"), now);
                continue;
            }
            let request = match Request::read(envelope, self.ops) {
                Ok(request) => request,
                Err(DecodeError::Refused(_)) if is_one_way(header.op) => {
                    self.fail(&ONE_WAY, now);
                    continue;
                }
                Err(DecodeError::Refused(refusal)) => {
                    self.respond(header.op, header.corr, refusal.code.number(), false, |out| {
                        put_refusal(out, &refusal);
                    });
                    continue;
                }
                Err(DecodeError::Protocol(error)) => {
                    self.fail(&error, now);
                    continue;
                }
            };
            match self.accept(header, cost, request, now) {
                Ok(Some(action)) => return Some(action),
                Ok(None) => {}
                Err(error) => self.fail(&error, now),
            }
        }
    }

    fn accept(
        &mut self,
        header: Header,
        cost: usize,
        mut request: Request,
        now: Instant,
    ) -> Result<Option<Action>, ProtocolError> {
        let (sub, corr) = (header.sub, header.corr);
        match request {
            Request::Hello(_) if self.phase == Phase::Open => {
                return Err(ProtocolError::Hello("a second HELLO"));
            }
            Request::Hello(hello) => return Ok(self.hello(corr, cost, hello, now)),
            Request::Ping(bytes) => {
                self.respond(header.op, corr, 0, false, |out| out.put_slice(&bytes));
                return Ok(None);
            }
            Request::Pong(_) => return Ok(None),
            Request::Credit(bytes) => return self.credited(sub, bytes),
            Request::Unsubscribe => {
                let known = self.streams.remove(&sub).is_some();
                return Ok(known.then_some(Action::Cancel { sub }));
            }
            Request::BlobChunk { bytes, last } => return self.chunk_came(sub, bytes, last),
            _ => {}
        }
        let op = request.op();
        let ticket = Ticket { op, corr, cost };
        // An upload counts as a stream and is limited like one: it ends only with input that was
        // not read yet.
        *self.count(op) += 1;
        self.request_bytes += cost;
        let opens = self.opens(&request, now);
        // A stream's number is used up even when the request is refused.
        if opens.is_some() {
            if sub <= self.last_sub {
                return Err(ProtocolError::FlowControl("a stream's number must grow"));
            }
            self.last_sub = sub;
        }
        if let Err(refusal) = self.admit(&mut request, opens.is_some()) {
            self.refuse(ticket, &refusal);
            return Ok(None);
        }
        if let Some(stream) = opens {
            self.streams.insert(sub, stream);
        }
        Ok(Some(Action::Serve { ticket, sub, request }))
    }

    fn hello(
        &mut self,
        corr: u32,
        cost: usize,
        hello: HelloRequest,
        now: Instant,
    ) -> Option<Action> {
        let ticket = Ticket { op: Op::Hello, corr, cost };
        self.requests += 1;
        self.request_bytes += cost;
        let mut checked = hello.check();
        if hello.message_bytes < SERVER_MESSAGE_BYTES_MAX {
            let text = format!("a client must accept {SERVER_MESSAGE_BYTES_MAX} byte messages");
            checked = Err(Refusal::new(Code::InvalidValue, text));
        }
        if let Err(refusal) = checked {
            self.refuse(ticket, &refusal);
            self.close(&refusal, now);
            return None;
        }
        self.client_name = hello.name;
        self.phase = Phase::Greeting;
        Some(match self.asks {
            true => Action::Admit { ticket, token: Secret::shown(hello.token), host: hello.host },
            false => Action::Welcome { ticket, host: hello.host },
        })
    }

    /// The stream that a request opens, if any.
    fn opens(&self, request: &Request, now: Instant) -> Option<Stream> {
        let stream = |credit: u32| Stream {
            credit: i64::from(credit),
            upload: false,
            pulse: None,
            deadline: None,
        };
        match request {
            Request::Subscribe(subscribe) => {
                let pulse = subscribe.how.pulse.map(|every| (every, now + every));
                Some(Stream { pulse, ..stream(subscribe.how.credit) })
            }
            Request::Call { credit, call } => {
                let deadline = call.deadline.map(|time| now + time);
                Some(Stream { deadline, ..stream(*credit) })
            }
            Request::BlobGet(get) => Some(stream(get.credit)),
            Request::BlobPut => Some(Stream { upload: true, ..stream(UPLOAD_WINDOW) }),
            _ => None,
        }
    }

    /// Refuses new requests while the connection drains.
    pub(crate) fn check_open(&self) -> Result<(), Refusal> {
        match self.drain_until {
            None => Ok(()),
            Some(_) => Err(Refusal::new(Code::Draining, "the server is stopping; connect again")),
        }
    }

    /// The counter of unanswered requests of this kind.
    const fn count(&mut self, op: Op) -> &mut u32 {
        if matches!(op, Op::BlobPut) { &mut self.uploads } else { &mut self.requests }
    }

    /// Maximum number of open streams.
    const fn streams_max(&self) -> u32 {
        match self.access.role {
            Role::Host if self.access.alone.is_none() => HOST_STREAMS_MAX,
            Role::Host | Role::Read | Role::Append | Role::Admin => STREAMS_MAX,
        }
    }

    fn admit(&self, request: &mut Request, opens: bool) -> Result<(), Refusal> {
        self.check_open()?;
        let max = self.streams_max();
        if opens && self.streams.len() >= max as usize {
            let text = format!("{max} streams are open on this connection; end one first");
            let refusal = Refusal::new(Code::TooManyStreams, text);
            return Err(refusal.with(Detail::Limit(u64::from(max))));
        }
        access::check(&self.access, self.blobs.as_ref(), request)
    }

    fn credited(&mut self, sub: u32, bytes: u64) -> Result<Option<Action>, ProtocolError> {
        // Credit for a stream that has just ended is no error: the messages crossed.
        let Some(stream) = self.streams.get_mut(&sub) else { return Ok(None) };
        let total = i64::try_from(bytes).ok().and_then(|bytes| stream.credit.checked_add(bytes));
        match total {
            Some(total) if !stream.upload && total <= CREDIT_MAX as i64 => stream.credit = total,
            _ => return Err(ProtocolError::FlowControl("credit beyond the limit")),
        }
        Ok(Some(Action::Credit { sub }))
    }

    fn chunk_came(
        &mut self,
        sub: u32,
        bytes: Bytes,
        last: bool,
    ) -> Result<Option<Action>, ProtocolError> {
        // The rest of an upload that was refused meanwhile is discarded.
        let Some(stream) = self.streams.get_mut(&sub) else { return Ok(None) };
        stream.credit -= bytes.len() as i64;
        if !stream.upload || stream.credit < 0 {
            return Err(ProtocolError::FlowControl("an upload beyond its window"));
        }
        if bytes.is_empty() && !last {
            // The window counts bytes, so empty pieces would be unbounded.
            return Err(ProtocolError::FlowControl("a piece of an upload without bytes"));
        }
        Ok(Some(Action::Chunk { sub, bytes, last }))
    }

    /// Whether more requests may be taken.
    pub(crate) fn wants_input(&self) -> bool {
        self.phase != Phase::Greeting
            && self.requests < REQUESTS_MAX
            && self.request_bytes < REQUEST_BYTES_MAX
            && (self.is_closing() || self.out.len() < UNREAD_BYTES_MAX)
    }

    /// Refusals since the last call, by class.
    pub(crate) const fn take_refused(&mut self) -> Option<[u32; CLASSES]> {
        self.refused.take()
    }

    /// What the client may do.
    pub(crate) const fn access(&self) -> &Access {
        &self.access
    }

    /// Whether the client may see a cursor.
    pub(crate) fn sees_cursor(&self, name: &CursorName) -> bool {
        access::sees_cursor(&self.access, name)
    }

    /// Whether the client may use a blob that it names by its hash.
    pub(crate) fn may_use(&self, hash: &BlobHash) -> bool {
        access::check_blob(self.blobs.as_ref(), hash).is_ok()
    }

    /// Lets the client use a blob that it has uploaded.
    pub(crate) fn allow_blob(&mut self, hash: BlobHash) {
        if let Some(blobs) = &mut self.blobs {
            blobs.add(hash);
        }
    }

    /// Records that frames are sent to the client: it may use their bodies.
    pub(crate) fn shown(&mut self, frames: &[Frame]) {
        if let Some(blobs) = &mut self.blobs {
            frames.iter().filter_map(Frame::hash).for_each(|hash| blobs.add(hash));
        }
    }

    /// Whether streams and reads may queue more.
    pub(crate) fn has_room(&self) -> bool {
        self.out.len() + self.coming < OUTBOUND_BYTES_MAX
            && !matches!(self.phase, Phase::Closing(_))
    }

    /// Reserves room for the bytes of a download that are being read.
    pub(crate) const fn reserve(&mut self, bytes: usize) {
        self.coming += bytes;
    }

    /// Releases reserved room, when the bytes were queued or will not be.
    pub(crate) const fn release(&mut self, bytes: usize) {
        self.coming = self.coming.saturating_sub(bytes);
    }

    /// The queued bytes.
    pub(crate) const fn output(&self) -> &Gather {
        &self.out
    }

    /// Whether a stream is still open.
    pub(crate) fn has_stream(&self, sub: u32) -> bool {
        self.streams.contains_key(&sub)
    }

    /// Unanswered requests, and open streams.
    pub(crate) fn under_way(&self) -> (u64, u64) {
        (u64::from(self.requests + self.uploads), self.streams.len() as u64)
    }

    /// Whether no request is unanswered and no stream is open.
    pub(crate) fn is_idle(&self) -> bool {
        self.requests == 0 && self.uploads == 0 && self.streams.is_empty()
    }

    /// Whether HELLO is done and the end has not begun.
    pub(crate) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether the connection is closing: nothing more is sent.
    pub(crate) const fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing(_))
    }
}
