//! Collections by the thread that compacts: when they are due, and what they leave behind.

use std::time::Duration;

use super::*;
use crate::blob::TOUCH_MS;
use crate::compact::thread::collect;
use crate::format::super_file::FileEntry;
use crate::options::CollectOptions;
use crate::space::SpaceStats;
use crate::testing::{files_in, noise};
use crate::value::{CursorChange, CursorName, CursorValue, ExpectRevision, IdempotencyKey};

const MIB: u64 = 1024 * 1024;
const HOUR: u64 = 60 * 60 * 1000;
const DAY: u64 = 24 * HOUR;
const COLLECT: CollectOptions = CollectOptions {
    grace: Duration::from_millis(HOUR),
    dead_percent: 25,
    grown_bytes: 2 * MIB,
    bytes_per_second: None,
};

/// Small packs, and collections without a thread: [`look`] does the thread's work.
fn with(clock: &Arc<StillClock>) -> StoreOptions {
    let (clock, collection) = (clock.clone(), Some(COLLECT));
    StoreOptions { clock, collection, pack_bytes: MIB, ..options(SyncPolicy::None) }
}

fn open_still(dir: &Path) -> (Store, Arc<StillClock>) {
    let clock = StillClock::at(100 * DAY);
    let store = Store::open(dir, with(&clock)).unwrap();
    store.inner.space.begin(&store.inner);
    (store, clock)
}

/// A frame with a body of 100 KiB.
fn stout(topic: &str, n: u64) -> NewFrame {
    NewFrame { body: Body::Inline(noise(n, 100 * 1024)), ..heavy(topic, n) }
}

fn space(store: &Store) -> SpaceStats {
    store.stats().space
}

/// Looks once, and returns whether it collected.
fn look(store: &Store) -> bool {
    let before = space(store).collections;
    collect(&store.inner);
    let after = space(store);
    assert_eq!(after.collect_failure, None);
    after.collections > before
}

fn pass(clock: &StillClock, ms: u64) {
    clock.0.fetch_add(ms, Ordering::Relaxed);
}

fn pack_bytes(dir: &Path) -> u64 {
    let packs = files_in(&dir.join("blobs"), "pack");
    packs.iter().map(|path| fs::metadata(path).map_or(0, |of| of.len())).sum()
}

/// 30 bodies of 100 KiB per hour, each superseding the last one: 60 MB in all.
#[test]
fn a_store_of_superseded_bodies_gives_back_their_space_by_itself() {
    let dir = fast_dir();
    let clock = StillClock::at(100 * DAY);
    let compaction = Some(CompactOptions { bytes_per_second: None, ..CompactOptions::default() });
    let store = Store::open(dir.path(), StoreOptions { compaction, ..with(&clock) }).unwrap();
    let wait = |before| {
        // As it does every 30 s.
        store.inner.compaction.wake();
        store.inner.space.wait_collections(before);
        assert_eq!(space(&store).collect_failure, None);
    };
    for round in 0..20 {
        let before = space(&store).collections;
        pass(&clock, HOUR);
        for n in 0..30 {
            append(&store, last(1, stout("state", round * 30 + n)));
        }
        // Otherwise a collection skips packs that the keeper has not sealed yet.
        store.inner.blobs.wait_sealed();
        wait(before);
        // The bodies of two hours, as a pack is young for an hour and a minute, and preallocated
        // files.
        let bytes = pack_bytes(dir.path());
        assert!(bytes <= 13 * MIB, "{bytes} in round {round}");
    }
    let told = space(&store);
    assert!(told.pack_freed_bytes > 45 * MIB, "{told:?}");
    assert_eq!(told.collected_ms, Some(100 * DAY + 20 * HOUR));
    assert!(told.pack_dead_bytes.is_some_and(|bytes| bytes > MIB), "what is young: {told:?}");
    // Nothing more is appended: a day later the rest is freed, except for the pack in use.
    pass(&clock, DAY);
    wait(told.collections);
    let told = space(&store);
    assert!(told.collected_bytes > MIB && told.pack_dead_bytes == Some(0), "{told:?}");
    assert!(pack_bytes(dir.path()) <= 4 * MIB);
    let frames: Vec<_> = store.read(&ReadOptions::default()).unwrap().flatten().collect();
    assert_eq!(frames.len(), 1);
    assert_eq!(store.body(&frames[0], MIB).unwrap(), Some(noise(599, 100 * 1024)));
}

