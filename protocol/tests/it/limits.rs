//! Every limit of a message at one less, exactly, and one more; and a crowd of misbehaving clients.

use std::time::Duration;

use xs_protocol::codec::PREFACE;
use xs_protocol::{Class, Code, Op, Role, limits};

use crate::raw::{Raw, header, hello_body, message};
use crate::rig::{Rig, one, soon, until};

/// A HELLO with a name and a token of these lengths in bytes.
fn hello(name: usize, token: usize) -> Vec<u8> {
    let mut body = hello_body()[..20].to_vec();
    for len in [name, token] {
        body.extend_from_slice(&(len as u16).to_le_bytes());
        body.resize(body.len() + len, b'n');
    }
    body
}

#[tokio::test]
async fn names_and_tokens() {
    let rig = Rig::unix(Role::Read).await;
    let (name, token) = (limits::PEER_NAME_BYTES_MAX, limits::TOKEN_BYTES_MAX);
    for (body, fits) in [
        (hello(name - 1, 0), true),
        (hello(name, 0), true),
        (hello(name + 1, 0), false),
        (hello(0, token + 1), false),
    ] {
        let mut raw = Raw::silent(&rig, Role::Read);
        raw.send(&PREFACE).await;
        raw.send(&message(header(Op::Hello, 1, 0), &body)).await;
        match fits {
            true => assert_eq!(raw.receive().await.unwrap().header.code, 0),
            false => assert_eq!(raw.closed().await, Code::Malformed.number()),
        }
    }
    let mut small = hello_body();
    for (bytes, code) in [
        (limits::SERVER_MESSAGE_BYTES_MAX - 1, Code::InvalidValue.number()),
        (limits::SERVER_MESSAGE_BYTES_MAX, 0),
        (limits::SERVER_MESSAGE_BYTES_MAX + 1, 0),
    ] {
        small[16..20].copy_from_slice(&bytes.to_le_bytes());
        let mut raw = Raw::silent(&rig, Role::Read);
        raw.send(&PREFACE).await;
        assert_eq!(raw.ask(header(Op::Hello, 1, 0), &small).await.header.code, code, "{bytes}");
    }
}

/// A request that was not sent because of others may be retried later; it used to be reported as
/// invalid.
#[tokio::test]
async fn a_client_with_too_many_requests_is_busy() {
    let rig = Rig::unix(Role::Admin).await;
    let client = rig.client().await;
    // Nothing is answered before a reply is awaited.
    let asked: Vec<_> = (0..limits::CLIENT_QUEUE_MAX).map(|_| client.ping()).collect();
    let error = client.append(&one("t")).await.unwrap_err();
    assert_eq!(error.class(), Class::Busy, "{error}");
    for reply in asked {
        soon(reply).await.unwrap();
    }
    soon(client.append(&one("t"))).await.unwrap();
}

/// A list of `count` patterns.
fn patterns(count: usize) -> Vec<u8> {
    let mut body = (count as u16).to_le_bytes().to_vec();
    (0..count).for_each(|_| body.extend_from_slice(&[1, 0, b'a']));
    body
}

/// `count` optional extensions.
fn extensions(count: usize) -> Vec<u8> {
    [1, 0x80, 0, 0, 1, 0, 0, 0, 9].repeat(count)
}

/// A subscription with this maximum length of bodies and this interval of pulses.
fn subscribe(bodies_up_to: u32, pulse_ms: u64) -> Vec<u8> {
    let mut body = vec![0, 0, 0, 0];
    body.extend_from_slice(&bodies_up_to.to_le_bytes());
    body.extend_from_slice(&pulse_ms.to_le_bytes());
    body.extend_from_slice(b"\0\0\x01\0\x01\0*");
    body
}

fn last(count: u64) -> Vec<u8> {
    let mut body = count.to_le_bytes().to_vec();
    body.push(0);
    body.extend_from_slice(&patterns(1));
    body
}

