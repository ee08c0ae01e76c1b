use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::io::Errno;

use super::*;
use crate::append::Batch;
use crate::clock::Clock as _;
use crate::format::super_file::{FileKind, FileState};
use crate::limits::JOURNAL_HALF_BYTES_MIN;
use crate::maintain::{CopyOptions, Progress, repair, verify};
use crate::media::faulty::Faults;
use crate::media::sim::{Image, SimDisk};
use crate::options::{JournalOptions, MediaChoice, StoreOptions, SyncPolicy};
use crate::store::Health;
use crate::testing::{
    StillClock, crash, crash_now, edit, fast_dir, frame, open, open_faulty, open_on, options,
    segment_files,
};
use crate::value::{Body, Meta, NewFrame, ReadOptions, Removal, Topic, TopicPatterns, Ttl};

const ALL: CompactOptions = CompactOptions { dead_percent: 1, bytes_per_second: None };

/// A frame with a number and a long meta.
fn heavy(topic: &str, n: u64) -> NewFrame {
    let meta = Meta::parse(format!("[{n},\"{}\"]", "x".repeat(400))).unwrap();
    NewFrame { meta, ..NewFrame::new(Topic::parse(topic).unwrap()) }
}

fn last(keep: u64, new: NewFrame) -> NewFrame {
    NewFrame { ttl: Ttl::Last(NonZeroU64::new(keep).unwrap()), ..new }
}

fn append(store: &Store, new: NewFrame) -> FrameId {
    store.append(new.into()).unwrap().frames[0].id
}

/// The offsets of all frames, read in every possible way.
fn offsets(store: &Store) -> Vec<u64> {
    let read = |options: &ReadOptions| -> Vec<u64> {
        let frames = store.read(options).unwrap().map(|frame| frame.unwrap());
        frames.map(|frame| frame.offset().unwrap()).collect()
    };
    let all = ReadOptions::default();
    let found = read(&all);
    let mut reverse = read(&ReadOptions { reverse: true, ..all.clone() });
    reverse.reverse();
    assert_eq!(found, reverse);
    for stats in store.topics(&TopicPatterns::all()) {
        let of_topic = read(&ReadOptions { topics: stats.topic.clone().into(), ..all.clone() });
        assert_eq!(of_topic.len() as u64, stats.count, "{}", stats.topic.as_str());
        assert_eq!(of_topic.last(), Some(&stats.last_offset));
        let first = store.get_at(of_topic[0]).unwrap().unwrap();
        assert_eq!((first.id(), first.topic()), (stats.first, stats.topic.as_str()));
        assert_eq!(store.get(stats.last).unwrap().unwrap().offset(), Some(stats.last_offset));
    }
    let head = store.info().head;
    let got = (0..head).filter(|&at| store.get_at(at).unwrap().is_some()).collect::<Vec<_>>();
    assert_eq!(found, got);
    let newest = store.last_per_topic(&TopicPatterns::all()).unwrap();
    assert!(newest.iter().all(|frame| found.contains(&frame.offset().unwrap())));
    assert_eq!(newest.len(), store.topics(&TopicPatterns::all()).len());
    found
}

fn log_bytes(dir: &Path) -> u64 {
    let sealed = segment_files(dir).into_iter().map(|path| fs::metadata(path).unwrap().len());
    sealed.sum()
}

/// Whether any file of a store contains these bytes. If a file was renamed or removed since the
/// listing, all files are searched again.
fn holds(dir: &Path, needle: &[u8]) -> bool {
    for _ in 0..100 {
        match holds_now(dir, needle) {
            Ok(found) => return found,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}"),
        }
    }
    panic!("the files of {} do not come to rest", dir.display());
}