fn remove_at(store: &Store, offset: u64) {
    let id = store.get_at(offset).unwrap().unwrap().id();
    store.remove(id).unwrap();
}

#[test]
fn what_only_grows_is_looked_at_once() {
    let dir = fast_dir();
    let (store, clock) = open_still(dir.path());
    let mut numbers = 0..;
    let mut grow = || {
        numbers.by_ref().take(40).for_each(|n| _ = append(&store, stout("a", n)));
        pass(&clock, 30 * DAY);
    };
    assert!(!look(&store), "there is nothing");
    grow();
    assert!(look(&store), "what is gone was not known");
    grow();
    assert!(look(&store), "nor whether it was in the pack in use");
    grow();
    assert!(!look(&store), "nothing is gone");
    remove_at(&store, 3);
    assert!(look(&store), "a frame was removed");
    pass(&clock, 30 * DAY);
    assert!(!look(&store), "the pack in use is as it was");
    grow();
    assert!(look(&store), "it is sealed");
    grow();
    assert!(!look(&store));
}

#[test]
fn what_was_too_young_is_looked_at_again() {
    let dir = fast_dir();
    let (store, clock) = open_still(dir.path());
    (0..20).for_each(|n| _ = append(&store, stout("a", n)));
    store.inner.blobs.seal_all();
    (0..10).for_each(|n| remove_at(&store, n));
    pass(&clock, HOUR);
    assert!(look(&store) && space(&store).pack_dead_bytes > Some(1_000_000), "{:?}", space(&store));
    assert_eq!(space(&store).pack_freed_bytes, 0);
    pass(&clock, DAY);
    assert!(look(&store) && space(&store).pack_dead_bytes == Some(0), "{:?}", space(&store));
    assert!(space(&store).pack_freed_bytes > 900 * 1024);
    pass(&clock, DAY);
    assert!(!look(&store));
}

#[test]
fn a_collection_waits_for_growth_or_a_day() {
    let dir = fast_dir();
    let (store, clock) = open_still(dir.path());
    (0..20).for_each(|n| _ = append(&store, stout("a", n)));
    assert!(!look(&store), "neither");
    pass(&clock, HOUR - 1);
    assert!(!look(&store));
    pass(&clock, 1);
    assert!(look(&store), "an hour after it was opened");
    let remove = |at| remove_at(&store, at);
    remove(1);
    pass(&clock, DAY - 1);
    assert!(!look(&store));
    pass(&clock, 1);
    assert!(look(&store), "a day later");
    remove(2);
    // 20 MB of 100 KiB bodies stay, and a quarter of that is more than 2 MiB.
    (20..200).for_each(|n| _ = append(&store, stout("a", n)));
    pass(&clock, 1000);
    assert!(look(&store), "it has grown");
    remove(3);
    (200..230).for_each(|n| _ = append(&store, stout("a", n)));
    pass(&clock, 1000);
    assert!(!look(&store), "by less than a quarter");
    (230..260).for_each(|n| _ = append(&store, stout("a", n)));
    assert!(look(&store), "by more than a quarter");
    // A clock that was ahead does not delay it.
    remove(4);
    clock.0.store(10 * DAY, Ordering::Relaxed);
    assert!(!look(&store));
    pass(&clock, DAY);
    assert!(look(&store));
}

