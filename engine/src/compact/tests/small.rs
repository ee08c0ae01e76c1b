//! Frames smaller than the headers of their batches and than their tombstones: whether their space
//! is ever reclaimed depends on the estimate of their dead bytes.

use std::collections::VecDeque;

use super::*;

const HALF: CompactOptions = CompactOptions { dead_percent: 50, bytes_per_second: None };

fn tiny(ttl: Ttl) -> NewFrame {
    NewFrame { ttl, ..NewFrame::new(Topic::parse("a").unwrap()) }
}

/// The usage of a store as a queue.
#[test]
fn frames_that_are_removed_one_by_one() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let mut waiting = VecDeque::new();
    let mut most = 0;
    for n in 0..8000 {
        waiting.push_back(append(&store, tiny(Ttl::Forever)));
        if waiting.len() > 700 {
            let id = waiting.pop_front().unwrap();
            assert_eq!(store.remove(id).unwrap(), Removal::Removed);
        }
        if n % 500 == 499 {
            store.compact(HALF).unwrap();
            most = most.max(log_bytes(dir.path()));
        }
    }
    assert_eq!(offsets(&store).len(), 700);
    // 120 bytes were written for each frame, and as many for its removal.
    assert!(most < 600_000, "{most}");
}

/// Removals long after the frames: segments that hold nothing else.
#[test]
fn tombstones_whose_frames_are_gone() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let ids: Vec<_> = (0..4000).map(|_| append(&store, tiny(Ttl::Forever))).collect();
    for &id in &ids {
        store.remove(id).unwrap();
    }
    let before = log_bytes(dir.path());
    for _ in 0..3 {
        store.compact(HALF).unwrap();
    }
    assert!(before > 800_000 && log_bytes(dir.path()) < 200_000, "{}", log_bytes(dir.path()));
    assert_eq!(offsets(&store), [0; 0]);
}

#[test]
fn frames_that_expire() {
    let (dir, clock) = (fast_dir(), StillClock::at(1_000_000));
    let options = StoreOptions { clock: clock.clone(), ..options(SyncPolicy::None) };
    let store = Store::open(dir.path(), options).unwrap();
    for _ in 0..4000 {
        append(&store, tiny(Ttl::TimeMs(1000)));
    }
    clock.0.store(2_000_000, Ordering::Relaxed);
    append(&store, tiny(Ttl::Forever));
    let report = store.compact(HALF).unwrap();
    // The one that stays is in a segment of its own.
    assert_eq!((report.frames, report.written), (4000, 1), "{report:?}");
    assert!(report.bytes_after < 300, "{report:?}");
}

fn fill(store: &Store) {
    (0..240).for_each(|n| _ = append(store, heavy("fill", n)));
}

/// Tombstones that an earlier compaction read while the frames they remove still existed.
#[test]
fn tombstones_that_were_kept_once() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let ids: Vec<_> = (0..4000).map(|_| append(&store, tiny(Ttl::Forever))).collect();
    // Segments that are neither small nor mostly dead keep them apart.
    fill(&store);
    for early in [true, false] {
        for (_, &id) in ids.iter().enumerate().filter(|(n, _)| (n % 5 < 2) == early) {
            store.remove(id).unwrap();
        }
        fill(&store);
        for _ in 0..3 {
            store.compact(HALF).unwrap();
        }
    }
    let kept = store.read(&ReadOptions::default()).unwrap().map(Result::unwrap);
    let kept: usize = kept.map(|frame| frame.record().len().next_multiple_of(8) + 64).sum();
    let (left, tombstones) = (log_bytes(dir.path()), 4000 * 120);
    assert!(left < kept as u64 + tombstones / 4, "{left} bytes for {kept}");
}

/// When many frames share a batch the estimate is too high: the requested percentage decides.
#[test]
fn frames_that_share_their_batches() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let mut ids = Vec::new();
    for _ in 0..60 {
        let frames = vec![tiny(Ttl::Forever); 100];
        let appended = store.append(Batch { frames, ..Batch::default() }).unwrap();
        ids.extend(appended.frames.iter().map(|stamp| stamp.id));
    }
    fill(&store);
    for (share, is_rewritten) in [(5, false), (12, true)] {
        for (_, &id) in ids.iter().enumerate().filter(|(n, _)| n % 20 < share) {
            store.remove(id).unwrap();
        }
        fill(&store);
        assert_eq!(store.compact(HALF).unwrap().frames > 0, is_rewritten, "{share} of 20");
    }
}
