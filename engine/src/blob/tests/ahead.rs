//! Lookups of several blobs that are announced together.

use super::damage::damage;
use super::*;
use crate::blob::ahead::Guesses;

const LEN: u64 = 256;

fn wanted(all: &[(usize, BlobHash)]) -> Vec<Wanted> {
    all.iter().map(|&(_, hash)| Wanted { hash, len: LEN }).collect()
}

/// Number of blobs that are found at the guessed position.
fn guessed(blobs: &Blobs, all: &[(usize, BlobHash)]) -> usize {
    let mut guesses = Guesses::of(&blobs.shared.packs, &wanted(all));
    let is_there = |(n, hash): &&(usize, BlobHash)| {
        let header = |bytes: &[u8], salt| crate::blob::run::header_of(bytes, salt, hash, LEN);
        let body = guesses.next(header);
        body.inspect(|body| assert_eq!(*body, text(*n as u64, LEN as usize))).is_some()
    };
    all.iter().filter(is_there).count()
}

/// Reads blobs, announcing `together` at a time.
fn read_all(blobs: &Blobs, all: &[(usize, BlobHash)], together: usize) {
    let mut bodies = blobs.bodies();
    for part in all.chunks(together) {
        bodies.expect("a", &wanted(part));
        for (n, hash) in part {
            let body = bodies.next(|| "a", hash, LEN).unwrap();
            assert_eq!(body.unwrap(), text(*n as u64, LEN as usize), "{n}");
        }
    }
}

#[test]
fn blobs_wanted_together_are_found_wherever_they_are() {
    for media in BOTH {
        for busy_bytes_per_second in [0, u64::MAX] {
            let mut bed = Bed::new(PACK, media);
            bed.compress = CompressOptions { busy_bytes_per_second, ..CompressOptions::default() };
            let blobs = bed.open(true);
            let bytes: Vec<_> = (0..1_500).map(|n| text(n, LEN as usize)).collect();
            let mut all: Vec<_> =
                put_all(&blobs, &bytes[..1_200]).into_iter().enumerate().collect();
            blobs.shared.seal_all().unwrap();
            let more = put_all(&blobs, &bytes[1_200..1_350]);
            all.extend((1_200..).zip(more));
            let scattered: Vec<_> = (0..all.len()).map(|n| all[n * 631 % all.len()]).collect();
            for together in [1, 3, 4, 64] {
                read_all(&blobs, &scattered, together);
                read_all(&blobs, &all, together);
            }
            let found = guessed(&blobs, &scattered);
            match (media, busy_bytes_per_second) {
                (MediaChoice::Positioned, _) => assert_eq!(found, 0, "a guess would be a read"),
                (_, 0) => assert_eq!(found, 1_350),
                _ => assert!((150..1_200).contains(&found), "{found} lie in no BLOCK"),
            }
            // There are no guesses for closed packs, and none is opened for one.
            close_all(&blobs, true);
            assert!(guessed(&blobs, &scattered) <= 150);
            assert_eq!(close_all(&blobs, true), 0);
            read_all(&blobs, &scattered, 64);
        }
    }
}

#[test]
fn a_guess_is_not_an_answer() {
    let bed = Bed::new(1 << 20, MediaChoice::Mapped);
    let blobs = bed.open(true);
    let bytes: Vec<_> = (0..100).map(|n| text(n, LEN as usize)).collect();
    let mut all: Vec<_> = put_all(&blobs, &bytes).into_iter().enumerate().collect();
    all.reverse();
    blobs.sync().unwrap();
    assert_eq!(guessed(&blobs, &all), 100);
    damage(&bed.files("pack")[0], 64 + 11 * 328 + 72 + 5);
    assert_eq!(guessed(&blobs, &all), 99);
    let mut bodies = blobs.bodies();
    bodies.expect("a", &wanted(&all));
    let stranger = BlobHash::of(b"stranger");
    for (n, hash) in &all {
        // Nor is a blob that was not announced, or one that is too long.
        let body = match n {
            7 => bodies.next(|| "a", &stranger, LEN).map(|none| assert_eq!(none, None)),
            9 => {
                let error = bodies.next(|| "a", hash, 255).unwrap_err();
                assert!(matches!(error, BlobError::TooLong { len: LEN, max: 255 }), "{error}");
                Ok(())
            }
            _ => bodies.next(|| "a", hash, LEN).map(|body| assert_eq!(body.unwrap(), bytes[*n])),
        };
        assert_eq!(body.err().is_some_and(|error| error.is_corrupt()), *n == 11, "{n}");
    }
    // Beyond the announced blobs.
    assert_eq!(bodies.next(|| "a", &all[0].1, LEN).unwrap().unwrap(), bytes[99]);
}

#[test]
fn blobs_that_lie_one_behind_another_are_read_on_without_looking() {
    let bed = Bed::new(1 << 20, MediaChoice::Mapped);
    let blobs = bed.open(true);
    let bytes: Vec<_> = (0..300).map(|n| text(n, LEN as usize)).collect();
    let all: Vec<_> = put_all(&blobs, &bytes).into_iter().enumerate().collect();
    let is_run = |order: Vec<(usize, BlobHash)>| {
        read_all(&blobs, &order, 50);
        trail::take_run().is_some()
    };
    assert!(is_run(all[..50].to_vec()), "after the first that were told of");
    assert!(is_run(all.clone()));
    assert!(!is_run(all.iter().copied().step_by(3).collect()));
    assert!(!is_run(all.iter().copied().filter(|(n, _)| n % 3 < 2).collect()));
}
