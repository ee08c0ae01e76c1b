//! Reads after bytes were damaged or truncated.

use super::*;
use crate::format::file::FILE_HEADER_LEN;

/// Overwrites a byte of a file in place.
pub(super) fn damage(path: &Path, at: u64) {
    use std::os::unix::fs::FileExt as _;
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
}

#[test]
fn a_hit_on_a_rotten_blob_writes_a_fresh_copy() {
    let bed = Bed::new(1 << 20, MediaChoice::Auto);
    for (bytes, sealed, neighbours) in [
        (text(1, 500), false, 0),
        (noise(2, 100_000), false, 0),
        (noise(3, 500), true, 0),
        (noise(4, 100_000), true, 0),
        (noise(5, 500), true, 20),
    ] {
        let blobs = bed.open(false);
        let hash = put(&blobs, &bytes);
        put_all(&blobs, &(0..neighbours).map(|n| text(n, 500)).collect::<Vec<_>>());
        let blobs = match sealed {
            true => {
                drop(blobs);
                bed.sealed()
            }
            false => blobs,
        };
        let place = |found: FoundBlob| match found {
            FoundBlob::Entry(entry) => Ok(entry.at() + 72 + 20),
            FoundBlob::Row { row, .. } => Ok(row.block.position + 72 + 40),
        };
        let at = blobs.shared.packs.find(&hash, place).unwrap().unwrap();
        damage(bed.files("pack").last().unwrap(), at);
        // A cached decompressed block would hide the damage.
        let blobs = match neighbours {
            0 => blobs,
            _ => {
                drop(blobs);
                bed.open(false)
            }
        };
        let rotten = blobs.get(&hash).and_then(|reader| reader.unwrap().all(u64::MAX));
        assert!(matches!(rotten, Err(BlobError::Corrupt(_))), "{rotten:?}");
        put(&blobs, &bytes);
        assert_eq!(get(&blobs, &hash).unwrap(), bytes);
    }
}

#[test]
fn a_rotten_copy_does_not_hide_a_sound_one() {
    // Each blob gets a pack of its own.
    let bed = Bed::new(PACK, MediaChoice::Auto);
    let blobs = bed.open(true);
    let bytes = noise(1, 20_000);
    let hash = put(&blobs, &bytes);
    damage(&bed.files("pack")[0], FILE_HEADER_LEN as u64 + 72 + 20);
    let prepared = blobs.prepare(&bytes).unwrap();
    for _ in 0..3 {
        blobs.put(&prepared).unwrap();
        assert_eq!(bed.files("pack").len(), 2);
        assert_eq!(get(&blobs, &hash).unwrap(), bytes);
    }
}

#[test]
fn damage_of_any_byte_of_a_sealed_pack_never_gives_wrong_bytes() {
    let bed = Bed::new(PACK, MediaChoice::Auto);
    let blobs = bed.open(true);
    let mut all: Vec<_> = (0..6).map(|n| text(n, 100)).collect();
    all.extend([noise(7, 300), text(8, 17_000)]);
    let hashes = put_all(&blobs, &all);
    drop(blobs);
    drop(bed.sealed());
    for kind in ["pack", "pidx"] {
        let path = &bed.files(kind)[0];
        let good = fs::read(path).unwrap();
        let mut reported = 0;
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x20;
            fs::write(path, bad).unwrap();
            let blobs = bed.open(false);
            let mut errors = 0;
            for (hash, bytes) in hashes.iter().zip(&all) {
                match blobs.get(hash).and_then(|reader| reader.unwrap().all(u64::MAX)) {
                    Ok(read) => assert_eq!(read, bytes),
                    Err(BlobError::Corrupt(_)) => errors += 1,
                    Err(other) => panic!("{other}"),
                }
            }
            reported += usize::from(errors > 0);
            drop(blobs);
            if kind == "pidx" {
                assert_eq!(fs::read(path).unwrap(), good, "byte {at} was not put right");
            }
        }
        fs::write(path, &good).unwrap();
        match kind {
            // All but the header, which manifest and entries make up for, and a few bytes of
            // padding.
            "pack" => {
                let counts = good.len() - FILE_HEADER_LEN;
                assert!(reported + 24 > counts, "{reported} of {counts}");
            }
            _ => assert_eq!(reported, 0, "the index is only made again"),
        }
    }
}

#[test]
fn a_pack_with_a_blob_that_is_not_what_it_says_is_sealed_as_it_is() {
    let another = BlobHash::of(b"another");
    for (rots, generation) in [(None, 1), (Some(false), 0), (Some(true), 0)] {
        let bed = Bed::new(PACK, MediaChoice::Auto);
        let blobs = bed.open(true);
        let mut all: Vec<_> = (0..20).map(|n| text(n, 300)).collect();
        let mut hashes = put_all(&blobs, &all);
        match rots {
            None => {}
            // Its bytes are damaged, which their CRC detects.
            Some(true) => {
                all.pop();
                hashes.pop();
                damage(&bed.files("pack")[0], blobs.shared.writing.lock().end - 30);
            }
            // Its bytes belong to another hash, and their CRC is right.
            Some(false) => {
                blobs.stage(&[Prepared::small(another, text(50, 300))]).unwrap();
                blobs.flush().unwrap();
            }
        }
        blobs.shared.seal_all().unwrap();
        let names: Vec<_> = bed.files("pack");
        assert!(names[0].ends_with(format!("{:020}.{generation}.pack", 1)), "{names:?}");
        for (hash, bytes) in hashes.iter().zip(&all) {
            assert_eq!(get(&blobs, hash).as_ref(), Some(bytes));
        }
        if rots == Some(false) {
            assert!(matches!(blobs.get(&another), Err(BlobError::Corrupt(_))));
        }
    }
}

