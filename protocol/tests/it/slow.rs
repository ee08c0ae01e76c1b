//! Subscriptions that take frames more slowly than they are appended, and those that resume.

use std::collections::BTreeMap;

use xs_engine::{
    Body, Bound, NewFrame, ReadOptions, Removal, Start, StoreUuid, Topic, TopicPatterns, Ttl,
};
use xs_protocol::{
    AppendRequest, Client, ClientError, Code, Detail, Gap, Op, RemoveRequest, Resume, Role, Slow,
    SubEvent, SubscribeOptions, Subscription,
};

use crate::raw::{Raw, header, message};
use crate::rig::{Rig, one, soon, until};

/// A subscription with little credit that has caught up.
async fn follow(client: &Client, topics: &str, slow: Slow) -> Subscription {
    let topics = TopicPatterns::parse(topics).unwrap();
    let options = ReadOptions { topics, follow: true, ..ReadOptions::default() };
    let how = SubscribeOptions { credit: 400, slow, ..SubscribeOptions::default() };
    let mut subscription = soon(client.subscribe(&options, how)).await.unwrap();
    loop {
        if let SubEvent::CaughtUp { .. } = soon(subscription.next()).await.unwrap().unwrap() {
            return subscription;
        }
    }
}

async fn append(client: &Client, topic: &str, count: usize) {
    for _ in 0..count {
        soon(client.append(&one(topic))).await.unwrap();
    }
}

