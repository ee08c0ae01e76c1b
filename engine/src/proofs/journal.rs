//! Groups that only the journal made durable: the power is cut at every operation while its halves
//! are filled repeatedly, with and without the thread that settles them, and no acknowledged frame
//! or body is missing afterwards.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use rustix::io::Errno;

use super::{Holds, MEDIA, Rig, body, look};
use crate::append::Batch;
use crate::error::ReadOnlyReason;
use crate::format::file::FILE_HEADER_LEN;
use crate::limits::JOURNAL_HALF_BYTES_MIN;
use crate::maintain;
use crate::media::Files as _;
use crate::media::sim::{Image, SimDisk};
use crate::options::SyncPolicy;
use crate::store::{Health, Store};
use crate::testing::{frame, tell};
use crate::value::{Body, NewFrame};

/// Frames appended, one per group: their entries fill the halves several times.
const FRAMES: u64 = 160;

fn with_body(n: u64) -> NewFrame {
    let body = Body::Inline(Bytes::from(body(n, 700 + n as usize * 37 % 900)));
    NewFrame { body, ..frame("a", n) }
}

fn kill(disk: &SimDisk, store: Store) {
    disk.freeze();
    drop(store);
    disk.thaw();
}

/// The frames found are the first ones, and at least the acknowledged ones.
fn expect(store: &Store, acknowledged: u64, what: &str) -> u64 {
    assert_eq!(store.info().health, Health::Writable, "{what}");
    let Holds { frames, .. } = look(store, what);
    let found: Vec<u64> = frames.iter().map(|(_, n)| *n).collect();
    assert!(found.iter().copied().eq(0..found.len() as u64), "{what}: {found:?}");
    assert!(found.len() as u64 >= acknowledged, "{what}: {} of {acknowledged}", found.len());
    found.len() as u64
}

