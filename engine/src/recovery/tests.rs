mod again;
mod strays;

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use bytes::Bytes;
use rustix::io::Errno;

use crate::error::{AppendError, OpenError, ReadOnlyReason};
use crate::media::faulty::Faults;
use crate::options::SyncPolicy;
use crate::store::{Health, Store};
use crate::testing::{
    batches, crash, crash_now, edit, fast_dir, frame, numbers, open, open_faulty, options,
    segment_files,
};
use crate::value::{BlobHash, Body, NewFrame};
use crate::{Problem, Severity};

/// The crash image of a store with the sync policy `sync`, taken after `count` appends.
fn image(sync: SyncPolicy, count: u64) -> tempfile::TempDir {
    let dir = fast_dir();
    let faults = Faults::none();
    let store = open_faulty(dir.path(), options(sync), &faults).unwrap();
    for n in 0..count {
        store.append(frame("a", n).into()).unwrap();
    }
    crash_now(dir.path(), &faults)
}

fn range(upto: u64) -> Vec<u64> {
    (0..upto).collect()
}

/// Opens a crash image, appends to it, and opens it again.
fn check_usable(dir: &Path, expected: u64) {
    let faults = Faults::none();
    let store = open_faulty(dir, options(SyncPolicy::None), &faults).unwrap();
    assert_eq!(store.info().health, Health::Writable);
    assert_eq!(numbers(&store), range(expected));
    let appended = store.append(frame("a", expected).into()).unwrap();
    assert_eq!(appended.frames[0].offset, Some(expected));
    let second = crash_now(dir, &faults);
    drop(store);
    for dir in [dir, second.path()] {
        let store = open(dir, SyncPolicy::None);
        assert_eq!(numbers(&store), range(expected + 1));
    }
}

#[test]
fn a_kill_loses_nothing() {
    for sync in [SyncPolicy::Sync, SyncPolicy::None, "interval:1".parse().unwrap()] {
        for count in [0, 1, 20, 3000] {
            let image = image(sync, count);
            let store = open(image.path(), sync);
            assert_eq!(store.info().recovery.cut, None);
            assert_eq!(numbers(&store), range(count));
            drop(store);
            check_usable(image.path(), count);
        }
    }
}

#[test]
fn a_torn_tail_is_cut_at_every_byte() {
    let image = image(SyncPolicy::None, 4);
    let path = segment_files(image.path()).remove(0);
    let places = batches(&path);
    // The checkpoint, then the frames: the last two are torn at every 3rd byte.
    let (first, end) = (places[places.len() - 3], places[places.len() - 1]);
    type Fill = fn(&mut [u8]);
    let fills: [Fill; 3] = [
        |bytes| bytes.fill(0),
        |bytes| bytes.fill(0xa5),
        |bytes| bytes[..8].iter_mut().for_each(|byte| *byte ^= 0x55),
    ];
    for fill in fills {
        for at in (first..end).step_by(3) {
            let torn = crash(image.path());
            // A batch ends in zeros, so it is torn only where a byte differs.
            let mut same = None;
            edit(&torn.path().join(path.strip_prefix(image.path()).unwrap()), |bytes| {
                let before = bytes.clone();
                fill(&mut bytes[at..]);
                same = before.iter().zip(&*bytes).position(|(a, b)| a != b);
            });
            let same = same.unwrap_or(end);
            let whole = places.iter().filter(|&&place| place <= same).count() - 2;
            check_usable(torn.path(), whole as u64);
        }
    }
}

#[test]
fn a_tail_is_mended_where_it_lies() {
    let image = image(SyncPolicy::None, 200);
    let path = segment_files(image.path()).remove(0);
    let places = batches(&path);
    // Two batches beyond the point where a scan can resume, with garbage after them.
    let end = places[places.len() - 3];
    assert!(end > 16 * 1024, "{end}");
    edit(&path, |bytes| bytes[end..end + 100].fill(7));
    let before = fs::read(&path).unwrap();
    let manifest = fs::read(image.path().join("super.a")).unwrap();
    let store = open(image.path(), SyncPolicy::None);
    assert_eq!(numbers(&store), range(198));
    let after = fs::read(&path).unwrap();
    assert_eq!((&after[..end], after.len()), (&before[..end], before.len()));
    assert!(after[end..].iter().all(|&byte| byte == 0));
    assert_eq!(fs::read(image.path().join("super.a")).unwrap(), manifest);
    drop(store);
    check_usable(image.path(), 198);
}