#[test]
fn the_index_is_made_again() {
    let bed = Bed::new(PACK, MediaChoice::Auto);
    let blobs = bed.open(true);
    let hashes: Vec<_> = (0..300).map(|n| put(&blobs, &text(n, 90))).collect();
    drop(blobs);
    drop(bed.sealed());
    let path = bed.files("pidx").remove(0);
    let good = fs::read(&path).unwrap();
    for bad in [None, Some(&good[..0]), Some(&good[..100]), Some(&[0; 4096][..])] {
        match bad {
            None => fs::remove_file(&path).unwrap(),
            Some(bytes) => fs::write(&path, bytes).unwrap(),
        }
        let blobs = bed.open(false);
        assert!(hashes.iter().all(|hash| blobs.contains(hash)));
        assert_eq!(fs::read(&path).unwrap(), good);
    }
}

#[test]
fn entries_behind_a_hole_are_kept() {
    let bed = Bed::new(PACK, MediaChoice::Auto);
    let blobs = bed.open(true);
    let all: Vec<_> = (0..9).map(|n| noise(n, 1000)).collect();
    let hashes = put_all(&blobs, &all);
    drop(blobs);
    let path = &bed.files("pack")[0];
    let mut bytes = fs::read(path).unwrap();
    let stride = 72 + 1000;
    bytes[64 + stride..64 + 4 * stride].fill(0);
    bytes[64 + 6 * stride + 100] ^= 1;
    fs::write(path, bytes).unwrap();
    let blobs = bed.open(false);
    for (n, hash) in hashes.iter().enumerate() {
        let want = (![1, 2, 3, 6].contains(&n)).then(|| all[n].clone());
        assert_eq!(get(&blobs, hash), want, "{n}");
    }
}

#[test]
fn a_tail_torn_at_any_byte_loses_only_what_was_torn() {
    let bed = Bed::new(PACK, MediaChoice::Auto);
    let blobs = bed.open(true);
    let first: Vec<_> = (0..20).map(|n| text(n, 300)).collect();
    let last: Vec<_> = (100..103).map(|n| text(n, 90)).collect();
    put_all(&blobs, &first);
    let from = blobs.shared.writing.lock().end;
    put_all(&blobs, &last);
    let to = blobs.shared.writing.lock().end;
    drop(blobs);
    let whole = fs::read(&bed.files("pack")[0]).unwrap();
    let supers = ["super.a", "super.b"].map(|name| bed.dir.path().join(name));
    let saved = supers.each_ref().map(|path| fs::read(path).ok());
    let stride = (to - from) / last.len() as u64;
    for cut in from..=to {
        for filling in [0u8, 0xA5] {
            let _ = fs::remove_dir_all(bed.dir.path().join("blobs"));
            fs::create_dir(bed.dir.path().join("blobs")).unwrap();
            for (path, bytes) in supers.iter().zip(&saved) {
                match bytes {
                    Some(bytes) => fs::write(path, bytes).unwrap(),
                    None => drop(fs::remove_file(path)),
                }
            }
            let mut torn = whole.clone();
            torn[cut as usize..to as usize].fill(filling);
            let name = format!("{:020}.0.pack", 1);
            fs::write(bed.dir.path().join("blobs").join(name), torn).unwrap();
            let blobs = bed.open(false);
            for bytes in &first {
                assert_eq!(get(&blobs, &BlobHash::of(bytes)).unwrap(), bytes);
            }
            for (n, bytes) in (1..).zip(&last) {
                let there = get(&blobs, &BlobHash::of(bytes));
                // The last bytes of an entry are padding, and zero anyway.
                if from + n * stride <= cut {
                    assert_eq!(there.as_ref(), Some(bytes));
                } else if from + n * stride > cut + 8 {
                    assert_eq!(there, None);
                }
            }
            drop(blobs);
            let files = bed.files("pack");
            let once = fs::read(&files[0]).unwrap();
            drop(bed.open(false));
            assert_eq!((files.len(), fs::read(&bed.files("pack")[0]).unwrap()), (1, once));
        }
    }
}

#[test]
fn a_damaged_header_costs_no_blob() {
    // Sealed, closed cleanly, and killed.
    for (sealed, clean) in [(true, true), (false, true), (false, false)] {
        let bed = Bed::new(1 << 20, MediaChoice::Auto);
        let blobs = bed.open(true);
        let all: Vec<_> = (0..20).map(|n| text(n, 300)).collect();
        let hashes = put_all(&blobs, &all);
        blobs.sync().unwrap();
        if sealed {
            blobs.shared.seal_all().unwrap();
        }
        if clean {
            blobs.close().unwrap();
        }
        drop(blobs);
        damage(&bed.files("pack")[0], 40);
        let blobs = bed.open(clean);
        assert!(blobs.trouble().is_none(), "{:?}", blobs.trouble());
        for (hash, bytes) in hashes.iter().zip(&all) {
            assert_eq!(get(&blobs, hash).as_ref(), Some(bytes), "{sealed} {clean}");
        }
        // Blobs put next are found, too, and once everything is sealed again nothing is damaged.
        let more = text(99, 300);
        let hash = put(&blobs, &more);
        blobs.shared.seal_all().unwrap();
        blobs.close().unwrap();
        drop(blobs);
        let blobs = bed.open(true);
        assert_eq!(get(&blobs, &hash), Some(more));
        assert_eq!(get(&blobs, &hashes[3]).as_ref(), Some(&all[3]));
    }
}
