//! Order, pipelining, back-pressure and the shutdown of a server.

use std::collections::VecDeque;

use tokio::io::AsyncReadExt as _;
use xs_engine::{BlobHash, Bound, Frame, NewFrame, ReadOptions, Start, Topic, TopicPatterns};
use xs_protocol::codec::PREFACE;
use xs_protocol::{
    AppendRequest, CallRequest, Class, ClientError, Code, LastRequest, Op, Role, SubEvent,
    SubscribeOptions, limits,
};

use crate::raw::{Raw, header, hello_body, message};
use crate::rig::{Rig, one, soon, until};

#[tokio::test]
async fn appends_are_pipelined_and_share_a_commit() {
    let rig = Rig::unix(Role::Admin).await;
    let client = rig.client().await;
    rig.memory.hold();
    let replies: VecDeque<_> = (0..100).map(|_| client.append(&one("a"))).collect();
    until(|| rig.memory.waiting() == 100).await;
    // Other requests are answered meanwhile.
    soon(client.ping()).await.unwrap();
    rig.memory.release();
    for (n, reply) in replies.into_iter().enumerate() {
        assert_eq!(soon(reply).await.unwrap().frames[0].offset, Some(n as u64));
    }
    assert_eq!(rig.memory.commits(), 1);
}

/// Streams are numbered in the order of their requests, whichever threads make them: otherwise a
/// server closes the connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn threads_open_streams_of_one_client_side_by_side() {
    let rig = Rig::unix(Role::Admin).await;
    let client = rig.client().await;
    let openers: Vec<_> = (0..4)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                for _ in 0..500 {
                    let how = SubscribeOptions::default();
                    let _ = soon(client.subscribe(&ReadOptions::default(), how)).await?;
                }
                Ok::<_, ClientError>(())
            })
        })
        .collect();
    for opener in openers {
        opener.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn beyond_the_window_the_server_stops_reading_and_goes_on_later() {
    let rig = Rig::unix(Role::Admin).await;
    let client = rig.client().await;
    rig.memory.hold();
    let window = limits::REQUESTS_MAX as usize;
    let replies: Vec<_> = (0..window + 200).map(|_| client.append(&one("a"))).collect();
    until(|| rig.memory.waiting() == window).await;
    let other = rig.client().await;
    soon(other.ping()).await.unwrap();
    assert_eq!(rig.memory.waiting(), window);
    rig.memory.release();
    for (n, reply) in replies.into_iter().enumerate() {
        assert_eq!(soon(reply).await.unwrap().frames[0].offset, Some(n as u64));
    }
}

#[tokio::test]
async fn a_peer_that_does_not_read_holds_a_bounded_queue_and_loses_nothing() {
    let rig = Rig::unix(Role::Admin).await;
    rig.memory.fill(200_000, "a");
    let (mut stream, theirs) = tokio::io::duplex(4096);
    rig.server.adopt(theirs, Role::Read);
    let mut bytes = PREFACE.to_vec();
    bytes.extend_from_slice(&message(header(Op::Hello, 1, 0), &hello_body()));
    // Unlimited credit: only the connection's own bound stops the server.
    let mut subscribe = vec![0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
    subscribe.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1, 0, 1, 0, b'*']);
    bytes.extend_from_slice(&message(header(Op::Subscribe, 2, 1), &subscribe));
    tokio::io::AsyncWriteExt::write_all(&mut stream, &bytes).await.unwrap();
    // Other connections work meanwhile.
    let client = rig.client().await;
    for _ in 0..100 {
        soon(client.append(&one("a"))).await.unwrap();
    }
    assert!(rig.memory.pulled() < 20_000, "{} frames were queued", rig.memory.pulled());
    let mut codec = xs_protocol::codec::Codec::new(limits::SERVER_MESSAGE_BYTES_MAX);
    let (mut inbox, mut scanned_to) = (bytes::BytesMut::new(), 0);
    while scanned_to < 200_100 {
        soon(stream.read_buf(&mut inbox)).await.unwrap();
        while let Some(envelope) = codec.next(&mut inbox).unwrap() {
            if envelope.header.op == Op::Deliver as u8 {
                let next = u64::from_le_bytes(envelope.body[..8].try_into().unwrap());
                assert!(next > scanned_to);
                scanned_to = next;
            }
        }
    }
}