#[test]
fn what_the_journal_made_durable_stays_whatever_reached_its_place() {
    for (media, quiet) in [(MEDIA[0], true), (MEDIA[0], false), (MEDIA[1], true)] {
        let rig = Rig::journaled(media);
        let disk = rig.disk(&Image::new());
        let acknowledged = Arc::new(AtomicU64::new(0));
        let (cuts, replayed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut others = Rig::journaled(media);
        others.options.media = media;
        let counted = (Arc::clone(&acknowledged), Arc::clone(&cuts), Arc::clone(&replayed));
        disk.watch(move |operation, moment| {
            let (acknowledged, cuts, replayed) = &counted;
            let at_least = acknowledged.load(Ordering::SeqCst);
            let what = format!("{media:?}, quiet {quiet}, power cut at operation {operation}");
            let left = others.disk(&moment.power_cut(operation * 2 + 1));
            let Ok(store) = others.open_quietly(&left) else { panic!("{what}") };
            expect(&store, at_least, &what);
            replayed.fetch_add(store.info().recovery.journal_groups, Ordering::SeqCst);
            cuts.fetch_add(1, Ordering::SeqCst);
        });
        let store = if quiet { rig.open_quietly(&disk) } else { rig.open(&disk) }.unwrap();
        for n in 0..FRAMES {
            assert!(store.append(with_body(n).into()).unwrap().durable);
            acknowledged.fetch_add(1, Ordering::SeqCst);
        }
        disk.unwatch();
        kill(&disk, store);
        let store = rig.open_quietly(&disk).unwrap();
        assert_eq!(expect(&store, FRAMES, "killed"), FRAMES);
        store.close().unwrap();
        assert!(disk.len_of(&rig.path().join("journal")).is_err(), "a journal nobody needs");
        let (cuts, replayed) = (cuts.load(Ordering::SeqCst), replayed.load(Ordering::SeqCst));
        assert!(replayed > 10 * cuts, "{replayed} groups in {cuts} states");
        tell(&format!("{cuts} states whose journal held {replayed} groups, {media:?}"));
    }
}

#[test]
fn a_group_behind_one_that_is_not_durable_is_synced_in_place() {
    for media in MEDIA {
        let mut rig = Rig::journaled(media);
        rig.options.sync = SyncPolicy::None;
        let disk = rig.disk(&Image::new());
        let store = rig.open_quietly(&disk).unwrap();
        for n in 0..20 {
            let durable = n % 3 == 2;
            let batch = Batch { durable, ..with_body(n).into() };
            assert_eq!(store.append(batch).unwrap().durable, durable);
            let other = Rig::new(SyncPolicy::None, media);
            let left = other.disk(&disk.moment().power_cut(n * 2 + 1));
            let store = other.open_quietly(&left).unwrap();
            expect(&store, (n + 1) / 3 * 3, &format!("{media:?}: frame {n}"));
        }
    }
}

/// Appends until an operation fails, if one does; returns how many groups were acknowledged.
fn fill(store: &Store) -> u64 {
    let failed = |n: &u64| store.append(with_body(*n).into()).is_err();
    (0..FRAMES).find(failed).unwrap_or(FRAMES)
}

#[test]
fn bytes_that_a_failed_settling_lost_are_put_back() {
    for media in MEDIA {
        let rig = Rig::journaled(media);
        let disk = rig.disk(&Image::new());
        assert_eq!(fill(&rig.open_quietly(&disk).unwrap()), FRAMES);
        let (all, mut poisoned) = (disk.count(), 0);
        // In the second half of the run every part of the journal is in use.
        for failing in all / 2..all {
            let disk = rig.disk(&Image::new());
            disk.fail(failing..=failing, Errno::IO);
            let store = rig.open_quietly(&disk).unwrap();
            let acknowledged = fill(&store);
            poisoned += u64::from(store.inner.is_poisoned());
            kill(&disk, store);
            disk.heal();
            let what = format!("{media:?}: operation {failing} of {all} failed");
            let store = rig.open_quietly(&disk).unwrap();
            let found = expect(&store, acknowledged, &what);
            store.append(with_body(found).into()).unwrap();
            kill(&disk, store);
            let left = rig.disk(&disk.moment().power_cut(failing));
            let store = rig.open_quietly(&left).unwrap();
            expect(&store, found + 1, &format!("{what}, then a power cut"));
        }
        assert!(poisoned > all / 4, "{poisoned} of {all}");
    }
}

#[test]
fn whoever_looks_at_a_store_sees_what_its_journal_holds() {
    let rig = Rig::journaled(MEDIA[0]);
    let disk = rig.disk(&Image::new());
    let store = rig.open_quietly(&disk).unwrap();
    for n in 0..12 {
        store.append(with_body(n).into()).unwrap();
    }
    disk.freeze();
    drop(store);
    disk.thaw();
    // Only the journal reached the disk.
    let left = rig.disk(&disk.moment().power_cut(1));
    let before = left.image();
    let go_on = &mut |_: &maintain::Progress<'_>| ControlFlow::Continue(());
    let report = maintain::verify_files(rig.path(), Arc::new(left.clone()), go_on).unwrap();
    assert_eq!((report.findings_total, report.frames), (0, 12), "{report:?}");
    assert!(left.image() == before, "verify changed the store");
}

/// What a power cut leaves of a store of which only the journal reached the disk, and how many
/// frames it holds.
fn journal_alone(rig: &Rig) -> (Image, u64) {
    const FRAMES: u64 = 12;
    let disk = rig.disk(&Image::new());
    let store = rig.open_quietly(&disk).unwrap();
    (0..FRAMES).for_each(|n| drop(store.append(with_body(n).into()).unwrap()));
    let image = disk.moment().power_cut(1);
    kill(&disk, store);
    (image, FRAMES)
}

#[test]
fn a_damaged_header_of_the_journal_takes_no_group_with_it() {
    for media in MEDIA {
        let rig = Rig::journaled(media);
        let (image, frames) = journal_alone(&rig);
        let path = rig.path().join("journal");
        for at in (0..FILE_HEADER_LEN).step_by(7) {
            let disk = rig.disk(&image);
            disk.flip(&path, at, 0x10);
            // Without the manifest, as in a repair, the entries identify the files.
            let kept = crate::journal::read(&disk, rig.path(), None).unwrap();
            assert_eq!((kept.groups, kept.trouble), (frames, None), "{media:?}, byte {at}");
            let store = rig.open_quietly(&disk).unwrap();
            assert_eq!(expect(&store, frames, &format!("{media:?}, byte {at}")), frames);
            kill(&disk, store);
        }
    }
}

#[test]
fn a_journal_that_is_lost_is_told_of() {
    let rig = Rig::journaled(MEDIA[0]);
    let (image, _) = journal_alone(&rig);
    let path = rig.path().join("journal");
    let other = {
        let other = Rig::journaled(MEDIA[0]);
        let (image, _) = journal_alone(&other);
        image[std::path::Path::new("journal")].to_vec()
    };
    type Lose<'a> = &'a dyn Fn(&SimDisk);
    let losses: [(Lose<'_>, &str); 3] = [
        (&|disk| disk.remove(&path).unwrap(), "is missing"),
        (&|disk| disk.cut(&path, JOURNAL_HALF_BYTES_MIN).unwrap(), "is shorter than it was made"),
        (&|disk| disk.write_new(&path, &other).unwrap(), "is not the file the manifest names"),
    ];
    for (lose, what) in losses {
        let disk = rig.disk(&image);
        lose(&disk);
        let go_on = &mut |_: &maintain::Progress<'_>| ControlFlow::Continue(());
        let report = maintain::verify_files(rig.path(), Arc::new(disk.clone()), go_on).unwrap();
        assert!(report.findings.iter().any(|one| one.path == path), "{what}: {report:?}");
        let store = rig.open_quietly(&disk).unwrap();
        let trouble = ReadOnlyReason::Files { path: path.clone(), what };
        assert_eq!(store.info().health, Health::ReadOnly(trouble));
    }
    // A store that was closed cleanly needs no journal.
    let disk = rig.disk(&image);
    let store = rig.open_quietly(&disk).unwrap();
    store.close().unwrap();
    assert!(disk.len_of(&path).is_err());
    drop(store);
    assert_eq!(rig.open_quietly(&disk).unwrap().info().health, Health::Writable);
}

#[test]
fn a_journal_that_is_made_anew_is_never_missed() {
    for (media, seeds) in MEDIA.into_iter().flat_map(|media| [(media, 0), (media, 1)]) {
        let rig = Rig::journaled(media);
        let disk = rig.disk(&Image::new());
        let store = rig.open_quietly(&disk).unwrap();
        (0..5).for_each(|n| drop(store.append(with_body(n).into()).unwrap()));
        let named = store.inner.env.manifest.state().journal;
        // As after an entry for which there was no room; what is there then cannot be read.
        store.inner.journal.give_up();
        store.inner.writer.lock().settle(&store.inner).unwrap();
        disk.flip(&rig.path().join("journal"), 9, 0x10);
        let others = Rig::journaled(media);
        disk.watch(move |operation, moment| {
            let what = format!("{media:?}, power cut at operation {operation}");
            for seed in 0..8 {
                let left = others.disk(&moment.power_cut(seed * 2 + seeds));
                expect(&others.open_quietly(&left).unwrap(), 5, &what);
            }
        });
        store.append(with_body(5).into()).unwrap();
        disk.unwatch();
        let made = store.inner.env.manifest.state().journal;
        assert!(made != 0 && made != named, "{made} after {named}");
        kill(&disk, store);
        assert_eq!(expect(&rig.open_quietly(&disk).unwrap(), 6, "killed"), 6);
    }
}

#[test]
fn a_manifest_in_doubt_for_the_journal_poisons_the_store() {
    let rig = Rig::journaled(MEDIA[0]);
    let disk = rig.disk(&Image::new());
    let store = rig.open_quietly(&disk).unwrap();
    store.append(with_body(0).into()).unwrap();
    kill(&disk, store);
    let (image, mut doubts) = (disk.image(), 0);
    for step in 1.. {
        let disk = rig.disk(&image);
        let store = rig.open_quietly(&disk).unwrap();
        // One copy of the manifest records that the store is in use, the other one the journal. The
        // name of either may not be durable.
        let failing = disk.count() + step;
        disk.fail(failing..=failing, Errno::IO);
        let done = store.append(with_body(1).into()).is_ok();
        let hit = disk.count() >= failing;
        disk.heal();
        let in_doubt = store.inner.env.manifest.update(|_| ()).is_err();
        assert!(!(done && in_doubt), "operation {step}: acknowledged beside a manifest in doubt");
        doubts += u64::from(in_doubt);
        kill(&disk, store);
        expect(&rig.open_quietly(&disk).unwrap(), 1 + u64::from(done), "killed");
        if !hit {
            break;
        }
    }
    assert_eq!(doubts, 2);
}