#[test]
fn what_lies_behind_a_hole_is_cut_too() {
    let image = image(SyncPolicy::None, 10);
    let path = segment_files(image.path()).remove(0);
    let places = batches(&path);
    edit(&path, |bytes| bytes[places[4]..places[5]].fill(0));
    let store = open(image.path(), SyncPolicy::None);
    assert_eq!(numbers(&store), range(3));
    let cut = store.info().recovery.cut.unwrap();
    assert_eq!((cut.position, cut.offset), (places[4] as u64, 3));
    drop(store);
    check_usable(image.path(), 3);
}

#[test]
fn damage_to_acknowledged_data_is_never_cut() {
    let image = image(SyncPolicy::Sync, 10);
    let path = segment_files(image.path()).remove(0);
    let places = batches(&path);
    for at in [places[4], places[4] + 16, places[4] + 70, places[5] - 9] {
        let damaged = crash(image.path());
        let path = damaged.path().join(path.strip_prefix(image.path()).unwrap());
        edit(&path, |bytes| bytes[at] ^= 1);
        let before = fs::read(&path).unwrap();
        let store = open(damaged.path(), SyncPolicy::Sync);
        let Health::ReadOnly(ReadOnlyReason::Corrupt(corruption)) = store.info().health else {
            panic!("{:?}", store.info().health);
        };
        assert_eq!((&corruption.path, corruption.position), (&path, places[4] as u64));
        assert_eq!(corruption.offset, Some(3));
        assert_eq!(numbers(&store), [0, 1, 2, 4, 5, 6, 7, 8, 9]);
        let refused = store.append(frame("a", 10).into());
        assert!(matches!(refused, Err(AppendError::ReadOnly(_))));
        drop(store);
        assert_eq!(fs::read(&path).unwrap(), before);
    }
}

#[test]
fn a_frame_whose_pack_cannot_be_read_is_not_cut() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let hash = store.blob_put(&[7; 30_000]).unwrap();
    let body = Body::Stored(hash);
    store.append(NewFrame { body, ..frame("a", 0) }.into()).unwrap();
    let image = crash(dir.path());
    let pack = crate::testing::files_in(&image.path().join("blobs"), "pack").remove(0);
    let kept = pack.with_extension("kept");
    fs::rename(&pack, &kept).unwrap();
    fs::create_dir(&pack).unwrap();
    let Err(error) = Store::open(image.path(), options(SyncPolicy::None)) else {
        panic!("opened without its pack")
    };
    assert!(matches!(error, OpenError::Io { .. }), "{error:?}");
    fs::remove_dir(&pack).unwrap();
    fs::rename(&kept, &pack).unwrap();
    assert_eq!(numbers(&open(image.path(), SyncPolicy::None)), [0]);
}

#[test]
fn a_damaged_or_cut_store_that_was_closed_is_not_cut() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    (0..10).for_each(|n| drop(store.append(frame("a", n).into()).unwrap()));
    store.close().unwrap();
    drop(store);
    let path = segment_files(dir.path()).remove(0);
    let places = batches(&path);
    type Damage = fn(&mut Vec<u8>, &[usize]);
    let damages: [Damage; 3] = [
        |bytes, places| bytes[places[9]] ^= 1,
        |bytes, places| bytes.truncate(places[9]),
        |bytes, places| bytes[places[9]..].fill(0),
    ];
    for damage in damages {
        let image = crash(dir.path());
        let path = image.path().join(path.strip_prefix(dir.path()).unwrap());
        edit(&path, |bytes| damage(bytes, &places));
        let store = open(image.path(), SyncPolicy::None);
        assert!(matches!(store.info().health, Health::ReadOnly(_)), "{:?}", store.info());
        assert_eq!(numbers(&store)[..8], range(8));
    }
    fs::remove_file(&path).unwrap();
    let store = open(dir.path(), SyncPolicy::None);
    assert!(matches!(store.info().health, Health::ReadOnly(ReadOnlyReason::Files { .. })));
}

