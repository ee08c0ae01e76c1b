//! The end of the log after a process died, on real files: cut in many places, and filled with what
//! a disk may leave there. Opening keeps exactly the whole batches before the cut. The engine's
//! unit tests try every byte, on a simulated disk.

use std::fs;
use std::path::Path;

use xs_engine::format::batch::{BATCH_HEADER_LEN, BatchHeader};
use xs_engine::format::file::FILE_HEADER_LEN;
use xs_engine::{Frame, Health, ReadOnlyReason, Store, StoreOptions};

use crate::support::{
    MEDIA, Rng, batch, copy_store, everything, frames, numbered, open, options, scratch, segments,
};

const RECORDS: usize = 64;

/// A batch with frames: where it ends in the file, and the offset after its last frame.
#[derive(Debug, Clone, Copy)]
struct BatchSpan {
    at: usize,
    end: usize,
    offset: u64,
}

/// A store as a killed process leaves it, with everything in one segment.
fn unclean(dir: &Path, options: &StoreOptions) -> Vec<Frame> {
    let live = scratch();
    let store = open(live.path(), options);
    let mut n = 0;
    while n < 150 {
        let len = if n < 130 { 1 } else { 1 + n % 3 };
        store.append(batch((n..n + len).map(|n| numbered("t", n)))).unwrap();
        n += len;
    }
    let written = frames(store.read(&everything()));
    copy_store(live.path(), dir);
    written
}

fn batches(segment: &[u8], frames: u64) -> Vec<BatchSpan> {
    let (mut at, mut spans) = (FILE_HEADER_LEN, Vec::new());
    while let Ok(header) = BatchHeader::read(&segment[at..]) {
        let end = at + BATCH_HEADER_LEN + header.length as usize;
        spans.push((at, end, header.base_offset));
        at = end;
    }
    let next = spans.iter().skip(1).map(|span| span.2).chain([frames]).collect::<Vec<_>>();
    let spans = spans.into_iter().zip(next);
    spans.map(|((at, end, _), offset)| BatchSpan { at, end, offset }).collect()
}

/// What is after the cut.
#[derive(Debug, Clone, Copy)]
enum Filling {
    Nothing,
    Zeros,
    Random,
    Stale,
}

fn fill(sound: &[u8], cut: usize, filling: Filling, rng: &mut Rng) -> Vec<u8> {
    let mut bytes = sound.to_vec();
    let rest = bytes.len() - cut;
    match filling {
        Filling::Nothing => bytes.truncate(cut),
        Filling::Zeros => bytes[cut..].fill(0),
        Filling::Random => bytes[cut..].copy_from_slice(&rng.bytes(rest)),
        // Earlier batches of the same segment, as a recycled block could hold.
        Filling::Stale => {
            let older = &sound[FILE_HEADER_LEN..FILE_HEADER_LEN + rest.min(4096)];
            bytes[cut..cut + older.len()].copy_from_slice(older);
        }
    }
    bytes
}

/// The offset after the last whole batch. The zero padding of a batch may lie after the cut.
fn whole(spans: &[BatchSpan], sound: &[u8], left: &[u8]) -> usize {
    let is_whole = |span: &&BatchSpan| left.get(span.at..span.end) == sound.get(span.at..span.end);
    spans.iter().take_while(is_whole).last().map_or(0, |span| span.offset as usize)
}

/// Opens a store that was cut, and checks what it holds, that it continues, and that the next open
/// finds the same.
fn check(dir: &Path, options: &StoreOptions, expected: &[Frame], context: &str) {
    let store = Store::open(dir, options.clone());
    let store = store.unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_eq!(store.info().health, Health::Writable, "{context}");
    assert!(frames(store.read(&everything())) == expected, "{context}");
    let head = expected.len() as u64;
    let appended = store.append(numbered("t", 999).into()).unwrap();
    assert_eq!(appended.frames[0].offset, Some(head), "{context}");
    assert!(expected.last().is_none_or(|last| last.id() < appended.frames[0].id));
    let after = frames(store.read(&everything()));
    drop(store);
    let store = open(dir, options);
    assert!(frames(store.read(&everything())) == after, "{context}: second open");
}

fn cut_everywhere(options: &StoreOptions, filling: Filling, step: usize) {
    let image = scratch();
    let written = unclean(image.path(), options);
    let [segment] = &segments(image.path())[..] else { panic!("one segment is expected") };
    let sound = fs::read(segment).unwrap();
    let spans = batches(&sound, written.len() as u64);
    let (first, last) = (spans[spans.len() - RECORDS], spans[spans.len() - 1]);
    let dir = scratch();
    let mut rng = Rng(first.at as u64);
    for cut in (first.at..=last.end).step_by(step) {
        let left = fill(&sound, cut, filling, &mut rng);
        let expected = &written[..whole(&spans, &sound, &left)];
        let to = dir.path().join("store");
        copy_store(image.path(), &to);
        let name = segment.file_name().unwrap();
        fs::write(to.join("log").join(name), left).unwrap();
        check(&to, options, expected, &format!("{filling:?} at {cut} of {}", last.end));
        fs::remove_dir_all(&to).unwrap();
    }
}

#[test]
fn nothing_behind_the_cut() {
    cut_everywhere(&options(MEDIA[0]), Filling::Nothing, 13);
}

#[test]
fn zeros_behind_the_cut() {
    cut_everywhere(&options(MEDIA[1]), Filling::Zeros, 29);
}

#[test]
fn random_bytes_behind_the_cut() {
    cut_everywhere(&options(MEDIA[0]), Filling::Random, 31);
}

#[test]
fn stale_batches_behind_the_cut() {
    cut_everywhere(&options(MEDIA[1]), Filling::Stale, 37);
}

#[test]
fn the_same_cut_in_a_closed_store_is_damage() {
    let image = scratch();
    let options = options(MEDIA[0]);
    let store = open(image.path(), &options);
    (0..150).for_each(|n| drop(store.append(numbered("t", n).into()).unwrap()));
    let written = frames(store.read(&everything()));
    store.close().unwrap();
    drop(store);
    let [segment] = &segments(image.path())[..] else { panic!("one segment is expected") };
    let sound = fs::read(segment).unwrap();
    let spans = batches(&sound, written.len() as u64);
    // The last batch is the mark of the clean close.
    let (first, last) = (spans[spans.len() - RECORDS], spans[spans.len() - 2]);
    let mut rng = Rng(1);
    for cut in (first.at..last.end).step_by(11) {
        for filling in [Filling::Zeros, Filling::Random] {
            let left = fill(&sound, cut, filling, &mut rng);
            fs::write(segment, &left).unwrap();
            if left == sound {
                continue;
            }
            let store = open(image.path(), &options);
            let health = store.info().health;
            let is_damage = matches!(
                &health,
                Health::ReadOnly(ReadOnlyReason::Corrupt(corruption))
                    if corruption.path.ends_with(segment.file_name().unwrap())
            );
            assert!(is_damage, "{filling:?} at {cut}: {health:?}");
            let found: Vec<_> = store.read(&everything()).unwrap().filter_map(Result::ok).collect();
            assert!(found == written[..whole(&spans, &sound, &left)], "{filling:?} at {cut}");
            assert!(store.append(numbered("t", 0).into()).is_err());
        }
    }
    fs::write(segment, &sound).unwrap();
    let store = open(image.path(), &options);
    assert_eq!(store.info().health, Health::Writable, "the bytes are back and nothing was changed");
    assert!(frames(store.read(&everything())) == written);
}
