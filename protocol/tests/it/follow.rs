//! A follow across lost connections yields each stored frame once, in order, and reports what
//! happened.

use std::sync::Arc;
use std::time::Duration;

use xs_engine::{Bound, FrameId, ReadOptions, ResumePoint, Start, StoreUuid, TopicPatterns};
use xs_protocol::{
    Address, Class, ClientError, Code, Follow, FollowEvent, FollowOptions, Listener, Retry, Role,
    Server, ServerOptions, Slow, SubEvent, SubscribeOptions,
};

use crate::relay::Relay;
use crate::rig::{Rig, one, soon, until};

/// Short waits between attempts.
fn quick() -> Retry {
    Retry { first: Duration::from_millis(1), most: Duration::from_millis(20), give_up: None }
}

fn options(start: Start) -> FollowOptions {
    let read = ReadOptions { start, ..ReadOptions::default() };
    FollowOptions { read, retry: quick(), ..FollowOptions::default() }
}

async fn open(address: &Address, options: FollowOptions) -> Follow {
    soon(Follow::open(address, options)).await.unwrap()
}

async fn next(follow: &mut Follow) -> FollowEvent {
    soon(follow.next()).await.expect("it has ended").unwrap()
}

/// The error that ends the follow.
async fn end(follow: &mut Follow) -> ClientError {
    let error = loop {
        if let Err(error) = soon(follow.next()).await.expect("it has ended without an error") {
            break error;
        }
    };
    assert!(soon(follow.next()).await.is_none(), "nothing comes after an error");
    error
}

/// The events seen, in order.
#[derive(Default)]
struct Seen {
    /// Number of frames, which must be the first ones of the log.
    frames: u64,
    caught_up: Vec<u64>,
    resumed: Vec<Option<u64>>,
}

impl Seen {
    fn take(&mut self, event: FollowEvent) {
        match event {
            FollowEvent::Frame(frame) => {
                assert_eq!(frame.frame.offset(), Some(self.frames));
                self.frames += 1;
            }
            FollowEvent::CaughtUp { head } => self.caught_up.push(head),
            FollowEvent::Resumed { offset, lost } => {
                assert!(
                    matches!(&lost, ClientError::Disconnected(_))
                        || lost.code() == Some(Code::Draining),
                    "{lost:?}"
                );
                self.resumed.push(offset);
            }
            other => panic!("{other:?}"),
        }
    }

    /// Takes events until `frames` frames have been seen.
    async fn up_to(&mut self, follow: &mut Follow, frames: u64) {
        while self.frames < frames {
            self.take(next(follow).await);
        }
    }
}

#[tokio::test]
async fn connections_that_are_cut_cost_no_frame_and_give_none_twice() {
    const FRAMES: u64 = 3000;
    const CUTS: u64 = 30;
    let rig = Rig::unix(Role::Admin).await;
    let relay = Relay::before(&rig.address);
    rig.memory.fill(FRAMES / 2, "a");
    let how = SubscribeOptions { credit: 4000, ..SubscribeOptions::default() };
    let mut follow = open(&relay.address(), FollowOptions { how, ..options(Start::First) }).await;
    let mut seen = Seen::default();
    for round in 1..=CUTS {
        seen.up_to(&mut follow, round * FRAMES / CUTS).await;
        relay.cut();
        // The future is dropped and made again, as `select!` does.
        for _ in 0..20 {
            tokio::select! {
                biased;
                event = follow.next() => seen.take(event.unwrap().unwrap()),
                () = tokio::task::yield_now() => {}
            }
        }
        if round == CUTS / 2 {
            rig.memory.fill(FRAMES / 2 + 100, "a");
            soon(rig.client().await.append(&one("a"))).await.unwrap();
        }
    }
    seen.up_to(&mut follow, FRAMES + 101).await;
    assert_eq!(seen.caught_up.len(), 1, "{:?}", seen.caught_up);
    let told = seen.resumed.len() as u64;
    assert!((1..=CUTS).contains(&told), "{told} resumes");
    assert!(seen.resumed.is_sorted(), "{:?}", seen.resumed);
}

