//! The end of the log is torn at every byte of its last records, with everything a disk may leave
//! there: opening keeps exactly the whole batches before the tear, continues, and finds the same
//! the next time.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Holds, MEDIA, Rig, is_long, look, number};
use crate::entropy::Entropy;
use crate::format::batch::BatchHeader;
use crate::format::file::FILE_HEADER_LEN;
use crate::media::Files;
use crate::media::memory::MemoryDisk;
use crate::media::sim::{Image, SimDisk, random};
use crate::options::SyncPolicy;
use crate::store::Health;
use crate::testing::{frame, tell};
use crate::value::{Meta, NewFrame, Topic};

/// Records that are torn.
const RECORDS: usize = 64;
/// One tear in this many is also examined through the media of real files.
const SIM_STEP: usize = 61;
/// Bytes of their metas, in turn. With the four fillings this makes 250,000 states.
const META_LENS: [usize; 8] = [0, 6_600, 3, 100, 5, 317, 20, 60];
/// Frames before them.
const BEFORE: u64 = 4;

/// The same uuids and salts each time, so that written bytes can be compared.
#[derive(Debug)]
struct Seed(u8);

impl Entropy for Seed {
    fn seed(&self) -> io::Result<[u8; 32]> {
        Ok([self.0; 32])
    }
}

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

fn rig() -> Rig {
    let mut rig = Rig::new(SyncPolicy::None, MEDIA[0]);
    rig.options.segment_bytes = 64 * 1024;
    rig
}

fn left() -> Left {
    let rig = rig();
    let disk = rig.disk(&Image::new());
    let store = rig.open(&disk).unwrap();
    for n in 0..BEFORE {
        store.append(frame("before", n).into()).unwrap();
    }
    for n in BEFORE..BEFORE + RECORDS as u64 {
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

/// The content after the tear.
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
        // Older batches of this segment, as in a recycled block, at positions where a batch may
        // begin and where none may.
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

/// Frames in the whole batches. The zero padding of a batch may lie after the tear.
fn whole(left: &Left, torn: &[u8]) -> usize {
    let same =
        |batch: &&Whole| torn.get(batch.at..batch.end) == left.segment.get(batch.at..batch.end);
    left.batches.iter().take_while(same).last().map_or(0, |batch| batch.offset as usize)
}

/// The files of stores by number of whole batches, cached after a full check.
type Known = BTreeMap<usize, Image>;

/// Functions that snapshot the files of a disk, and that stop all writing to it.
type Handle<D> = (fn(&D) -> Image, fn(&D));

/// Opens a torn store and appends to it, on a disk that `disk` makes. Results are keyed by their
/// bytes: the same bytes are examined once.
fn open_torn<D: Files + Clone + 'static>(
    (rig, left, known): (&mut Rig, &Left, &mut Known),
    (tear, filling): (usize, Filling),
    disk: impl Fn(&Rig, &Image) -> D,
    (image_of, kill): Handle<D>,
) {
    let what = || format!("{filling:?} at {tear} of {}", left.segment.len());
    let torn = fill(&left.segment, tear, filling);
    let kept = whole(left, &torn);
    let mut image = left.image.clone();
    image.insert(left.path.clone(), Arc::new(torn));
    rig.options.entropy = Arc::new(Seed(1));
    let files = disk(rig, &image);
    let store = rig.open_quietly(&files).unwrap_or_else(|error| panic!("{}: {error}", what()));
    let info = store.info();
    assert_eq!((info.health, info.head), (Health::Writable, kept as u64), "{}", what());
    let last = store.get_at(info.head - 1).unwrap().map(|frame| number(frame.meta()));
    assert_eq!(last, Some(left.holds.frames[kept - 1].1), "{}", what());
    assert!(store.get_at(info.head).unwrap().is_none(), "{}", what());
    let appended = store.append(frame("after", 7).into()).unwrap();
    assert_eq!(appended.frames[0].offset, Some(kept as u64), "{}", what());
    let image = image_of(&files);
    let is_known = known.get(&kept) == Some(&image);
    let holds = [&left.holds.frames[..kept], &[(kept as u64, 7)]].concat();
    assert!(is_known || look(&store, &what()).frames == holds, "{}", what());
    kill(&files);
    drop(store);
    if !is_known {
        rig.options.entropy = Arc::new(Seed(2));
        let store = rig.open_quietly(&disk(rig, &image)).unwrap();
        assert!(look(&store, &what()).frames == holds, "{}: the second time", what());
        known.insert(kept, image);
    }
}

/// Tears at every byte.
fn tear_everywhere(filling: Filling) {
    let left = left();
    let (mut rig, mut known, mut known_sim) = (rig(), Known::new(), Known::new());
    let first = left.batches[left.batches.len() - RECORDS].at;
    let last = left.batches.last().unwrap().end;
    for tear in first..=last {
        let what = (&mut rig, &left, &mut known);
        let memory = |rig: &Rig, image: &Image| MemoryDisk::new(image, rig.path());
        open_torn(what, (tear, filling), memory, (MemoryDisk::image, MemoryDisk::freeze));
        // The media of real files, where that tests more than reading back what was written.
        if is_long() || tear % SIM_STEP == 0 {
            let what = (&mut rig, &left, &mut known_sim);
            what.0.options.media = MEDIA[tear / SIM_STEP % 2];
            open_torn(what, (tear, filling), Rig::disk, (SimDisk::image, SimDisk::freeze));
        }
    }
    assert!(known.len() >= RECORDS, "{}", known.len());
    tell(&format!("{} torn tails with {filling:?} behind", last - first + 1));
}

#[test]
fn nothing_behind_the_tear() {
    tear_everywhere(Filling::Nothing);
}

#[test]
fn zeros_behind_the_tear() {
    tear_everywhere(Filling::Zeros);
}

#[test]
fn random_bytes_behind_the_tear() {
    tear_everywhere(Filling::Random);
}

#[test]
fn stale_batches_behind_the_tear() {
    tear_everywhere(Filling::Stale);
}
