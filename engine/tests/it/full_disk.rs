//! A full disk: appends are refused and write nothing, reads go on, the store can be opened, and
//! appends resume automatically once there is room.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use xs_engine::{AppendError, Health, NewFrame, Shortage, Store, StoreOptions, SyncPolicy};

use crate::support::{
    MEDIA, Mounted, everything, ext4_image, frames, lacks, number_of, numbered, open, options,
    scratch, skip, small_journal, tell, with_body,
};

fn new(n: u64) -> NewFrame {
    let body = vec![n as u8; (n * 37 % 1500) as usize];
    with_body(numbered("full", n), &body)
}

/// Appends until the disk is full.
fn fill(store: &Store, mut n: u64) -> u64 {
    loop {
        match store.append(new(n).into()) {
            Ok(appended) => assert_eq!(appended.frames[0].offset, Some(n)),
            Err(AppendError::StorageFull(Shortage::Space)) => return n,
            Err(other) => panic!("frame {n}: {other}"),
        }
        n += 1;
    }
}

fn holds(store: &Store, count: u64) {
    let found = frames(store.read(&everything()));
    assert!(found.iter().map(number_of).eq(0..count), "{} of {count}", found.len());
    for frame in found.iter().rev().take(20).filter(|frame| frame.hash().is_some()) {
        let body = store.blob(&frame.hash().unwrap()).unwrap().unwrap();
        assert_eq!(body.bytes(1 << 20).unwrap().len() as u64, number_of(frame) * 37 % 1500);
    }
}

/// Appends again as soon as the store can: whatever a full disk prevented is retried once a second.
fn resume(store: &Store, n: u64) {
    let begun = Instant::now();
    loop {
        match store.append(new(n).into()) {
            Ok(appended) => return assert_eq!(appended.frames[0].offset, Some(n)),
            Err(AppendError::StorageFull(Shortage::Space)) => {}
            Err(other) => panic!("{other}"),
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "appends do not resume");
        std::thread::yield_now();
    }
}

/// Fills the disk except for `bytes` bytes.
fn leave(disk: &Path, bytes: u64) -> std::path::PathBuf {
    let filler = disk.join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    let stat = rustix::fs::statvfs(disk).unwrap();
    let room = stat.f_bavail * stat.f_frsize;
    let zeros = vec![1; 4096];
    for _ in 0..room.saturating_sub(bytes) / 4096 {
        if file.write_all(&zeros).is_err() {
            break;
        }
    }
    // The filesystem may allocate late; this makes it allocate now.
    let _ = file.sync_all();
    filler
}

/// A store on a disk with `room` bytes left: it fills the disk, is opened on the full disk, and
/// continues.
fn run_full(disk: &Path, options: &StoreOptions, room: u64) {
    let dir = disk.join("store");
    let filler = leave(disk, room);
    let store = match Store::open(&dir, options.clone()) {
        Ok(store) => store,
        // Too little for a store. Then there is none, and one can be created later.
        Err(error) => {
            fs::remove_file(&filler).unwrap();
            let store = open(&dir, options);
            resume(&store, 0);
            assert!(room < 64 * 1024, "{room}: {error}");
            return;
        }
    };
    let mut count = fill(&store, 0);
    for _ in 0..3 {
        // Sealing may free some room meanwhile, which appends then use up.
        match store.append(new(count).into()) {
            Ok(_) => count = fill(&store, count + 1),
            Err(error) => assert_eq!(error, AppendError::StorageFull(Shortage::Space)),
        }
    }
    assert_eq!((store.info().head, store.info().health), (count, Health::Writable));
    holds(&store, count);
    // Whether closed or killed, it opens on the full disk.
    let _ = store.close();
    drop(store);
    let store = open(&dir, options);
    assert_eq!(store.info().health, Health::Writable);
    holds(&store, count);
    let count = fill(&store, count);
    holds(&store, count);
    fs::remove_file(&filler).unwrap();
    (count..count + 200).for_each(|n| resume(&store, n));
    holds(&store, count + 200);
    store.close().unwrap();
    drop(store);
    let store = open(&dir, options);
    assert!(store.info().recovery.clean);
    holds(&store, count + 200);
}

#[test]
fn a_full_disk_costs_nothing_but_time() {
    if let Some(reason) = lacks(&["mkfs.ext4", "mount", "umount"], true) {
        return skip("full disk", &reason);
    }
    let mut levels = 0;
    for media in MEDIA {
        for sync in [SyncPolicy::Sync, SyncPolicy::None] {
            let journal = small_journal();
            let options = StoreOptions { sync, journal, ..options(media) };
            for room in [0, 8, 68, 132, 200, 260, 330, 410, 700, 1500].map(|kib| kib * 1024) {
                let disk = Mounted::tmpfs(4 << 20);
                run_full(disk.path(), &options, room);
                levels += 1;
            }
        }
        let dir = scratch();
        let image = ext4_image(dir.path(), 8 << 20);
        for room in [100, 300, 900].map(|kib| kib * 1024) {
            let disk = Mounted::ext4(&image);
            let options = StoreOptions { sync: SyncPolicy::None, ..options(media) };
            run_full(disk.path(), &options, room);
            fs::remove_dir_all(disk.path().join("store")).unwrap();
            levels += 1;
        }
        // The disk becomes full in the middle of a segment and of a pack, which have space for a
        // step only.
        let image = ext4_image(dir.path(), 24 << 20);
        for sync in [SyncPolicy::Sync, SyncPolicy::None] {
            let journal = small_journal();
            let long =
                StoreOptions { segment_bytes: 64 << 20, pack_bytes: 64 << 20, ..options(media) };
            for room in [4700, 9000, 14_000].map(|kib| kib * 1024) {
                let disk = Mounted::ext4(&image);
                run_full(disk.path(), &StoreOptions { sync, journal, ..long.clone() }, room);
                fs::remove_dir_all(disk.path().join("store")).unwrap();
                levels += 1;
            }
        }
    }
    tell(&format!("{levels} disks run full"));
}
