//! Messages from servers.

use bytes::Bytes;
use xs_engine::{
    Appended, BlobHash, Cursor, CursorName, CursorSummary, Frame, Meta, NewFrame, Origin, Removal,
    Stamp, StoreUuid, TopicSummary,
};

use super::{id, records, topic};
use crate::codec::{FLAG_MORE, FLAG_PUSH, FLAG_RESPONSE, Header};
use crate::error::{Code, Detail, Refusal};
use crate::gather::Gather;
use crate::message::*;
use crate::service::StoreIdentity;

/// The bytes of a message.
pub(super) fn bytes_of((_, header, put): &Sent) -> Bytes {
    let mut out = Gather::default();
    out.begin(*header);
    put(&mut out);
    out.finish();
    out.take_all()
}

/// A message from a server, as its parts.
pub(super) type Sent = (&'static str, Header, Box<dyn Fn(&mut Gather)>);

#[expect(clippy::too_many_lines, reason = "a table")]
pub(super) fn replies() -> Vec<Sent> {
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
        store: StoreIdentity { uuid: StoreUuid::from_bytes([7; 16]), epoch: 3, head: 99 },
        limits: PeerLimits::OURS,
        name: "xs/test".to_owned(),
        ops: Op::RANGES.to_vec(),
    };
    let appended = Appended {
        frames: vec![Stamp { id: id(1), offset: Some(7) }, Stamp { id: id(2), offset: None }],
        cursors: vec![4, 0],
        durable: true,
        head: 8,
        ..Appended::default()
    };
    let removed = Appended {
        removed: vec![Removal::Removed, Removal::Absent],
        head: 9,
        ..Appended::default()
    };
    let imported = Imported {
        outcomes: vec![
            ImportOutcome::New,
            ImportOutcome::There,
            ImportOutcome::Refused(Code::ImportOrder),
        ],
        durable: true,
        head: 9,
    };
    let repeated = Appended {
        frames: vec![Stamp { id: id(1), offset: Some(7) }],
        repeated: true,
        head: 9,
        ..Appended::default()
    };
    let unmet = Refusal::new(
        Code::ConditionFailed,
        "condition 0 is not met: the newest frame of a.b has offset 57, above 41",
    )
    .with(Detail::Condition { index: 0, found: 57 });
    let reused = Refusal::new(Code::KeyReused, "key order 17 was used for another batch")
        .with(Detail::Frame(id(1)));
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
    let got = |name, frame: Frame| -> Sent {
        let next = frame.offset().unwrap() + 1;
        let put = move |out: &mut Gather| put_frames(out, std::slice::from_ref(&frame), &[], next);
        (name, response(Op::Get, 0, 7), Box::new(put))
    };
    let mut sent: Vec<Sent> = vec![
        ("hello-reply", response(Op::Hello, 0, 1), Box::new(move |out| hello.put(out))),
        ("pong", response(Op::Ping, 0, 2), Box::new(|out| out.put_slice(b"alive?"))),
        (
            "append-reply",
            response(Op::Append, 0, 3),
            Box::new(move |out| put_appended(out, &appended)),
        ),
        (
            "remove-reply",
            response(Op::Remove, 0, 18),
            Box::new(move |out| put_appended(out, &removed)),
        ),
        ("import-reply", response(Op::Import, 0, 19), Box::new(move |out| imported.put(out))),
        (
            "stats-reply",
            response(Op::Stats, 0, 20),
            Box::new(|out| out.put_slice(br#"{"server":{"connections":1},"store":{"head":9}}"#)),
        ),
        (
            "maintain-reply",
            response(Op::Maintain, 0, 22),
            Box::new(|out| out.put_slice(br#"{"head":9,"files_copied":3}"#)),
        ),
        (
            "append-repeated",
            response(Op::Append, 0, 3),
            Box::new(move |out| put_appended(out, &repeated)),
        ),
        (
            "append-condition-failed",
            response(Op::Append, 402, 3),
            Box::new(move |out| put_refusal(out, &unmet)),
        ),
        (
            "append-key-reused",
            response(Op::Append, 307, 3),
            Box::new(move |out| put_refusal(out, &reused)),
        ),
        (
            "append-refused",
            response(Op::Append, 400, 3),
            Box::new(move |out| {
                put_refusal(out, &conflict);
            }),
        ),
        ("get-none", response(Op::Get, 0, 7), Box::new(|out| put_frames(out, &[], &[], 0))),
        got("get-ttl-time", records::fleeting()),
        got("get-ttl-last", records::superseding()),
        got("get-old-id", records::imported()),
        got("get-all-fields", records::full()),
        (
            "topics-part",
            Header { flags: FLAG_RESPONSE | FLAG_MORE, ..response(Op::Topics, 0, 9) },
            Box::new(move |out| put_topic_summary(out, &summary)),
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
        ("cursor-get-none", response(Op::CursorGet, 0, 12), Box::new(|out| put_cursor(out, None))),
        (
            "cursor-list-reply",
            response(Op::CursorList, 0, 13),
            Box::new(move |out| {
                put_cursor_summary(out, &listed);
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
        (
            "blob-chunk-more",
            Header { flags: FLAG_PUSH | FLAG_MORE, ..push(Op::BlobChunk, 0, 3) },
            Box::new(|out| out.put_slice(b"piece")),
        ),
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
    let (first, rest) = (vec![records::fleeting()], vec![records::superseding(), records::full()]);
    for (name, flags, part) in [("last-part", FLAG_MORE, first), ("last-reply", 0, rest)] {
        let last = response(Op::Last, 0, 8);
        sent.push((
            name,
            Header { flags: last.flags | flags, ..last },
            Box::new(move |out| put_frames(out, &part, &[], 0)),
        ));
    }
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
        ("event-gap-conflated", StreamEvent::Gap(Gap::Conflated { from: 3, to: 90 })),
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