#[test]
fn a_damaged_segment_that_the_tables_are_read_from_is_named() {
    let dir = fast_dir();
    let faults = Faults::none();
    let store = open_faulty(dir.path(), options(SyncPolicy::None), &faults).unwrap();
    (0..20).for_each(|n| drop(store.append(frame("a", n).into()).unwrap()));
    assert!(store.inner.writer.lock().secure(&store.inner, crate::commit::Roll::ToNew).unwrap());
    store.inner.sealing.seal_now(&store.inner).unwrap();
    let image = crash_now(dir.path(), &faults);
    let [first, second] = <[_; 2]>::try_from(segment_files(image.path())).unwrap();
    // Only the header of the second segment reached the disk.
    let start = batches(&second)[0];
    edit(&second, |bytes| bytes[start..].fill(0));
    let whole = crash(image.path());
    let store = open(whole.path(), SyncPolicy::None);
    assert_eq!((store.info().health, numbers(&store)), (Health::Writable, range(20)));
    let place = batches(&first)[9];
    edit(&first, |bytes| bytes[place + 8] ^= 1);
    let store = open(image.path(), SyncPolicy::None);
    let health = store.info().health;
    let Health::ReadOnly(ReadOnlyReason::Corrupt(found)) = health else { panic!("{health:?}") };
    assert_eq!((found.path, found.position, found.offset), (first, place as u64, Some(8)));
    assert!(numbers(&store).len() >= 18);
}

#[test]
fn a_damaged_header_costs_no_frame() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    (0..3000).for_each(|n| drop(store.append(frame("a", n).into()).unwrap()));
    store.close().unwrap();
    drop(store);
    let crashed = image(SyncPolicy::None, 3000);
    for (dir, clean) in [(crashed.path(), false), (dir.path(), true)] {
        let paths = segment_files(dir);
        assert!(paths.len() > 2);
        for path in [&paths[1], paths.last().unwrap()] {
            for at in [2, 9, 13, 20, 37, 50, 61] {
                let image = crash(dir);
                let path = image.path().join(path.strip_prefix(dir).unwrap());
                edit(&path, |bytes| bytes[at] ^= 16);
                let checked = crate::verify(image.path(), &mut |_| ControlFlow::Continue(()));
                let found = checked.unwrap().findings;
                let told = found.iter().any(|f| f.problem == Problem::Header && f.path == path);
                assert!(told && found.iter().all(|f| f.severity < Severity::Lost), "{found:?}");
                let store = open(image.path(), SyncPolicy::None);
                let Health::ReadOnly(ReadOnlyReason::Corrupt(told)) = store.info().health else {
                    panic!("{clean} {at}: {:?}", store.info().health);
                };
                assert_eq!((told.path, told.position), (path, 0), "{clean} {at}");
                assert_eq!(numbers(&store), range(3000), "{clean} {at}");
            }
        }
    }
}

/// A sealed segment in which frame 5 was removed, and its directory.
fn removed_in_a_sealed_segment() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let first = (0..10).map(|n| store.append(frame("a", n).into()).unwrap().frames[0].id);
    let removes = vec![first.collect::<Vec<_>>()[5]];
    store.append(crate::Batch { removes, ..Default::default() }).unwrap();
    (10..3000).for_each(|n| drop(store.append(frame("a", n).into()).unwrap()));
    store.close().unwrap();
    drop(store);
    let path = segment_files(dir.path()).remove(0);
    // The tombstone follows the checkpoint and ten frames.
    let at = batches(&path)[11];
    edit(&path, |bytes| bytes[at + 64 + 20] ^= 1);
    (dir, path)
}

#[test]
fn a_removed_frame_stays_hidden_when_its_tombstone_is_damaged() {
    let (dir, path) = removed_in_a_sealed_segment();
    let there: Vec<u64> = (0..3000).filter(|&n| n != 5).collect();
    for lost in [None, Some("top"), Some("idx")] {
        if let Some(kind) = lost {
            edit(&path.with_extension(kind), |bytes| bytes[100] ^= 1);
        }
        // The first open sets the damaged file aside, and the record of dead frames stays.
        for _ in 0..2 {
            let store = open(dir.path(), SyncPolicy::None);
            assert_eq!(numbers(&store), there, "{lost:?}");
            assert_eq!(store.info().health, Health::Writable, "{lost:?}");
        }
    }
}

#[test]
fn a_removed_frame_that_may_be_back_is_told_of() {
    let (dir, path) = removed_in_a_sealed_segment();
    fs::remove_file(path.with_extension("dead")).unwrap();
    let store = open(dir.path(), SyncPolicy::None);
    let Health::ReadOnly(ReadOnlyReason::Corrupt(told)) = store.info().health else {
        panic!("{:?}", store.info().health);
    };
    assert_eq!(told.path, path);
    assert_eq!(numbers(&store), range(3000));
}

