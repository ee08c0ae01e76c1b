//! The server's side of a connection.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use xs_engine::Frame;

use crate::access;
use crate::codec::{Codec, FLAG_MORE, FLAG_PUSH, FLAG_RESPONSE, Header, PREFACE};
use crate::error::{Code, Detail, ProtocolError, Refusal};
use crate::gather::Gather;
use crate::limits::{
    CREDIT_MAX, HELLO_BYTES_MAX, HELLO_WAIT, LINGER, MESSAGE_BYTES_MAX, OUTBOUND_BYTES_MAX,
    PING_AFTER, REQUEST_BYTES_MAX, REQUESTS_MAX, SERVER_MESSAGE_BYTES_MAX, SILENCE_MAX,
    STREAMS_MAX, UPLOAD_WINDOW, WRITE_STALL_MAX,
};
use crate::message::{
    DecodeError, GoAway, HelloReply, HelloRequest, ONE_WAY, Op, PeerLimits, RECORD_VERSION,
    Request, Role, StreamEvent, VERSION, is_one_way, put_frames, put_refusal,
};
use crate::service::StoreIdentity;

/// A request that waits for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) op: Op,
    corr: u32,
    cost: usize,
}

/// Something for the driver to do.
#[derive(Debug)]
pub(crate) enum Action {
    /// Answer with [`ServerSession::welcome`].
    Welcome(Ticket),
    /// Answer the ticket. A request that opens a stream has its number in `sub`.
    Serve { ticket: Ticket, sub: u32, request: Request },
    /// More may be sent on a stream.
    Credit { sub: u32 },
    /// A piece of an upload came.
    Chunk { sub: u32, bytes: Bytes, last: bool },
    /// The client ended a stream, or its time is up: forget it.
    Cancel { sub: u32 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Hello,
    Open,
    /// CLOSE is queued; what comes is thrown away until then.
    Closing(Instant),
}

/// A subscription, call, download or upload.
#[derive(Debug)]
struct Stream {
    /// Bytes that may still be sent on it; of an upload: that may still come.
    credit: i64,
    upload: bool,
    pulse: Option<(Duration, Instant)>,
    deadline: Option<Instant>,
}

/// One connection as the server sees it.
#[derive(Debug)]
pub(crate) struct ServerSession {
    role: Role,
    name: String,
    codec: Codec,
    out: Gather,
    phase: Phase,
    /// Requests without an answer, and their bytes.
    requests: u32,
    request_bytes: usize,
    streams: HashMap<u32, Stream>,
    last_sub: u32,
    drain_until: Option<Instant>,
    began: Instant,
    heard: Instant,
    pinged: bool,
    /// The last time the queue was empty or shrank.
    progress: Instant,
    client_name: String,
}

impl ServerSession {
    pub(crate) fn new(role: Role, name: &str, now: Instant) -> Self {
        let mut out = Gather::default();
        out.put_raw(&PREFACE);
        Self {
            role,
            name: name.to_owned(),
            codec: Codec::new(HELLO_BYTES_MAX),
            out,
            phase: Phase::Hello,
            requests: 0,
            request_bytes: 0,
            streams: HashMap::new(),
            last_sub: 0,
            drain_until: None,
            began: now,
            heard: now,
            pinged: false,
            progress: now,
            client_name: String::new(),
        }
    }

    /// What the client calls itself.
    pub(crate) fn client_name(&self) -> &str {
        &self.client_name
    }

