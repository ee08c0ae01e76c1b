//! Every op over a real socket.

use bytes::Bytes;
use tokio::io::{AsyncWriteExt as _, copy_bidirectional};
use xs_engine::{
    BlobHash, Body, Bound, CursorChange, CursorName, CursorValue, ExpectRevision, Meta, NewFrame,
    ReadOptions, Start, StoreUuid, Topic, TopicPatterns, Ttl,
};
use xs_protocol::codec::Envelope;
use xs_protocol::{
    AppendRequest, CallRequest, Class, Client, ClientError, ClientOptions, Code, Detail,
    LastRequest, Op, Role, SubEvent, SubscribeOptions,
};

use crate::relay::up_to;
use crate::rig::{Rig, one, soon, until};

#[tokio::test]
async fn hello_tells_about_the_store_and_the_role() {
    for rig in [Rig::unix(Role::Admin).await, Rig::tcp().await] {
        let client = rig.client().await;
        let server = client.server();
        assert_eq!(
            (server.uuid, server.epoch, server.head),
            (StoreUuid::from_bytes([7; 16]), 1, 0)
        );
        assert_eq!((server.role, server.version), (Role::Admin, 1));
        assert_eq!(server.ops.len(), xs_protocol::Op::ALL.len());
        soon(client.ping()).await.unwrap();
    }
}

