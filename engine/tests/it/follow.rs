//! Following: no gap, no duplicate, one threshold, whatever writers do meanwhile.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use xs_engine::limits::EPHEMERAL_RING_MAX;
use xs_engine::{
    Bound, Follower, FollowerEvent, FrameId, MediaChoice, NewFrame, ReadError, ReadOptions, Start,
    Store, Ttl,
};

use crate::support::{
    MEDIA, batch, everything, number_of, numbered, open, options, patterns, scratch, topic,
};

const PATIENCE: Duration = Duration::from_secs(120);

/// Waits for the next event.
fn next(follower: &mut Follower) -> FollowerEvent {
    follower.recv_timeout(PATIENCE).unwrap().expect("nothing came")
}

fn next_number(follower: &mut Follower) -> u64 {
    match next(follower) {
        FollowerEvent::Frame(frame) => number_of(&frame),
        other => panic!("{other:?}"),
    }
}

fn drain(follower: &mut Follower) -> Vec<FollowerEvent> {
    std::iter::from_fn(|| follower.try_recv().unwrap()).collect()
}

fn filled(media: MediaChoice, frames: u64) -> (tempfile::TempDir, Arc<Store>) {
    let dir = scratch();
    let store = open(dir.path(), &options(media));
    for n in 0..frames {
        store.append(numbered("a", n).into()).unwrap();
    }
    (dir, store)
}

fn ephemeral(n: u64) -> NewFrame {
    NewFrame { ttl: Ttl::Ephemeral, ..numbered("a", n) }
}

#[test]
fn eight_writers_give_one_order_to_every_follower() {
    const WRITERS: u64 = 8;
    const EACH: u64 = 1500;
    for media in MEDIA {
        let (_dir, store) = filled(media, 10);
        let follow = |store: &Arc<Store>| {
            let mut follower = store.follow(&everything()).unwrap();
            thread::spawn(move || {
                let (mut offset, mut id, mut thresholds) = (0, FrameId::ZERO, 0);
                while offset < 10 + WRITERS * EACH {
                    match next(&mut follower) {
                        FollowerEvent::Frame(frame) => {
                            assert_eq!(frame.offset(), Some(offset));
                            assert!(frame.id() > id);
                            (offset, id) = (offset + 1, frame.id());
                        }
                        FollowerEvent::CaughtUp { head } => {
                            assert_eq!(head, offset);
                            thresholds += 1;
                        }
                        FollowerEvent::Lost { .. } => panic!("nothing ephemeral was appended"),
                    }
                }
                thresholds
            })
        };
        let early: Vec<_> = (0..2).map(|_| follow(&store)).collect();
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let store = store.clone();
                thread::spawn(move || {
                    let mut last = FrameId::ZERO;
                    let mut n = 0;
                    while n < EACH {
                        let len = (1 + n % 3).min(EACH - n);
                        let frames = (n..n + len).map(|n| numbered(&format!("w{writer}"), n));
                        let appended = store.append(batch(frames)).unwrap();
                        assert!(appended.frames.windows(2).all(|pair| pair[0].id < pair[1].id));
                        assert!(appended.frames[0].id > last);
                        last = appended.frames.last().unwrap().id;
                        n += len;
                    }
                })
            })
            .collect();
        let late: Vec<_> = (0..2).map(|_| follow(&store)).collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        for follower in early.into_iter().chain(late) {
            assert_eq!(follower.join().unwrap(), 1, "exactly one threshold");
        }
        for writer in 0..WRITERS {
            let mine =
                ReadOptions { topics: patterns(&format!("w{writer}")), ..ReadOptions::default() };
            let numbers: Vec<_> =
                store.read(&mine).unwrap().map(|f| number_of(&f.unwrap())).collect();
            assert!(numbers.into_iter().eq(0..EACH), "the order of one writer is kept");
        }
    }
}

#[test]
fn a_follower_that_sleeps_gets_everything() {
    let (_dir, store) = filled(MediaChoice::Mapped, 0);
    let mut all = store.follow(&everything()).unwrap();
    let some = ReadOptions { topics: patterns("b"), ..ReadOptions::default() };
    let mut some = store.follow(&some).unwrap();
    for chunk in 0..400 {
        let name = |n: u64| if n.is_multiple_of(100) { "b" } else { "a" };
        store.append(batch((0..500).map(|n| numbered(name(n), chunk * 500 + n)))).unwrap();
    }
    assert_eq!(all.try_recv().unwrap(), Some(FollowerEvent::CaughtUp { head: 0 }));
    (0..200_000).for_each(|n| assert_eq!(next_number(&mut all), n));
    assert_eq!(all.try_recv().unwrap(), None);
    assert_eq!(some.try_recv().unwrap(), Some(FollowerEvent::CaughtUp { head: 0 }));
    (0..2000).for_each(|n| assert_eq!(next_number(&mut some), n * 100));
    assert_eq!((some.try_recv().unwrap(), some.next_offset()), (None, 200_000));
}

