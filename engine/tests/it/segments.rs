//! A store that is opened with smaller segments than before, and a table of cursors that does not
//! fit into one of them: it is restated at the beginning of every segment.

use std::path::Path;

use bytes::Bytes;
use xs_engine::{
    AppendError, Batch, CursorChange, CursorName, CursorValue, ExpectRevision, Health, MediaChoice,
    Meta, NewFrame, Progress, Store, StoreOptions, SyncPolicy, verify,
};

use crate::support::{MEDIA, batch, everything, frames, numbered, open, options, scratch, topic};

const CURSORS: u64 = 700;
const STATE: [u8; 150] = [b's'; 150];
/// Frames of about 20 KiB, which fill several segments of either size.
const FRAMES: u64 = 150;

fn name(n: u64) -> CursorName {
    CursorName::parse(&format!("cursor.{n:05}.{}", "n".repeat(100))).unwrap()
}

fn set(n: u64, offset: u64) -> CursorChange {
    let value = CursorValue { offset, state: Bytes::from_static(&STATE) };
    CursorChange { name: name(n), expect: ExpectRevision::Any, set: Some(value) }
}

fn long_frame(n: u64) -> NewFrame {
    let meta = Meta::parse(format!("[{n},\"{}\"]", "m".repeat(20_000))).unwrap();
    NewFrame { meta, ..NewFrame::new(topic("a")) }
}

fn cursors(changes: Vec<CursorChange>) -> Batch {
    Batch { cursors: changes, ..Batch::default() }
}

/// A closed store in segments of 1 MiB, whose table of cursors is longer than 64 KiB.
fn with_many_cursors(dir: &Path, media: MediaChoice) {
    let store = open(dir, &StoreOptions { segment_bytes: 1 << 20, ..options(media) });
    store.append(batch([numbered("a", 0)])).unwrap();
    store.append(cursors((0..CURSORS).map(|n| set(n, 1)).collect())).unwrap();
    store.close().unwrap();
}

fn check(store: &Store, moved: u64, upto: u64) {
    assert_eq!(store.info().health, Health::Writable);
    assert_eq!(store.info().cursors as u64, CURSORS);
    for n in 0..CURSORS {
        let found = store.cursor(&name(n)).unwrap().unwrap();
        assert_eq!((found.offset, &found.state[..]), (if n == 3 { moved } else { 1 }, &STATE[..]));
    }
    let offsets: Vec<u64> =
        frames(store.read(&everything())).iter().map(|frame| frame.offset().unwrap()).collect();
    assert_eq!(offsets, (0..upto).collect::<Vec<_>>());
}

#[test]
fn a_table_longer_than_a_segment_makes_segments_longer() {
    for media in MEDIA {
        for sync in [SyncPolicy::Sync, SyncPolicy::None] {
            let dir = scratch();
            with_many_cursors(dir.path(), media);
            let small = StoreOptions { sync, ..options(media) };
            let mut upto = 1;
            for round in 0..3 {
                let store = open(dir.path(), &small);
                check(&store, upto, upto);
                let begun = store.info().segments;
                for n in 0..FRAMES {
                    let moves = cursors(vec![set(3, upto + n + 1)]);
                    store.append(Batch { frames: vec![long_frame(n)], ..moves }).unwrap();
                }
                upto += FRAMES;
                assert!(store.info().segments > begun + 1, "round {round}");
                check(&store, upto, upto);
                // They are moved, and no more are added than small segments may have.
                store.append(cursors((4..100).map(|n| set(n, 1)).collect())).unwrap();
                let more = store.append(cursors(vec![set(CURSORS, 1)]));
                assert_eq!(more, Err(AppendError::TooManyCursors));
                store.close().unwrap();
            }
            let go_on = &mut |_: &Progress<'_>| std::ops::ControlFlow::Continue(());
            assert!(verify(dir.path(), go_on).unwrap().is_clean());
        }
    }
}

#[test]
fn segments_are_as_short_as_they_were_asked_to_be_once_the_table_is_short() {
    let dir = scratch();
    with_many_cursors(dir.path(), MediaChoice::Mapped);
    let store = open(dir.path(), &options(MediaChoice::Mapped));
    for first in (0..CURSORS).step_by(100) {
        let gone = |n| CursorChange { set: None, ..set(n, 1) };
        store.append(cursors((first..first + 100).map(gone).collect())).unwrap();
    }
    let segments = store.info().segments;
    for n in 0..FRAMES {
        store.append(batch([long_frame(n)])).unwrap();
    }
    // The long one that was there is filled first.
    assert!(store.info().segments > segments + 20, "{}", store.info().segments);
    store.close().unwrap();
}
