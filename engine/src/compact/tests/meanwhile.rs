//! Changes to segments while they are being rewritten.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::compact::thread::round;
use crate::compact::{pace::Pace, survey, switch, write};
use crate::media::Disk;
use crate::media::faulty::FaultyFiles;
use crate::options::GcOptions;
use crate::recovery::open_with;

/// Rewrites the oldest segment as the survey finds it, running `meanwhile` after its tombstones
/// were read.
fn rewrite_first(store: &Store, meanwhile: impl FnOnce()) -> Stopped<CompactReport> {
    store.inner.secure_log(Roll::IfNeeded).unwrap();
    rewrite_oldest(store, meanwhile, || ())
}

/// Rewrites the oldest segment without sealing the log first, running `meanwhile` after its
/// tombstones were read and `before` just before the switch.
fn rewrite_oldest(
    store: &Store,
    meanwhile: impl FnOnce(),
    before: impl FnOnce(),
) -> Stopped<CompactReport> {
    let inner = &store.inner;
    let _one = inner.compaction.running.lock();
    let mut inputs = inner.index.candidates(inner.env.clock.now_ms(), true);
    inputs.truncate(1);
    let offsets = inputs[0].segment.base()..inputs[0].segment.end();
    let seq = inner.writer.lock().appender().next_seq();
    let marks = inner.index.marks(offsets);
    meanwhile();
    let mut pace = Pace::new(inner, None);
    let survey = survey::survey(inner, &inputs, marks, u64::MAX, &mut pace)?;
    let written = write::write(inner, &survey, &mut pace)?;
    before();
    switch::switch(inner, &survey, written, seq)
}

/// Writing the files of a segment may fail at first and succeed long after it was sealed.
#[test]
fn a_segment_that_is_gone_when_its_files_are_written_stays_gone() {
    let (dir, faults) = (fast_dir(), Faults::none());
    let files = FaultyFiles::new(Disk::new(MediaChoice::Auto, dir.path()), &faults);
    // Without the thread that would write them in between.
    let inner = open_with(dir.path(), options(SyncPolicy::None), Arc::new(files)).unwrap();
    let store = Arc::new(Store { inner: Arc::new(inner) });
    let ids: Vec<_> = (0..400).map(|n| append(&store, heavy("a", n))).collect();
    ids[..100].iter().step_by(2).for_each(|&id| _ = store.remove(id).unwrap());
    let left = offsets(&store);
    let inner = &store.inner;
    inner.sealing.seal_now(inner).unwrap();
    let first = inner.log.view().segments[0].clone();
    faults.set(1, u64::MAX, Errno::NOSPC);
    assert!(inner.index.seal(&first).is_err());
    faults.clear();
    let (compacting, once) = (Arc::clone(&store), AtomicBool::new(false));
    faults.watch_opens(move |path| {
        let is_written = path.extension().is_some_and(|kind| kind == "top");
        if is_written && !once.swap(true, Ordering::Relaxed) {
            let report = rewrite_oldest(&compacting, || (), || ()).unwrap();
            assert!(report.frames > 10, "{report:?}");
        }
    });
    inner.index.seal(&first).unwrap();
    faults.watch_opens(|_| ());
    assert_eq!(offsets(&store), left);
    store.compact(ALL).unwrap();
    assert_eq!(offsets(&store), left);
}

/// No descriptor is available when the table of topics is split: it is retried later, and the
/// contents of the segments stay known.
#[test]
fn files_that_cannot_be_opened_for_now_are_not_taken_for_damaged() {
    let (dir, faults) = (fast_dir(), Faults::none());
    let store = open_faulty(dir.path(), options(SyncPolicy::None), &faults).unwrap();
    let junk: Vec<_> = (0..100).map(|n| append(&store, heavy("junk", n))).collect();
    for n in 0..1500 {
        append(&store, heavy(&format!("fill.{}", n % 7), n));
    }
    junk.iter().for_each(|&id| _ = store.remove(id).unwrap());
    store.inner.secure_log(Roll::IfNeeded).unwrap();
    store.inner.index.merge(&AtomicBool::new(false)).unwrap();
    let left = offsets(&store);
    store.close().unwrap();
    drop(store);
    // No file is open before a read.
    let store = open_faulty(dir.path(), options(SyncPolicy::None), &faults).unwrap();
    let done = rewrite_oldest(&store, || (), || faults.no_descriptors());
    faults.clear();
    assert!(matches!(done, Err(Stop::Failed(WriteError::Full(_)))), "{done:?}");
    assert!(!store.inner.index.is_partial());
    assert_eq!(offsets(&store), left);
    assert!(rewrite_oldest(&store, || (), || ()).unwrap().frames >= 100);
    assert_eq!(offsets(&store), left);
}

