//! Every kind of finding is planted and found.

use std::collections::BTreeSet;
use std::fs;
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;

use super::{FRAMES, build, check, cursor, fill, go_on, none, with_body};
use crate::append::Batch;
use crate::format::super_file::{FileState, SuperState};
use crate::maintain::{CopyOptions, Finding, MaintainError, Problem, Severity, repair, verify};
use crate::manifest::Manifest;
use crate::media::faulty::Faults;
use crate::options::GcOptions;
use crate::options::{ScrubOptions, StoreOptions, SyncPolicy};
use crate::store::{Health, Store};
use crate::testing::{
    batches, crash, crash_now, edit, fast_dir, frame, noise, open_faulty, options, segment_files,
};
use crate::value::{CursorChange, FrameId, NewFrame, Ttl};

fn ending(dir: &Path, sub: &str, end: &str) -> Vec<PathBuf> {
    let listed = fs::read_dir(dir.join(sub)).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> =
        listed.filter(|path| path.extension().is_some_and(|found| found == end)).collect();
    found.sort();
    found
}

/// Damages a copy of the store and returns the one finding.
fn one(dir: &Path, change: impl FnOnce(&Path)) -> Finding {
    let image = crash(dir);
    change(image.path());
    let report = check(image.path());
    assert_eq!(report.findings_total, 1, "{:#?}", report.findings);
    report.findings.into_iter().next().unwrap()
}

fn is(finding: &Finding, severity: Severity, problem: Problem) {
    assert_eq!((finding.severity, finding.problem), (severity, problem), "{finding}");
}

#[test]
fn a_store_of_everything_is_clean_closed_open_and_cut_off() {
    let (dir, faults) = (fast_dir(), Faults::none());
    let store = open_faulty(dir.path(), options(SyncPolicy::Sync), &faults).unwrap();
    fill(&store);
    let report = store.verify(&mut go_on).unwrap();
    assert!(report.is_clean(), "{:#?}", report.findings);
    assert!(report.frames > FRAMES / 2 && report.blobs > 20, "{report:?}");
    // Threads may be at work: one of them creates the journal.
    let image = crash_now(dir.path(), &faults);
    let report = check(image.path());
    assert!(report.findings.iter().all(|f| f.problem == Problem::Stranger), "{report:#?}");
    store.close().unwrap();
    let report = check(dir.path());
    assert!(report.is_clean(), "{:#?}", report.findings);
    let expected: u64 = ["log", "blobs"]
        .iter()
        .flat_map(|sub| fs::read_dir(dir.path().join(sub)).unwrap())
        .filter(|entry| {
            let name = entry.as_ref().unwrap().file_name().into_string().unwrap();
            name.ends_with("seg") || name.ends_with("pack")
        })
        .count() as u64;
    assert!(report.files >= expected + 2, "{report:?}");
}

#[test]
fn a_log_that_ends_too_early_is_told() {
    let dir = fast_dir();
    let store = Store::open(dir.path(), options(SyncPolicy::None)).unwrap();
    (0..2000).for_each(|n| drop(store.append(frame("a", n).into()).unwrap()));
    store.close().unwrap();
    drop(store);
    let paths = segment_files(dir.path());
    assert!(paths.len() > 2);
    for path in [&paths[0], paths.last().unwrap()] {
        let image = crash(dir.path());
        let path = image.path().join(path.strip_prefix(dir.path()).unwrap());
        let places = batches(&path);
        edit(&path, |bytes| bytes[places[places.len() - 3]..].fill(0));
        let report = check(image.path());
        let lost = |finding: &&Finding| finding.severity == Severity::Lost && finding.path == path;
        assert!(report.findings.iter().any(|finding| lost(&finding)), "{:#?}", report.findings);
    }
}

#[test]
fn any_byte_of_a_sealed_file_counts() {
    let dir = fast_dir();
    build(dir.path());
    let files = [&ending(dir.path(), "log", "seg")[0], &ending(dir.path(), "blobs", "pack")[0]];
    for path in files {
        let sound = fs::read(path).unwrap();
        for at in (0..sound.len()).step_by(sound.len() / 150) {
            edit(path, |bytes| bytes[at] ^= 0x10);
            let report = check(dir.path());
            let named = |finding: &Finding| finding.path == **path;
            assert!(report.findings.iter().any(named), "byte {at} of {}", path.display());
            fs::write(path, &sound).unwrap();
        }
    }
    assert!(check(dir.path()).is_clean());
}

