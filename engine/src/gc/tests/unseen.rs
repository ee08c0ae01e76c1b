//! Bodies of frames that the log still holds but no reader sees.

use std::num::NonZeroU64;

use super::*;
use crate::append::Batch;
use crate::options::CompactOptions;
use crate::value::{FrameId, ReadOptions, Ttl};

const COUNT: u64 = 60;
const HOUR: u64 = 3_600_000;

fn put(store: &Store, n: u64, topic: &str, ttl: Ttl) -> FrameId {
    let new = NewFrame { body: Body::Inline(body(n)), ttl, ..frame(topic, n) };
    store.append(new.into()).unwrap().frames[0].id
}

fn remove(store: &Store, ids: &[FrameId]) {
    for ids in ids.chunks(64) {
        store.append(Batch { removes: ids.to_vec(), ..Batch::default() }).unwrap();
    }
}

/// Frames that stay, were removed, were superseded, and expire at 1,000 s + 1 h; in one segment.
fn mixed(store: &Store) {
    let mut removed = Vec::new();
    for n in (0..COUNT).step_by(4) {
        put(store, n, "stay", Ttl::Forever);
        removed.push(put(store, n + 1, "removed", Ttl::Forever));
        put(store, n + 2, "state", Ttl::Last(NonZeroU64::MIN));
        put(store, n + 3, "brief", Ttl::TimeMs(HOUR));
    }
    remove(store, &removed);
}

fn stays(n: u64, with_brief: bool) -> bool {
    n.is_multiple_of(4) || n == COUNT - 2 || (with_brief && n % 4 == 3)
}

fn check_bodies(store: &Store, with_brief: bool) {
    for n in 0..COUNT {
        assert_eq!(read(store, &body(n)).is_some(), stays(n, with_brief), "body {n}");
    }
    let seen = store.read(&ReadOptions::default()).unwrap().map(|frame| frame.unwrap());
    let mut count = 0;
    for frame in seen {
        count += 1;
        assert!(store.body(&frame, u64::MAX).unwrap().is_some(), "{frame:?}");
    }
    assert_eq!(count, (0..COUNT).filter(|&n| stays(n, with_brief)).count());
}

#[test]
fn a_frame_that_nobody_sees_keeps_no_body() {
    for policy in [SyncPolicy::None, SyncPolicy::Sync] {
        let (dir, clock) = (fast_dir(), StillClock::at(1_000_000));
        let with_clock = || StoreOptions { clock: clock.clone(), ..options(policy) };
        let store = Store::open(dir.path(), with_clock()).unwrap();
        mixed(&store);
        let told = store.gc(&GcOptions { dry_run: true, ..GcOptions::everything() }).unwrap();
        let done = store.gc(&GcOptions::everything()).unwrap();
        assert_eq!(told, done);
        assert_eq!(done.dead, (0..COUNT).filter(|&n| !stays(n, true)).count() as u64);
        check_bodies(&store, true);
        // After a crash the log may name missing bodies, but none that a reader wants.
        let image = crate::testing::crash(dir.path());
        let again = Store::open(image.path(), with_clock()).unwrap();
        check_bodies(&again, true);
        let checked = again.verify(&mut |_| std::ops::ControlFlow::Continue(())).unwrap();
        assert!(checked.findings.is_empty(), "{checked:#?}");
        drop(again);
        store.close().unwrap();
        drop(store);
        let again = Store::open(dir.path(), with_clock()).unwrap();
        check_bodies(&again, true);
        put(&again, COUNT, "stay", Ttl::Forever);
        assert_eq!(read(&again, &body(COUNT)), Some(body(COUNT)));
    }
}

#[test]
fn a_body_outlives_its_frame_by_the_grace_where_the_clock_decides() {
    let (dir, clock) = (fast_dir(), StillClock::at(1_000_000));
    let options = StoreOptions { clock: clock.clone(), ..options(SyncPolicy::None) };
    let store = Store::open(dir.path(), options).unwrap();
    mixed(&store);
    store.inner.blobs.sweep(None).seal_all().unwrap();
    let grace =
        GcOptions { grace: Duration::from_secs(600), dead_percent: 0, ..GcOptions::default() };
    clock.0.store(1_000_000 + HOUR + 1000, Ordering::Relaxed);
    let done = store.gc(&grace).unwrap();
    assert_eq!(done.dead, (0..COUNT).filter(|&n| !stays(n, true)).count() as u64);
    // The clock is set back: they are seen again.
    clock.0.store(1_000_000 + HOUR - 1000, Ordering::Relaxed);
    check_bodies(&store, true);
    clock.0.store(1_000_000 + HOUR + 700_000, Ordering::Relaxed);
    store.gc(&grace).unwrap();
    check_bodies(&store, false);
}

#[test]
fn an_active_segment_that_is_dead_is_compacted() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let ids: Vec<_> = (0..200).map(|n| put(&store, n, "a", Ttl::Forever)).collect();
    let by_half = CompactOptions { dead_percent: 50, bytes_per_second: None };
    remove(&store, &ids[..60]);
    assert_eq!(store.compact(by_half).unwrap().rewritten, 0, "less than half of it is dead");
    remove(&store, &ids[60..190]);
    let before = store.info().log_bytes;
    let done = store.compact(by_half).unwrap();
    assert_eq!((done.rewritten, done.frames), (1, 190));
    assert!(store.info().log_bytes < before / 4, "{before}: {:?}", store.info());
    assert_eq!(store.compact(by_half).unwrap().rewritten, 0, "there is nothing left to do");
    let seen = |store: &Store| store.read(&ReadOptions::default()).unwrap().count();
    assert_eq!(seen(&store), 10);
    drop(store);
    assert_eq!(seen(&open(dir.path(), SyncPolicy::None)), 10);
}