fn holds_now(dir: &Path, needle: &[u8]) -> io::Result<bool> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let found = match path.is_dir() {
            true => holds_now(&path, needle)?,
            false => fs::read(&path)?.windows(needle.len()).any(|bytes| bytes == needle),
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Fills three segments or more with kept, removed and `last:2` frames; returns the offsets that
/// remain.
fn mixed(store: &Store) -> Vec<u64> {
    let mut left = Vec::new();
    let mut states = Vec::new();
    for n in 0..600 {
        let new = match n % 6 {
            0 => heavy("keep", n),
            1 => last(2, heavy("state", n)),
            2 => last(1, heavy(&format!("many.{}", n % 30), n)),
            3 => heavy("keep", n),
            _ => heavy("junk", n),
        };
        let id = append(store, new);
        match n % 6 {
            0 => left.push(n),
            1 => states.push(n),
            2 if n >= 570 => left.push(n),
            2 => {}
            _ => assert_eq!(store.remove(id).unwrap(), Removal::Removed),
        }
    }
    left.extend(&states[states.len() - 2..]);
    left.sort_unstable();
    left
}

#[test]
fn what_is_dead_goes_and_all_else_stays() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let left = mixed(&store);
    assert_eq!(offsets(&store), left);
    let before = (store.info().segments, log_bytes(dir.path()));
    assert!(before.0 > 4);
    let report = store.compact(ALL).unwrap();
    assert!(report.frames > 300 && report.damaged.is_empty(), "{report:?}");
    assert!(store.info().segments < before.0 && log_bytes(dir.path()) < before.1 / 2);
    assert_eq!(offsets(&store), left);
    let names = || -> Vec<_> {
        let names = fs::read_dir(dir.path().join("log")).unwrap();
        let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let listed = |store: &Store| {
        let manifest = store.inner.env.manifest.state();
        let sealed = manifest
            .files
            .iter()
            .filter(|file| file.kind == FileKind::Segment && file.state == FileState::Sealed);
        sealed.map(|file| (file.base, file.count, file.crc)).collect::<Vec<_>>()
    };
    for (base, count, crc) in listed(&store) {
        let segment = store.inner.log.view().segments.iter().find(|of| of.base() == base).cloned();
        let bytes = fs::read(segment.unwrap().path()).unwrap();
        assert_eq!(crc32fast::hash(&bytes), crc, "{base} {count}");
    }
    // A second compaction has nothing to do.
    let again = store.compact(ALL).unwrap();
    assert_eq!(again.frames, 0, "{again:?}");
    let image = crash(dir.path());
    store.close().unwrap();
    drop(store);
    let kept = names();
    assert!(kept.iter().all(|name| !name.to_string_lossy().ends_with(".tmp")), "{kept:?}");
    for dir in [dir.path(), image.path()] {
        let store = open(dir, SyncPolicy::None);
        assert_eq!((store.info().health, offsets(&store)), (Health::Writable, left.clone()));
        let next = store.append(frame("a", 1).into()).unwrap().frames[0].offset;
        assert_eq!(next, Some(600));
    }
}

#[test]
fn derived_files_are_made_again_from_compacted_segments() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let mut left = mixed(&store);
    store.compact(ALL).unwrap();
    // A removal after compaction, of a frame in a compacted segment.
    let victim = store.get_at(left[3]).unwrap().unwrap();
    assert_eq!(store.remove(victim.id()).unwrap(), Removal::Removed);
    left.remove(3);
    store.close().unwrap();
    drop(store);
    for damage in [false, true] {
        for kind in FileKind::Segment.derived() {
            let image = crash(dir.path());
            for entry in fs::read_dir(image.path().join("log")).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|found| found == *kind) {
                    match damage {
                        true => edit(&path, |bytes| bytes[70] ^= 1),
                        false => fs::remove_file(path).unwrap(),
                    }
                }
            }
            for _ in 0..2 {
                let store = open(image.path(), SyncPolicy::None);
                assert_eq!(offsets(&store), left, "{kind} {damage}");
            }
        }
    }
}

#[test]
fn compacted_stores_are_verified_copied_and_repaired() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let left = mixed(&store);
    assert!(store.compact(ALL).unwrap().frames > 300);
    let watch = &mut |_: &Progress<'_>| ControlFlow::Continue(());
    let (backup, fork, saved) = (fast_dir(), fast_dir(), fast_dir());
    store.backup(backup.path(), CopyOptions::links(), watch).unwrap();
    store.fork(fork.path()).unwrap();
    assert_eq!(store.verify(watch).unwrap().findings, []);
    store.close().unwrap();
    drop(store);
    let verified = verify(dir.path(), watch).unwrap();
    assert_eq!(verified.findings, []);
    assert_eq!(offsets(&open(fork.path(), SyncPolicy::None)), left);
    let repaired = repair(dir.path(), saved.path(), watch).unwrap();
    assert_eq!((repaired.lost_total, repaired.frames_lost), (0, 0), "{repaired:#?}");
    assert_eq!(numbers_left(&open(saved.path(), SyncPolicy::None)), left);
}

