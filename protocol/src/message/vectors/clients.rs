//! Messages from clients.

use std::num::NonZeroU64;
use std::time::Duration;

use bytes::Bytes;
use xs_engine::{
    BlobHash, Body as FrameBody, Bound, Condition, CursorChange, CursorName, CursorValue,
    ExpectRevision, Frame, IdempotencyKey, Meta, NewFrame, Origin, ReadOptions, Start, StoreUuid,
    TopicPatterns, Ttl,
};

use super::{id, topic};
use crate::gather::Gather;
use crate::limits::MESSAGE_BYTES_MAX;
use crate::message::*;

/// A message from a client: its name, number, stream and value.
pub(in crate::message) type Sent = (&'static str, u32, u32, Request);

/// The bytes of a message.
pub(super) fn bytes_of((_, corr, sub, request): &Sent) -> Bytes {
    let mut out = Gather::default();
    request.put(*corr, *sub, MESSAGE_BYTES_MAX, &mut out).unwrap();
    out.take_all()
}

fn batch() -> AppendRequest {
    let origin = Origin { processor: id(1), input: Some(id(2)), input_offset: Some(9), hops: 1 };
    let frame = NewFrame::new(topic("a.b"));
    AppendRequest {
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
            set: Some(CursorValue { offset: 10, state: Bytes::from_static(b"{}") }),
        }],
        durable: true,
        ..AppendRequest::default()
    }
}

/// A batch that is stored once, and only when there were no other writes meanwhile.
fn conditional() -> AppendRequest {
    AppendRequest {
        conditions: vec![
            Condition::LastAtMost { topics: TopicPatterns::parse("a.b,c.*").unwrap(), offset: 7 },
            Condition::Empty(TopicPatterns::all()),
            Condition::HeadIs(9),
        ],
        key: Some(IdempotencyKey::parse("order 17").unwrap()),
        ..AppendRequest::frames(vec![NewFrame::new(topic("a.b"))])
    }
}

/// A batch that replaces older frames.
fn removing() -> AppendRequest {
    AppendRequest {
        removes: vec![Bound::Id(id(2)), Bound::Offset(40)],
        removes_within: Some(TopicPatterns::parse("a.*").unwrap()),
        ..AppendRequest::frames(vec![NewFrame::new(topic("a.b"))])
    }
}

/// Frames as an export delivers them, one with its body.
fn imported() -> Vec<Delivered> {
    let new = NewFrame { meta: Meta::parse(r#"{"n":1}"#).unwrap(), ..NewFrame::new(topic("a.b")) };
    let frame = |n, offset, body: Option<&[u8]>| {
        let body = body.map(|bytes| (bytes.len() as u64, BlobHash::of(bytes)));
        Frame::assemble(&new, id(n), Some(offset), body).unwrap()
    };
    let body = Some(Bytes::from_static(b"hello"));
    vec![
        Delivered { frame: frame(1, 7, None), body: None },
        Delivered { frame: frame(3, 9, Some(b"hello")), body },
    ]
}

#[expect(clippy::too_many_lines, reason = "a table")]
pub(in crate::message) fn requests() -> Vec<Sent> {
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
    let how = SubscribeOptions {
        credit: 1000,
        pulse: Some(Duration::from_secs(1)),
        bodies_up_to: 4096,
        ..SubscribeOptions::default()
    };
    let resumed = SubscribeOptions {
        resume: Some(Resume { store: StoreUuid::from_bytes([7; 16]), epoch: 3 }),
        slow: Slow::Latest { behind: 100 },
        ..how
    };
    let start = Start::From(Bound::Offset(41));
    let resume = ReadOptions { follow: true, start, ..ReadOptions::default() };
    let dropped = SubscribeOptions { slow: Slow::Drop { behind: 10_000 }, ..how };
    let remove_now = RemoveRequest {
        frames: vec![Bound::Id(id(2)), Bound::Offset(40)],
        within: Some(TopicPatterns::parse("a.*").unwrap()),
        durable: true,
        now: true,
    };
    let import = ImportRequest { frames: imported(), ids: ImportIds::Verbatim, durable: true };
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
    let origin = Some(Origin { processor: id(1), input: Some(id(2)), input_offset: None, hops: 3 });
    let call_of_host = CallRequest { origin, ..call.clone() };
    let hello = HelloRequest {
        versions: (1, 1),
        records: (1, 1),
        features: 0,
        message_bytes: 2 << 20,
        name: "test/1".to_owned(),
        token: String::new(),
        host: None,
    };
    let host = |alone: Option<&str>| HelloRequest {
        host: Some(HostClaim { instance: [7; 16], alone: alone.map(topic) }),
        ..hello.clone()
    };
    let shown = HelloRequest { token: format!("xst_{}", "A".repeat(43)), ..hello.clone() };
    let last = LastRequest { topics: TopicPatterns::all(), n: 10, per_topic: true };
    let grace = Duration::from_secs(3600);
    let gc = MaintainRequest::Gc { grace, dead_percent: 25, dry_run: true };
    let compact = MaintainRequest::Compact { dead_percent: 50 };
    let fork = MaintainRequest::Fork { to: "/stores/fork".to_owned() };
    let backup = MaintainRequest::Backup { to: "/backups/store".to_owned(), link: true };
    let chunk = |last| Request::BlobChunk { bytes: Bytes::from_static(b"piece"), last };
    vec![
        ("hello", 1, 0, Request::Hello(hello.clone())),
        ("hello-token", 1, 0, Request::Hello(shown)),
        ("hello-host", 1, 0, Request::Hello(host(None))),
        ("hello-host-alone", 1, 0, Request::Hello(host(Some("report")))),
        ("ping", 2, 0, Request::Ping(Bytes::from_static(b"alive?"))),
        ("pong", 0, 0, Request::Pong(Bytes::new())),
        ("append", 3, 0, Request::Append(batch())),
        ("append-conditions", 3, 0, Request::Append(conditional())),
        ("append-removes", 3, 0, Request::Append(removing())),
        ("append-empty", 4, 0, Request::Append(AppendRequest::default())),
        ("remove", 18, 0, Request::Remove(remove_now)),
        ("import", 19, 0, Request::Import(import)),
        ("fetch", 5, 0, Request::Fetch(FetchRequest { options, page_bytes: 65_536 })),
        ("get-by-offset", 6, 0, Request::Get(Bound::Offset(7))),
        ("get-by-id", 7, 0, Request::Get(Bound::Id(id(4)))),
        ("last", 8, 0, Request::Last(last)),
        ("topics", 9, 0, Request::Topics(TopicPatterns::everything())),
        ("subscribe", 10, 1, Request::Subscribe(SubscribeRequest { options: follow.clone(), how })),
        (
            "subscribe-resumed",
            10,
            1,
            Request::Subscribe(SubscribeRequest { options: resume, how: resumed }),
        ),
        (
            "subscribe-drop",
            10,
            1,
            Request::Subscribe(SubscribeRequest { options: follow, how: dropped }),
        ),
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
        ("call-of-host", 18, 6, Request::Call { credit: 1 << 20, call: call_of_host }),
        ("stats", 20, 0, Request::Stats),
        ("maintain-verify", 23, 0, Request::Maintain(MaintainRequest::Verify)),
        ("maintain-compact", 24, 0, Request::Maintain(compact)),
        ("maintain-fork", 25, 0, Request::Maintain(fork)),
        ("maintain-gc", 21, 0, Request::Maintain(gc)),
        ("maintain-backup", 22, 0, Request::Maintain(backup)),
    ]
}
