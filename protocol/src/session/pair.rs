//! Both sides of a connection in one thread, with a clock that moves only when told to and bytes
//! that arrive in pieces of any size.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use xs_engine::{Appended, Frame, FrameId, NewFrame, ReadOptions, Stamp, StoreUuid, Topic};

use super::*;
use crate::codec::Codec;
use crate::error::{ClientError, Code, ProtocolError, Refusal};
use crate::limits::{
    CHUNK_BYTES_MAX, HELLO_WAIT, LINGER, OUTBOUND_BYTES_MAX, PING_AFTER, PING_BYTES_MAX,
    REQUESTS_MAX, SILENCE_MAX, UNREAD_BYTES_MAX, UPLOAD_WINDOW, WRITE_STALL_MAX,
};
use crate::message::{
    AppendRequest, BlobGetRequest, CallRequest, Incoming, Op, OpRange, PeerLimits, Request,
    Response, Role, StreamEvent, SubscribeOptions, SubscribeRequest, put_appended,
};
use crate::service::StoreIdentity;

struct Pair {
    server: ServerSession,
    client: ClientSession,
    codec: Codec,
    to_server: BytesMut,
    to_client: BytesMut,
    now: Instant,
    /// Bytes that arrive at a time.
    step: usize,
}

impl Pair {
    /// Two sides before HELLO.
    fn new(step: usize) -> Self {
        let now = Instant::now();
        let (client, corr) = ClientSession::new("test".to_owned(), String::new(), None).unwrap();
        assert_eq!(corr, 1);
        Self {
            server: ServerSession::new(Role::Admin, "server", now),
            client,
            codec: Codec::new(u32::MAX),
            to_server: BytesMut::new(),
            to_client: BytesMut::new(),
            now,
            step,
        }
    }

    /// Two sides after HELLO.
    fn met(step: usize) -> Self {
        let mut pair = Self::new(step);
        let actions = pair.move_to_server();
        let [Action::Welcome { ticket, .. }] = actions[..] else { panic!("{actions:?}") };
        pair.server.welcome(
            ticket,
            StoreIdentity { uuid: StoreUuid::from_bytes([1; 16]), epoch: 2, head: 3 },
        );
        let events = pair.move_to_client().unwrap();
        let [ClientEvent::Answer { corr: 1, result: Ok(Response::Hello(hello)) }] = &events[..]
        else {
            panic!("{events:?}")
        };
        assert_eq!((hello.store.head, hello.role), (3, Role::Admin));
        pair.client.set_limits(hello.limits);
        pair
    }

    /// Moves the bytes that the client has queued.
    fn move_to_server(&mut self) -> Vec<Action> {
        let bytes = flat(self.client.output());
        self.client.wrote(bytes.len());
        let mut actions = Vec::new();
        for piece in bytes.chunks(self.step) {
            self.to_server.extend_from_slice(piece);
            self.server.heard(self.now);
            while let Some(action) = self.server.receive(&mut self.to_server, self.now) {
                actions.push(action);
            }
        }
        actions
    }

    /// Moves the bytes that the server has queued.
    fn move_to_client(&mut self) -> Result<Vec<ClientEvent>, ClientError> {
        let bytes = flat(self.server.output());
        self.server.wrote(bytes.len());
        let mut events = Vec::new();
        for piece in bytes.chunks(self.step) {
            self.to_client.extend_from_slice(piece);
            while let Some(envelope) = self.codec.next(&mut self.to_client)? {
                events.extend(self.client.accept(Incoming::read(envelope)?)?);
            }
        }
        Ok(events)
    }

    /// Makes a request and moves it to the server; returns its ticket and the number of its stream.
    fn ask(&mut self, request: &Request) -> (Ticket, u32) {
        let sub = self.client.new_sub().unwrap();
        self.client.request(request, sub).unwrap();
        let mut actions = self.move_to_server();
        match actions.pop() {
            Some(Action::Serve { ticket, sub, .. }) if actions.is_empty() => (ticket, sub),
            other => panic!("{other:?} after {actions:?}"),
        }
    }

