//! The golden vectors: `protocol/vectors/*.json` against this implementation, both ways. Clients in
//! other languages check themselves against the same files. `XS_BLESS=1` writes them anew, which is
//! right only together with a change of docs/wire.md.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use xs_engine::{
    BlobHash, Body as FrameBody, Bound, Cursor, CursorChange, CursorName, ExpectRevision, Frame,
    FrameId, Meta, NewFrame, Origin, ReadOptions, Start, Topic, TopicPatterns, Ttl,
};

use super::*;
use crate::codec::{Codec, FLAG_MORE, FLAG_PUSH, FLAG_RESPONSE, Header, PREFACE};
use crate::error::{Code, Detail, Refusal};
use crate::gather::Gather;
use crate::limits::{MESSAGE_BYTES_MAX, PING_BYTES_MAX};
use crate::service::StoreIdentity;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn topic(text: &str) -> Topic {
    Topic::parse(text).unwrap()
}

fn id(n: u64) -> FrameId {
    FrameId::first_of_ms(1_700_000_000_000 + n)
}

/// Compares a file with what it should hold, or writes it.
fn check_file(name: &str, messages: Vec<Value>) -> Vec<Value> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors").join(name);
    let expected = json!({ "protocol": VERSION, "messages": messages });
    if std::env::var_os("XS_BLESS").is_some() {
        std::fs::write(&path, format!("{expected:#}\n")).unwrap();
    }
    let found = std::fs::read(&path).unwrap();
    let found: Value = serde_json::from_slice(&found).unwrap();
    assert!(found == expected, "{} differs from the code; see docs/wire.md", path.display());
    found["messages"].as_array().unwrap().clone()
}

fn codec() -> Codec {
    let mut codec = Codec::new(MESSAGE_BYTES_MAX);
    assert_eq!(codec.next(&mut BytesMut::from(&PREFACE[..])).unwrap(), None);
    codec
}