#[test]
fn a_floor_outlives_the_frame_that_caused_it() {
    let dir = fast_dir();
    let clock = StillClock::at(1_000_000);
    let with_clock = || StoreOptions { clock: clock.clone(), ..options(SyncPolicy::None) };
    let store = Store::open(dir.path(), with_clock()).unwrap();
    let fill = |upto: u64| {
        for n in 0..upto {
            append(&store, heavy("fill", n));
        }
    };
    // The first segment is full of live frames, and stays as it is.
    append(&store, heavy("t", 0));
    fill(126);
    let timed = NewFrame { ttl: Ttl::TimeMs(1000), ..heavy("t", 1) };
    append(&store, timed);
    let cause = append(&store, last(2, heavy("t", 2)));
    let junk: Vec<_> = (0..250).map(|n| append(&store, heavy("junk", n))).collect();
    fill(200);
    // Of `t` only the superseding frame is left, then nothing; the first one must not reappear.
    clock.0.fetch_add(5000, Ordering::Relaxed);
    for id in junk.into_iter().chain([cause]) {
        store.remove(id).unwrap();
    }
    let of_t = |store: &Store| {
        let t: TopicPatterns = Topic::parse("t").unwrap().into();
        store.read(&ReadOptions { topics: t, ..ReadOptions::default() }).unwrap().count()
    };
    assert_eq!(of_t(&store), 0);
    let report = store.compact(CompactOptions { dead_percent: 60, ..ALL }).unwrap();
    assert!(report.frames >= 250, "{report:?}");
    let is_stored = |at| store.inner.stored_at(at).unwrap().is_some();
    assert_eq!([0, 127, 128].map(is_stored), [true, false, false]);
    assert_eq!(of_t(&store), 0);
    store.close().unwrap();
    drop(store);
    for kind in ["none", "top", "dead"] {
        let image = crash(dir.path());
        for entry in fs::read_dir(image.path().join("log")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|found| found == kind) {
                fs::remove_file(path).unwrap();
            }
        }
        let store = Store::open(image.path(), with_clock()).unwrap();
        assert_eq!(of_t(&store), 0, "{kind}");
        append(&store, heavy("t", 3));
        assert_eq!(of_t(&store), 1);
        append(&store, last(2, heavy("t", 4)));
        assert_eq!(of_t(&store), 2);
    }
}

#[test]
fn readers_and_followers_go_on() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let left = mixed(&store);
    let by_topic = |name: &str| ReadOptions {
        topics: TopicPatterns::parse(name).unwrap(),
        ..ReadOptions::default()
    };
    let mut readers: Vec<_> = ["*", "keep", "many.*", "keep,state"]
        .iter()
        .flat_map(|name| [false, true].map(|reverse| ReadOptions { reverse, ..by_topic(name) }))
        .map(|options| {
            let expected = store.read(&options).unwrap().flatten();
            let expected: Vec<_> = expected.map(|frame| frame.offset().unwrap()).collect();
            (store.read(&options).unwrap(), expected)
        })
        .collect();
    let mut follower = store.follow(&ReadOptions::default()).unwrap();
    let mut followed = Vec::new();
    let mut take = |store: &Store, count: usize| {
        for _ in 0..count {
            if let Some(crate::FollowerEvent::Frame(frame)) = follower.try_recv().unwrap() {
                followed.push(frame.offset().unwrap());
            }
        }
        let _ = store;
    };
    let mut found = vec![Vec::new(); readers.len()];
    for ((reader, _), found) in readers.iter_mut().zip(&mut found) {
        found.extend(reader.by_ref().take(5).map(|frame| frame.unwrap().offset().unwrap()));
    }
    take(&store, 7);
    let report = store.compact(ALL).unwrap();
    assert!(report.frames > 300);
    for ((reader, expected), found) in readers.iter_mut().zip(&mut found) {
        found.extend(reader.map(|frame| frame.unwrap().offset().unwrap()));
        assert_eq!(found, expected);
    }
    take(&store, 1000);
    assert_eq!(followed, left);
    drop(readers);
    store.compact(ALL).unwrap();
    assert_eq!(offsets(&store), left);
}

