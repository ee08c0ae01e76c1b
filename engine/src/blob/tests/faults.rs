//! Operations that fail, and files that are missing.

use rustix::io::Errno;

use super::damage::damage;
use super::*;
use crate::blob::error::StageError;
use crate::blob::sealed::SealedPack;
use crate::format::file::FILE_HEADER_LEN;
use crate::format::super_file::FileEntry;

/// Stores and syncs blobs while the operations from `step` to `last` fail, stops as a kill would,
/// and opens again. Returns whether the work was done before the fault was reached.
fn work_through_fault(step: u64, last: u64, errno: Errno) -> bool {
    let bed = Bed::new(PACK, MediaChoice::Auto);
    let blobs = bed.open(true);
    let mut durable: Vec<_> = (0..50).map(|n| noise(n, 900)).collect();
    put_all(&blobs, &durable);
    blobs.sync().unwrap();
    bed.faults.set(step, last, errno);
    for n in 100..220 {
        let bytes = noise(n, 900);
        let staged = blobs.stage(&[blobs.prepare(&bytes).unwrap()]);
        if staged.is_ok() && blobs.flush().is_ok() && blobs.sync().is_ok() {
            durable.push(bytes);
        }
    }
    let passed = bed.faults.count() < step;
    drop(blobs);
    bed.faults.clear();
    let blobs = bed.open(false);
    assert!(blobs.trouble().is_none());
    for bytes in &durable {
        assert_eq!(get(&blobs, &BlobHash::of(bytes)).as_ref(), Some(bytes), "step {step}");
    }
    put(&blobs, &noise(1000, 900));
    passed
}

#[test]
fn every_failing_step_leaves_what_was_durable() {
    for errno in [Errno::IO, Errno::NOSPC] {
        for once in [true, false] {
            let last = |step| if once { step } else { u64::MAX };
            let steps = (1..).take_while(|&step| !work_through_fault(step, last(step), errno));
            let steps = steps.count();
            assert!(steps > 100, "only {steps} steps");
        }
    }
}

#[test]
fn a_failing_step_of_recovery_is_made_up_for_by_the_next() {
    for errno in [Errno::IO, Errno::NOSPC] {
        for step in 1.. {
            let bed = Bed::new(PACK, MediaChoice::Auto);
            let blobs = bed.open(true);
            let kept: Vec<_> = (0..100).map(|n| noise(n, 900)).collect();
            put_all(&blobs, &kept);
            blobs.sync().unwrap();
            drop(blobs);
            let env = bed.env();
            bed.faults.set(step, u64::MAX, errno);
            let opened = Blobs::open(env, false);
            let passed = bed.faults.count() < step;
            if let Ok(blobs) = opened {
                assert!(kept.iter().all(|bytes| get(&blobs, &BlobHash::of(bytes)).is_some()));
            }
            bed.faults.clear();
            let blobs = bed.open(false);
            for bytes in &kept {
                assert_eq!(get(&blobs, &BlobHash::of(bytes)).as_ref(), Some(bytes), "step {step}");
            }
            if passed {
                break;
            }
        }
    }
}

#[test]
fn a_pack_the_manifest_lost_is_taken_in_again() {
    let bed = Bed::new(PACK, MediaChoice::Auto);
    let blobs = bed.open(true);
    let hash = put(&blobs, &text(1, 200));
    let long = put(&blobs, &noise(2, 50_000));
    drop(blobs);
    let env = bed.env();
    env.manifest.update(|state| state.files.clear()).unwrap();
    let blobs = Blobs::open(env, false).unwrap();
    assert!(blobs.contains(&hash) && blobs.contains(&long));
    drop(blobs);
    fs::remove_file(&bed.files("pack")[0]).unwrap();
    let blobs = bed.open(false);
    assert!(matches!(blobs.trouble(), Some(ReadOnlyReason::Files { .. })));
}