#[tokio::test]
async fn batches_are_appended_and_read_back() {
    let rig = Rig::unix(Role::Admin).await;
    let client = rig.client().await;
    let large = Bytes::from(vec![3; 100_000]);
    let frame = NewFrame {
        meta: Meta::parse(r#"{"n":1}"#).unwrap(),
        body: Body::Inline(large.clone()),
        ..NewFrame::new(Topic::parse("a.b").unwrap())
    };
    let note = NewFrame { ttl: Ttl::Ephemeral, ..NewFrame::new(Topic::parse("c").unwrap()) };
    let batch = AppendRequest::frames(vec![frame, note]);
    let appended = soon(client.append(&batch)).await.unwrap();
    assert_eq!((appended.frames[0].offset, appended.frames[1].offset), (Some(0), None));
    assert_eq!((appended.head, appended.durable), (1, true));
    let frame = soon(client.get(Bound::Id(appended.frames[0].id))).await.unwrap().unwrap();
    assert_eq!((frame.topic(), frame.meta(), frame.offset()), ("a.b", &br#"{"n":1}"#[..], Some(0)));
    assert_eq!(frame.hash(), Some(BlobHash::of(&large)));
    assert_eq!(soon(client.get(Bound::Offset(1))).await.unwrap(), None);
    let blob = soon(client.blob_get(&BlobHash::of(&large))).await.unwrap().unwrap();
    assert_eq!(soon(blob.bytes(large.len())).await.unwrap(), large);
}

#[tokio::test]
async fn fetches_go_from_page_to_page() {
    let rig = Rig::unix(Role::Read).await;
    rig.memory.fill(30_000, "a");
    rig.memory.fill(5, "b");
    let client = rig.client().await;
    let read = async |options: ReadOptions| {
        let mut stream = client.fetch(&options);
        let mut offsets = Vec::new();
        while let Some(frame) = soon(stream.next()).await {
            offsets.push(frame.unwrap().offset().unwrap());
        }
        offsets
    };
    let all = ReadOptions::default();
    assert_eq!(read(all.clone()).await, (0..30_005).collect::<Vec<_>>());
    let reverse = ReadOptions { reverse: true, ..all.clone() };
    assert_eq!(read(reverse.clone()).await, (0..30_005).rev().collect::<Vec<_>>());
    let limited = ReadOptions { limit: Some(25_000), ..reverse };
    assert_eq!(read(limited).await, (5_005..30_005).rev().collect::<Vec<_>>());
    let last = ReadOptions { start: Start::Last(20_000), ..all.clone() };
    assert_eq!(read(last).await, (10_005..30_005).collect::<Vec<_>>());
    let topics = TopicPatterns::parse("b").unwrap();
    let rare = ReadOptions { topics, ..all.clone() };
    assert_eq!(read(rare).await, (30_000..30_005).collect::<Vec<_>>());
    let none = ReadOptions { limit: Some(0), ..all.clone() };
    assert_eq!(read(none).await, Vec::<u64>::new());
    let follow = ReadOptions { follow: true, ..all };
    let refused = soon(client.fetch(&follow).next()).await.unwrap().unwrap_err();
    assert_eq!(refused.code(), Some(Code::InvalidRead), "it would end at the head");
}

/// In both directions, damage ends a page, is reported once, and is skipped.
#[tokio::test]
async fn fetches_tell_of_damage_and_go_on_behind_it() {
    let rig = Rig::unix(Role::Admin).await;
    rig.memory.fill(10, "a");
    rig.memory.damage(4);
    let client = rig.client().await;
    for (reverse, behind) in [(false, 5), (true, 4)] {
        let mut options = ReadOptions { reverse, ..ReadOptions::default() };
        let (mut seen, mut told) = (Vec::new(), 0);
        let mut pages = client.fetch(&options);
        while let Some(frame) = soon(pages.next()).await {
            match frame {
                Ok(frame) => seen.extend(frame.offset()),
                Err(ClientError::Refused(refusal)) => {
                    assert_eq!((refusal.code, told), (Code::Corrupt, 0));
                    assert_eq!(refusal.message, "frame 4 cannot be read; go on behind it");
                    assert_eq!(refusal.details, [Detail::Offset(behind)]);
                    told += 1;
                    match reverse {
                        true => options.before = Some(Bound::Offset(behind)),
                        false => options.start = Start::From(Bound::Offset(behind)),
                    }
                    pages = client.fetch(&options);
                }
                Err(error) => panic!("{error}"),
            }
        }
        let mut expected: Vec<_> = (0..10).filter(|offset| *offset != 4).collect();
        if reverse {
            expected.reverse();
        }
        assert_eq!((seen, told), (expected, 1));
    }
}

#[tokio::test]
async fn last_and_topics_answer_in_parts() {
    let rig = Rig::unix(Role::Read).await;
    rig.memory.fill(10_000, "a");
    for n in 0..2_000 {
        rig.memory.fill(1, &format!("t.{n:04}"));
    }
    let client = rig.client().await;
    let last = |n, topics: &str, per_topic| {
        let topics = TopicPatterns::parse(topics).unwrap();
        client.last(&LastRequest { topics, n, per_topic })
    };
    let frames = soon(last(9_000, "a", false)).await.unwrap();
    assert_eq!((frames.len(), frames[0].offset()), (9_000, Some(1_000)));
    assert_eq!(soon(last(1, "*", true)).await.unwrap().len(), 2_001);
    assert_eq!(soon(last(1, "none", false)).await.unwrap(), []);
    let topics = soon(client.topics(&TopicPatterns::all())).await.unwrap();
    assert_eq!((topics.len(), topics[0].count), (2_001, 10_000));
    assert_eq!(topics[2_000].topic.as_str(), "t.1999");
    assert_eq!(soon(client.topics(&TopicPatterns::parse("none").unwrap())).await.unwrap(), []);
}

#[tokio::test]
async fn cursors_compare_and_set() {
    let rig = Rig::unix(Role::Append).await;
    let client = rig.client().await;
    let name = CursorName::parse("mine").unwrap();
    let change = |expect, set| CursorChange { name: name.clone(), expect, set };
    let state = Bytes::from_static(b"state");
    assert_eq!(soon(client.cursor_get(&name)).await.unwrap(), None);
    let set = Some(CursorValue { offset: 7, state: state.clone() });
    assert_eq!(
        soon(client.cursor_set(change(ExpectRevision::Is(0), set.clone()))).await.unwrap(),
        1
    );
    let cursor = soon(client.cursor_get(&name)).await.unwrap().unwrap();
    assert_eq!((cursor.revision, cursor.offset, cursor.state), (1, 7, state));
    let error = soon(client.cursor_set(change(ExpectRevision::Is(0), set))).await.unwrap_err();
    let xs_protocol::ClientError::Refused(refusal) = error else { panic!("{error}") };
    assert_eq!((refusal.code, refusal.code.class()), (Code::CursorConflict, Class::Condition));
    assert_eq!(refusal.details, [Detail::Cursor { name: name.clone(), revision: 1 }]);
    let batch = AppendRequest {
        cursors: vec![change(
            ExpectRevision::Is(1),
            Some(CursorValue { offset: 8, ..CursorValue::default() }),
        )],
        ..one("a")
    };
    assert_eq!(soon(client.append(&batch)).await.unwrap().cursors, [2]);
    let list = soon(client.cursor_list()).await.unwrap();
    assert_eq!((list.len(), list[0].offset, list[0].state_bytes), (1, 8, 0));
    assert_eq!(soon(client.cursor_set(change(ExpectRevision::Any, None))).await.unwrap(), 0);
    assert_eq!(soon(client.cursor_list()).await.unwrap(), []);
}

#[tokio::test]
async fn blobs_stream_both_ways() {
    let rig = Rig::tcp().await;
    let client = rig.client().await;
    let large: Vec<u8> = (0..9_000_001u32).map(|n| (n % 251) as u8).collect();
    let (hash, len) = soon(client.blob_put(&large[..])).await.unwrap();
    assert_eq!((hash, len), (BlobHash::of(&large), large.len() as u64));
    assert!(soon(client.blob_has(&hash)).await.unwrap());
    assert!(!soon(client.blob_has(&BlobHash::of(b"other"))).await.unwrap());
    let blob = soon(client.blob_get(&hash)).await.unwrap().unwrap();
    assert_eq!(blob.len(), large.len() as u64);
    assert!(soon(blob.bytes(large.len())).await.unwrap() == large);
    let blob = soon(client.blob_get(&hash)).await.unwrap().unwrap();
    assert!(matches!(blob.bytes(large.len() - 1).await, Err(error) if error.code().is_none()));
    for bytes in [&b""[..], b"x", &large[..256 * 1024], &large[..256 * 1024 + 1]] {
        let hash = soon(client.blob_put_bytes(Bytes::copy_from_slice(bytes))).await.unwrap();
        assert_eq!(soon(client.blob_put(bytes)).await.unwrap().0, hash);
        let blob = soon(client.blob_get(&hash)).await.unwrap().unwrap();
        assert_eq!(soon(blob.bytes(bytes.len())).await.unwrap(), bytes);
    }
    assert!(soon(client.blob_get(&BlobHash::of(b"other"))).await.unwrap().is_none());
    // Other bytes of the same length.
    for len in [5, 600_000] {
        rig.memory.swap_blob(BlobHash::of(&large[1..=len]), &large[..len]);
        let blob = soon(client.blob_get(&BlobHash::of(&large[1..=len]))).await.unwrap().unwrap();
        let error = soon(blob.bytes(len)).await.unwrap_err();
        assert!(matches!(error, ClientError::Integrity(_)), "{error}");
    }
}

#[tokio::test]
async fn a_refused_upload_leaves_the_connection_whole() {
    let rig = Rig::unix(Role::Append).await;
    let client = rig.client().await;
    let mut bytes = vec![0; 8_000_000];
    bytes[..4].copy_from_slice(b"full");
    let error = soon(client.blob_put(&bytes[..])).await.unwrap_err();
    assert_eq!((error.code(), error.class()), (Some(Code::StorageFull), Class::Busy));
    soon(client.ping()).await.unwrap();
    let failing = tokio_util::io::StreamReader::new(futures::stream::iter([
        Ok(Bytes::from_static(b"begun")),
        Err(std::io::Error::other("the disk is gone")),
    ]));
    let error = soon(client.blob_put(failing)).await.unwrap_err();
    assert!(matches!(error, xs_protocol::ClientError::Source { .. }), "{error}");
    soon(client.ping()).await.unwrap();
}

/// An upload that waited for its source used to notice the lost connection only with the next
/// bytes.
#[tokio::test]
async fn an_upload_from_a_silent_source_ends_with_its_connection() {
    let rig = Rig::unix(Role::Append).await;
    for begun in [0, 10, 3_000_000] {
        let (ours, mut near) = tokio::io::duplex(64 * 1024);
        let (mut far, theirs) = tokio::io::duplex(64 * 1024);
        rig.server.adopt(theirs, Role::Append);
        let way = tokio::spawn(async move { copy_bidirectional(&mut near, &mut far).await });
        let client = Client::over(ours, ClientOptions::default()).await.unwrap();
        let (mut to, from) = tokio::io::duplex(64 * 1024);
        let upload = tokio::spawn({
            let client = client.clone();
            async move { client.blob_put(from).await }
        });
        soon(to.write_all(&vec![7; begun])).await.unwrap();
        soon(client.ping()).await.unwrap();
        way.abort();
        let error = soon(upload).await.unwrap().unwrap_err();
        assert!(matches!(error, ClientError::Disconnected(_)), "{error:?}");
        drop(to);
    }
}

#[tokio::test]
async fn calls_stream_results_and_are_cancelled_by_dropping_them() {
    let rig = Rig::unix(Role::Append).await;
    let client = rig.client().await;
    let call = |name: &str| CallRequest {
        body: Bytes::from_static(b"hello"),
        bodies_up_to: 100,
        ..CallRequest::new(Topic::parse(name).unwrap())
    };
    let mut results = soon(client.call(&call("echo"))).await.unwrap();
    let first = soon(results.next()).await.unwrap().unwrap();
    assert_eq!((first.frame.topic(), first.body.as_deref()), ("echo.recv", Some(&b"hello"[..])));
    assert_eq!(first.frame.origin().unwrap().input, Some(results.id()));
    let second = soon(results.next()).await.unwrap().unwrap();
    assert_eq!(second.frame.topic(), "echo.complete");
    assert!(soon(results.next()).await.is_none());
    let hanging = soon(client.call(&call("hang"))).await.unwrap();
    let id = hanging.id();
    drop(hanging);
    until(|| rig.memory.cancelled() == [id]).await;
    let error = soon(client.call(&call("none"))).await.err().unwrap();
    assert_eq!(error.code(), Some(Code::UnknownCommand));
    let mut call = call("hang");
    call.deadline = Some(std::time::Duration::from_millis(5));
    let mut late = soon(client.call(&call)).await.unwrap();
    let error = soon(late.next()).await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(Code::DeadlinePassed));
    assert!(soon(late.next()).await.is_none());
    until(|| rig.memory.cancelled().len() == 2).await;
}

/// A caller that got an error about the lost connection would repeat the call.
#[tokio::test]
async fn a_call_is_over_with_its_last_frame() {
    let rig = Rig::unix(Role::Append).await;
    let (ours, near) = tokio::io::duplex(64 * 1024);
    let (far, theirs) = tokio::io::duplex(64 * 1024);
    rig.server.adopt(theirs, Role::Append);
    let is_end = |envelope: &Envelope| {
        envelope.header.op == Op::SubEvent as u8 && envelope.body.first() == Some(&5)
    };
    tokio::spawn(up_to(near, far, false, is_end));
    let client = Client::over(ours, ClientOptions::default()).await.unwrap();
    let echo = CallRequest::new(Topic::parse("echo").unwrap());
    let mut results = soon(client.call(&echo)).await.unwrap();
    for event in ["echo.recv", "echo.complete"] {
        assert_eq!(soon(results.next()).await.unwrap().unwrap().frame.topic(), event);
    }
    assert!(soon(results.next()).await.is_none());
    assert!(soon(client.ping()).await.is_err(), "the connection is gone");
}

#[tokio::test]
async fn roles_are_enforced() {
    let rig = Rig::unix(Role::Read).await;
    let client = rig.client().await;
    let error = soon(client.append(&one("a"))).await.unwrap_err();
    assert_eq!((error.code(), error.class()), (Some(Code::Denied), Class::Access));
    assert!(soon(client.blob_put(&b"x"[..])).await.is_err());
    soon(client.ping()).await.unwrap();
    let host = rig.connect_as(Role::Host).await;
    soon(host.append(&one("xs.handler.a.active"))).await.unwrap();
    assert!(soon(host.append(&one("xs.start"))).await.is_err());
}

/// Takes frames of a subscription until there are `count`.
async fn take(subscription: &mut xs_protocol::Subscription, count: usize) -> Vec<u64> {
    let mut offsets = Vec::new();
    while offsets.len() < count {
        match soon(subscription.next()).await.unwrap().unwrap() {
            SubEvent::Frames { frames, .. } => {
                offsets.extend(frames.iter().map(|one| one.frame.offset().unwrap()));
            }
            SubEvent::CaughtUp { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    offsets
}

async fn follow(client: &Client, how: SubscribeOptions) -> xs_protocol::Subscription {
    let options = ReadOptions { follow: true, ..ReadOptions::default() };
    soon(client.subscribe(&options, how)).await.unwrap()
}

#[tokio::test]
async fn subscriptions_catch_up_and_go_on() {
    let rig = Rig::unix(Role::Admin).await;
    rig.memory.fill(1_000, "a");
    let (reader, writer) = (rig.client().await, rig.client().await);
    let mut subscription = follow(&reader, SubscribeOptions::default()).await;
    let mut offsets = Vec::new();
    loop {
        match soon(subscription.next()).await.unwrap().unwrap() {
            SubEvent::Frames { frames, .. } => {
                offsets.extend(frames.iter().map(|one| one.frame.offset().unwrap()));
            }
            SubEvent::CaughtUp { head } => {
                assert_eq!((head, offsets.len()), (1_000, 1_000));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    for _ in 0..100 {
        soon(writer.append(&one("a"))).await.unwrap();
    }
    offsets.extend(take(&mut subscription, 100).await);
    assert_eq!(offsets, (0..1_100).collect::<Vec<_>>());
    assert_eq!(subscription.position(), Some(1_100));
    drop(subscription);
    until(|| rig.memory.followers() == 0).await;
    soon(reader.ping()).await.unwrap();
}

#[tokio::test]
async fn a_slow_subscriber_is_waited_for_and_misses_nothing() {
    let rig = Rig::unix(Role::Admin).await;
    let (reader, writer) = (rig.client().await, rig.client().await);
    let credit = 1_000;
    let how = SubscribeOptions { credit, ..SubscribeOptions::default() };
    let mut slow = follow(&reader, how).await;
    for _ in 0..200 {
        let frames = vec![NewFrame::new(Topic::parse("a").unwrap()); 50];
        soon(writer.append(&AppendRequest::frames(frames))).await.unwrap();
    }
    // It does not delay others on the same connection.
    let mut other = follow(&reader, SubscribeOptions::default()).await;
    assert_eq!(take(&mut other, 10_000).await, (0..10_000).collect::<Vec<_>>());
    assert_eq!(take(&mut slow, 10_000).await, (0..10_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn pulses_bodies_and_the_end_of_a_limit() {
    let rig = Rig::unix(Role::Admin).await;
    let client = rig.client().await;
    let frame = |body: &[u8]| NewFrame {
        body: Body::Inline(Bytes::copy_from_slice(body)),
        ..NewFrame::new(Topic::parse("a").unwrap())
    };
    let batch = AppendRequest::frames(vec![frame(b"small"), frame(&[0; 101])]);
    soon(client.append(&batch)).await.unwrap();
    let how = SubscribeOptions {
        bodies_up_to: 100,
        pulse: Some(std::time::Duration::from_millis(10)),
        ..SubscribeOptions::default()
    };
    let options = ReadOptions { follow: true, limit: Some(3), ..ReadOptions::default() };
    let mut subscription = soon(client.subscribe(&options, how)).await.unwrap();
    let SubEvent::Frames { frames, scanned_to } = soon(subscription.next()).await.unwrap().unwrap()
    else {
        panic!("no frames")
    };
    assert_eq!((frames.len(), scanned_to), (2, 2));
    assert_eq!(frames[0].body.as_deref(), Some(&b"small"[..]));
    assert_eq!(frames[1].body, None);
    assert_eq!(soon(subscription.next()).await.unwrap().unwrap(), SubEvent::CaughtUp { head: 2 });
    assert_eq!(soon(subscription.next()).await.unwrap().unwrap(), SubEvent::Pulse);
    soon(client.append(&one("a"))).await.unwrap();
    loop {
        match soon(subscription.next()).await {
            Some(Ok(SubEvent::Pulse)) => {}
            Some(Ok(SubEvent::Frames { frames, .. })) => assert_eq!(frames.len(), 1),
            other => {
                assert!(other.is_none(), "{other:?}");
                break;
            }
        }
    }
}
