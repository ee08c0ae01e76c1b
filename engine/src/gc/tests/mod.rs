//! Collections through the store: what is swept, what stays, and what happens concurrently.

mod beside;
mod crash;
mod unseen;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::format::super_file::{FileKind, FileState};
use crate::media::faulty::Faults;
use crate::options::{StoreOptions, SyncPolicy};
use crate::testing::{
    StillClock, crash_now, edit, fast_dir, files_in, frame, noise, open, open_faulty, options,
};
use crate::value::{Body, CursorChange, CursorName, CursorValue, ExpectRevision, NewFrame};

fn append(store: &Store, n: u64, body: Bytes) {
    let frame = NewFrame { body: Body::Inline(body), ..frame("a", n) };
    store.append(frame.into()).unwrap();
}

fn read(store: &Store, bytes: &[u8]) -> Option<Bytes> {
    let blob = store.blob(&BlobHash::of(bytes)).unwrap();
    blob.map(|blob| blob.bytes(u64::MAX).unwrap())
}

fn packs(dir: &Path) -> Vec<PathBuf> {
    files_in(&dir.join("blobs"), "pack")
}

/// Whether some bytes of a blob that does not compress are in a file of the packs.
fn lies_in_packs(dir: &Path, bytes: &[u8]) -> bool {
    let needle = &bytes[bytes.len() / 2..][..24];
    loop {
        let mut replaced = false;
        for entry in fs::read_dir(dir.join("blobs")).unwrap() {
            match fs::read(entry.unwrap().path()) {
                Ok(bytes) if bytes.windows(needle.len()).any(|window| window == needle) => {
                    return true;
                }
                Ok(_) => {}
                // The file was replaced, perhaps by one that was not listed.
                Err(_) => replaced = true,
            }
        }
        if !replaced {
            return false;
        }
    }
}

/// A store in which every third blob is named by a frame; the clock stands at 1,000,000.
fn third_named(dir: &Path, count: u64) -> (Store, Arc<StillClock>) {
    let clock = StillClock::at(1_000_000);
    let options = StoreOptions { clock: clock.clone(), ..options(SyncPolicy::None) };
    let store = Store::open(dir, options).unwrap();
    name_every_third(&store, count);
    (store, clock)
}

fn name_every_third(store: &Store, count: u64) {
    for n in 0..count {
        match n % 3 {
            0 => append(store, n, body(n)),
            _ => drop(store.blob_put(&body(n)).unwrap()),
        }
    }
}

fn body(n: u64) -> Bytes {
    noise(n, 300 + (n as usize * 37) % 900)
}

fn check(store: &Store, count: u64, all: bool) {
    for n in 0..count {
        let want = (n % 3 == 0 || all).then(|| body(n));
        assert_eq!(read(store, &body(n)), want, "blob {n}");
    }
}

#[test]
fn what_nothing_names_goes_to_the_last_byte() {
    let dir = fast_dir();
    let (store, _) = third_named(dir.path(), 600);
    for len in [70_000, 20_000, 200_000] {
        store.blob_put(&noise(len, len as usize)).unwrap();
        append(&store, len, noise(len + 1, len as usize));
    }
    assert!(lies_in_packs(dir.path(), &body(1)) && lies_in_packs(dir.path(), &body(599)));
    let told = store.gc(&GcOptions { dry_run: true, ..GcOptions::everything() }).unwrap();
    check(&store, 600, true);
    let done = store.gc(&GcOptions::everything()).unwrap();
    assert_eq!(told, done);
    assert_eq!((done.blobs, done.dead, done.swept, done.young, done.left), (606, 403, 403, 0, 0));
    let dead = (0..600).filter(|n| n % 3 != 0).map(|n| body(n).len() as u64).sum::<u64>();
    assert_eq!((done.dead_bytes, done.swept_bytes), (dead + 290_000, dead + 290_000));
    assert!(done.packs_dropped >= 1 && done.packs_rewritten >= 1 && done.damaged.is_empty());
    check(&store, 600, false);
    for n in (0..600).filter(|n| n % 3 != 0) {
        assert!(!lies_in_packs(dir.path(), &body(n)), "bytes of {n}");
    }
    let nothing = store.gc(&GcOptions::everything()).unwrap();
    assert_eq!((nothing.dead, nothing.blobs), (0, 203));
    // Dropped packs are no longer in the manifest, and blobs written next are found.
    let state = store.inner.env.manifest.state();
    assert!(state.files.iter().all(|file| file.state != FileState::Dropped));
    append(&store, 1, body(1));
    for clean in [true, false] {
        if clean {
            store.close().unwrap();
        }
        let again = match clean {
            true => open(dir.path(), SyncPolicy::None),
            false => {
                let image = crate::testing::crash(dir.path());
                let store = open(image.path(), SyncPolicy::None);
                check(&store, 1, false);
                continue;
            }
        };
        assert_eq!(read(&again, &body(1)), Some(body(1)));
        assert_eq!(read(&again, &body(3)), Some(body(3)));
        assert_eq!(read(&again, &noise(70_001, 70_000)), Some(noise(70_001, 70_000)));
        assert_eq!(read(&again, &noise(70_000, 70_000)), None);
        let lines = again.inner.env.manifest.state();
        let named = lines.files.iter().filter(|file| file.kind == FileKind::Pack);
        assert_eq!(named.count(), packs(dir.path()).len());
        drop(again);
    }
}

