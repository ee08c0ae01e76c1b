//! Packs that were not closed cleanly: what can be read of them, and what recovery does.

use super::damage::damage;
use super::*;

/// Bytes of an entry of [`noise`] of 1000 bytes.
const STRIDE: u64 = 72 + 1000;
const FIRST: u64 = 64;

fn all(count: u64) -> Vec<Bytes> {
    (0..count).map(|n| noise(n, 1000)).collect()
}

fn end(blobs: &Blobs) -> u64 {
    blobs.shared.writing.lock().end
}

#[test]
fn what_was_durable_is_found_by_headers_and_the_pack_goes_on() {
    for media in BOTH {
        let bed = Bed::new(1 << 20, media);
        let blobs = bed.open(true);
        let all = all(40);
        let mut hashes = put_all(&blobs, &all[..20]);
        blobs.sync().unwrap();
        hashes.extend(put_all(&blobs, &all[20..]));
        let before = end(&blobs);
        drop(blobs);
        let path = bed.files("pack").remove(0);
        // Bytes of a durable blob: recovery does not read them, let alone drop the blob.
        damage(&path, FIRST + 3 * STRIDE + 100);
        let blobs = bed.open(false);
        assert!(blobs.trouble().is_none() && blobs.dropped().is_empty());
        assert_eq!(bed.files("pack"), std::slice::from_ref(&path));
        assert_eq!((end(&blobs), blobs.needs_sync()), (before, false));
        for (n, (hash, bytes)) in hashes.iter().zip(&all).enumerate() {
            match blobs.get(hash) {
                Err(BlobError::Corrupt(_)) => assert_eq!(n, 3),
                found => assert_eq!(found.unwrap().unwrap().all(u64::MAX).unwrap(), bytes),
            }
        }
        // Appends continue in the same pack, and what they add is found again.
        let more = put(&blobs, &noise(100, 1000));
        assert_eq!(end(&blobs), before + STRIDE);
        drop(blobs);
        let blobs = bed.open(false);
        assert!(blobs.contains(&more) && hashes.iter().all(|hash| blobs.contains(hash)));
    }
}

#[test]
fn a_torn_end_is_told_of_and_written_over() {
    for media in BOTH {
        let bed = Bed::new(1 << 20, media);
        let blobs = bed.open(true);
        let all = all(20);
        let hashes = put_all(&blobs, &all[..18]);
        blobs.sync().unwrap();
        let lost = put_all(&blobs, &all[18..]);
        drop(blobs);
        let path = bed.files("pack").remove(0);
        damage(&path, FIRST + 18 * STRIDE + 500);
        damage(&path, FIRST + 19 * STRIDE + 500);
        let blobs = bed.open(false);
        let [told] = blobs.dropped() else { panic!("{:?}", blobs.dropped()) };
        assert_eq!((&told.path, told.position), (&path, FIRST + 18 * STRIDE));
        assert!(hashes.iter().all(|hash| get(&blobs, hash).is_some()));
        assert!(lost.iter().all(|hash| get(&blobs, hash).is_none()));
        assert_eq!(end(&blobs), FIRST + 18 * STRIDE);
        let bytes = fs::read(&path).unwrap();
        assert!(bytes[(FIRST + 18 * STRIDE) as usize..].iter().all(|&byte| byte == 0));
        put_all(&blobs, &all[18..]);
        drop(blobs);
        let blobs = bed.open(false);
        assert!(blobs.dropped().is_empty() && lost.iter().all(|hash| get(&blobs, hash).is_some()));
    }
}

#[test]
fn a_pack_damaged_in_the_middle_is_written_anew() {
    for (durable, header) in [(20, true), (2, true), (2, false)] {
        let bed = Bed::new(1 << 20, MediaChoice::Auto);
        let blobs = bed.open(true);
        let all = all(21);
        let mut hashes = put_all(&blobs, &all[..durable]);
        blobs.sync().unwrap();
        hashes.extend(put_all(&blobs, &all[durable..]));
        drop(blobs);
        let path = bed.files("pack").remove(0);
        damage(&path, FIRST + 5 * STRIDE + if header { 20 } else { 200 });
        let blobs = bed.open(false);
        assert_eq!(blobs.dropped().len(), 1, "{durable}");
        assert!(!path.exists() && blobs.shared.packs.list().sealed.len() == 1);
        for (n, hash) in hashes.iter().enumerate() {
            assert_eq!(get(&blobs, hash), (n != 5).then(|| all[n].clone()), "{durable}: {n}");
        }
    }
}

#[test]
fn full_packs_are_sealed_after_the_opening() {
    let bed = Bed::new(PACK, MediaChoice::Auto);
    let blobs = bed.open(true);
    let all = all(150);
    let hashes = put_all(&blobs, &all);
    drop(blobs);
    let blobs = bed.open(false);
    let check = |blobs: &Blobs| {
        let same = |(hash, bytes)| get(blobs, hash).as_ref() == Some(bytes);
        assert!(hashes.iter().zip(&all).all(same));
    };
    check(&blobs);
    settle(&blobs);
    check(&blobs);
    let open = blobs.shared.packs.list().open.clone();
    assert!(open.iter().filter(|pack| pack.is_empty()).count() <= 1);
    assert!(open.iter().filter(|pack| !pack.is_empty()).count() <= 1);
}
