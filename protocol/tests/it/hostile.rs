//! Peers that break the rules, and limits at their edges.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use xs_engine::{Body, NewFrame, Topic};
use xs_protocol::codec::{FLAG_PUSH, FLAG_RESPONSE, Header, PREFACE};
use xs_protocol::{Address, AppendRequest, ClientError, Code, Listener, Op, Role, limits};

use crate::raw::{Raw, header, hello_body, message};
use crate::rig::{Rig, one, soon, until};

const MALFORMED: u16 = Code::Malformed.number();
const FLOW: u16 = Code::FlowControl.number();

#[tokio::test]
async fn hello_comes_first_and_once() {
    let rig = Rig::unix(Role::Admin).await;
    let unknown = Header { op: 0x7f, ..header(Op::Ping, 1, 0) };
    let wrong = header(Op::CursorGet, 1, 0);
    for (header, body) in [
        (header(Op::CursorList, 1, 0), &b""[..]),
        (unknown, b""),
        (wrong, b"\x01\0\n"),
        (wrong, b"?"),
    ] {
        let mut raw = Raw::silent(&rig, Role::Admin);
        raw.send(&PREFACE).await;
        raw.send(&message(header, body)).await;
        assert_eq!(raw.closed().await, Code::HelloExpected.number());
    }
    let mut raw = Raw::open(&rig, Role::Admin).await;
    raw.send(&message(header(Op::Hello, 2, 0), &hello_body())).await;
    assert_eq!(raw.closed().await, Code::HelloExpected.number());
    let mut raw = Raw::silent(&rig, Role::Admin);
    let mut body = hello_body();
    (body[0], body[2]) = (2, 3);
    raw.send(&PREFACE).await;
    let reply = raw.ask(header(Op::Hello, 1, 0), &body).await;
    assert_eq!(reply.header.code, Code::VersionMismatch.number());
    assert_eq!(raw.closed().await, Code::VersionMismatch.number());
}

