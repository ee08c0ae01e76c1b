mod threads;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use rustix::io::Errno;

use super::*;
use crate::error::Shortage;
use crate::format::super_file::FileKind;
use crate::media::faulty::Faults;
use crate::options::MediaChoice;
use crate::testing::{
    StillClock, batches, crash_now, fast_dir, frame, numbers, open, open_faulty, options,
    segment_files,
};
use crate::value::{
    Body, Condition, CursorChange, CursorValue, ExpectRevision, Frame, FrameId, Meta, NewFrame,
    ReadOptions, Topic, Ttl, Unmet,
};

fn range(upto: u64) -> Vec<u64> {
    (0..upto).collect()
}

fn set(name: &str, expect: ExpectRevision, offset: u64, state: &[u8]) -> CursorChange {
    let name = CursorName::parse(name).unwrap();
    CursorChange {
        name,
        expect,
        set: Some(CursorValue { offset, state: Bytes::copy_from_slice(state) }),
    }
}

#[test]
fn what_is_appended_is_read_and_is_there_after_reopening() {
    for media in [MediaChoice::Mapped, MediaChoice::Positioned] {
        for sync in [SyncPolicy::Sync, SyncPolicy::None] {
            let dir = fast_dir();
            let options = StoreOptions { media, ..options(sync) };
            for epoch in 1..=3 {
                let store = Store::open(dir.path(), options.clone()).unwrap();
                assert_eq!((store.info().epoch, store.info().health), (epoch, Health::Writable));
                let start = (epoch - 1) * 50;
                assert_eq!(numbers(&store), range(start));
                for n in start..start + 50 {
                    let appended = store.append(frame("a", n).into()).unwrap();
                    assert_eq!(appended.frames[0].offset, Some(n));
                    assert_eq!(appended.durable, sync == SyncPolicy::Sync);
                    assert_eq!(appended.head, n + 1);
                }
                assert_eq!(numbers(&store), range(start + 50));
                store.close().unwrap();
                assert_eq!(store.append(frame("a", 0).into()), Err(AppendError::Closed));
            }
        }
    }
}

#[test]
fn an_opening_that_writes_nothing_leaves_the_files_alone() {
    let dir = fast_dir();
    open(dir.path(), SyncPolicy::None).append(frame("a", 0).into()).unwrap();
    let bytes = |name| std::fs::read(dir.path().join(name)).unwrap();
    let before = (bytes("super.a"), bytes("super.b"));
    let store = open(dir.path(), SyncPolicy::None);
    assert_eq!((store.info().epoch, numbers(&store)), (2, range(1)));
    store.close().unwrap();
    assert_eq!((bytes("super.a"), bytes("super.b")), before);
}

#[test]
fn segments_follow_one_another_and_are_sealed() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    for n in 0..5000 {
        let body =
            if n % 100 == 0 { Body::Inline(Bytes::from_static(b"hello")) } else { Body::None };
        store.append(NewFrame { body, ..frame("a", n) }.into()).unwrap();
    }
    let count = store.info().segments;
    assert!(count > 5 && numbers(&store) == range(5000));
    store.close().unwrap();
    let manifest = store.inner.env.manifest.state();
    let segments = manifest.files.iter().filter(|file| file.kind == FileKind::Segment);
    let sealed = segments.filter(|file| file.state == FileState::Sealed);
    for file in sealed.clone() {
        let bytes =
            std::fs::read(store.inner.env.log_path(file.base, file.generation, "seg")).unwrap();
        assert_eq!((bytes.len() as u64, crc32fast::hash(&bytes)), (file.length, file.crc));
    }
    assert_eq!(sealed.count() + 1, segment_files(dir.path()).len());
    drop(store);
    let store = open(dir.path(), SyncPolicy::None);
    assert!(store.info().recovery.clean && numbers(&store) == range(5000));
    assert_eq!(store.append(frame("a", 5000).into()).unwrap().frames[0].offset, Some(5000));
}