#[test]
fn the_grace_counts_from_the_last_put_and_outlives_the_process() {
    const HOUR: u64 = 3_600_000;
    let dir = fast_dir();
    let (clock, faults) = (StillClock::at(1_000_000), Faults::none());
    let options = StoreOptions { clock: clock.clone(), ..options(SyncPolicy::None) };
    let store = open_faulty(dir.path(), options.clone(), &faults).unwrap();
    name_every_third(&store, 300);
    // As after a kill: unreferenced blobs.
    let image = crash_now(dir.path(), &faults);
    drop(store);
    let reopen = || Store::open(image.path(), options.clone()).unwrap();
    let gc = GcOptions { grace: Duration::from_secs(2 * 3600), ..GcOptions::everything() };
    let store = reopen();
    store.inner.blobs.sweep(None).seal_all().unwrap();
    let first = store.gc(&gc).unwrap();
    assert_eq!((first.dead, first.young), (0, 200));
    clock.0.fetch_add(HOUR, Ordering::Relaxed);
    // Found where it was, and its age starts over.
    let end = fs::metadata(&packs(image.path())[0]).unwrap().len();
    store.blob_put(&body(1)).unwrap();
    assert_eq!(fs::metadata(&packs(image.path())[0]).unwrap().len(), end);
    store.close().unwrap();
    drop(store);
    clock.0.fetch_add(HOUR + HOUR / 2, Ordering::Relaxed);
    let store = reopen();
    let second = store.gc(&gc).unwrap();
    assert!(second.young > 0 && read(&store, &body(1)).is_some(), "{second:?}");
    clock.0.fetch_add(HOUR, Ordering::Relaxed);
    let third = store.gc(&gc).unwrap();
    assert_eq!((third.young, second.dead + third.dead), (0, 200));
    assert_eq!(read(&store, &body(1)), None);
    check(&store, 300, false);
}

#[test]
fn packs_with_little_to_lose_are_left_and_small_ones_put_together() {
    let dir = fast_dir();
    let (store, _) = third_named(dir.path(), 300);
    store.gc(&GcOptions::everything()).unwrap();
    for n in 1000..1100 {
        append(&store, n, body(n));
    }
    store.blob_put(&body(5000)).unwrap();
    store.inner.blobs.sweep(None).seal_all().unwrap();
    let lazy = GcOptions { dead_percent: 50, ..GcOptions::everything() };
    let report = store.gc(&lazy).unwrap();
    assert_eq!((report.dead, report.swept, report.packs_rewritten), (1, 0, 0));
    assert!(read(&store, &body(5000)).is_some());
    assert_eq!(store.gc(&GcOptions::everything()).unwrap().swept, 1);
    for n in 0..12 {
        append(&store, n, body(7000 + n));
        store.inner.blobs.sweep(None).seal_all().unwrap();
    }
    let many = packs(dir.path()).len();
    store.gc(&lazy).unwrap();
    assert!(packs(dir.path()).len() + 10 <= many, "{} of {many}", packs(dir.path()).len());
    assert!((0..12).all(|n| read(&store, &body(7000 + n)).is_some()));
    check(&store, 300, false);
}

#[test]
fn states_of_cursors_stay_while_they_are_current() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let name = CursorName::parse("handler").unwrap();
    let set = |n: u64| {
        let state = noise(n, 20_000);
        let expect = ExpectRevision::Any;
        let cursors = vec![CursorChange {
            name: name.clone(),
            expect,
            set: Some(CursorValue { offset: n, state }),
        }];
        store.append(crate::Batch { cursors, ..Default::default() }).unwrap();
    };
    (0..40).for_each(set);
    // Those in the newest segments are let go too.
    let recent = store.gc(&GcOptions::everything()).unwrap();
    assert_eq!((recent.swept, recent.blobs), (39, 40));
    assert!(!lies_in_packs(dir.path(), &noise(38, 20_000)));
    (40..80).for_each(set);
    // Segments roll.
    let filler = "f".repeat(8000);
    let pad = |n| {
        let meta = crate::Meta::parse(format!("\"{filler}\"")).unwrap();
        store.append(NewFrame { meta, ..frame("pad", n) }.into()).unwrap();
    };
    (0..60).for_each(pad);
    assert!(store.info().segments > 5);
    let report = store.gc(&GcOptions::everything()).unwrap();
    assert_eq!((report.swept, report.blobs), (40, 41));
    assert_eq!(store.cursor(&name).unwrap().unwrap().state, noise(79, 20_000));
    assert!(!lies_in_packs(dir.path(), &noise(78, 20_000)));
}

