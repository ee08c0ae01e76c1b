//! Unreadable places on the disk are reported, and the rest is checked and saved.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::{build, check, fill, go_on, none};
use crate::maintain::repair::{RepairReport, repair_files};
use crate::maintain::verify::verify_files;
use crate::maintain::{MaintainError, Problem, Severity, VerifyReport};
use crate::media::faulty::{Faults, FaultyFiles};
use crate::media::{Disk, Files};
use crate::options::{CompressOptions, MediaChoice, ScrubOptions, StoreOptions};
use crate::store::{Health, Store};
use crate::testing::{batches, crash, fast_dir, files_in, open_faulty, segment_files};

/// Verifies and repairs a copy of a store in which a place of a file is unreadable; returns the
/// report, the repair, and a report on the new store.
fn lost(dir: &Path, name: &Path, place: Range<u64>) -> (VerifyReport, RepairReport, VerifyReport) {
    let (image, into) = (crash(dir), fast_dir());
    let faults = Faults::none();
    faults.lose(&image.path().join(name), place);
    let files = || -> Arc<dyn Files> {
        let disk = Disk::new(MediaChoice::Positioned, image.path());
        Arc::new(FaultyFiles::new(disk, &faults))
    };
    let report = verify_files(image.path(), files(), &mut go_on).unwrap();
    let to: Arc<dyn Files> = Arc::new(Disk::new(MediaChoice::Positioned, into.path()));
    let saved = repair_files(image.path(), files(), into.path(), to, &mut go_on).unwrap();
    (report, saved, check(into.path()))
}

#[test]
fn a_lost_sector_of_a_segment_costs_its_frames() {
    let dir = fast_dir();
    build(dir.path());
    let whole = check(dir.path());
    let path = segment_files(dir.path()).remove(0);
    let places = batches(&path);
    let bytes = fs::metadata(&path).unwrap().len();
    let name = path.strip_prefix(dir.path()).unwrap();
    let middle = places[60] as u64 + 70;
    for place in [middle..middle + 1, 0..1, bytes - 1..bytes] {
        let (report, saved, after) = lost(dir.path(), name, place.clone());
        let first = place.start - place.start % 4096;
        for told in [&report.findings, &saved.lost] {
            let mut there = told.iter().filter(|found| found.problem == Problem::Unreadable);
            let one = there.next().unwrap();
            assert_eq!((one.position, one.severity), (first, Severity::Lost), "{told:#?}");
            assert!(one.path.ends_with(name) && there.next().is_none(), "{told:#?}");
        }
        let missing = whole.frames - report.frames;
        assert!(missing > 0 && missing < 100, "{missing} at {place:?}");
        assert!(saved.frames >= report.frames && saved.frames < whole.frames, "{saved:#?}");
        assert!(saved.frames_lost >= whole.frames - saved.frames, "{saved:#?}");
        assert_eq!(report.blobs, whole.blobs);
        let sound = |f: &&crate::maintain::Finding| f.severity < Severity::Lost;
        assert!(after.findings.iter().all(|f| sound(&f)), "{after:#?}");
    }
}

#[test]
fn lost_sectors_of_a_pack_cost_their_blobs() {
    let dir = fast_dir();
    build(dir.path());
    let whole = check(dir.path());
    let path = files_in(&dir.path().join("blobs"), "pack").remove(0);
    let name = path.strip_prefix(dir.path()).unwrap();
    let bytes = fs::metadata(&path).unwrap().len();
    assert!(bytes > 40_000);
    // The states of cursors are there too; only the last one counts.
    for place in [9000..bytes - 5000, 0..bytes / 2] {
        let (report, saved, _) = lost(dir.path(), name, place.clone());
        for told in [&report.findings, &saved.lost] {
            let of = |problem| told.iter().filter(move |found| found.problem == problem);
            let first = place.start - place.start % 4096;
            assert_eq!(of(Problem::Unreadable).map(|f| f.position).collect::<Vec<_>>(), [first]);
            assert!(of(Problem::MissingBlob).count() > 0, "{told:#?}");
        }
        assert_eq!((report.frames, saved.frames_lost), (whole.frames, 0));
        assert!(report.blobs > 0 && report.blobs < whole.blobs, "{report:#?}");
        assert!(saved.blobs > 0 && saved.blobs < whole.blobs, "{saved:#?}");
    }
}