/// Lets the steps of an open that need space fail, from each step on, or that one alone. The open
/// succeeds nevertheless, however often it is tried, and finds what was durable.
fn check_opens_when_full(what: &str, bed: &Bed, kept: &[Bytes]) {
    let image = crate::testing::crash(bed.dir.path());
    for step in 1.. {
        for last in [step, u64::MAX] {
            let bed = Bed { dir: crate::testing::crash(image.path()), ..Bed::new(PACK, bed.media) };
            let env = bed.env();
            bed.faults.set(step, last, Errno::NOSPC);
            bed.faults.only_space();
            let what = format!("{what}: {step} to {last}");
            let check = |blobs: &Blobs| {
                assert!(blobs.trouble().is_none(), "{what}");
                assert!(
                    kept.iter().all(|bytes| get(blobs, &BlobHash::of(bytes)).is_some()),
                    "{what}"
                );
                let list = blobs.shared.packs.list();
                for line in &blobs.shared.env.manifest.state().files {
                    let is_it = |other: FileEntry| other.key() == line.key();
                    let sealed = list.sealed.iter().any(|pack| is_it(*pack.line()));
                    let known = sealed || list.open.iter().any(|pack| is_it(pack.line()));
                    assert!(known, "{what}: {line:?} is named and not listed");
                }
            };
            for _ in 0..2 {
                let blobs = Blobs::open(Arc::clone(&env), false);
                check(&blobs.unwrap_or_else(|error| panic!("{what}: {error}")));
            }
            if bed.faults.count() < step {
                return;
            }
            bed.faults.clear();
            check(&bed.open(false));
            let blobs = bed.open(false);
            check(&blobs);
            put(&blobs, &noise(1000, 900));
        }
    }
}

#[test]
fn a_full_disk_keeps_no_packs_from_being_opened() {
    for media in BOTH {
        let bed = Bed::new(PACK, media);
        let blobs = bed.open(true);
        OpenPack::create(&blobs.shared.env, 7, false).unwrap();
        drop(blobs);
        check_opens_when_full("one the manifest does not name", &bed, &[]);

        let bed = Bed::new(PACK, media);
        let blobs = bed.open(true);
        let kept: Vec<_> = (0..20).map(|n| noise(n, 900)).collect();
        put_all(&blobs, &kept);
        blobs.sync().unwrap();
        for _ in 0..3 {
            blobs.shared.add_pack(false).unwrap();
        }
        drop(blobs);
        check_opens_when_full("made ready twice", &bed, &kept);

        damage(&bed.files("pack")[0], FILE_HEADER_LEN as u64 + 20);
        check_opens_when_full("damaged", &bed, &kept[1..]);
        bed.env().manifest.update(|state| state.files.clear()).unwrap();
        check_opens_when_full("damaged and not named", &bed, &kept[1..]);
    }
}

#[test]
fn a_pack_there_is_no_room_to_name_gives_its_space_back() {
    for long in [true, false] {
        let bed = Bed::new(PACK, MediaChoice::Auto);
        let blobs = bed.open(true);
        let bytes = if long { noise(1, 50_000) } else { noise(1, 900) };
        let steps = if long { 3 } else { 2 };
        for _ in 0..3 {
            // The pack, its index if it has one, and then the manifest.
            bed.faults.set(steps, u64::MAX, Errno::NOSPC);
            bed.faults.only_space();
            let refused = blobs.stage(&[blobs.prepare(&bytes).unwrap()]);
            assert!(matches!(refused, Err(StageError::Full(_))), "{refused:?}");
            assert_eq!(bed.files("pack").len() + bed.files("pidx").len(), 0, "long {long}");
        }
        bed.faults.clear();
        let hash = put(&blobs, &bytes);
        assert_eq!(bed.files("pack").len(), 1);
        blobs.sync().unwrap();
        drop(blobs);
        assert!(get(&bed.open(false), &hash).is_some());
    }
}

#[test]
fn a_put_keeps_its_grace_when_the_sweep_it_met_finds_no_room() {
    const GRACE_MS: u64 = 24 * 3_600_000;
    let bed = Bed::new(PACK, MediaChoice::Auto);
    let blobs = bed.open(true);
    let all: Vec<_> = (0..20).map(|n| noise(n, 900)).collect();
    let hashes = put_all(&blobs, &all);
    drop(blobs);
    drop(bed.sealed());
    let env = bed.env();
    // The last put was years ago.
    env.manifest.update(|state| state.files.iter_mut().for_each(|f| f.newest_ms = 1)).unwrap();
    let blobs = Blobs::open(env, false).unwrap();
    let sweep = blobs.sweep(None);
    let (mut marker, _) = sweep.examine(false, false).unwrap();
    hashes[..10].iter().for_each(|hash| sweep.name(&mut marker, hash).unwrap());
    sweep.take_names(&mut marker).unwrap();
    let condemned = Condemned::Unnamed { grace_ms: GRACE_MS, dead_percent: 0 };
    let group = sweep.plan(&mut marker, &condemned).unwrap().groups.remove(0);
    let new = sweep.rewrite(&marker, &group, &condemned).unwrap().unwrap();
    let switched = sweep.switch(&mut marker, &group, &new, &condemned).unwrap().unwrap();
    blobs.put(&blobs.prepare(&all[0]).unwrap()).unwrap();
    bed.faults.set(1, u64::MAX, Errno::NOSPC);
    assert!(matches!(sweep.confirm(&mut marker, switched), Err(SweepError::Full(_))));
    bed.faults.clear();
    assert!(all.iter().all(|bytes| get(&blobs, &BlobHash::of(bytes)).is_some()));
    let young = |pack: &Arc<SealedPack>| pack.newest_ms() > 1;
    assert!(blobs.shared.packs.list().sealed.iter().any(young), "nobody knows of the put");
}