#[tokio::test]
async fn a_server_that_is_started_again_is_found() {
    let mut rig = Rig::unix(Role::Admin).await;
    rig.memory.fill(10, "a");
    let mut follow = open(&rig.address, options(Start::First)).await;
    let mut seen = Seen::default();
    seen.up_to(&mut follow, 10).await;
    soon(rig.server.stop()).await;
    rig.memory.fill(10, "a");
    // The follow waits and retries while nobody listens.
    for _ in 0..100 {
        tokio::select! {
            biased;
            event = follow.next() => seen.take(event.unwrap().unwrap()),
            () = tokio::task::yield_now() => {}
        }
    }
    rig.server = Server::new(Arc::new(rig.memory.clone()), ServerOptions::default());
    rig.server.listen(Listener::bind(&rig.address).await.unwrap(), Role::Admin);
    seen.up_to(&mut follow, 20).await;
    assert_eq!((seen.caught_up, seen.resumed), (vec![10], vec![Some(10)]));
    assert!(soon(follow.client().ping()).await.is_ok(), "the newest connection is told");
}

#[tokio::test]
async fn what_is_new_counts_from_the_opening_whatever_becomes_of_the_connection() {
    let rig = Rig::unix(Role::Admin).await;
    let relay = Relay::before(&rig.address);
    rig.memory.fill(5, "a");
    let mut follow = open(&relay.address(), options(Start::New)).await;
    relay.cut();
    rig.memory.fill(3, "a");
    let mut seen = Seen { frames: 5, ..Seen::default() };
    seen.up_to(&mut follow, 8).await;
}

/// Otherwise the same start would mean other frames later.
#[tokio::test]
async fn what_is_followed_is_known_once_it_is_open() {
    for start in [Start::New, Start::Last(2)] {
        let rig = Rig::unix(Role::Admin).await;
        let relay = Relay::before(&rig.address);
        rig.memory.fill(5, "a");
        // The connection is cut before any event: either opening fails, or the follow resumes from
        // where it was opened.
        relay.cut_behind_subscribe(1);
        let opened = soon(Follow::open(&relay.address(), options(start))).await;
        assert!(relay.has_cut());
        let mut follow = match opened {
            Ok(follow) => follow,
            Err(error) => {
                assert!(matches!(&error, ClientError::Disconnected(_)), "{error:?}");
                open(&relay.address(), options(start)).await
            }
        };
        relay.cut();
        rig.memory.fill(3, "a");
        let frames = if start == Start::New { 5 } else { 3 };
        Seen { frames, ..Seen::default() }.up_to(&mut follow, 8).await;
    }
}

/// A start above the head is kept across lost connections.
#[tokio::test]
async fn what_begins_above_the_head_waits_for_it() {
    for start in [Start::From(Bound::Offset(8)), Start::After(Bound::Offset(7))] {
        for stops in [false, true] {
            let mut rig = Rig::unix(Role::Admin).await;
            let relay = Relay::before(&rig.address);
            rig.memory.fill(5, "a");
            let address = if stops { rig.address.clone() } else { relay.address() };
            let mut follow = open(&address, options(start)).await;
            assert!(matches!(next(&mut follow).await, FollowEvent::CaughtUp { head: 5 }));
            if stops {
                soon(rig.server.stop()).await;
                rig.server = Server::new(Arc::new(rig.memory.clone()), ServerOptions::default());
                rig.server.listen(Listener::bind(&rig.address).await.unwrap(), Role::Admin);
            } else {
                relay.cut();
            }
            let mut seen = Seen { frames: 8, ..Seen::default() };
            seen.take(next(&mut follow).await);
            assert_eq!(seen.resumed, [None]);
            rig.memory.fill(5, "a");
            soon(rig.client().await.append(&one("a"))).await.unwrap();
            seen.up_to(&mut follow, 11).await;
            assert_eq!(follow.point().map(|point| point.offset), Some(11));
        }
    }
}

/// Otherwise a caller that saves the position of a plain subscription would later get frames that
/// it did not ask for.
#[tokio::test]
async fn a_subscription_is_never_at_a_place_below_its_start() {
    let to_come = FrameId::first_of_ms(1 << 47);
    for start in [
        Start::From(Bound::Offset(8)),
        Start::After(Bound::Offset(7)),
        Start::From(Bound::Id(to_come)),
        Start::After(Bound::Id(to_come)),
    ] {
        let rig = Rig::unix(Role::Admin).await;
        rig.memory.fill(5, "a");
        let client = rig.client().await;
        let read = ReadOptions { start, follow: true, ..ReadOptions::default() };
        let how = SubscribeOptions::default();
        let mut subscription = soon(client.subscribe(&read, how)).await.unwrap();
        let event = soon(subscription.next()).await.unwrap().unwrap();
        assert_eq!(event, SubEvent::CaughtUp { head: 5 });
        assert_eq!((subscription.position(), subscription.point()), (None, None), "{start:?}");
        let (ended, ()) = tokio::join!(soon(subscription.next()), rig.server.stop());
        assert!(matches!(ended, Some(Ok(SubEvent::Dropped { .. }))), "{ended:?}");
        assert_eq!(subscription.position(), None, "{start:?}");
    }
}

