//! Imports: frames that come with the ids they had elsewhere.

use std::fs;
use std::sync::atomic::Ordering;

use xs_engine::{
    AppendError, Batch, Frame, FrameId, IdempotencyKey, Import, NewFrame, StoreOptions, Ttl,
};

use crate::support::{
    MEDIA, TestClock, batch, copy_store, everything, files, frames, numbered, open, options,
    scratch, with_body,
};

fn verbatim(ids: &[FrameId]) -> Batch {
    let count = ids.len() as u64;
    let import = Some(Import::Verbatim(ids.to_vec()));
    Batch { import, ..batch((0..count).map(|n| numbered("a", n))) }
}

fn under_new_ids(ids: &[FrameId]) -> Batch {
    Batch { import: Some(Import::NewIds(ids.to_vec())), ..verbatim(ids) }
}

fn at(ms: u64) -> FrameId {
    FrameId::first_of_ms(ms)
}

#[test]
fn ids_are_kept_where_the_order_allows_it() {
    let dir = scratch();
    let clock = TestClock::new();
    let options = StoreOptions { clock: clock.clone(), ..options(MEDIA[0]) };
    let store = open(dir.path(), &options);
    let appended = store.append(verbatim(&[at(5), at(5).next(), at(9)])).unwrap();
    let stamps: Vec<_> = appended.frames.iter().map(|stamp| (stamp.id, stamp.offset)).collect();
    assert_eq!(stamps, [(at(5), Some(0)), (at(5).next(), Some(1)), (at(9), Some(2))]);
    let order = |index, id, newest| Err(AppendError::ImportOrder { index, id, newest });
    assert_eq!(store.append(verbatim(&[at(9)])), order(0, at(9), at(9)));
    assert_eq!(store.append(verbatim(&[at(10), at(11), at(11)])), order(2, at(11), at(11)));
    // A batch sees those before it in its group.
    let handles = [store.submit(verbatim(&[at(20)])), store.submit(verbatim(&[at(15)]))];
    store.lead();
    let [first, second] = handles.map(|handle| handle.wait());
    assert_eq!((first.is_ok(), second), (true, order(0, at(15), at(20))));
    let after = store.append(numbered("a", 0).into()).unwrap().frames[0].id;
    assert!(after.time_ms() == clock.0.load(Ordering::SeqCst));
    // Ids ahead of the clock are followed by higher ones, also after a kill.
    let ahead = at(after.time_ms() + 1000);
    store.append(verbatim(&[ahead])).unwrap();
    let killed = scratch();
    copy_store(dir.path(), killed.path());
    for dir in [killed.path(), dir.path()] {
        store.close().unwrap();
        let store = open(dir, &options);
        assert_eq!(store.append(verbatim(&[ahead])), order(0, ahead, ahead));
        let next = store.append(numbered("a", 0).into()).unwrap().frames[0].id;
        assert!(next > ahead);
        assert_eq!(store.get(at(5)).unwrap().map(|frame| frame.offset()), Some(Some(0)));
        let stored = frames(store.read(&everything()));
        assert!(stored.len() == 7 && stored.windows(2).all(|two| two[0].id() < two[1].id()));
        assert!(stored.iter().all(|frame| frame.old_id().is_none()));
    }
}

