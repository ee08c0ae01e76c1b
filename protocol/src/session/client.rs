//! The client's side of a connection: a state machine without sockets.

use std::collections::HashMap;

use bytes::Bytes;

use crate::codec::{Header, PREFACE};
use crate::error::{ClientError, Code, ProtocolError, Refusal};
use crate::gather::Gather;
use crate::limits::{
    HELLO_BYTES_MAX, PART_BYTES_MIN, PARTS_BYTES_MAX, PONGS_MAX, SERVER_MESSAGE_BYTES_MAX,
};
use crate::message::{
    FrameList, GoAway, HelloRequest, HostClaim, Incoming, Op, OpRange, PeerLimits, RECORD_VERSION,
    Request, Response, StreamEvent, VERSION,
};

/// What a message from the server means.
#[derive(Debug)]
pub(crate) enum ClientEvent {
    /// The answer to a request.
    Answer { corr: u32, result: Result<Response, Refusal> },
    /// Frames of a stream.
    Deliver { sub: u32, list: FrameList, cost: usize },
    /// Something else on a stream.
    Event { sub: u32, event: StreamEvent },
    /// A piece of a download.
    Chunk { sub: u32, bytes: Bytes, last: bool },
    /// More of an upload may be sent.
    Granted { sub: u32, bytes: u64 },
    /// The server is stopping.
    GoAway(GoAway),
}

#[derive(Debug)]
struct Pending {
    op: Op,
    /// The parts received so far.
    parts: Option<Response>,
    /// Bytes they are accounted for.
    bytes: usize,
}

impl Pending {
    const fn of(op: Op) -> Self {
        Self { op, parts: None, bytes: 0 }
    }
}

/// One connection as the client sees it.
#[derive(Debug)]
pub(crate) struct ClientSession {
    out: Gather,
    pending: HashMap<u32, Pending>,
    /// Bytes that the parts of all pending answers are accounted for.
    parts_bytes: usize,
    /// Answers to PINGs that may not be written yet.
    pongs: usize,
    last_corr: u32,
    last_sub: u32,
    /// What the server accepts; unknown until HELLO.
    limits: Option<PeerLimits>,
    /// The ops the server serves; unknown until HELLO.
    ops: Vec<OpRange>,
}

impl ClientSession {
    /// A session whose preface and HELLO are queued; also returns the number of the HELLO.
    pub(crate) fn new(
        name: String,
        token: String,
        host: Option<HostClaim>,
    ) -> Result<(Self, u32), ClientError> {
        let mut out = Gather::default();
        out.put_raw(&PREFACE);
        let mut session = Self {
            out,
            pending: HashMap::new(),
            parts_bytes: 0,
            pongs: 0,
            last_corr: 0,
            last_sub: 0,
            limits: None,
            ops: Vec::new(),
        };
        let hello = HelloRequest {
            versions: (VERSION, VERSION),
            records: (RECORD_VERSION, RECORD_VERSION),
            features: 0,
            message_bytes: SERVER_MESSAGE_BYTES_MAX,
            name,
            token,
            host,
        };
        let corr = session.request(&Request::Hello(hello), 0)?;
        Ok((session, corr))
    }

    /// Sets the server's limits, from its HELLO.
    pub(crate) const fn set_limits(&mut self, limits: PeerLimits) {
        self.limits = Some(limits);
    }

    /// Sets the ops and versions that the server serves, from its HELLO.
    pub(crate) fn set_ops(&mut self, ops: Vec<OpRange>) {
        self.ops = ops;
    }

    /// Refuses locally an op that the server does not serve.
    fn check_served(&self, op: Op) -> Result<(), ClientError> {
        if self.ops.is_empty() {
            return Ok(());
        }
        let refusal = match self.ops.iter().find(|range| range.op == op as u8) {
            Some(range) if range.has(Op::VERSION) => return Ok(()),
            Some(range) => {
                let text = format!(
                    "this client speaks {} in version {}, the server in {} to {}; use a client \
                     of its time",
                    op.name(),
                    Op::VERSION,
                    range.min,
                    range.max
                );
                Refusal::new(Code::OpVersion, text)
            }
            None => {
                let text = format!("the server does not know {}; it is too old", op.name());
                Refusal::new(Code::UnknownOp, text)
            }
        };
        Err(refusal.into())
    }