#[tokio::test]
async fn a_limit_counts_over_all_connections() {
    let rig = Rig::unix(Role::Admin).await;
    let relay = Relay::before(&rig.address);
    rig.memory.fill(6, "a");
    let FollowOptions { read, .. } = options(Start::First);
    let read = ReadOptions { limit: Some(10), ..read };
    let mut follow = open(&relay.address(), FollowOptions { read, ..options(Start::First) }).await;
    let mut seen = Seen::default();
    seen.up_to(&mut follow, 6).await;
    relay.cut();
    rig.memory.fill(30, "a");
    while let Some(event) = soon(follow.next()).await {
        seen.take(event.unwrap());
    }
    assert_eq!((seen.frames, seen.resumed), (10, vec![Some(6)]));
    assert_eq!(follow.point().map(|point| point.offset), Some(10));
}

#[tokio::test]
async fn a_point_goes_on_behind_what_was_given_and_nowhere_else() {
    let rig = Rig::unix(Role::Admin).await;
    rig.memory.fill(50, "a");
    let mut follow = open(&rig.address, options(Start::First)).await;
    assert_eq!(follow.point(), None, "nothing is known yet");
    for given in 1..=20 {
        assert!(matches!(next(&mut follow).await, FollowEvent::Frame(_)));
        assert_eq!(follow.point().unwrap().offset, given);
    }
    let point = follow.point().unwrap();
    let from = |from| FollowOptions { from: Some(from), ..options(Start::New) };
    let mut later = open(&rig.address, from(point)).await;
    assert_eq!(later.point(), Some(point));
    Seen { frames: 20, ..Seen::default() }.up_to(&mut later, 50).await;
    // The same with a plain subscription.
    let client = rig.client().await;
    let all = ReadOptions { follow: true, ..ReadOptions::default() };
    let subscribe = client.subscribe_from(&point, &all, SubscribeOptions::default());
    let mut subscription = soon(subscribe).await.unwrap();
    assert_eq!(subscription.point(), Some(point));
    soon(subscription.next()).await.unwrap().unwrap();
    assert_eq!(subscription.point().unwrap().offset, 50);

    let elsewhere = ResumePoint { store: Some(StoreUuid::from_bytes([1; 16])), ..point };
    let ahead = ResumePoint { offset: 51, ..point };
    for (point, code) in [(elsewhere, Code::OtherStore), (ahead, Code::CursorAhead)] {
        let error = soon(Follow::open(&rig.address, from(point))).await.err().unwrap();
        assert_eq!(error.code(), Some(code), "{error}");
    }
}

#[tokio::test]
async fn another_store_in_its_place_ends_it_also_before_anything_was_seen() {
    for seen_before in [0, 5] {
        let rig = Rig::unix(Role::Admin).await;
        let relay = Relay::before(&rig.address);
        rig.memory.fill(seen_before, "a");
        let mut follow = open(&relay.address(), options(Start::First)).await;
        Seen::default().up_to(&mut follow, seen_before).await;
        rig.memory.become_another();
        relay.cut();
        assert_eq!(end(&mut follow).await.code(), Some(Code::OtherStore));
    }
}

#[tokio::test]
async fn who_asked_to_be_dropped_when_too_slow_is_told() {
    let rig = Rig::unix(Role::Admin).await;
    let how =
        SubscribeOptions { credit: 400, slow: Slow::Drop { behind: 5 }, ..Default::default() };
    let mut follow = open(&rig.address, FollowOptions { how, ..options(Start::First) }).await;
    assert!(matches!(next(&mut follow).await, FollowEvent::CaughtUp { head: 0 }));
    let client = rig.client().await;
    for _ in 0..300 {
        soon(client.append(&one("a"))).await.unwrap();
    }
    assert_eq!(end(&mut follow).await.code(), Some(Code::TooSlow));
}

