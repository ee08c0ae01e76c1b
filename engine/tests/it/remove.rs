//! Dead frames are invisible on every path: removed, expired, or beyond the n of `last:n`.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use xs_engine::{
    AppendError, Batch, CompactOptions, Condition, CursorChange, CursorName, CursorValue,
    ExpectRevision, FollowerEvent, Frame, FrameId, NewFrame, ReadOptions, Removal, Start, Store,
    StoreOptions, Ttl,
};

use crate::support::{
    MEDIA, TestClock, batch, copy_store, frames, number_of, numbered, open, options, patterns,
    scratch, topic,
};

fn of_topic(name: &str) -> ReadOptions {
    ReadOptions { topics: patterns(name), ..ReadOptions::default() }
}

fn numbers(found: &[Frame]) -> Vec<u64> {
    found.iter().map(number_of).collect()
}

/// The numbers of the frames of `t`, on which all ways of reading must agree. Other frames lie
/// between them.
fn left(store: &Store) -> Vec<u64> {
    let found = frames(store.read(&of_topic("t")));
    let left = numbers(&found);
    let all = frames(store.read(&ReadOptions::default()));
    let of_t: Vec<_> = all.into_iter().filter(|frame| frame.topic() == "t").collect();
    assert_eq!(numbers(&of_t), left);
    let reverse = ReadOptions { reverse: true, ..of_topic("t") };
    let mut reverse = numbers(&frames(store.read(&reverse)));
    reverse.reverse();
    assert_eq!(reverse, left);
    let newest = left[left.len().saturating_sub(2)..].to_vec();
    assert_eq!(numbers(&store.last(&patterns("t"), 2).unwrap()), newest);
    let last = ReadOptions { start: Start::Last(2), ..of_topic("t") };
    assert_eq!(numbers(&frames(store.read(&last))), newest);
    let per_topic = store.last_per_topic(&patterns("t")).unwrap();
    assert_eq!(numbers(&per_topic), left.last().copied().into_iter().collect::<Vec<_>>());
    let mut follower = store.follow(&of_topic("t")).unwrap();
    let mut followed = Vec::new();
    while let Some(live) = follower.try_recv().unwrap() {
        if let FollowerEvent::Frame(frame) = live {
            followed.push(number_of(&frame));
        }
    }
    assert_eq!(followed, left);
    for frame in &found {
        assert_eq!(store.get(frame.id()).unwrap().as_ref(), Some(frame));
        assert_eq!(store.get_at(frame.offset().unwrap()).unwrap().as_ref(), Some(frame));
    }
    let condition = |condition| {
        let conditions = vec![condition];
        let cursor = CursorName::parse("never").unwrap();
        let conflict = CursorChange { name: cursor, expect: ExpectRevision::Is(9), set: None };
        store.append(Batch { conditions, cursors: vec![conflict], ..Batch::default() })
    };
    let holds = |answer| matches!(answer, Err(AppendError::CursorConflict { .. }));
    assert_eq!(holds(condition(Condition::Empty(patterns("t")))), left.is_empty());
    if let Some(offset) = found.last().and_then(Frame::offset) {
        let at_most = |offset| Condition::LastAtMost { topics: patterns("t"), offset };
        assert!(holds(condition(at_most(offset))));
        assert!(offset == 0 || !holds(condition(at_most(offset - 1))));
    }
    left
}

fn is_gone(store: &Store, id: FrameId, offset: u64) {
    assert_eq!((store.get(id).unwrap(), store.get_at(offset).unwrap()), (None, None));
    assert_eq!(store.remove(id).unwrap(), Removal::Absent);
}

/// Appends frames of `t` and, between them, of another topic.
fn fill(store: &Store, count: u64) -> Vec<(FrameId, u64)> {
    let mut stored = Vec::new();
    for n in 0..count {
        let stamp = store.append(numbered("t", n).into()).unwrap().frames[0];
        stored.push((stamp.id, stamp.offset.unwrap()));
        store.append(batch((0..5).map(|n| numbered("other", n)))).unwrap();
    }
    stored
}

