//! Where sealing places small blobs, and what is cached of them in memory.

use std::collections::BTreeSet;

use super::*;
use crate::format::pack::kin_of;

const TOPICS: u64 = 100;

/// The pack that holds a blob, and the position of its entry divided by 8.
fn place(blobs: &Blobs, hash: &BlobHash) -> (u64, u32) {
    let list = blobs.shared.packs.list();
    let places = list.sealed.iter().flat_map(|pack| {
        let opened = blobs.shared.packs.opened(&list, pack).unwrap();
        let found: Vec<_> = opened.index().find(hash.prefix()).collect();
        found.into_iter().map(|entry| (pack.line().base, entry.slot))
    });
    places.last().unwrap()
}

#[test]
fn bodies_of_a_topic_lie_together_also_after_a_crash() {
    for crash in [false, true] {
        let bed = Bed::new(16 << 20, MediaChoice::Auto);
        let blobs = bed.open(true);
        let mut hashes = Vec::new();
        // This fills 4 stretches of 2 MiB.
        for n in 0..32_000 {
            let blob = blobs.prepare(&text(n + 1, 256)).unwrap();
            let blob = blob.of_topic(&format!("sensor.{}", n % TOPICS));
            blobs.stage(std::slice::from_ref(&blob)).unwrap();
            blobs.flush().unwrap();
            hashes.push(blob.hash());
        }
        let blobs = match crash {
            false => blobs,
            true => {
                drop(blobs);
                bed.open(false)
            }
        };
        blobs.shared.seal_all().unwrap();
        for topic in 0..TOPICS as usize {
            let mine = || hashes.iter().skip(topic).step_by(TOPICS as usize);
            let places: BTreeSet<_> = mine().map(|hash| place(&blobs, hash)).collect();
            // 20 KiB of each stretch belong to the topic: one BLOCK, or two, and a third where two
            // topics share a kin.
            assert!(places.len() <= 12, "{} for {topic}", places.len());
        }
        let all: BTreeSet<_> = hashes.iter().map(|hash| place(&blobs, hash)).collect();
        assert!(all.len() <= 32_000 * 256 / (32 * 1024) + 8, "{} blocks", all.len());
        for (n, hash) in (0..).zip(&hashes) {
            assert_eq!(get(&blobs, hash).unwrap(), text(n + 1, 256));
        }
    }
}

#[test]
fn a_hit_on_a_block_in_memory_looks_at_the_file() {
    let bed = Bed::new(1 << 20, MediaChoice::Auto);
    let all: Vec<_> = (0..50).map(|n| noise(n, 500)).collect();
    let blobs = bed.open(true);
    let hashes = put_all(&blobs, &all);
    blobs.shared.seal_all().unwrap();
    assert_eq!(get(&blobs, &hashes[7]).unwrap(), all[7]);
    super::damage::damage(&bed.files("pack")[0], 64 + 72 + 400);
    // It was read before, and is what was stored.
    assert_eq!(get(&blobs, &hashes[8]).unwrap(), all[8]);
    put(&blobs, &all[7]);
    blobs.close().unwrap();
    drop(blobs);
    let blobs = bed.open(true);
    assert_eq!(get(&blobs, &hashes[7]).unwrap(), all[7]);
    assert!(blobs.get(&hashes[8]).is_err(), "the block is rotten, and nothing says so");
}

/// Blobs of the topics in turn, and the topic of each.
fn in_turn(blobs: &Blobs, topics: u64, count: u64) -> Vec<(String, BlobHash)> {
    let topic_of = |n| format!("sensor.{}", n % topics);
    let put = |n| {
        let blob = blobs.prepare(&text(n + 1, 256)).unwrap().of_topic(&topic_of(n));
        blobs.stage(std::slice::from_ref(&blob)).unwrap();
        blobs.flush().unwrap();
        (topic_of(n), blob.hash())
    };
    (0..count).map(put).collect()
}