#[test]
fn bodies_that_are_put_and_never_named_are_collected() {
    let dir = fast_dir();
    let (store, clock) = open_still(dir.path());
    // Until there is no other reason.
    let settle = || {
        store.inner.blobs.seal_all();
        pass(&clock, DAY);
        while look(&store) {
            pass(&clock, DAY);
        }
    };
    append(&store, stout("a", 1));
    settle();
    // Those that are named, one of them by a cursor, keep their place.
    let put = |n| store.blob_put(&noise(n, 100 * 1024)).unwrap();
    let frames = (100..110).map(|n| NewFrame { body: Body::Stored(put(n)), ..heavy("a", n) });
    store.append(Batch { frames: frames.collect(), ..Batch::default() }).unwrap();
    let state = noise(110, 100 * 1024);
    store.blob_put(&state).unwrap();
    let set = CursorChange {
        name: CursorName::parse("c").unwrap(),
        expect: ExpectRevision::Any,
        set: Some(CursorValue { offset: 1, state }),
    };
    store.append(Batch { cursors: vec![set], ..Batch::default() }).unwrap();
    store.inner.blobs.seal_all();
    pass(&clock, 30 * DAY);
    assert!(!look(&store), "all are named");
    // Through a writer too; an ephemeral frame keeps nothing.
    let mut streamed = store.blob_writer().unwrap();
    io::Write::write_all(&mut streamed, &noise(200, 100 * 1024)).unwrap();
    streamed.finish().unwrap();
    let (named, hash) = (put(201), put(202));
    let of = |hash, ttl| NewFrame { ttl, body: Body::Stored(hash), ..heavy("a", 0) };
    let frames = vec![of(named, Ttl::Forever), of(hash, Ttl::Ephemeral)];
    store.append(Batch { frames, ..Batch::default() }).unwrap();
    store.inner.blobs.seal_all();
    pass(&clock, HOUR + TOUCH_MS - 1);
    assert!(!look(&store), "the grace is not over");
    let before = pack_bytes(dir.path());
    pass(&clock, 1);
    assert!(look(&store), "nothing has named two of them");
    assert!(pack_bytes(dir.path()) + 190 * 1024 < before);
    assert_eq!(store.blob(&hash).unwrap().map(|blob| blob.len()), None);
    assert!(store.has_blob(&named).unwrap());
    pass(&clock, 30 * DAY);
    assert!(!look(&store), "once is enough");
}

/// Each of them alone makes a collection due. So does a body that was too young the last time, so
/// each check starts by collecting until nothing is due.
#[test]
fn whatever_leaves_bodies_behind_is_noticed() {
    let dir = fast_dir();
    let (store, clock) = open_still(dir.path());
    let rest = |what: &str| {
        let looks = (0..5).take_while(|_| {
            pass(&clock, DAY);
            look(&store)
        });
        assert!(looks.count() < 5, "it comes to rest after {what}");
    };
    (0..20).for_each(|n| _ = append(&store, stout("a", n)));
    let brief = NewFrame { ttl: Ttl::TimeMs(40 * DAY), ..stout("brief", 1000) };
    append(&store, brief);
    let name = CursorName::parse("reader").unwrap();
    let set = |n| {
        let value = CursorValue { offset: 0, state: noise(n, 20_000) };
        let expect = ExpectRevision::Any;
        let cursors = vec![CursorChange { name: name.clone(), expect, set: Some(value) }];
        store.append(Batch { cursors, ..Batch::default() }).unwrap();
    };
    set(2000);
    rest("it was opened");
    set(2001);
    pass(&clock, DAY);
    assert!(look(&store), "a state was replaced");
    rest("a state was replaced");
    append(&store, last(1, stout("a", 20)));
    pass(&clock, DAY);
    assert!(look(&store), "frames were superseded");
    rest("frames were superseded");
    pass(&clock, 41 * DAY);
    assert!(look(&store), "a frame has expired");
    rest("a frame has expired");
    // New keys and new frames alone do not.
    let key = Some(IdempotencyKey::parse("key").unwrap());
    store.append(Batch { key, ..heavy("b", 3000).into() }).unwrap();
    pass(&clock, DAY);
    assert!(!look(&store));
}

