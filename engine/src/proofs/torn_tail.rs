//! The end of the log torn at every byte of its last records, with everything a disk may leave
//! there: opening keeps exactly the whole batches before, goes on, and finds the same the next
//! time.

use std::path::PathBuf;
use std::sync::Arc;

use super::{Holds, MEDIA, Place, is_long, look};
use crate::append::Batch;
use crate::format::batch::BatchHeader;
use crate::format::file::FILE_HEADER_LEN;
use crate::media::sim::{Image, random};
use crate::options::SyncPolicy;
use crate::store::Health;
use crate::testing::{frame, tell};
use crate::value::{Meta, NewFrame, Topic};

/// Records that are torn.
const RECORDS: usize = 64;
/// Bytes of their metas, in turn. Together with the four fillings that makes 250,000 states.
const META_LENS: [usize; 8] = [0, 8_000, 3, 100, 5, 317, 20, 60];

/// A batch: where it ends in the file, and the offset after its last frame.
#[derive(Debug, Clone, Copy)]
struct Whole {
    at: usize,
    end: usize,
    offset: u64,
}

/// A store as a killed process leaves it.
struct Left {
    image: Image,
    path: PathBuf,
    segment: Arc<Vec<u8>>,
    batches: Vec<Whole>,
    holds: Holds,
}

fn place() -> Place {
    let mut place = Place::new(SyncPolicy::None, MEDIA[0]);
    place.options.segment_bytes = 128 * 1024;
    place
}

fn left() -> Left {
    let place = place();
    let disk = place.disk(&Image::new());
    let store = place.open(&disk).unwrap();
    for n in 0..20 {
        store.append(frame("before", n).into()).unwrap();
    }
    for n in 20..20 + RECORDS as u64 {
        let text = "x".repeat(META_LENS[n as usize % META_LENS.len()]);
        let meta = Meta::parse(format!("[{n},\"{text}\"]")).unwrap();
        let new = NewFrame { meta, ..NewFrame::new(Topic::parse("torn").unwrap()) };
        store.append(new.into()).unwrap();
    }
    let holds = look(&store, "whole");
    let image = disk.image();
    let is_segment = |path: &&PathBuf| path.extension().is_some_and(|found| found == "seg");
    let path = image.keys().find(is_segment).unwrap().clone();
    let segment = Arc::clone(&image[&path]);
    let batches = batches(&segment, holds.head);
    Left { image, path, segment, batches, holds }
}

fn batches(segment: &[u8], head: u64) -> Vec<Whole> {
    let (mut at, mut found) = (FILE_HEADER_LEN, Vec::<Whole>::new());
    while let Ok(header) = BatchHeader::read(&segment[at..]) {
        if let Some(last) = found.last_mut() {
            last.offset = header.base_offset;
        }
        let end = at + header.batch_len() as usize;
        found.push(Whole { at, end, offset: head });
        at = end;
    }
    found
}

/// What stands behind the tear.
#[derive(Debug, Clone, Copy)]
enum Filling {
    Nothing,
    Zeros,
    Random,
    Stale,
}

fn fill(sound: &[u8], tear: usize, filling: Filling) -> Vec<u8> {
    let mut bytes = sound.to_vec();
    let mut seed = tear as u64;
    match filling {
        Filling::Nothing => bytes.truncate(tear),
        Filling::Zeros => bytes[tear..].fill(0),
        Filling::Random => {
            bytes[tear..].chunks_mut(8).for_each(|word| {
                word.copy_from_slice(&random(&mut seed).to_le_bytes()[..word.len()]);
            });
        }
        // Older batches of this segment, as a recycled block would hold, where a batch may begin
        // and where none may.
        Filling::Stale => {
            let begin = if tear.is_multiple_of(3) { tear.next_multiple_of(8) } else { tear };
            let older = &sound[FILE_HEADER_LEN..];
            let len = (bytes.len() - begin).min(4096);
            bytes[tear..].fill(0);
            bytes[begin..begin + len].copy_from_slice(&older[..len]);
        }
    }
    bytes
}

/// Frames in the batches that are whole. The zeros that end a batch may stand behind the tear.
fn whole(left: &Left, torn: &[u8]) -> usize {
    let same =
        |batch: &&Whole| torn.get(batch.at..batch.end) == left.segment.get(batch.at..batch.end);
    left.batches.iter().take_while(same).last().map_or(0, |batch| batch.offset as usize)
}

fn open_torn(place: &mut Place, left: &Left, tear: usize, filling: Filling) {
    let what = format!("{filling:?} at {tear} of {}", left.segment.len());
    let torn = fill(&left.segment, tear, filling);
    let kept = whole(left, &torn);
    let mut image = left.image.clone();
    image.insert(left.path.clone(), Arc::new(torn));
    place.options.media = MEDIA[tear % 2];
    let disk = place.disk(&image);
    let store = place.open_quietly(&disk).expect(&what);
    assert_eq!(store.info().health, Health::Writable, "{what}");
    let mut seen = look(&store, &what);
    assert_eq!((seen.head, seen.frames.len()), (kept as u64, kept), "{what}");
    assert!(seen.frames == left.holds.frames[..kept], "{what}");
    let appended = store.append(Batch::from(frame("after", 7))).expect(&what);
    assert_eq!(appended.frames[0].offset, Some(kept as u64), "{what}");
    seen.frames.push((kept as u64, 7));
    disk.freeze();
    drop(store);
    disk.thaw();
    let store = place.open_quietly(&disk).expect(&what);
    assert!(look(&store, &what).frames == seen.frames, "{what}: the second time");
}

/// Tears at every byte, or at every `step`th and around each batch header.
fn tear_everywhere(filling: Filling, step: usize) {
    let left = left();
    let mut place = place();
    let first = left.batches[left.batches.len() - RECORDS].at;
    let last = left.batches.last().unwrap().end;
    let mut states = 0;
    for tear in first..=last {
        let near = |batch: &Whole| (batch.at.saturating_sub(8)..batch.at + 80).contains(&tear);
        if is_long() || tear % step == 0 || left.batches.iter().any(near) {
            open_torn(&mut place, &left, tear, filling);
            states += 1;
        }
    }
    tell(&format!("{states} torn tails with {filling:?} behind, of {}", last - first + 1));
}

#[test]
fn nothing_behind_the_tear() {
    tear_everywhere(Filling::Nothing, 9);
}

#[test]
fn zeros_behind_the_tear() {
    tear_everywhere(Filling::Zeros, 11);
}

#[test]
fn random_bytes_behind_the_tear() {
    tear_everywhere(Filling::Random, 13);
}

#[test]
fn stale_batches_behind_the_tear() {
    tear_everywhere(Filling::Stale, 17);
}