#[test]
fn disk_use_converges_under_last_1() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    const SEGMENT: u64 = 64 * 1024;
    let mut highest = 0;
    for n in 0..20_000u64 {
        append(&store, last(1, heavy(&format!("state.{}", n % 7), n)));
        if n % 500 == 499 {
            store.compact(CompactOptions { dead_percent: 50, ..ALL }).unwrap();
            highest = highest.max(log_bytes(dir.path()));
            assert!(store.info().segments <= 4, "{:?}", store.info());
            // Nothing of the removed segments is left in memory either.
            assert!(store.inner.index.segments().len() <= 4);
        }
    }
    // 10 MB were written. A full active segment and a few small ones remain.
    assert!(highest <= 4 * SEGMENT, "{highest}");
    assert_eq!(numbers_left(&store), (19_993..20_000).collect::<Vec<_>>());
    let manifest = store.inner.env.manifest.state();
    assert!(manifest.files.len() <= 6, "{}", manifest.files.len());
}

fn numbers_left(store: &Store) -> Vec<u64> {
    let frames = store.read(&ReadOptions::default()).unwrap().flatten();
    frames.map(|frame| frame.offset().unwrap()).collect()
}

#[test]
fn removals_alone_fill_segments_and_go_again() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let ids: Vec<_> = (0..4000).map(|n| append(&store, frame("a", n))).collect();
    for ids in ids.chunks(50) {
        let batch = Batch { removes: ids.to_vec(), ..Batch::default() };
        let removed = store.append(batch).unwrap().removed;
        assert!(removed.iter().all(|removal| *removal == Removal::Removed));
    }
    assert_eq!(offsets(&store), [0; 0]);
    let image = crash(dir.path());
    let check = |store: &Store| {
        assert_eq!(store.info().health, Health::Writable);
        assert_eq!(offsets(store), [0; 0]);
        assert!(store.topics(&TopicPatterns::all()).is_empty());
        assert_eq!(store.remove(ids[7]).unwrap(), Removal::Absent);
    };
    check(&open(image.path(), SyncPolicy::None));
    store.close().unwrap();
    drop(store);
    let store = open(dir.path(), SyncPolicy::None);
    check(&store);
    let before = store.info().segments;
    for _ in 0..3 {
        store.compact(ALL).unwrap();
    }
    assert!(before > 8 && store.info().segments <= 3, "{before}: {:?}", store.info());
    let appended = append(&store, frame("a", 1));
    assert!(store.get(appended).unwrap().is_some());
    store.close().unwrap();
    drop(store);
    let store = open(dir.path(), SyncPolicy::None);
    assert_eq!(offsets(&store).len(), 1);
}

#[test]
fn a_damaged_segment_stays_as_it_is() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let left = mixed(&store);
    store.close().unwrap();
    drop(store);
    let path = segment_files(dir.path()).remove(1);
    let places = crate::testing::batches(&path);
    edit(&path, |bytes| bytes[places[8] + 80] ^= 1);
    let before = fs::read(&path).unwrap();
    let store = open(dir.path(), SyncPolicy::None);
    let visible = numbers_left(&store).len();
    let report = store.compact(ALL).unwrap();
    assert_eq!(report.damaged.len(), 1, "{report:?}");
    assert_eq!((&report.damaged[0].path, fs::read(&path).unwrap()), (&path, before));
    assert_eq!(numbers_left(&store).len(), visible);
    assert!(visible >= left.len() - 1);
    store.close().unwrap();
}