#[tokio::test]
async fn answers_that_are_not_read_hold_up_who_asks_and_nobody_else() {
    const PINGS: u32 = 100_000;
    let rig = Rig::unix(Role::Admin).await;
    let (stream, theirs) = tokio::io::duplex(4096);
    rig.server.adopt(theirs, Role::Read);
    let (mut reader, mut writer) = tokio::io::split(stream);
    let asking = tokio::spawn(async move {
        let mut bytes = PREFACE.to_vec();
        bytes.extend_from_slice(&message(header(Op::Hello, 1, 0), &hello_body()));
        for n in 0..PINGS {
            bytes.extend_from_slice(&message(header(Op::Ping, n + 2, 0), &[1; 64]));
        }
        tokio::io::AsyncWriteExt::write_all(&mut writer, &bytes).await.unwrap();
        writer
    });
    let client = rig.client().await;
    for _ in 0..100 {
        soon(client.append(&one("a"))).await.unwrap();
    }
    assert!(!asking.is_finished(), "all was read, and the answers are queued");
    let mut codec = xs_protocol::codec::Codec::new(limits::SERVER_MESSAGE_BYTES_MAX);
    let (mut inbox, mut last) = (bytes::BytesMut::new(), 0);
    while last < PINGS + 1 {
        soon(reader.read_buf(&mut inbox)).await.unwrap();
        while let Some(envelope) = codec.next(&mut inbox).unwrap() {
            assert_eq!(envelope.header.corr, last + 1);
            last = envelope.header.corr;
        }
    }
    drop(soon(asking).await.unwrap());
}

#[tokio::test]
async fn long_lists_are_made_as_they_are_taken() {
    const FRAMES: u64 = 60_000;
    const LISTS: usize = 5;
    let rig = Rig::unix(Role::Admin).await;
    rig.memory.fill(FRAMES, "a");
    let (mut stream, theirs) = tokio::io::duplex(4096);
    rig.server.adopt(theirs, Role::Read);
    let mut bytes = PREFACE.to_vec();
    bytes.extend_from_slice(&message(header(Op::Hello, 1, 0), &hello_body()));
    let last = |n: u64| [&n.to_le_bytes()[..], b"\0\x01\0\x01\0*"].concat();
    for n in 0..LISTS as u32 {
        bytes.extend_from_slice(&message(header(Op::Last, n + 2, 0), &last(FRAMES)));
    }
    // A short list does not wait for the long ones.
    bytes.extend_from_slice(&message(header(Op::Last, 99, 0), &last(128)));
    tokio::io::AsyncWriteExt::write_all(&mut stream, &bytes).await.unwrap();
    until(|| rig.memory.lists() == 1).await;
    let client = rig.client().await;
    for _ in 0..100 {
        soon(client.append(&one("a"))).await.unwrap();
    }
    assert_eq!(rig.memory.lists(), 1, "lists are made that nobody takes");
    let mut codec = xs_protocol::codec::Codec::new(limits::SERVER_MESSAGE_BYTES_MAX);
    let (mut inbox, mut whole) = (bytes::BytesMut::new(), 0);
    while whole < LISTS + 1 {
        soon(stream.read_buf(&mut inbox)).await.unwrap();
        while let Some(envelope) = codec.next(&mut inbox).unwrap() {
            let is_answer = envelope.header.op == Op::Last as u8 && envelope.header.code == 0;
            whole += usize::from(is_answer && !envelope.header.has_more());
        }
    }
    assert_eq!(rig.memory.lists(), LISTS);
}