fn requests() -> Vec<(&'static str, u32, u32, Request)> {
    let origin = Origin { processor: id(1), input: Some(id(2)), input_offset: Some(9), hops: 1 };
    let frame = NewFrame::new(topic("a.b"));
    let batch = AppendRequest {
        frames: vec![
            NewFrame {
                meta: Meta::parse(r#"{"n":1}"#).unwrap(),
                body: FrameBody::Inline(Bytes::from_static(b"hello")),
                ..frame.clone()
            },
            NewFrame { ttl: Ttl::Ephemeral, ..frame.clone() },
            NewFrame {
                body: FrameBody::Stored(BlobHash::of(b"hello")),
                ttl: Ttl::Last(NonZeroU64::MIN),
                origin: Some(origin),
                ..frame.clone()
            },
            NewFrame { ttl: Ttl::TimeMs(60_000), ..frame },
        ],
        cursors: vec![CursorChange {
            name: CursorName::parse("c").unwrap(),
            expect: ExpectRevision::Is(3),
            set: Some((10, Bytes::from_static(b"{}"))),
        }],
        durable: true,
    };
    let options = ReadOptions {
        topics: TopicPatterns::parse("a.b,c.*,*").unwrap(),
        start: Start::After(Bound::Id(id(3))),
        before: Some(Bound::Offset(100)),
        since_ms: Some(1),
        until_ms: Some(2),
        limit: Some(5),
        reverse: true,
        follow: false,
    };
    let how =
        SubscribeOptions { credit: 1000, pulse: Some(Duration::from_secs(1)), bodies_up_to: 4096 };
    let follow = ReadOptions { follow: true, start: Start::New, ..ReadOptions::default() };
    let remove = CursorChange {
        name: CursorName::parse("c").unwrap(),
        expect: ExpectRevision::Any,
        set: None,
    };
    let call = CallRequest {
        args: Meta::parse(r#"{"url":"x"}"#).unwrap(),
        body: Bytes::from_static(b"body"),
        deadline: Some(Duration::from_secs(5)),
        bodies_up_to: 100,
        ..CallRequest::new(topic("report"))
    };
    let hello = HelloRequest {
        versions: (1, 1),
        records: (1, 1),
        features: 0,
        message_bytes: 2 << 20,
        name: "test/1".to_owned(),
        token: String::new(),
    };
    let last = LastRequest { topics: TopicPatterns::all(), n: 10, per_topic: true };
    let chunk = |last| Request::BlobChunk { bytes: Bytes::from_static(b"piece"), last };
    vec![
        ("hello", 1, 0, Request::Hello(hello)),
        ("ping", 2, 0, Request::Ping(Bytes::from_static(b"alive?"))),
        ("pong", 0, 0, Request::Pong(Bytes::new())),
        ("append", 3, 0, Request::Append(batch)),
        ("append-empty", 4, 0, Request::Append(AppendRequest::default())),
        ("fetch", 5, 0, Request::Fetch(FetchRequest { options, page_bytes: 65_536 })),
        ("get-by-offset", 6, 0, Request::Get(Bound::Offset(7))),
        ("get-by-id", 7, 0, Request::Get(Bound::Id(id(4)))),
        ("last", 8, 0, Request::Last(last)),
        ("topics", 9, 0, Request::Topics(TopicPatterns::everything())),
        ("subscribe", 10, 1, Request::Subscribe(SubscribeRequest { options: follow, how })),
        ("credit", 0, 1, Request::Credit(640)),
        ("unsubscribe", 0, 1, Request::Unsubscribe),
        ("cursor-set-remove", 11, 0, Request::CursorSet(remove)),
        ("cursor-get", 12, 0, Request::CursorGet(CursorName::parse("c").unwrap())),
        ("cursor-list", 13, 0, Request::CursorList),
        ("blob-has", 14, 0, Request::BlobHas(BlobHash::of(b"hello"))),
        ("blob-put", 15, 2, Request::BlobPut),
        ("blob-chunk", 0, 2, chunk(false)),
        ("blob-chunk-last", 0, 2, chunk(true)),
        (
            "blob-get",
            16,
            3,
            Request::BlobGet(BlobGetRequest { hash: BlobHash::of(b"hello"), credit: 1 << 20 }),
        ),
        ("call", 17, 4, Request::Call { credit: 1 << 20, call }),
    ]
}

/// A message of a server, as its parts.
type Sent = (&'static str, Header, Box<dyn Fn(&mut Gather)>);

fn replies() -> Vec<Sent> {
    let response =
        |op: Op, code: u16, corr| Header { op: op as u8, flags: FLAG_RESPONSE, code, corr, sub: 0 };
    let push = |op: Op, code, sub| Header { op: op as u8, flags: FLAG_PUSH, code, corr: 0, sub };
    let origin = Origin { processor: id(1), input: None, input_offset: None, hops: 2 };
    let frame = |n, offset, body: Option<&[u8]>| {
        let new = NewFrame {
            meta: Meta::parse(r#"{"n":1}"#).unwrap(),
            origin: body.is_some().then_some(origin),
            ..NewFrame::new(topic("a.b"))
        };
        let body = body.map(|bytes| (bytes.len() as u64, BlobHash::of(bytes)));
        Frame::assemble(&new, id(n), offset, body).unwrap()
    };
    let frames =
        vec![frame(1, Some(7), None), frame(2, None, None), frame(3, Some(8), Some(b"hello"))];
    let bodies = vec![(2, Bytes::from_static(b"hello"))];
    let hello = HelloReply {
        version: 1,
        records: 1,
        role: Role::Admin,
        features: 0,
        store: StoreIdentity { uuid: [7; 16], epoch: 3, head: 99 },
        limits: PeerLimits::OURS,
        name: "xs/test".to_owned(),
        ops: Op::table(),
    };
    let appended = Appended {
        frames: vec![Stamp { id: id(1), offset: Some(7) }, Stamp { id: id(2), offset: None }],
        cursors: vec![4, 0],
        durable: true,
        head: 8,
    };
    let summary = TopicSummary {
        topic: topic("a.b"),
        count: 2,
        bytes: 300,
        first: id(1),
        last: id(3),
        last_offset: 8,
    };
    let name = CursorName::parse("c").unwrap();
    let cursor = Cursor {
        revision: 4,
        epoch: 3,
        offset: 10,
        time_ms: 1_700_000_000_000,
        state: Bytes::from_static(b"{}"),
    };
    let listed = CursorSummary {
        name: name.clone(),
        revision: 4,
        epoch: 3,
        offset: 10,
        time_ms: 1_700_000_000_000,
        state_bytes: 2,
    };
    let conflict = Refusal::new(Code::CursorConflict, "cursor c has revision 4, not 3")
        .with(Detail::Cursor { name, revision: 4 })
        .with(Detail::RetryAfterMs(10));
    let full = Refusal::new(Code::TooLarge, "message of 9000 bytes exceeds the limit of 8192")
        .with(Detail::Limit(8192));
    let mut sent: Vec<Sent> = vec![
        ("hello-reply", response(Op::Hello, 0, 1), Box::new(move |out| hello.put(out))),
        ("pong", response(Op::Ping, 0, 2), Box::new(|out| out.put_slice(b"alive?"))),
        ("append-reply", response(Op::Append, 0, 3), Box::new(move |out| appended.put(out))),
        (
            "append-refused",
            response(Op::Append, 400, 3),
            Box::new(move |out| {
                put_refusal(out, &conflict);
            }),
        ),
        ("get-none", response(Op::Get, 0, 7), Box::new(|out| put_frames(out, &[], &[], 0))),
        (
            "topics-part",
            Header { flags: FLAG_RESPONSE | FLAG_MORE, ..response(Op::Topics, 0, 9) },
            Box::new(move |out| summary.put(out)),
        ),
        ("subscribed", response(Op::Subscribe, 0, 10), Box::new(|_| {})),
        ("cursor-set-reply", response(Op::CursorSet, 0, 11), Box::new(|out| out.put_u64(5))),
        (
            "cursor-get-reply",
            response(Op::CursorGet, 0, 12),
            Box::new(move |out| {
                put_cursor(out, Some(&cursor));
            }),
        ),
        (
            "cursor-list-reply",
            response(Op::CursorList, 0, 13),
            Box::new(move |out| {
                listed.put(out);
            }),
        ),
        ("blob-has-reply", response(Op::BlobHas, 0, 14), Box::new(|out| out.put_u8(1))),
        (
            "blob-put-reply",
            response(Op::BlobPut, 0, 15),
            Box::new(|out| {
                put_stored(out, &BlobHash::of(b"hello"), 5);
            }),
        ),
        ("blob-get-reply", response(Op::BlobGet, 0, 16), Box::new(|out| out.put_u64(5))),
        ("blob-chunk", push(Op::BlobChunk, 0, 3), Box::new(|out| out.put_slice(b"hello"))),
        ("call-reply", response(Op::Call, 0, 17), Box::new(|out| out.put_slice(id(5).as_bytes()))),
        ("upload-credit", push(Op::Credit, 0, 2), Box::new(|out| out.put_u64(262_144))),
        ("ping", push(Op::Ping, 0, 0), Box::new(|_| {})),
        (
            "goaway",
            push(Op::GoAway, 501, 0),
            Box::new(|out| {
                GoAway { drain_ms: 5000, reason: "the server is stopping".to_owned() }.put(out);
            }),
        ),
        ("close", push(Op::Close, 102, 0), Box::new(move |out| put_refusal(out, &full))),
    ];
    let page = frames.clone();
    sent.push((
        "fetch-reply",
        response(Op::Fetch, 0, 5),
        Box::new(move |out| {
            put_page(out, &page, 9, true, 100);
        }),
    ));
    sent.push((
        "deliver",
        push(Op::Deliver, 0, 1),
        Box::new(move |out| {
            put_frames(out, &frames, &bodies, 9);
        }),
    ));
    let events = [
        ("event-caught-up", StreamEvent::CaughtUp { head: 9 }),
        ("event-pulse", StreamEvent::Pulse),
        ("event-gap-corrupt", StreamEvent::Gap(Gap::Corrupt { from: 3, to: 5 })),
        ("event-gap-ephemeral", StreamEvent::Gap(Gap::Ephemeral { count: 12 })),
        (
            "event-dropped",
            StreamEvent::Dropped {
                refusal: Refusal::new(Code::Draining, "the server is stopping"),
                resume: 9,
            },
        ),
        ("event-ended", StreamEvent::Ended { scanned_to: 9 }),
    ];
    for (name, event) in events {
        let header = push(Op::SubEvent, event.code(), 1);
        sent.push((name, header, Box::new(move |out| event.put(out))));
    }
    sent
}

#[test]
fn messages_of_clients() {
    let all = requests();
    let entry = |(name, corr, sub, request): &(&str, u32, u32, Request)| {
        let mut out = Gather::default();
        request.put(*corr, *sub, MESSAGE_BYTES_MAX, &mut out).unwrap();
        json!({ "name": name, "op": request.op().name(), "value": format!("{request:?}"),
            "hex": hex(&out.take_all()) })
    };
    let found = check_file("client.json", all.iter().map(entry).collect());
    for (entry, (name, corr, sub, request)) in found.iter().zip(all) {
        let mut bytes = BytesMut::from(&unhex(entry["hex"].as_str().unwrap())[..]);
        let envelope = codec().next(&mut bytes).unwrap().unwrap();
        assert_eq!((envelope.header.corr, envelope.header.sub), (corr, sub), "{name}");
        assert_eq!(Request::read(envelope).unwrap(), request, "{name}");
    }
}

#[test]
fn messages_of_servers() {
    let decode = |bytes: &[u8]| {
        let envelope = codec().next(&mut BytesMut::from(bytes)).unwrap().unwrap();
        Incoming::read(envelope).unwrap()
    };
    let all: Vec<_> = replies()
        .into_iter()
        .map(|(name, header, put)| {
            let mut out = Gather::default();
            out.begin(header);
            put(&mut out);
            out.finish();
            (name, header, out.take_all())
        })
        .collect();
    let entry = |(name, header, bytes): &(&str, Header, Bytes)| {
        let op = Op::from_byte(header.op).unwrap().name();
        json!({ "name": name, "op": op, "value": format!("{:?}", decode(bytes)),
            "hex": hex(bytes) })
    };
    // The values are part of the file: what is decoded is compared with it as text.
    check_file("server.json", all.iter().map(entry).collect());
}

/// Bytes that a server must not take: what they are, and the code it answers with. Codes of class
/// 1 close the connection, others refuse the request.
fn malformed() -> Vec<(&'static str, Vec<u8>, Code)> {
    let good = |name: &str| {
        let (_, corr, sub, request) =
            requests().into_iter().find(|(found, ..)| *found == name).unwrap();
        let mut out = Gather::default();
        request.put(corr, sub, MESSAGE_BYTES_MAX, &mut out).unwrap();
        out.take_all().to_vec()
    };
    let changed = |name: &str, at: usize, byte: u8| {
        let mut bytes = good(name);
        bytes[at] = byte;
        bytes
    };
    let longer = |name: &str, extra: &[u8]| {
        let mut bytes = good(name);
        bytes.extend_from_slice(extra);
        let len = (bytes.len() - 4) as u32;
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        bytes
    };
    let shorter = |name: &str| {
        let mut bytes = good(name);
        bytes.pop();
        let len = (bytes.len() - 4) as u32;
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        bytes
    };
    let extension = |tag: u16| {
        let mut bytes = tag.to_le_bytes().to_vec();
        bytes.extend_from_slice(&[0, 0, 1, 0, 0, 0, 0xaa]);
        bytes
    };
    let announced = |len: u32| {
        let mut bytes = good("ping");
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        bytes
    };
    let mut cases = vec![
        ("length-0", announced(0), Code::Malformed),
        ("length-11", announced(11), Code::Malformed),
        ("length-over", announced(MESSAGE_BYTES_MAX - 3), Code::TooLarge),
        ("length-max", announced(u32::MAX), Code::TooLarge),
        ("flags-unknown", changed("ping", 5, 0x80), Code::Malformed),
        ("flags-response-and-push", changed("ping", 5, 3), Code::Malformed),
        ("flags-more", changed("ping", 5, 4), Code::Malformed),
        ("flags-push", changed("ping", 5, 2), Code::Malformed),
        ("op-unknown", changed("ping", 4, 0x7f), Code::UnknownOp),
        ("op-of-servers", changed("ping", 4, 0x31), Code::Malformed),
        ("op-version", changed("cursor-list", 6, 2), Code::OpVersion),
        ("ping-too-long", longer("ping", &[0; PING_BYTES_MAX]), Code::Malformed),
        ("append-flag", changed("append", 16, 2), Code::Malformed),
        ("append-reserved", changed("append", 17, 1), Code::Malformed),
        ("append-too-many", changed("append", 19, 0x20), Code::BatchTooLarge),
        ("append-frame-flag", changed("append", 24, 8), Code::Malformed),
        ("append-ttl", changed("append", 25, 4), Code::Malformed),
        ("append-topic-rule", changed("append", 36, b'9'), Code::InvalidValue),
        ("append-topic-utf8", changed("append", 36, 0xff), Code::Malformed),
        ("append-meta-json", changed("append", 39, b'x'), Code::InvalidValue),
        ("append-extension", longer("append", &extension(1)), Code::UnknownExtension),
        ("append-extension-cut", longer("append", &[1, 0, 0, 0, 9, 0, 0, 0]), Code::Malformed),
        ("fetch-flag", changed("fetch", 20, 0xff), Code::Malformed),
        ("fetch-start", changed("fetch", 21, 5), Code::Malformed),
        ("fetch-follow", changed("fetch", 20, 0x3f), Code::InvalidRead),
        ("get-bound", changed("get-by-offset", 16, 2), Code::Malformed),
        ("credit-extension", longer("credit", &extension(0x8000)), Code::Malformed),
        ("hello-name-length", changed("hello", 37, 0xff), Code::Malformed),
    ];
    for name in [
        "hello",
        "append",
        "fetch",
        "get-by-id",
        "last",
        "topics",
        "subscribe",
        "credit",
        "cursor-get",
        "blob-has",
        "blob-get",
        "call",
    ] {
        cases.push((name, shorter(name), Code::Malformed));
    }
    cases
}

#[test]
fn malformed_messages_of_clients() {
    let code_of = |bytes: &[u8]| {
        let mut bytes = BytesMut::from(bytes);
        let envelope = match codec().next(&mut bytes) {
            Ok(envelope) => envelope.expect("a whole message"),
            Err(error) => return error.code(),
        };
        match Request::read(envelope).unwrap_err() {
            DecodeError::Protocol(error) => error.code(),
            DecodeError::Refused(refusal) => refusal.code,
        }
    };
    let all = malformed();
    let entry = |(name, bytes, code): &(&str, Vec<u8>, Code)| {
        json!({ "name": name, "hex": hex(bytes), "code": code.number(),
            "closes": code.number() < 200 })
    };
    let found = check_file("malformed.json", all.iter().map(entry).collect());
    for (entry, (name, _, code)) in found.iter().zip(all) {
        assert_eq!(code_of(&unhex(entry["hex"].as_str().unwrap())), code, "{name}");
    }
}

/// Every good message, bent at random, is read as something or refused: never a panic, and never
/// more memory than it has bytes.
#[test]
fn bent_messages_are_survived() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let of_clients = requests().into_iter().map(|(_, corr, sub, request)| {
        let mut out = Gather::default();
        request.put(corr, sub, MESSAGE_BYTES_MAX, &mut out).unwrap();
        out.take_all()
    });
    let of_servers = replies().into_iter().map(|(_, header, put)| {
        let mut out = Gather::default();
        out.begin(header);
        put(&mut out);
        out.finish();
        out.take_all()
    });
    let all: Vec<Bytes> = of_clients.chain(of_servers).collect();
    let (mut read, mut refused) = (0, 0);
    for round in 0..100_000 {
        let mut bytes = BytesMut::from(&all[round % all.len()][..]);
        for _ in 0..=random(3) {
            let at = random(bytes.len());
            match random(4) {
                0 => bytes.truncate(at.max(4)),
                1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random(5)],
                2 => bytes[at] ^= 1 << random(8),
                _ => bytes.extend_from_slice(&[0xff; 9][..random(9)]),
            }
        }
        // Mostly the length is made right again, or little would get past it.
        if random(8) > 0 && bytes.len() >= 16 {
            let len = (bytes.len() - 4) as u32;
            bytes[..4].copy_from_slice(&len.to_le_bytes());
        }
        let Ok(Some(envelope)) = codec().next(&mut bytes) else {
            refused += 1;
            continue;
        };
        let request = Request::read(envelope.clone()).is_ok();
        if request || Incoming::read(envelope).is_ok() { read += 1 } else { refused += 1 }
    }
    assert!(read > 5_000 && refused > 5_000, "{read} were read, {refused} refused");
}
