//! The packs through their public interface, on real files, with faults and damage.

mod ahead;
mod damage;
mod faults;
mod kill;
mod press;
mod strange;
mod together;

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use tempfile::TempDir;

use super::*;
use crate::clock::SystemClock;
use crate::entropy::Random;
use crate::error::{PutError, ReadError};
use crate::format::super_file::{FileState, SuperState};
use crate::limits::OPEN_PACKS_MAX;
use crate::manifest::Manifest;
use crate::media::faulty::{Faults, FaultyFiles};
use crate::media::{Disk, Files};
use crate::options::{CompressOptions, MediaChoice, StoreOptions, SyncPolicy};
use crate::testing::{fast_dir, files_in, noise};

const PACK: u64 = 64 * 1024;

struct Bed {
    dir: TempDir,
    pack_bytes: u64,
    media: MediaChoice,
    compress: CompressOptions,
    faults: Arc<Faults>,
}

impl Bed {
    fn new(pack_bytes: u64, media: MediaChoice) -> Self {
        let (dir, compress) = (fast_dir(), CompressOptions::default());
        Self { dir, pack_bytes, media, compress, faults: Faults::none() }
    }

    fn env(&self) -> Arc<Env> {
        let dir = self.dir.path().to_owned();
        let disk = Disk::new(self.media, &dir);
        let files: Arc<dyn Files> = Arc::new(FaultyFiles::new(disk, &self.faults));
        let manifest = match Manifest::load(&dir, Arc::clone(&files)).unwrap() {
            Some(manifest) => manifest,
            None => Manifest::create(&dir, Arc::clone(&files), SuperState::default()).unwrap(),
        };
        let clock = Arc::new(SystemClock);
        let options = StoreOptions {
            pack_bytes: self.pack_bytes,
            sync: SyncPolicy::None,
            compress: self.compress,
            ..StoreOptions::default()
        };
        let random = Random::new(&*options.entropy).unwrap();
        Arc::new(Env { dir, files, manifest, clock, options, random, holds: Default::default() })
    }

    fn open(&self, clean: bool) -> Blobs {
        Blobs::open(self.env(), clean).unwrap()
    }

    /// Opens as after a kill, and seals all packs.
    fn sealed(&self) -> Blobs {
        let blobs = self.open(false);
        blobs.shared.seal_all().unwrap();
        blobs
    }

    fn files(&self, kind: &str) -> Vec<PathBuf> {
        files_in(&self.dir.path().join("blobs"), kind)
    }
}

const BOTH: [MediaChoice; 2] = [MediaChoice::Mapped, MediaChoice::Positioned];

/// Text that compresses, different for each seed.
fn text(seed: u64, len: usize) -> Bytes {
    let mut out = Vec::new();
    let mut n = seed;
    while out.len() < len {
        n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(seed | 1);
        out.extend_from_slice(format!("{{\"value\":{}}}\n", n >> 50).as_bytes());
    }
    out.truncate(len);
    Bytes::from(out)
}

fn put_all<'a>(blobs: &Blobs, all: impl IntoIterator<Item = &'a Bytes>) -> Vec<BlobHash> {
    all.into_iter().map(|bytes| put(blobs, bytes)).collect()
}

fn put(blobs: &Blobs, bytes: &Bytes) -> BlobHash {
    let prepared = blobs.prepare(bytes).unwrap();
    blobs.stage(std::slice::from_ref(&prepared)).unwrap();
    blobs.flush().unwrap();
    prepared.hash()
}

fn get(blobs: &Blobs, hash: &BlobHash) -> Option<Bytes> {
    blobs.get(hash).unwrap().map(|reader| reader.bytes(u64::MAX).unwrap())
}

fn read(reader: &mut BlobReader) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    reader.read_to_end(&mut out).map(|_| out)
}

/// Waits until nothing is left to seal.
fn settle(blobs: &Blobs) {
    while blobs.shared.packs.list().open.iter().any(|pack| pack.is_full()) {
        thread::yield_now();
    }
}