    fn subscribe(&mut self, credit: u32, pulse: Option<Duration>) -> u32 {
        let how = SubscribeOptions { credit, pulse, ..SubscribeOptions::default() };
        let options = ReadOptions { follow: true, ..ReadOptions::default() };
        let (ticket, sub) = self.ask(&Request::Subscribe(SubscribeRequest { options, how }));
        self.server.reply(ticket, |_| {});
        assert_eq!(self.move_to_client().unwrap().len(), 1);
        sub
    }

    fn pass(&mut self, time: Duration) -> Vec<u32> {
        self.now += time;
        self.server.tick(self.now)
    }
}

/// The queued bytes as one piece.
fn flat(out: &crate::Gather) -> Bytes {
    let mut slices = [std::io::IoSlice::new(&[]); crate::gather::SLICES_MAX];
    let used = out.slices(&mut slices);
    slices[..used].iter().flat_map(|slice| slice.to_vec()).collect()
}

fn frame(offset: u64) -> Frame {
    let new = NewFrame::new(Topic::parse("a").unwrap());
    Frame::assemble(&new, FrameId::first_of_ms(offset), Some(offset), None).unwrap()
}

fn one() -> Request {
    Request::Append(AppendRequest::frames(vec![NewFrame::new(Topic::parse("a").unwrap())]))
}

