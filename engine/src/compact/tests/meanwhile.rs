//! What happens to segments while they are being rewritten.

use super::*;
use crate::compact::{pace::Pace, survey, switch, write};

/// Rewrites the oldest segment as it is found by the survey, with `meanwhile` after its tombstones
/// were taken.
fn rewrite_first(store: &Store, meanwhile: impl FnOnce()) -> Stopped<CompactReport> {
    let inner = &store.inner;
    inner.secure_log(&[]).unwrap();
    let _one = inner.compaction.running.lock();
    let mut inputs = inner.index.candidates(inner.env.clock.now_ms());
    inputs.truncate(1);
    let offsets = inputs[0].segment.base()..inputs[0].segment.end();
    let seq = inner.writer.lock().appender().next_seq();
    let marks = inner.index.marks(offsets);
    meanwhile();
    let mut pace = Pace::new(inner, None);
    let survey = survey::survey(inner, &inputs, marks, u64::MAX, &mut pace)?;
    let written = write::write(inner, &survey, &mut pace)?;
    switch::switch(inner, &survey, written, seq)
}

#[test]
fn a_frame_that_is_removed_and_superseded_meanwhile_leaves_no_mark() {
    let dir = fast_dir();
    let store = open(dir.path(), SyncPolicy::None);
    let removed = append(&store, heavy("status", 0));
    for n in 0..200 {
        append(&store, heavy("fill", n));
    }
    let mut by = None;
    let done = rewrite_first(&store, || {
        assert_eq!(store.remove(removed).unwrap(), Removal::Removed);
        by = Some(append(&store, last(1, heavy("status", 1))));
    });
    assert!(matches!(done, Err(Stop::Overtaken)), "{done:?}");
    store.remove_now(&[removed]).unwrap();
    assert!(store.inner.stored_at(0).unwrap().is_none());
    // Nothing says any more that all before the newest one was removed.
    store.remove_now(&[by.unwrap()]).unwrap();
    append(&store, heavy("status", 2));
    let image = crash(dir.path());
    let left = offsets(&store);
    assert_eq!(store.inner.index.marks(0..u64::MAX / 2).iter(0..u64::MAX / 2).count(), 0);
    store.close().unwrap();
    drop(store);
    for dir in [dir.path(), image.path()] {
        assert_eq!(offsets(&open(dir, SyncPolicy::None)), left);
    }
}