#[test]
fn who_reads_on_is_given_what_was_asked_for() {
    let bed = Bed::new(1 << 20, MediaChoice::Auto);
    let blobs = bed.open(true);
    let mut all = in_turn(&blobs, 7, 5_000);
    blobs.shared.seal_all().unwrap();
    let body = |n: usize| {
        let (topic, hash) = &all[n];
        let body = blobs.body(topic, hash, 256).unwrap().unwrap();
        assert_eq!(body, text(n as u64 + 1, 256), "{n}");
    };
    // One topic; all; some left out, so that the next row belongs to another blob; and backwards.
    (0..all.len()).step_by(7).for_each(body);
    (0..all.len()).for_each(body);
    (0..all.len()).filter(|n| n % 5 != 2).for_each(body);
    (0..all.len()).rev().for_each(body);
    let guessed = || {
        let steps = all.iter().filter(|(topic, hash)| {
            let found = blobs.shared.packs.next_of(kin_of(topic), hash).is_some();
            found || blobs.body(topic, hash, 256).unwrap().is_none()
        });
        steps.count()
    };
    let count = guessed();
    assert!(count > 4_500, "{count} of 5000 were where they were looked for");
    // The limit is enforced there too, and an absent blob is not found.
    (0..70).for_each(body);
    let (topic, hash) = &all[70];
    assert!(matches!(blobs.body(topic, hash, 255), Err(BlobError::TooLong { len: 256, max: 255 })));
    all[70].1 = BlobHash::of(b"nobody's");
    (60..70).for_each(|n| assert!(blobs.body(&all[n].0, &all[n].1, 256).unwrap().is_some()));
    assert_eq!(blobs.body(&all[70].0, &all[70].1, 256).unwrap(), None);
}

#[test]
fn who_reads_on_in_the_log_looks_behind_the_last_entry() {
    let bed = Bed::new(256 * 1024, MediaChoice::Auto);
    let blobs = bed.open(true);
    let mut all = in_turn(&blobs, 7, 600);
    assert!(blobs.open_packs().iter().all(|(_, end)| *end < 256 * 1024), "none is sealed yet");
    let read = |n: usize, (topic, hash): &(String, BlobHash)| {
        assert_eq!(blobs.body(topic, hash, 256).unwrap().unwrap(), text(n as u64 + 1, 256), "{n}");
    };
    let both = |order: &mut dyn Iterator<Item = usize>| order.for_each(|n| read(n, &all[n]));
    both(&mut (0..600));
    both(&mut (0..600).rev());
    both(&mut (0..600).filter(|n| n % 5 != 2));
    both(&mut (0..2));
    let is_next = |n: &usize| {
        let mut run = trail::take_run().unwrap();
        let body = run.next(&all[*n].1, 256, 0);
        trail::leave_run(&run);
        body.is_some_and(|body| body == text(*n as u64 + 1, 256))
    };
    assert_eq!((2..600).filter(is_next).count(), 598);
    // Many at a time: resuming where the last read ended, and beyond what was read ahead.
    let many = |range: std::ops::Range<usize>| {
        let mut bodies = blobs.bodies();
        for n in range {
            let (topic, hash) = &all[n];
            assert_eq!(bodies.next(|| topic, hash, 256).unwrap().unwrap(), text(n as u64 + 1, 256));
        }
    };
    many(0..300);
    many(300..600);
    many(10..20);
    // An absent blob is not found, and a damaged one is reported.
    both(&mut (0..10));
    all[10].1 = BlobHash::of(b"nobody's");
    assert_eq!(blobs.body(&all[10].0, &all[10].1, 256).unwrap(), None);
    (5..10).for_each(|n| read(n, &all[n]));
    blobs.sync().unwrap();
    let at = 64 + 11 * 328 + 72 + 5;
    super::damage::damage(&bed.files("pack")[0], at);
    let (topic, hash) = &all[11];
    assert!(blobs.body(topic, hash, 256).unwrap_err().is_corrupt());
    (12..30).for_each(|n| read(n, &all[n]));
    let mut bodies = blobs.bodies();
    (5..10).for_each(|n| drop(bodies.next(|| &all[n].0, &all[n].1, 256).unwrap().unwrap()));
    assert!(bodies.next(|| topic, hash, 256).unwrap_err().is_corrupt());
    (12..30).for_each(|n| drop(bodies.next(|| &all[n].0, &all[n].1, 256).unwrap().unwrap()));
    assert!(matches!(bodies.next(|| &all[30].0, &all[30].1, 9), Err(BlobError::TooLong { .. })));
    drop(bodies);
    // The thread that read last does not keep a pack alive.
    drop(blobs);
    assert!(trail::take_run().is_none());
}
