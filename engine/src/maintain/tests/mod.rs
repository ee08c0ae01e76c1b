//! Helpers shared by the tests of maintenance.

mod copy;
mod repair;
mod stops;
mod unreadable;
mod verify;

use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tempfile::TempDir;

use super::finding::{Progress, VerifyReport};
use crate::append::Batch;
use crate::format::super_file::{FileState, SuperState};
use crate::manifest::Manifest;
use crate::media::Disk;
use crate::media::faulty::Faults;
use crate::options::CompactOptions;
use crate::options::{MediaChoice, StoreOptions, SyncPolicy};
use crate::store::Store;
use crate::testing::{crash_now, frame, noise, open_faulty, options, segment_files};
use crate::value::{
    Body, CursorChange, CursorName, CursorSummary, CursorValue, ExpectRevision, FrameId,
    IdempotencyKey, NewFrame, Origin, Ttl,
};

/// Frames that fill one segment of the smallest size several times.
const FRAMES: u64 = 1200;

fn go_on(_progress: &Progress<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn with_body(new: NewFrame, body: &[u8]) -> NewFrame {
    NewFrame { body: Body::Inline(Bytes::copy_from_slice(body)), ..new }
}

fn cursor(name: &str, offset: u64, state: &[u8]) -> CursorChange {
    CursorChange {
        name: CursorName::parse(name).unwrap(),
        expect: ExpectRevision::Any,
        set: Some(CursorValue { offset, state: Bytes::copy_from_slice(state) }),
    }
}

/// Fills a store with everything it can contain, over several segments and packs.
fn fill(store: &Store) {
    let (mut ids, mut rewritten) = (Vec::new(), 0);
    for n in 0..FRAMES {
        let topic = ["a", "a.b", "metrics.cpu"][n as usize % 3];
        let new = match n % 40 {
            7 => with_body(frame(topic, n), &noise(n, 1500)),
            8 => with_body(frame(topic, n), format!("body {n} ").repeat(40).as_bytes()),
            9 => NewFrame { ttl: Ttl::Last(NonZeroU64::new(3).unwrap()), ..frame("state", n) },
            10 => NewFrame { ttl: Ttl::TimeMs(u64::MAX), ..frame(topic, n) },
            11 => NewFrame { origin: Some(origin()), ..frame(topic, n) },
            12 => NewFrame { ttl: Ttl::Ephemeral, ..frame(topic, n) },
            _ => frame(topic, n),
        };
        let cursors = match n % 100 {
            0 => vec![cursor("reader", n, b"{}"), cursor("long", n, &noise(n, 9000))],
            50 => vec![cursor("gone", n, b"")],
            51 => vec![CursorChange { set: None, ..cursor("gone", 0, b"") }],
            _ => Vec::new(),
        };
        let key = (n % 90 == 0).then(|| IdempotencyKey::parse(&format!("key {n}")).unwrap());
        let removes = match n % 60 {
            30 => ids.drain(..10).collect(),
            31 => vec![ids[0]],
            _ => Vec::new(),
        };
        let appended =
            store.append(Batch { frames: vec![new], cursors, removes, key, ..Batch::default() });
        ids.extend(
            appended.unwrap().frames.iter().filter_map(|stamp| stamp.offset.map(|_| stamp.id)),
        );
        if [FRAMES * 2 / 3, FRAMES - 1].contains(&n) {
            // From here on there are gaps in the offsets, too.
            let all = CompactOptions { dead_percent: 1, bytes_per_second: None };
            rewritten += store.compact(all).unwrap().rewritten;
        }
    }
    assert!(rewritten > 0);
    store.append(with_body(frame("long", 1), &noise(9, 40_000)).into()).unwrap();
    store.append(with_body(frame("longer", 1), &noise(11, 200_000)).into()).unwrap();
}

fn origin() -> Origin {
    Origin {
        processor: FrameId::first_of_ms(1),
        input: Some(FrameId::first_of_ms(2)),
        input_offset: Some(3),
        hops: 4,
    }
}

/// A closed store with everything in it.
fn build(dir: &Path) {
    let store = Store::open(dir, none()).unwrap();
    fill(&store);
    // Otherwise the close may find some packs sealed and others not.
    store.inner.blobs.seal_all();
    store.close().unwrap();
}

fn none() -> StoreOptions {
    options(SyncPolicy::None)
}

fn check(dir: &Path) -> VerifyReport {
    super::verify(dir, &mut go_on).unwrap()
}

/// Everything that readers can see, as text.
fn tell(store: &Store) -> Vec<String> {
    let everything = crate::value::TopicPatterns::everything();
    let options = crate::value::ReadOptions { topics: everything, ..Default::default() };
    let mut told: Vec<String> = store
        .read(&options)
        .unwrap()
        .map(|frame| {
            let frame = frame.unwrap();
            let body = frame
                .hash()
                .map(|hash| store.blob(&hash).unwrap().unwrap().bytes(u64::MAX).unwrap().len());
            format!("{:?} {} {} {body:?}", frame.offset(), frame.id(), frame.topic())
        })
        .collect();
    for CursorSummary { name, .. } in store.cursors() {
        told.push(format!("{name} {:?}", store.cursor(&name).unwrap()));
    }
    told
}

/// The crash image of a store in `dir` before the first of its two segments was sealed, though its
/// end was durable; and that segment.
fn two_unmarked(dir: &Path) -> (TempDir, PathBuf) {
    let faults = Faults::none();
    let store = open_faulty(dir, none(), &faults).unwrap();
    let mut count = 0;
    while segment_files(dir).len() < 2 {
        store.append(frame("a", count).into()).unwrap();
        count += 1;
    }
    assert!(store.inner.sealing.seal_now(&store.inner).is_ok());
    store.append(frame("a", count).into()).unwrap();
    let image = crash_now(dir, &faults);
    drop(store);
    let disk = Disk::new(MediaChoice::Auto, image.path());
    let manifest = Manifest::load(image.path(), Arc::new(disk)).unwrap().unwrap();
    let unseal = |state: &mut SuperState| {
        for file in state.files.iter_mut().filter(|file| file.state == FileState::Sealed) {
            (file.state, file.length, file.crc, file.count) = (FileState::Unmarked, 0, 0, 0);
        }
    };
    manifest.update(unseal).unwrap();
    let path = segment_files(image.path()).remove(0);
    (image, path)
}
