//! Packs that were sealed uncompressed and are compressed later.

use super::damage::damage;
use super::*;
use crate::blob::sealed::SealedPack;

/// The arrival rate of blobs always counts as high.
const BUSY: CompressOptions =
    CompressOptions { busy_bytes_per_second: 0, backlog_bytes: 1024 * 1024 };

fn all() -> Vec<Bytes> {
    (0..400).map(|n| text(n, 700)).collect()
}

fn sealed(blobs: &Blobs) -> Vec<Arc<SealedPack>> {
    blobs.shared.packs.list().sealed.clone()
}

fn bytes_of(packs: &[Arc<SealedPack>]) -> u64 {
    packs.iter().map(|pack| pack.line().length).sum()
}

/// A store with packs that were sealed uncompressed.
fn plain(bed: &mut Bed) -> (Blobs, Vec<Bytes>, Vec<BlobHash>) {
    bed.compress = BUSY;
    let (blobs, all) = (bed.open(true), all());
    let hashes = put_all(&blobs, &all);
    blobs.shared.seal_all().unwrap();
    let packs = sealed(&blobs);
    assert!(packs.len() > 3 && packs.iter().all(|pack| pack.is_plain()));
    assert_eq!(bytes_of(&packs), packs.len() as u64 * PACK);
    check(&blobs, &all, &hashes);
    (blobs, all, hashes)
}

fn check(blobs: &Blobs, all: &[Bytes], hashes: &[BlobHash]) {
    for (hash, bytes) in hashes.iter().zip(all) {
        assert_eq!(get(blobs, hash).as_ref(), Some(bytes));
    }
}

#[test]
fn packs_filled_in_a_hurry_are_compressed_when_it_is_quiet() {
    for media in BOTH {
        let mut bed = Bed::new(PACK, media);
        let (blobs, mut all, mut hashes) = plain(&mut bed);
        let before = bytes_of(&sealed(&blobs));
        blobs.close().unwrap();
        drop(blobs);
        bed.compress = CompressOptions::default();
        let blobs = bed.open(true);
        check(&blobs, &all, &hashes);
        assert_eq!(bytes_of(&sealed(&blobs)), before, "who only reads changes nothing");
        all.push(text(1000, 500));
        hashes.push(put(&blobs, &all[400]));
        blobs.shared.seal_all().unwrap();
        while sealed(&blobs).iter().any(|pack| pack.is_plain()) {
            thread::yield_now();
        }
        check(&blobs, &all, &hashes);
        let after = bytes_of(&sealed(&blobs));
        assert!(after * 3 < before, "{before} bytes became {after}");
        blobs.close().unwrap();
        drop(blobs);
        assert_eq!(bed.files("pack").len(), bed.files("pidx").len());
        let blobs = bed.open(true);
        assert_eq!(bytes_of(&sealed(&blobs)), after);
        check(&blobs, &all, &hashes);
    }
}

#[test]
fn no_more_wait_than_may() {
    let mut bed = Bed::new(PACK, MediaChoice::Auto);
    bed.compress = CompressOptions { backlog_bytes: 2 * PACK, ..BUSY };
    let (blobs, all) = (bed.open(true), all());
    // Pack by pack: several full ones at once would be sealed as they are.
    let hashes: Vec<_> = all
        .chunks(60)
        .flat_map(|some| {
            let hashes = put_all(&blobs, some);
            blobs.shared.seal_all().unwrap();
            hashes
        })
        .collect();
    let packs = sealed(&blobs);
    assert!(packs.len() >= 5);
    assert_eq!(packs.iter().filter(|pack| pack.is_plain()).count(), 2);
    check(&blobs, &all, &hashes);
}

#[test]
fn pressing_makes_way_and_leaves_nothing() {
    let mut bed = Bed::new(PACK, MediaChoice::Auto);
    let (blobs, all, hashes) = plain(&mut bed);
    let (before, files) = (sealed(&blobs).len(), bed.files("pack"));
    assert!(!blobs.shared.press(&|| true).unwrap());
    let sweep = blobs.sweep(None);
    assert!(!blobs.shared.press(&|| false).unwrap(), "beside a sweep");
    drop(sweep);
    assert_eq!(bed.files("pack"), files);
    assert!(blobs.shared.press(&|| false).unwrap());
    assert_eq!(sealed(&blobs).iter().filter(|pack| pack.is_plain()).count(), before - 1);
    assert_eq!(bed.files("pack").len(), files.len());
    let pressed = bed.files("pack").into_iter().filter(|path| !files.contains(path));
    assert_eq!(pressed.count(), 1);
    blobs.press_all().unwrap();
    assert!(blobs.shared.press(&|| false).unwrap(), "nothing is left to do");
    check(&blobs, &all, &hashes);
}

#[test]
fn a_pack_keeps_the_time_of_its_newest_put() {
    let mut bed = Bed::new(PACK, MediaChoice::Auto);
    let (blobs, ..) = plain(&mut bed);
    let pack = sealed(&blobs).pop().unwrap();
    let later = pack.newest_ms() + 1_000_000;
    assert!(pack.touch(later));
    assert!(blobs.shared.press(&|| false).unwrap());
    let new = sealed(&blobs).pop().unwrap();
    assert_eq!((new.line().base, new.newest_ms()), (pack.line().base, later));
    let state = blobs.shared.env.manifest.state();
    let line = state.files.iter().find(|file| file.uuid == new.line().uuid).unwrap();
    assert_eq!(line.newest_ms, later);
}

#[test]
fn a_damaged_pack_stays_as_it_is() {
    let mut bed = Bed::new(PACK, MediaChoice::Auto);
    let (blobs, all, hashes) = plain(&mut bed);
    damage(&bed.files("pack")[0], 3000);
    let oldest = sealed(&blobs).pop().unwrap();
    assert!(blobs.shared.press(&|| false).is_err());
    assert!(!oldest.is_plain(), "it is not tried again");
    blobs.press_all().unwrap();
    let packs = sealed(&blobs);
    assert_eq!(packs.iter().filter(|pack| pack.line().generation == 0).count(), 1);
    assert!(Arc::ptr_eq(packs.last().unwrap(), &oldest));
    let there = |(hash, bytes): (&BlobHash, &Bytes)| {
        blobs.get(hash).ok().flatten().and_then(|reader| reader.bytes(u64::MAX).ok()).as_ref()
            == Some(bytes)
    };
    assert_eq!(hashes.iter().zip(&all).filter(|(hash, bytes)| !there((hash, bytes))).count(), 1);
}
