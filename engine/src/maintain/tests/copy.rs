//! Backup, fork and restore: what the copy contains, even when copying is interrupted anywhere.

use std::collections::BTreeSet;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{build, check, fill, go_on, none, tell};
use crate::append::Batch;
use crate::error::{ReadError, ReadOnlyReason};
use crate::maintain::{CopyOptions, CopyReport, MaintainError, Problem, repair, restore};
use crate::media::faulty::{Faults, FaultyFiles};
use crate::media::sim::{Image, SimDisk};
use crate::media::{Disk, Files};
use crate::names::is_store;
use crate::options::CompactOptions;
use crate::options::{CompressOptions, MediaChoice, StoreOptions, SyncPolicy};
use crate::store::{Health, Store};
use crate::testing::{
    crash, fast_dir, files_in, frame, numbers, open, open_on, options, segment_files,
};
use crate::value::ResumePoint;

/// Where the header of a file has its uuid.
const UUID_AT: usize = 32;

#[test]
fn a_backup_opens_with_all_there_was_and_grows() {
    let dir = fast_dir();
    let dest = fast_dir();
    // Files that a thread rewrites between two copies would be copied again.
    let compress = CompressOptions { busy_bytes_per_second: 0, ..CompressOptions::default() };
    let store = Store::open(dir.path(), StoreOptions { compress, ..none() }).unwrap();
    fill(&store);
    store.inner.blobs.seal_all();
    let copies = CopyOptions::copies();
    let first = store.backup(dest.path(), copies, &mut go_on).unwrap();
    assert_eq!((first.uuid, first.head), (store.info().uuid, store.info().head));
    assert!(first.files_copied > 4 && first.files_kept == 0, "{first:?}");
    let report = check(dest.path());
    assert!(report.is_clean(), "{:#?}", report.findings);
    let expected = tell(&store);
    {
        let backup = Store::open(dest.path(), none()).unwrap();
        assert_eq!(backup.info().health, Health::ReadOnly(ReadOnlyReason::Backup));
        assert!(tell(&backup) == expected);
        backup.close().unwrap();
    }
    (0..700).for_each(|n| drop(store.append(frame("more", n).into()).unwrap()));
    let second = store.backup(dest.path(), copies, &mut go_on).unwrap();
    assert!(second.files_kept + 3 > first.files_copied, "{second:?}");
    assert!(second.bytes_copied < first.bytes_copied / 2, "{second:?} {first:?}");
    let expected = tell(&store);
    let backup = Store::open(dest.path(), none()).unwrap();
    assert!(tell(&backup) == expected);
    backup.close().unwrap();
    let report = check(dest.path());
    assert!(report.is_clean(), "{:#?}", report.findings);
    let third = store.backup(dest.path(), copies, &mut go_on).unwrap();
    assert_eq!((third.files_copied, third.bytes_copied), (0, 0), "{third:?}");
}

#[test]
fn a_backup_at_any_moment_opens_with_all_there_was() {
    let (dir, dest) = (fast_dir(), fast_dir());
    let store = open(dir.path(), SyncPolicy::None);
    // With frames this long a segment is full before it is filled up.
    let meta = crate::value::Meta::parse(format!("\"{}\"", "x".repeat(9_000))).unwrap();
    for n in 0..30 {
        let new = crate::value::NewFrame { meta: meta.clone(), ..frame("a", n) };
        store.append(new.into()).unwrap();
        store.backup(dest.path(), CopyOptions::copies(), &mut go_on).unwrap();
        let backup = Store::open(dest.path(), none()).unwrap();
        let found = backup.read(&crate::value::ReadOptions::default()).unwrap();
        let offsets = found.map(|frame| frame.unwrap().offset().unwrap());
        assert!(offsets.eq(0..=n), "after {n}");
        assert!((0..=n).all(|n| backup.get_at(n).unwrap().is_some()), "after {n}");
    }
    assert!(store.info().segments > 3);
}