/// A client that requests 60,000 topics and reads none causes only a few pages to be looked up.
#[tokio::test]
async fn topics_that_are_not_taken_are_not_looked_up() {
    const TOPICS: usize = 60_000;
    let rig = Rig::unix(Role::Admin).await;
    (0..TOPICS).for_each(|n| rig.memory.fill(1, &format!("topic.of.many.{n}")));
    let mut raw = Raw::open(&rig, Role::Read).await;
    raw.send(&message(header(Op::Topics, 2, 0), b"\x01\0\x01\0*")).await;
    let client = rig.client().await;
    let (mut seen, mut now) = (0, 1);
    while seen != now {
        seen = now;
        for _ in 0..100 {
            soon(client.ping()).await.unwrap();
        }
        until(|| rig.memory.pages() > 0).await;
        now = rig.memory.pages();
    }
    assert!(now < TOPICS / 1024 / 2, "{now} pages");
    let mut bytes = 0;
    loop {
        let part = raw.receive().await.unwrap();
        // On a slow machine the connection may look idle.
        if part.header.op == Op::Ping as u8 {
            continue;
        }
        assert_eq!((part.header.op, part.header.corr, part.header.code), (Op::Topics as u8, 2, 0));
        bytes += part.body.len();
        if !part.header.has_more() {
            break;
        }
    }
    assert!(bytes > 60 * TOPICS, "{bytes} bytes");
    let summaries = soon(client.topics(&TopicPatterns::all())).await.unwrap();
    assert_eq!(summaries.len(), TOPICS);
    assert!(summaries.is_sorted_by(|a, b| a.topic < b.topic));
}

/// The total bytes of lists that are not read are limited over all connections. A list makes room
/// for others when its connection ends or, if it is the oldest, after some time.
#[tokio::test]
async fn lists_that_nobody_takes_give_way() {
    const FRAMES: u64 = 400_000;
    const BUSY: u16 = Code::Busy.number();
    let rig = Rig::unix(Role::Admin).await;
    rig.memory.fill(FRAMES, "a");
    let body = [&FRAMES.to_le_bytes()[..], b"\0\x01\0\x01\0*"].concat();
    let ask =
        async |raw: &mut Raw, corr| raw.ask(header(Op::Last, corr, 0), &body).await.header.code;
    let most = limits::LISTS_BYTES_MAX / (FRAMES as usize * size_of::<Frame>());
    let mut kept = Vec::new();
    for _ in 0..most {
        let mut raw = Raw::open(&rig, Role::Read).await;
        assert_eq!(ask(&mut raw, 2).await, 0);
        kept.push(raw);
    }
    let (mut next, mut last) =
        (Raw::open(&rig, Role::Read).await, Raw::open(&rig, Role::Read).await);
    assert_eq!(ask(&mut next, 2).await, BUSY);
    drop(kept.remove(0));
    until(|| rig.server.connections() == kept.len() + 2).await;
    assert_eq!(ask(&mut next, 3).await, 0);
    assert_eq!(ask(&mut last, 2).await, BUSY);
    tokio::time::pause();
    tokio::time::advance(limits::LIST_TIME).await;
    tokio::time::resume();
    assert_eq!(ask(&mut last, 3).await, 0);
    // The client with the oldest list gets the refusal when it reads on.
    let end = loop {
        let header = kept[0].receive().await.unwrap().header;
        if !header.has_more() {
            break header;
        }
    };
    assert_eq!((end.corr, end.code), (2, BUSY));
}

/// The last few frames may lie anywhere in the log. They are looked up for one request per
/// connection at a time, and for all connections on a part of the threads, so that short work finds
/// free threads. Their length is not known in advance, so each list reserves room for the longest;
/// those that wait for room leave threads for those that need none.
#[tokio::test]
async fn lists_that_may_get_long_are_made_few_at_a_time() {
    const CLIENTS: usize = 40;
    let rig = Rig::unix(Role::Admin).await;
    rig.memory.fill(10, "a");
    rig.memory.hold_lists(true);
    let ask = |topics: &str| LastRequest {
        topics: TopicPatterns::parse(topics).unwrap(),
        n: 1,
        per_topic: true,
    };
    let (mut clients, mut replies) = (Vec::new(), Vec::new());
    for topics in ["*"; CLIENTS].into_iter().chain(["a"]) {
        let client = rig.client().await;
        replies.push(client.last(&ask(topics)));
        // Its work is running, or waiting for room, before the next client's arrives.
        soon(client.ping()).await.unwrap();
        clients.push(client);
    }
    // Two of the long ones, and the short one after them.
    until(|| rig.memory.held_lists() >= 3).await;
    // Work that has room reaches the store on a thread of its own.
    for client in &clients {
        soon(client.ping()).await.unwrap();
    }
    assert_eq!(rig.memory.held_lists(), 3);
    rig.memory.hold_lists(false);
    for reply in replies {
        assert_eq!(soon(reply).await.unwrap().len(), 1);
    }
    assert_eq!(rig.memory.lists(), CLIENTS + 1);
}