#[test]
fn a_pack_of_a_newer_version_is_told_of_when_it_is_opened() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let body = Body::Inline(Bytes::from_static(b"a body"));
    store.append(crate::NewFrame { body, ..frame("a", 0) }.into()).unwrap();
    let crashed = crash(dir.path());
    store.close().unwrap();
    drop(store);
    for dir in [dir.path(), crashed.path()] {
        let packs = fs::read_dir(dir.join("blobs")).unwrap().map(|entry| entry.unwrap().path());
        let pack = packs.filter(|path| path.extension().is_some_and(|end| end == "pack")).min();
        let pack = pack.unwrap();
        edit(&pack, |bytes| {
            bytes[8] = 9;
            let crc = crc32fast::hash(&bytes[..60]);
            bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        });
        let before = fs::read(&pack).unwrap();
        let store = open(dir, SyncPolicy::None);
        let newer = ReadOnlyReason::Version { path: pack.clone(), found: 9 };
        assert_eq!(store.info().health, Health::ReadOnly(newer));
        assert_eq!(numbers(&store), range(1));
        drop(store);
        assert_eq!(fs::read(&pack).unwrap(), before);
    }
}

#[test]
fn what_recovery_leaves_out_of_a_pack_is_told() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::Sync);
    let body = |n| Bytes::from(format!("body {n}").repeat(40));
    for n in 0..6 {
        let body = Body::Inline(body(n));
        store.append(crate::NewFrame { body, ..frame("a", n) }.into()).unwrap();
    }
    let image = crash(dir.path());
    let packs =
        fs::read_dir(image.path().join("blobs")).unwrap().map(|entry| entry.unwrap().path());
    let find = |bytes: &[u8]| bytes.windows(6).position(|found| found == b"body 3");
    let mut packs = packs.filter(|path| find(&fs::read(path).unwrap()).is_some());
    let pack = packs.next().unwrap();
    edit(&pack, |bytes| {
        // In the header of its entry; everything after it is intact.
        let at = find(bytes).unwrap() - 30;
        bytes[at] ^= 1;
    });
    let store = open(image.path(), SyncPolicy::None);
    let dropped = &store.info().recovery.blobs_dropped;
    assert_eq!((dropped.len(), &dropped[0].path), (1, &pack), "{dropped:?}");
    let there = |n: u64| store.has_blob(&BlobHash::of(&body(n))).unwrap();
    assert!((0..6).all(|n| there(n) == (n != 3)));
    assert_eq!(numbers(&store), range(6));
}

#[test]
fn a_missing_or_foreign_segment_is_named() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    (0..3000).for_each(|n| drop(store.append(frame("a", n).into()).unwrap()));
    store.close().unwrap();
    drop(store);
    let paths = segment_files(dir.path());
    let image = crash(dir.path());
    let lost = image.path().join(paths[1].strip_prefix(dir.path()).unwrap());
    fs::remove_file(&lost).unwrap();
    let store = open(image.path(), SyncPolicy::None);
    let Health::ReadOnly(ReadOnlyReason::Files { path, .. }) = store.info().health else {
        panic!("{:?}", store.info().health);
    };
    assert_eq!(path, lost);
    let found = numbers(&store);
    assert!(found.starts_with(&[0, 1]) && found.ends_with(&[2999]) && found.len() < 3000);
    drop(store);
    // An older manifest does not make acknowledged frames removable.
    fs::copy(&paths[1], &lost).unwrap();
    fs::copy(&paths[1], image.path().join("log/00000000000000009999.0.seg")).unwrap();
    let store = open(image.path(), SyncPolicy::None);
    assert!(matches!(store.info().health, Health::ReadOnly(ReadOnlyReason::Files { .. })));
    assert_eq!(numbers(&store), range(3000));
}