#[test]
fn a_conversation_is_the_same_in_pieces_of_any_size() {
    for step in [1, 2, 7, 16, 4096] {
        let mut pair = Pair::met(step);
        let tickets: Vec<_> = (0..3).map(|_| pair.ask(&one()).0).collect();
        // Answers may come in any order.
        for (n, ticket) in tickets.into_iter().enumerate().rev() {
            let frames = vec![Stamp { id: FrameId::MAX, offset: Some(n as u64) }];
            let reply = Appended { frames, durable: true, head: 3, ..Appended::default() };
            pair.server.reply(ticket, |out| put_appended(out, &reply));
        }
        let events = pair.move_to_client().unwrap();
        let offsets: Vec<_> = events
            .iter()
            .map(|event| match event {
                ClientEvent::Answer { corr, result: Ok(Response::Appended(appended)) } => {
                    (*corr, appended.frames[0].offset)
                }
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(offsets, [(4, Some(2)), (3, Some(1)), (2, Some(0))]);
        assert_eq!(pair.client.in_flight(), 0);
    }
}

#[test]
fn credit_goes_below_zero_by_one_message_and_comes_back() {
    let mut pair = Pair::met(64);
    let sub = pair.subscribe(100, None);
    let mut offset = 0;
    while pair.server.credit(sub) > 0 {
        pair.server.deliver(sub, &[frame(offset)], &[], offset + 1);
        offset += 1;
    }
    let events = pair.move_to_client().unwrap();
    let mut costs = 0;
    for event in &events {
        let ClientEvent::Deliver { list, cost, .. } = event else { panic!("{event:?}") };
        assert_eq!(list.frames.len(), 1);
        costs += cost;
    }
    assert_eq!(pair.server.credit(sub), 100 - costs as i64);
    assert!(events.len() == offset as usize && costs > 100);
    pair.client.tell(&Request::Credit(costs as u64), sub).unwrap();
    assert!(matches!(pair.move_to_server()[..], [Action::Credit { .. }]));
    assert_eq!(pair.server.credit(sub), 100);
    // Messages that crossed the end of a stream are ignored.
    pair.server.event(sub, &StreamEvent::Ended { scanned_to: offset });
    pair.client.tell(&Request::Credit(5), sub).unwrap();
    pair.client.tell(&Request::Unsubscribe, sub).unwrap();
    assert!(pair.move_to_server().is_empty() && !pair.server.is_closing());
}

#[test]
fn the_window_stops_the_server_taking_requests() {
    let mut pair = Pair::met(1 << 20);
    for _ in 0..=REQUESTS_MAX {
        pair.client.request(&one(), 0).unwrap();
    }
    let actions = pair.move_to_server();
    assert_eq!(actions.len(), REQUESTS_MAX as usize);
    assert!(!pair.server.wants_input());
    let Action::Serve { ticket, .. } = actions[0] else { panic!("not a request") };
    pair.server.refuse(ticket, &Refusal::new(Code::StorageFull, "full"));
    assert!(pair.server.wants_input());
    let action = pair.server.receive(&mut pair.to_server, pair.now);
    assert!(matches!(action, Some(Action::Serve { .. })));
}

#[test]
fn uploads_keep_to_their_window() {
    let mut pair = Pair::met(1 << 16);
    let (_, sub) = pair.ask(&Request::BlobPut);
    let chunk = Request::BlobChunk { bytes: Bytes::from(vec![0; CHUNK_BYTES_MAX]), last: false };
    let chunks = UPLOAD_WINDOW as usize / CHUNK_BYTES_MAX;
    for _ in 0..chunks {
        pair.client.tell(&chunk, sub).unwrap();
    }
    assert_eq!(pair.move_to_server().len(), chunks);
    pair.server.grant(sub, CHUNK_BYTES_MAX as u64);
    let events = pair.move_to_client().unwrap();
    assert!(matches!(events[..], [ClientEvent::Granted { bytes, .. }] if bytes > 0));
    pair.client.tell(&chunk, sub).unwrap();
    assert_eq!(pair.move_to_server().len(), 1);
    pair.client.tell(&chunk, sub).unwrap();
    assert!(pair.move_to_server().is_empty() && pair.server.is_closing());
    let error = pair.move_to_client().unwrap_err();
    assert_eq!(error.code(), Some(Code::FlowControl));
}

#[test]
fn time_ends_what_does_not_go_on() {
    let mut pair = Pair::new(1);
    assert_eq!(pair.server.deadline(), pair.now + HELLO_WAIT);
    pair.pass(HELLO_WAIT - Duration::from_millis(1));
    assert!(!pair.server.is_closing());
    pair.pass(Duration::from_millis(1));
    assert!(pair.server.is_closing() && !pair.server.is_over(pair.now));
    assert!(pair.server.is_over(pair.now + LINGER));

    let mut pair = Pair::met(64);
    pair.pass(PING_AFTER);
    assert!(pair.move_to_client().unwrap().is_empty());
    assert!(pair.move_to_server().is_empty(), "the answer to PING is not an action");
    pair.pass(PING_AFTER);
    pair.pass(SILENCE_MAX - PING_AFTER);
    assert_eq!(pair.move_to_client().unwrap_err().code(), Some(Code::Stalled));

    let mut pair = Pair::met(64);
    let (ticket, _) = pair.ask(&one());
    // The time without anything to write does not count.
    pair.now += WRITE_STALL_MAX;
    pair.server.heard(pair.now + WRITE_STALL_MAX);
    pair.server.refuse(ticket, &Refusal::new(Code::Busy, "busy"));
    pair.server.blocked(pair.now);
    pair.pass(WRITE_STALL_MAX / 2);
    pair.server.blocked(pair.now);
    assert!(!pair.server.is_closing());
    pair.pass(WRITE_STALL_MAX / 2);
    assert!(pair.server.is_closing());
}

#[test]
fn pulses_and_deadlines_come_when_they_are_due() {
    let mut pair = Pair::met(64);
    let every = Duration::from_secs(1);
    let sub = pair.subscribe(0, Some(every));
    assert_eq!(pair.server.deadline(), pair.now + every);
    pair.pass(every);
    pair.pass(every / 2);
    pair.pass(every / 2);
    let events = pair.move_to_client().unwrap();
    assert_eq!(events.len(), 2);
    for event in events {
        assert!(matches!(event, ClientEvent::Event { event: StreamEvent::Pulse, .. }));
    }
    // No pulses are queued for a client that reads nothing.
    let large = Bytes::from(vec![0; OUTBOUND_BYTES_MAX]);
    pair.server.chunk(sub, &large, false);
    pair.pass(every);
    assert_eq!(pair.move_to_client().unwrap().len(), 1);
    let call =
        CallRequest { deadline: Some(every * 3), ..CallRequest::new(Topic::parse("c").unwrap()) };
    let (_, sub) = pair.ask(&Request::Call { credit: 1, call });
    assert!(pair.pass(every * 3 - Duration::from_millis(1)).is_empty());
    assert_eq!(pair.pass(Duration::from_millis(1)), [sub]);
}

#[test]
fn a_drain_refuses_what_is_new_and_waits_for_what_is_under_way() {
    let mut pair = Pair::met(64);
    let (ticket, _) = pair.ask(&one());
    pair.server.go_away(Duration::from_secs(5), pair.now);
    pair.client.request(&one(), 0).unwrap();
    assert!(pair.move_to_server().is_empty());
    let events = pair.move_to_client().unwrap();
    assert!(matches!(
        events[..],
        [
            ClientEvent::GoAway(_),
            ClientEvent::Answer { result: Err(Refusal { code: Code::Draining, .. }), .. }
        ]
    ));
    let is_ending = |pair: &mut Pair| {
        pair.server.end_drain(pair.now);
        pair.server.is_closing()
    };
    assert!(!is_ending(&mut pair) && !pair.server.is_over(pair.now));
    pair.server.refuse(ticket, &Refusal::new(Code::Busy, "busy"));
    assert!(!is_ending(&mut pair), "the answer is not written");
    pair.move_to_client().unwrap();
    assert!(is_ending(&mut pair) && !pair.server.is_over(pair.now));
    assert!(pair.server.is_over(pair.now + LINGER));
}

#[test]
fn a_drain_that_takes_too_long_ends_with_a_while_of_taking_what_comes() {
    let drain = Duration::from_secs(5);
    let mut pair = Pair::met(64);
    let (ticket, _) = pair.ask(&one());
    pair.server.go_away(drain, pair.now);
    pair.move_to_client().unwrap();
    assert_eq!(pair.server.deadline(), pair.now + drain);
    pair.pass(drain);
    assert!(pair.server.is_closing() && !pair.server.is_over(pair.now));
    assert_eq!(pair.server.deadline(), pair.now + LINGER);
    // Answers and input have no effect now.
    pair.server.reply(ticket, |_| {});
    pair.client.request(&one(), 0).unwrap();
    assert!(pair.move_to_server().is_empty() && pair.server.output().is_empty());
    pair.pass(LINGER);
    assert!(pair.server.is_over(pair.now));
}

#[test]
fn a_server_that_breaks_the_rules_is_found_out() {
    let hash = xs_engine::BlobHash::of(b"x");
    let lie = |tell: &dyn Fn(&mut Pair, Ticket)| {
        let mut pair = Pair::met(64);
        let (ticket, _) = pair.ask(&Request::BlobGet(BlobGetRequest { hash, credit: 1 }));
        tell(&mut pair, ticket);
        pair.move_to_client().unwrap_err()
    };
    let twice = lie(&|pair, ticket| {
        pair.server.reply(ticket, |out| out.put_u64(1));
        pair.server.reply(ticket, |out| out.put_u64(1));
    });
    assert!(matches!(twice, ClientError::Protocol(ProtocolError::Unexpected(_))));
    let other = lie(&|pair, ticket| {
        let mut ticket = ticket;
        ticket.op = crate::message::Op::Ping;
        pair.server.reply(ticket, |_| {});
    });
    assert!(matches!(other, ClientError::Protocol(ProtocolError::Unexpected(_))));
    let short = lie(&|pair, ticket| pair.server.reply(ticket, |out| out.put_u32(1)));
    assert!(matches!(short, ClientError::Protocol(ProtocolError::Malformed { .. })));
    let parts = lie(&|pair, ticket| {
        pair.server.reply_part(ticket, |out| out.put_u64(1));
        pair.server.reply(ticket, |out| out.put_u64(1));
    });
    assert!(matches!(parts, ClientError::Protocol(ProtocolError::Unexpected(_))));
}

#[test]
fn requests_over_the_servers_limit_are_not_sent() {
    let mut pair = Pair::met(64);
    pair.client.set_limits(PeerLimits { message_bytes: 41, ..PeerLimits::OURS });
    // 16 bytes of header, 8 of the batch, 8 of the frame and 1 of its topic.
    assert!(pair.client.request(&one(), 0).is_ok());
    pair.client.set_limits(PeerLimits { message_bytes: 32, ..PeerLimits::OURS });
    let error = pair.client.request(&one(), 0).unwrap_err();
    assert!(matches!(error, ClientError::OverLimit { size: 33, max: 32, .. }), "{error}");
    assert_eq!(pair.move_to_server().len(), 1);
}

/// A server of the next release: PING has a second version in addition to the first, and the first
/// of CURSOR_LIST is no longer served.
const NEXT: &[OpRange] = &[
    OpRange { op: Op::Hello as u8, min: 1, max: 1 },
    OpRange { op: Op::Ping as u8, min: 1, max: 2 },
    OpRange { op: Op::CursorList as u8, min: 2, max: 3 },
];

#[test]
fn the_present_and_the_previous_version_of_an_op_are_served() {
    let mut pair = Pair::met(64);
    pair.server.serve_versions(NEXT);
    let ping = |code: u16, corr: u8| {
        let [low, high] = code.to_le_bytes();
        [12, 0, 0, 0, Op::Ping as u8, 0, low, high, corr, 0, 0, 0, 0, 0, 0, 0]
    };
    for (version, served) in [(0, false), (1, true), (2, true), (3, false)] {
        pair.client.request(&Request::Ping(Bytes::new()), 0).unwrap();
        let mut bytes = BytesMut::from(&flat(pair.client.output())[..]);
        pair.client.wrote(bytes.len());
        let corr = bytes[8];
        bytes.copy_from_slice(&ping(version, corr));
        assert!(pair.server.receive(&mut bytes, pair.now).is_none());
        let events = pair.move_to_client().unwrap();
        let [ClientEvent::Answer { result, .. }] = &events[..] else { panic!("{events:?}") };
        match result {
            Ok(_) => assert!(served, "{version}"),
            Err(refusal) => assert!(!served && refusal.code == Code::OpVersion, "{version}"),
        }
    }
    // A client that knows the server's ops does not send the request.
    pair.client.set_ops(NEXT.to_vec());
    assert!(pair.client.request(&Request::Ping(Bytes::new()), 0).is_ok());
    for (request, code) in
        [(Request::CursorList, Code::OpVersion), (Request::Stats, Code::UnknownOp)]
    {
        assert_eq!(pair.client.request(&request, 0).unwrap_err().code(), Some(code));
    }
}

#[test]
fn the_bytes_of_requests_without_an_answer_are_bounded() {
    let mut pair = Pair::met(1 << 20);
    let body = xs_engine::Body::Inline(Bytes::from(vec![1; 4 << 20]));
    let frame = NewFrame { body, ..NewFrame::new(Topic::parse("a").unwrap()) };
    let batch = Request::Append(AppendRequest::frames(vec![frame]));
    for _ in 0..20 {
        pair.client.request(&batch, 0).unwrap();
    }
    let actions = pair.move_to_server();
    let window = crate::limits::REQUEST_BYTES_MAX.div_ceil(4 << 20);
    assert_eq!(actions.len(), window);
    assert!(!pair.server.wants_input());
    let Action::Serve { ticket, .. } = actions[0] else { panic!("not a request") };
    pair.server.refuse(ticket, &Refusal::new(Code::StorageFull, "full"));
    assert!(pair.server.wants_input());
}

#[test]
fn who_reads_no_answers_is_not_answered_more() {
    const PINGS: usize = 100_000;
    let mut pair = Pair::met(1 << 20);
    let ping = Request::Ping(Bytes::from(vec![7; PING_BYTES_MAX]));
    for _ in 0..PINGS {
        pair.client.request(&ping, 0).unwrap();
    }
    assert!(pair.move_to_server().is_empty());
    let queued = pair.server.output().len();
    assert!((UNREAD_BYTES_MAX..UNREAD_BYTES_MAX + 1024).contains(&queued), "{queued}");
    assert!(!pair.server.wants_input());
    // Nothing is lost.
    let mut answers = 0;
    while !pair.server.output().is_empty() {
        answers += pair.move_to_client().unwrap().len();
        assert!(pair.server.wants_input());
        assert!(pair.server.receive(&mut pair.to_server, pair.now).is_none());
    }
    assert_eq!(answers, PINGS);
    // CLOSE is sent however much output is queued.
    let large = Bytes::from(vec![0; UNREAD_BYTES_MAX]);
    let sub = pair.subscribe(1, None);
    pair.server.chunk(sub, &large, false);
    assert!(!pair.server.wants_input());
    pair.server.close(&Refusal::new(Code::Draining, "over"), pair.now);
    assert!(pair.server.wants_input());
}