#[test]
fn a_frame_that_is_removed_and_superseded_meanwhile_leaves_no_mark() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let removed = append(&store, heavy("status", 0));
    for n in 0..200 {
        append(&store, heavy("fill", n));
    }
    let mut by = None;
    let done = rewrite_first(&store, || {
        assert_eq!(store.remove(removed).unwrap(), Removal::Removed);
        by = Some(append(&store, last(1, heavy("status", 1))));
    });
    assert!(matches!(done, Err(Stop::Overtaken)), "{done:?}");
    store.remove_now(&[removed]).unwrap();
    assert!(store.inner.stored_at(0).unwrap().is_none());
    // No record remains of the removal of everything before the newest frame.
    store.remove_now(&[by.unwrap()]).unwrap();
    append(&store, heavy("status", 2));
    let image = crash(dir.path());
    let left = offsets(&store);
    assert_eq!(store.inner.index.marks(0..u64::MAX / 2).iter(0..u64::MAX / 2).count(), 0);
    store.close().unwrap();
    drop(store);
    for dir in [dir.path(), image.path()] {
        assert_eq!(offsets(&open(dir, SyncPolicy::None)), left);
    }
}

#[test]
fn appends_go_on_while_the_table_of_topics_is_taken_apart() {
    let dir = fast_dir();
    let faults = Faults::none();
    let store = open_faulty(dir.path(), options(SyncPolicy::None), &faults).unwrap();
    let junk: Vec<_> = (0..100).map(|n| append(&store, heavy("junk", n))).collect();
    for n in 0..1500 {
        append(&store, heavy(&format!("fill.{}", n % 7), n));
    }
    junk.iter().for_each(|&id| _ = store.remove(id).unwrap());
    store.inner.secure_log(Roll::IfNeeded).unwrap();
    store.inner.index.merge(&AtomicBool::new(false)).unwrap();
    let left = offsets(&store);
    // Whenever a dictionary is opened, another thread appends and must finish first.
    let (ask, asked) = mpsc::channel::<mpsc::Sender<()>>();
    let (opened, late) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let store = &store;
    let appends = std::thread::scope(|scope| {
        let appender = scope.spawn(move || {
            let mut appends = 0;
            for done in asked {
                append(store, heavy("beside", 0));
                appends += 1;
                // The receiver has stopped waiting if this comes too late.
                let _ = done.send(());
            }
            appends
        });
        let (opens, lates) = (opened.clone(), late.clone());
        faults.watch_opens(move |path| {
            if path.extension().is_some_and(|kind| kind == "top") {
                let (done, answer) = mpsc::channel();
                opens.fetch_add(1, Ordering::Relaxed);
                let asked = ask.send(done).is_ok();
                let in_time = answer.recv_timeout(Duration::from_secs(60)).is_ok();
                lates.fetch_add(u64::from(asked && !in_time), Ordering::Relaxed);
            }
        });
        let report = store.compact(CompactOptions { dead_percent: 50, ..ALL }).unwrap();
        assert!(report.rewritten > 0 && report.frames >= 100, "{report:?}");
        faults.watch_opens(|_| ());
        appender.join().unwrap()
    });
    let (opened, late) = (opened.load(Ordering::Relaxed), late.load(Ordering::Relaxed));
    assert!(opened > 8 && late == 0, "{opened} opened, {late} while appends waited");
    assert_eq!(offsets(store).len(), left.len() + appends);
}

#[test]
fn a_compaction_before_the_files_are_rewritten_keeps_no_body() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let body = |n: u64| crate::testing::noise(n, 900);
    let ids: Vec<_> = (0..100)
        .map(|n| append(&store, NewFrame { body: Body::Inline(body(n)), ..frame("a", n) }))
        .collect();
    let batch = |ids: &[FrameId]| Batch { removes: ids.to_vec(), ..Batch::default() };
    let (done, _) = store
        .remove_now_by(&ids[3..5], || {
            let done = store.append(batch(&ids[3..5]))?;
            // Removes the frames, and leaves the bodies to gc.
            let _one = store.inner.compaction.running.lock();
            store.inner.rewrite_without(vec![(3, None), (4, None)]).unwrap();
            Ok(done)
        })
        .unwrap();
    assert_eq!(done.removed, [Removal::Removed; 2]);
    // With a frame in the same batch, as a client sends it.
    let with = Batch { frames: vec![frame("b", 1)], ..batch(&ids[7..8]) };
    let (done, report) = store.append_removing_now(with).unwrap();
    assert_eq!((done.frames.len(), &done.removed[..]), (1, &[Removal::Removed][..]));
    assert!(report.rewritten > 0 && done.durable);
    for n in 0..100 {
        let gone = [3, 4, 7].contains(&n);
        assert_eq!(store.has_blob(&BlobHash::of(&body(n))).unwrap(), !gone, "{n}");
        assert_eq!(holds(dir.path(), &body(n)[..40]), !gone, "{n}");
    }
}