#[test]
fn damage_keeps_what_it_may_hide() {
    let dir = fast_dir();
    let (store, _) = third_named(dir.path(), 600);
    store.inner.blobs.sweep(None).seal_all().unwrap();
    let all = packs(dir.path());
    let before = fs::read(&all[1]).unwrap();
    // In the middle of the stored bytes of an entry, and then in a header.
    for at in [before.len() / 2, 64 + 20] {
        edit(&all[1], |bytes| bytes[at] ^= 8);
        let report = store.gc(&GcOptions { dry_run: at != 84, ..GcOptions::everything() });
        let report = report.unwrap();
        if at == 84 {
            assert_eq!(report.damaged.len(), 1, "{report:?}");
            assert_eq!(report.damaged[0].path, all[1]);
            assert_eq!(fs::read(&all[1]).unwrap()[..at], before[..at]);
        }
    }
    assert!(packs(dir.path()).contains(&all[1]) && !packs(dir.path()).contains(&all[0]));
    edit(&all[1], |bytes| bytes.copy_from_slice(&before));
    drop(store);
    let store = open(dir.path(), SyncPolicy::None);
    check_named(&store, 600);
}

fn check_named(store: &Store, count: u64) {
    for n in (0..count).step_by(3) {
        assert_eq!(read(store, &body(n)), Some(body(n)), "blob {n}");
    }
}

#[test]
fn a_log_that_cannot_be_read_lets_nothing_go() {
    let dir = fast_dir();
    let (store, _) = third_named(dir.path(), 600);
    let segment = crate::testing::segment_files(dir.path()).remove(0);
    let batch = crate::testing::batches(&segment)[100];
    edit(&segment, |bytes| bytes[batch + 64 + 20] ^= 1);
    let refused = store.gc(&GcOptions::everything());
    assert!(matches!(refused, Err(GcError::Read(ReadError::Corrupt(_)))), "{refused:?}");
    check(&store, 600, true);
}

#[test]
fn blobs_are_dropped_at_once_unless_something_names_them() {
    let dir = fast_dir();
    let (store, _) = third_named(dir.path(), 400);
    let hash = |n| BlobHash::of(&body(n));
    let mut streamed = store.blob_put(&noise(9, 150_000)).map(|hash| store.blob(&hash)).unwrap();
    let wanted: BTreeSet<_> = [hash(0), hash(1), hash(200), hash(9), BlobHash::of(b"none")].into();
    let gone = wanted.union(&[BlobHash::of(&noise(9, 150_000))].into()).copied().collect();
    assert_eq!(store.inner.drop_blobs(gone, &[]).unwrap(), [hash(0), hash(9)].into());
    for n in 0..400 {
        let there = n != 1 && n != 200;
        assert_eq!(read(&store, &body(n)).is_some(), there, "{n}");
        assert_eq!(lies_in_packs(dir.path(), &body(n)), there, "{n}");
    }
    assert!(!lies_in_packs(dir.path(), &noise(9, 150_000)));
    let streamed = streamed.as_mut().unwrap().take().unwrap();
    assert_eq!(streamed.bytes(1 << 20).unwrap(), noise(9, 150_000));
    store.close().unwrap();
    assert_eq!(store.inner.drop_blobs([hash(2)].into(), &[]), Err(GcError::Closed));
    assert_eq!(store.gc(&GcOptions::everything()), Err(GcError::Closed));
}

#[test]
fn a_million_blobs_take_a_few_megabytes() {
    const COUNT: usize = 1_000_000;
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let sweep = store.inner.blobs.sweep(None);
    let (mut marker, _) = sweep.examine(false, false).unwrap();
    let mut contents = crate::format::pack_index::Contents::default();
    contents.push(8, (0..COUNT as u64).map(|n| BlobHash::of(&n.to_le_bytes()).prefix()));
    sweep.pretend_pack(&mut marker, &contents);
    for n in (0..COUNT as u64).step_by(2) {
        sweep.name(&mut marker, &BlobHash::of(&n.to_le_bytes())).unwrap();
    }
    sweep.take_names(&mut marker).unwrap();
    // One bit for each blob, and 8 bytes for each name, given how vectors grow.
    assert!(marker.bytes() <= COUNT / 8 + 64 + (COUNT / 2).next_power_of_two() * 8);
    assert_eq!(sweep.dead(&marker), COUNT / 2);
}
