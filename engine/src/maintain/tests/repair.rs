//! Repair: everything valid is saved with its ids and offsets, losses are named.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{build, check, cursor, go_on, none, tell};
use crate::append::Batch;
use crate::error::{OpenError, ReadError};
use crate::format::batch::BatchHeader;
use crate::maintain::repair::{RepairReport, repair_files};
use crate::maintain::{CopyOptions, MaintainError, Problem, Severity, repair};
use crate::media::sim::{Image, SimDisk};
use crate::media::{Disk, Files};
use crate::options::CompactOptions;
use crate::options::{MediaChoice, StoreOptions, SyncPolicy};
use crate::read::{FollowerEvent, Reader};
use crate::store::{Health, Store};
use crate::testing::{
    batches, crash, edit, fast_dir, frame, open, open_on, options, segment_files,
};
use crate::value::{
    Bound, CursorName, CursorSummary, Import, Meta, NewFrame, ReadOptions, ResumePoint, Start,
};

/// The contents of a store, each frame under its offset.
fn held(store: &Store) -> BTreeMap<u64, String> {
    let options = crate::value::ReadOptions {
        topics: crate::value::TopicPatterns::everything(),
        ..Default::default()
    };
    let frames = store.read(&options).unwrap().flatten();
    frames
        .map(|frame| (frame.offset().unwrap(), format!("{} {:?}", frame.id(), frame.record())))
        .collect()
}

/// Repairs a damaged copy of a store; returns the report, and the contents of the new store.
fn saved(dir: &Path, change: impl FnOnce(&Path)) -> (RepairReport, BTreeMap<u64, String>) {
    let (image, into) = (crash(dir), fast_dir());
    change(image.path());
    let report = repair(image.path(), into.path(), &mut go_on).unwrap();
    let checked = check(into.path());
    let lost_blobs = |f: &&crate::maintain::Finding| f.problem != Problem::MissingBlob;
    assert!(checked.findings.iter().find(lost_blobs).is_none(), "{:#?}", checked.findings);
    let store = open(into.path(), SyncPolicy::None);
    assert_eq!(store.info().health, Health::Writable);
    assert_eq!((store.info().uuid, store.info().head), (report.uuid, report.head));
    let all = held(&store);
    // It is a normal store.
    let stamp = store.append(frame("after", 1).into()).unwrap().frames[0];
    assert_eq!(stamp.offset, Some(report.head));
    assert!(all.values().all(|text| *text < format!("{} ", stamp.id)), "ids go on");
    assert_eq!(store.cursors().len() as u64, report.cursors);
    store.close().unwrap();
    assert!(open(into.path(), SyncPolicy::None).get_at(report.head).unwrap().is_some());
    (report, all)
}

#[test]
fn a_sound_store_is_saved_whole() {
    let dir = fast_dir();
    build(dir.path());
    let (whole, before) = {
        let store = Store::open(dir.path(), none()).unwrap();
        let told = (held(&store), tell(&store));
        store.close().unwrap();
        told
    };
    for without_manifest in [false, true] {
        let (image, into) = (crash(dir.path()), fast_dir());
        if without_manifest {
            for name in ["super.a", "super.b"] {
                edit(&image.path().join(name), |bytes| bytes[30] ^= 1);
            }
            assert!(matches!(Store::open(image.path(), none()), Err(OpenError::Corrupt(_))));
        }
        let report = repair(image.path(), into.path(), &mut go_on).unwrap();
        assert_eq!((report.lost_total, report.frames_lost), (0, 0), "{report:#?}");
        assert_eq!(report.manifest_rebuilt, without_manifest);
        let store = Store::open(into.path(), none()).unwrap();
        assert!(held(&store) == whole && tell(&store) == before);
        assert_eq!(store.info().parent, report.source);
        assert!(store.info().parent.is_some());
    }
    // Without any manifest no store can be opened, but everything can be saved.
    let (image, into) = (crash(dir.path()), fast_dir());
    fs::remove_file(image.path().join("super.a")).unwrap();
    fs::remove_file(image.path().join("super.b")).unwrap();
    assert!(matches!(Store::open(image.path(), none()), Err(OpenError::NoManifest { .. })));
    let report = repair(image.path(), into.path(), &mut go_on).unwrap();
    assert!(report.frames as usize >= whole.len(), "{report:#?}");
    assert_eq!(report.lost_total, 0, "{report:#?}");
}

