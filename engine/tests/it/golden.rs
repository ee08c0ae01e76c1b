//! A store written by version 1 of the format must open as long as version 1 is supported. To write
//! a new one, for a new version, set `XS_WRITE_FIXTURE` to its directory.

use std::fmt::Write as _;
use std::fs;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use xs_engine::{
    Batch, BlobHash, CursorChange, CursorName, CursorSummary, CursorValue, ExpectRevision, FrameId,
    Health, NewFrame, Origin, Store, StoreOptions, Ttl,
};

use crate::support::{
    MEDIA, TestClock, batch, copy_store, everything, files, frames, numbered, open, options,
    patterns, scratch, with_body,
};

/// Everything that a store of version 1 can hold, over more than one segment.
fn write(dir: &Path) {
    let clock = TestClock::new();
    let options = StoreOptions { clock: clock.clone(), ..options(MEDIA[0]) };
    let store = open(dir, &options);
    let filler = "f".repeat(3000);
    for n in 0..25 {
        clock.0.fetch_add(10, Ordering::SeqCst);
        store.append(with_body(numbered("metrics.cpu", n), filler.as_bytes()).into()).unwrap();
        let padded = xs_engine::Meta::parse(format!("\"{n} {filler}\"")).unwrap();
        let padded = NewFrame { meta: padded, ..NewFrame::new(numbered("padding", n).topic) };
        store.append(padded.into()).unwrap();
    }
    let kept = |n| NewFrame { ttl: Ttl::Last(NonZeroU64::new(2).unwrap()), ..numbered("state", n) };
    (0..4).for_each(|n| drop(store.append(kept(n).into()).unwrap()));
    let origin = Origin {
        processor: FrameId::first_of_ms(1),
        input: Some(FrameId::first_of_ms(2)),
        input_offset: Some(3),
        hops: 4,
    };
    let derived = NewFrame { origin: Some(origin), ..numbered("xs.note", 1) };
    let timed = NewFrame { ttl: Ttl::TimeMs(u64::MAX), ..numbered("timed", 1) };
    let cursor = |name: &str, state: &'static [u8]| CursorChange {
        name: CursorName::parse(name).unwrap(),
        expect: ExpectRevision::Any,
        set: Some(CursorValue { offset: 7, state: Bytes::from_static(state) }),
    };
    let cursors = vec![cursor("reader", b"state"), cursor("other", b"")];
    store.append(Batch { cursors, ..batch([derived, timed]) }).unwrap();
    store.blob_put(&vec![b'z'; 70_000]).unwrap();
    store.close().unwrap();
}

/// What a reader sees, as text.
fn tell(store: &Store) -> String {
    let mut told = String::new();
    for frame in frames(store.read(&everything())) {
        let body = frame.hash().map_or(Bytes::new(), |hash| {
            store.blob(&hash).unwrap().unwrap().bytes(1 << 20).unwrap()
        });
        let (id, topic, meta) = (frame.id(), frame.topic(), BlobHash::of(frame.meta()));
        let offset = frame.offset().unwrap();
        write!(told, "{offset} {id} {topic} {} {meta} {}", frame.ttl(), body.len()).unwrap();
        writeln!(told, " {:?} {:?}", frame.hash(), frame.origin()).unwrap();
    }
    for CursorSummary { name, .. } in store.cursors() {
        writeln!(told, "{:?}", store.cursor(&name).unwrap()).unwrap();
    }
    for stats in store.topics(&patterns("*,xs.*")) {
        writeln!(told, "{stats:?}").unwrap();
    }
    told
}

#[test]
fn version_1_opens() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1");
    if let Some(dir) = std::env::var_os("XS_WRITE_FIXTURE") {
        let dir = Path::new(&dir);
        write(&dir.join("store"));
        fs::remove_file(dir.join("store/LOCK")).unwrap();
        files(&dir.join("store/log"), "tmp").iter().for_each(|path| fs::remove_file(path).unwrap());
        let copy = scratch();
        copy_store(&dir.join("store"), copy.path());
        fs::write(dir.join("told.txt"), tell(&open(copy.path(), &options(MEDIA[0])))).unwrap();
    }
    let expected = fs::read_to_string(fixture.join("told.txt")).unwrap();
    for media in MEDIA {
        let copy = scratch();
        copy_store(&fixture.join("store"), copy.path());
        let store = open(copy.path(), &options(media));
        assert_eq!(store.info().health, Health::Writable);
        assert_eq!(tell(&store), expected);
        store.append(numbered("after", 1).into()).unwrap();
        store.close().unwrap();
        let again = open(copy.path(), &options(media));
        assert!(tell(&again).len() > expected.len());
    }
}