    /// Whether the server has answered HELLO.
    pub(crate) const fn is_met(&self) -> bool {
        self.limits.is_some()
    }

    /// Requests without an answer.
    pub(crate) fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Allocates the number of a new stream. Numbers only rise: a server closes the connection over
    /// a reused one.
    pub(crate) fn new_sub(&mut self) -> Result<u32, ClientError> {
        self.last_sub = self.last_sub.checked_add(1).ok_or(ClientError::NoStreams)?;
        Ok(self.last_sub)
    }

    /// Queues a request; returns its number.
    pub(crate) fn request(&mut self, request: &Request, sub: u32) -> Result<u32, ClientError> {
        self.check_served(request.op())?;
        let (corr, max) = (self.new_corr(), self.max());
        request.put(corr, sub, max, &mut self.out).map_err(|size| too_large(size, max))?;
        self.pending.insert(corr, Pending::of(request.op()));
        Ok(corr)
    }

    /// Queues a request whose body `put` writes, so that long ones need not be copied; returns its
    /// number.
    pub(crate) fn borrowed(
        &mut self,
        op: Op,
        put: impl FnOnce(&mut Gather),
    ) -> Result<u32, ClientError> {
        self.check_served(op)?;
        let (corr, max) = (self.new_corr(), self.max());
        Request::put_borrowed(op, corr, max, &mut self.out, put)
            .map_err(|size| too_large(size, max))?;
        self.pending.insert(corr, Pending::of(op));
        Ok(corr)
    }

    /// Queues a message that has no answer.
    pub(crate) fn tell(&mut self, message: &Request, sub: u32) -> Result<(), ClientError> {
        let max = self.max();
        message.put(0, sub, max, &mut self.out).map_err(|size| too_large(size, max))
    }

    fn max(&self) -> u32 {
        self.limits.map_or(HELLO_BYTES_MAX, |limits| limits.message_bytes)
    }

    fn new_corr(&mut self) -> u32 {
        loop {
            self.last_corr = self.last_corr.wrapping_add(1).max(1);
            if !self.pending.contains_key(&self.last_corr) {
                return self.last_corr;
            }
        }
    }

    /// Handles a message from the server. `None`: nothing for a caller.
    pub(crate) fn accept(
        &mut self,
        incoming: Incoming,
    ) -> Result<Option<ClientEvent>, ClientError> {
        Ok(Some(match incoming {
            Incoming::Response { header, result } => return Ok(self.answer(header, result)?),
            Incoming::Deliver { sub, list, cost } => ClientEvent::Deliver { sub, list, cost },
            Incoming::Event { sub, event } => ClientEvent::Event { sub, event },
            Incoming::Chunk { sub, bytes, last } => ClientEvent::Chunk { sub, bytes, last },
            Incoming::Credit { sub, bytes } => ClientEvent::Granted { sub, bytes },
            Incoming::Ping(bytes) => {
                self.pongs += 1;
                if self.pongs > PONGS_MAX {
                    return Err(
                        ProtocolError::FlowControl("PINGs without taking the answers").into()
                    );
                }
                self.tell(&Request::Pong(bytes), 0)?;
                return Ok(None);
            }
            Incoming::GoAway(goaway) => ClientEvent::GoAway(goaway),
            Incoming::Close(refusal) => return Err(ClientError::Refused(refusal)),
        }))
    }