#[test]
fn damage_in_the_log_names_the_frames() {
    let dir = fast_dir();
    build(dir.path());
    let segment = segment_files(dir.path()).remove(0);
    let places = batches(&segment);
    let name = segment.strip_prefix(dir.path()).unwrap();
    let header = one(dir.path(), |dir| edit(&dir.join(name), |b| b[places[5] + 20] ^= 1));
    is(&header, Severity::Lost, Problem::Batch);
    assert_eq!(header.position, places[5] as u64);
    assert!(header.offset_end > header.offset && header.offset.is_some(), "{header}");
    let store = Store::open(dir.path(), none()).unwrap();
    let lost = store.read(&Default::default()).unwrap().nth(20).unwrap().unwrap();
    let offset = lost.offset().unwrap();
    store.close().unwrap();
    let place = places.iter().copied().find(|&at| {
        let bytes = fs::read(&segment).unwrap();
        bytes[at + 64 + 16..at + 64 + 32] == *lost.id().as_bytes()
    });
    let place = place.unwrap() + 64;
    let record = one(dir.path(), |dir| edit(&dir.join(name), |b| b[place + 33] ^= 1));
    is(&record, Severity::Lost, Problem::Record);
    let told = (record.position, record.offset, record.offset_end, record.id);
    assert_eq!(told, (place as u64, Some(offset), Some(offset + 1), Some(lost.id())), "{record}");
    let hole = one(dir.path(), |dir| {
        edit(&dir.join(name), |b| b[places[10]..places[30]].fill(0));
    });
    is(&hole, Severity::Lost, Problem::Batch);
    assert!(hole.offset_end.unwrap() >= hole.offset.unwrap() + 20, "{hole}");
}

#[test]
fn damaged_and_missing_files_are_told_apart() {
    let dir = fast_dir();
    build(dir.path());
    let segments = segment_files(dir.path());
    let name = segments[1].strip_prefix(dir.path()).unwrap();
    let missing = one(dir.path(), |dir| fs::remove_file(dir.join(name)).unwrap());
    is(&missing, Severity::Lost, Problem::Missing);
    assert!(missing.offset_end > missing.offset && missing.offset.is_some());
    let header = one(dir.path(), |dir| edit(&dir.join(name), |bytes| bytes[20] ^= 1));
    is(&header, Severity::Derived, Problem::Header);
    let newer = one(dir.path(), |dir| {
        edit(&dir.join(name), |bytes| {
            bytes[8] = 2;
            let crc = crc32fast::hash(&bytes[..60]).to_le_bytes();
            bytes[60..64].copy_from_slice(&crc);
        });
    });
    is(&newer, Severity::Lost, Problem::Version);
    let long = one(dir.path(), |dir| edit(&dir.join(name), |bytes| bytes.push(0)));
    is(&long, Severity::Unused, Problem::Length);
    let image = crash(dir.path());
    edit(&image.path().join(name), |bytes| bytes.truncate(bytes.len() - 8));
    let cut = check(image.path());
    assert!(cut.findings.iter().any(|f| f.problem == Problem::Length), "{cut:#?}");
    assert_eq!(cut.worst, Some(Severity::Lost));
    let stranger = one(dir.path(), |dir| {
        fs::write(dir.join("log/00000000000000000007.9.seg"), b"x").unwrap();
    });
    is(&stranger, Severity::Unused, Problem::Stranger);
    let unfinished = one(dir.path(), |dir| fs::write(dir.join("log/spare.0.tmp"), b"x").unwrap());
    is(&unfinished, Severity::Unused, Problem::Stranger);
    let copy = one(dir.path(), |dir| edit(&dir.join("super.a"), |bytes| bytes[90] ^= 1));
    is(&copy, Severity::Derived, Problem::Manifest);
}

