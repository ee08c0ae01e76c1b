use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::options::MediaChoice;
use crate::value::{Body, Meta, NewFrame, ReadOptions, Topic};

fn options(sync: SyncPolicy) -> StoreOptions {
    StoreOptions {
        segment_bytes: 64 * 1024,
        pack_bytes: 64 * 1024,
        sync,
        ..StoreOptions::default()
    }
}

fn frame(topic: &str, n: u64) -> NewFrame {
    let meta = Meta::parse(format!("{{\"n\":{n}}}")).unwrap();
    NewFrame { meta, ..NewFrame::new(Topic::parse(topic).unwrap()) }
}

fn numbers(store: &Store) -> Vec<(u64, String)> {
    let frames = store.read(&ReadOptions::default()).unwrap();
    let told = |frame: crate::Frame| {
        (frame.offset().unwrap(), String::from_utf8(frame.meta().to_vec()).unwrap())
    };
    frames.map(|frame| told(frame.unwrap())).collect()
}

fn open(dir: &Path, sync: SyncPolicy) -> Store {
    Store::open(dir, options(sync)).unwrap()
}

#[test]
fn what_is_appended_is_read_and_is_there_after_reopening() {
    for media in [MediaChoice::Mapped, MediaChoice::Positioned] {
        for sync in [SyncPolicy::Sync, SyncPolicy::None] {
            let dir = tempfile::tempdir().unwrap();
            let options = StoreOptions { media, ..options(sync) };
            let mut expected = Vec::new();
            for epoch in 1..=3 {
                let store = Store::open(dir.path(), options.clone()).unwrap();
                assert_eq!((store.info().epoch, store.info().health), (epoch, Health::Writable));
                assert_eq!(numbers(&store), expected);
                for _ in 0..50 {
                    let offset = expected.len() as u64;
                    let batch = Batch::from(frame("a", offset));
                    let appended = store.append(batch).unwrap();
                    assert_eq!(appended.frames[0].offset, Some(offset));
                    assert_eq!(appended.durable, sync == SyncPolicy::Sync);
                    expected.push((offset, format!("{{\"n\":{offset}}}")));
                }
                assert_eq!(numbers(&store), expected);
                store.close().unwrap();
            }
        }
    }
}

#[test]
fn segments_follow_one_another() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), SyncPolicy::None);
    let body = Bytes::from_static(b"hello");
    for n in 0..5000 {
        let mut new = frame("a", n);
        if n % 100 == 0 {
            new.body = Body::Inline(body.clone());
        }
        store.append(new.into()).unwrap();
    }
    assert!(store.info().segments > 5);
    let expected: Vec<_> = (0..5000).map(|n| (n, format!("{{\"n\":{n}}}"))).collect();
    assert!(numbers(&store) == expected);
    store.close().unwrap();
    drop(store);
    let store = open(dir.path(), SyncPolicy::None);
    assert!(store.info().recovery.clean);
    assert!(numbers(&store) == expected);
    assert_eq!(store.append(frame("a", 5000).into()).unwrap().frames[0].offset, Some(5000));
}

#[test]
fn many_threads_share_groups() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(dir.path(), SyncPolicy::Sync));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for n in 0..20 {
                    store.append(frame("a", n).into()).unwrap();
                }
            });
        }
    });
    assert_eq!(numbers(&store).len(), 160);
    let tickets: Vec<_> = (0..10).map(|n| store.submit(frame("b", n).into())).collect();
    let offsets = tickets.into_iter().map(|ticket| ticket.wait().unwrap().frames[0].offset);
    assert!(offsets.eq((160..170).map(Some)));
}