    /// Takes messages off `buf` until one asks for an action. `None`: read more, if
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
            let request = match Request::read(envelope) {
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
        request: Request,
        now: Instant,
    ) -> Result<Option<Action>, ProtocolError> {
        let (sub, corr) = (header.sub, header.corr);
        match (self.phase, &request) {
            (Phase::Hello, Request::Hello(_)) | (Phase::Open, _) => {}
            _ => return Err(ProtocolError::Unexpected("HELLO comes first, and once")),
        }
        match request {
            Request::Hello(_) if self.phase == Phase::Open => {
                return Err(ProtocolError::Unexpected("a second HELLO"));
            }
            Request::Hello(hello) => return Ok(self.hello(corr, cost, &hello, now)),
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
        self.requests += 1;
        self.request_bytes += cost;
        let opens = self.opens(&request, now);
        // A stream's number is spoken for even when the request is refused.
        if opens.is_some() {
            if sub <= self.last_sub {
                return Err(ProtocolError::FlowControl("a stream's number must grow"));
            }
            self.last_sub = sub;
        }
        if let Err(refusal) = self.admit(&request, opens.is_some()) {
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
        hello: &HelloRequest,
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
        self.client_name.clone_from(&hello.name);
        self.codec.set_max(MESSAGE_BYTES_MAX);
        self.phase = Phase::Open;
        Some(Action::Welcome(ticket))
    }

    /// The stream that a request opens.
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

    fn admit(&self, request: &Request, opens: bool) -> Result<(), Refusal> {
        if self.drain_until.is_some() {
            return Err(Refusal::new(Code::Draining, "the server is stopping; connect again"));
        }
        if opens && self.streams.len() >= STREAMS_MAX as usize {
            let text = format!("{STREAMS_MAX} streams are open on this connection; end one first");
            let refusal = Refusal::new(Code::TooManyStreams, text);
            return Err(refusal.with(Detail::Limit(u64::from(STREAMS_MAX))));
        }
        access::check(self.role, request)
    }

    fn credited(&mut self, sub: u32, bytes: u64) -> Result<Option<Action>, ProtocolError> {
        // Credit for a stream that has just ended is no mistake: the messages crossed.
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
        // The rest of an upload that was refused meanwhile is thrown away.
        let Some(stream) = self.streams.get_mut(&sub) else { return Ok(None) };
        stream.credit -= bytes.len() as i64;
        if !stream.upload || stream.credit < 0 {
            return Err(ProtocolError::FlowControl("an upload beyond its window"));
        }
        Ok(Some(Action::Chunk { sub, bytes, last }))
    }

    /// Answers HELLO.
    pub(crate) fn welcome(&mut self, ticket: Ticket, store: StoreIdentity) {
        let reply = HelloReply {
            version: VERSION,
            records: RECORD_VERSION,
            role: self.role,
            features: 0,
            store,
            limits: PeerLimits::OURS,
            name: self.name.clone(),
            ops: Op::table(),
        };
        self.reply(ticket, |out| reply.put(out));
    }

    /// Answers a request.
    pub(crate) fn reply(&mut self, ticket: Ticket, put: impl FnOnce(&mut Gather)) {
        self.settle(ticket);
        self.respond(ticket.op as u8, ticket.corr, 0, false, put);
    }

    /// Answers a part of a request; another part follows.
    pub(crate) fn reply_part(&mut self, ticket: Ticket, put: impl FnOnce(&mut Gather)) {
        self.respond(ticket.op as u8, ticket.corr, 0, true, put);
    }

    /// Answers that it cannot be done.
    pub(crate) fn refuse(&mut self, ticket: Ticket, refusal: &Refusal) {
        self.settle(ticket);
        let code = refusal.code.number();
        self.respond(ticket.op as u8, ticket.corr, code, false, |out| put_refusal(out, refusal));
    }

    fn settle(&mut self, ticket: Ticket) {
        self.requests = self.requests.saturating_sub(1);
        self.request_bytes = self.request_bytes.saturating_sub(ticket.cost);
    }

    fn respond(&mut self, op: u8, corr: u32, code: u16, more: bool, put: impl FnOnce(&mut Gather)) {
        let flags = FLAG_RESPONSE | if more { FLAG_MORE } else { 0 };
        self.send(Header { op, flags, code, corr, sub: 0 }, put);
    }

    fn push(&mut self, op: Op, code: u16, sub: u32, put: impl FnOnce(&mut Gather)) -> usize {
        self.send(Header { op: op as u8, flags: FLAG_PUSH, code, corr: 0, sub }, put)
    }

    fn send(&mut self, header: Header, put: impl FnOnce(&mut Gather)) -> usize {
        if matches!(self.phase, Phase::Closing(_)) {
            return 0;
        }
        self.out.begin(header);
        put(&mut self.out);
        self.out.finish()
    }

    /// Bytes that may be sent on a stream; none when it is gone.
    pub(crate) fn credit(&self, sub: u32) -> i64 {
        self.streams.get(&sub).map_or(0, |stream| stream.credit)
    }

    /// Sends frames of a stream.
    pub(crate) fn deliver(
        &mut self,
        sub: u32,
        frames: &[Frame],
        bodies: &[(u32, Bytes)],
        scanned_to: u64,
    ) {
        let put = |out: &mut Gather| put_frames(out, frames, bodies, scanned_to);
        let cost = self.push(Op::Deliver, 0, sub, put);
        if let Some(stream) = self.streams.get_mut(&sub) {
            stream.credit -= cost as i64;
        }
    }

    /// Says something else on a stream; after the last word the stream is gone.
    pub(crate) fn event(&mut self, sub: u32, event: &StreamEvent) {
        if event.is_last() {
            self.streams.remove(&sub);
        }
        self.push(Op::SubEvent, event.code(), sub, |out| event.put(out));
    }

    /// Sends a piece of a download; after the last the stream is gone.
    pub(crate) fn chunk(&mut self, sub: u32, bytes: &Bytes, last: bool) {
        let flags = FLAG_PUSH | if last { 0 } else { FLAG_MORE };
        let header = Header { op: Op::BlobChunk as u8, flags, code: 0, corr: 0, sub };
        let cost = self.send(header, |out| out.put_shared(bytes));
        if last {
            self.streams.remove(&sub);
        } else if let Some(stream) = self.streams.get_mut(&sub) {
            stream.credit -= cost as i64;
        }
    }

    /// Lets the client send more of an upload.
    pub(crate) fn grant(&mut self, sub: u32, bytes: u64) {
        let Some(stream) = self.streams.get_mut(&sub) else { return };
        stream.credit += bytes as i64;
        self.push(Op::Credit, 0, sub, |out| out.put_u64(bytes));
    }

    /// Forgets a stream whose request was refused or is answered.
    pub(crate) fn forget(&mut self, sub: u32) {
        self.streams.remove(&sub);
    }

    /// Whether more requests may be taken.
    pub(crate) fn wants_input(&self) -> bool {
        self.requests < REQUESTS_MAX && self.request_bytes < REQUEST_BYTES_MAX
    }

    /// Whether streams and reads may queue more.
    pub(crate) fn has_room(&self) -> bool {
        self.out.len() < OUTBOUND_BYTES_MAX && !matches!(self.phase, Phase::Closing(_))
    }

    /// What is to be written.
    pub(crate) const fn output(&self) -> &Gather {
        &self.out
    }

    /// Bytes were written.
    pub(crate) fn wrote(&mut self, count: usize, now: Instant) {
        self.out.advance(count);
        self.progress = now;
    }

    /// Bytes came.
    pub(crate) const fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.pinged = false;
    }

    /// Whether the connection is over: everything was written that had to be.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        match self.phase {
            Phase::Closing(until) => now >= until,
            _ => match self.drain_until {
                Some(until) => now >= until || (self.is_idle() && self.out.is_empty()),
                None => false,
            },
        }
    }