#[test]
fn blobs_come_back_from_every_stage() {
    for media in BOTH {
        let bed = Bed::new(PACK, media);
        let sizes = [0, 1, 7, 8, 100, 4000, 4096, 9000, 15_000, 16_384, 20_000, 65_535, 65_536];
        let mut all: Vec<Bytes> = sizes.iter().map(|&len| text(len as u64, len)).collect();
        all.extend([text(1, 70_000), noise(2, 70_000), text(3, 3_000_000), noise(4, 1_000_000)]);
        all.extend((0..2000).map(|n| text(n + 10, 10 + (n as usize * 37) % 700)));
        let blobs = bed.open(true);
        let hashes = put_all(&blobs, &all);
        let check = |blobs: &Blobs| {
            for (hash, bytes) in hashes.iter().zip(&all) {
                assert_eq!(blobs.len_of(hash).unwrap(), Some(bytes.len() as u64));
                assert_eq!(get(blobs, hash).unwrap(), bytes);
                let mut reader = blobs.get(hash).unwrap().unwrap();
                assert_eq!(read(&mut reader).unwrap(), bytes[..]);
            }
            assert!(!blobs.contains(&BlobHash::of(b"never stored")));
        };
        check(&blobs);
        settle(&blobs);
        check(&blobs);
        assert!(blobs.needs_sync());
        blobs.sync().unwrap();
        assert!(!blobs.needs_sync());
        blobs.close().unwrap();
        assert!(matches!(
            blobs.stage(&[blobs.prepare(&text(5, 5)).unwrap()]),
            Err(StageError::Closed)
        ));
        drop(blobs);
        let blobs = bed.open(true);
        check(&blobs);
        drop(blobs);
        // As after a kill.
        let blobs = bed.open(false);
        check(&blobs);
        assert!(blobs.trouble().is_none() && blobs.dropped().is_empty());
        blobs.shared.seal_all().unwrap();
        check(&blobs);
        let lines = blobs.shared.env.manifest.state().files.clone();
        assert_eq!(bed.files("pack").len(), lines.len());
        for line in lines.iter().filter(|line| line.state == FileState::Sealed) {
            let path = blobs.shared.env.blob_path(line.base, line.generation, "pack");
            let bytes = fs::read(path).unwrap();
            assert_eq!((bytes.len() as u64, crc32fast::hash(&bytes)), (line.length, line.crc));
        }
    }
}

#[test]
fn what_is_there_is_not_written_again() {
    let bed = Bed::new(PACK, MediaChoice::Auto);
    let blobs = bed.open(true);
    let (short, long) = (text(1, 500), text(2, 100_000));
    let batch = |n: usize| (0..n).map(|_| blobs.prepare(&short).unwrap()).collect::<Vec<_>>();
    blobs.stage(&batch(10)).unwrap();
    blobs.flush().unwrap();
    put(&blobs, &long);
    let end = |blobs: &Blobs| blobs.shared.writing.lock().end;
    let before = end(&blobs);
    blobs.sync().unwrap();
    blobs.stage(&batch(3)).unwrap();
    blobs.flush().unwrap();
    put(&blobs, &long);
    assert_eq!(end(&blobs), before);
    assert!(!blobs.needs_sync());
    drop(blobs);
    let blobs = bed.open(false);
    put(&blobs, &short);
    put(&blobs, &long);
    assert_eq!(end(&blobs), before);
}

#[test]
fn what_a_group_has_staged_is_not_staged_again() {
    let bed = Bed::new(1 << 20, MediaChoice::Auto);
    let blobs = bed.open(true);
    put(&blobs, &text(0, 100));
    for bytes in [text(1, 500), text(2, 100_000), noise(3, 20_000)] {
        let prepared = [blobs.prepare(&bytes).unwrap()];
        let before = blobs.shared.writing.lock().end;
        let stride = prepared[0].header(0).stride();
        (0..3).for_each(|_| blobs.stage(&prepared).unwrap());
        assert_eq!(blobs.shared.writing.lock().end, before + stride);
        blobs.flush().unwrap();
        assert_eq!(get(&blobs, &prepared[0].hash()).unwrap(), bytes);
    }
}

#[test]
fn a_group_that_staged_nothing_waits_for_nobody() {
    let bed = Bed::new(PACK, MediaChoice::Auto);
    let blobs = bed.open(true);
    put(&blobs, &text(1, 500));
    let _held = blobs.shared.writing.lock();
    blobs.flush().unwrap();
}

