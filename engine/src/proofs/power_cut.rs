//! The power is cut at every operation of a workload, and of the recovery after it, leaving any
//! subset of the unsynced data on the disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};

use parking_lot::Mutex;

use super::workload::Life;
use super::{Holds, MEDIA, Rig, check, check_backup, is_long};
use crate::media::sim::{Image, SimDisk, random};
use crate::options::{MediaChoice, SyncPolicy};
use crate::testing::tell;

/// Steps of a workload: enough for several segments and packs, and for a close in the middle.
const STEPS: usize = 40;
/// Images per operation of a run.
const CUTS: u64 = 8;

/// What a power cut left, and what must be in it.
struct Case {
    image: Image,
    steps: Arc<Vec<Holds>>,
    bounds: (usize, usize),
    /// The head that readers had seen.
    seen: u64,
    epoch: u64,
    /// The step of the newest whole backup.
    backed_up: usize,
    seed: u64,
    what: String,
}

/// Runs a workload and yields `cuts` images for each of its operations.
fn live(
    rig: &Rig,
    media: MediaChoice,
    (first_seed, cuts): (u64, u64),
    mut hand_out: impl FnMut(Case) + Send + 'static,
) -> u64 {
    let disk = rig.disk(&Image::new());
    let life = Life::new();
    let sync = rig.options.sync;
    let watcher = Arc::clone(&life);
    disk.watch(move |operation, moment| {
        // Bounds first: what is acknowledged only now was not acknowledged when the power was cut.
        let bounds = watcher.bounds();
        let seen = watcher.visible_head().filter(|_| sync == SyncPolicy::Sync).unwrap_or(0);
        for seed in first_seed..first_seed + cuts {
            let seed = seed * 100_000 + operation;
            let what = format!("{sync} {media:?}: power cut at operation {operation}, seed {seed}");
            hand_out(Case {
                image: moment.power_cut(seed),
                steps: watcher.steps(),
                bounds,
                seen,
                epoch: watcher.epoch.load(Ordering::SeqCst),
                backed_up: watcher.backed_up.load(Ordering::SeqCst),
                seed,
                what,
            });
        }
    });
    let failed = |error| panic!("{error}");
    assert!(life.live(rig, &disk, STEPS, failed).is_ok());
    disk.unwatch();
    disk.count()
}

/// Opens what is left; every third time the power is cut again during the open. Returns whether it
/// was.
fn examine(rig: &Rig, case: Case) -> bool {
    let Case { image, steps, bounds, seen, epoch, backed_up, seed, what } = case;
    let mut disk = rig.disk(&image);
    let (mut random_seed, mut again) = (seed, false);
    if seed.is_multiple_of(3) {
        let cut_at = 1 + random(&mut random_seed) % 12;
        (disk, again) = cut_while_opening(rig, &disk, (cut_at, seed));
    }
    if seed % 3 == 1 {
        check_backup(rig, &disk, &steps, backed_up, &what);
    }
    let (store, at) = check(rig, &disk, &steps, bounds, &what);
    assert!(steps[at].head >= seen, "{what}: readers had seen {seen}, {} is left", steps[at].head);
    let now = store.info().epoch;
    assert!(now > epoch, "{what}: epoch {epoch} is used again, and with it the offsets it lost");
    // It continues, and killing the process loses nothing.
    let life = Life::new();
    life.go_on_from(&steps, at, bounds);
    life.durable_step(&store).expect(&what);
    disk.freeze();
    drop(store);
    disk.thaw();
    let left = disk.moment().power_cut(seed + 1);
    let disk = rig.disk(&left);
    let steps = life.steps();
    drop(check(rig, &disk, &steps, (at + 1, at + 1), &format!("{what}, then once more")));
    again
}

fn cut_while_opening(rig: &Rig, disk: &SimDisk, (cut_at, seed): (u64, u64)) -> (SimDisk, bool) {
    disk.cut_before(cut_at, seed);
    // Only the crash image counts of this opening; the next one reports its content.
    let store = rig.open_quietly(disk);
    disk.freeze();
    drop(store);
    let again = disk.is_cut();
    (disk.after_cut(), again)
}

/// Cuts the power in one run after another until `states` states were examined. Returns their
/// number, and how many came from a second cut.
fn cut(rig: impl Fn() -> Rig, media: MediaChoice, wanted: u64) -> (u64, u64) {
    let (examined, twice) = (AtomicU64::new(0), AtomicU64::new(0));
    let (send, receive) = sync_channel::<Case>(8);
    // Owned by the receivers: when a check fails they are dropped, and sending ends.
    let receive: Arc<Mutex<Receiver<Case>>> = Arc::new(Mutex::new(receive));
    let rigs = [(); 3].map(|()| rig());
    let (lives, checks) = rigs.split_first().unwrap();
    std::thread::scope(|scope| {
        for rig in checks {
            let (receive, examined, twice) = (Arc::clone(&receive), &examined, &twice);
            scope.spawn(move || {
                loop {
                    let received = receive.lock().recv();
                    let Ok(case) = received else { break };
                    let again = examine(rig, case);
                    twice.fetch_add(u64::from(again), Ordering::Relaxed);
                    examined.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        drop(receive);
        let (mut sent, mut round) = (0, 0);
        while sent < wanted {
            let send = send.clone();
            let hand_out = move |case| drop(send.send(case));
            let operations = live(lives, media, (round * CUTS, CUTS), hand_out);
            assert!(operations > 100, "{operations}");
            sent += operations * CUTS;
            round += 1;
        }
        drop(send);
    });
    (examined.into_inner(), twice.into_inner())
}

/// Cuts the power often enough to be conclusive.
fn cut_states(rig: impl Fn() -> Rig, media: MediaChoice, how: &str) {
    let (states, twice) = cut(rig, media, if is_long() { 250_000 } else { 5_000 });
    assert!(twice * 20 > states, "recovery is cut off too seldom: {twice} of {states}");
    tell(&format!("{states} states after a power cut, {twice} after two, {how} {media:?}"));
}

#[test]
fn a_power_cut_under_sync_mapped() {
    cut_states(|| Rig::new(SyncPolicy::Sync, MEDIA[0]), MEDIA[0], "sync");
}

#[test]
fn a_power_cut_under_sync_positioned() {
    cut_states(|| Rig::new(SyncPolicy::Sync, MEDIA[1]), MEDIA[1], "sync");
}

#[test]
fn a_power_cut_with_a_journal_mapped() {
    cut_states(|| Rig::journaled(MEDIA[0]), MEDIA[0], "journal");
}

#[test]
fn a_power_cut_with_a_journal_positioned() {
    cut_states(|| Rig::journaled(MEDIA[1]), MEDIA[1], "journal");
}

#[test]
fn a_power_cut_under_none_mapped() {
    cut_states(|| Rig::new(SyncPolicy::None, MEDIA[0]), MEDIA[0], "none");
}

#[test]
fn a_power_cut_under_none_positioned() {
    cut_states(|| Rig::new(SyncPolicy::None, MEDIA[1]), MEDIA[1], "none");
}
