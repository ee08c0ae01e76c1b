//! Collections concurrent with puts, appends and reads.

use std::io::Read as _;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

use super::*;
use crate::maintain::{CopyOptions, Progress};
use crate::options::CompressOptions;

/// Appends that name blobs by hash, puts of blobs that are about to be swept, and bodies that packs
/// already have, all concurrent with collections that sweep whatever they can: no frame loses its
/// body.
#[test]
fn no_frame_loses_its_body() {
    let dir = fast_dir();
    let store = Arc::new(open(dir.path(), SyncPolicy::None));
    let stop = AtomicBool::new(false);
    let refused = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..2u64 {
            let (store, refused) = (&store, &refused);
            scope.spawn(move || {
                for n in 0..600u64 {
                    // Bodies repeat, so that most of them already exist, named or not.
                    let seed = 1000 * (n % 4) + n / 16 + thread;
                    let len = if n % 50 == 7 { 70_000 } else { 400 };
                    let bytes = noise(seed, len);
                    let hash = store.blob_put(&bytes).unwrap();
                    match n % 4 {
                        0 => append(store, n, bytes),
                        1 => {
                            let body = Body::Stored(hash);
                            let frame = NewFrame { body, ..frame("a", n) };
                            match store.append(frame.into()) {
                                Ok(_) => {}
                                Err(crate::AppendError::UnknownBlob(_)) => {
                                    refused.fetch_add(1, Ordering::Relaxed);
                                }
                                Err(error) => panic!("{error}"),
                            }
                        }
                        2 => {
                            let handle = store.submit(
                                NewFrame { body: Body::Inline(bytes), ..frame("a", n) }.into(),
                            );
                            std::thread::yield_now();
                            handle.wait().unwrap();
                        }
                        _ => {}
                    }
                }
            });
        }
        let (store, stop) = (&store, &stop);
        let collector = scope.spawn(move || {
            let mut swept = 0;
            while !stop.load(Ordering::Relaxed) {
                swept += store.gc(&GcOptions::everything()).unwrap().swept;
            }
            swept
        });
        // The other threads end on their own.
        scope.spawn(move || {
            while store.info().log_bytes == 0 || store.inner.log.head() < 850 {
                std::thread::yield_now();
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(collector.join().unwrap() > 0);
    });
    let named = |store: &Store| {
        let frames = store.read(&crate::ReadOptions::default()).unwrap();
        let mut count = 0;
        for frame in frames {
            let hash = frame.unwrap().hash().unwrap();
            let blob = store.blob(&hash).unwrap().expect("a body that was acknowledged");
            assert_eq!(BlobHash::of(&blob.bytes(1 << 20).unwrap()), hash);
            count += 1;
        }
        count
    };
    let count = named(&store);
    assert!(count >= 850, "{count}");
    store.close().unwrap();
    drop(store);
    assert_eq!(named(&open(dir.path(), SyncPolicy::None)), count);
}

#[test]
fn a_blob_that_is_named_while_its_pack_is_swept_stays() {
    let dir = fast_dir();
    let (store, _) = third_named(dir.path(), 60);
    let sweep = store.inner.blobs.sweep(None);
    sweep.seal_all().unwrap();
    let condemned = Condemned::Unnamed { grace_ms: 0, dead_percent: 0 };
    let mut collection = Collection::begin(&store.inner, sweep, condemned, false).unwrap();
    collection.read_names(false).unwrap();
    let (mut report, groups) = collection.plan().unwrap();
    assert!(report.swept == 40 && !groups.is_empty(), "{report:?}");
    let late = NewFrame { body: Body::Stored(BlobHash::of(&body(1))), ..frame("late", 1) };
    store.append(late.into()).unwrap();
    collection.sweep_groups(groups, &mut report).unwrap();
    collection.sweep.tidy(false).unwrap();
    drop(collection);
    assert!(report.left > 0, "{report:?}");
    assert_eq!(read(&store, &body(1)), Some(body(1)));
    assert_eq!(store.gc(&GcOptions::everything()).unwrap().swept, 39);
    assert_eq!(read(&store, &body(1)), Some(body(1)));
}

#[test]
fn who_reads_an_old_generation_reads_on() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let long = noise(1, 300_000);
    let hash = store.blob_put(&long).unwrap();
    let mut streamed = store.blob(&hash).unwrap().unwrap();
    let mut read = vec![0; 100_000];
    streamed.read_exact(&mut read).unwrap();
    assert_eq!(store.gc(&GcOptions::everything()).unwrap().packs_dropped, 1);
    assert!(store.blob(&hash).unwrap().is_none() && packs(dir.path()).is_empty());
    streamed.read_to_end(&mut read).unwrap();
    assert_eq!(read, long);
}