#[test]
fn a_collection_that_fails_says_so_and_is_tried_again_after_an_hour() {
    let dir = fast_dir();
    let (store, clock) = open_still(dir.path());
    (0..200).for_each(|n| _ = append(&store, stout("a", n)));
    let segment = segment_files(dir.path()).remove(0);
    let batch = crate::testing::batches(&segment)[2];
    let sound = fs::read(&segment).unwrap();
    edit(&segment, |bytes| bytes[batch + 64 + 20] ^= 1);
    collect(&store.inner);
    let told = space(&store);
    let why = told.collect_failure.as_deref().unwrap();
    assert!(why.starts_with("cannot tell which blobs are wanted: "), "{why}");
    assert_eq!((told.collections, told.collected_ms), (0, None));
    edit(&segment, |bytes| bytes.copy_from_slice(&sound));
    pass(&clock, HOUR - 1);
    collect(&store.inner);
    assert_eq!(space(&store).collections, 0);
    pass(&clock, 1);
    assert!(look(&store));
}

/// The collection would pause for days, and has many packs to rewrite.
#[test]
fn who_waits_for_a_collection_has_it_end_early() {
    let (dir, copies) = (fast_dir(), fast_dir());
    let clock = StillClock::at(100 * DAY);
    let slow = CollectOptions { grace: Duration::ZERO, bytes_per_second: Some(1), ..COLLECT };
    let slow = StoreOptions { collection: Some(slow), ..with(&clock) };
    let store = Arc::new(Store::open(dir.path(), slow).unwrap());
    store.inner.space.begin(&store.inner);
    let ids: Vec<_> = (0..200).map(|n| append(&store, stout("a", n))).collect();
    let goes = ids.iter().enumerate().filter(|(n, _)| n % 2 == 0);
    goes.for_each(|(_, &id)| _ = store.remove(id).unwrap());
    let collector = Arc::clone(&store);
    let collecting = std::thread::spawn(move || collect(&collector.inner));
    while !store.inner.compaction.running.is_locked() {
        std::thread::yield_now();
    }
    let (forked, copy) = (Arc::clone(&store), copies.path().join("copy"));
    meanwhile::in_time(move || forked.fork(&copy).unwrap());
    collecting.join().unwrap();
    let told = space(&store);
    assert!(told.collections == 1 && told.pack_freed_bytes > 0, "{told:?}");
    assert!(told.pack_freed_bytes < 9 * MIB, "half of 20 MB: {told:?}");
    // The rest is still due: it continues after a pause.
    pass(&clock, DAY);
    let (going_on, compacted) = (Arc::clone(&store), Arc::clone(&store));
    let again = std::thread::spawn(move || collect(&going_on.inner));
    while !store.inner.compaction.running.is_locked() {
        std::thread::yield_now();
    }
    meanwhile::in_time(move || compacted.compact(ALL).unwrap());
    again.join().unwrap();
    assert!(space(&store).pack_freed_bytes > told.pack_freed_bytes);
    for (n, id) in ids.iter().enumerate().filter(|(n, _)| n % 2 == 1) {
        let frame = store.get(*id).unwrap().unwrap();
        assert_eq!(store.body(&frame, MIB).unwrap(), Some(noise(n as u64, 100 * 1024)));
    }
}

/// Files of a directory of a store whose base and generation the manifest does not name.
fn strays(store: &Store, dir: &Path, of: &str) -> Vec<String> {
    let state = store.inner.env.manifest.state();
    let names = fs::read_dir(dir.join(of)).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let is_stray = |name: &String| {
        let mut numbers = name.split('.').map_while(|part| part.parse::<u64>().ok());
        let (Some(base), Some(generation)) = (numbers.next(), numbers.next()) else { return false };
        let is_one =
            |file: &FileEntry| file.base == base && u64::from(file.generation) == generation;
        !state.files.iter().any(is_one)
    };
    names.filter(is_stray).collect()
}

/// Each operation fails in turn, including those that delete replaced files.
#[test]
fn a_file_that_could_not_be_deleted_goes_with_the_next_round() {
    let mut left = 0;
    for failing in 1.. {
        let (dir, faults) = (fast_dir(), Faults::none());
        let clock = StillClock::at(100 * DAY);
        let store = open_faulty(dir.path(), with(&clock), &faults).unwrap();
        let ids: Vec<_> = (0..400).map(|n| append(&store, heavy("a", n))).collect();
        ids.iter().skip(1).for_each(|&id| _ = store.remove(id).unwrap());
        store.inner.secure_log(Roll::ToNew).unwrap();
        faults.set(failing, failing, Errno::ACCESS);
        let done = store.compact(ALL);
        let is_over = faults.count() < failing;
        faults.clear();
        let strays = || strays(&store, dir.path(), "log");
        if done.is_ok() && store.health() == Health::Writable && !strays().is_empty() {
            left += 1;
            let _nothing_else = store.compact(ALL).unwrap();
            assert_eq!(strays(), [""; 0], "operation {failing}");
        }
        if is_over {
            break;
        }
    }
    assert!(left > 2, "{left}");
}