#[tokio::test]
async fn what_a_request_may_hold() {
    let rig = Rig::unix(Role::Read).await;
    let mut raw = Raw::open(&rig, Role::Read).await;
    let (bodies, pulse_min) = (limits::BODY_WITH_FRAME_MAX, limits::PULSE_MIN.as_millis() as u64);
    let pulse_max = limits::PULSE_MAX.as_millis() as u64;
    let patterns_max = xs_engine::limits::PATTERNS_MAX;
    let (invalid, value) = (Code::InvalidRead.number(), Code::InvalidValue.number());
    let cases = [
        (Op::Topics, patterns(0), value),
        (Op::Topics, patterns(1), 0),
        (Op::Topics, patterns(patterns_max - 1), 0),
        (Op::Topics, patterns(patterns_max), 0),
        (Op::Topics, patterns(patterns_max + 1), value),
        (Op::Topics, patterns(65_535), value),
        (Op::CursorList, extensions(limits::EXTENSIONS_MAX - 1), 0),
        (Op::CursorList, extensions(limits::EXTENSIONS_MAX), 0),
        (Op::Ping, vec![0; limits::PING_BYTES_MAX - 1], 0),
        (Op::Ping, vec![0; limits::PING_BYTES_MAX], 0),
        (Op::Last, last(limits::LAST_MAX - 1), 0),
        (Op::Last, last(limits::LAST_MAX), 0),
        (Op::Last, last(limits::LAST_MAX + 1), invalid),
        (Op::Subscribe, subscribe(bodies - 1, 0), 0),
        (Op::Subscribe, subscribe(bodies, 0), 0),
        (Op::Subscribe, subscribe(bodies + 1, 0), invalid),
        (Op::Subscribe, subscribe(0, pulse_min - 1), invalid),
        (Op::Subscribe, subscribe(0, pulse_min + 1), 0),
        (Op::Subscribe, subscribe(0, pulse_max - 1), 0),
        (Op::Subscribe, subscribe(0, pulse_max), 0),
        (Op::Subscribe, subscribe(0, pulse_max + 1), invalid),
    ];
    for (corr, (op, body, code)) in (2..).zip(cases) {
        let sub = if op == Op::Subscribe { corr } else { 0 };
        raw.send(&message(header(op, corr, sub), &body)).await;
        let reply = loop {
            // Opened streams send messages, too.
            let envelope = raw.receive().await.unwrap();
            if envelope.header.corr == corr && envelope.header.flags & 4 == 0 {
                break envelope;
            }
        };
        assert_eq!(reply.header.code, code, "{op:?} {:?}", &body[..body.len().min(24)]);
    }
    for (op, body) in [
        (Op::CursorList, extensions(limits::EXTENSIONS_MAX + 1)),
        (Op::Ping, vec![0; limits::PING_BYTES_MAX + 1]),
    ] {
        let mut raw = Raw::open(&rig, Role::Read).await;
        raw.send(&message(header(op, 2, 0), &body)).await;
        assert_eq!(raw.closed().await, Code::Malformed.number(), "{op:?}");
    }
}

/// Two thousand connections that send a byte now and then and never a whole HELLO. Time is paused:
/// each is closed when its time is up, and a well-behaved client is served throughout.
#[tokio::test(start_paused = true)]
async fn a_crowd_that_trickles_is_let_go_in_time() {
    let rig = Rig::unix(Role::Admin).await;
    let hello = message(header(Op::Hello, 1, 0), &hello_body());
    let mut crowd: Vec<Raw> = (0..2000).map(|_| Raw::silent(&rig, Role::Admin)).collect();
    for raw in &mut crowd {
        raw.send(&PREFACE).await;
    }
    let client = rig.connect_as(Role::Append).await;
    for second in 0..limits::HELLO_WAIT.as_secs() as usize {
        for raw in &mut crowd {
            raw.send(&hello[second..=second]).await;
        }
        soon(client.append(&one("a"))).await.unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    for raw in &mut crowd {
        assert_eq!(raw.closed().await, Code::HelloTimeout.number());
    }
    // While the clock stands still, only tasks with something to do run.
    drop(crowd);
    until(|| rig.server.connections() == 1).await;
    soon(client.append(&one("a"))).await.unwrap();
}