/// The index of a one-frame batch with a neighbour on either side.
fn among_neighbours(path: &Path, places: &[usize]) -> usize {
    let bytes = fs::read(path).unwrap();
    let header = |n: usize| BatchHeader::read(&bytes[places[n]..]).unwrap();
    let follows = |n: usize| header(n).base_offset == header(n - 1).base_offset + 1;
    (20..places.len() - 2)
        .find(|&n| (n..n + 2).all(follows) && header(n).count == 1 && header(n - 1).count == 1)
        .unwrap()
}

#[test]
fn what_is_lost_is_named_and_the_rest_keeps_its_place() {
    let dir = fast_dir();
    build(dir.path());
    let whole = held(&Store::open(dir.path(), none()).unwrap());
    let segment = segment_files(dir.path()).remove(0);
    let name = segment.strip_prefix(dir.path()).unwrap().to_owned();
    let places = batches(&segment);
    let n = among_neighbours(&segment, &places);
    // A damaged record loses one frame.
    let (report, all) = saved(dir.path(), |dir| {
        edit(&dir.join(&name), |bytes| bytes[places[n] + 64 + 33] ^= 1);
    });
    assert_eq!((report.frames_lost, report.lost_total), (1, 1), "{report:#?}");
    let lost = report.lost[0].offset.unwrap();
    assert_eq!(report.lost[0].severity, Severity::Lost);
    assert!(whole.iter().all(|(offset, text)| *offset == lost || all.get(offset) == Some(text)));
    // A damaged batch header loses nothing, because the record after it is valid.
    let (report, all) = saved(dir.path(), |dir| {
        edit(&dir.join(&name), |bytes| bytes[places[n] + 17] ^= 1);
    });
    assert_eq!((report.frames_lost, all == whole), (0, true), "{report:#?}");
    // A damaged file header loses nothing, because the batches are valid.
    let (report, all) = saved(dir.path(), |dir| edit(&dir.join(&name), |bytes| bytes[3] ^= 1));
    assert_eq!((report.frames_lost, all == whole), (0, true), "{report:#?}");
    // A hole.
    let (report, all) = saved(dir.path(), |dir| {
        edit(&dir.join(&name), |bytes| bytes[places[20]..places[60]].fill(0xff));
    });
    let range = report.lost[0].offset.unwrap()..report.lost[0].offset_end.unwrap();
    assert_eq!(report.frames_lost, range.end - range.start, "{report:#?}");
    let kept = |(offset, text): (&u64, &String)| match range.contains(offset) {
        true => !all.contains_key(offset),
        false => all.get(offset) == Some(text),
    };
    assert!(range.end - range.start >= 30 && whole.iter().all(kept));
    // A file.
    let (report, all) = saved(dir.path(), |dir| fs::remove_file(dir.join(&name)).unwrap());
    assert_eq!(report.lost[0].problem, Problem::Missing);
    let range = report.lost[0].offset.unwrap()..report.lost[0].offset_end.unwrap();
    assert!(report.frames_lost > 100 && report.frames_lost <= range.end - range.start);
    assert!(whole.iter().all(|(o, text)| range.contains(o) || all.get(o) == Some(text)));
}

