//! Groups that meet a full disk: whatever is acknowledged of them is durable, and so is everything
//! before, although one of their batches found no room for the segment it needed.

use std::sync::Arc;

use bytes::Bytes;
use rustix::io::Errno;

use super::workload::keyed;
use super::{Holds, MEDIA, Rig, cursor_name, look};
use crate::append::Batch;
use crate::error::{AppendError, Shortage};
use crate::media::faulty::{Faults, FaultyFiles};
use crate::media::sim::{Image, SimDisk};
use crate::options::{MediaChoice, SyncPolicy};
use crate::store::{Health, Store};
use crate::testing::frame;
use crate::value::{CursorChange, CursorValue, ExpectRevision, Meta, NewFrame};

/// Bytes of a meta that soon requires another segment.
const LARGE: usize = 14_000;

fn large(n: u64) -> Batch {
    let meta = Meta::parse(format!("[{n},\"{}\"]", "x".repeat(LARGE))).unwrap();
    NewFrame { meta, ..frame("a", n) }.into()
}

fn open(rig: &Rig, disk: &SimDisk, faults: &Arc<Faults>) -> Store {
    let files = Arc::new(FaultyFiles::new(disk.clone(), faults));
    let inner = crate::recovery::open_with(rig.path(), rig.options.clone(), files).unwrap();
    Store { inner: Arc::new(inner) }
}

/// A store that has room for short frames only, and how many it holds.
fn filled(rig: &Rig, disk: &SimDisk) -> (Store, u64) {
    let faults = Faults::none();
    let store = open(rig, disk, &faults);
    store.append(large(0)).unwrap();
    faults.set(1, u64::MAX, Errno::NOSPC);
    faults.only_space();
    let refused =
        |n: &u64| store.append(large(*n)) == Err(AppendError::StorageFull(Shortage::Space));
    let count = (1..100).find(refused).unwrap();
    (store, count)
}

#[test]
fn what_a_group_holds_besides_a_batch_without_room_is_durable() {
    for (media, journaled) in [(MEDIA[0], false), (MEDIA[0], true), (MEDIA[1], true)] {
        for behind in [false, true] {
            let rig = match journaled {
                true => Rig::journaled(media),
                false => Rig::new(SyncPolicy::Sync, media),
            };
            let what = format!("{media:?}, journaled {journaled}, behind {behind}");
            let disk = rig.disk(&Image::new());
            let (store, count) = filled(&rig, &disk);
            let before = store.submit(frame("a", count).into());
            let refused = store.submit(large(0));
            let after = behind.then(|| store.submit(frame("a", count + 1).into()));
            assert!(before.wait().unwrap().durable, "{what}");
            assert_eq!(refused.wait(), Err(AppendError::StorageFull(Shortage::Space)), "{what}");
            let after = after.map(|handle| assert!(handle.wait().unwrap().durable, "{what}"));
            let count = count + 1 + after.map_or(0, |()| 1);
            for seed in 1..9 {
                let other = Rig::new(SyncPolicy::Sync, media);
                let left = other.disk(&disk.moment().power_cut(seed));
                let store = other.open_quietly(&left).unwrap();
                assert_eq!(store.info().health, Health::Writable, "{what}, seed {seed}");
                let Holds { frames, .. } = look(&store, &what);
                assert_eq!(frames.len() as u64, count, "{what}, seed {seed}");
            }
        }
    }
}

/// A batch that only sets a cursor.
fn cursor(n: u64) -> Batch {
    let set = Some(CursorValue { offset: 0, state: Bytes::from(n.to_string()) });
    let change = CursorChange { name: cursor_name(n % 3), expect: ExpectRevision::Any, set };
    Batch { cursors: vec![change], ..Batch::default() }
}

/// A store on its own simulated disk, and what makes that disk full.
struct Bench {
    rig: Rig,
    disk: SimDisk,
    faults: Arc<Faults>,
    store: Store,
}

impl Bench {
    fn new(media: MediaChoice) -> Self {
        let rig = Rig::new(SyncPolicy::Sync, media);
        let disk = rig.disk(&Image::new());
        let faults = Faults::none();
        let store = open(&rig, &disk, &faults);
        Self { rig, disk, faults, store }
    }

    fn fill_percent(&self) -> u64 {
        self.store.inner.writer.lock().appender().fill_percent()
    }
}

