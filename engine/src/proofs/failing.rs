//! Each operation of a workload fails in turn, once or permanently. What was acknowledged stays,
//! nothing is acknowledged after a failure that leaves anything in doubt, and the next process,
//! which sees the page cache as the kernel left it, acknowledges only what then survives a power
//! cut.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::workload::Life;
use super::{MEDIA, Rig, check, check_backup};
use crate::error::AppendError;
use crate::media::sim::Image;
use crate::options::{MediaChoice, SyncPolicy};
use crate::testing::tell;

const STEPS: usize = 30;

/// A fault: the operations from `first` on fail, all of them or that one.
#[derive(Debug, Clone, Copy)]
struct InjectedFault {
    errno: Errno,
    first: u64,
    forever: bool,
}

/// One run with a fault in it. Returns whether the fault occurred.
fn live_through(rig: &Rig, media: MediaChoice, fault: InjectedFault) -> bool {
    let what = format!("{} {media:?}: {fault:?}", rig.options.sync);
    let disk = rig.disk(&Image::new());
    let last = if fault.forever { u64::MAX } else { fault.first };
    disk.fail(fault.first..=last, fault.errno);
    let life = Life::new();
    let mut errors = BTreeMap::new();
    let lived = life.live(rig, &disk, STEPS, |error| {
        *errors.entry(error.to_string()).or_insert(0) += 1;
        let is_told = matches!(
            error,
            AppendError::Indeterminate(_)
                | AppendError::Poisoned(_)
                | AppendError::StorageFull(_)
                | AppendError::BlobRefused(_)
        );
        assert!(is_told, "{what}: {error}");
    });
    let hit = disk.count() >= fault.first;
    disk.freeze();
    drop(lived);
    disk.thaw();
    disk.heal();
    let (steps, bounds) = (life.steps(), life.bounds());
    // The machine crashes too.
    let left = rig.disk(&disk.moment().power_cut(fault.first));
    let after = format!("{what}, then a power cut ({errors:?})");
    check_backup(rig, &left, &steps, life.backed_up.load(Ordering::SeqCst), &after);
    drop(check(rig, &left, &steps, bounds, &after));
    // Only the process dies. The next one sees the content of the cache, not of the disk.
    let (store, at) = check(rig, &disk, &steps, bounds, &format!("{what} ({errors:?})"));
    life.go_on_from(&steps, at, bounds);
    for _ in 0..3 {
        life.durable_step(&store).expect(&what);
    }
    disk.freeze();
    drop(store);
    disk.thaw();
    for seed in [1, 2] {
        let left = rig.disk(&disk.moment().power_cut(fault.first * 2 + seed));
        let what = format!("{what}, then another process, then a power cut ({errors:?})");
        drop(check(rig, &left, &life.steps(), (at + 3, at + 3), &what));
    }
    hit
}

/// Every operation fails in each way.
fn fail_each(rig: &Rig, media: MediaChoice, how: &str) {
    let mut lives = 0;
    for errno in [Errno::IO, Errno::NOSPC, Errno::DQUOT, Errno::INTR] {
        for forever in [false, true] {
            let mut first = 1;
            while live_through(rig, media, InjectedFault { errno, first, forever }) {
                first += 1;
                lives += 1;
            }
            assert!(first > 60, "{first}");
        }
    }
    tell(&format!("{lives} lives with a failing operation, {how} {media:?}"));
}

#[test]
fn each_operation_fails_under_sync_mapped() {
    fail_each(&Rig::new(SyncPolicy::Sync, MEDIA[0]), MEDIA[0], "sync");
}

#[test]
fn each_operation_fails_under_sync_positioned() {
    fail_each(&Rig::new(SyncPolicy::Sync, MEDIA[1]), MEDIA[1], "sync");
}

#[test]
fn each_operation_fails_with_a_journal_mapped() {
    fail_each(&Rig::journaled(MEDIA[0]), MEDIA[0], "journal");
}

#[test]
fn each_operation_fails_with_a_journal_positioned() {
    fail_each(&Rig::journaled(MEDIA[1]), MEDIA[1], "journal");
}

#[test]
fn each_operation_fails_under_none_mapped() {
    fail_each(&Rig::new(SyncPolicy::None, MEDIA[0]), MEDIA[0], "none");
}

#[test]
fn each_operation_fails_under_none_positioned() {
    fail_each(&Rig::new(SyncPolicy::None, MEDIA[1]), MEDIA[1], "none");
}