#[test]
fn damaged_packs_cost_their_damaged_blobs() {
    let dir = fast_dir();
    build(dir.path());
    let blobs = dir.path().join("blobs");
    let packs = fs::read_dir(&blobs).unwrap().map(|entry| entry.unwrap().path());
    let mut packs: Vec<_> = packs.filter(|p| p.extension().unwrap() == "pack").collect();
    packs.sort();
    let sound = check(dir.path()).blobs;
    let name = packs[0].strip_prefix(dir.path()).unwrap();
    let (report, _) = saved(dir.path(), |dir| {
        edit(&dir.join(name), |bytes| {
            bytes.iter_mut().skip(200).step_by(3000).for_each(|b| *b ^= 1)
        });
    });
    assert!(report.blobs < sound && report.blobs > 0, "{report:#?}");
    let of = |problem| report.lost.iter().filter(|f| f.problem == problem).count();
    assert!(of(Problem::Blob) >= 1 && of(Problem::MissingBlob) >= 1, "{report:#?}");
    let (report, _) = saved(dir.path(), |dir| edit(&dir.join(name), |bytes| bytes[3] ^= 1));
    assert_eq!((report.blobs, report.lost_total), (sound, 0), "{report:#?}");
}

#[test]
fn the_cursors_survive_the_loss_of_their_checkpoint() {
    let dir = fast_dir();
    build(dir.path());
    let store = Store::open(dir.path(), none()).unwrap();
    // Compaction may have left them in the checkpoint alone.
    for CursorSummary { name, offset, .. } in store.cursors() {
        let state = store.cursor(&name).unwrap().unwrap().state;
        let change = cursor(name.as_str(), offset, &state);
        store.append(Batch { cursors: vec![change], ..Batch::default() }).unwrap();
    }
    let cursors = store.cursors();
    drop(store);
    let last = segment_files(dir.path()).pop().unwrap();
    let name = last.strip_prefix(dir.path()).unwrap();
    let places = batches(&last);
    let (image, into) = (crash(dir.path()), fast_dir());
    edit(&image.path().join(name), |bytes| bytes[places[0]..places[1]].fill(0xee));
    repair(image.path(), into.path(), &mut go_on).unwrap();
    let saved = Store::open(into.path(), none()).unwrap().cursors();
    assert!(!saved.is_empty() && saved == cursors);
}

#[test]
fn what_was_never_acknowledged_is_not_saved_behind_a_hole() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    (0..50).for_each(|n| drop(store.append(frame("a", n).into()).unwrap()));
    let image = crash(dir.path());
    let segment = segment_files(image.path()).remove(0);
    let places = batches(&segment);
    edit(&segment, |bytes| bytes[places[20] + 80] ^= 1);
    let into = fast_dir();
    let report = repair(image.path(), into.path(), &mut go_on).unwrap();
    let opened = open(image.path(), SyncPolicy::None).info().head;
    assert_eq!((report.head, report.frames), (opened, opened), "{report:#?}");
}

#[test]
fn what_was_closed_in_order_has_no_torn_end() {
    let (dir, copy) = (fast_dir(), fast_dir());
    let store = open(dir.path(), SyncPolicy::None);
    (0..50).for_each(|n| drop(store.append(frame("a", n).into()).unwrap()));
    // All of it is durable, but no header records that.
    store.backup(copy.path(), CopyOptions::copies(), &mut go_on).unwrap();
    let segment = segment_files(copy.path()).remove(0);
    let places = batches(&segment);
    assert_eq!(places.len(), 52, "a checkpoint, the frames, and the end");
    edit(&segment, |bytes| bytes[places[21] + 64 + 33] ^= 1);
    let into = fast_dir();
    let report = repair(copy.path(), into.path(), &mut go_on).unwrap();
    let told: Vec<_> = report.lost.iter().map(|lost| (lost.offset, lost.offset_end)).collect();
    assert_eq!((report.frames, report.frames_lost), (49, 1), "{report:#?}");
    assert_eq!((report.head, told), (50, vec![(Some(20), Some(21))]), "{report:#?}");
    // Truncated at the end of a batch, or blank from there on: how many frames followed is unknown.
    type Cut = fn(&mut Vec<u8>, usize);
    let cuts: [Cut; 2] = [|bytes, at| bytes.truncate(at), |bytes, at| bytes[at..].fill(0)];
    for cut in cuts {
        let image = crash(copy.path());
        edit(&segment_files(image.path())[0], |bytes| cut(bytes, places[31]));
        let into = fast_dir();
        let report = repair(image.path(), into.path(), &mut go_on).unwrap();
        let told: Vec<_> = report.lost.iter().map(|lost| (lost.position, lost.offset)).collect();
        let want = vec![(places[21] as u64 + 64, Some(20)), (places[31] as u64, Some(30))];
        assert_eq!((report.frames, told), (29, want), "{report:#?}");
    }
}

