//! Packs that the manifest does not name.

use rustix::io::Errno;

use super::damage::damage;
use super::*;
use crate::format::file::{FILE_HEADER_LEN, FileHeader, Magic};

/// A store whose manifest has lost all its packs, and the hashes of the blobs in them.
fn lost(bed: &Bed) -> Vec<BlobHash> {
    let blobs = bed.open(true);
    let mut hashes = put_all(&blobs, &(0..30).map(|n| text(n, 300)).collect::<Vec<_>>());
    // In a pack of its own.
    hashes.push(put(&blobs, &noise(99, 50_000)));
    drop(blobs);
    bed.env().manifest.update(|state| state.files.clear()).unwrap();
    hashes
}

fn all_there(blobs: &Blobs, hashes: &[BlobHash]) -> bool {
    hashes.iter().all(|hash| get(blobs, hash).is_some())
}

#[test]
fn one_with_a_damaged_header_is_taken_in() {
    let bed = Bed::new(PACK, MediaChoice::Auto);
    let hashes = lost(&bed);
    for path in bed.files("pack") {
        damage(&path, 20);
    }
    for _ in 0..2 {
        let blobs = bed.open(false);
        assert!(blobs.trouble().is_none() && all_there(&blobs, &hashes));
    }
}

#[test]
fn one_in_which_nothing_verifies_is_removed() {
    let bed = Bed::new(PACK, MediaChoice::Auto);
    drop(bed.open(true));
    let path = bed.dir.path().join("blobs").join(format!("{:020}.0.pack", 7));
    let header = FileHeader {
        magic: Magic::Pack,
        salt: 5,
        store: bed.env().manifest.state().store,
        file: [7; 16],
        base: 7,
        generation: 0,
    };
    let begun = [&header.encode()[..], &[0; 5000]].concat();
    for bytes in [&[][..], &[0; 63], &[0; 5000], &[0xa5; 5000], &header.encode(), &begun] {
        fs::write(&path, bytes).unwrap();
        let blobs = bed.open(false);
        assert!(blobs.trouble().is_none());
        assert_eq!(bed.files("pack").len(), 0, "{} bytes", bytes.len());
    }
}

#[test]
fn one_of_another_store_stays_and_is_named() {
    let bed = Bed::new(PACK, MediaChoice::Auto);
    let hashes = lost(&bed);
    let path = bed.files("pack").remove(0);
    let mut bytes = fs::read(&path).unwrap();
    let header = FileHeader::decode(&bytes[..FILE_HEADER_LEN], Magic::Pack).unwrap();
    // A pack of another store, and one under a wrong name.
    for other in [FileHeader { store: [3; 16], ..header }, FileHeader { base: 99, ..header }] {
        bytes[..FILE_HEADER_LEN].copy_from_slice(&other.encode());
        fs::write(&path, &bytes).unwrap();
        let blobs = bed.open(false);
        let Some(ReadOnlyReason::Files { path: named, .. }) = blobs.trouble() else {
            panic!("{:?}", blobs.trouble());
        };
        assert_eq!((named, all_there(&blobs, &hashes)), (&path, false));
        drop(blobs);
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
}

#[test]
fn taking_them_in_may_be_cut_off_at_each_operation() {
    for damaged in [false, true] {
        for step in 1.. {
            let bed = Bed::new(PACK, MediaChoice::Auto);
            let hashes = lost(&bed);
            if damaged {
                bed.files("pack").iter().for_each(|path| damage(path, 20));
            }
            let env = bed.env();
            bed.faults.set(step, u64::MAX, Errno::IO);
            drop(Blobs::open(env, false));
            let passed = bed.faults.count() < step;
            bed.faults.clear();
            for _ in 0..2 {
                let blobs = bed.open(false);
                assert!(blobs.trouble().is_none(), "step {step}");
                assert!(all_there(&blobs, &hashes), "step {step}");
            }
            if passed {
                assert!(step > 5, "only {step} steps");
                break;
            }
        }
    }
}