#[tokio::test]
async fn other_protocols_get_the_preface_and_no_more() {
    let rig = Rig::unix(Role::Admin).await;
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x16\x03\x01\x02\x00\x01", b"XSP\0\x02\0\0\0"] {
        let mut raw = Raw::silent(&rig, Role::Admin);
        raw.send(bytes).await;
        assert!(raw.receive().await.is_none());
    }
    until(|| rig.server.connections() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_let_go_in_time() {
    let rig = Rig::unix(Role::Admin).await;
    let began = tokio::time::Instant::now();
    let mut raw = Raw::silent(&rig, Role::Admin);
    assert!(raw.receive().await.is_none());
    let waited = began.elapsed();
    assert!(waited >= limits::HELLO_WAIT && waited < limits::HELLO_WAIT * 2, "{waited:?}");
    let mut raw = Raw::silent(&rig, Role::Admin);
    raw.send(&PREFACE).await;
    raw.send(&message(header(Op::Hello, 1, 0), &hello_body())[..20]).await;
    assert_eq!(raw.closed().await, Code::HelloTimeout.number());
}

#[tokio::test(start_paused = true)]
async fn silence_is_probed_before_it_ends_a_connection() {
    let rig = Rig::unix(Role::Admin).await;
    let mut raw = Raw::open(&rig, Role::Admin).await;
    tokio::time::advance(limits::PING_AFTER).await;
    let ping = raw.receive().await.unwrap();
    assert_eq!((ping.header.op, ping.header.flags), (Op::Ping as u8, FLAG_PUSH));
    let pong = Header { op: Op::Ping as u8, flags: FLAG_RESPONSE, ..Header::default() };
    raw.send(&message(pong, b"")).await;
    // Once this is answered, the server has also received the PONG.
    assert_eq!(raw.ask(header(Op::Ping, 2, 0), b"").await.header.corr, 2);
    tokio::time::advance(limits::PING_AFTER).await;
    assert_eq!(raw.receive().await.unwrap().header.op, Op::Ping as u8);
    tokio::time::advance(limits::SILENCE_MAX).await;
    assert_eq!(raw.closed().await, Code::Stalled.number());
}

#[tokio::test]
async fn what_is_not_understood_is_refused_and_the_connection_lives() {
    let rig = Rig::unix(Role::Admin).await;
    let mut raw = Raw::open(&rig, Role::Admin).await;
    let unknown = Header { op: 0x7f, ..header(Op::Ping, 2, 0) };
    assert_eq!(raw.ask(unknown, b"").await.header.code, Code::UnknownOp.number());
    let newer = Header { code: 2, ..header(Op::CursorList, 3, 0) };
    assert_eq!(raw.ask(newer, b"").await.header.code, Code::OpVersion.number());
    let extension = [9, 0, 0, 0, 1, 0, 0, 0, 5];
    let reply = raw.ask(header(Op::CursorList, 4, 0), &extension).await;
    assert_eq!(reply.header.code, Code::UnknownExtension.number());
    let optional = [9, 0x80, 0, 0, 1, 0, 0, 0, 5];
    assert_eq!(raw.ask(header(Op::CursorList, 5, 0), &optional).await.header.code, 0);
    let bad_topic = b"\x01\0\x02\0a..";
    let reply = raw.ask(header(Op::Topics, 6, 0), &bad_topic[..6]).await;
    assert_eq!(reply.header.code, Code::InvalidValue.number());
    assert_eq!(raw.ask(header(Op::Ping, 7, 0), b"alive").await.body, "alive");
}

#[tokio::test]
async fn malformed_messages_close_the_connection_with_a_reason() {
    let rig = Rig::unix(Role::Admin).await;
    let push = |op| Header { flags: FLAG_PUSH, ..header(op, 0, 1) };
    let response = Header { flags: FLAG_RESPONSE, ..header(Op::Append, 2, 0) };
    let cases = [
        (header(Op::Append, 2, 0), &b"short"[..], MALFORMED),
        (header(Op::Get, 2, 0), b"\x02", MALFORMED),
        (header(Op::Ping, 2, 0), &[0; limits::PING_BYTES_MAX + 1], MALFORMED),
        (header(Op::Deliver, 2, 0), b"", MALFORMED),
        (push(Op::CursorList), b"", MALFORMED),
        (response, b"", MALFORMED),
        (Header { code: 9, ..header(Op::Credit, 0, 1) }, &[0; 8], MALFORMED),
        (header(Op::BlobPut, 2, 0), b"", FLOW),
    ];
    for (header, body, code) in cases {
        let mut raw = Raw::open(&rig, Role::Admin).await;
        raw.send(&message(header, body)).await;
        assert_eq!(raw.closed().await, code, "{header:?}");
    }
    for len in [0u32, 11, limits::MESSAGE_BYTES_MAX - 3, u32::MAX] {
        let mut raw = Raw::open(&rig, Role::Admin).await;
        raw.send(&len.to_le_bytes()).await;
        let code = if len < 12 { Code::Malformed } else { Code::TooLarge };
        assert_eq!(raw.closed().await, code.number(), "{len}");
    }
    until(|| rig.server.connections() == 0).await;
}

#[tokio::test]
async fn before_hello_messages_are_small() {
    let rig = Rig::unix(Role::Admin).await;
    for (size, code) in
        [(limits::HELLO_BYTES_MAX, Code::Malformed), (limits::HELLO_BYTES_MAX + 1, Code::TooLarge)]
    {
        let mut raw = Raw::silent(&rig, Role::Admin);
        raw.send(&PREFACE).await;
        raw.send(&message(header(Op::Hello, 1, 0), &vec![0xff; size as usize - 16])).await;
        assert_eq!(raw.closed().await, code.number(), "{size}");
    }
}

#[tokio::test]
async fn numbers_of_streams_grow_and_there_are_not_too_many() {
    let rig = Rig::unix(Role::Admin).await;
    let mut raw = Raw::open(&rig, Role::Admin).await;
    for sub in 1..=limits::STREAMS_MAX {
        raw.send(&message(header(Op::BlobPut, sub, sub), b"")).await;
    }
    let over = limits::STREAMS_MAX + 1;
    let reply = raw.ask(header(Op::BlobPut, over, over), b"").await;
    assert_eq!((reply.header.corr, reply.header.code), (over, Code::TooManyStreams.number()));
    let reply = raw.ask(header(Op::Unsubscribe, 0, 1), b"").await;
    assert_eq!(reply.header.corr, 1, "the upload that was given up is answered");
    raw.send(&message(header(Op::BlobPut, 999, over + 1), b"")).await;
    assert_eq!(raw.ask(header(Op::Ping, 1000, 0), b"").await.header.code, 0);
    raw.send(&message(header(Op::BlobPut, 1001, over), b"")).await;
    assert_eq!(raw.closed().await, FLOW);
}

/// All modules of a store share the connection of their Host.
#[tokio::test]
async fn a_host_has_more_streams() {
    let rig = Rig::unix(Role::Host).await;
    let mut raw = Raw::open(&rig, Role::Host).await;
    // Also more uploads than unanswered requests are allowed: each ends by a message that comes
    // later.
    let last = limits::REQUESTS_MAX + 1;
    for sub in 1..=last {
        raw.send(&message(header(Op::BlobPut, sub, sub), b"")).await;
    }
    let client = rig.client().await;
    assert_eq!(client.server().limits.streams, limits::HOST_STREAMS_MAX);
    assert_eq!(raw.ask(header(Op::Ping, last + 1, 0), b"").await.header.corr, last + 1);
    let end = Header { flags: 0, ..header(Op::BlobChunk, 0, last) };
    let stored = raw.ask(end, b"the last one").await.header;
    assert_eq!((stored.corr, stored.code), (last, 0));
}

#[tokio::test]
async fn windows_and_credit_are_enforced() {
    let rig = Rig::unix(Role::Admin).await;
    let chunk = limits::CHUNK_BYTES_MAX;
    let more = |sub| Header { flags: 4, ..header(Op::BlobChunk, 0, sub) };
    let mut raw = Raw::open(&rig, Role::Admin).await;
    raw.send(&message(header(Op::BlobPut, 2, 1), b"")).await;
    raw.send(&message(more(1), &vec![0; chunk + 1])).await;
    assert_eq!(raw.closed().await, MALFORMED);
    // The server receives everything at once, so no grant can come in between.
    let mut raw = Raw::open(&rig, Role::Admin).await;
    let mut bytes = message(header(Op::BlobPut, 2, 1), b"").to_vec();
    let over = limits::UPLOAD_WINDOW as usize / chunk + 1;
    for _ in 0..over * 4 {
        bytes.extend_from_slice(&message(more(1), &vec![0; chunk]));
    }
    rig.memory.hold_blobs(true);
    raw.send(&bytes).await;
    assert_eq!(raw.closed().await, FLOW);
    // The window is also exceeded by empty pieces, any number of which would fit.
    let mut raw = Raw::open(&rig, Role::Admin).await;
    raw.send(&message(header(Op::BlobPut, 2, 1), b"")).await;
    for _ in 0..1_000 {
        raw.send(&message(more(1), &[7; 5])).await;
    }
    raw.send(&message(more(1), &[]).repeat(1_000)).await;
    assert_eq!(raw.closed().await, FLOW);
    rig.memory.hold_blobs(false);
    let subscribe = b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x02\x04\x01\0\x01\0*";
    for (credit, code) in [(limits::CREDIT_MAX, None), (limits::CREDIT_MAX + 1, Some(FLOW))] {
        let mut raw = Raw::open(&rig, Role::Admin).await;
        assert_eq!(raw.ask(header(Op::Subscribe, 2, 1), subscribe).await.header.code, 0);
        raw.send(&message(header(Op::Credit, 0, 1), &credit.to_le_bytes())).await;
        match code {
            None => {
                raw.send(&message(header(Op::Ping, 3, 0), b"")).await;
                while raw.receive().await.unwrap().header.corr != 3 {}
            }
            Some(code) => assert_eq!(raw.closed().await, code),
        }
    }
}

#[tokio::test]
async fn a_connection_reset_in_the_middle_of_a_message_leaves_nothing() {
    let rig = Rig::tcp().await;
    let Address::Tcp(address) = &rig.address else { panic!("not TCP") };
    for cut in [3, 8, 12, 30, 60] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut bytes = PREFACE.to_vec();
        bytes.extend_from_slice(&message(header(Op::Hello, 1, 0), &hello_body()));
        bytes.extend_from_slice(&message(header(Op::Append, 2, 0), &[0; 100]));
        stream.write_all(&bytes[..cut]).await.unwrap();
        stream.set_zero_linger().unwrap();
    }
    let client = rig.client().await;
    soon(client.ping()).await.unwrap();
    until(|| rig.server.connections() == 1).await;
}