/// A closed store whose last segment has no frame, with a cursor at the head; returns the head.
fn closed_behind_its_last_frame(dir: &Path) -> u64 {
    let options = StoreOptions { segment_bytes: 8 * 1024 * 1024, ..none() };
    let store = Store::open(dir, options).unwrap();
    let long = format!("\"{}\"", "x".repeat(30_000));
    for _ in 0..430 {
        let meta = Meta::parse(long.clone()).unwrap();
        store.append(NewFrame { meta, ..frame("a", 0) }.into()).unwrap();
    }
    let head = store.info().head;
    let cursors = vec![cursor("job", head, b""), cursor("never", u64::MAX, b"")];
    store.append(Batch { cursors, ..Batch::default() }).unwrap();
    store.close().unwrap();
    head
}

#[test]
fn where_the_last_frames_are_lost_no_new_ones_get_their_offsets() {
    let dir = fast_dir();
    let head = closed_behind_its_last_frame(dir.path());
    let segments = segment_files(dir.path());
    let [.., sealed, last] = &segments[..] else { panic!("{segments:?}") };
    assert_eq!(batches(last).len(), 3, "a checkpoint, and the end");
    let sealed = sealed.strip_prefix(dir.path()).unwrap();
    let half = |path: &Path| edit(path, |bytes| bytes.truncate(bytes.len() / 2));
    let all = |path: &Path| fs::remove_file(path).unwrap();
    for (cut, with_manifest) in [(&all as &dyn Fn(&Path), true), (&half, true), (&half, false)] {
        let (image, into) = (crash(dir.path()), fast_dir());
        cut(&image.path().join(sealed));
        if !with_manifest {
            for name in ["super.a", "super.b"] {
                fs::remove_file(image.path().join(name)).unwrap();
            }
        }
        let report = repair(image.path(), into.path(), &mut go_on).unwrap();
        assert!(report.frames < head && report.head == head, "{report:#?}");
        assert_eq!(check(into.path()).findings, []);
        let store = Store::open(into.path(), none()).unwrap();
        let offset_of = |name| store.cursor(&CursorName::parse(name).unwrap()).unwrap().unwrap();
        let job = offset_of("job");
        let never = offset_of("never");
        assert_eq!((job.offset, never.offset), (head, u64::MAX));
        // A cursor that no frame has reached is reported, and refused to a reader that names its
        // epoch.
        assert_eq!(report.cursors_ahead, [CursorName::parse("never").unwrap()]);
        let point = ResumePoint { store: None, epoch: never.epoch, offset: never.offset };
        let refused = store.follow_from(&point, &ReadOptions::default());
        assert!(matches!(refused, Err(ReadError::CursorAhead { offset }) if offset == head));
        // A reader that continues from there, in any way, sees what is appended now and nothing
        // else.
        let start = Start::From(Bound::Offset(job.offset));
        let options = ReadOptions { start, ..ReadOptions::default() };
        let point = ResumePoint { store: None, epoch: job.epoch, offset: job.offset };
        let mut follower = store.follow_from(&point, &options).unwrap();
        let stamp = store.append(frame("a", 7).into()).unwrap().frames[0];
        let import = Some(Import::Verbatim(vec![stamp.id.next()]));
        store.append(Batch { import, ..frame("a", 8).into() }).unwrap();
        let offsets = |reader: Reader| reader.map(|f| f.unwrap().offset().unwrap()).collect();
        let seen: Vec<u64> = offsets(store.read(&options).unwrap());
        let resumed: Vec<u64> = offsets(store.read_from(&point, &options).unwrap());
        assert_eq!((stamp.offset, &seen, &resumed), (Some(head), &vec![head, head + 1], &seen));
        let caught_up = follower.try_recv().unwrap();
        assert!(matches!(caught_up, Some(FollowerEvent::CaughtUp { head: at }) if at == head));
        let Some(FollowerEvent::Frame(first)) = follower.try_recv().unwrap() else {
            panic!("no frame")
        };
        assert_eq!(first.offset(), Some(head));
        // Across the hole.
        let start = Start::Last(3);
        let last = ReadOptions { start, ..ReadOptions::default() };
        let newest: Vec<u64> = offsets(store.read(&last).unwrap());
        assert_eq!(newest, [report.frames - 1, head, head + 1]);
        assert!(store.get_at(report.frames).unwrap().is_none());
        store.compact(CompactOptions { dead_percent: 1, bytes_per_second: None }).unwrap();
        let whole = held(&store);
        store.close().unwrap();
        drop(store);
        assert_eq!(check(into.path()).findings, []);
        let store = Store::open(into.path(), none()).unwrap();
        assert!(store.info().head == head + 2 && held(&store) == whole);
    }
}