#[test]
fn a_pack_that_could_not_be_deleted_goes_with_the_next_round() {
    let mut left = 0;
    for failing in 1.. {
        let (dir, faults) = (fast_dir(), Faults::none());
        let clock = StillClock::at(100 * DAY);
        let store = open_faulty(dir.path(), with(&clock), &faults).unwrap();
        let ids: Vec<_> = (0..20).map(|n| append(&store, stout("a", n))).collect();
        ids.iter().for_each(|&id| _ = store.remove(id).unwrap());
        // Only operations of the collection fail, a different one in each round.
        store.inner.blobs.wait_sealed();
        faults.set(failing, failing, Errno::ACCESS);
        let done = store.gc(&crate::options::GcOptions::everything());
        let is_over = faults.count() < failing;
        faults.clear();
        let is_dropped = || {
            let state = store.inner.env.manifest.state();
            state.files.iter().any(|file| file.state == FileState::Dropped)
        };
        if store.health() == Health::Writable && is_dropped() {
            left += 1;
            assert!(done.is_err(), "it is told");
            collect(&store.inner);
            assert!(!is_dropped(), "operation {failing}");
            assert_eq!(strays(&store, dir.path(), "blobs"), [""; 0]);
        }
        // Where the store was faster, a collection found nothing left to do: another round.
        if is_over && (left > 0 || failing > 100) {
            break;
        }
    }
    assert!(left > 0, "{left}");
}

#[test]
fn what_is_dead_and_what_was_given_back_is_told() {
    let dir = fast_dir();
    let (store, clock) = open_still(dir.path());
    let dead = || space(&store).log_dead_bytes;
    (0..50).for_each(|n| _ = append(&store, heavy("a", n)));
    assert_eq!(dead(), 0);
    append(&store, last(1, heavy("a", 50)));
    let hidden = dead();
    assert!((18_000..27_000).contains(&hidden), "{hidden} of 50 superseded frames");
    append(&store, NewFrame { ttl: Ttl::TimeMs(HOUR), ..heavy("brief", 1) });
    let removed = append(&store, heavy("b", 1));
    store.remove(removed).unwrap();
    pass(&clock, HOUR);
    assert!(dead() > hidden + 800, "{}", dead());
    assert_eq!((space(&store).compacted_ms, space(&store).log_freed_bytes), (None, 0));
    store.inner.secure_log(Roll::ToNew).unwrap();
    let before = dead();
    assert!(before > 18_000, "{before} in a sealed segment");
    let report = store.compact(ALL).unwrap();
    let told = space(&store);
    assert_eq!(told.log_freed_bytes, report.bytes_before - report.bytes_after);
    assert_eq!(told.compacted_ms, Some(clock.now_ms()));
    assert!(told.log_dead_bytes < 1000, "{told:?}");
    assert_eq!((told.pack_dead_bytes, told.collected_ms), (None, None));
    let gone = append(&store, stout("c", 1));
    store.remove(gone).unwrap();
    let dry_run =
        crate::options::GcOptions { dry_run: true, ..crate::options::GcOptions::everything() };
    store.gc(&dry_run).unwrap();
    let told = space(&store);
    assert_eq!((told.pack_dead_bytes, told.collected_ms), (Some(100 * 1024), None));
    store.gc(&crate::options::GcOptions::everything()).unwrap();
    let told = space(&store);
    assert_eq!((told.pack_dead_bytes, told.collections), (Some(0), 1));
    assert_eq!(told.collected_ms, Some(clock.now_ms()));
    assert!(told.collected_bytes > 100 * 1024 && told.pack_freed_bytes == told.collected_bytes);
}