#[test]
fn an_attempt_that_was_given_up_takes_no_file_of_the_next_one_with_it() {
    for media in BOTH {
        let bed = Bed::new(PACK, media);
        let all: Vec<_> = (0..20).map(|n| noise(n, 900)).collect();
        let hashes = put_all(&bed.open(true), &all);
        let blobs = bed.sealed();
        // The list is held between the two steps, as a concurrent lookup would.
        let sweep = |is_full: bool| {
            let sweep = blobs.sweep(None);
            let (mut marker, _) = sweep.examine(false, false).unwrap();
            hashes[..10].iter().for_each(|hash| sweep.name(&mut marker, hash).unwrap());
            sweep.take_names(&mut marker).unwrap();
            let condemned = Condemned::Unnamed { grace_ms: 0, dead_percent: 0 };
            let group = sweep.plan(&mut marker, &condemned).unwrap().groups.remove(0);
            let new = sweep.rewrite(&marker, &group, &condemned).unwrap().unwrap();
            let switched = sweep.switch(&mut marker, &group, &new, &condemned).unwrap().unwrap();
            let list = blobs.shared.packs.list();
            if is_full {
                bed.faults.set(1, u64::MAX, Errno::NOSPC);
            }
            let confirmed = sweep.confirm(&mut marker, switched);
            bed.faults.clear();
            (list, confirmed)
        };
        let (held, confirmed) = sweep(true);
        assert!(matches!(confirmed, Err(SweepError::Full(_))), "{confirmed:?}");
        sweep(false).1.unwrap();
        drop(held);
        drop(blobs);
        let blobs = bed.open(false);
        assert!(blobs.trouble().is_none(), "{:?}", blobs.trouble());
        let kept = hashes.iter().zip(&all).take(10);
        kept.for_each(|(hash, bytes)| assert_eq!(get(&blobs, hash).as_ref(), Some(bytes)));
    }
}

#[test]
fn a_pack_there_is_no_room_to_name_anew_is_sealed_as_it_is() {
    let bed = Bed::new(PACK, MediaChoice::Auto);
    let blobs = bed.open(true);
    let all: Vec<_> = (0..10).map(|n| text(n, 700)).collect();
    put_all(&blobs, &all);
    let shared = &blobs.shared;
    // The keeper would create the next pack concurrently, and its operations count.
    shared.keeper.stop();
    let pack = Arc::clone(&shared.packs.list().open[0]);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let seal = |hurry| crate::blob::seal::seal(&shared.env, &shared.packs, &pack, hurry, &stop);
    pack.set_full();
    // The next generation, its index, then the manifest; and once more after that was given up.
    bed.faults.set(3, u64::MAX, Errno::NOSPC);
    bed.faults.only_space();
    assert!(matches!(seal(false), Err(crate::blob::seal::NotSealed::Full(_))));
    assert_eq!(bed.files("pack").len(), 1, "{:?}", bed.files("pack"));
    assert!(bed.faults.count() >= 4, "it was not tried as it is");
    // Space for one more file, which is what the next generation had taken.
    bed.faults.set(3, 3, Errno::NOSPC);
    seal(false).unwrap();
    bed.faults.clear();
    let list = shared.packs.list();
    let sealed = list.sealed[0].line();
    assert_eq!((list.sealed.len(), sealed.generation), (1, pack.line().generation));
    assert_eq!(bed.files("pack").len(), 1);
    drop(list);
    assert!(all.iter().all(|bytes| get(&blobs, &BlobHash::of(bytes)).is_some()));
    drop(blobs);
    let blobs = bed.open(false);
    assert!(all.iter().all(|bytes| get(&blobs, &BlobHash::of(bytes)).is_some()));
}
