//! Files of the log and of the packs that the manifest does not name, and files that the system
//! cannot open.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::*;
use crate::format::file::{FILE_HEADER_LEN, FileHeader, Magic};
use crate::testing::files_in;

/// A cleanly closed store, a path in its log that the manifest does not name, and the bytes of a
/// segment that could be there.
fn closed() -> (tempfile::TempDir, PathBuf, Vec<u8>) {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    (0..3000).for_each(|n| drop(store.append(frame("a", n).into()).unwrap()));
    store.close().unwrap();
    drop(store);
    let bytes = fs::read(&segment_files(dir.path())[1]).unwrap();
    let path = dir.path().join("log/00000000000000009999.0.seg");
    (dir, path, bytes)
}

fn header(bytes: &[u8]) -> FileHeader {
    FileHeader::decode(&bytes[..FILE_HEADER_LEN], Magic::Segment).unwrap()
}

#[test]
fn an_unnamed_segment_stays_while_one_of_its_batches_verifies() {
    let (dir, path, bytes) = closed();
    let mut whole = bytes.clone();
    let told = |what: &str, kept: &[u8]| {
        let store = open(dir.path(), SyncPolicy::None);
        let health = store.info().health;
        let Health::ReadOnly(ReadOnlyReason::Files { path: named, .. }) = &health else {
            panic!("{what}: {health:?}");
        };
        assert_eq!(named, &path, "{what}");
        assert_eq!(numbers(&store), range(3000), "{what}");
        drop(store);
        assert_eq!(fs::read(&path).unwrap(), kept, "{what}");
    };
    // Damages the header of its first batch, and then that of the file as well.
    for (what, at) in [("first batch", FILE_HEADER_LEN + 20), ("header", 20)] {
        whole[at] ^= 1;
        fs::write(&path, &whole).unwrap();
        told(what, &whole);
    }
    // All but its last batches.
    fs::write(&path, &bytes).unwrap();
    let places = batches(&path);
    let mut last = bytes;
    last[FILE_HEADER_LEN..places[places.len() - 3]].fill(0xa5);
    fs::write(&path, &last).unwrap();
    told("last batches", &last);
}

#[test]
fn a_journal_that_was_not_finished_is_removed() {
    let (dir, path, bytes) = closed();
    let unfinished = dir.path().join("journal.tmp");
    fs::write(&unfinished, [0; 8192]).unwrap();
    // A read-only store removes nothing.
    fs::write(&path, &bytes).unwrap();
    drop(open(dir.path(), SyncPolicy::None));
    assert!(unfinished.exists());
    fs::remove_file(&path).unwrap();
    drop(open(dir.path(), SyncPolicy::None));
    assert!(!unfinished.exists());
}

#[test]
fn an_unnamed_segment_that_was_never_used_is_removed() {
    let (dir, path, bytes) = closed();
    let header = header(&bytes);
    let of_before = FileHeader { salt: header.salt ^ 1, ..header }.encode();
    let torn = [&bytes[..FILE_HEADER_LEN], &[0xa5; 70_000][..]].concat();
    let blank = [&bytes[..FILE_HEADER_LEN], &[0; 70_000][..]].concat();
    let stale = [&of_before[..], &bytes[FILE_HEADER_LEN..]].concat();
    for bytes in [&[][..], &[0; 100][..], &bytes[..FILE_HEADER_LEN], &torn, &blank, &stale] {
        fs::write(&path, bytes).unwrap();
        let store = open(dir.path(), SyncPolicy::None);
        assert_eq!(store.info().health, Health::Writable, "{} bytes", bytes.len());
        assert!(!path.exists());
    }
}

#[test]
fn an_unnamed_segment_of_a_newer_version_stays() {
    let (dir, path, mut bytes) = closed();
    bytes[8] = 9;
    let crc = crc32fast::hash(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    bytes[FILE_HEADER_LEN..].fill(7);
    fs::write(&path, &bytes).unwrap();
    let newer = ReadOnlyReason::Version { path: path.clone(), found: 9 };
    assert_eq!(open(dir.path(), SyncPolicy::None).info().health, Health::ReadOnly(newer));
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

/// Opens the store with a file replaced by one that the system cannot open.
fn refused(dir: &Path, path: &Path) {
    symlink(path, path).unwrap();
    let Err(error) = Store::open(dir, options(SyncPolicy::None)) else {
        panic!("opened without {}", path.display());
    };
    let OpenError::Io { path: told, error, .. } = error else { panic!("{error}") };
    assert_eq!((&*told, error.raw_os_error()), (path, Some(Errno::LOOP.raw_os_error())));
    assert!(path.is_symlink(), "it is not removed");
    fs::remove_file(path).unwrap();
}

#[test]
fn what_the_system_does_not_open_is_named_and_stays() {
    let (dir, unnamed, _) = closed();
    let dir = dir.path();
    refused(dir, &unnamed);
    refused(dir, &dir.join("blobs/00000000000000009999.0.pack"));
    for path in [&segment_files(dir)[1], &segment_files(dir)[0]] {
        let kept = path.with_extension("kept");
        fs::rename(path, &kept).unwrap();
        refused(dir, path);
        fs::rename(&kept, path).unwrap();
    }
    let store = open(dir, SyncPolicy::None);
    assert_eq!((store.info().health, numbers(&store)), (Health::Writable, range(3000)));
}

#[test]
fn a_pack_that_was_cut_after_a_close_is_named() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let body = |n: u64| Bytes::from(vec![n as u8; 300]);
    for n in 0..20 {
        let body = Body::Inline(body(n));
        store.append(NewFrame { body, ..frame("a", n) }.into()).unwrap();
    }
    store.close().unwrap();
    drop(store);
    let pack = files_in(&dir.path().join("blobs"), "pack").remove(0);
    for len in [5000, 1001, 64, 63, 0] {
        fs::File::options().write(true).open(&pack).unwrap().set_len(len).unwrap();
        let manifest = ["super.a", "super.b"].map(|name| fs::read(dir.path().join(name)).unwrap());
        for _ in 0..2 {
            let store = open(dir.path(), SyncPolicy::None);
            let health = store.info().health;
            let Health::ReadOnly(ReadOnlyReason::Files { path, .. }) = health else {
                panic!("{len}: {health:?}");
            };
            assert_eq!((&path, numbers(&store)), (&pack, range(20)), "{len}");
            let found =
                (0..20).filter(|&n| store.has_blob(&BlobHash::of(&body(n))).unwrap()).count();
            assert_eq!(found as u64, len.saturating_sub(64) / (72 + 304), "{len}");
            store.close().unwrap();
        }
        assert_eq!(fs::metadata(&pack).unwrap().len(), len);
        let after = ["super.a", "super.b"].map(|name| fs::read(dir.path().join(name)).unwrap());
        assert!(manifest == after, "{len}");
    }
}