    /// Whether a stream is still open.
    pub(crate) fn has_stream(&self, sub: u32) -> bool {
        self.streams.contains_key(&sub)
    }

    /// Whether nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.requests == 0 && self.streams.is_empty()
    }

    /// Whether CLOSE was said.
    pub(crate) const fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing(_))
    }

    /// Says GOAWAY, once. The driver ends the subscriptions; what else is under way may finish.
    pub(crate) fn go_away(&mut self, drain: Duration, now: Instant) {
        if self.drain_until.is_some() || self.is_closing() {
            return;
        }
        self.drain_until = Some(now + drain);
        let drain_ms = u32::try_from(drain.as_millis()).unwrap_or(u32::MAX);
        let goaway = GoAway { drain_ms, reason: "the server is stopping".to_owned() };
        self.push(Op::GoAway, Code::Draining.number(), 0, |out| goaway.put(out));
    }

    /// Ends the connection because of what the peer did.
    pub(crate) fn fail(&mut self, error: &ProtocolError, now: Instant) {
        let code = match error {
            ProtocolError::Stalled(_) if self.phase == Phase::Hello => Code::HelloTimeout,
            error => error.code(),
        };
        self.close(&Refusal::new(code, error.to_string()), now);
    }

    fn close(&mut self, why: &Refusal, now: Instant) {
        if self.is_closing() {
            return;
        }
        // A peer that has not shown our preface would not understand the message.
        if self.codec.has_preface() {
            self.push(Op::Close, why.code.number(), 0, |out| put_refusal(out, why));
        }
        self.streams.clear();
        self.phase = Phase::Closing(now + LINGER);
    }

    /// When [`tick`](Self::tick) has something to do.
    pub(crate) fn deadline(&self) -> Instant {
        let streams = self.streams.values();
        let streams = streams.flat_map(|stream| {
            [stream.deadline, stream.pulse.map(|(_, next)| next)].into_iter().flatten()
        });
        let own = match self.phase {
            Phase::Hello => self.began + HELLO_WAIT,
            Phase::Closing(until) => return until,
            Phase::Open if self.pinged => self.heard + SILENCE_MAX,
            Phase::Open => self.heard + PING_AFTER,
        };
        let stall = (!self.out.is_empty()).then(|| self.progress + WRITE_STALL_MAX);
        streams.chain(stall).chain(self.drain_until).fold(own, Instant::min)
    }

    /// Does what time brings; the streams whose deadline has passed are returned.
    pub(crate) fn tick(&mut self, now: Instant) -> Vec<u32> {
        match self.phase {
            Phase::Closing(_) => return Vec::new(),
            Phase::Hello if now >= self.began + HELLO_WAIT => {
                self.fail(&ProtocolError::Stalled("no HELLO in time"), now);
            }
            Phase::Open if now >= self.heard + SILENCE_MAX => {
                self.fail(&ProtocolError::Stalled("nothing was heard from it"), now);
            }
            Phase::Open if now >= self.heard + PING_AFTER && !self.pinged => {
                self.pinged = true;
                self.push(Op::Ping, 0, 0, |_| {});
            }
            Phase::Hello | Phase::Open => {}
        }
        if self.out.is_empty() {
            self.progress = now;
        } else if now >= self.progress + WRITE_STALL_MAX {
            self.fail(&ProtocolError::Stalled("it takes no bytes"), now);
        }
        self.pulses(now);
        let late = |stream: &Stream| stream.deadline.is_some_and(|deadline| now >= deadline);
        let late = self.streams.iter().filter(|(_, stream)| late(stream));
        late.map(|(&sub, _)| sub).collect()
    }

    fn pulses(&mut self, now: Instant) {
        let room = self.has_room();
        let mut due = Vec::new();
        for (&sub, stream) in &mut self.streams {
            if let Some((every, next)) = &mut stream.pulse
                && now >= *next
            {
                // Pulses that could not be sent are not made up for.
                *next = now + *every;
                if room {
                    due.push(sub);
                }
            }
        }
        due.into_iter().for_each(|sub| self.event(sub, &StreamEvent::Pulse));
    }
}