#[test]
fn a_damaged_tail_is_not_backed_up() {
    let (dir, dest) = (fast_dir(), fast_dir());
    let store = open(dir.path(), SyncPolicy::None);
    (0..100).for_each(|n| drop(store.append(frame("a", n).into()).unwrap()));
    store.backup(dest.path(), CopyOptions::copies(), &mut go_on).unwrap();
    let path = &segment_files(dir.path())[0];
    let place = crate::testing::batches(path)[50] as u64 + 80;
    let file = fs::File::options().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xee], place).unwrap();
    store.append(frame("a", 100).into()).unwrap();
    let refused = store.backup(dest.path(), CopyOptions::copies(), &mut go_on);
    let Err(MaintainError::Corrupt(corruption)) = refused else { panic!("{refused:?}") };
    assert_eq!(&corruption.path, path);
    // The previous backup stays, next to the unfinished one.
    let report = check(dest.path());
    assert!(report.findings.iter().all(|f| f.problem == Problem::Stranger), "{report:#?}");
    let backup = Store::open(dest.path(), none()).unwrap();
    assert_eq!(numbers(&backup).len(), 100);
}

#[test]
fn what_is_no_place_for_a_backup_is_refused() {
    let (dir, other, dest) = (fast_dir(), fast_dir(), fast_dir());
    build(dir.path());
    build(other.path());
    let store = open(dir.path(), SyncPolicy::None);
    let copies = CopyOptions::copies();
    let backup = |dest: &Path| store.backup(dest, copies, &mut go_on);
    assert!(matches!(backup(other.path()), Err(MaintainError::OtherStore { .. })));
    let is_nested = |result: Result<CopyReport, MaintainError>| {
        matches!(result, Err(MaintainError::Nested { .. }))
    };
    let links = fast_dir();
    let link = links.path().join("link");
    std::os::unix::fs::symlink(dir.path(), &link).unwrap();
    let below = dir.path().join("a/b");
    let parent = dir.path().parent().unwrap();
    let around = other.path().join("../").join(dir.path().file_name().unwrap()).join("x/../a");
    for place in [dir.path(), &below, &link, &link.join("new/one"), parent, &around] {
        assert!(is_nested(backup(place)), "{}", place.display());
        assert!(is_nested(store.fork(place)), "{}", place.display());
    }
    assert!(!below.parent().unwrap().exists(), "nothing is made");
    assert!(is_nested(restore(other.path(), other.path().join("a"), copies, &mut go_on)));
    assert!(matches!(
        repair(other.path(), other.path().join("a"), &mut go_on),
        Err(MaintainError::Nested { .. })
    ));
    fs::write(dest.path().join("notes.txt"), "mine").unwrap();
    assert!(matches!(backup(dest.path()), Err(MaintainError::NotEmpty { .. })));
    assert!(matches!(store.fork(other.path()), Err(MaintainError::NotEmpty { .. })));
    let there = fast_dir();
    open(other.path(), SyncPolicy::None).backup(there.path(), copies, &mut go_on).unwrap();
    assert!(matches!(backup(there.path()), Err(MaintainError::OtherStore { .. })));
    store.close().unwrap();
    assert!(matches!(backup(there.path()), Err(MaintainError::Closed)));
}