#[test]
fn a_lost_copy_of_the_manifest_is_one_that_does_not_verify() {
    let dir = fast_dir();
    build(dir.path());
    let whole = check(dir.path());
    for name in ["super.a", "super.b"] {
        let (report, saved, after) = lost(dir.path(), Path::new(name), 0..1);
        let told: Vec<_> = report.findings.iter().filter(|f| f.path.ends_with(name)).collect();
        assert_eq!((told.len(), told[0].problem), (1, Problem::Manifest), "{report:#?}");
        assert_eq!(report.worst, Some(Severity::Derived), "{report:#?}");
        assert_eq!((saved.lost_total, saved.manifest_rebuilt), (0, false), "{saved:#?}");
        assert!(after.is_clean() && after.frames == whole.frames, "{after:#?}");
        // And the store keeps working.
        let (image, faults) = (crash(dir.path()), Faults::none());
        faults.lose(&image.path().join(name), 0..1);
        let store = open_faulty(image.path(), none(), &faults).unwrap();
        assert_eq!(store.info().health, Health::Writable, "{name}");
    }
    // With both copies lost the files describe themselves.
    let (image, into, faults) = (crash(dir.path()), fast_dir(), Faults::none());
    ["super.a", "super.b"].iter().for_each(|name| faults.lose(&image.path().join(name), 0..1));
    let disk = Disk::new(MediaChoice::Positioned, image.path());
    let from: Arc<dyn Files> = Arc::new(FaultyFiles::new(disk, &faults));
    let to: Arc<dyn Files> = Arc::new(Disk::new(MediaChoice::Positioned, into.path()));
    let saved = repair_files(image.path(), from, into.path(), to, &mut go_on).unwrap();
    assert!(saved.manifest_rebuilt && saved.lost_total == 0, "{saved:#?}");
    assert!(open_faulty(image.path(), none(), &faults).is_err());
}

#[test]
fn the_scrub_goes_on_behind_a_lost_sector() {
    let (dir, faults) = (fast_dir(), Faults::none());
    let scrub = ScrubOptions { bytes_per_second: u64::MAX, pause_ms: 0 };
    // No pack is rewritten meanwhile.
    let compress = CompressOptions { busy_bytes_per_second: 0, ..CompressOptions::default() };
    let options = StoreOptions { scrub: Some(scrub), compress, ..none() };
    let store = open_faulty(dir.path(), options.clone(), &faults).unwrap();
    fill(&store);
    store.close().unwrap();
    let pack = files_in(&dir.path().join("blobs"), "pack").remove(0);
    let index = files_in(&dir.path().join("log"), "top").remove(0);
    let store = open_faulty(dir.path(), options, &faults).unwrap();
    let sound = store.verify(&mut go_on).unwrap();
    assert!(sound.is_clean(), "{sound:#?}");
    faults.lose(&pack, 9000..fs::metadata(&pack).unwrap().len());
    faults.lose(&index, 0..1);
    let report = store.verify(&mut go_on).unwrap();
    let of = |problem| report.findings.iter().filter(move |found| found.problem == problem);
    assert_eq!(of(Problem::Unreadable).count(), 1, "{report:#?}");
    assert!(of(Problem::MissingBlob).count() > 0, "{report:#?}");
    assert_eq!(of(Problem::Index).map(|f| f.path.clone()).collect::<Vec<_>>(), [index]);
    assert_eq!(report.frames, sound.frames);
    store.inner.scrub.start(&store.inner).unwrap();
    store.inner.scrub.wait_passes(1);
    let scrubbed = store.stats().scrub;
    assert_eq!((scrubbed.failure, scrubbed.last.unwrap().findings), (None, report.findings));
    store.close().unwrap();
}

#[test]
fn what_cannot_be_finished_leaves_the_directory_empty() {
    let (dir, into) = (fast_dir(), fast_dir());
    build(dir.path());
    let mut left = 9;
    let stopped = crate::maintain::repair(dir.path(), into.path(), &mut |_| {
        left -= 1;
        match left {
            0 => std::ops::ControlFlow::Break(()),
            _ => std::ops::ControlFlow::Continue(()),
        }
    });
    assert!(matches!(stopped, Err(MaintainError::Stopped)), "{stopped:?}");
    let report = crate::maintain::repair(dir.path(), into.path(), &mut go_on).unwrap();
    assert_eq!(report.lost_total, 0);
    assert!(Store::open(into.path(), none()).is_ok());
}