#[test]
fn a_tail_frame_without_its_blob_counts_as_torn() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    for n in 0..6 {
        let body = Body::Inline(Bytes::from(format!("body {n}")));
        store.append(crate::NewFrame { body, ..frame("a", n) }.into()).unwrap();
    }
    let image = crash(dir.path());
    let pack = fs::read_dir(image.path().join("blobs")).unwrap();
    let pack = pack.map(|entry| entry.unwrap().path());
    let find = |bytes: &[u8]| bytes.windows(6).position(|found| found == b"body 3");
    let path = pack.into_iter().find(|path| find(&fs::read(path).unwrap()).is_some()).unwrap();
    edit(&path, |bytes| {
        let at = find(bytes).unwrap();
        bytes[at..].fill(0);
    });
    // The read-only checks report the same.
    let report = crate::verify(image.path(), &mut |_| ControlFlow::Continue(())).unwrap();
    let torn: Vec<_> = report.findings.iter().filter(|f| f.problem == Problem::TornTail).collect();
    assert_eq!((report.worst, torn.len()), (Some(Severity::Unused), 1), "{report:#?}");
    assert_eq!(torn[0].offset, Some(3), "{report:#?}");
    let into = fast_dir();
    let report = crate::repair(image.path(), into.path(), &mut |_| ControlFlow::Continue(()));
    let report = report.unwrap();
    assert_eq!((report.head, report.frames, report.frames_lost), (3, 3, 0), "{report:#?}");
    check_usable(image.path(), 3);
}

#[test]
fn a_tail_frame_whose_blob_is_damaged_is_kept() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let body = |n: u64| crate::testing::noise(n, 100_000);
    for n in 0..2 {
        // Each in a pack of its own, which is sealed at once.
        let body = Body::Inline(body(n));
        store.append(crate::NewFrame { body, ..frame("a", n) }.into()).unwrap();
    }
    let image = crash(dir.path());
    let packs = crate::testing::files_in(&image.path().join("blobs"), "pack");
    let find = |bytes: &[u8]| bytes.windows(64).position(|found| *found == body(1)[..64]);
    let pack = packs.into_iter().find(|path| find(&fs::read(path).unwrap()).is_some()).unwrap();
    let at = find(&fs::read(&pack).unwrap()).unwrap();
    edit(&pack, |bytes| bytes[at + 9] ^= 1);
    let into = fast_dir();
    let report = crate::verify(image.path(), &mut |_| ControlFlow::Continue(())).unwrap();
    let missing = report.findings.iter().find(|f| f.problem == Problem::MissingBlob).unwrap();
    assert_eq!((missing.severity, missing.offset), (Severity::Lost, Some(1)), "{report:#?}");
    let saved = crate::repair(image.path(), into.path(), &mut |_| ControlFlow::Continue(()));
    let saved = saved.unwrap();
    assert_eq!((saved.frames, saved.head), (2, 2), "{saved:#?}");
    assert!(saved.lost.iter().any(|f| f.problem == Problem::MissingBlob), "{saved:#?}");
    assert_eq!(numbers(&open(image.path(), SyncPolicy::None)), range(2));
}

/// Frames that [`work`] appends: enough for two segments and two packs.
const WORK: u64 = 300;

/// Appends frames with bodies.
fn work(store: &Store) {
    let topic = "a".repeat(200);
    for n in 0..WORK {
        let body = Body::Inline(Bytes::from(vec![n as u8; 300]));
        store.append(crate::NewFrame { body, ..frame(&topic, n) }.into()).unwrap();
    }
}

#[test]
fn recovery_may_be_cut_off_at_each_operation() {
    let dir = fast_dir();
    let faults = Faults::none();
    let store = open_faulty(dir.path(), options(SyncPolicy::None), &faults).unwrap();
    work(&store);
    let images = [crash_now(dir.path(), &faults), image(SyncPolicy::None, 20)];
    edit(&segment_files(images[1].path())[0], |bytes| bytes[1500..1600].fill(7));
    for image in images {
        let expected = {
            let image = crash(image.path());
            numbers(&open(image.path(), SyncPolicy::None))
        };
        for k in 1.. {
            let image = crash(image.path());
            let faults = Faults::none();
            faults.set(k, u64::MAX, Errno::IO);
            let opened = open_faulty(image.path(), options(SyncPolicy::None), &faults);
            let hit = faults.count() >= k;
            let second = crash_now(image.path(), &faults);
            drop(opened);
            let store = open(second.path(), SyncPolicy::None);
            assert_eq!(store.info().health, Health::Writable, "step {k}");
            assert_eq!(numbers(&store), expected, "step {k}");
            if !hit {
                break;
            }
        }
    }
}

