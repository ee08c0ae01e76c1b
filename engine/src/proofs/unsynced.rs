//! Data that the page cache has and the disk does not, provoked directly: the shortest path to what
//! the other proofs meet once in a thousand states.

use bytes::Bytes;
use rustix::io::Errno;

use super::{MEDIA, Rig, body, look};
use crate::error::AppendError;
use crate::media::sim::{Image, SimDisk};
use crate::options::SyncPolicy;
use crate::store::{Health, Store};
use crate::testing::frame;
use crate::value::{Body, Meta, NewFrame};

/// Leaves the disk as a killed process does.
fn kill(disk: &SimDisk, store: Store) {
    disk.freeze();
    drop(store);
    disk.thaw();
}

/// A frame whose record shares its sectors with no other.
fn wide(n: u64) -> NewFrame {
    let meta = Meta::parse(format!("[{n},\"{}\"]", "x".repeat(3000))).unwrap();
    NewFrame { meta, ..frame("a", n) }
}

#[test]
fn nothing_is_built_on_bytes_that_a_failed_sync_lost() {
    for media in MEDIA {
        let rig = Rig::new(SyncPolicy::Sync, media);
        let disk = rig.disk(&Image::new());
        let store = rig.open_quietly(&disk).unwrap();
        store.append(wide(0).into()).unwrap();
        // The write succeeds, the sync after it fails.
        let sync = disk.count() + 2;
        disk.fail(sync..=sync, Errno::IO);
        let error = store.append(wide(1).into()).unwrap_err();
        assert!(matches!(error, AppendError::Indeterminate(_)), "{error}");
        kill(&disk, store);
        disk.heal();
        let store = rig.open_quietly(&disk).unwrap();
        let mut holds = look(&store, "after the failure");
        let appended = store.append(wide(2).into()).unwrap();
        assert!(appended.durable);
        holds.frames.push((appended.frames[0].offset.unwrap(), 2));
        kill(&disk, store);
        let left = rig.disk(&disk.moment().power_cut(1));
        let store = rig.open_quietly(&left).unwrap();
        assert_eq!(look(&store, "after a power cut").frames, holds.frames, "{media:?}");
    }
}

#[test]
fn no_blob_is_found_in_bytes_that_a_failed_sync_lost() {
    for media in MEDIA {
        let rig = Rig::new(SyncPolicy::Sync, media);
        let disk = rig.disk(&Image::new());
        let store = rig.open_quietly(&disk).unwrap();
        let with = |n| {
            let body = Body::Inline(Bytes::from(body(n, 3000)));
            NewFrame { body, ..wide(n) }
        };
        store.append(with(0).into()).unwrap();
        // Both writes succeed, both syncs after them fail.
        let sync = disk.count() + 3;
        disk.fail(sync..=sync + 1, Errno::IO);
        let error = store.append(with(1).into()).unwrap_err();
        assert!(matches!(error, AppendError::Indeterminate(_)), "{error}");
        kill(&disk, store);
        disk.heal();
        let store = rig.open_quietly(&disk).unwrap();
        let mut holds = look(&store, "after the failure");
        // The cache has its body.
        let appended = store.append(with(1).into()).unwrap();
        assert!(appended.durable);
        holds.frames.push((appended.frames[0].offset.unwrap(), 1));
        kill(&disk, store);
        let left = rig.disk(&disk.moment().power_cut(1));
        let store = rig.open_quietly(&left).unwrap();
        assert_eq!(look(&store, "after a power cut").frames, holds.frames, "{media:?}");
    }
}

#[test]
fn a_segment_is_sealed_only_when_the_disk_has_it_and_its_blobs() {
    for media in MEDIA {
        let rig = Rig::new(SyncPolicy::None, media);
        let disk = rig.disk(&Image::new());
        let store = rig.open_quietly(&disk).unwrap();
        for n in 0.. {
            let bytes = body(n, 1500);
            let new = NewFrame { body: Body::Inline(bytes.into()), ..wide(n) };
            store.append(new.into()).unwrap();
            if store.info().segments > 1 {
                break;
            }
        }
        store.inner.sealing.seal_now(&store.inner).unwrap();
        let whole = look(&store, "whole").frames;
        kill(&disk, store);
        for seed in 0..8 {
            let left = rig.disk(&disk.moment().power_cut(seed));
            let opened = rig.open_quietly(&left).unwrap();
            assert_eq!(opened.info().health, Health::Writable);
            let found = look(&opened, "after a power cut").frames;
            assert!(found.len() > 10 && found[..] == whole[..found.len()], "{seed}: {found:?}");
        }
    }
}