#[tokio::test]
async fn frames_that_are_looked_for_leave_threads_for_others() {
    const CONNECTIONS: u32 = 600;
    let rig = Rig::unix(Role::Admin).await;
    rig.memory.fill(300, "a");
    let client = rig.client().await;
    let hash = soon(client.blob_put_bytes(vec![7; 9].into())).await.unwrap();
    rig.memory.hold_lists(true);
    let last = [&200u64.to_le_bytes()[..], b"\0\x01\0\x01\0*"].concat();
    let mut raw = Raw::open(&rig, Role::Read).await;
    for corr in 2..CONNECTIONS + 2 {
        raw.send(&message(header(Op::Last, corr, 0), &last)).await;
    }
    until(|| rig.memory.held_lists() > 0).await;
    assert!(soon(client.blob_has(&hash)).await.unwrap());
    let mut blob = soon(client.blob_get(&hash)).await.unwrap().unwrap();
    assert_eq!(soon(blob.chunk()).await.unwrap().unwrap().len(), 9);
    assert_eq!(rig.memory.held_lists(), 1);
    // Many connections with one request each do not take all threads either.
    let mut others = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut other = Raw::open(&rig, Role::Read).await;
        other.send(&message(header(Op::Last, 2, 0), &last)).await;
        others.push(other);
    }
    until(|| rig.memory.held_lists() >= 32).await;
    soon(client.blob_put_bytes(vec![8; 9].into())).await.unwrap();
    let mut blob = soon(client.blob_get(&hash)).await.unwrap().unwrap();
    assert_eq!(soon(blob.chunk()).await.unwrap().unwrap().len(), 9);
    assert_eq!(rig.memory.held_lists(), 32);
    // The remaining connections are all answered.
    drop(others.split_off(CONNECTIONS as usize / 2));
    rig.memory.hold_lists(false);
    for corr in 2..CONNECTIONS + 2 {
        assert_eq!(raw.receive().await.unwrap().header.corr, corr);
    }
    for other in &mut others {
        let answer = other.receive().await.unwrap().header;
        assert_eq!((answer.corr, answer.code), (2, 0));
    }
}

/// Bytes of blobs are read when there is room for them, however many downloads are open.
#[tokio::test]
async fn downloads_that_are_not_taken_are_not_read() {
    const DOWNLOADS: u32 = 64;
    let rig = Rig::unix(Role::Admin).await;
    let client = rig.client().await;
    let blob = vec![7; 4 * limits::CHUNK_BYTES_MAX];
    let hash = soon(client.blob_put_bytes(blob.into())).await.unwrap();
    let mut raw = Raw::open(&rig, Role::Read).await;
    let body = [&hash.as_bytes()[..], &u32::MAX.to_le_bytes()].concat();
    for sub in 1..=DOWNLOADS {
        raw.send(&message(header(Op::BlobGet, sub + 1, sub), &body)).await;
    }
    let mut read = 0;
    soon(async {
        while rig.memory.opened() < DOWNLOADS as usize || read != rig.memory.read() {
            read = rig.memory.read();
            for _ in 0..20 {
                client.ping().await.unwrap();
            }
        }
    })
    .await;
    let most = limits::OUTBOUND_BYTES_MAX + 2 * limits::CHUNK_BYTES_MAX;
    assert!(read <= most, "{read} bytes were read");
    let mut ended = 0;
    while ended < DOWNLOADS {
        let header = raw.receive().await.unwrap().header;
        assert_eq!(header.code, 0);
        ended += u32::from(header.op == Op::BlobChunk as u8 && !header.has_more());
    }
}