#[test]
fn closing_ends_a_collection_that_holds_back() {
    let dir = fast_dir();
    let (store, _) = third_named(dir.path(), 600);
    let slow = GcOptions { bytes_per_second: Some(1), ..GcOptions::everything() };
    let began = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let collector = scope.spawn(|| {
            began.store(true, Ordering::Release);
            store.gc(&slow)
        });
        while !began.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        store.close().unwrap();
        assert_eq!(collector.join().unwrap(), Err(GcError::Closed));
    });
    drop(store);
    check(&open(dir.path(), SyncPolicy::None), 600, true);
}

#[test]
fn closing_ends_a_collection_that_reads_the_log() {
    let (dir, faults) = (fast_dir(), Faults::none());
    let frames = open(dir.path(), SyncPolicy::None);
    (0..2000).for_each(|n| drop(frames.append(frame("a", n).into()).unwrap()));
    frames.close().unwrap();
    drop(frames);
    let segments = files_in(&dir.path().join("log"), "seg").len();
    let store = open_faulty(dir.path(), options(SyncPolicy::None), &faults).unwrap();
    let store = Arc::new(store);
    let opened = Arc::new(AtomicUsize::new(0));
    let (seen, weak) = (Arc::clone(&opened), Arc::downgrade(&store));
    faults.watch_opens(move |path| {
        if path.extension().is_some_and(|kind| kind == "seg") {
            seen.fetch_add(1, Ordering::Relaxed);
            // As closing the store does.
            weak.upgrade().inspect(|store| store.inner.blobs.stop_sweeps());
        }
    });
    let ended = store.gc(&GcOptions { dry_run: true, ..GcOptions::default() });
    assert_eq!(ended, Err(GcError::Closed));
    let opened = opened.load(Ordering::Relaxed);
    assert!(opened == 1 && segments > 3, "{opened} of {segments}");
}

/// Packs that were sealed uncompressed are compressed while a backup copies them.
#[test]
fn a_backup_copies_packs_that_are_pressed_meanwhile() {
    let (dir, dest) = (fast_dir(), fast_dir());
    let compress = CompressOptions { busy_bytes_per_second: 0, ..CompressOptions::default() };
    let store = StoreOptions { compress, ..options(SyncPolicy::None) };
    let store = Store::open(dir.path(), store).unwrap();
    (0..200).for_each(|n| append(&store, n, noise(n, 1000)));
    store.inner.blobs.seal_all();
    let mut before = packs(dir.path());
    before.retain(|path| path.with_extension("pidx").exists());
    assert!(before.len() > 2);
    let (mut visited, mut last, mut pressed) = (Vec::new(), PathBuf::new(), false);
    let watch = &mut |progress: &Progress<'_>| {
        if !std::mem::replace(&mut pressed, true) {
            store.inner.blobs.press_all().unwrap();
            assert!(before.iter().all(|path| path.exists()), "a backup is about to copy them");
        }
        if progress.path != last {
            last = progress.path.to_owned();
            visited.push(last.clone());
        }
        ControlFlow::Continue(())
    };
    store.backup(dest.path(), CopyOptions::copies(), watch).unwrap();
    let count = visited.len();
    visited.sort();
    visited.dedup();
    assert_eq!(visited.len(), count, "a file was copied twice");
    let left = packs(dir.path());
    assert!(before.iter().all(|path| !left.contains(path)), "{left:?}");
    let copy = fast_dir();
    crate::maintain::restore(dest.path(), copy.path(), CopyOptions::copies(), &mut |_| {
        ControlFlow::Continue(())
    })
    .unwrap();
    let copy = open(copy.path(), SyncPolicy::None);
    for n in 0..200 {
        assert!(read(&store, &noise(n, 1000)).is_some() && read(&copy, &noise(n, 1000)).is_some());
    }
}