#[test]
fn compaction_may_fail_or_be_cut_off_at_each_operation() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let left = mixed(&store);
    store.close().unwrap();
    drop(store);
    for (errno, forever) in [(Errno::IO, false), (Errno::IO, true), (Errno::NOSPC, true)] {
        let mut outcomes = BTreeMap::new();
        for k in 1.. {
            let image = crash(dir.path());
            let faults = Faults::none();
            let store = open_faulty(image.path(), options(SyncPolicy::None), &faults).unwrap();
            let opened = faults.count();
            faults.set(opened + k, if forever { u64::MAX } else { opened + k }, errno);
            let done = store.compact(ALL);
            let hit = faults.count() >= opened + k;
            // Readers of the store notice nothing.
            assert_eq!(numbers_left(&store), left, "{errno:?} {k}: {done:?}");
            let cut = crash_now(image.path(), &faults);
            faults.clear();
            drop(store);
            *outcomes.entry(done.is_ok()).or_insert(0) += 1;
            for dir in [cut.path(), image.path()] {
                let store = open(dir, SyncPolicy::None);
                assert_eq!(store.info().health, Health::Writable, "{errno:?} {k}");
                assert_eq!(offsets(&store), left, "{errno:?} {k}");
                store.compact(ALL).unwrap();
                assert_eq!(offsets(&store), left, "{errno:?} {k}");
                append(&store, frame("a", 1));
            }
            if !hit {
                break;
            }
        }
        assert!(outcomes.len() == 2 && outcomes[&false] > 3, "{outcomes:?}");
    }
}

/// Frames that must exist, and frames that must not, after a power cut.
#[derive(Debug, Default, Clone)]
struct Promised {
    kept: Vec<FrameId>,
    removed: Vec<FrameId>,
}

/// A workload with compactions; snapshots of the disk, and what was promised by then.
fn live(dir: &Path, sync: SyncPolicy, seed: u64) -> Vec<(Image, Promised, u64)> {
    let disk = SimDisk::new(&Image::new(), dir, MediaChoice::Auto);
    let promised = Arc::new(Mutex::new(Promised::default()));
    let left = Arc::new(Mutex::new(Vec::new()));
    let (watched, kept) = (Arc::clone(&promised), Arc::clone(&left));
    disk.watch(move |operation, moment| {
        if operation % 4 == seed {
            let promised = watched.lock().clone();
            kept.lock().push((moment.power_cut(seed + operation), promised, operation));
        }
    });
    let store = open_on(dir, options(sync), Arc::new(disk.clone())).unwrap();
    let mut doubtful = Promised::default();
    for n in 0..480 {
        let durable = n % 40 == 39;
        let newest = match n % 3 {
            0 => Vec::new(),
            _ => store.last(&Topic::parse("junk").unwrap().into(), 1).unwrap(),
        };
        let removes: Vec<_> = newest.iter().map(crate::Frame::id).collect();
        let topic = if n % 3 == 0 { "keep" } else { "junk" };
        let frames = vec![heavy(topic, n)];
        let batch = Batch { frames, removes: removes.clone(), durable, ..Batch::default() };
        let id = store.append(batch).unwrap().frames[0].id;
        doubtful.kept.extend((topic == "keep").then_some(id));
        doubtful.removed.extend(removes);
        if durable || sync == SyncPolicy::Sync {
            *promised.lock() = doubtful.clone();
        }
        if n % 160 == 159 {
            let report = store.compact(ALL).unwrap();
            assert!(report.frames > 20, "{report:?}");
        }
    }
    store.close().unwrap();
    disk.unwatch();
    drop(store);
    std::mem::take(&mut *left.lock())
}

#[test]
fn a_power_cut_during_compaction_takes_nothing_and_brings_nothing_back() {
    let dir = fast_dir();
    for (sync, seed) in [(SyncPolicy::Sync, 0), (SyncPolicy::None, 1), (SyncPolicy::None, 2)] {
        let cuts = live(dir.path(), sync, seed);
        assert!(cuts.len() > 30, "{}", cuts.len());
        for (image, promised, operation) in cuts {
            let what = format!("{sync} cut at {operation}, seed {seed}");
            let disk = SimDisk::new(&image, dir.path(), MediaChoice::Auto);
            let store = open_on(dir.path(), options(sync), Arc::new(disk.clone())).expect(&what);
            assert_eq!(store.info().health, Health::Writable, "{what}");
            for id in &promised.kept {
                assert!(store.get(*id).unwrap().is_some(), "{what}: {id} is lost");
            }
            for id in &promised.removed {
                assert!(store.get(*id).unwrap().is_none(), "{what}: {id} is back");
            }
            let left = offsets(&store);
            store.compact(ALL).unwrap();
            assert_eq!(offsets(&store), left, "{what}");
            append(&store, frame("a", 1));
            store.close().unwrap();
        }
    }
}

