//! Collections that are interrupted, and operations that fail during them.

use parking_lot::Mutex;
use rustix::io::Errno;

use super::*;
use crate::compact::CompactReport;
use crate::error::{AppendError, CompactError, GcError, RemoveNowError};
use crate::io_error::IoError;
use crate::media::Files;
use crate::media::sim::{Image, SimDisk};
use crate::options::MediaChoice;
use crate::store::Health;
use crate::testing::open_on;
use crate::value::{FrameId, Meta};

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
            store.inner.poison(IoError::other("a test says so"));
        }
    }
}

/// A power cut may bring back a state that a later one has superseded, until the collection has made
/// that one durable.
#[test]
fn a_power_cut_at_any_operation_leaves_a_cursor_with_its_state() {
    const STATES: u64 = 12;
    let name = CursorName::parse("handler").unwrap();
    for sync in [SyncPolicy::None, SyncPolicy::Sync] {
        let dir = fast_dir();
        let disk = SimDisk::new(&Image::new(), dir.path(), MediaChoice::Auto);
        let store = open_sim(dir.path(), &disk, sync);
        let set = |n: u64| {
            let set = Some(CursorValue { offset: n, state: noise(n, 20_000) });
            let change = CursorChange { name: name.clone(), expect: ExpectRevision::Any, set };
            let batch = crate::Batch { cursors: vec![change], ..frame("a", n).into() };
            store.append(batch).unwrap();
        };
        (0..STATES).for_each(set);
        let cases = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&cases);
        disk.watch(move |operation, moment| {
            for seed in 0..8 {
                noted.lock().push((operation, moment.power_cut(seed * 1000 + operation)));
            }
        });
        let report = store.gc(&GcOptions::everything()).unwrap();
        assert_eq!(report.swept, STATES - 1);
        disk.unwatch();
        drop(store);
        let cases = std::mem::take(&mut *cases.lock());
        let mut found = BTreeSet::new();
        for (operation, image) in cases {
            let disk = SimDisk::new(&image, dir.path(), MediaChoice::Auto);
            let store = open_sim(dir.path(), &disk, sync);
            let count = crate::testing::numbers(&store).len() as u64;
            assert_eq!(store.info().health, Health::Writable, "cut at {operation}");
            let cursor = store.cursor(&name).unwrap();
            match count.checked_sub(1) {
                None => assert!(cursor.is_none(), "cut at {operation}"),
                Some(last) => {
                    let cursor = cursor.expect("the batch holds both");
                    assert_eq!((cursor.offset, cursor.state), (last, noise(last, 20_000)));
                }
            }
            assert!(sync == SyncPolicy::None || count == STATES, "cut at {operation}: {count}");
            found.insert(count);
        }
        assert!(found.contains(&STATES), "{found:?}");
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
                store.inner.poison(IoError::other("a test says so"));
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

/// Frames in the first and in the last segment of which no byte may remain: their ids, and the
/// bytes to search for.
fn fill_secret(store: &Store) -> (Vec<FrameId>, Vec<Bytes>) {
    let (mut ids, mut secrets) = (Vec::new(), Vec::new());
    for n in [9001, 9002] {
        let text = format!("secret-{n}");
        let meta = Meta::parse(format!("\"{text}\"")).unwrap();
        let secret = noise(n, 700);
        let new = NewFrame { meta, body: Body::Inline(secret.clone()), ..frame("secret", n) };
        ids.push(store.append(new.into()).unwrap().frames[0].id);
        secrets.extend([text.into(), secret.slice(300..340)]);
        if n == 9001 {
            fill(store);
            let filler = format!("\"{}\"", "f".repeat(8000));
            (0..9).for_each(|n| {
                let meta = Meta::parse(filler.clone()).unwrap();
                store.append(NewFrame { meta, ..frame("pad", n) }.into()).unwrap();
            });
        }
    }
    assert!(store.info().segments > 1);
    (ids, secrets)
}

fn holds(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

/// However little was left of it: a repeated removal removes the rest.
#[test]
fn a_removal_now_that_is_cut_off_is_finished_by_the_next() {
    let dir = fast_dir();
    let disk = SimDisk::new(&Image::new(), dir.path(), MediaChoice::Auto);
    let store = open_sim(dir.path(), &disk, SyncPolicy::Sync);
    let (ids, secrets) = fill_secret(&store);
    let cases = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&cases);
    disk.watch(move |operation, moment| {
        for seed in 0..2 {
            let image = moment.power_cut(seed * 1000 + operation);
            noted.lock().push((format!("cut at {operation}, seed {seed}"), image));
        }
    });
    store.remove_now(&ids).unwrap();
    disk.unwatch();
    drop(store);
    let cases = std::mem::take(&mut *cases.lock());
    assert!(cases.len() > 2 * 20, "only {} states", cases.len());
    for (what, image) in cases {
        let disk = SimDisk::new(&image, dir.path(), MediaChoice::Auto);
        let store = open_sim(dir.path(), &disk, SyncPolicy::Sync);
        store.remove_now(&ids).expect(&what);
        check_named(&store, COUNT);
        assert!(ids.iter().all(|&id| store.get(id).unwrap().is_none()), "{what}");
        let image = disk.image();
        for (path, bytes) in &image {
            let found = secrets.iter().position(|secret| holds(bytes, secret));
            assert_eq!(found, None, "{what}: in {}", path.display());
        }
    }
}

/// Whether the store must be reopened.
fn is_failed(done: Result<CompactReport, RemoveNowError>, what: &str) -> bool {
    match done {
        Ok(_) => false,
        Err(RemoveNowError::Append(AppendError::Poisoned(_))) => true,
        Err(RemoveNowError::Compact(CompactError::Poisoned(_))) => true,
        Err(RemoveNowError::Blobs(GcError::Poisoned(_))) => true,
        Err(error) => panic!("{what}: {error}"),
    }
}

#[test]
fn a_removal_now_that_fails_is_finished_by_the_next() {
    for errno in [Errno::IO, Errno::NOSPC] {
        for k in 1.. {
            let (dir, faults) = (fast_dir(), Faults::none());
            let store = open_faulty(dir.path(), options(SyncPolicy::None), &faults).unwrap();
            let (ids, secrets) = fill_secret(&store);
            faults.set(k, k, errno);
            let removed = store.remove_now(&ids);
            let hit = faults.count() >= k;
            let what = format!("{errno:?} {k}: {removed:?}");
            faults.clear();
            let goes_on = errno == Errno::NOSPC && !is_failed(store.remove_now(&ids), &what);
            let store = if goes_on {
                store
            } else {
                store.inner.poison(IoError::other("a test says so"));
                drop(store);
                open(dir.path(), SyncPolicy::None)
            };
            store.remove_now(&ids).expect(&what);
            check_named(&store, COUNT);
            store.close().expect(&what);
            drop(store);
            // An old file whose deletion failed is deleted on open.
            drop(open(dir.path(), SyncPolicy::None));
            let bodies = [9001, 9002].map(|n| noise(n, 700));
            assert!(bodies.iter().all(|body| !lies_in_packs(dir.path(), body)), "{what}");
            let listed = ["log", "blobs"].map(|sub| fs::read_dir(dir.path().join(sub)).unwrap());
            for entry in listed.into_iter().flatten() {
                let path = entry.unwrap().path();
                let bytes = fs::read(&path).unwrap();
                let found = secrets.iter().position(|secret| holds(&bytes, secret));
                assert_eq!(found, None, "{what}: in {}", path.display());
            }
            if !hit {
                break;
            }
        }
    }
}

/// A damaged entry may hold a body, so no removal is reported, and the log keeps its frames.
#[test]
fn a_removal_now_tells_of_a_damaged_pack_until_it_is_mended() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let (ids, secrets) = fill_secret(&store);
    store.inner.blobs.sweep(None).seal_all().unwrap();
    let damaged = packs(dir.path()).into_iter().find(|path| {
        let bytes = fs::read(path).unwrap();
        holds(&bytes, &secrets[1])
    });
    let damaged = damaged.expect("a pack with the first body");
    let sound = fs::read(&damaged).unwrap();
    let at = sound.windows(24).position(|bytes| *bytes == body(0)[150..174]).unwrap();
    edit(&damaged, |bytes| bytes[at] ^= 1);
    for _ in 0..2 {
        let told = store.remove_now(&ids[..1]);
        let is_told = matches!(told, Err(RemoveNowError::Blobs(GcError::Read(_))));
        assert!(is_told, "{told:?}");
    }
    assert!(store.get(ids[0]).unwrap().is_none());
    edit(&damaged, |bytes| bytes.copy_from_slice(&sound));
    store.remove_now(&ids[..1]).unwrap();
    assert!(!lies_in_packs(dir.path(), &noise(9001, 700)));
    // A frame without a body does not concern the packs.
    let plain = store.append(frame("plain", 1).into()).unwrap().frames[0].id;
    let pack = packs(dir.path()).remove(0);
    edit(&pack, |bytes| bytes[70] ^= 1);
    assert_eq!(store.remove_now(&[plain]).unwrap().rewritten, 1);
}

/// A collection that waited for a pack to be sealed was told that the store is closed when that
/// failed, and the store went on until the next blob.
#[test]
fn a_failed_write_is_told_as_one_and_poisons_the_store() {
    let mut poisoned = 0;
    for k in 1.. {
        let (dir, faults) = (fast_dir(), Faults::none());
        let store = open_faulty(dir.path(), options(SyncPolicy::None), &faults).unwrap();
        (0..20).for_each(|n| _ = store.blob_put(&body(n)).unwrap());
        faults.set(k, u64::MAX, Errno::IO);
        let done = store.gc(&GcOptions::everything());
        let hit = faults.count() >= k;
        faults.clear();
        match done {
            Ok(_) | Err(GcError::Read(_)) => {}
            Err(GcError::Poisoned(why)) => {
                assert!(why.to_string().contains(&Errno::IO.to_string()), "{k}: {why}");
                assert_eq!(store.info().health, Health::Poisoned(why), "{k}");
                poisoned += 1;
            }
            Err(error) => panic!("{k}: {error}"),
        }
        if !hit {
            break;
        }
    }
    assert!(poisoned > 2, "{poisoned}");
}