#[test]
fn many_threads_share_groups() {
    let dir = fast_dir();
    let store = Arc::new(open(dir.path(), SyncPolicy::Sync));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope
                .spawn(|| (0..200).for_each(|n| drop(store.append(frame("a", n).into()).unwrap())));
        }
        for _ in 0..2 {
            scope.spawn(|| {
                let (send, receive) = std::sync::mpsc::channel();
                for n in 0..200 {
                    let send = send.clone();
                    store.submit_with(frame("a", n).into(), move |answer| {
                        send.send(answer).unwrap()
                    });
                    store.lead();
                }
                assert!((0..200).all(|_| receive.recv().unwrap().is_ok()));
            });
        }
    });
    assert_eq!(numbers(&store).len(), 2000);
    let handles: Vec<_> = (0..10).map(|n| store.submit(frame("b", n).into())).collect();
    let offsets = handles.into_iter().map(|handle| handle.wait().unwrap().frames[0].offset);
    assert!(offsets.eq((2000..2010).map(Some)));
    assert!(!store.lead());
}

#[test]
fn ids_increase_across_restarts_whatever_the_clock_does() {
    let dir = fast_dir();
    let mut last = crate::FrameId::ZERO;
    for now in [5_000_000, 4_000_000, 0, 9_000_000, 8_999_999] {
        let clock = StillClock::at(now);
        let with_clock = || StoreOptions { clock: clock.clone(), ..options(SyncPolicy::None) };
        let store = Store::open(dir.path(), with_clock()).unwrap();
        for n in 0..900 {
            if n == 450 {
                clock.0.store(now.saturating_sub(1000), Ordering::Relaxed);
            }
            let ephemeral = NewFrame { ttl: Ttl::Ephemeral, ..frame("a", n) };
            let frames = vec![frame("a", n), ephemeral, frame("a", n)];
            let appended = store.append(Batch { frames, ..Batch::default() }).unwrap();
            for stamp in appended.frames {
                assert!(stamp.id > last);
                last = stamp.id;
            }
        }
    }
}

#[test]
fn cursors_move_with_their_batch_or_not_at_all() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let name = CursorName::parse("c").unwrap();
    let batch = |n, change| Batch {
        frames: vec![frame("a", n)],
        cursors: vec![change],
        ..Batch::default()
    };
    let first = store.append(batch(0, set("c", ExpectRevision::Is(0), 7, b"one"))).unwrap();
    assert_eq!(first.cursors, [1]);
    let conflict = store.append(batch(1, set("c", ExpectRevision::Is(0), 8, b"two")));
    let expected = AppendError::CursorConflict { name: name.clone(), expected: 0, actual: 1 };
    assert_eq!(conflict, Err(expected));
    assert_eq!(numbers(&store), [0]);
    let twice = vec![set("c", ExpectRevision::Any, 1, b""), set("c", ExpectRevision::Any, 2, b"")];
    let refused = store.append(Batch { cursors: twice, ..Batch::default() });
    assert_eq!(refused, Err(AppendError::CursorTwice(name.clone())));
    let long = vec![7; 100_000];
    let second = store.append(batch(1, set("c", ExpectRevision::Is(1), 9, &long))).unwrap();
    assert_eq!(second.cursors, [2]);
    let cursor = store.cursor(&name).unwrap().unwrap();
    assert_eq!((cursor.revision, cursor.offset, cursor.epoch), (2, 9, 1));
    assert_eq!(cursor.state, long);
    store.append(batch(2, set("gone", ExpectRevision::Any, 1, b""))).unwrap();
    let gone = CursorName::parse("gone").unwrap();
    let remove = CursorChange { name: gone.clone(), expect: ExpectRevision::Any, set: None };
    assert_eq!(store.append(batch(3, remove)).unwrap().cursors, [0]);
    drop(store);
    let store = open(dir.path(), SyncPolicy::None);
    assert_eq!(store.cursor(&name).unwrap().unwrap(), cursor);
    assert_eq!((store.cursor(&gone).unwrap(), store.cursors().len()), (None, 1));
}