#[test]
fn a_sealed_segment_that_ends_too_early_is_told() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    (0..2000).for_each(|n| drop(store.append(frame("a", n).into()).unwrap()));
    store.close().unwrap();
    drop(store);
    let segments = segment_files(dir.path());
    assert!(segments.len() > 2);
    let name = segments[1].strip_prefix(dir.path()).unwrap();
    let places = batches(&segments[1]);
    let base = |path: &Path| -> u64 {
        path.file_name().unwrap().to_str().unwrap().split('.').next().unwrap().parse().unwrap()
    };
    let (first, end) = (base(&segments[1]), base(&segments[2]));
    let frames = (places.len() - 2) as u64;
    assert_eq!(first + frames, end);
    type Cut = fn(&mut Vec<u8>, usize);
    let cuts: [(Cut, u64); 4] = [
        (|bytes, at| bytes.truncate(at), 1),
        (|bytes, at| bytes[at..].fill(0), 1),
        // Within a batch: that batch, and those after it.
        (|bytes, at| bytes.truncate(at + 80), 2),
        (|bytes, at| bytes[at + 8..].fill(0), 1),
    ];
    for (number, (cut, told)) in cuts.into_iter().enumerate() {
        for left in [1, 20, frames as usize] {
            let (report, all) = saved(dir.path(), |dir| {
                edit(&dir.join(name), |bytes| cut(bytes, places[left]));
            });
            let missing = frames + 1 - left as u64;
            let ranges = || report.lost.iter().map(|lost| lost.offset.unwrap());
            assert_eq!(report.frames_lost, missing, "{number} {left} {report:#?}");
            assert_eq!(report.lost_total, told.min(missing), "{number} {left} {report:#?}");
            assert_eq!(ranges().min(), Some(end - missing), "{number} {left} {report:#?}");
            let last = report.lost.iter().map(|lost| lost.offset_end.unwrap()).max();
            assert_eq!((last, all.len() as u64), (Some(end), 2000 - missing), "{report:#?}");
        }
    }
}

#[test]
fn a_durable_end_of_an_unmarked_segment_is_not_passed_over() {
    let dir = fast_dir();
    let (image, path) = super::two_unmarked(dir.path());
    let places = batches(&path);
    let frames = places.len() as u64 - 2;
    let into = fast_dir();
    let whole = repair(image.path(), into.path(), &mut go_on).unwrap();
    // The roll was caused by one frame, and another was appended after it.
    assert_eq!((whole.lost_total, whole.frames), (0, frames + 2), "{whole:#?}");
    edit(&path, |bytes| bytes[places[places.len() - 4]..].fill(0));
    let into = fast_dir();
    let report = repair(image.path(), into.path(), &mut go_on).unwrap();
    assert_eq!((report.frames_lost, report.lost_total), (3, 1), "{report:#?}");
    let told = (report.lost[0].offset, report.lost[0].offset_end);
    assert_eq!(told, (Some(frames - 3), Some(frames)), "{report:#?}");
}