#[test]
fn the_threshold_comes_once_and_where_it_belongs() {
    let (_dir, store) = filled(MediaChoice::Mapped, 5);
    let starts = [
        (Start::First, 5),
        (Start::From(Bound::Offset(2)), 3),
        (Start::After(Bound::Offset(2)), 2),
        (Start::Last(2), 2),
        (Start::New, 0),
        (Start::From(Bound::Offset(5)), 0),
    ];
    for (start, stored) in starts {
        let mut follower = store.follow(&ReadOptions { start, ..everything() }).unwrap();
        for n in 5 - stored..5 {
            assert_eq!(next_number(&mut follower), n, "{start:?}");
        }
        assert_eq!(
            follower.try_recv().unwrap(),
            Some(FollowerEvent::CaughtUp { head: 5 }),
            "{start:?}"
        );
        assert_eq!(follower.try_recv().unwrap(), None);
    }
    let none = ReadOptions { topics: patterns("b"), ..ReadOptions::default() };
    let mut none = store.follow(&none).unwrap();
    assert_eq!(none.try_recv().unwrap(), Some(FollowerEvent::CaughtUp { head: 5 }));
    let reverse = store.follow(&ReadOptions { reverse: true, ..everything() });
    assert!(matches!(reverse, Err(ReadError::Options(_))));
    let stored = store.read(&ReadOptions { follow: true, ..everything() });
    assert!(matches!(stored, Err(ReadError::Options(_))), "it would end at the head");
}

#[test]
fn a_limit_counts_stored_and_live_frames_together() {
    let (_dir, store) = filled(MediaChoice::Mapped, 5);
    let follow = |limit| store.follow(&ReadOptions { limit: Some(limit), ..everything() }).unwrap();
    let (mut fewer, mut same, mut more) = (follow(3), follow(5), follow(7));
    assert_eq!(drain(&mut fewer).len(), 3);
    assert_eq!(drain(&mut same).len(), 5);
    assert!(fewer.is_done() && same.is_done());
    assert_eq!(drain(&mut more).len(), 6, "five frames and the threshold");
    assert_eq!(fewer.recv().unwrap(), None);
    assert_eq!(more.recv_timeout(Duration::ZERO).unwrap(), None);
    assert!(!more.is_done());
    (5..9).for_each(|n| drop(store.append(numbered("a", n).into()).unwrap()));
    assert_eq!((next_number(&mut more), next_number(&mut more)), (5, 6));
    assert!(more.is_done() && more.try_recv().unwrap().is_none());
    assert!(follow(0).is_done());
}

#[test]
fn bounds_end_a_follower() {
    let (_dir, store) = filled(MediaChoice::Mapped, 5);
    let before = |bound| ReadOptions { before: Some(bound), ..everything() };
    let mut by_offset = store.follow(&before(Bound::Offset(7))).unwrap();
    let id = store.get_at(3).unwrap().unwrap().id();
    let mut by_id = store.follow(&before(Bound::Id(id))).unwrap();
    assert_eq!((drain(&mut by_id).len(), by_id.is_done()), (3, true));
    assert_eq!((drain(&mut by_offset).len(), by_offset.is_done()), (6, false));
    (5..9).for_each(|n| drop(store.append(numbered("a", n).into()).unwrap()));
    assert_eq!((drain(&mut by_offset).len(), by_offset.is_done()), (2, true));
    let mut until = store.follow(&ReadOptions { until_ms: Some(1), ..everything() }).unwrap();
    assert_eq!((drain(&mut until).len(), until.is_done()), (0, true));
}

#[test]
fn ephemeral_frames_come_in_order_and_only_live() {
    for media in MEDIA {
        let (_dir, store) = filled(media, 3);
        let mut follower = store.follow(&everything()).unwrap();
        store.append(batch([numbered("a", 3), numbered("a", 4)])).unwrap();
        let stamp = store.append(ephemeral(5).into()).unwrap().frames[0];
        assert_eq!(stamp.offset, None);
        store.append(numbered("a", 6).into()).unwrap();
        store.append(ephemeral(7).into()).unwrap();
        (0..3).for_each(|n| assert_eq!(next_number(&mut follower), n));
        assert_eq!(follower.try_recv().unwrap(), Some(FollowerEvent::CaughtUp { head: 3 }));
        let mut id = FrameId::ZERO;
        for n in 3..8 {
            let FollowerEvent::Frame(frame) = next(&mut follower) else {
                panic!("a frame is missing")
            };
            assert_eq!((number_of(&frame), frame.offset().is_none()), (n, n == 5 || n == 7));
            assert!(frame.id() > id, "ids ascend over stored and ephemeral frames");
            id = frame.id();
        }
        assert_eq!(follower.try_recv().unwrap(), None);
        assert_eq!(store.get(stamp.id).unwrap(), None);
        assert_eq!(store.read(&everything()).unwrap().count(), 6);
        let mut late = store.follow(&everything()).unwrap();
        assert_eq!(drain(&mut late).len(), 7, "six stored frames and the threshold");
    }
}