#[tokio::test]
async fn what_nobody_can_mend_by_waiting_is_told_at_once() {
    let rig = Rig::unix(Role::Admin).await;
    let mut relay = Relay::before(&rig.address);
    let mut follow = open(&relay.address(), options(Start::First)).await;
    let read = ReadOptions { reverse: true, ..ReadOptions::default() };
    let error = Follow::open(&rig.address, FollowOptions { read, ..options(Start::First) });
    assert_eq!(soon(error).await.err().unwrap().code(), Some(Code::InvalidRead));

    // An unreachable server is an error when a follow is opened; an open follow keeps retrying.
    relay.close().await;
    let error = soon(Follow::open(&relay.address(), options(Start::First))).await.err().unwrap();
    assert!(matches!(error, ClientError::Connect { .. }), "{error:?}");
    relay.open();
    while !matches!(next(&mut follow).await, FollowEvent::Resumed { .. }) {}
}

#[tokio::test]
async fn a_first_server_is_waited_for_when_asked_to() {
    let rig = Rig::unix(Role::Admin).await;
    let mut relay = Relay::before(&rig.address);
    relay.close().await;
    let address = relay.address();
    let wait = Duration::from_millis(50);
    let error = soon(Follow::open(&address, FollowOptions { wait, ..options(Start::First) })).await;
    assert_eq!(error.err().unwrap().class(), Class::Busy);

    // The first attempt is made, and has failed, before the relay listens again.
    let waiting = FollowOptions { wait: Duration::MAX, ..options(Start::First) };
    let (mut follow, ()) = tokio::join!(open(&address, waiting), async {
        tokio::task::yield_now().await;
        relay.open();
    });
    assert!(matches!(next(&mut follow).await, FollowEvent::CaughtUp { .. }));
}

#[tokio::test]
async fn an_address_where_no_server_can_be_is_told_however_long_it_may_take() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    for path in [file.join("xs.sock"), dir.path().join("x".repeat(300)).join("xs.sock")] {
        let waiting = FollowOptions { wait: Duration::MAX, ..options(Start::First) };
        let error = soon(Follow::open(&Address::Unix(path), waiting)).await.err().unwrap();
        assert_eq!(error.class(), Class::Invalid, "{error}");
    }
}

#[tokio::test]
async fn it_gives_up_when_asked_to_with_what_was_the_last() {
    let rig = Rig::unix(Role::Admin).await;
    let mut relay = Relay::before(&rig.address);
    let retry = Retry { give_up: Some(Duration::from_millis(100)), ..quick() };
    let mut follow = open(&relay.address(), FollowOptions { retry, ..options(Start::First) }).await;
    assert!(matches!(next(&mut follow).await, FollowEvent::CaughtUp { .. }));
    relay.close().await;
    let error = end(&mut follow).await;
    assert!(matches!(error, ClientError::Connect { .. }), "{error:?}");
}

#[tokio::test]
async fn at_its_end_it_tells_how_far_was_looked() {
    let rig = Rig::unix(Role::Admin).await;
    rig.memory.fill(20, "a");
    let (topics, before) = (TopicPatterns::parse("b").unwrap(), Some(Bound::Offset(12)));
    let read = ReadOptions { topics, before, ..ReadOptions::default() };
    let mut follow = open(&rig.address, FollowOptions { read, ..options(Start::First) }).await;
    while let Some(event) = soon(follow.next()).await {
        event.unwrap();
    }
    assert_eq!(follow.point().map(|point| point.offset), Some(12));
}

#[tokio::test]
async fn dropping_it_ends_it_on_the_server_too() {
    let rig = Rig::unix(Role::Admin).await;
    let mut follow = open(&rig.address, options(Start::First)).await;
    assert!(matches!(next(&mut follow).await, FollowEvent::CaughtUp { .. }));
    assert_eq!((rig.memory.followers(), rig.server.connections()), (1, 1));
    drop(follow);
    until(|| rig.memory.followers() == 0 && rig.server.connections() == 0).await;
}

#[tokio::test]
async fn topics_are_kept_over_connections() {
    let rig = Rig::unix(Role::Admin).await;
    let relay = Relay::before(&rig.address);
    let FollowOptions { read, .. } = options(Start::First);
    let read = ReadOptions { topics: TopicPatterns::parse("b").unwrap(), ..read };
    let mut follow = open(&relay.address(), FollowOptions { read, ..options(Start::First) }).await;
    for _ in 0..5 {
        rig.memory.fill(3, "a");
        let client = rig.client().await;
        soon(client.append(&one("b"))).await.unwrap();
        let topic = loop {
            if let FollowEvent::Frame(frame) = next(&mut follow).await {
                break frame.frame.topic().to_owned();
            }
        };
        assert_eq!(topic, "b");
        relay.cut();
    }
}