#[test]
fn what_is_removed_now_leaves_no_bytes() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let mut secrets = Vec::new();
    for n in 0..300 {
        let text = format!("secret-{n}-{}", "y".repeat(300));
        let meta = Meta::parse(format!("\"{text}\"")).unwrap();
        // Two of three frames share a body.
        let body = Body::Inline(Bytes::from(format!("body-{}-{}", n - n % 3 / 2, "z".repeat(90))));
        let id = append(&store, NewFrame { meta, body, ..frame("a", n) });
        secrets.push((id, text));
    }
    // In the first segment, twice; removed before; in the last sealed segment; in the active one.
    store.remove(secrets[9].0).unwrap();
    let chosen = [3, 4, 9, 180, 299];
    assert!(chosen.iter().all(|&n| holds(dir.path(), secrets[n].1.as_bytes())));
    let ids: Vec<_> = chosen.iter().map(|&n| secrets[n].0).collect();
    let report = store.remove_now(&ids).unwrap();
    // Frame 4 shares its body with 5, which stays, and 299 with 298.
    assert_eq!(report.named.len(), 2, "{report:?}");
    let body = |n: u64| format!("body-{n}-{}", "z".repeat(90));
    assert!(
        [3, 9, 180].iter().all(|&n| !store.has_blob(&BlobHash::of(body(n).as_bytes())).unwrap())
    );
    assert!([4, 298].iter().all(|&n| store.has_blob(&BlobHash::of(body(n).as_bytes())).unwrap()));
    assert!(!holds(dir.path(), body(3).as_bytes()) && !holds(dir.path(), body(9).as_bytes()));
    let fifth = store.get(secrets[5].0).unwrap().unwrap();
    let kept = store.blob(&fifth.hash().unwrap()).unwrap().unwrap().bytes(1 << 10).unwrap();
    assert!(kept.starts_with(body(4).as_bytes()));
    for (n, (id, text)) in secrets.iter().enumerate() {
        let gone = chosen.contains(&n);
        assert_eq!(holds(dir.path(), text.as_bytes()), !gone, "{n}");
        assert_eq!(store.get(*id).unwrap().is_none(), gone, "{n}");
    }
    assert_eq!(offsets(&store).len(), 295);
    assert_eq!(store.remove_now(&[FrameId::MAX]).unwrap(), CompactReport::default());
    append(&store, frame("a", 1));
    let image = crash(dir.path());
    store.close().unwrap();
    drop(store);
    for dir in [dir.path(), image.path()] {
        let store = open(dir, SyncPolicy::None);
        assert_eq!((store.info().health, offsets(&store).len()), (Health::Writable, 296));
    }
}

#[test]
fn the_number_of_a_segment_that_dissolved_is_not_used_again() {
    let (dir, clock) = (fast_dir(), StillClock::at(1_000_000));
    let options = StoreOptions { clock: clock.clone(), ..options(SyncPolicy::None) };
    let store = Store::open(dir.path(), options).unwrap();
    // The number of the last segment, which this seals.
    let seal = || {
        let base = store.inner.index.segments().last().unwrap().segment().base();
        assert!(store.inner.secure_log_of(&[base]).unwrap());
        store.inner.index.candidates(clock.now_ms(), true).last().unwrap().ordinal
    };
    append(&store, NewFrame { ttl: Ttl::TimeMs(1000), ..heavy("a", 1) });
    let dissolved = seal();
    clock.0.store(2_000_000, Ordering::Relaxed);
    store.compact(ALL).unwrap();
    assert_eq!(store.inner.index.segments().len(), 0, "nothing is left of it");
    // A reader that began earlier still has its number in its list.
    append(&store, heavy("a", 2));
    assert!(dissolved < seal());
}

