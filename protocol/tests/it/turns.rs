//! How much of a connection is served before others get their turn.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use futures::StreamExt as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use xs_engine::{Body, Bound, NewFrame, ReadOptions, Start, Topic, TopicPatterns};
use xs_protocol::codec::{Codec, Envelope, PREFACE};
use xs_protocol::{AppendRequest, Delivered, LastRequest, Op, Role, SubEvent, SubscribeOptions};

use crate::memory::LOOK_MAX;
use crate::raw::{Raw, header, hello_body, message};
use crate::rig::{Rig, soon};

/// Bytes per read.
const PIECE: usize = 8 * 1024;

/// A client that has sent everything at once and hung up, and accepts everything it is sent.
struct Said {
    bytes: Vec<u8>,
    read: Arc<AtomicUsize>,
    /// What it repeats after that, if it does not hang up.
    refrain: Vec<u8>,
    /// The bytes of each write.
    writes: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Said {
    /// HELLO and `count` requests.
    fn asking(count: u32, op: Op, body: &[u8]) -> Self {
        let mut bytes = [&PREFACE[..], &message(header(Op::Hello, 1, 0), &hello_body())].concat();
        for corr in 2..count + 2 {
            bytes.extend_from_slice(&message(header(op, corr, 0), body));
        }
        let (read, refrain, writes) = (Arc::default(), Vec::new(), Arc::default());
        Self { bytes, read, refrain, writes }
    }
}

impl AsyncRead for Said {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let at = self.read.load(Ordering::Relaxed);
        let left = match at.checked_sub(self.bytes.len()) {
            Some(at) if !self.refrain.is_empty() => &self.refrain[at % self.refrain.len()..],
            _ => &self.bytes[at..],
        };
        let count = left.len().min(buf.remaining()).min(PIECE);
        buf.put_slice(&left[..count]);
        self.read.fetch_add(count, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Said {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.writes.lock().unwrap().push(buf.to_vec());
        Poll::Ready(Ok(buf.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A client that floods a server with requests delays others only briefly: a byte read counts as
/// four bytes written, and a turn is 256 KiB of those.
#[tokio::test]
async fn a_turn_ends_after_64_kib_that_were_read() {
    let rig = Rig::unix(Role::Admin).await;
    let said = Said::asking(40_000, Op::Ping, &[7; 16]);
    let (all, read) = (said.bytes.len(), Arc::clone(&said.read));
    let task = rig.server.adopt(said, Role::Admin);
    // This test has one thread: the connection gets a turn whenever this task yields.
    let (mut before, mut most) = (0, 0);
    soon(async {
        while !task.is_finished() {
            tokio::task::yield_now().await;
            let now = read.load(Ordering::Relaxed);
            most = most.max(now - before);
            before = now;
        }
    })
    .await;
    assert_eq!(before, all);
    assert!(most <= 64 * 1024, "{most} bytes in one turn");
    assert!(most >= 2 * PIECE, "{most} bytes in one turn");
}

/// If many requests arrive together, some are answered before the others are served, so that their
/// client can continue meanwhile.
#[tokio::test]
async fn many_requests_are_answered_part_by_part() {
    let rig = Rig::unix(Role::Admin).await;
    let (count, reply) = (128, message(header(Op::BlobHas, 2, 0), &[0]).len());
    let said = Said::asking(count as u32, Op::BlobHas, &[7; 32]);
    let writes = Arc::clone(&said.writes);
    soon(rig.server.adopt(said, Role::Admin)).await.unwrap();
    let writes: Vec<_> = writes.lock().unwrap().iter().map(Vec::len).collect();
    let most = writes.iter().max().copied().unwrap_or(0);
    let replies = |bytes: usize| bytes / reply;
    assert!(replies(writes.iter().sum()) >= count, "{writes:?}");
    assert!(replies(most) <= count * 3 / 4, "{writes:?}");
}

/// The messages that were written.
fn heard(writes: &Mutex<Vec<Vec<u8>>>) -> Vec<Envelope> {
    let mut bytes = BytesMut::from(&writes.lock().unwrap().concat()[..]);
    let mut codec = Codec::new(u32::MAX);
    std::iter::from_fn(|| codec.next(&mut bytes).unwrap()).collect()
}

/// A connection that is never idle still gets its pulses.
#[tokio::test(start_paused = true)]
async fn the_clock_is_heeded_on_a_busy_connection() {
    let rig = Rig::unix(Role::Admin).await;
    let pulse = Duration::from_millis(10);
    let mut said = Said::asking(0, Op::Ping, &[]);
    let body = [&[0; 8][..], &10u64.to_le_bytes(), &[2, 0, 1, 0, 1, 0, b'*']].concat();
    said.bytes.extend_from_slice(&message(header(Op::Subscribe, 2, 1), &body));
    said.refrain = message(header(Op::Ping, 3, 0), &[7; 16]).to_vec();
    let writes = Arc::clone(&said.writes);
    let task = rig.server.adopt(said, Role::Admin);
    // This test has one thread: the connection gets a turn whenever this task yields.
    for _ in 0..10 {
        tokio::task::yield_now().await;
        tokio::time::advance(pulse).await;
    }
    let said = heard(&writes);
    let is_pulse = |one: &&Envelope| one.header.op == Op::SubEvent as u8 && one.body[..] == [2];
    let pulses = said.iter().filter(is_pulse).count();
    assert!(pulses >= 5, "{pulses} pulses among {} messages", said.len());
    task.abort();
}

/// Of requests that arrived together, only part is served before the server is seen to stop. The
/// others are refused, so that their client knows that they were not done.
#[tokio::test]
async fn what_came_before_a_stop_is_answered() {
    const COUNT: u32 = 64;
    let rig = Rig::unix(Role::Admin).await;
    soon(rig.server.stop()).await;
    let said = Said::asking(COUNT, Op::BlobHas, &[7; 32]);
    let writes = Arc::clone(&said.writes);
    soon(rig.server.adopt(said, Role::Admin)).await.unwrap();
    let said = heard(&writes);
    let answers = said.iter().filter(|one| one.header.op == Op::BlobHas as u8);
    let codes: Vec<_> = answers.map(|one| one.header.code).collect();
    assert_eq!(codes.len(), COUNT as usize, "{codes:?}");
    assert!(codes.contains(&0) && codes.contains(&501), "{codes:?}");
}

/// A stream that was requested before the client hung up, and is served afterwards, ends too.
#[tokio::test]
async fn what_is_served_after_a_hang_up_ends() {
    let rig = Rig::unix(Role::Admin).await;
    let mut said = Said::asking(64, Op::BlobHas, &[7; 32]);
    said.bytes.extend_from_slice(&message(header(Op::BlobPut, 100, 2), &[]));
    soon(rig.server.adopt(said, Role::Admin)).await.unwrap();
}

/// A read that examines much and finds nothing yields to others: on this test's one thread, another
/// connection is answered long before the read has examined everything.
#[tokio::test]
async fn a_read_that_finds_nothing_gives_way() {
    const FRAMES: usize = 400 * LOOK_MAX;
    let rig = Rig::unix(Role::Admin).await;
    rig.memory.fill(FRAMES as u64, "a");
    let (reader, other) = (rig.client().await, rig.client().await);
    let options =
        ReadOptions { topics: TopicPatterns::parse("b").unwrap(), ..ReadOptions::default() };
    let read = reader.clone();
    let mut pages = read.fetch(&options);
    let fetching = tokio::spawn(async move { futures::StreamExt::next(&mut pages).await });
    let mut subscription =
        soon(reader.subscribe(&options, SubscribeOptions::default())).await.unwrap();
    soon(other.ping()).await.unwrap();
    assert!(rig.memory.pulls() < 400, "{} pulls before it was answered", rig.memory.pulls());
    assert!(soon(fetching).await.unwrap().is_none());
    while let Some(event) = soon(subscription.next()).await {
        assert!(matches!(event.unwrap(), SubEvent::Frames { frames, .. } if frames.is_empty()));
    }
    assert!(rig.memory.pulls() >= 800);
}

/// The start of the last frames is searched for on other threads than those that serve connections.
#[tokio::test]
async fn what_looks_back_far_is_opened_elsewhere() {
    let rig = Rig::unix(Role::Admin).await;
    rig.memory.fill(300, "a");
    let client = rig.client().await;
    for follow in [false, true] {
        let options = ReadOptions { start: Start::Last(200), follow, ..ReadOptions::default() };
        let mut subscription =
            soon(client.subscribe(&options, SubscribeOptions::default())).await.unwrap();
        let event = soon(subscription.next()).await.unwrap().unwrap();
        assert!(matches!(event, SubEvent::Frames { frames, .. } if frames.len() == 200));
        // One that is abandoned before it is open.
        drop(client.subscribe(&options, SubscribeOptions::default()));
    }
    let options = ReadOptions { start: Start::Last(300), ..ReadOptions::default() };
    let frames: Vec<_> = soon(futures::StreamExt::collect(client.fetch(&options))).await;
    assert_eq!(frames.len(), 300);
    let threads = rig.memory.looked_back();
    assert!(threads.len() >= 3 && !threads.contains(&std::thread::current().id()));
}

/// Many batches arrive before half of them are served: a connection that stops reading for that
/// must resume on its own.
#[tokio::test]
async fn long_batches_side_by_side_leave_no_connection_asleep() {
    let rig = Rig::tcp().await;
    let client = rig.client().await;
    let body = Body::Inline(vec![7; 16 * 1024].into());
    let frame = NewFrame { body, ..NewFrame::new(Topic::parse("long").unwrap()) };
    let batch = AppendRequest::frames(vec![frame; 64]);
    let all = futures::stream::iter(0..200).map(|_| client.append(&batch)).buffered(8);
    let appended: Vec<_> = soon(all.collect()).await;
    assert!(appended.iter().all(Result::is_ok));
}

/// The last few frames are found on the connection's task, unless many others lie after them.
#[tokio::test]
async fn the_last_few_are_found_at_once() {
    let rig = Rig::unix(Role::Admin).await;
    rig.memory.fill(2, "far");
    rig.memory.fill(1_000, "near");
    let client = rig.client().await;
    let offsets = |frames: &[Delivered]| -> Vec<_> {
        frames.iter().map(|one| one.frame.offset().unwrap()).collect()
    };
    let ask = async |topic: &str, n: u64, before: Option<u64>| {
        let topics = TopicPatterns::parse(topic).unwrap();
        let before = before.map(Bound::Offset);
        let (start, default) = (Start::Last(n), ReadOptions::default());
        let options = ReadOptions { topics: topics.clone(), start, before, ..default };
        let fetched: Vec<_> = soon(futures::StreamExt::collect(client.fetch(&options))).await;
        let fetched = fetched.into_iter().map(|one| one.unwrap().offset().unwrap());
        let fetched: Vec<_> = fetched.collect();
        for follow in [true, false] {
            let options = ReadOptions { follow, ..options.clone() };
            let how = SubscribeOptions::default();
            let mut subscription = soon(client.subscribe(&options, how)).await.unwrap();
            let mut delivered = Vec::new();
            while let Some(event) = soon(subscription.next()).await {
                match event.unwrap() {
                    SubEvent::Frames { frames, .. } => delivered.extend(offsets(&frames)),
                    _ => break,
                }
            }
            assert_eq!(delivered, fetched, "{topic} {n} {before:?} {follow}");
        }
        if before.is_none() {
            let last = LastRequest { topics, n, per_topic: false };
            let last = soon(client.last(&last)).await.unwrap();
            let last: Vec<_> = last.iter().map(|one| one.offset().unwrap()).collect();
            assert_eq!(last, fetched);
        }
        fetched
    };
    assert_eq!(ask("near", 2, None).await, [1000, 1001]);
    assert_eq!(ask("near", 3, Some(500)).await, [497, 498, 499]);
    assert_eq!(ask("near", 3, Some(5_000)).await, [999, 1000, 1001]);
    assert_eq!(ask("*", 1, None).await, [1001]);
    assert_eq!(ask("near", 0, None).await, [0; 0]);
    assert_eq!((rig.memory.looked_back().len(), rig.memory.lists()), (0, 0));
    assert_eq!(ask("far", 1, None).await, [1]);
    assert_eq!((rig.memory.looked_back().len(), rig.memory.lists()), (3, 1));
}

/// Requests with slow lookups are served a few at a time.
#[tokio::test]
async fn looks_that_take_time_give_way() {
    const COUNT: u32 = 64;
    let rig = Rig::unix(Role::Admin).await;
    rig.memory.fill(1, "a");
    rig.memory.slow_down(Duration::from_millis(1));
    let last = [&1u64.to_le_bytes()[..], b"\0\x01\0\x01\0a"].concat();
    let fetch = [&1u32.to_le_bytes()[..], &[0, 0, 1, 0, 1, 0, b'a']].concat();
    for (op, body) in [(Op::Last, last), (Op::Fetch, fetch)] {
        let before = rig.memory.pulls();
        let said = Said::asking(COUNT, op, &body);
        let writes = Arc::clone(&said.writes);
        let task = rig.server.adopt(said, Role::Admin);
        // This test has one thread: the connection gets a turn whenever this task yields.
        let (mut seen, mut most) = (before, 0);
        soon(async {
            while !task.is_finished() {
                tokio::task::yield_now().await;
                let now = rig.memory.pulls();
                most = most.max(now - seen);
                seen = now;
            }
        })
        .await;
        assert_eq!(seen - before, COUNT as usize);
        assert!(most <= 2, "{most} looks of {op:?} in one turn");
        let answers = heard(&writes);
        assert_eq!(answers.iter().filter(|one| one.header.op == op as u8).count(), COUNT as usize);
    }
}

/// Pages that are requested again and again do not starve a subscription on the same connection.
#[tokio::test]
async fn lists_and_streams_take_turns() {
    const PAGES: usize = 32;
    let rig = Rig::unix(Role::Admin).await;
    rig.memory.fill(60_000, "a");
    let mut raw = Raw::open(&rig, Role::Read).await;
    let everything = [0, 0, 1, 0, 1, 0, b'*'];
    let fetch = [&(1u32 << 20).to_le_bytes()[..], &everything].concat();
    let page = |corr: u32| message(header(Op::Fetch, corr, 0), &fetch);
    for corr in 10..26 {
        raw.send(&page(corr)).await;
    }
    // Unlimited credit.
    let subscribe = [&[0xff, 0xff, 0xff, 0xff][..], &[0; 12], &everything].concat();
    raw.send(&message(header(Op::Subscribe, 2, 1), &subscribe)).await;
    let (mut pages, mut delivered) = (0, 0);
    while pages < PAGES {
        let envelope = raw.receive().await.unwrap();
        assert_eq!(envelope.header.code, 0);
        if envelope.header.op == Op::Fetch as u8 {
            pages += 1;
            raw.send(&page(100 + pages as u32)).await;
        }
        delivered += usize::from(envelope.header.op == Op::Deliver as u8);
    }
    assert!(delivered >= PAGES / 4, "{delivered} messages beside {PAGES} pages");
}