#[test]
fn nothing_is_put_once_it_is_closed() {
    let bed = Bed::new(PACK, MediaChoice::Auto);
    let blobs = bed.open(true);
    put(&blobs, &text(1, 500));
    let prepared = [noise(2, 300), noise(3, 100_000)].map(|bytes| blobs.prepare(&bytes).unwrap());
    blobs.close().unwrap();
    let manifest = bed.env().manifest.state();
    for blob in &prepared {
        assert!(matches!(blobs.put(blob), Err(StageError::Closed)));
    }
    assert_eq!(bed.files("pack").len(), 1);
    assert_eq!(bed.env().manifest.state(), manifest);
}

#[test]
fn a_hit_that_is_not_durable_joins_the_next_sync() {
    let bed = Bed::new(PACK, MediaChoice::Auto);
    let blobs = bed.open(true);
    put(&blobs, &text(1, 500));
    put(&blobs, &text(1, 500));
    assert!(blobs.needs_sync());
    blobs.sync_beside(|| Ok(())).unwrap();
    assert!(!blobs.needs_sync());
    put(&blobs, &text(2, 500));
    // A sync fails while another one fails, and after it.
    bed.faults.set(1, 1, rustix::io::Errno::IO);
    assert!(blobs.sync().is_err());
    assert!(blobs.sync().is_err() && blobs.needs_sync());
    let bed = Bed::new(PACK, MediaChoice::Auto);
    let blobs = bed.open(true);
    put(&blobs, &text(2, 500));
    let beside = blobs.sync_beside(|| Err(io::ErrorKind::StorageFull.into()));
    assert_eq!(beside.unwrap_err().kind(), io::ErrorKind::StorageFull);
}

#[test]
fn streamed_and_inline_blobs_are_the_same() {
    let bed = Bed::new(1 << 20, MediaChoice::Auto);
    let blobs = bed.open(true);
    for bytes in [text(1, 0), text(2, 65_535), text(3, 65_536), noise(4, 200_000), text(5, 2 << 20)]
    {
        let mut writer = blobs.incoming();
        bytes.chunks(10_007).for_each(|part| writer.write_all(part).unwrap());
        assert_eq!(writer.finish().unwrap(), (BlobHash::of(&bytes), bytes.len() as u64));
        let before = blobs.shared.writing.lock().end;
        let hash = put(&blobs, &bytes);
        assert_eq!(blobs.shared.writing.lock().end, before);
        assert_eq!(get(&blobs, &hash).unwrap(), bytes);
        let half = blobs.get(&hash).unwrap().unwrap().bytes(bytes.len() as u64 / 2);
        assert!(matches!(half, Err(ReadError::TooLarge { .. })) || bytes.is_empty());
    }
    let dropped = blobs.incoming();
    drop(dropped);
    assert_eq!(bed.files("tmp").len(), 0);
}

#[test]
fn a_blob_that_is_too_long_is_refused_and_not_cut() {
    use crate::limits::BLOB_BYTES_MAX;
    let bed = Bed::new(1 << 20, MediaChoice::Auto);
    let blobs = bed.open(true);
    for (len, fits) in
        [(BLOB_BYTES_MAX - 1, true), (BLOB_BYTES_MAX, true), (BLOB_BYTES_MAX + 1, false)]
    {
        let mut incoming = blobs.incoming();
        incoming.write_all(b"the beginning").unwrap();
        incoming.pretend_len(len - 1);
        let written = incoming.write(b"x");
        assert_eq!(written.is_ok(), fits, "{len}");
        if !fits {
            assert_eq!(written.unwrap_err().kind(), io::ErrorKind::FileTooLarge);
            assert_eq!(incoming.finish(), Err(PutError::TooLarge { max: BLOB_BYTES_MAX }));
        }
    }
    assert!(!blobs.contains(&BlobHash::of(b"the beginning")));
}