#[tokio::test]
async fn the_latest_of_each_topic_comes_behind_a_gap() {
    let rig = Rig::unix(Role::Admin).await;
    let client = rig.client().await;
    append(&client, "a", 3).await;
    let mut subscription = follow(&client, "*", Slow::Latest { behind: 10 }).await;
    append(&client, "a", 300).await;
    append(&client, "b", 1).await;
    append(&client, "a", 300).await;
    let end = 604;
    let (mut next, mut gaps, mut newest) = (3, 0, BTreeMap::new());
    while subscription.position() != Some(end) {
        match soon(subscription.next()).await.unwrap().unwrap() {
            SubEvent::Frames { frames, scanned_to } => {
                for frame in frames {
                    let offset = frame.frame.offset().unwrap();
                    assert!(offset >= next, "{offset} came after {next}");
                    newest.insert(frame.frame.topic().to_owned(), offset);
                    next = offset + 1;
                }
                next = next.max(scanned_to);
            }
            SubEvent::Gap(Gap::Conflated { from, to }) => {
                assert!(from == next && to > from + 10, "{from}..{to} after {next}");
                gaps += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(gaps >= 1);
    assert_eq!(newest, BTreeMap::from([("a".to_owned(), end - 1), ("b".to_owned(), 303)]));
    // It continues live.
    append(&client, "c", 1).await;
    let event = soon(subscription.next()).await.unwrap().unwrap();
    let SubEvent::Frames { frames, .. } = event else { panic!("{event:?}") };
    assert_eq!(frames[0].frame.offset(), Some(end));
}

/// More topics than are looked up at a time, some of whose frames are removed before they are sent.
#[tokio::test]
async fn the_latest_of_many_topics_come_in_order() {
    const TOPICS: u64 = 3000;
    let rig = Rig::unix(Role::Admin).await;
    let client = rig.client().await;
    append(&client, "a", 1).await;
    let mut subscription = follow(&client, "t.*", Slow::Latest { behind: 100 }).await;
    let topic = |n: u64| Topic::parse(&format!("t.{n}")).unwrap();
    let frames = (0..TOPICS).map(|n| NewFrame::new(topic(n))).collect();
    let first = soon(client.append(&AppendRequest::frames(frames))).await.unwrap();
    // It has no credit until it takes what arrived, and is too far behind by then.
    let (mut seen, mut gap) = (Vec::new(), None);
    while seen.last() != Some(&TOPICS) {
        match soon(subscription.next()).await.unwrap().unwrap() {
            SubEvent::Frames { frames, .. } => {
                seen.extend(frames.iter().filter_map(|one| one.frame.offset()));
            }
            SubEvent::Gap(Gap::Conflated { from, to }) if gap.is_none() => {
                gap = Some(from..to);
                // The last frame stays, so that the test ends.
                let frames = first.frames[2000..2900].iter().map(|one| Bound::Id(one.id)).collect();
                let remove = RemoveRequest { frames, ..RemoveRequest::default() };
                soon(client.remove(&remove)).await.unwrap();
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(gap.is_some(), "it was never too far behind");
    assert!(seen.is_sorted_by(|one, next| one < next), "{seen:?}");
    let all = |range: std::ops::Range<u64>| range.filter(|at| seen.contains(at)).count();
    assert_eq!((all(1..2001), all(2901..3001)), (2000, 100));
    assert_eq!(all(2001..2901), 0, "removed frames were sent");
}

/// The server stops after it has reported a gap and before it has sent the newest frames in it,
/// because the connection's queue is full. The position to resume from is before those frames.
#[tokio::test]
async fn a_stop_behind_a_gap_loses_no_newest_frame() {
    const SEEN: u32 = 1;
    let rig = Rig::unix(Role::Admin).await;
    rig.memory.fill(60_000, "a");
    let client = rig.client().await;
    let mut raw = Raw::open(&rig, Role::Read).await;
    // Little credit, starting at new frames, and only the latest when more than 10 behind.
    let latest = [&[2, 0, 0, 0, 9, 0, 0, 0, 1][..], &10u64.to_le_bytes()].concat();
    let subscribe = |credit: u32, start: &[u8], topic: u8| {
        [&credit.to_le_bytes()[..], &[0; 12], &[2], start, &[1, 0, 1, 0, topic]].concat()
    };
    let body = [subscribe(1, &[4], b'b'), latest].concat();
    assert_eq!(raw.ask(header(Op::Subscribe, 2, SEEN), &body).await.header.code, 0);
    assert_eq!(raw.receive().await.unwrap().header.op, Op::SubEvent as u8);
    append(&client, "b", 100).await;
    let mut next = 60_000;
    let first = raw.receive().await.unwrap();
    assert_eq!(first.header.op, Op::Deliver as u8);
    next = next.max(u64::from_le_bytes(first.body[..8].try_into().unwrap()));
    rig.memory.hold_looks(true);
    raw.send(&message(header(Op::Credit, 0, SEEN), &10_000u64.to_le_bytes())).await;
    until(|| rig.memory.looks() == 1).await;
    // Another subscription, which nobody reads, fills the queue.
    raw.send(&message(header(Op::Subscribe, 3, 2), &subscribe(u32::MAX, &[0], b'a'))).await;
    let mut pulled = 0;
    while rig.memory.pulled() == 0 || pulled != rig.memory.pulled() {
        pulled = rig.memory.pulled();
        for _ in 0..20 {
            soon(client.ping()).await.unwrap();
        }
    }
    rig.memory.hold_looks(false);
    for _ in 0..200 {
        soon(client.ping()).await.unwrap();
    }
    let server = rig.server.clone();
    let stopping = tokio::spawn(async move { server.stop().await });
    let mut resume = None;
    while let Some(envelope) = raw.receive().await {
        let number = |at: usize| u64::from_le_bytes(envelope.body[at..at + 8].try_into().unwrap());
        let is = |op: Op| envelope.header.sub == SEEN && envelope.header.op == op as u8;
        if is(Op::Deliver) {
            next = number(0);
        } else if is(Op::SubEvent) && envelope.body[0] == 4 {
            resume = Some(number(1));
        }
    }
    assert_eq!(resume, Some(next), "the newest frame was not sent");
    drop((raw, client));
    soon(stopping).await.unwrap();
}

/// Ephemeral frames that arrive during the lookup of the newest frames are not dropped silently.
#[tokio::test]
async fn an_ephemeral_frame_beside_a_gap_is_delivered() {
    let rig = Rig::unix(Role::Admin).await;
    let client = rig.client().await;
    let mut subscription = follow(&client, "*", Slow::Latest { behind: 10 }).await;
    rig.memory.hold_looks(true);
    append(&client, "a", 300).await;
    let taken = tokio::spawn(async move {
        let mut gap = None;
        loop {
            match subscription.next().await.unwrap().unwrap() {
                SubEvent::Gap(Gap::Conflated { from, to }) => gap = Some((from, to)),
                SubEvent::Frames { frames, .. } => {
                    let ephemeral = frames.iter().find(|one| one.frame.offset().is_none());
                    if let Some(one) = ephemeral {
                        return (gap, one.frame.topic().to_owned());
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    });
    until(|| rig.memory.looks() == 1).await;
    let mut now = one("now");
    now.frames[0].ttl = Ttl::Ephemeral;
    soon(client.append(&now)).await.unwrap();
    rig.memory.hold_looks(false);
    let (gap, topic) = soon(taken).await.unwrap();
    assert_eq!((gap.map(|(_, to)| to), topic.as_str()), (Some(300), "now"));
}

/// All of them are too far behind at once, but the lookups run one after another.
#[tokio::test]
async fn the_latest_are_looked_for_one_at_a_time() {
    const SUBSCRIPTIONS: usize = 5;
    let rig = Rig::unix(Role::Admin).await;
    let client = rig.client().await;
    let mut takers = Vec::new();
    for _ in 0..SUBSCRIPTIONS {
        takers.push(follow(&client, "*", Slow::Latest { behind: 10 }).await);
    }
    rig.memory.hold_looks(true);
    append(&client, "a", 300).await;
    let take = async |mut taker: Subscription| {
        while !matches!(taker.next().await.unwrap().unwrap(), SubEvent::Gap(_)) {}
    };
    let taken: Vec<_> = takers.into_iter().map(|taker| tokio::spawn(take(taker))).collect();
    until(|| rig.memory.looks() == 1).await;
    for _ in 0..100 {
        soon(client.ping()).await.unwrap();
    }
    assert_eq!(rig.memory.looks(), 1);
    rig.memory.hold_looks(false);
    for taken in taken {
        soon(taken).await.unwrap();
    }
    assert!(rig.memory.looks() >= SUBSCRIPTIONS);
}

#[tokio::test]
async fn one_that_is_dropped_goes_on_where_it_was() {
    let rig = Rig::unix(Role::Admin).await;
    let client = rig.client().await;
    let mut subscription = follow(&client, "*", Slow::Drop { behind: 50 }).await;
    append(&client, "a", 200).await;
    let mut next = 0;
    let resume = loop {
        match soon(subscription.next()).await.unwrap().unwrap() {
            SubEvent::Frames { frames, .. } => {
                for frame in frames {
                    assert_eq!(frame.frame.offset(), Some(next));
                    next += 1;
                }
            }
            SubEvent::Dropped { refusal, resume } => {
                assert_eq!(refusal.code, Code::TooSlow);
                break resume;
            }
            other => panic!("{other:?}"),
        }
    };
    assert!(resume == next && next < 150, "{resume} after {next}");
    assert!(soon(subscription.next()).await.is_none());
    let start = Start::From(Bound::Offset(resume));
    let options = ReadOptions { start, ..ReadOptions::default() };
    let resume = Some(client.server().resume());
    let how = SubscribeOptions { resume, ..SubscribeOptions::default() };
    let mut rest = soon(client.subscribe(&options, how)).await.unwrap();
    while let Some(event) = soon(rest.next()).await {
        if let SubEvent::Frames { frames, .. } = event.unwrap() {
            next += frames.len() as u64;
        }
    }
    assert_eq!(next, 200);
}

#[tokio::test]
async fn a_place_of_another_store_or_of_a_lost_end_is_refused() {
    let rig = Rig::unix(Role::Read).await;
    rig.memory.fill(5, "a");
    let client = rig.client().await;
    let here = client.server().resume();
    let subscribe = async |offset, resume| {
        let start = Start::From(Bound::Offset(offset));
        let options = ReadOptions { start, ..ReadOptions::default() };
        let how = SubscribeOptions { resume: Some(resume), ..SubscribeOptions::default() };
        match soon(client.subscribe(&options, how)).await {
            Ok(_) => None,
            Err(ClientError::Refused(refusal)) => Some(refusal.code),
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(subscribe(5, here).await, None);
    assert_eq!(subscribe(6, here).await, Some(Code::CursorAhead));
    assert_eq!(
        subscribe(1, Resume { store: StoreUuid::from_bytes([1; 16]), ..here }).await,
        Some(Code::OtherStore)
    );
}

/// With bodies, more frames are pulled than the credit covers. Those removed while they wait are
/// not sent, and the event after them still is.
#[tokio::test]
async fn what_is_removed_while_it_waits_for_credit_is_not_sent() {
    let rig = Rig::unix(Role::Admin).await;
    let client = rig.client().await;
    let body = Body::Inline(vec![7; 400].into());
    let frame = NewFrame { body, ..one("a").frames.remove(0) };
    soon(client.append(&AppendRequest::frames(vec![frame; 3]))).await.unwrap();
    let options = ReadOptions { follow: true, ..ReadOptions::default() };
    let how = SubscribeOptions { credit: 600, bodies_up_to: 400, ..SubscribeOptions::default() };
    let mut subscription = soon(client.subscribe(&options, how)).await.unwrap();
    until(|| rig.memory.pulled() == 3).await;
    let frames = vec![Bound::Offset(2)];
    let remove = RemoveRequest { frames, ..RemoveRequest::default() };
    assert_eq!(soon(client.remove(&remove)).await.unwrap().removed, [Removal::Removed]);
    assert_eq!(soon(client.remove(&remove)).await.unwrap().removed, [Removal::Absent]);
    let event = soon(subscription.next()).await.unwrap().unwrap();
    let SubEvent::Frames { frames, .. } = event else { panic!("{event:?}") };
    assert_eq!(frames.len(), 2);
    assert_eq!(soon(subscription.next()).await.unwrap().unwrap(), SubEvent::CaughtUp { head: 3 });
}

/// A reader that is cut off before the report of a gap resumes at the gap.
#[tokio::test]
async fn frames_before_a_gap_do_not_lead_behind_it() {
    let rig = Rig::unix(Role::Admin).await;
    rig.memory.fill(10, "a");
    rig.memory.damage(4);
    let client = rig.client().await;
    for (reverse, bodies_up_to) in [(false, 0), (false, 100), (true, 0), (true, 100)] {
        let options = ReadOptions { reverse, ..ReadOptions::default() };
        let how = SubscribeOptions { bodies_up_to, ..SubscribeOptions::default() };
        let mut subscription = soon(client.subscribe(&options, how)).await.unwrap();
        let (mut before, mut gaps) = (None, 0);
        while let Some(event) = soon(subscription.next()).await {
            match event.unwrap() {
                SubEvent::Frames { scanned_to, .. } => before = Some(scanned_to),
                SubEvent::Gap(Gap::Corrupt { from, to }) => {
                    assert_eq!((from, to), (4, 5));
                    assert_eq!(before, Some(if reverse { to } else { from }));
                    gaps += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((gaps, before), (1, Some(if reverse { 0 } else { 10 })));
    }
}

/// A reverse reader that was sent part of what was pulled resumes below its last frame.
#[tokio::test]
async fn one_that_goes_backwards_goes_on_below() {
    let rig = Rig::unix(Role::Admin).await;
    let client = rig.client().await;
    let body = Body::Inline(vec![7; 400].into());
    let frame = NewFrame { body, ..one("a").frames.remove(0) };
    soon(client.append(&AppendRequest::frames(vec![frame; 3]))).await.unwrap();
    let options = ReadOptions { reverse: true, ..ReadOptions::default() };
    let how = SubscribeOptions { credit: 600, bodies_up_to: 400, ..SubscribeOptions::default() };
    let mut subscription = soon(client.subscribe(&options, how)).await.unwrap();
    let mut next = 3;
    while let Some(event) = soon(subscription.next()).await {
        let SubEvent::Frames { frames, scanned_to } = event.unwrap() else { continue };
        for frame in frames {
            next -= 1;
            assert_eq!(frame.frame.offset(), Some(next));
        }
        assert_eq!(scanned_to, next);
    }
    assert_eq!(next, 0);
}

#[tokio::test]
async fn removals_keep_to_the_topics_they_name() {
    let rig = Rig::unix(Role::Admin).await;
    rig.memory.fill(2, "a");
    rig.memory.fill(1, "b");
    let client = rig.connect_as(Role::Host).await;
    let within = Some(TopicPatterns::parse("a").unwrap());
    let remove = |frames: &[u64]| RemoveRequest {
        frames: frames.iter().copied().map(Bound::Offset).collect(),
        within: within.clone(),
        ..RemoveRequest::default()
    };
    let ClientError::Refused(refusal) = soon(client.remove(&remove(&[0, 2]))).await.unwrap_err()
    else {
        panic!("not refused")
    };
    assert_eq!(refusal.code, Code::Denied);
    assert!(matches!(refusal.details[..], [Detail::Frame(_)]));
    assert_eq!(
        soon(client.remove(&remove(&[0, 7]))).await.unwrap().removed,
        [Removal::Removed, Removal::Absent]
    );
    assert_eq!(soon(client.get(Bound::Offset(0))).await.unwrap(), None);
    assert!(soon(client.get(Bound::Offset(2))).await.unwrap().is_some());
}

/// The body of a SUBSCRIBE to new frames of topic `a`, with their bodies.
fn with_bodies(credit: u32, extensions: &[u8]) -> Vec<u8> {
    let options = [2, 4, 1, 0, 1, 0, b'a'];
    [&credit.to_le_bytes()[..], &1000u32.to_le_bytes(), &[0; 8], &options, extensions].concat()
}

/// A connection with such a subscription, which has caught up.
async fn subscribed(rig: &Rig, credit: u32, extensions: &[u8]) -> Raw {
    let mut raw = Raw::open(rig, Role::Read).await;
    let asked = header(Op::Subscribe, 2, 1);
    assert_eq!(raw.ask(asked, &with_bodies(credit, extensions)).await.header.code, 0);
    assert_eq!(raw.receive().await.unwrap().header.op, Op::SubEvent as u8);
    raw
}

fn bodied(len: usize, count: usize) -> AppendRequest {
    let body = Body::Inline(vec![7; len].into());
    AppendRequest::frames(vec![NewFrame { body, ..one("a").frames.remove(0) }; count])
}

/// Part of what was pulled waits for credit when more is appended, which then follows that part.
#[tokio::test]
async fn what_comes_while_frames_wait_for_credit_follows_them() {
    let rig = Rig::unix(Role::Admin).await;
    let client = rig.client().await;
    let mut raw = subscribed(&rig, 1000, &[]).await;
    soon(client.append(&bodied(800, 3))).await.unwrap();
    let deliver = raw.receive().await.unwrap();
    assert_eq!(deliver.header.op, Op::Deliver as u8);
    until(|| rig.memory.pulled() == 3).await;
    soon(client.append(&bodied(80, 1))).await.unwrap();
    // The append has been announced to the connection by then.
    assert_eq!(raw.ask(header(Op::Ping, 3, 0), &[]).await.header.op, Op::Ping as u8);
    raw.send(&message(header(Op::Credit, 0, 1), &100_000u64.to_le_bytes())).await;
    let mut seen = 0;
    while seen < 4 {
        let deliver = raw.receive().await.unwrap();
        assert_eq!(deliver.header.op, Op::Deliver as u8);
        seen = u64::from_le_bytes(deliver.body[..8].try_into().unwrap());
    }
}

/// This holds even if it had been sent everything when its credit ran out, and nothing checked it
/// since.
#[tokio::test]
async fn one_whose_credit_ended_with_what_there_was_is_slow_when_more_comes() {
    let rig = Rig::unix(Role::Admin).await;
    let client = rig.client().await;
    let latest = [&[2, 0, 0, 0, 9, 0, 0, 0, 1][..], &10u64.to_le_bytes()].concat();
    let mut raw = subscribed(&rig, 100, &latest).await;
    soon(client.append(&bodied(200, 1))).await.unwrap();
    assert_eq!(raw.receive().await.unwrap().header.op, Op::Deliver as u8);
    for _ in 0..30 {
        soon(client.append(&bodied(200, 1))).await.unwrap();
    }
    assert_eq!(raw.ask(header(Op::Ping, 3, 0), &[]).await.header.op, Op::Ping as u8);
    raw.send(&message(header(Op::Credit, 0, 1), &4096u64.to_le_bytes())).await;
    let event = raw.receive().await.unwrap();
    assert_eq!((event.header.op, event.body[0]), (Op::SubEvent as u8, 3), "{event:?}");
}
