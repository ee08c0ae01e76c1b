//! Collections that are interrupted, and operations that fail during them.

use parking_lot::Mutex;
use rustix::io::Errno;

use super::*;
use crate::media::Files;
use crate::media::sim::{Image, SimDisk};
use crate::options::MediaChoice;
use crate::store::Health;
use crate::testing::open_on;

const COUNT: u64 = 150;

fn fill(store: &Store) {
    for n in 0..COUNT {
        match n % 3 {
            0 => append(store, n, body(n)),
            _ => drop(store.blob_put(&body(n)).unwrap()),
        }
    }
    store.blob_put(&noise(1, 40_000)).unwrap();
}

/// Checks the store after a collection: named blobs exist, the next collection finds the rest, and
/// the manifest names exactly the packs that exist.
fn check_left(store: &Store, names: &dyn Fn() -> Vec<String>, what: &str) {
    assert_eq!(store.info().health, Health::Writable, "{what}");
    check_named(store, COUNT);
    store.gc(&GcOptions::everything()).expect(what);
    check(store, COUNT, false);
    assert_eq!(read(store, &noise(1, 40_000)), None, "{what}");
    let state = store.inner.env.manifest.state();
    let packs = state.files.iter().filter(|file| file.kind == FileKind::Pack);
    let mut named: Vec<String> = packs
        .inspect(|file| assert_ne!(file.state, FileState::Dropped, "{what}"))
        .map(|file| format!("{:020}.{}.pack", file.base, file.generation))
        .collect();
    named.sort();
    let mut there = names();
    there.retain(|name| name.ends_with(".pack"));
    there.sort();
    assert_eq!(named, there, "{what}");
}

fn open_sim(dir: &Path, disk: &SimDisk, sync: SyncPolicy) -> Store {
    open_on(dir, options(sync), Arc::new(disk.clone())).unwrap()
}

/// A blob that was put and not synced is found by an append that asks to be durable.
#[test]
fn a_hit_that_is_not_durable_joins_the_sync_of_its_frame() {
    let dir = fast_dir();
    let disk = SimDisk::new(&Image::new(), dir.path(), MediaChoice::Auto);
    let store = open_sim(dir.path(), &disk, SyncPolicy::None);
    let bodies = [noise(1, 500), noise(2, 2000)];
    let hash = bodies.each_ref().map(|body| store.blob_put(body).unwrap())[0];
    let inline = NewFrame { body: Body::Inline(bodies[1].clone()), ..frame("a", 1) };
    for frame in [NewFrame { body: Body::Stored(hash), ..frame("a", 0) }, inline] {
        let batch = crate::Batch { durable: true, ..frame.into() };
        assert!(store.append(batch).unwrap().durable);
    }
    let left = disk.moment().power_cut(1);
    drop(store);
    let disk = SimDisk::new(&left, dir.path(), MediaChoice::Auto);
    let store = open_sim(dir.path(), &disk, SyncPolicy::None);
    assert_eq!(crate::testing::numbers(&store), [0, 1]);
    for body in &bodies {
        assert_eq!(read(&store, body).as_ref(), Some(body));
    }
}

#[test]
fn a_power_cut_at_any_operation_loses_nothing_that_is_named() {
    let dir = fast_dir();
    let disk = SimDisk::new(&Image::new(), dir.path(), MediaChoice::Auto);
    let store = open_sim(dir.path(), &disk, SyncPolicy::Sync);
    fill(&store);
    store.inner.blobs.sweep(None).seal_all().unwrap();
    let cases = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&cases);
    disk.watch(move |operation, moment| {
        for seed in 0..4 {
            let image = moment.power_cut(seed * 1000 + operation);
            noted.lock().push((format!("cut at {operation}, seed {seed}"), image));
        }
    });
    store.gc(&GcOptions::everything()).unwrap();
    disk.unwatch();
    drop(store);
    let cases = std::mem::take(&mut *cases.lock());
    assert!(cases.len() > 4 * 20, "only {} states", cases.len());
    for (what, image) in cases {
        let disk = SimDisk::new(&image, dir.path(), MediaChoice::Auto);
        for _ in 0..2 {
            let store = open_sim(dir.path(), &disk, SyncPolicy::Sync);
            let list = || Files::list(&disk, &store.inner.env.blob_dir()).unwrap();
            check_left(&store, &list, &what);
            // Prevents a clean close.
            store.inner.poison(&"a test says so");
        }
    }
}

#[test]
fn an_operation_that_fails_loses_nothing_that_is_named() {
    for errno in [Errno::IO, Errno::NOSPC] {
        for forever in [false, true] {
            for k in 1.. {
                let dir = fast_dir();
                let faults = Faults::none();
                let store = open_faulty(dir.path(), options(SyncPolicy::None), &faults).unwrap();
                fill(&store);
                store.inner.blobs.sweep(None).seal_all().unwrap();
                faults.set(k, if forever { u64::MAX } else { k }, errno);
                let collected = store.gc(&GcOptions::everything());
                let hit = faults.count() >= k;
                let what = format!("{errno:?} {forever} {k}: {collected:?}");
                check_named(&store, COUNT);
                faults.clear();
                if errno == Errno::NOSPC {
                    assert_eq!(store.info().health, Health::Writable, "{what}");
                    append(&store, 1, noise(77, 100));
                }
                store.inner.poison(&"a test says so");
                drop(store);
                let store = open(dir.path(), SyncPolicy::None);
                let list = || {
                    let dir = fs::read_dir(dir.path().join("blobs")).unwrap();
                    dir.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
                };
                check_left(&store, &list, &what);
                if !hit {
                    break;
                }
            }
        }
    }
}