/// Runs a closure that must not block for long.
pub(super) fn in_time<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, answer) = mpsc::channel();
    std::thread::spawn(move || done.send(what()));
    answer.recv_timeout(Duration::from_secs(60)).expect("it waits for all of the compaction")
}

/// The compaction would pause for days, and has many segments to process.
#[test]
fn who_needs_segments_as_they_are_waits_for_the_few_at_work() {
    const SLOWLY: CompactOptions = CompactOptions { dead_percent: 50, bytes_per_second: Some(1) };
    for by_itself in [false, true] {
        let (dir, copies) = (fast_dir(), fast_dir());
        let store = Arc::new(open(dir.path(), SyncPolicy::None));
        let ids: Vec<_> = (0..6000).map(|n| append(&store, heavy("a", n))).collect();
        let goes = ids.iter().enumerate().filter(|(n, _)| n % 3 != 0);
        goes.for_each(|(_, &id)| _ = store.remove(id).unwrap());
        let count = segment_files(dir.path()).len();
        let compactor = Arc::clone(&store);
        let compacting = std::thread::spawn(move || match by_itself {
            false => compactor.compact(SLOWLY).map(drop),
            true => {
                round(&compactor.inner, SLOWLY, &mut None, true);
                Ok(())
            }
        });
        while !store.inner.compaction.running.is_locked() {
            std::thread::yield_now();
        }
        let (forked, copy) = (Arc::clone(&store), copies.path().join("copy"));
        in_time(move || forked.fork(&copy).unwrap());
        let left = |dir: &Path| {
            let is_old = |path: &PathBuf| path.to_str().unwrap().ends_with(".0.seg");
            segment_files(dir).iter().filter(|path| is_old(path)).count()
        };
        let old = left(&copies.path().join("copy"));
        assert!(count > 20 && old > count / 2, "{old} of {count} are as they were");
        if !by_itself {
            // It resumes afterwards, and is interrupted again.
            let collected = Arc::clone(&store);
            let options = GcOptions { dry_run: true, ..GcOptions::default() };
            in_time(move || collected.gc(&options).unwrap());
            let (removed, id) = (Arc::clone(&store), ids[2997]);
            assert!(in_time(move || removed.remove_now(&[id]).unwrap()).frames >= 1);
            assert!(!compacting.is_finished());
        }
        store.close().unwrap();
        let ended = compacting.join().unwrap();
        assert_eq!(ended, if by_itself { Ok(()) } else { Err(CompactError::Closed) });
    }
}

/// What a reader holds may be rewritten more than once, and removals come in between.
#[test]
fn a_reader_sees_no_removed_frames_however_often_they_are_rewritten() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let ids: Vec<_> = (0..200).map(|n| append(&store, heavy("a", n))).collect();
    let remove = |of: std::ops::Range<usize>| {
        ids[of].iter().for_each(|&id| _ = store.remove(id).unwrap());
    };
    remove(50..60);
    store.inner.secure_log(Roll::IfNeeded).unwrap();
    let reader = store.read(&ReadOptions::default()).unwrap();
    remove(60..70);
    // A removal that is applied to the file only by the next rewrite.
    assert!(rewrite_oldest(&store, || remove(70..80), || ()).unwrap().frames > 0);
    store.inner.index.forget_gone();
    remove(80..90);
    assert!(rewrite_oldest(&store, || (), || ()).unwrap().frames > 0);
    store.inner.index.forget_gone();
    let seen: Vec<_> = reader.map(|frame| frame.unwrap().id()).collect();
    assert!(!ids[50..60].iter().any(|id| seen.contains(id)), "they were removed before it began");
    // Removed while it read: seen or not, and only once.
    assert!(seen.is_sorted() && seen.len() >= 160 && seen.len() <= 190, "{}", seen.len());
    while store.inner.index.forget_gone() {}
    assert_eq!(store.inner.index.marks(0..u64::MAX / 2).iter(0..u64::MAX / 2).count(), 0);
}