#[test]
fn cursors_stay_when_the_segment_after_them_has_no_room_for_its_checkpoint() {
    for media in MEDIA {
        let bench = Bench::new(media);
        let Bench { disk, faults, store, .. } = &bench;
        let inner = &store.inner;
        let fills = |n| store.append(cursor(n)).is_ok() && bench.fill_percent() >= 90;
        let count = (0..).find(|&n| fills(n)).unwrap();
        inner.sealing.prepare_spare(inner).unwrap();
        let held = look(store, "before").cursors;
        assert!(
            held.len() == 3
                && held.values().any(|(_, state)| *state == count.to_string().as_bytes())
        );
        faults.room_for(4096);
        for n in 0..3 {
            assert_eq!(store.append(large(n)), Err(AppendError::StorageFull(Shortage::Space)));
            inner.sealing.seal_now(inner).unwrap();
        }
        let check = |image: Image, frames: usize, what: &str| {
            let other = Rig::new(SyncPolicy::Sync, media);
            let store = other.open_quietly(&other.disk(&image)).unwrap();
            assert_eq!(store.info().health, Health::Writable, "{what}");
            let seen = look(&store, what);
            assert_eq!((seen.cursors, seen.frames.len()), (held.clone(), frames), "{what}");
        };
        check(disk.image(), 0, "killed");
        (1..9).for_each(|seed| check(disk.moment().power_cut(seed), 0, "without power"));
        let spares = disk.image().into_keys().filter(|path| path.extension().is_some_and(is_tmp));
        assert_eq!(spares.count(), 1, "the one that was prepared");
        faults.clear();
        store.append(large(0)).unwrap();
        inner.sealing.seal_now(inner).unwrap();
        check(disk.image(), 1, "killed with room");
        (1..9).for_each(|seed| check(disk.moment().power_cut(seed), 1, "with room"));
    }
}

fn is_tmp(extension: &std::ffi::OsStr) -> bool {
    extension == "tmp"
}

#[test]
fn a_segment_there_is_no_room_to_name_gives_its_space_back() {
    for media in MEDIA {
        let bench = Bench::new(media);
        let Bench { disk, faults, store, .. } = &bench;
        let inner = &store.inner;
        let mut count = 0;
        while bench.fill_percent() < 80 {
            store.append(frame("a", count).into()).unwrap();
            count += 1;
        }
        let files = || disk.image().into_keys().filter(|path| path.starts_with("log")).count();
        for _ in 0..3 {
            inner.sealing.prepare_spare(inner).unwrap();
            faults.set(1, u64::MAX, Errno::NOSPC);
            faults.only_space();
            assert_eq!(store.append(large(count)), Err(AppendError::StorageFull(Shortage::Space)));
            assert_eq!(files(), 1, "{media:?}");
            // Another offset, and hence another file name the next time.
            store.append(frame("a", count).into()).unwrap();
            count += 1;
            faults.clear();
        }
        store.append(large(count)).unwrap();
        assert_eq!(look(store, "with room").frames.len() as u64, count + 1);
    }
}

#[test]
fn derived_files_that_cannot_be_written_are_written_later() {
    for media in MEDIA {
        // The operations of writing one segment's files, each of which fails in turn.
        for failing in 1.. {
            let Bench { rig, disk, faults, store } = Bench::new(media);
            let inner = &store.inner;
            let mut held = Holds::default();
            store.append(keyed(&mut held, 0)).unwrap();
            for n in 1.. {
                store.append(large(n)).unwrap();
                if store.info().segments > 1 {
                    break;
                }
            }
            inner.sealing.seal_now(inner).unwrap();
            faults.set(failing, failing, Errno::NOSPC);
            let refused = inner.sealing.index_sealed(inner);
            let tried = faults.count();
            faults.clear();
            if tried < failing {
                assert!(failing > 10 && refused.unwrap(), "{media:?}: {tried} operations");
                break;
            }
            let what = format!("{media:?}, operation {failing}");
            if refused.is_err() {
                assert!(inner.sealing.index_sealed(inner).unwrap(), "{what}");
            }
            assert_eq!(inner.index.layers_in_memory(), 0, "{what}");
            assert!(!inner.sealing.index_sealed(inner).unwrap(), "{what}: twice");
            let before = look(&store, &what);
            drop(store);
            let store = rig.open_quietly(&disk).unwrap();
            assert_eq!(look(&store, &what).frames, before.frames, "{what}");
            let again = store.append(keyed(&mut Holds::default(), 0)).unwrap();
            assert!(again.repeated, "{what}: the key is lost");
        }
    }
}