#[test]
fn a_sound_file_that_is_not_the_sealed_one_is_found() {
    let dir = fast_dir();
    build(dir.path());
    let other = one(dir.path(), |dir| {
        let disk = crate::media::Disk::new(crate::options::MediaChoice::Auto, dir);
        let manifest = Manifest::load(dir, std::sync::Arc::new(disk)).unwrap().unwrap();
        let wrong = |state: &mut SuperState| {
            let mut sealed = state.files.iter_mut().filter(|f| f.state == FileState::Sealed);
            sealed.next().unwrap().crc ^= 1;
        };
        manifest.update(wrong).unwrap();
    });
    is(&other, Severity::Unused, Problem::FileCrc);
}

#[test]
fn the_end_of_the_log_is_checked_too() {
    let dir = fast_dir();
    build(dir.path());
    let active = segment_files(dir.path()).pop().unwrap();
    let end = *batches(&active).last().unwrap();
    let name = active.strip_prefix(dir.path()).unwrap();
    let trailing = one(dir.path(), |dir| edit(&dir.join(name), |bytes| bytes[end + 100] = 1));
    is(&trailing, Severity::Unused, Problem::Trailing);
    assert_eq!(trailing.position, end as u64 + 100);
    let store = Store::open(dir.path(), options(SyncPolicy::None)).unwrap();
    (0..10).for_each(|n| drop(store.append(frame("tail", n).into()).unwrap()));
    let image = crash(dir.path());
    drop(store);
    let active = segment_files(image.path()).pop().unwrap();
    let places = batches(&active);
    let last = places[places.len() - 2];
    edit(&active, |bytes| bytes[last + 70] ^= 1);
    let report = check(image.path());
    let torn: Vec<_> = report.findings.iter().filter(|f| f.problem == Problem::TornTail).collect();
    assert_eq!((torn.len(), torn[0].severity), (1, Severity::Unused), "{report:#?}");
    assert_eq!(report.worst, Some(Severity::Unused), "{report:#?}");
}

#[test]
fn a_durable_end_that_is_gone_before_another_segment_is_told() {
    let dir = fast_dir();
    let (image, path) = super::two_unmarked(dir.path());
    let whole = check(image.path());
    assert!(whole.worst < Some(Severity::Lost), "{whole:#?}");
    let places = batches(&path);
    let frames = places.len() as u64 - 2;
    for left in [places.len() - 4, 1, 0] {
        edit(&path, |bytes| bytes[places[left]..].fill(0));
        let report = check(image.path());
        let lost: Vec<_> = report.findings.iter().filter(|f| f.problem == Problem::Batch).collect();
        assert_eq!((lost.len(), lost[0].severity), (1, Severity::Lost), "{report:#?}");
        assert_eq!((&lost[0].path, lost[0].position), (&path, places[left] as u64));
        let first = left.saturating_sub(1) as u64;
        assert_eq!((lost[0].offset, lost[0].offset_end), (Some(first), Some(frames)));
    }
}

#[test]
fn damage_in_a_pack_names_the_blob_and_its_frames() {
    let dir = fast_dir();
    build(dir.path());
    let packs = ending(dir.path(), "blobs", "pack");
    let image = crash(dir.path());
    for path in &packs {
        let path = image.path().join(path.strip_prefix(dir.path()).unwrap());
        edit(&path, |bytes| {
            let at = bytes.len().min(3000) / 2;
            bytes[at] ^= 1;
        });
    }
    let report = check(image.path());
    let lost = |problem| {
        report.findings.iter().filter(move |f| f.problem == problem && f.severity == Severity::Lost)
    };
    assert!(lost(Problem::Blob).count() > 0, "{report:#?}");
    let named = lost(Problem::MissingBlob).find(|f| f.offset.is_some()).expect("a frame names it");
    assert!(named.blob.is_some() && named.id.is_some(), "{named}");
    let image = crash(dir.path());
    packs.iter().for_each(|path| {
        fs::remove_file(image.path().join(path.strip_prefix(dir.path()).unwrap())).unwrap();
    });
    let report = check(image.path());
    let with = |problem| report.findings.iter().filter(|f| f.problem == problem).count();
    assert_eq!(with(Problem::Missing), packs.len());
    assert!(with(Problem::MissingBlob) > 30, "frames and the state of a cursor");
}