#[test]
fn lost_ephemeral_frames_are_counted() {
    let (_dir, store) = filled(MediaChoice::Mapped, 1);
    let mut follower = store.follow(&everything()).unwrap();
    let many = EPHEMERAL_RING_MAX as u64 + 500;
    (0..many).for_each(|n| drop(store.append(ephemeral(n).into()).unwrap()));
    store.append(numbered("a", 1).into()).unwrap();
    assert_eq!(next_number(&mut follower), 0);
    assert_eq!(follower.try_recv().unwrap(), Some(FollowerEvent::CaughtUp { head: 1 }));
    assert_eq!(follower.try_recv().unwrap(), Some(FollowerEvent::Lost { ephemeral: 500 }));
    (500..many).for_each(|n| assert_eq!(next_number(&mut follower), n));
    assert_eq!((next_number(&mut follower), follower.try_recv().unwrap()), (1, None));
}

#[test]
fn hooks_are_called_after_the_frame_is_visible() {
    let (_dir, store) = filled(MediaChoice::Mapped, 0);
    let (calls, seen) = (Arc::new(AtomicUsize::new(0)), Arc::downgrade(&store));
    let counter = calls.clone();
    let hook = store.on_publish(Arc::new(move || {
        let head = seen.upgrade().unwrap().info().head;
        assert!(head > counter.fetch_add(1, Ordering::SeqCst) as u64);
    }));
    (0..3).for_each(|n| drop(store.append(numbered("a", n).into()).unwrap()));
    drop(hook);
    store.append(numbered("a", 3).into()).unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 3);
}

#[test]
fn a_follower_skips_what_last_n_removed_before_it_came() {
    let (_dir, store) = filled(MediaChoice::Mapped, 0);
    let keep_one = |n| NewFrame { ttl: Ttl::Last(NonZeroU64::MIN), ..numbered("state", n) };
    let mut follower = store.follow(&everything()).unwrap();
    for n in 0..10 {
        store.append(keep_one(n).into()).unwrap();
        store.append(NewFrame::new(topic("other")).into()).unwrap();
    }
    let lives = drain(&mut follower);
    let states =
        lives.iter().filter(|live| matches!(live, FollowerEvent::Frame(f) if f.topic() == "state"));
    assert_eq!((lives.len(), states.count()), (1 + 10 + 1, 1));
}

#[test]
fn a_reader_says_where_to_go_on() {
    let dir = scratch();
    let store = open(dir.path(), &options(MEDIA[0]));
    for n in 0..10 {
        store.append(numbered(if n % 3 == 0 { "a" } else { "b" }, n).into()).unwrap();
    }
    let end_of = |options: ReadOptions| {
        let mut reader = store.read(&options).unwrap();
        reader.by_ref().for_each(|frame| drop(frame.unwrap()));
        reader.next_offset()
    };
    let a = || ReadOptions { topics: patterns("a"), ..everything() };
    assert_eq!(end_of(everything()), 10);
    assert_eq!(end_of(ReadOptions { limit: Some(2), ..a() }), 4, "behind the second a");
    assert_eq!(end_of(ReadOptions { before: Some(Bound::Offset(8)), ..a() }), 8);
    assert_eq!(end_of(ReadOptions { topics: patterns("c"), ..everything() }), 10);
    let back = |options| end_of(ReadOptions { reverse: true, ..options });
    assert_eq!(back(everything()), 0);
    assert_eq!(back(ReadOptions { limit: Some(2), ..a() }), 6);
    assert_eq!(back(ReadOptions { start: Start::From(Bound::Offset(2)), ..a() }), 2);
    let mut unread = store.read(&everything()).unwrap();
    assert_eq!(unread.next_offset(), 0);
    unread.next().unwrap().unwrap();
    assert_eq!(unread.next_offset(), 1);
}

#[test]
fn who_waits_is_told_that_the_store_is_closed_after_its_last_frame() {
    let (_dir, store) = filled(MediaChoice::Mapped, 1);
    let mut follower = store.follow(&everything()).unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let mut numbers = Vec::new();
            loop {
                match follower.recv() {
                    Ok(Some(FollowerEvent::Frame(frame))) => numbers.push(number_of(&frame)),
                    Ok(Some(_)) => {}
                    end => return (numbers, end),
                }
            }
        });
        // Nothing waits for it: closing commits it.
        drop(store.submit(numbered("a", 1).into()));
        store.close().unwrap();
        assert_eq!(waiting.join().unwrap(), (vec![0, 1], Err(ReadError::Closed)));
    });
    let mut late = store.follow(&everything()).unwrap();
    assert_eq!(drain(&mut late).len(), 3);
    assert_eq!(late.recv_timeout(PATIENCE), Err(ReadError::Closed));
    assert_eq!(late.recv_timeout(Duration::ZERO), Err(ReadError::Closed));
}