#[test]
fn cursors_are_restated_and_segments_without_frames_go() {
    let dir = fast_dir();
    let faults = Faults::none();
    let store = open_faulty(dir.path(), options(SyncPolicy::None), &faults).unwrap();
    store.append(frame("a", 0).into()).unwrap();
    for n in 0..4000 {
        let change = set(&format!("cursor {}", n % 40), ExpectRevision::Any, n, &[n as u8; 50]);
        store.append(Batch { cursors: vec![change], ..Batch::default() }).unwrap();
    }
    store.append(frame("a", 1).into()).unwrap();
    let image = crash_now(dir.path(), &faults);
    store.close().unwrap();
    assert!(segment_files(dir.path()).len() <= 3, "{:?}", segment_files(dir.path()));
    let expected = store.cursors();
    assert_eq!(expected.len(), 40);
    for dir in [dir.path(), image.path()] {
        drop(store.inner.lock.lock().take());
        let store = open(dir, SyncPolicy::None);
        assert_eq!((store.cursors(), numbers(&store)), (expected.clone(), range(2)));
    }
}

#[test]
fn a_head_that_was_asked_for_is_the_offset_of_the_first_frame() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let many =
        |count| Batch { frames: (0..count).map(|n| frame("a", n)).collect(), ..Batch::default() };
    let head_is = |head| Batch { conditions: vec![Condition::HeadIs(head)], ..many(300) };
    let ids: Vec<_> = (0..4)
        .flat_map(|_| store.append(many(300)).unwrap().frames)
        .map(|stamp| stamp.id)
        .collect();
    assert!(store.inner.writer.lock().secure(&store.inner, crate::commit::Roll::ToNew).unwrap());
    // The segment contains tombstones and no frame; rolling from it skips an offset.
    let mut removed = 0;
    while store.inner.writer.lock().appender().fill_percent() < 85 {
        store.remove(ids[removed]).unwrap();
        removed += 1;
    }
    assert_eq!(store.info().head, 1200);
    let refused = store.append(head_is(1200));
    let unmet = Unmet { index: 0, condition: Condition::HeadIs(1200), found: 1201 };
    assert_eq!(refused, Err(AppendError::ConditionNotMet(unmet)));
    assert_eq!(store.info().head, 1201);
    let done = store.append(head_is(1201)).unwrap();
    assert_eq!(done.frames[0].offset, Some(1201));
}