#[test]
fn derived_files_are_compared_with_their_source() {
    let dir = fast_dir();
    build(dir.path());
    for (sub, end) in [("log", "idx"), ("log", "top"), ("blobs", "pidx")] {
        let files = ending(dir.path(), sub, end);
        let name = files[0].strip_prefix(dir.path()).unwrap();
        let bad = one(dir.path(), |dir| {
            edit(&dir.join(name), |bytes| {
                let at = bytes.len() - 12;
                bytes[at] ^= 1;
            });
        });
        is(&bad, Severity::Derived, Problem::Index);
        // A missing one is not a loss.
        let image = crash(dir.path());
        fs::remove_file(image.path().join(name)).unwrap();
        assert!(check(image.path()).is_clean());
        if let Some(other) = files.get(1) {
            let foreign = one(dir.path(), |dir| {
                let _ = fs::copy(other, dir.join(name)).unwrap();
            });
            is(&foreign, Severity::Derived, Problem::IndexContent);
        }
    }
    // Valid, belonging to this file by its header, and wrong.
    let files = ending(dir.path(), "log", "idx");
    let name = files[0].strip_prefix(dir.path()).unwrap();
    let wrong = one(dir.path(), |dir| {
        edit(&dir.join(name), |bytes| {
            let end = bytes.len() - 8;
            bytes[80] ^= 1;
            let crc = crc32fast::hash(&bytes[..end]).to_le_bytes();
            bytes[end..end + 4].copy_from_slice(&crc);
        });
    });
    is(&wrong, Severity::Derived, Problem::IndexContent);
}

#[test]
fn what_is_no_store_or_in_use_is_refused() {
    let dir = fast_dir();
    let none_there = verify(dir.path(), &mut go_on);
    assert!(matches!(none_there, Err(MaintainError::NoStore { .. })));
    assert!(fs::read_dir(dir.path()).unwrap().next().is_none(), "nothing is made");
    let store = Store::open(dir.path(), none()).unwrap();
    assert!(matches!(verify(dir.path(), &mut go_on), Err(MaintainError::Open(_))));
    store.append(frame("a", 1).into()).unwrap();
    let stopped = store.verify(&mut |_| std::ops::ControlFlow::Break(()));
    assert!(matches!(stopped, Err(MaintainError::Stopped)));
}

#[test]
fn verify_changes_nothing_and_survives_any_bytes() {
    let dir = fast_dir();
    build(dir.path());
    let mut seed = 7u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as usize % below
    };
    for _ in 0..60 {
        let image = crash(dir.path());
        let mut files: Vec<PathBuf> = Vec::new();
        for sub in ["log", "blobs", ""] {
            let listed = fs::read_dir(image.path().join(sub)).unwrap();
            files.extend(listed.map(|e| e.unwrap().path()).filter(|path| path.is_file()));
        }
        files.sort();
        for _ in 0..3 {
            let path = &files[random(files.len())];
            edit(path, |bytes| {
                let at = random(bytes.len().max(1));
                match random(3) {
                    0 => bytes.truncate(at),
                    1 => bytes
                        .iter_mut()
                        .skip(at)
                        .take(200)
                        .for_each(|byte| *byte = random(256) as u8),
                    _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << random(8)),
                }
            });
        }
        let before: Vec<_> = files.iter().map(|path| fs::read(path).unwrap()).collect();
        // Both copies of the manifest may be lost; everything else yields a report.
        match verify(image.path(), &mut go_on) {
            Ok(_) | Err(MaintainError::Open(_) | MaintainError::NoStore { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        let after: Vec<_> = files.iter().map(|path| fs::read(path).unwrap()).collect();
        assert!(before == after);
    }
}

#[test]
fn the_scrub_finds_what_rots_while_the_store_is_open() {
    let dir = fast_dir();
    build(dir.path());
    let scrub = ScrubOptions { bytes_per_second: u64::MAX, pause_ms: 0 };
    let store = Store::open(dir.path(), StoreOptions { scrub: Some(scrub), ..none() }).unwrap();
    store.inner.scrub.wait_passes(1);
    assert!(store.stats().scrub.last.unwrap().is_clean());
    let segment = segment_files(dir.path()).remove(0);
    let place = batches(&segment)[9];
    // In place, as rot does.
    let file = fs::File::options().write(true).open(&segment).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"rot!", place as u64 + 100).unwrap();
    let passes = store.stats().scrub.passes;
    store.inner.scrub.wait_passes(passes + 2);
    let stats = store.stats().scrub;
    let report = stats.last.unwrap();
    assert_eq!((report.findings_total, report.worst), (1, Some(Severity::Lost)), "{report:#?}");
    store.close().unwrap();
    assert!(stats.failure.is_none());
}

