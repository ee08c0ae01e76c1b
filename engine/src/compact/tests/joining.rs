//! How much is merged into one segment, whatever the estimate was.

use super::*;
use crate::index::Candidate;

const SEGMENT: u64 = 64 * 1024;

/// A short frame that supersedes the one before it.
fn beat(n: u64) -> NewFrame {
    last(1, frame("beat", n))
}

/// Rounds of `beats` short frames and a long one.
fn fill(store: &Store, rounds: u64, beats: u64) -> Vec<u64> {
    let mut left = Vec::new();
    for n in 0..rounds {
        (0..beats).for_each(|_| _ = append(store, beat(n)));
        let meta = Meta::parse(format!("[{n},\"{}\"]", "x".repeat(4000))).unwrap();
        store.append(NewFrame { meta, ..frame("event", n) }.into()).unwrap();
        left.push((n + 1) * (beats + 1) - 1);
    }
    append(store, beat(rounds));
    left.push(rounds * (beats + 1));
    left
}

fn sealed(store: &Store) -> Vec<Candidate> {
    store.inner.index.candidates(store.inner.env.clock.now_ms(), true)
}

fn sealed_lens(store: &Store) -> Vec<u64> {
    sealed(store).iter().map(|of| of.segment.published_len()).collect()
}

#[test]
fn no_segment_becomes_longer_than_a_full_one() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let left = fill(&store, 200, 10);
    store.inner.secure_log(Roll::IfNeeded).unwrap();
    let before = sealed_lens(&store);
    // Nine of ten frames are dead, but only a quarter of the bytes.
    assert!(before.len() > 12);
    assert!(sealed(&store).iter().all(|of| of.dead * 100 > of.segment.published_len() * 80));
    let report = store.compact(ALL).unwrap();
    assert!(report.frames > 1500 && report.rewritten > 10, "{report:?}");
    let after = sealed_lens(&store);
    assert!(after.iter().all(|&len| len <= SEGMENT), "{after:?}");
    assert!(after.iter().sum::<u64>() < before.iter().sum::<u64>() * 85 / 100, "{after:?}");
    assert_eq!(offsets(&store), left);
    assert_eq!(store.compact(ALL).unwrap().rewritten, 0);
    store.close().unwrap();
    drop(store);
    assert_eq!(offsets(&open(dir.path(), SyncPolicy::None)), left);
}

#[test]
fn a_segment_of_which_little_is_dead_is_not_read_again_and_again() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let left = fill(&store, 100, 2);
    let options = CompactOptions { dead_percent: 50, ..ALL };
    store.inner.secure_log(Roll::IfNeeded).unwrap();
    let is_rotten = |of: &Candidate| of.dead * 100 > of.segment.published_len() * 50;
    assert!(sealed(&store).iter().all(is_rotten));
    assert_eq!(store.compact(options).unwrap().rewritten, 0);
    assert!(!sealed(&store).iter().any(is_rotten));
    // Frames that die afterwards count as before.
    let first: Vec<_> = left[..10].iter().map(|&at| store.get_at(at).unwrap().unwrap()).collect();
    first.iter().for_each(|frame| _ = store.remove(frame.id()).unwrap());
    assert!(is_rotten(&sealed(&store)[0]));
    assert!(store.compact(options).unwrap().rewritten > 0);
    assert_eq!(offsets(&store), left[10..]);
}

#[test]
fn one_that_has_no_room_keeps_no_other_from_being_compacted() {
    let dir = fast_dir();
    let faults = Faults::none();
    let store = open_faulty(dir.path(), options(SyncPolicy::None), &faults).unwrap();
    let junk: Vec<_> = (0..140).map(|n| append(&store, heavy("junk", n))).collect();
    (0..140).for_each(|n| _ = append(&store, heavy("keep", n)));
    let later: Vec<_> = (0..300).map(|n| append(&store, heavy("junk", n))).collect();
    // The first segments keep a live frame, some later ones none.
    junk.iter().skip(1).chain(&later).for_each(|&id| _ = store.remove(id).unwrap());
    store.inner.secure_log(Roll::IfNeeded).unwrap();
    let left = offsets(&store);
    let before = log_bytes(dir.path());
    // No space for the first segments together, nor for the first of them alone.
    faults.set(1, 2, Errno::NOSPC);
    faults.only_space();
    let done = store.compact(ALL);
    faults.clear();
    assert!(matches!(done, Err(CompactError::StorageFull(_))) || done.is_ok(), "{done:?}");
    assert!(log_bytes(dir.path()) + SEGMENT < before, "{done:?}");
    assert_eq!(offsets(&store), left);
}