#[test]
fn there_is_room_for_so_many_cursors_only() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let mut refused = 0;
    for n in 0..1000 {
        let change = set(&format!("cursor {n}"), ExpectRevision::Any, n, b"state");
        match store.append(Batch { cursors: vec![change], ..Batch::default() }) {
            Ok(_) => assert_eq!(refused, 0),
            Err(AppendError::TooManyCursors) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(refused > 0);
    let moved = set("cursor 0", ExpectRevision::Is(1), 9, b"other");
    store.append(Batch { cursors: vec![moved], ..Batch::default() }).unwrap();
}

#[test]
fn a_failed_write_or_sync_poisons_the_store() {
    let dir = fast_dir();
    let faults = Faults::none();
    let store = open_faulty(dir.path(), options(SyncPolicy::Sync), &faults).unwrap();
    store.append(frame("a", 0).into()).unwrap();
    // The write succeeds, its sync fails.
    faults.set(2, 2, Errno::IO);
    let Err(AppendError::Indeterminate(why)) = store.append(frame("a", 1).into()) else {
        panic!("it was written")
    };
    assert_eq!(why.raw_os_error(), Some(Errno::IO.raw_os_error()));
    // The error is gone, but what the disk holds is not known: no retry.
    let poisoned = AppendError::Poisoned(why.clone());
    assert_eq!(store.append(frame("a", 2).into()), Err(poisoned));
    assert_eq!(store.info().health, Health::Poisoned(why.clone()));
    assert_eq!(numbers(&store), [0]);
    assert_eq!(store.close(), Err(CloseError::Poisoned(why)));
    drop(store);
    let store = open(dir.path(), SyncPolicy::Sync);
    assert!(!store.info().recovery.clean);
    assert!([1, 2].contains(&numbers(&store).len()));
}

#[test]
fn what_a_failed_group_laid_out_is_never_durable() {
    let with_body = |n| {
        let body = Body::Inline(Bytes::from(vec![n as u8; 900]));
        NewFrame { body, ..frame("a", n) }
    };
    let dir = fast_dir();
    let faults = Faults::none();
    let store = open_faulty(dir.path(), options(SyncPolicy::None), &faults).unwrap();
    store.append(with_body(0).into()).unwrap();
    // The bodies of the group cannot be written, so the records that name them are not.
    faults.set(1, 1, Errno::IO);
    let handles = [1, 2].map(|n| store.submit(with_body(n).into()));
    for handle in handles {
        assert!(matches!(handle.wait(), Err(AppendError::Indeterminate(_))));
    }
    faults.clear();
    let inner = &store.inner;
    let state = || (inner.log.head(), inner.durable_upto.load(Ordering::Acquire));
    let before = (state(), std::fs::read(&segment_files(dir.path())[0]).unwrap());
    assert!(crate::upkeep::sync_log(inner).is_err());
    let mut writer = inner.writer.lock();
    assert!(writer.mark(inner, crate::format::control::Mark::Sync).is_err());
    assert!(writer.secure(inner, crate::commit::Roll::IfNeeded).is_err());
    drop(writer);
    assert_eq!((state(), std::fs::read(&segment_files(dir.path())[0]).unwrap()), before);
    drop(store);
    let store = open(dir.path(), SyncPolicy::None);
    assert_eq!((numbers(&store), store.info().health), (vec![0], Health::Writable));
}

#[test]
fn a_blob_put_alone_is_synced_in_its_time() {
    let dir = fast_dir();
    let sync = SyncPolicy::Interval { ms: 1, bytes: u64::MAX };
    let store = open(dir.path(), sync);
    for n in 0..3 {
        store.blob_put(&[n; 900]).unwrap();
        let begun = std::time::Instant::now();
        while store.inner.blobs.needs_sync() {
            assert!(begun.elapsed() < std::time::Duration::from_secs(120), "it is never synced");
            std::thread::yield_now();
        }
    }
}

#[test]
fn bodies_count_towards_the_bytes_that_are_synced_at_once() {
    let dir = fast_dir();
    let sync = SyncPolicy::Interval { ms: crate::limits::SYNC_INTERVAL_MS_MAX, bytes: 20_000 };
    let store = open(dir.path(), sync);
    let append = |n| {
        let body = Body::Inline(Bytes::from(vec![n; 900]));
        store.append(NewFrame { body, ..frame("a", n.into()) }.into()).unwrap();
    };
    let synced = |seq| {
        let begun = std::time::Instant::now();
        while store.inner.durable_upto.load(Ordering::Acquire) < seq {
            assert!(begun.elapsed() < std::time::Duration::from_secs(120), "{seq} is not synced");
            std::thread::yield_now();
        }
    };
    // The first append is synced at once, the next only after enough bytes.
    append(0);
    synced(1);
    (1..40).for_each(append);
    synced(20);
}

#[test]
fn a_full_disk_keeps_nothing_from_being_synced() {
    let dir = fast_dir();
    let faults = Faults::none();
    let sync = SyncPolicy::Interval { ms: 1, bytes: u64::MAX };
    let store = open_faulty(dir.path(), options(sync), &faults).unwrap();
    store.append(frame("a", 0).into()).unwrap();
    // The next segment cannot be prepared.
    faults.set(1, u64::MAX, Errno::NOSPC);
    faults.only_space();
    let mut count = 1;
    while store.inner.writer.lock().appender().fill_percent() < 80 {
        store.append(frame("a", count).into()).unwrap();
        count += 1;
    }
    for _ in 0..3 {
        store.append(frame("a", count).into()).unwrap();
        count += 1;
        let begun = std::time::Instant::now();
        let seq = store.inner.writer.lock().appender().next_seq();
        while store.inner.durable_upto.load(Ordering::Acquire) < seq {
            assert!(begun.elapsed() < std::time::Duration::from_secs(120), "it is never synced");
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_full_disk_refuses_and_passes() {
    let dir = fast_dir();
    let faults = Faults::none();
    let store = open_faulty(dir.path(), options(SyncPolicy::None), &faults).unwrap();
    store.append(frame("a", 0).into()).unwrap();
    faults.set(1, u64::MAX, Errno::NOSPC);
    let mut count = 1;
    // Space that was allocated before the disk was full can still be written: writes to the log
    // itself cannot fail for lack of space, and are let through here.
    faults.only_space();
    let refused = loop {
        match store.append(frame("a", count).into()) {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
        assert!(count < 10_000);
    };
    assert_eq!(
        (refused, store.info().health),
        (AppendError::StorageFull(Shortage::Space), Health::Writable)
    );
    assert_eq!(numbers(&store), range(count));
    assert_eq!(store.append(frame("a", 0).into()), Err(AppendError::StorageFull(Shortage::Space)));
    let image = crash_now(dir.path(), &faults);
    faults.clear();
    assert_eq!(store.append(frame("a", count).into()).unwrap().frames[0].offset, Some(count));
    // A store can be opened on a full disk: it can be read, and written once there is space.
    faults.set(1, u64::MAX, Errno::NOSPC);
    faults.only_space();
    let store = open_faulty(image.path(), options(SyncPolicy::None), &faults).unwrap();
    assert_eq!(numbers(&store), range(count));
    assert_eq!(store.append(frame("a", 0).into()), Err(AppendError::StorageFull(Shortage::Space)));
    faults.clear();
    for n in count..count + 1000 {
        assert_eq!(store.append(frame("a", n).into()).unwrap().frames[0].offset, Some(n));
    }
    assert_eq!(numbers(&store), range(count + 1000));
    store.close().unwrap();
    drop(store);
    let store = open(image.path(), SyncPolicy::None);
    assert!(store.info().recovery.clean);
    assert_eq!(numbers(&store), range(count + 1000));
}

/// The copies of the manifest are renamed into place in turn, and the directory is synced for each:
/// without a descriptor for that it would be unknown which copy the next open finds.
#[test]
fn no_sync_of_a_directory_needs_a_descriptor() {
    let dir = fast_dir();
    let faults = Faults::none();
    open_faulty(dir.path(), options(SyncPolicy::Sync), &faults).unwrap().close().unwrap();
    let store = open_faulty(dir.path(), options(SyncPolicy::Sync), &faults).unwrap();
    faults.no_descriptors();
    for n in 0..2000 {
        store.append(frame("a", n).into()).unwrap();
    }
    assert!(segment_files(dir.path()).len() > 2, "none was named");
    assert_eq!(store.info().health, Health::Writable);
    store.close().unwrap();
    faults.clear();
    assert_eq!(numbers(&open(dir.path(), SyncPolicy::Sync)), range(2000));
}

#[test]
fn a_batch_is_checked_before_anything_is_written() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let refused = |batch| store.append(batch).unwrap_err();
    assert!(matches!(refused(Batch::default()), AppendError::BatchCount { count: 0, .. }));
    let many = Batch { frames: vec![frame("a", 0); 4097], ..Batch::default() };
    assert!(matches!(refused(many), AppendError::BatchCount { count: 4097, .. }));
    let large = Batch { frames: vec![frame("a", 0); 1000], ..Batch::default() };
    assert!(matches!(refused(large), AppendError::BatchTooLarge { .. }));
    let hash = crate::BlobHash::of(b"nobody put this");
    let unknown = NewFrame { body: Body::Stored(hash), ..frame("a", 0) };
    assert_eq!(refused(unknown.into()), AppendError::UnknownBlob(hash));
    assert_eq!(store.info().head, 0);
    let hash = store.blob_put(b"somebody put this").unwrap();
    let known = NewFrame { body: Body::Stored(hash), ..NewFrame::new(Topic::parse("a").unwrap()) };
    store.append(known.into()).unwrap();
    let found = store.get_at(0).unwrap().unwrap();
    assert_eq!((found.hash(), found.body_len()), (Some(hash), 17));
}

#[test]
fn an_idle_log_is_marked_and_a_timed_one_synced() {
    for sync in [SyncPolicy::Sync, SyncPolicy::Interval { ms: 1, bytes: 1 << 20 }] {
        let dir = fast_dir();
        let faults = Faults::none();
        let store = open_faulty(dir.path(), options(sync), &faults).unwrap();
        for n in 0..5 {
            assert_eq!(
                store.append(frame("a", n).into()).unwrap().durable,
                sync == SyncPolicy::Sync
            );
        }
        let durable = Batch { durable: true, ..frame("a", 5).into() };
        assert!(store.append(durable).unwrap().durable);
        let seq = store.inner.writer.lock().appender().next_seq();
        // The mark is a batch of its own, and durable itself.
        let marked = || store.inner.durable_upto.load(Ordering::Acquire) > seq;
        let started = std::time::Instant::now();
        while !marked() {
            assert!(started.elapsed().as_secs() < 120);
            std::thread::yield_now();
        }
        let image = crash_now(dir.path(), &faults);
        let store = open(image.path(), sync);
        let report = store.info().recovery;
        assert_eq!((report.batches_kept, report.cut), (1, None));
        assert_eq!(numbers(&store), range(6));
    }
}

#[test]
fn a_durable_batch_that_finds_nothing_to_remove_waits_for_what_is_there() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    assert!(!store.append(frame("a", 0).into()).unwrap().durable);
    let nothing = |durable| Batch { removes: vec![FrameId::MAX], durable, ..Batch::default() };
    assert!(!store.append(nothing(false)).unwrap().durable);
    assert!(store.append(nothing(true)).unwrap().durable);
    assert!(!store.append(frame("a", 1).into()).unwrap().durable);
    let seq = store.inner.writer.lock().appender().next_seq();
    assert!(store.append(Batch { durable: true, ..Batch::default() }).unwrap().durable);
    assert!(store.inner.durable_upto.load(Ordering::Acquire) >= seq);
}

#[test]
fn a_panic_of_the_leader_poisons_the_store_and_answers_all() {
    #[derive(Debug)]
    struct BadClock(std::sync::atomic::AtomicBool);
    impl crate::Clock for BadClock {
        fn now_ms(&self) -> u64 {
            assert!(!self.0.load(Ordering::Relaxed), "the clock stopped");
            1
        }
    }
    let dir = fast_dir();
    let clock = Arc::new(BadClock(false.into()));
    let options = StoreOptions { clock: clock.clone(), ..options(SyncPolicy::None) };
    let store = Store::open(dir.path(), options).unwrap();
    store.append(frame("a", 0).into()).unwrap();
    let handles = [store.submit(frame("a", 1).into()), store.submit(frame("a", 2).into())];
    clock.0.store(true, Ordering::Relaxed);
    std::thread::scope(|scope| assert!(scope.spawn(|| store.lead()).join().is_err()));
    clock.0.store(false, Ordering::Relaxed);
    for handle in handles {
        assert!(matches!(handle.wait(), Err(AppendError::Indeterminate(_))));
    }
    let refused = store.append(frame("a", 3).into());
    assert!(matches!(refused, Err(AppendError::Poisoned(_))), "{refused:?}");
}

#[test]
fn a_close_leaves_little_for_the_next_open_to_take_up() {
    let dir = fast_dir();
    let long = || StoreOptions { segment_bytes: 16 << 20, ..options(SyncPolicy::None) };
    let store = Store::open(dir.path(), long()).unwrap();
    let meta = Meta::parse(format!("\"{}\"", "x".repeat(60_000))).unwrap();
    for n in 0..90 {
        let new = NewFrame { meta: meta.clone(), ..frame("a", n) };
        store.append(new.into()).unwrap();
    }
    let old = store.info();
    store.close().unwrap();
    drop(store);
    let kind = |path: &Path, kind: &str| path.with_extension(kind).exists();
    let segments = segment_files(dir.path());
    assert_eq!((old.segments, segments.len()), (1, 2));
    assert!(kind(&segments[0], "idx") && kind(&segments[0], "top"));
    assert!(batches(&segments[1]).last().is_some_and(|&end| end < 4096));
    for _ in 0..2 {
        let store = Store::open(dir.path(), long()).unwrap();
        assert!(store.info().recovery.clean);
        assert_eq!(store.read(&ReadOptions::default()).unwrap().flatten().count(), 90);
        assert_eq!(store.info().segments, 2);
    }
}

#[test]
fn a_close_that_failed_is_told_of_again() {
    let (dir, faults) = (fast_dir(), Faults::none());
    let store = open_faulty(dir.path(), options(SyncPolicy::None), &faults).unwrap();
    store.append(frame("a", 0).into()).unwrap();
    faults.set(0, u64::MAX, Errno::IO);
    let failed = store.close().unwrap_err();
    faults.clear();
    assert_eq!(store.close(), Err(failed));
    drop(store);
    let store = open(dir.path(), SyncPolicy::None);
    assert!(!store.info().recovery.clean);
    assert_eq!((store.close(), store.close()), (Ok(()), Ok(())));
}

#[test]
fn a_visit_meets_what_the_iterator_does() {
    let dir = fast_dir();
    let clock = StillClock::at(1_000_000);
    let options = StoreOptions { clock: clock.clone(), ..options(SyncPolicy::None) };
    let store = Store::open(dir.path(), options.clone()).unwrap();
    for n in 0..2_000 {
        let size = 1 + n % 7;
        let frames = (0..size).map(|at| {
            let ttl = if at == 3 { Ttl::TimeMs(50) } else { Ttl::Forever };
            NewFrame { ttl, ..frame(["a", "b.c", "xs.d"][(n + at) as usize % 3], n) }
        });
        store.append(Batch { frames: frames.collect(), ..Batch::default() }).unwrap();
    }
    store.close().unwrap();
    drop(store);
    clock.0.store(1_000_100, Ordering::Relaxed);
    let path = segment_files(dir.path()).remove(0);
    let damaged = [5, 40].map(|batch| batches(&path)[batch]);
    crate::testing::edit(&path, |bytes| {
        // A record and a header.
        bytes[damaged[0] + 64 + 20] ^= 1;
        bytes[damaged[1] + 8] ^= 1;
    });
    let store = Store::open(dir.path(), options).unwrap();
    let first = store.read(&ReadOptions::default()).unwrap().flatten().nth(100).unwrap();
    for topics in ["*", "*,xs.*", "b.*,a", "a"] {
        for (start, limit) in [(0, None), (17, None), (3000, Some(7)), (0, Some(1)), (0, Some(0))] {
            let start = crate::value::Start::From(crate::value::Bound::Offset(start));
            let topics = crate::value::TopicPatterns::parse(topics).unwrap();
            let read = ReadOptions { topics, start, limit, ..ReadOptions::default() };
            let met: Vec<_> = store.read(&read).unwrap().map(|met| met.ok()).collect();
            let (mut visited, mut reader) = (Vec::new(), store.read(&read).unwrap());
            loop {
                let seen = reader.visit(|frame| {
                    visited.push(Some((frame.offset(), frame.id(), frame.topic().to_owned())));
                    // Breaking now and then loses nothing.
                    if visited.len() % 100 == 0 {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                });
                match seen {
                    Ok(ControlFlow::Continue(())) => break,
                    Ok(ControlFlow::Break(())) => {}
                    Err(_) => visited.push(None),
                }
            }
            let key = |frame: Frame| (frame.offset(), frame.id(), frame.topic().to_owned());
            let met: Vec<_> = met.into_iter().map(|met| met.map(key)).collect();
            assert!(met == visited, "{read:?}: {} and {}", met.len(), visited.len());
        }
    }
    let mut seen = None;
    let after = crate::value::Start::From(crate::value::Bound::Id(first.id()));
    let read = ReadOptions { start: after, ..ReadOptions::default() };
    let flow = store.read(&read).unwrap().visit(|frame| {
        seen = Some((frame.meta().to_vec(), frame.record().to_vec(), frame.body(), frame.ttl()));
        ControlFlow::Break(())
    });
    assert!(flow.is_ok_and(|flow| flow.is_break()));
    let expected = (first.meta().to_vec(), first.record().to_vec(), None, first.ttl());
    assert!(seen.is_some_and(|seen| seen == expected));
}

#[test]
fn close_commits_what_nobody_waited_for() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    drop(store.submit(frame("a", 0).into()));
    let (send, receive) = std::sync::mpsc::channel();
    store.submit_with(frame("a", 1).into(), move |answer| send.send(answer).unwrap());
    store.close().unwrap();
    assert!(receive.try_recv().unwrap().is_ok());
    assert_eq!(store.submit(frame("a", 2).into()).wait(), Err(AppendError::Closed));
    drop(store);
    assert_eq!(numbers(&open(dir.path(), SyncPolicy::None)), range(2));
    // A store that is dropped is closed.
    drop(open(dir.path(), SyncPolicy::None).submit(frame("a", 2).into()));
    assert_eq!(numbers(&open(dir.path(), SyncPolicy::None)), range(3));
}

#[test]
fn close_waits_for_a_leader_unless_it_is_called_by_it() {
    let dir = fast_dir();
    let store = Arc::new(open(dir.path(), SyncPolicy::None));
    let (leading, led) = std::sync::mpsc::channel();
    let (go_on, gone_on) = std::sync::mpsc::channel::<()>();
    store.submit_with(frame("a", 0).into(), move |_| {
        leading.send(()).unwrap();
        gone_on.recv().unwrap();
    });
    std::thread::scope(|scope| {
        scope.spawn(|| store.lead());
        led.recv().unwrap();
        // Queued behind a leader that is still busy with the one before.
        drop(store.submit(frame("a", 1).into()));
        let closing = scope.spawn(|| store.close());
        while !store.inner.closed.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        go_on.send(()).unwrap();
        closing.join().unwrap().unwrap();
    });
    drop(store);
    let store = Arc::new(open(dir.path(), SyncPolicy::None));
    assert_eq!(numbers(&store), range(2));
    let own = Arc::clone(&store);
    store.submit_with(frame("a", 2).into(), move |_| own.close().unwrap());
    assert!(store.lead());
    drop(store);
    let store = Arc::new(open(dir.path(), SyncPolicy::None));
    assert_eq!(numbers(&store), range(3));
    // It commits, and so calls who closes it, while it closes.
    let own = Arc::clone(&store);
    store.submit_with(frame("a", 3).into(), move |_| own.close().unwrap());
    store.close().unwrap();
    drop(store);
    let store = Arc::new(open(dir.path(), SyncPolicy::None));
    assert_eq!(numbers(&store), range(4));
    // Another one waits for the leader whose callback closes too.
    let own = Arc::clone(&store);
    let (leading, led) = std::sync::mpsc::channel();
    store.submit_with(frame("a", 4).into(), move |_| {
        leading.send(()).unwrap();
        while !own.inner.closed.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        own.close().unwrap();
    });
    std::thread::scope(|scope| {
        scope.spawn(|| store.lead());
        led.recv().unwrap();
        store.close().unwrap();
    });
    drop(store);
    assert_eq!(numbers(&open(dir.path(), SyncPolicy::None)), range(5));
}

/// A spare of its size was taken for one of the present size.
#[test]
fn bodies_go_on_behind_packs_that_were_smaller() {
    let dir = fast_dir();
    let small = StoreOptions { pack_bytes: 64 * 1024, ..options(SyncPolicy::None) };
    let store = Store::open(dir.path(), small).unwrap();
    (0..40).for_each(|n| _ = store.blob_put(&crate::testing::noise(n, 5000)).unwrap());
    store.close().unwrap();
    drop(store);
    let store = open(dir.path(), SyncPolicy::None);
    let put = |n: u64| (n, store.blob_put(&crate::testing::noise(n, 120_000)).unwrap());
    let hashes: Vec<_> = (100..110).map(put).collect();
    assert_eq!(store.info().health, Health::Writable);
    store.close().unwrap();
    drop(store);
    let store = open(dir.path(), SyncPolicy::None);
    for (n, hash) in hashes {
        let mut whole = Vec::new();
        let mut blob = store.blob(&hash).unwrap().unwrap();
        std::io::Read::read_to_end(&mut blob, &mut whole).unwrap();
        assert!(whole == crate::testing::noise(n, 120_000), "{n}");
    }
    store.close().unwrap();
    drop(store);
    let go_on = &mut |_: &crate::Progress<'_>| ControlFlow::Continue(());
    let report = crate::verify(dir.path(), go_on).unwrap();
    assert_eq!(report.findings, []);
}

/// One thread serves two stores, and what one has to say closes the other.
#[test]
fn a_callback_of_another_store_closes_this_one_whole() {
    let (dir, other_dir) = (fast_dir(), fast_dir());
    let store = Arc::new(open(dir.path(), SyncPolicy::None));
    let other = open(other_dir.path(), SyncPolicy::None);
    let closed = Arc::clone(&store);
    drop(store.submit(frame("a", 0).into()));
    other.submit_with(frame("a", 0).into(), move |_| closed.close().unwrap());
    assert!(other.lead());
    drop(store);
    assert_eq!(numbers(&open(dir.path(), SyncPolicy::None)), [0]);
}