/// Frames that are removed permanently while their segment is checked are still in the file being
/// read, but nothing else says any more that they were removed.
#[test]
fn what_is_removed_while_it_is_looked_at_is_not_lost() {
    for ttl in [Ttl::Forever, Ttl::Last(NonZeroU64::MIN)] {
        let dir = fast_dir();
        let store = Store::open(dir.path(), none()).unwrap();
        (0..100).for_each(|n| {
            drop(store.append(with_body(frame("a", n), &noise(n, 700)).into()).unwrap());
        });
        // With `last:1` only the second one says that the first is removed.
        let removed = [200, 201].map(|n| {
            let new = NewFrame { ttl, ..with_body(frame("b", n), &noise(n, 700)) };
            store.append(new.into()).unwrap().frames[0].id
        });
        let mut more = 0;
        while segment_files(dir.path()).len() < 3 {
            store.append(frame("c", more).into()).unwrap();
            more += 1;
        }
        let first = segment_files(dir.path()).remove(0);
        let mut is_removed = false;
        let report = store.verify(&mut |progress| {
            if progress.path == first && !std::mem::replace(&mut is_removed, true) {
                assert!(store.remove_now(&removed).unwrap().frames >= 2);
            }
            ControlFlow::Continue(())
        });
        let report = report.unwrap();
        assert!(is_removed && report.is_clean(), "{ttl:?}: {:#?}", report.findings);
        assert!(removed.iter().all(|&id| store.get(id).unwrap().is_none()));
    }
}

#[test]
fn a_segment_that_goes_once_there_is_room_is_not_looked_at() {
    let (dir, dest) = (fast_dir(), fast_dir());
    let (image, first) = super::two_unmarked(dir.path());
    let frames = batches(&first).len() as u64 - 2;
    let second = segment_files(image.path()).pop().unwrap();
    edit(&second, |bytes| bytes[crate::format::file::FILE_HEADER_LEN..].fill(0));
    let faults = Faults::none();
    faults.set(1, u64::MAX, Errno::NOSPC);
    faults.only_space();
    let store = open_faulty(image.path(), none(), &faults).unwrap();
    assert_eq!((store.info().health, store.info().head), (Health::Writable, frames));
    let report = store.verify(&mut go_on).unwrap();
    assert!(report.is_clean() && report.frames == frames, "{report:#?}");
    let copied = store.backup(dest.path(), CopyOptions::copies(), &mut go_on).unwrap();
    assert_eq!(copied.head, frames);
    assert!(check(dest.path()).is_clean());
}

