//! Messages the server sends: answers, frames, events. Credit and limits are accounted here.

use std::time::Instant;

use bytes::Bytes;
use xs_engine::{Frame, Topic};

use super::{Phase, ServerSession, Ticket};
use crate::auth::{Access, KnownBlobs};
use crate::codec::{FLAG_MORE, FLAG_PUSH, FLAG_RESPONSE, Header};
use crate::error::Refusal;
use crate::gather::Gather;
use crate::limits::MESSAGE_BYTES_MAX;
use crate::message::{
    HelloReply, Op, PeerLimits, RECORD_VERSION, Role, StreamEvent, VERSION, put_frames, put_refusal,
};
use crate::server::CLASSES;
use crate::service::StoreIdentity;

impl ServerSession {
    /// Sets what the client may do, before it is welcomed.
    pub(crate) fn let_in(&mut self, access: Access) {
        self.blobs = (!access.read.is_whole()).then(KnownBlobs::default);
        self.access = access;
    }

    /// Gives a client that may be the Host its rights: for one processor, or for all.
    pub(crate) fn let_host(&mut self, alone: Option<&Topic>) {
        let access = match alone {
            Some(name) => Access::alone(&name.as_str().into()),
            None => Access::of(Role::Host),
        };
        let token = self.access.token;
        self.let_in(Access { token, ..access });
    }

    /// Answers HELLO with a refusal and closes the connection.
    pub(crate) fn refuse_hello(&mut self, ticket: Ticket, refusal: &Refusal, now: Instant) {
        self.refuse(ticket, refusal);
        self.close(refusal, now);
    }

    /// Answers HELLO.
    pub(crate) fn welcome(&mut self, ticket: Ticket, store: StoreIdentity) {
        self.codec.set_max(MESSAGE_BYTES_MAX);
        self.phase = Phase::Open;
        let reply = HelloReply {
            version: VERSION,
            records: RECORD_VERSION,
            role: self.access.role,
            features: 0,
            store,
            limits: PeerLimits { streams: self.streams_max(), ..PeerLimits::OURS },
            name: self.name.clone(),
            ops: self.ops.to_vec(),
        };
        self.reply(ticket, |out| reply.put(out));
    }

    /// Answers a request.
    pub(crate) fn reply(&mut self, ticket: Ticket, put: impl FnOnce(&mut Gather)) {
        self.settle(ticket);
        self.respond(ticket.op as u8, ticket.corr, 0, false, put);
    }

    /// Sends one part of an answer; another part follows.
    pub(crate) fn reply_part(&mut self, ticket: Ticket, put: impl FnOnce(&mut Gather)) {
        self.respond(ticket.op as u8, ticket.corr, 0, true, put);
    }

    /// Answers a request with a refusal.
    pub(crate) fn refuse(&mut self, ticket: Ticket, refusal: &Refusal) {
        self.settle(ticket);
        let code = refusal.code.number();
        self.respond(ticket.op as u8, ticket.corr, code, false, |out| put_refusal(out, refusal));
    }

    pub(super) fn settle(&mut self, ticket: Ticket) {
        let count = self.count(ticket.op);
        *count = count.saturating_sub(1);
        self.request_bytes = self.request_bytes.saturating_sub(ticket.cost);
    }

    pub(super) fn respond(
        &mut self,
        op: u8,
        corr: u32,
        code: u16,
        more: bool,
        put: impl FnOnce(&mut Gather),
    ) {
        if code != 0 {
            let class = usize::from(code / 100).min(CLASSES - 1);
            self.refused.get_or_insert_default()[class] += 1;
        }
        let flags = FLAG_RESPONSE | if more { FLAG_MORE } else { 0 };
        self.send(Header { op, flags, code, corr, sub: 0 }, put);
    }

    pub(super) fn push(
        &mut self,
        op: Op,
        code: u16,
        sub: u32,
        put: impl FnOnce(&mut Gather),
    ) -> usize {
        self.send(Header { op: op as u8, flags: FLAG_PUSH, code, corr: 0, sub }, put)
    }

    pub(super) fn send(&mut self, header: Header, put: impl FnOnce(&mut Gather)) -> usize {
        if matches!(self.phase, Phase::Closing(_)) {
            return 0;
        }
        self.out.begin(header);
        put(&mut self.out);
        self.out.finish()
    }

    /// Bytes that may be sent on a stream; 0 when it was removed.
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
        self.shown(frames);
        let put = |out: &mut Gather| put_frames(out, frames, bodies, scanned_to);
        let cost = self.push(Op::Deliver, 0, sub, put);
        if let Some(stream) = self.streams.get_mut(&sub) {
            stream.credit -= cost as i64;
        }
    }

    /// Sends an event on a stream; the last event removes the stream.
    pub(crate) fn event(&mut self, sub: u32, event: &StreamEvent) {
        if event.is_last() {
            self.streams.remove(&sub);
        }
        self.push(Op::SubEvent, event.code(), sub, |out| event.put(out));
    }

    /// Sends a piece of a download; the last removes the stream.
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

    /// Forgets all streams.
    pub(crate) fn forget_all(&mut self) {
        self.streams.clear();
    }

    /// Forgets a stream whose request was refused or is answered.
    pub(crate) fn forget(&mut self, sub: u32) {
        self.streams.remove(&sub);
    }
}