#[tokio::test]
async fn a_request_that_panics_ends_its_connection_alone() {
    let rig = Rig::unix(Role::Admin).await;
    let other = rig.client().await;
    rig.memory.break_down();
    let topics = xs_engine::TopicPatterns::all();
    let client = rig.client().await;
    let error = soon(client.topics(&topics)).await.unwrap_err();
    assert_eq!(error.class(), Class::Unknown, "{error}");
    assert_eq!(soon(client.closed()).await.code(), Some(Code::Internal));
    let client = rig.client().await;
    let error = soon(client.blob_put_bytes(vec![1; 9].into())).await.unwrap_err();
    assert_eq!(error.class(), Class::Unknown, "{error}");
    assert_eq!(soon(client.closed()).await.code(), Some(Code::Internal));
    let client = rig.client().await;
    let get = soon(client.blob_get(&BlobHash::of(b"any"))).await;
    assert_eq!(get.err().map(|error| error.class()), Some(Class::Unknown));
    assert_eq!(soon(client.closed()).await.code(), Some(Code::Internal));
    let client = rig.client().await;
    let call = CallRequest::new(Topic::parse("panic").unwrap());
    let call = soon(client.call(&call)).await;
    assert_eq!(call.err().map(|error| error.class()), Some(Class::Unknown));
    assert_eq!(soon(client.closed()).await.code(), Some(Code::Internal));
    soon(other.append(&one("a"))).await.unwrap();
    // An append that the service drops is answered, and its connection stays open.
    let error = soon(other.append(&one("lost"))).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::Indeterminate));
    soon(other.append(&one("a"))).await.unwrap();
}

#[tokio::test]
async fn a_stop_ends_subscriptions_with_the_place_to_resume() {
    let rig = Rig::unix(Role::Admin).await;
    rig.memory.fill(10, "a");
    let client = rig.client().await;
    let options = ReadOptions { follow: true, ..ReadOptions::default() };
    let mut subscription =
        soon(client.subscribe(&options, SubscribeOptions::default())).await.unwrap();
    for _ in 0..2 {
        soon(subscription.next()).await.unwrap().unwrap();
    }
    rig.memory.hold();
    let last = client.append(&one("a"));
    until(|| rig.memory.waiting() == 1).await;
    let stopping = tokio::spawn({
        let server = rig.server.clone();
        async move { server.stop().await }
    });
    let SubEvent::Dropped { refusal, resume } = soon(subscription.next()).await.unwrap().unwrap()
    else {
        panic!("not dropped")
    };
    assert_eq!((refusal.code, resume), (Code::Draining, 10));
    assert!(soon(subscription.next()).await.is_none());
    assert!(client.going_away().is_some());
    let error = soon(client.append(&one("a"))).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::Draining));
    // Accepted requests are still answered.
    rig.memory.release();
    assert_eq!(soon(last).await.unwrap().frames[0].offset, Some(10));
    soon(stopping).await.unwrap();
    assert!(matches!(soon(client.closed()).await, ClientError::Disconnected(_)));
    assert!(matches!(soon(client.append(&one("a"))).await, Err(ClientError::Disconnected(_))));
    assert_eq!(rig.server.connections(), 0);
}

/// While a server stops, calls continue for the drain time: the caller receives the results or an
/// error.
#[tokio::test]
async fn a_stop_lets_calls_finish_and_tells_of_the_others() {
    let rig = Rig::unix(Role::Admin).await;
    let client = rig.client().await;
    let request = |name: &str| CallRequest::new(Topic::parse(name).unwrap());
    let mut hanging = soon(client.call(&request("hang"))).await.unwrap();
    rig.memory.hold();
    let caller = client.clone();
    let opening = tokio::spawn(async move { caller.call(&request("echo")).await });
    until(|| rig.memory.calls() == 2).await;
    let server = rig.server.clone();
    let stopping = tokio::spawn(async move { server.stop().await });
    until(|| client.going_away().is_some()).await;
    let error = soon(client.call(&request("echo"))).await.err().unwrap();
    assert_eq!((error.code(), error.class()), (Some(Code::Draining), Class::Busy));
    // The accepted call is answered, and its results arrive.
    rig.memory.release();
    let mut call = soon(opening).await.unwrap().unwrap();
    let mut results = 0;
    while let Some(result) = soon(call.next()).await {
        result.unwrap();
        results += 1;
    }
    assert_eq!((results, rig.memory.calls()), (2, 2));
    // The call that outlasts the drain is cancelled, and its caller gets an error.
    let error = soon(hanging.next()).await.unwrap().unwrap_err();
    assert_eq!(error.class(), Class::Unknown, "{error}");
    soon(stopping).await.unwrap();
    assert_eq!(rig.memory.cancelled(), [hanging.id()]);
}

