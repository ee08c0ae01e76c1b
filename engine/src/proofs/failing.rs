//! Each operation of a workload fails in turn, once or for ever. What was acknowledged stays,
//! nothing is acknowledged after a failure that leaves anything in doubt, and the next process,
//! which sees the page cache as the kernel left it, acknowledges only what a power cut then cannot
//! take.

use std::collections::BTreeMap;

use rustix::io::Errno;

use super::workload::Progress;
use super::{MEDIA, Place, check, is_long};
use crate::error::AppendError;
use crate::media::sim::Image;
use crate::options::{MediaChoice, SyncPolicy};
use crate::testing::tell;

const STEPS: usize = 30;

/// A fault: the operations from `first` on fail, all of them or that one.
#[derive(Debug, Clone, Copy)]
struct Fault {
    errno: Errno,
    first: u64,
    forever: bool,
}

/// One life with a fault in it. Whether the fault came.
fn live_through(place: &Place, media: MediaChoice, fault: Fault) -> bool {
    let what = format!("{} {media:?}: {fault:?}", place.options.sync);
    let disk = place.disk(&Image::new());
    let last = if fault.forever { u64::MAX } else { fault.first };
    disk.fail(fault.first..=last, fault.errno);
    let progress = Progress::new();
    let mut errors = BTreeMap::new();
    let lived = progress.live(place, &disk, STEPS, |error| {
        *errors.entry(error.to_string()).or_insert(0) += 1;
        let is_told = matches!(
            error,
            AppendError::Indeterminate
                | AppendError::Poisoned
                | AppendError::StorageFull
                | AppendError::BlobRefused(_)
        );
        assert!(is_told, "{what}: {error}");
    });
    let hit = disk.count() >= fault.first;
    disk.freeze();
    drop(lived);
    disk.thaw();
    disk.heal();
    let (steps, bounds) = (progress.steps(), progress.bounds());
    // The machine dies too.
    let left = place.disk(&disk.moment().power_cut(fault.first));
    drop(check(place, &left, &steps, bounds, &format!("{what}, then a power cut ({errors:?})")));
    // The process alone dies. Its successor sees what the cache has, not what the disk has.
    let (store, at) = check(place, &disk, &steps, bounds, &format!("{what} ({errors:?})"));
    progress.go_on_from(&steps, at, bounds);
    for _ in 0..3 {
        progress.durable_step(&store).expect(&what);
    }
    disk.freeze();
    drop(store);
    disk.thaw();
    for seed in [1, 2] {
        let left = place.disk(&disk.moment().power_cut(fault.first * 2 + seed));
        let what = format!("{what}, then another process, then a power cut ({errors:?})");
        drop(check(place, &left, &progress.steps(), (at + 3, at + 3), &what));
    }
    hit
}

/// Every operation fails, or every `step`th where time is short.
fn fail_each(sync: SyncPolicy, media: MediaChoice, step: u64) {
    let place = Place::new(sync, media);
    let mut lives = 0;
    for errno in [Errno::IO, Errno::NOSPC, Errno::DQUOT, Errno::INTR] {
        for forever in [false, true] {
            let step = if is_long() || (errno, forever) == (Errno::IO, false) { 1 } else { step };
            let mut first = 1;
            while live_through(&place, media, Fault { errno, first, forever }) {
                first += step;
                lives += 1;
            }
            assert!(first > 60, "{first}");
        }
    }
    tell(&format!("{lives} lives with a failing operation, {sync} {media:?}"));
}

#[test]
fn each_operation_fails_under_sync_mapped() {
    fail_each(SyncPolicy::Sync, MEDIA[0], 5);
}

#[test]
fn each_operation_fails_under_sync_positioned() {
    fail_each(SyncPolicy::Sync, MEDIA[1], 5);
}

#[test]
fn each_operation_fails_under_none_mapped() {
    fail_each(SyncPolicy::None, MEDIA[0], 5);
}

#[test]
fn each_operation_fails_under_none_positioned() {
    fail_each(SyncPolicy::None, MEDIA[1], 5);
}
