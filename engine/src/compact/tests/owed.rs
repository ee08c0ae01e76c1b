//! Removals with all of their bytes on a disk that is full.

use super::*;
use crate::testing::noise;

/// A store with a frame and its body between others, and the bytes of which none may remain.
fn with_secret(dir: &Path, faults: &Arc<Faults>) -> (Store, FrameId, [Bytes; 2]) {
    let store = open_faulty(dir, options(SyncPolicy::Sync), faults).unwrap();
    (0..100).for_each(|n| _ = append(&store, heavy("other", n)));
    let body = noise(7, 9000);
    let meta = Meta::parse("\"a secret that is long enough\"").unwrap();
    let topic = Topic::parse("secret").unwrap();
    let secret = NewFrame { meta, body: Body::Inline(body.clone()), ..NewFrame::new(topic) };
    let id = append(&store, secret);
    (100..400).for_each(|n| _ = append(&store, heavy("other", n)));
    store.inner.secure_log(Roll::IfNeeded).unwrap();
    let secrets = [Bytes::from_static(b"a secret that is long"), body.slice(100..140)];
    (store, id, secrets)
}

/// Which of the secrets are in the files.
fn found(dir: &Path, secrets: &[Bytes; 2]) -> [bool; 2] {
    let files = ["log", "blobs"].map(|sub| fs::read_dir(dir.join(sub)).unwrap());
    let files = files.into_iter().flatten().map(|file| file.unwrap().path());
    let files: Vec<_> = files.map(|path| fs::read(path).unwrap()).collect();
    let is_in = |secret: &Bytes| {
        files.iter().any(|bytes| bytes.windows(secret.len()).any(|window| window == secret))
    };
    [is_in(&secrets[0]), is_in(&secrets[1])]
}

fn left(store: &Store) -> u64 {
    store.stats().space.removals_left
}

/// Each step of the way may be the first for which there is no room.
#[test]
fn a_removal_is_completed_once_there_is_room() {
    let mut full = 0;
    for first in 1.. {
        let (dir, faults) = (fast_dir(), Faults::none());
        let (store, id, secrets) = with_secret(dir.path(), &faults);
        assert_eq!((found(dir.path(), &secrets), left(&store)), ([true; 2], 0));
        faults.set(first, u64::MAX, Errno::NOSPC);
        faults.only_space();
        let removed = store.remove_now(&[id]);
        if removed.is_ok() {
            assert_eq!((found(dir.path(), &secrets), left(&store)), ([false; 2], 0));
            if faults.count() < first {
                break;
            }
            // Something else had no room meanwhile.
            continue;
        }
        if store.get(id).unwrap().is_some() {
            // Not even its tombstone had room.
            assert_eq!(left(&store), 0, "{first}: {removed:?}");
            continue;
        }
        full += 1;
        assert_eq!(left(&store), 1, "{first}: {removed:?}");
        // It stays full for a while.
        store.inner.complete_removals();
        assert_eq!(left(&store), 1, "{first}");
        faults.clear();
        store.inner.complete_removals_in_time();
        assert_eq!((found(dir.path(), &secrets), left(&store)), ([false; 2], 0), "{first}");
        assert_eq!(offsets(&store).len(), 400);
    }
    assert!(full >= 2, "{full}");
}

#[test]
fn a_removal_that_is_repeated_is_not_tried_again() {
    let (dir, faults) = (fast_dir(), Faults::none());
    let (store, id, secrets) = with_secret(dir.path(), &faults);
    store.remove(id).unwrap();
    faults.set(1, u64::MAX, Errno::NOSPC);
    faults.only_space();
    store.remove_now(&[id]).unwrap_err();
    assert_eq!(left(&store), 1);
    faults.clear();
    store.remove_now(&[id]).unwrap();
    assert_eq!((found(dir.path(), &secrets), left(&store)), ([false; 2], 0));
}

/// By the thread that compacts, which looks by itself.
#[test]
fn the_thread_completes_removals() {
    let (dir, faults) = (fast_dir(), Faults::none());
    let (store, id, secrets) = with_secret(dir.path(), &faults);
    faults.set(1, u64::MAX, Errno::NOSPC);
    faults.only_space();
    store.remove(id).unwrap();
    store.remove_now(&[id]).unwrap_err();
    faults.clear();
    let inner = Arc::clone(&store.inner);
    let options = CompactOptions::default();
    let thread = std::thread::spawn(move || thread::run(&inner, options));
    while left(&store) > 0 {
        store.inner.compaction.wake();
        std::thread::yield_now();
    }
    assert_eq!(found(dir.path(), &secrets), [false; 2]);
    store.close().unwrap();
    thread.join().unwrap();
}