#[test]
fn a_damaged_store_is_not_copied_over_a_good_backup() {
    let (dir, dest) = (fast_dir(), fast_dir());
    build(dir.path());
    let segment = segment_files(dir.path()).remove(0);
    let file = fs::File::options().write(true).open(&segment).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"rot!", 3000).unwrap();
    let store = open(dir.path(), SyncPolicy::None);
    let refused = store.backup(dest.path(), CopyOptions::copies(), &mut go_on);
    match refused {
        Err(MaintainError::Corrupt(corruption)) => assert_eq!(corruption.path, segment),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_fork_shares_the_past_and_has_a_future_of_its_own() {
    let (dir, dest) = (fast_dir(), fast_dir());
    let store = open(dir.path(), SyncPolicy::None);
    fill(&store);
    let report = store.fork(dest.path()).unwrap();
    assert!(report.files_linked >= 3 && report.files_copied > 0, "{report:?}");
    let sealed = segment_files(dest.path()).remove(0);
    assert_eq!(fs::metadata(sealed).unwrap().nlink(), 2);
    let report = check(dest.path());
    assert!(report.is_clean(), "{:#?}", report.findings);
    let fork = open(dest.path(), SyncPolicy::None);
    let (past, parent) = (tell(&store), store.info());
    assert!(tell(&fork) == past);
    assert_eq!((fork.info().parent, fork.info().health), (Some(parent.uuid), Health::Writable));
    assert_ne!(fork.info().uuid, parent.uuid);
    fork.append(frame("only.fork", 1).into()).unwrap();
    store.append(frame("only.parent", 1).into()).unwrap();
    store.append(frame("only.parent", 2).into()).unwrap();
    assert_eq!((tell(&store).len(), tell(&fork).len()), (past.len() + 2, past.len() + 1));
    // Positions in the parent's later history are refused, those in the shared history are not.
    let head = parent.head;
    let anonymous = |point: ResumePoint| ResumePoint { store: None, ..point };
    let ahead = |point| match fork.check_resume(&point) {
        Err(ReadError::CursorAhead { offset }) => Some(offset),
        Ok(()) => None,
        Err(other) => panic!("{other}"),
    };
    assert_eq!(ahead(anonymous(store.resume_point(head + 1))), Some(head));
    assert_eq!(ahead(anonymous(store.resume_point(head))), None);
    let foreign = fork.check_resume(&store.resume_point(3));
    assert_eq!(foreign, Err(ReadError::OtherStore { store: parent.uuid }));
    store.close().unwrap();
    let store = open(dir.path(), SyncPolicy::None);
    store.append(frame("only.parent", 3).into()).unwrap();
    assert_eq!(ahead(anonymous(store.resume_point(7))), Some(7));
    assert_eq!(ahead(fork.resume_point(head + 1)), None);
    // Both stores work independently.
    drop(store);
    fs::remove_dir_all(dir.path()).unwrap();
    fork.close().unwrap();
    assert!(check(dest.path()).is_clean());
    let fork = open(dest.path(), SyncPolicy::None);
    assert_eq!(tell(&fork).len(), past.len() + 1);
}

#[test]
fn a_backup_is_restored_as_a_store_of_its_own() {
    let (dir, dest, back) = (fast_dir(), fast_dir(), fast_dir());
    let store = open(dir.path(), SyncPolicy::None);
    fill(&store);
    store.backup(dest.path(), CopyOptions::copies(), &mut go_on).unwrap();
    let (past, parent) = (tell(&store), store.info());
    for options in [CopyOptions::copies(), CopyOptions::links()] {
        let back = back.path().join(format!("{}", options.link));
        let report = restore(dest.path(), &back, options, &mut go_on).unwrap();
        assert_eq!((report.head, report.source), (parent.head, parent.uuid));
        let restored = open(&back, SyncPolicy::None);
        assert!(tell(&restored) == past);
        assert_eq!(restored.info().parent, Some(parent.uuid));
        assert!(restored.info().epoch > parent.epoch);
        restored.append(frame("after", 1).into()).unwrap();
        restored.close().unwrap();
        assert!(check(&back).is_clean());
    }
    assert!(check(dest.path()).is_clean());
    let crashed = crate::testing::crash(dir.path());
    let refused = restore(crashed.path(), back.path().join("no"), CopyOptions::links(), &mut go_on);
    assert!(matches!(refused, Err(MaintainError::NotClosed { .. })));
}

#[test]
fn an_unfinished_pack_takes_the_place_of_another_with_its_number() {
    let (dir, dest) = (fast_dir(), fast_dir());
    let store = open(dir.path(), SyncPolicy::None);
    fill(&store);
    store.inner.blobs.seal_all();
    store.backup(dest.path(), CopyOptions::copies(), &mut go_on).unwrap();
    let past = tell(&store);
    let place = files_in(&dest.path().join("blobs"), "pack").remove(0);
    let own = fs::read(&place).unwrap();
    let mut other = own.clone();
    // Another uuid.
    other[UUID_AT] ^= 1;
    let crc = crc32fast::hash(&other[..60]).to_le_bytes();
    other[60..64].copy_from_slice(&crc);
    let longer = |bytes: &[u8]| [bytes, &[0; 100_000]].concat();
    // A number that was used before, by a longer pack, an equally long one, and a shorter one; and
    // the same pack with trailing bytes.
    let before = [longer(&other), other.clone(), other[..own.len() / 2].to_vec(), longer(&own)];
    let name = place.strip_prefix(dest.path()).unwrap();
    let check_whole = |unfinished: &[u8], there: &[u8]| {
        let image = crash(dest.path());
        let path = image.path().join(name);
        fs::write(path.with_added_extension("tmp"), unfinished).unwrap();
        fs::write(&path, there).unwrap();
        let report = check(image.path());
        let stranger = |f: &crate::maintain::Finding| f.problem == Problem::Stranger;
        assert!(report.findings.iter().all(stranger), "{:#?}", report.findings);
        let backup = Store::open(image.path(), none()).unwrap();
        assert!(tell(&backup) == past);
        assert!(fs::read(&path).unwrap() == own && !path.with_added_extension("tmp").exists());
    };
    before.iter().for_each(|there| check_whole(&own, there));
    // The pack in place is the right one.
    for unfinished in [&other[..], &own[..100], &own, b""] {
        check_whole(unfinished, &own);
    }
}

#[test]
fn an_empty_store_is_copied_too() {
    let (dir, dest, fork) = (fast_dir(), fast_dir(), fast_dir());
    let store = open(dir.path(), SyncPolicy::Sync);
    store.backup(dest.path(), CopyOptions::copies(), &mut go_on).unwrap();
    store.fork(fork.path()).unwrap();
    let fork = open(fork.path(), SyncPolicy::Sync);
    fork.append(frame("a", 1).into()).unwrap();
    assert_eq!(numbers(&fork), [1]);
    let cursors = vec![super::cursor("only", 3, b"state")];
    store.append(Batch { cursors, ..Default::default() }).unwrap();
    store.backup(dest.path(), CopyOptions::copies(), &mut go_on).unwrap();
    let backup = Store::open(dest.path(), none()).unwrap();
    assert_eq!(backup.cursors().len(), 1);
}

#[test]
fn a_copy_can_be_stopped_and_taken_up() {
    let (dir, dest) = (fast_dir(), fast_dir());
    build(dir.path());
    let store = open(dir.path(), SyncPolicy::None);
    let copies = CopyOptions::copies();
    let stopped = store.backup(dest.path(), copies, &mut |progress| match progress.bytes
        > progress.bytes_total / 2
    {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    });
    assert!(matches!(stopped, Err(MaintainError::Stopped)));
    let report = store.backup(dest.path(), copies, &mut go_on).unwrap();
    assert!(report.files_kept >= 2, "{report:?}");
    assert!(tell(&Store::open(dest.path(), none()).unwrap()) == tell(&store));
}

/// For linked and for copied files: one operation fails, or all from there on. `restore` uses the
/// same code.
#[test]
fn a_fork_that_fails_anywhere_leaves_no_store() {
    let (dir, root) = (fast_dir(), fast_dir());
    build(dir.path());
    let store = open(dir.path(), SyncPolicy::None);
    let told = tell(&store);
    let is_whole = |dest: &Path| {
        let fork = Store::open(dest, none()).unwrap();
        assert!(tell(&fork) == told);
        fork.close().unwrap();
    };
    for (options, lasts) in [
        (CopyOptions::links(), false),
        (CopyOptions::copies(), false),
        (CopyOptions::links(), true),
    ] {
        let mut failed = 0;
        for at in 1.. {
            let faults = Faults::none();
            let files = FaultyFiles::new(Disk::new(MediaChoice::Positioned, root.path()), &faults);
            let files: Arc<dyn Files> = Arc::new(files);
            let dest = root.path().join(format!("{}{lasts}{at}", options.link));
            fs::create_dir(&dest).unwrap();
            faults.set(at, if lasts { u64::MAX } else { at }, rustix::io::Errno::IO);
            let forked = store.inner.fork_on(&dest, &files, options);
            let was_hit = faults.count() >= at;
            faults.clear();
            match forked {
                Ok(_) => is_whole(&dest),
                Err(_) => {
                    failed += 1;
                    // Its last rename could not be undone either.
                    let is_last = lasts && is_store(&dest);
                    assert!(is_last || !is_store(&dest), "operation {at}");
                    if !is_last {
                        // The next attempt reuses or removes what this one left.
                        store.inner.fork_on(&dest, &files, options).unwrap();
                    }
                    is_whole(&dest);
                }
            }
            fs::remove_dir_all(&dest).unwrap();
            if !was_hit {
                break;
            }
        }
        assert!(failed > 20, "{failed}");
    }
}

#[test]
fn what_an_attempt_left_takes_the_place_of_no_file_that_is_whole() {
    let (dir, dest) = (fast_dir(), fast_dir());
    // No file is rewritten between two copies.
    let compress = CompressOptions { busy_bytes_per_second: 0, ..CompressOptions::default() };
    let store = Store::open(dir.path(), StoreOptions { compress, ..none() }).unwrap();
    fill(&store);
    store.inner.blobs.seal_all();
    let backup = || store.backup(dest.path(), CopyOptions::copies(), &mut go_on).unwrap();
    let files = backup().files_copied;
    let tail = segment_files(dest.path()).pop().unwrap();
    for path in [tail, files_in(&dest.path().join("blobs"), "pack").remove(0)] {
        let (sound, left) = (fs::read(&path).unwrap(), path.with_added_extension("tmp"));
        let cut_off = [&sound[..sound.len() / 2], &vec![0; sound.len() - sound.len() / 2]].concat();
        fs::write(&left, &cut_off).unwrap();
        assert_eq!(backup().files_kept, files);
        assert!(fs::read(&path).unwrap() == sound, "{}", path.display());
        // Nor is it used in place of a lost file.
        fs::write(&left, &cut_off).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(backup().files_copied, 1);
        assert!(fs::read(&path).unwrap() == sound && !left.exists(), "{}", path.display());
    }
    assert!(check(dest.path()).is_clean());
}

#[test]
fn a_power_cut_anywhere_leaves_the_backup_before_or_the_one_after() {
    // One segment grows from each backup to the next.
    cut_anywhere([500, 300, 50], |_| ());
}

#[test]
fn a_power_cut_leaves_a_backup_that_lacks_nothing_after_a_compaction_too() {
    let compact = |store: &Store| {
        // Two segments become one, so that nothing replaces the second.
        let frames = store.read(&Default::default()).unwrap().take(900);
        let ids = frames.enumerate().filter(|(number, _)| number % 3 > 0);
        let ids: Vec<_> = ids.map(|(_, frame)| frame.unwrap().id()).collect();
        for removes in ids.chunks(60).map(<[_]>::to_vec) {
            store.append(Batch { removes, ..Batch::default() }).unwrap();
        }
        let all = CompactOptions { dead_percent: 1, bytes_per_second: None };
        let report = store.compact(all).unwrap();
        assert!(report.rewritten > report.written, "{report:?}");
    };
    cut_anywhere([1000, 100, 50], compact);
}

/// Cuts the power anywhere in a backup and in a second one that adds to it, and after each cut
/// interrupts a third one anywhere. `frames` gives the number of frames to append before each of
/// the three; `between` is called before the second one.
fn cut_anywhere(frames: [u64; 3], between: impl Fn(&Store)) {
    let root = fast_dir();
    let (home, dest) = (root.path().join("home"), root.path().join("dest"));
    [&home, &dest].into_iter().for_each(|dir| fs::create_dir(dir).unwrap());
    let disk = SimDisk::new(&Image::new(), root.path(), MediaChoice::Positioned);
    let files: Arc<dyn Files> = Arc::new(disk.clone());
    let store = open_on(&home, options(SyncPolicy::Sync), Arc::clone(&files)).unwrap();
    let (images, mut held) = (Arc::new(Mutex::new(Vec::new())), BTreeSet::from([0]));
    let copies = CopyOptions::copies();
    let append = |count| {
        for n in store.info().head..store.info().head + count {
            let new = super::with_body(frame("a", n), format!("{n}").repeat(40).as_bytes());
            store.append(new.into()).unwrap();
        }
    };
    for (number, count) in frames[..2].iter().enumerate() {
        append(*count);
        if number > 0 {
            between(&store);
        }
        held.insert(numbers(&store).len());
        let kept = Arc::clone(&images);
        disk.watch(move |number, moment| kept.lock().push((number, moment.power_cut(number))));
        store.inner.backup_on(&dest, &files, copies, &mut go_on).unwrap();
        disk.unwatch();
        images.lock().push((disk.count(), disk.moment().power_cut(disk.count())));
    }
    append(frames[2]);
    let of = |image: &Image| -> Arc<dyn Files> {
        Arc::new(SimDisk::new(image, root.path(), MediaChoice::Positioned))
    };
    let mut seen = BTreeSet::new();
    for (cut_at, image) in images.lock().drain(..) {
        let found = frames_of_backup(&dest, of(&image), cut_at);
        seen.insert(found);
        assert!(held.contains(&found), "cut at {cut_at}: {found} frames");
        for stop_at in 1.. {
            // Records and blobs that are checked ask too, hundreds of times for each file.
            let (left, mut begun) = (of(&image), BTreeSet::new());
            let ended = store.inner.backup_on(&dest, &left, copies, &mut |progress| {
                begun.insert((progress.path.to_owned(), progress.bytes));
                let goes_on = begun.len() < stop_at;
                if goes_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            let there = frames_of_backup(&dest, left, cut_at);
            if ended.is_ok() {
                assert_eq!(there, numbers(&store).len(), "cut at {cut_at}");
                break;
            }
            assert!(matches!(ended, Err(MaintainError::Stopped)), "cut at {cut_at}: {ended:?}");
            assert_eq!(there, found, "cut at {cut_at}, stopped at file {stop_at}");
        }
    }
    assert_eq!(seen, held);
}

/// The number of frames in a backup once opened, each with its body.
fn frames_of_backup(dest: &Path, files: Arc<dyn Files>, cut_at: u64) -> usize {
    let backup = match open_on(dest, none(), files) {
        Ok(backup) => backup,
        Err(error) => panic!("cut at {cut_at}: {error}"),
    };
    let found = numbers(&backup).len();
    if found > 0 {
        let health = backup.info().health;
        assert_eq!(health, Health::ReadOnly(ReadOnlyReason::Backup), "cut at {cut_at}");
        let bodies = backup.read(&Default::default()).unwrap().map(|frame| {
            backup.blob(&frame.unwrap().hash().unwrap()).unwrap().unwrap().bytes(1 << 20)
        });
        assert_eq!(bodies.filter(Result::is_ok).count(), found, "cut at {cut_at}");
    }
    found
}