/// The server still reads what arrives after its last message: over TCP unread bytes would make the
/// system discard what the client has not read yet.
#[tokio::test]
async fn a_stop_takes_what_still_comes() {
    let rig = Rig::unix(Role::Admin).await;
    let mut raw = Raw::open(&rig, Role::Admin).await;
    let server = rig.server.clone();
    let stopping = tokio::spawn(async move { server.stop().await });
    assert_eq!(raw.receive().await.unwrap().header.op, Op::GoAway as u8);
    assert!(raw.receive().await.is_none());
    assert_eq!(rig.server.connections(), 1);
    raw.send(&message(header(Op::Ping, 2, 0), &[])).await;
    assert_eq!(rig.server.connections(), 1);
    drop(raw);
    soon(stopping).await.unwrap();
    assert_eq!(rig.server.connections(), 0);
}

#[tokio::test]
async fn a_subscription_resumes_where_it_was_without_gap_or_double() {
    let rig = Rig::unix(Role::Admin).await;
    rig.memory.fill(5_000, "a");
    let how = SubscribeOptions { credit: 20_000, ..SubscribeOptions::default() };
    let (mut seen, mut position) = (Vec::new(), 0);
    while seen.len() < 5_000 {
        // A new connection each time, abandoned after a few messages.
        let client = rig.client().await;
        let start = Start::From(Bound::Offset(position));
        let options = ReadOptions { start, follow: true, ..ReadOptions::default() };
        let mut subscription = soon(client.subscribe(&options, how)).await.unwrap();
        for _ in 0..3 {
            if let SubEvent::Frames { frames, .. } =
                soon(subscription.next()).await.unwrap().unwrap()
            {
                seen.extend(frames.iter().map(|one| one.frame.offset().unwrap()));
            }
            if seen.len() == 5_000 {
                break;
            }
        }
        position = subscription.position().unwrap();
    }
    assert_eq!(seen, (0..5_000).collect::<Vec<_>>());
}

/// A publish notifies a connection once, however many subscriptions it has, and none misses it.
#[tokio::test]
async fn subscriptions_of_a_connection_are_told_together() {
    const SUBSCRIPTIONS: usize = 100;
    let rig = Rig::unix(Role::Admin).await;
    let client = rig.client().await;
    let options = ReadOptions { follow: true, ..ReadOptions::default() };
    let mut subscriptions = Vec::new();
    for _ in 0..SUBSCRIPTIONS {
        let how = SubscribeOptions::default();
        let mut subscription = soon(client.subscribe(&options, how)).await.unwrap();
        soon(subscription.next()).await.unwrap().unwrap();
        subscriptions.push(subscription);
    }
    assert_eq!((rig.memory.followers(), rig.memory.wakes()), (SUBSCRIPTIONS, 1));
    let other = rig.client().await;
    for offset in 0..10 {
        soon(other.append(&one("a"))).await.unwrap();
        for subscription in &mut subscriptions {
            let event = soon(subscription.next()).await.unwrap().unwrap();
            let SubEvent::Frames { frames, .. } = event else { panic!("{event:?}") };
            assert_eq!(frames[0].frame.offset(), Some(offset));
        }
    }
}

#[tokio::test]
async fn the_connection_closes_when_nobody_uses_it() {
    let rig = Rig::unix(Role::Admin).await;
    let client = rig.client().await;
    let frames = vec![NewFrame::new(Topic::parse("a").unwrap())];
    let reply = client.append(&AppendRequest::frames(frames));
    drop(client);
    // A pending reply keeps the connection open.
    soon(reply).await.unwrap();
    until(|| rig.server.connections() == 0).await;
}

#[tokio::test]
async fn a_client_that_hangs_up_during_a_call_cancels_it() {
    let rig = Rig::unix(Role::Admin).await;
    for held in [false, true] {
        let client = rig.client().await;
        if held {
            rig.memory.hold();
        }
        let request = CallRequest::new(Topic::parse("hang").unwrap());
        let call = tokio::spawn(async move { client.call(&request).await.map(|call| call.id()) });
        if held {
            until(|| rig.memory.calls() == 2).await;
            call.abort();
        } else {
            soon(call).await.unwrap().unwrap();
        }
        until(|| rig.memory.cancelled().len() == 1).await;
    }
    rig.memory.release();
    until(|| rig.memory.cancelled().len() == 2 && rig.server.connections() == 0).await;
}