#[test]
fn a_store_that_opens_for_reading_tells_what_is_missing() {
    let dir = fast_dir();
    let store = Store::open(dir.path(), none()).unwrap();
    (0..20).for_each(|n| {
        drop(store.append(with_body(frame("a", n), &noise(n, 900)).into()).unwrap());
    });
    store.close().unwrap();
    drop(store);
    for (sub, end) in [("blobs", "pack"), ("log", "seg")] {
        for foreign in [false, true] {
            let image = crash(dir.path());
            let path = ending(image.path(), sub, end).pop().unwrap();
            match foreign {
                true => edit(&path, |bytes| {
                    bytes[32] ^= 1;
                    let crc = crc32fast::hash(&bytes[..60]).to_le_bytes();
                    bytes[60..64].copy_from_slice(&crc);
                }),
                false => fs::remove_file(&path).unwrap(),
            }
            let store = Store::open(image.path(), none()).unwrap();
            assert!(matches!(store.info().health, Health::ReadOnly(_)), "{:?}", store.info());
            let report = store.verify(&mut go_on).unwrap();
            let problem = if foreign { Problem::Header } else { Problem::Missing };
            let found = report.findings.iter().find(|found| found.path == path).unwrap();
            is(found, Severity::Lost, problem);
            let dest = fast_dir();
            let refused = store.backup(dest.path(), CopyOptions::copies(), &mut go_on);
            assert!(matches!(refused, Err(MaintainError::ReadOnly(_))), "{refused:?}");
        }
    }
    // A missing sealed segment is noticed when it is to be copied.
    let dir = fast_dir();
    build(dir.path());
    fs::remove_file(segment_files(dir.path()).remove(0)).unwrap();
    let (store, dest) = (Store::open(dir.path(), none()).unwrap(), fast_dir());
    let refused = store.backup(dest.path(), CopyOptions::copies(), &mut go_on);
    assert!(matches!(refused, Err(MaintainError::ReadOnly(_))), "{refused:?}");
}

/// A closed store with frames that were removed in each way and others that were not, and the ids
/// of the latter.
fn build_half_gone(dir: &Path) -> BTreeSet<FrameId> {
    let store = Store::open(dir, none()).unwrap();
    let append = |topic, n: u64, ttl| {
        let new = NewFrame { ttl, ..with_body(frame(topic, n), &noise(n, 700)) };
        store.append(new.into()).unwrap().frames[0].id
    };
    let last = Ttl::Last(NonZeroU64::new(2).unwrap());
    let removed = append("a", 1, Ttl::Forever);
    let mut stay = BTreeSet::from([append("a", 2, Ttl::Forever)]);
    let expires = append("a", 3, Ttl::TimeMs(1));
    append("b", 4, Ttl::Forever);
    stay.extend([append("b", 5, last), append("b", 6, last)]);
    let batch = Batch { removes: vec![removed], ..Batch::default() };
    store.append(batch).unwrap();
    for n in 0..3 {
        let cursors = vec![cursor("c", n, &noise(50 + n, 9000))];
        store.append(Batch { cursors, ..Batch::default() }).unwrap();
    }
    let gone = vec![cursor("d", 1, &noise(60, 9000))];
    store.append(Batch { cursors: gone, ..Batch::default() }).unwrap();
    let gone = vec![CursorChange { set: None, ..cursor("d", 0, b"") }];
    store.append(Batch { cursors: gone, ..Batch::default() }).unwrap();
    store.close().unwrap();
    let over = UNIX_EPOCH + Duration::from_millis(expires.time_ms() + 2);
    while SystemTime::now() < over {
        std::thread::yield_now();
    }
    stay
}

#[test]
fn what_is_gone_needs_no_blob() {
    let dir = fast_dir();
    let stay = build_half_gone(dir.path());
    ending(dir.path(), "blobs", "pack").iter().for_each(|path| fs::remove_file(path).unwrap());
    let missing = |findings: &[Finding]| -> (BTreeSet<FrameId>, usize) {
        let all = || findings.iter().filter(|found| found.problem == Problem::MissingBlob);
        (all().filter_map(|found| found.id).collect(), all().filter(|f| f.id.is_none()).count())
    };
    let report = check(dir.path());
    assert_eq!(missing(&report.findings), (stay.clone(), 1), "{:#?}", report.findings);
    let into = fast_dir();
    let report = repair(dir.path(), into.path(), &mut go_on).unwrap();
    assert_eq!(missing(&report.lost).0, stay, "{:#?}", report.lost);
}

#[test]
fn a_store_is_clean_after_garbage_collection() {
    let dir = fast_dir();
    build(dir.path());
    build_half_gone(dir.path());
    let store = Store::open(dir.path(), none()).unwrap();
    let collected = store.gc(&GcOptions { grace: Duration::ZERO, ..GcOptions::default() });
    assert!(collected.unwrap().swept > 0);
    let report = store.verify(&mut go_on).unwrap();
    assert!(report.is_clean(), "{:#?}", report.findings);
    store.close().unwrap();
    let report = check(dir.path());
    assert!(report.is_clean(), "{:#?}", report.findings);
}