#[test]
fn any_damage_is_survived() {
    let dir = fast_dir();
    build(dir.path());
    let whole = held(&Store::open(dir.path(), none()).unwrap());
    let mut seed = 11u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as usize % below
    };
    for round in 0..40 {
        let (report, all) = saved(dir.path(), |image| {
            let mut files = Vec::new();
            for sub in ["log", "blobs", ""] {
                let listed = fs::read_dir(image.join(sub)).unwrap();
                files.extend(listed.map(|e| e.unwrap().path()).filter(|path| path.is_file()));
            }
            files.sort();
            for _ in 0..4 {
                let path = &files[random(files.len())];
                edit(path, |bytes| {
                    let at = random(bytes.len().max(1));
                    match random(3) {
                        0 => bytes.truncate(at),
                        1 => {
                            bytes.iter_mut().skip(at).take(500).for_each(|b| *b = random(256) as u8)
                        }
                        _ => bytes.iter_mut().skip(at).take(1).for_each(|b| *b ^= 1 << random(8)),
                    }
                });
            }
        });
        // Frames that a lost frame or tombstone had removed reappear.
        let same = |(offset, text)| whole.get(offset).is_none_or(|before| before == text);
        assert!(all.iter().all(same), "round {round}: {report:#?}");
    }
}

#[test]
fn what_cannot_be_repaired_is_refused() {
    let (dir, into) = (fast_dir(), fast_dir());
    let nothing = repair(dir.path(), into.path(), &mut go_on);
    assert!(matches!(nothing, Err(MaintainError::NoStore { .. })), "{nothing:?}");
    build(dir.path());
    let other = fast_dir();
    build(other.path());
    let full = repair(dir.path(), other.path(), &mut go_on);
    assert!(matches!(full, Err(MaintainError::NotEmpty { .. })), "{full:?}");
    let mut at = 0;
    let stopped = repair(dir.path(), into.path(), &mut |_| {
        at += 1;
        match at > 9 {
            true => std::ops::ControlFlow::Break(()),
            false => std::ops::ControlFlow::Continue(()),
        }
    });
    assert!(matches!(stopped, Err(MaintainError::Stopped)), "{stopped:?}");
    let store = Store::open(dir.path(), none()).unwrap();
    let used = repair(dir.path(), fast_dir().path(), &mut go_on);
    assert!(matches!(used, Err(MaintainError::Open(OpenError::Locked { .. }))), "{used:?}");
    store.close().unwrap();
}

#[test]
fn a_power_cut_leaves_no_store_or_the_whole_one() {
    let (home, dest) = (fast_dir(), fast_dir());
    build(home.path());
    let whole = held(&Store::open(home.path(), none()).unwrap());
    let disk = SimDisk::new(&Image::new(), dest.path(), MediaChoice::Positioned);
    let to: Arc<dyn Files> = Arc::new(disk.clone());
    let from: Arc<dyn Files> = Arc::new(Disk::new(MediaChoice::Positioned, home.path()));
    let images = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&images);
    disk.watch(move |number, moment| kept.lock().push(moment.power_cut(number)));
    repair_files(home.path(), from, dest.path(), to, &mut go_on).unwrap();
    disk.unwatch();
    images.lock().push(disk.moment().power_cut(1));
    let mut whole_ones = 0;
    for (cut_at, image) in images.lock().drain(..).enumerate() {
        let left = SimDisk::new(&image, dest.path(), MediaChoice::Positioned);
        let files: Arc<dyn Files> = Arc::new(left);
        match open_on(dest.path(), options(SyncPolicy::None), files) {
            Ok(store) if held(&store).is_empty() => assert_eq!(store.info().head, 0),
            Ok(store) => {
                assert!(held(&store) == whole, "cut at {cut_at}");
                whole_ones += 1;
            }
            Err(OpenError::NoManifest { .. }) => {}
            Err(error) => panic!("cut at {cut_at}: {error}"),
        }
    }
    assert!(whole_ones > 0);
}