    fn answer(
        &mut self,
        header: Header,
        result: Result<Response, Refusal>,
    ) -> Result<Option<ClientEvent>, ProtocolError> {
        let corr = header.corr;
        let Some(pending) = self.pending.get_mut(&corr) else {
            return Err(ProtocolError::Unexpected("an answer to nothing"));
        };
        if pending.op as u8 != header.op {
            return Err(ProtocolError::Unexpected("an answer to something else"));
        }
        let bytes = result.as_ref().map_or(0, Response::part_bytes).max(PART_BYTES_MIN);
        let result = match (pending.parts.take(), result) {
            (Some(mut all), Ok(part)) => all.extend(part).map(|()| Ok(all))?,
            (_, result) => result,
        };
        match result {
            Ok(parts) if header.has_more() => {
                pending.bytes += bytes;
                self.parts_bytes += bytes;
                if self.parts_bytes > PARTS_BYTES_MAX {
                    return Err(ProtocolError::FlowControl("an answer that does not end"));
                }
                pending.parts = Some(parts);
                Ok(None)
            }
            result => {
                self.parts_bytes -= pending.bytes;
                self.pending.remove(&corr);
                Ok(Some(ClientEvent::Answer { corr, result }))
            }
        }
    }

    /// The queued bytes, when nothing else will be queued.
    pub(crate) fn into_output(mut self) -> Bytes {
        self.out.take_all()
    }

    /// The queued bytes.
    pub(crate) const fn output(&self) -> &Gather {
        &self.out
    }

    /// Records that `count` bytes were written.
    pub(crate) fn wrote(&mut self, count: usize) {
        self.out.advance(count);
        if self.out.is_empty() {
            self.pongs = 0;
        }
    }
}

const fn too_large(size: u64, max: u32) -> ClientError {
    ClientError::OverLimit {
        what: "a request",
        size,
        max: max as u64,
        advice: "put large bodies as blobs first, or append in smaller batches",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{FLAG_MORE, FLAG_RESPONSE};

    #[test]
    fn the_numbers_of_streams_end() {
        let (mut session, _) = ClientSession::new(String::new(), String::new(), None).unwrap();
        session.last_sub = u32::MAX - 1;
        assert_eq!(session.new_sub().unwrap(), u32::MAX);
        assert!(matches!(session.new_sub(), Err(ClientError::NoStreams)));
    }

    fn is_breach(result: Result<Option<ClientEvent>, ClientError>) -> bool {
        matches!(result, Err(ClientError::Protocol(ProtocolError::FlowControl(_))))
    }

    #[test]
    fn answers_to_pings_wait_up_to_a_number() {
        let (mut session, _) = ClientSession::new(String::new(), String::new(), None).unwrap();
        let ping = || Incoming::Ping(Bytes::from_static(&[7; 64]));
        for _ in 0..2 {
            for _ in 0..PONGS_MAX {
                assert!(session.accept(ping()).unwrap().is_none());
            }
            session.wrote(session.output().len());
        }
        for _ in 0..PONGS_MAX {
            assert!(session.accept(ping()).unwrap().is_none());
        }
        assert!(is_breach(session.accept(ping())));
    }

    #[test]
    fn answers_that_are_not_whole_wait_up_to_a_number_of_bytes() {
        let (mut session, _) = ClientSession::new(String::new(), String::new(), None).unwrap();
        let corrs = [(); 2].map(|()| session.request(&Request::CursorList, 0).unwrap());
        let part = |corr: u32, flags: u8| {
            let header = Header { op: Op::CursorList as u8, flags, code: 0, corr, sub: 0 };
            Incoming::Response { header, result: Ok(Response::Cursors(Vec::new())) }
        };
        // Parts of complete answers are no longer accounted for.
        for corr in corrs {
            for _ in 0..PARTS_BYTES_MAX / PART_BYTES_MIN {
                assert!(session.accept(part(corr, FLAG_RESPONSE | FLAG_MORE)).unwrap().is_none());
            }
            if corr == corrs[0] {
                assert!(session.accept(part(corr, FLAG_RESPONSE)).unwrap().is_some());
            }
        }
        assert!(is_breach(session.accept(part(corrs[1], FLAG_RESPONSE | FLAG_MORE))));
    }
}
