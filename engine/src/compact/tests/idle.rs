//! A store without activity.

use super::*;
use crate::compact::thread::round;
use crate::value::IdempotencyKey;

#[test]
fn nothing_is_looked_for_again_in_a_store_at_rest() {
    let (dir, clock, faults) = (fast_dir(), StillClock::at(1_000_000), Faults::none());
    let options = StoreOptions { clock: clock.clone(), ..options(SyncPolicy::None) };
    let store = open_faulty(dir.path(), options, &faults).unwrap();
    let lasting = |n| NewFrame { ttl: Ttl::TimeMs(60_000), ..heavy("timed", n) };
    for n in 0..700 {
        append(&store, if n % 10 == 0 { lasting(n) } else { heavy("fill", n) });
    }
    append(&store, last(1, heavy("state", 1)));
    store.inner.secure_log(Roll::IfNeeded).unwrap();
    let opened = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let count = opened.clone();
    faults.watch_opens(move |path| {
        let is_one = path.extension().is_some_and(|kind| kind == "top");
        count.fetch_add(u64::from(is_one), Ordering::Relaxed);
    });
    let (inner, mut seen) = (&store.inner, None);
    let mut look = |woken| {
        let before = opened.load(Ordering::Relaxed);
        round(inner, CompactOptions { dead_percent: 50, ..ALL }, &mut seen, woken);
        opened.load(Ordering::Relaxed) - before
    };
    assert!(look(false) > 2);
    assert_eq!([(); 3].map(|()| look(false)), [0; 3]);
    assert!(look(true) > 2, "a segment was sealed");
    append(&store, heavy("fill", 1000));
    assert!(look(false) > 2 && look(false) == 0);
    clock.0.fetch_add(100_000, Ordering::Relaxed);
    assert!(look(false) > 2, "something has expired");
    // A removal now does not survey the dead bytes of other segments.
    let victim = store.get_at(3).unwrap().unwrap().id();
    let before = opened.load(Ordering::Relaxed);
    store.inner.compact(&Which::Holding(&[3]), true, None).unwrap();
    assert!(opened.load(Ordering::Relaxed) <= before + 2, "all were opened");
    assert!(store.get(victim).unwrap().is_some());
}

#[test]
fn a_short_segment_of_which_nothing_is_dead_stays_as_it_is() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    // As far as can be known without reading the segment, a key is dead.
    let key = Some(IdempotencyKey::parse("key").unwrap());
    store.append(Batch { key, ..frame("keep", 1).into() }).unwrap();
    let junk: Vec<_> = (0..100).map(|n| append(&store, heavy("junk", n))).collect();
    junk.iter().for_each(|&id| _ = store.remove(id).unwrap());
    store.inner.secure_log_of(&[0]).unwrap();
    let report = store.compact(ALL).unwrap();
    assert_eq!((report.rewritten, report.written, report.frames), (1, 1, 100));
    // The file's header is a large share of it.
    assert!(report.bytes_after < 400, "{report:?}");
    assert_eq!(store.compact(ALL).unwrap(), CompactReport::default());
    let candidates = store.inner.index.candidates(store.inner.env.clock.now_ms(), true);
    assert_eq!(candidates.iter().map(|of| of.dead).collect::<Vec<_>>(), [0], "it is read again");
}