#[test]
fn an_import_is_checked_before_anything_is_written() {
    let dir = scratch();
    let store = open(dir.path(), &options(MEDIA[1]));
    let refused = |batch| store.append(batch).unwrap_err();
    let two = Batch { frames: vec![numbered("a", 0)], ..verbatim(&[at(1), at(2)]) };
    assert_eq!(refused(two), AppendError::ImportCount { frames: 1, ids: 2 });
    let mut ephemeral = under_new_ids(&[at(1), at(2)]);
    ephemeral.frames[1].ttl = Ttl::Ephemeral;
    assert_eq!(refused(ephemeral), AppendError::ImportEphemeral { index: 1 });
    let key = IdempotencyKey::parse("key").unwrap();
    let keyed = Batch { key: Some(key.clone()), ..verbatim(&[at(1)]) };
    assert_eq!(refused(keyed), AppendError::ImportKey);
    assert_eq!(refused(verbatim(&[at(u64::MAX)])), AppendError::ImportId(at(u64::MAX)));
    assert_eq!(refused(verbatim(&[FrameId::MAX])), AppendError::ImportId(FrameId::MAX));
    let zero = FrameId::ZERO;
    let order = AppendError::ImportOrder { index: 0, id: zero, newest: zero };
    assert_eq!(refused(verbatim(&[zero])), order);
    assert_eq!(store.info().head, 0);
    // With new ids a key makes an import happen once; other old ids are other content.
    let keyed = |ids: &[FrameId]| Batch { key: Some(key.clone()), ..under_new_ids(ids) };
    let first = store.append(keyed(&[at(1), at(2)])).unwrap();
    assert_eq!(store.append(keyed(&[at(1), at(2)])).unwrap().frames, first.frames);
    assert!(matches!(refused(keyed(&[at(1), at(3)])), AppendError::KeyReused { .. }));
}

#[test]
fn frames_are_found_by_the_ids_they_had() {
    let clock = TestClock::new();
    let options = StoreOptions { clock: clock.clone(), ..options(MEDIA[0]) };
    let dir = scratch();
    let store = open(dir.path(), &options);
    store.append(numbered("b", 0).into()).unwrap();
    assert_eq!(store.get(at(7)).unwrap(), None);
    let find = |store: &xs_engine::Store, ms| -> Option<Frame> { store.get(at(ms)).unwrap() };
    // Old ids come in any order and may lie among the store's own.
    for n in 0..40 {
        let ids: Vec<_> = (0..100).map(|m| at(1 + (n * 100 + m) * 7919 % 4000)).collect();
        let mut import = under_new_ids(&ids);
        import.frames[0] = with_body(numbered("a.body", n), b"body");
        store.append(import).unwrap();
        store.append(batch((0..100).map(|n| numbered("b", n)))).unwrap();
    }
    let check = |store: &xs_engine::Store| {
        for n in 0..4000 {
            let frame = find(store, 1 + n * 7919 % 4000).expect("an old id");
            assert_eq!(frame.old_id(), Some(at(1 + n * 7919 % 4000)));
            assert_eq!(frame.offset(), Some(1 + n / 100 * 200 + n % 100));
            assert_eq!(store.get(frame.id()).unwrap(), Some(frame));
        }
        assert_eq!((find(store, 4001), find(store, 0)), (None, None));
    };
    check(&store);
    let killed = scratch();
    copy_store(dir.path(), killed.path());
    store.close().unwrap();
    check(&open(killed.path(), &options));
    let key_files = files(&dir.path().join("log"), "key");
    assert!(key_files.len() > 3);
    fs::remove_file(&key_files[0]).unwrap();
    fs::write(&key_files[1], b"XSKEYED1").unwrap();
    let store = open(dir.path(), &options);
    check(&store);
    // Whether there are old ids is known even if none are near the end of the log.
    (0..8).for_each(|_| drop(store.append(batch((0..500).map(|n| numbered("b", n)))).unwrap()));
    let killed = scratch();
    copy_store(dir.path(), killed.path());
    store.close().unwrap();
    check(&open(killed.path(), &options));
    let store = open(dir.path(), &options);
    check(&store);
    // The last import of an id counts, as long as it is visible.
    let timed = |ttl| {
        let frame = NewFrame { ttl, ..numbered("timed", 1) };
        Batch { import: Some(Import::NewIds(vec![at(1)])), ..frame.into() }
    };
    let offset = store.append(timed(Ttl::TimeMs(10))).unwrap().frames[0].offset;
    assert_eq!(find(&store, 1).unwrap().offset(), offset);
    clock.forward(10);
    assert_eq!(find(&store, 1).unwrap().offset(), Some(1));
    let newest = store.append(timed(Ttl::Forever)).unwrap().frames[0];
    assert_eq!(find(&store, 1).unwrap().offset(), newest.offset);
    // An id of the store takes precedence over an old one.
    let import = under_new_ids(&[newest.id]);
    store.append(import).unwrap();
    assert_eq!(store.get(newest.id).unwrap().unwrap().offset(), newest.offset);
}