#[test]
fn a_removed_frame_is_gone_on_every_path() {
    for media in MEDIA {
        let dir = scratch();
        let store = open(dir.path(), &options(media));
        let stored = fill(&store, 400);
        assert!(store.info().segments > 2);
        let mut expected: Vec<u64> = (0..400).collect();
        // The first, the last ones, some in the middle; in sealed segments and in the active one.
        for n in [0, 399, 398, 7, 200] {
            assert_eq!(store.remove(stored[n].0).unwrap(), Removal::Removed);
            expected.retain(|&number| number != n as u64);
            assert_eq!(left(&store), expected);
            is_gone(&store, stored[n].0, stored[n].1);
        }
        assert_eq!(store.remove(FrameId::MAX).unwrap(), Removal::Absent);
        let stats = store.topics(&patterns("t")).remove(0);
        assert_eq!((stats.count, stats.first, stats.last), (395, stored[1].0, stored[397].0));
        assert_eq!(stats.last_offset, stored[397].1);
        // What a killed process leaves, and what a close leaves.
        let killed = scratch();
        copy_store(dir.path(), killed.path());
        store.close().unwrap();
        for dir in [dir.path(), killed.path()] {
            let store = open(dir, &options(media));
            assert_eq!(left(&store), expected);
            assert_eq!(store.topics(&patterns("t")), std::slice::from_ref(&stats));
            for &n in &expected {
                assert_eq!(store.remove(stored[n as usize].0).unwrap(), Removal::Removed);
            }
            assert_eq!(left(&store), [0; 0]);
            assert!(store.topics(&patterns("t")).is_empty());
        }
    }
}

#[test]
fn removals_go_with_their_batch_or_not_at_all() {
    let dir = scratch();
    let store = open(dir.path(), &options(MEDIA[0]));
    let stored = fill(&store, 3);
    let cursor = |expect| CursorChange {
        name: CursorName::parse("c").unwrap(),
        expect: ExpectRevision::Is(expect),
        set: Some(CursorValue { offset: 1, state: Bytes::new() }),
    };
    let change = |expect| Batch {
        removes: vec![stored[0].0, FrameId::MAX, stored[0].0, stored[2].0],
        cursors: vec![cursor(expect)],
        ..numbered("t", 3).into()
    };
    assert!(matches!(store.append(change(5)), Err(AppendError::CursorConflict { .. })));
    assert_eq!(left(&store), [0, 1, 2]);
    // A reader that does not see the new frame sees the old ones.
    let reader = store.read(&of_topic("t")).unwrap();
    let head = store.info().head;
    let appended = store.append(change(0)).unwrap();
    use Removal::{Absent, Removed};
    assert_eq!(appended.removed, [Removed, Absent, Absent, Removed]);
    assert_eq!((appended.cursors, appended.head), (vec![1], head + 1));
    assert_eq!(left(&store), [1, 3]);
    assert_eq!(numbers(&reader.collect::<Result<Vec<_>, _>>().unwrap()), [0, 1, 2]);
    // Nothing to remove, nothing to write.
    let before = store.info().log_bytes;
    let removes = vec![stored[0].0];
    let appended = store.append(Batch { removes, ..Batch::default() }).unwrap();
    assert_eq!((appended.removed, store.info().log_bytes), (vec![Absent], before));
    let ephemeral = NewFrame { ttl: Ttl::Ephemeral, ..numbered("t", 9) };
    let id = store.append(ephemeral.into()).unwrap().frames[0].id;
    assert_eq!(store.remove(id).unwrap(), Absent);
}

#[test]
fn expired_frames_are_gone_on_every_path_at_once() {
    let clock = TestClock::new();
    let options = StoreOptions { clock: clock.clone(), ..options(MEDIA[0]) };
    let dir = scratch();
    let store = open(dir.path(), &options);
    fill(&store, 100);
    let timed = |n, ms| NewFrame { ttl: Ttl::TimeMs(ms), ..numbered("t", n) };
    let ids: Vec<_> = [(100, 500), (101, 300), (102, 400)]
        .map(|(n, ms)| store.append(timed(n, ms).into()).unwrap().frames[0])
        .into();
    let check = |store: &Store, newest: &[u64]| {
        let expected: Vec<_> = (0..100).chain(newest.iter().copied()).collect();
        assert_eq!(left(store), expected);
    };
    check(&store, &[100, 101, 102]);
    clock.forward(299);
    check(&store, &[100, 101, 102]);
    clock.forward(1);
    check(&store, &[100, 102]);
    is_gone(&store, ids[1].id, ids[1].offset.unwrap());
    clock.forward(100);
    check(&store, &[100]);
    store.close().unwrap();
    let store = open(dir.path(), &options);
    check(&store, &[100]);
    clock.forward(100);
    check(&store, &[]);
}