#[test]
fn a_compaction_in_between_does_not_keep_what_is_removed_now() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let body = |n: u64| format!("body-{n}-{}", "z".repeat(90));
    let ids: Vec<_> = (0..300)
        .map(|n| append(&store, NewFrame { body: Body::Inline(body(n).into()), ..frame("a", n) }))
        .collect();
    let stored = store.inner.stored_with(&ids[3..5]).unwrap();
    for &id in &ids[3..5] {
        store.remove(id).unwrap();
    }
    // A compaction removes the frames, and leaves the bodies to gc.
    let frames = stored.iter().map(|&(offset, _)| (offset, None)).collect();
    store.inner.rewrite_without(frames).unwrap();
    assert!(store.inner.stored_with(&ids[3..5]).unwrap().is_empty());
    let there = |n: u64| store.has_blob(&BlobHash::of(body(n).as_bytes())).unwrap();
    assert!(there(3) && there(4));
    store.inner.rewrite_without(stored).unwrap();
    assert!(!there(3) && !there(4) && there(5) && !holds(dir.path(), body(3).as_bytes()));
}

#[test]
fn what_is_removed_now_is_not_in_the_journal_either() {
    let dir = fast_dir();
    let journal = JournalOptions { half_bytes: JOURNAL_HALF_BYTES_MIN, after_groups: 0 };
    let options = StoreOptions { journal, ..options(SyncPolicy::Sync) };
    let store = Store::open(dir.path(), options.clone()).unwrap();
    let secret = |n: u64| format!("secret-{n}-{}", "y".repeat(300));
    let ids: Vec<_> = (0..8)
        .map(|n| {
            let meta = Meta::parse(format!("\"{}\"", secret(n))).unwrap();
            append(&store, NewFrame { meta, ..frame("a", n) })
        })
        .collect();
    let file = dir.path().join("journal");
    let in_journal = |n| holds_in(&file, secret(n).as_bytes());
    assert!((0..8).all(in_journal));
    store.remove_now(&ids[2..4]).unwrap();
    assert!((2..4).all(|n| !holds(dir.path(), secret(n).as_bytes())));
    // The frames in it were copied to their segment, and it stays in use.
    append(&store, frame("a", 9));
    let image = crash(dir.path());
    let opened = Store::open(image.path(), options.clone()).unwrap();
    assert_eq!((opened.info().health, offsets(&opened).len()), (Health::Writable, 7));
    // Removed before, in a journal that is not open.
    drop(opened);
    let again = crash(dir.path());
    let opened = Store::open(again.path(), StoreOptions { journal: NONE, ..options }).unwrap();
    assert!(again.path().join("journal").exists());
    opened.remove_now(&ids[2..4]).unwrap();
    assert!(!again.path().join("journal").exists());
}

const NONE: JournalOptions = JournalOptions { half_bytes: 0, after_groups: 0 };

fn holds_in(file: &Path, needle: &[u8]) -> bool {
    fs::read(file).unwrap().windows(needle.len()).any(|window| window == needle)
}

#[test]
fn reports_are_added_up_with_all_they_tell() {
    let met = |at| Corruption::new("a.seg", at, "what");
    let step = |at, blob: &[u8]| CompactReport {
        rewritten: 1,
        written: 2,
        frames: 3,
        bytes_before: 4,
        bytes_after: 5,
        damaged: vec![met(0), met(at)],
        named: vec![BlobHash::of(b"0"), BlobHash::of(blob)],
    };
    let mut report = CompactReport::default();
    report.add(step(1, b"1"));
    assert_eq!(report, step(1, b"1"), "to nothing");
    report.add(step(2, b"2"));
    assert_eq!(report.damaged, [0, 1, 2].map(met));
    assert_eq!(report.named, [b"0", b"1", b"2"].map(|of| BlobHash::of(of)));
    let counts = (report.rewritten, report.written, report.frames);
    assert_eq!((counts, report.bytes_before, report.bytes_after), ((2, 4, 6), 8, 10));
}

mod collect;
mod idle;
mod joining;
mod meanwhile;
mod owed;
mod small;