#[test]
fn a_disk_without_room_to_put_the_journal_back_is_told_of() {
    let half_bytes = crate::limits::JOURNAL_HALF_BYTES_MIN;
    let journal = crate::options::JournalOptions { half_bytes, after_groups: 0 };
    let options = crate::options::StoreOptions { journal, ..options(SyncPolicy::Sync) };
    let dir = fast_dir();
    let faults = Faults::none();
    let store = open_faulty(dir.path(), options.clone(), &faults).unwrap();
    (0..100).for_each(|n| drop(store.append(frame("a", n).into()).unwrap()));
    let image = crash_now(dir.path(), &faults);
    drop(store);
    let mut told = 0;
    for k in 1.. {
        let image = crash(image.path());
        let faults = Faults::none();
        faults.set(k, u64::MAX, Errno::NOSPC);
        let opened = open_faulty(image.path(), options.clone(), &faults);
        let hit = faults.count() >= k;
        match opened {
            Ok(store) => assert_eq!(numbers(&store), range(100), "step {k}"),
            Err(OpenError::StorageFull { path }) => {
                assert_eq!(path, image.path().join("journal"));
                told += 1;
            }
            Err(error) => assert!(matches!(error, OpenError::Io { .. }), "{error}"),
        }
        assert_eq!(numbers(&open(image.path(), SyncPolicy::Sync)), range(100), "step {k}");
        if !hit {
            break;
        }
    }
    assert!(told > 1, "{told}");
}

#[test]
fn a_lost_copy_of_the_manifest_takes_no_frame_with_it() {
    let dir = fast_dir();
    for (opening, count) in [(1, 0), (2, 10), (3, 30)] {
        let store = open(dir.path(), SyncPolicy::Sync);
        assert_eq!(store.info().epoch, opening);
        for n in count..count + 10 * opening {
            store.append(frame("a", n).into()).unwrap();
        }
        if opening < 3 {
            store.close().unwrap();
            continue;
        }
        // Only one of the copies records that the store was opened and written.
        let image = crash(dir.path());
        drop(store);
        for name in ["super.a", "super.b"] {
            let image = crash(image.path());
            edit(&image.path().join(name), |bytes| bytes[0] ^= 1);
            let store = open(image.path(), SyncPolicy::Sync);
            let info = store.info();
            assert_eq!((numbers(&store), info.health), (range(60), Health::Writable), "{name}");
            assert_eq!(info.epoch, opening + 1, "{name}: an epoch that no frame has");
            drop(store);
            check_usable(image.path(), 60);
        }
    }
}

/// A store whose groups are in the journal, which it uses from the first on.
fn with_journal(dir: &Path) -> Store {
    let journal = crate::options::JournalOptions { after_groups: 0, ..Default::default() };
    let options = crate::options::StoreOptions { journal, ..options(SyncPolicy::Sync) };
    let store = Store::open(dir, options).unwrap();
    (0..100).for_each(|n| drop(store.append(frame("a", n).into()).unwrap()));
    assert!(dir.join("journal").exists());
    store
}

#[test]
fn either_copy_of_the_manifest_opens_a_store_that_was_closed() {
    let dir = fast_dir();
    with_journal(dir.path()).close().unwrap();
    assert!(!dir.path().join("journal").exists());
    for name in ["super.a", "super.b"] {
        let image = crash(dir.path());
        edit(&image.path().join(name), |bytes| bytes[0] ^= 1);
        let store = open(image.path(), SyncPolicy::Sync);
        assert_eq!(
            (numbers(&store), store.info().health),
            (range(100), Health::Writable),
            "{name}"
        );
    }
}

#[test]
fn a_journal_of_another_version_is_left_alone() {
    let dir = fast_dir();
    let store = with_journal(dir.path());
    let image = crash(dir.path());
    drop(store);
    let path = image.path().join("journal");
    edit(&path, |bytes| {
        bytes[8..12].copy_from_slice(&2_u32.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..60]).to_le_bytes();
        bytes[60..64].copy_from_slice(&crc);
    });
    let before = fs::read(&path).unwrap();
    let store = open(image.path(), SyncPolicy::Sync);
    let reason = ReadOnlyReason::Version { path: path.clone(), found: 2 };
    assert_eq!(store.info().health, Health::ReadOnly(reason));
    store.close().unwrap();
    assert!(fs::read(&path).unwrap() == before);
    let go_on = &mut |_: &crate::Progress<'_>| ControlFlow::Continue(());
    let into = fast_dir();
    for refused in [
        crate::verify(image.path(), go_on).map(drop),
        crate::repair(image.path(), into.path(), go_on).map(drop),
        crate::upgrade(image.path()).map(drop),
    ] {
        let refused = refused.unwrap_err();
        let crate::MaintainError::Open(OpenError::Version { path: told, found: 2 }) = &refused
        else {
            panic!("{refused}")
        };
        assert_eq!(*told, path);
    }
}