#[test]
fn last_n_counts_what_is_there() {
    let clock = TestClock::new();
    let options = StoreOptions { clock: clock.clone(), ..options(MEDIA[0]) };
    let dir = scratch();
    let mut store = open(dir.path(), &options);
    let last =
        |n, keep| NewFrame { ttl: Ttl::Last(NonZeroU64::new(keep).unwrap()), ..numbered("t", n) };
    let stored = fill(&store, 200);
    for (id, _) in &stored[190..] {
        assert_eq!(store.remove(*id).unwrap(), Removal::Removed);
    }
    let timed = NewFrame { ttl: Ttl::TimeMs(50), ..numbered("t", 200) };
    store.append(timed.into()).unwrap();
    clock.forward(50);
    let third = store.append(last(201, 4).into()).unwrap().frames[0].id;
    assert_eq!(left(&store), [187, 188, 189, 201]);
    store.remove(third).unwrap();
    assert_eq!(left(&store), [187, 188, 189]);
    // Removals of one batch come before its frames.
    let removes = vec![stored[188].0];
    store.append(Batch { removes, ..last(202, 2).into() }).unwrap();
    assert_eq!(left(&store), [189, 202]);
    let mut expected = vec![189, 202];
    for n in 203..230 {
        store.append(last(n, 3).into()).unwrap();
        expected.push(n);
        expected.drain(..expected.len().saturating_sub(3));
        assert_eq!(left(&store), expected);
        let id = store.last(&patterns("t"), 1).unwrap()[0].id();
        if n % 4 == 0 {
            store.remove(id).unwrap();
            expected.pop();
            assert_eq!(left(&store), expected);
        }
        if n % 9 == 0 {
            let killed = scratch();
            copy_store(dir.path(), killed.path());
            assert_eq!(left(&open(killed.path(), &options)), expected);
            store.close().unwrap();
            store = open(dir.path(), &options);
            assert_eq!(left(&store), expected);
        }
    }
}

#[test]
fn segments_are_compacted_while_the_store_is_used() {
    let dir = scratch();
    let compaction = Some(CompactOptions { dead_percent: 20, bytes_per_second: None });
    let options = StoreOptions { compaction, ..options(MEDIA[0]) };
    let store = open(dir.path(), &options);
    let done = AtomicBool::new(false);
    let padding = "p".repeat(400);
    let state = |name: &str, n: u64| {
        let meta = xs_engine::Meta::parse(format!("[{n},\"{padding}\"]")).unwrap();
        NewFrame { meta, ttl: Ttl::Last(NonZeroU64::MIN), ..NewFrame::new(topic(name)) }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let found = frames(store.read(&ReadOptions::default()));
                assert!(found.windows(2).all(|pair| pair[0].offset() < pair[1].offset()));
                let kept = found.iter().filter(|frame| frame.topic() == "keep").count() as u64;
                let counted = store.topics(&patterns("keep"));
                assert!(counted.first().map_or(0, |stats| stats.count) >= kept);
            }
        });
        let mut follower = store.follow(&of_topic("keep")).unwrap();
        let followed = scope.spawn(move || {
            let mut followed = Vec::new();
            while followed.len() < 200 {
                if let Some(FollowerEvent::Frame(frame)) = follower.recv().unwrap() {
                    followed.push(number_of(&frame));
                }
            }
            followed
        });
        for n in 0..4000 {
            store.append(state(["a", "b", "c"][n as usize % 3], n).into()).unwrap();
            if n % 20 == 0 {
                let junk = store.append(numbered("junk", n).into()).unwrap().frames[0].id;
                store.append(numbered("keep", n / 20).into()).unwrap();
                store.remove(junk).unwrap();
            }
        }
        assert!(followed.join().unwrap().into_iter().eq(0..200));
        done.store(true, Ordering::Relaxed);
    });
    // 2 MB were written. The thread may not have compacted the newest segments yet.
    store.compact(CompactOptions { dead_percent: 20, bytes_per_second: None }).unwrap();
    assert!(store.info().log_bytes < 400_000, "{:?}", store.info());
    let check = |store: &Store| {
        assert!(numbers(&frames(store.read(&of_topic("keep")))).into_iter().eq(0..200));
        assert_eq!(frames(store.read(&of_topic("a,b,c,junk"))).len(), 3);
    };
    check(&store);
    store.close().unwrap();
    check(&open(dir.path(), &options));
}