#[test]
fn blobs_about_every_limit_come_back() {
    let bed = Bed::new(PACK, MediaChoice::Auto);
    let blobs = bed.open(true);
    // Limits: in memory or spooled, one CRC or a list, compared with few packs or all, grouped or
    // alone, in the active pack or in a pack of its own.
    let own = (PACK as usize - 64) / 4 - 72;
    let limits = [4096, 16 * 1024, 32 * 1024, 64 * 1024, 128 * 1024, own];
    let mut all = Vec::new();
    for len in limits.into_iter().flat_map(|limit| [limit - 1, limit, limit + 1]) {
        all.extend([noise(len as u64, len), text(len as u64, len)]);
    }
    // As many as a BLOCK holds, and one more; and an empty one.
    all.extend((0..1030).map(|n| noise(n + 1, 1 + n as usize % 3 + n as usize / 100)));
    all.push(Bytes::new());
    put_all(&blobs, &all);
    let check = |blobs: &Blobs| {
        for bytes in &all {
            assert_eq!(get(blobs, &BlobHash::of(bytes)).as_ref(), Some(bytes), "{}", bytes.len());
        }
    };
    check(&blobs);
    drop(blobs);
    check(&bed.open(false));
}

/// A store with more packs than may be open; each holds four blobs, in order.
fn many_packs(bed: &Bed) -> (Blobs, Vec<Bytes>, Vec<BlobHash>) {
    let blobs = bed.open(true);
    let count = 4 * (OPEN_PACKS_MAX as u64 + 20);
    let all: Vec<_> = (0..count).map(|n| noise(n, 16_000)).collect();
    let hashes = put_all(&blobs, &all);
    blobs.shared.seal_all().unwrap();
    blobs.close().unwrap();
    let blobs = bed.open(true);
    assert!(blobs.shared.packs.list().sealed.len() > OPEN_PACKS_MAX + 10);
    (blobs, all, hashes)
}

/// Closes all packs; returns how many were open.
fn close_all(blobs: &Blobs, room: bool) -> usize {
    let list = blobs.shared.packs.list();
    let open = list.sealed.iter().filter(|pack| pack.is_open()).count();
    list.sealed.iter().for_each(|pack| pack.close(|_| room));
    open
}

#[test]
fn a_search_opens_the_one_pack_that_has_the_blob() {
    let bed = Bed::new(PACK, MediaChoice::Auto);
    let (blobs, all, hashes) = many_packs(&bed);
    // A search through all of them: no more stay open than allowed.
    assert_eq!(get(&blobs, &BlobHash::of(b"stranger")), None);
    assert_eq!(close_all(&blobs, true), OPEN_PACKS_MAX);
    for (hash, bytes) in hashes.iter().zip(&all).step_by(7) {
        assert_eq!(get(&blobs, hash).as_ref(), Some(bytes));
        assert_eq!(close_all(&blobs, true), 1);
    }
    assert_eq!(get(&blobs, &BlobHash::of(b"stranger")), None);
    assert_eq!(close_all(&blobs, true), 0);
    // A put needs no more either, and finds its blob in whichever pack it is.
    let end = || blobs.open_packs().iter().map(|(_, end)| end).sum::<u64>();
    let before = end();
    for bytes in [&all[0], &all[all.len() / 2], all.last().unwrap()] {
        blobs.put(&blobs.prepare(bytes).unwrap()).unwrap();
        assert_eq!((end(), close_all(&blobs, true)), (before, 1));
    }
    put(&blobs, &noise(9999, 16_000));
    assert!(end() > before + 16_000, "a new one is written");
    assert_eq!(close_all(&blobs, true), 0);
}

#[test]
fn packs_whose_filters_do_not_fit_are_opened_by_gets_alone() {
    let bed = Bed::new(PACK, MediaChoice::Auto);
    let (blobs, all, hashes) = many_packs(&bed);
    assert_eq!(get(&blobs, &BlobHash::of(b"stranger")), None);
    close_all(&blobs, false);
    put(&blobs, &noise(9999, 16_000));
    assert_eq!(close_all(&blobs, false), 0, "it is not worth opening them");
    for (hash, bytes) in hashes.iter().zip(&all).step_by(40) {
        assert_eq!(get(&blobs, hash).as_ref(), Some(bytes));
        assert!(blobs.contains_sound(hash));
    }
    assert!(close_all(&blobs, false) > 1);
}