#[tokio::test]
async fn lengths_that_are_only_announced_hold_no_one_up() {
    let rig = Rig::unix(Role::Admin).await;
    let mut peers = Vec::new();
    for _ in 0..300 {
        let mut raw = Raw::open(&rig, Role::Admin).await;
        raw.send(&(limits::MESSAGE_BYTES_MAX - 4).to_le_bytes()).await;
        peers.push(raw);
    }
    let client = rig.client().await;
    soon(client.append(&one("a"))).await.unwrap();
    drop(peers);
    until(|| rig.server.connections() == 1).await;
}

#[tokio::test]
async fn batches_and_messages_at_their_limits() {
    let rig = Rig::unix(Role::Admin).await;
    let client = rig.client().await;
    let frame = NewFrame::new(Topic::parse("a").unwrap());
    for (count, fits) in [(4095, true), (4096, true), (4097, false)] {
        let batch = AppendRequest::frames(vec![frame.clone(); count]);
        assert_eq!(soon(client.append(&batch)).await.is_ok(), fits, "{count}");
    }
    let sized = |size: usize| {
        // Header 16, batch 8, frame 8 and 4, topic 1.
        let body = Body::Inline(vec![0; size - 37].into());
        AppendRequest::frames(vec![NewFrame { body, ..frame.clone() }])
    };
    let max = limits::MESSAGE_BYTES_MAX as usize;
    for (size, fits) in [(max - 1, true), (max, true), (max + 1, false)] {
        match soon(client.append(&sized(size))).await {
            Ok(_) => assert!(fits, "{size}"),
            Err(ClientError::OverLimit { size: found, .. }) => {
                assert_eq!((found, fits), (size as u64, false));
            }
            Err(error) => panic!("{error}"),
        }
    }
    soon(client.ping()).await.unwrap();
}

#[tokio::test]
async fn only_this_machine_is_listened_to() {
    let open = Address::parse("0.0.0.0:0").unwrap();
    let error = Listener::bind(&open).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    let dir = tempfile::tempdir().unwrap();
    let address = Address::of_path(dir.path());
    let Address::Unix(path) = &address else { panic!("not a socket") };
    std::fs::write(path, b"left over").unwrap();
    let listener = Listener::bind(&address).await.unwrap();
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let error = Listener::bind(&address).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    drop(listener);
    assert!(!path.exists());
    assert!(matches!(
        xs_protocol::Client::connect(&address, Default::default()).await,
        Err(ClientError::Connect { kind: std::io::ErrorKind::NotFound, .. })
    ));
}

/// Time is paused: an unintended wait shows at once.
#[tokio::test(start_paused = true)]
async fn a_server_that_never_answers_hello_is_given_up() {
    let (ours, _theirs) = tokio::io::duplex(1024);
    let options =
        xs_protocol::ClientOptions { timeout: Duration::from_secs(3), ..Default::default() };
    let error = xs_protocol::Client::over(ours, options).await.unwrap_err();
    assert!(matches!(error, ClientError::Disconnected(_)), "{error}");
}
