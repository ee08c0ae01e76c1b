//! The table of all topics (`topics.<gen>`): the totals of each topic over the sealed segments that
//! it names. Derived from their `.top` files: a table that does not verify, or names other
//! segments, is rebuilt.
//!
//! It is written sequentially, topic by topic, so that merging a million topics takes no more
//! memory than their dictionary; what is known only at the end is in a trailer.

use std::io::{self, Write};

use bytes::Bytes;

use super::file::{END_LEN, FILE_HEADER_LEN, FileHeader, FormatError, Magic, check_end};
use super::floors::{FLOORS_LEN, Floors};
use super::postings::{leb, push_leb};
use super::topic_index::TopicEntry;
use super::{align8, bytes_at, u32_at, u64_at};
use crate::limits::FILES_MAX;
use crate::value::FrameId;

const SEGMENTS_AT: usize = FILE_HEADER_LEN;
const SEGMENT_LEN: usize = 8 + 4 + 4 + 16;
const ENTRY_LEN: usize = 6 * 8 + 2 * 16 + 2 * 4;
const _: () = assert!(SEGMENT_LEN == 32 && ENTRY_LEN == 88);

/// Positions in the trailer.
const TOPICS_AT: usize = 0;
const ENTRIES_LEN_AT: usize = TOPICS_AT + 8;
const FST_LEN_AT: usize = ENTRIES_LEN_AT + 8;
const SEGMENTS_LEN_AT: usize = FST_LEN_AT + 8;
const FLOORS_AT: usize = SEGMENTS_LEN_AT + 8;
const CRC_AT: usize = FLOORS_AT + FLOORS_LEN;
const TRAILER_LEN: usize = CRC_AT + END_LEN;
const _: () = assert!(TRAILER_LEN == 168);

/// Bytes buffered before they are written.
const CHUNK_BYTES: usize = 256 * 1024;

/// A sealed segment whose topics the table counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Covered {
    pub(crate) base: u64,
    pub(crate) generation: u32,
    pub(crate) uuid: [u8; 16],
}

/// The totals of one topic over some segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TopicTotals {
    /// Frames stored, including removed ones.
    pub(crate) stored: u64,
    /// Those not below the floor; see [`Self::is_exact`].
    pub(crate) left: u64,
    /// Bytes of records and bodies, including removed ones.
    pub(crate) bytes: u64,
    /// Offset of the first frame, removed or not.
    pub(crate) first_offset: u64,
    /// Offset of the last frame.
    pub(crate) last_offset: u64,
    /// Every frame with a lower offset is removed.
    pub(crate) floor: u64,
    /// Id of the first frame.
    pub(crate) first: FrameId,
    /// Id of the last frame.
    pub(crate) last: FrameId,
    /// Position of the last frame's record divided by 8.
    pub(crate) last_slot: u32,
    /// Whether `left` is exact. If not, the floor lies among the frames of some segment, and only
    /// the postings tell how many are below it.
    pub(crate) is_exact: bool,
}

impl TopicTotals {
    /// Totals of no segment yet, with a floor known to be the highest.
    pub(crate) const fn with_floor(floor: u64) -> Self {
        Self {
            stored: 0,
            left: 0,
            bytes: 0,
            first_offset: 0,
            last_offset: 0,
            floor,
            first: FrameId::ZERO,
            last: FrameId::ZERO,
            last_slot: 0,
            is_exact: true,
        }
    }

    /// Adds the totals of the next segments, whose `left` is relative to their own floor.
    pub(crate) fn add(&mut self, next: &Self) {
        if next.stored == 0 {
            return;
        }
        if self.stored == 0 {
            (self.first, self.first_offset) = (next.first, next.first_offset);
        }
        let (left, is_exact) = if next.is_exact && next.floor == self.floor {
            (next.left, true)
        } else if next.first_offset >= self.floor {
            (next.stored, true)
        } else if next.last_offset <= self.floor {
            (u64::from(next.last_offset == self.floor), true)
        } else {
            (0, false)
        };
        self.is_exact &= is_exact;
        self.left = self.left.saturating_add(left);
        self.stored = self.stored.saturating_add(next.stored);
        self.bytes = self.bytes.saturating_add(next.bytes);
        self.last = next.last;
        self.last_offset = next.last_offset;
        self.last_slot = next.last_slot;
    }

    fn encode(&self, runs_len: u32, out: &mut Vec<u8>) {
        let Self { stored, left, bytes, first_offset, last_offset, floor, .. } = *self;
        for number in [stored, left, bytes, first_offset, last_offset, floor] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(self.first.as_bytes());
        out.extend_from_slice(self.last.as_bytes());
        out.extend_from_slice(&self.last_slot.to_le_bytes());
        out.extend_from_slice(&runs_len.to_le_bytes());
    }

    fn read(bytes: &[u8], at: usize) -> Option<Self> {
        Some(Self {
            stored: u64_at(bytes, at)?,
            left: u64_at(bytes, at + 8)?,
            bytes: u64_at(bytes, at + 16)?,
            first_offset: u64_at(bytes, at + 24)?,
            last_offset: u64_at(bytes, at + 32)?,
            floor: u64_at(bytes, at + 40)?,
            first: FrameId::from_bytes(bytes_at(bytes, at + 48)?),
            last: FrameId::from_bytes(bytes_at(bytes, at + 64)?),
            last_slot: u32_at(bytes, at + 80)?,
            is_exact: true,
        })
    }
}

impl From<&TopicEntry> for TopicTotals {
    fn from(entry: &TopicEntry) -> Self {
        Self {
            stored: u64::from(entry.count),
            left: if entry.floor == 0 { u64::from(entry.count) } else { 0 },
            bytes: entry.bytes,
            first_offset: entry.first_offset,
            last_offset: entry.last_offset,
            floor: entry.floor,
            first: entry.first_id,
            last: entry.last_id,
            last_slot: entry.last_slot,
            is_exact: entry.floor == 0,
        }
    }
}

/// Numbers of segments in the table's list, as runs from first to last.
pub(crate) type NumberRuns = Vec<(u32, u32)>;

/// Adds a number greater than all before it.
pub(crate) fn push_number(runs: &mut NumberRuns, number: u32) {
    match runs.last_mut() {
        Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
        _ => runs.push((number, number)),
    }
}

/// Writes a table, topic by topic in byte order of the names.
pub(crate) struct TableWriter<'a> {
    out: &'a mut dyn Write,
    crc: crc32fast::Hasher,
    /// Buffered bytes.
    buf: Vec<u8>,
    entries_len: u64,
    names: fst::MapBuilder<Vec<u8>>,
    topics: u64,
    segments: u64,
    floors: Floors,
}

fn wrong(what: &'static str) -> io::Error {
    io::Error::other(FormatError::Field(what))
}

impl<'a> TableWriter<'a> {
    /// Starts a table of these segments, oldest first.
    pub(crate) fn new(
        out: &'a mut dyn Write,
        header: &FileHeader,
        segments: &[Covered],
    ) -> io::Result<Self> {
        let mut writer = Self {
            out,
            crc: crc32fast::Hasher::new(),
            buf: header.encode().to_vec(),
            entries_len: 0,
            names: fst::MapBuilder::memory(),
            topics: 0,
            segments: segments.len() as u64,
            floors: Floors::default(),
        };
        for segment in segments {
            writer.buf.extend_from_slice(&segment.base.to_le_bytes());
            writer.buf.extend_from_slice(&segment.generation.to_le_bytes());
            writer.buf.extend_from_slice(&[0; 4]);
            writer.buf.extend_from_slice(&segment.uuid);
        }
        writer.flush()?;
        Ok(writer)
    }

    /// Adds a topic with the numbers of the segments that hold it.
    pub(crate) fn add(
        &mut self,
        name: &[u8],
        totals: &TopicTotals,
        runs: &[(u32, u32)],
    ) -> io::Result<()> {
        let inserted = self.names.insert(name, self.entries_len / 8);
        inserted.map_err(|_| wrong("order of topics"))?;
        let at = self.buf.len();
        let mut places = Vec::with_capacity(runs.len() * 2 + 2);
        let mut next = 0;
        for &(first, last) in runs {
            push_leb(&mut places, first - next);
            push_leb(&mut places, last - first);
            next = last + 1;
        }
        totals.encode(places.len() as u32, &mut self.buf);
        self.buf.extend_from_slice(&places);
        self.buf.resize(align8(self.buf.len()), 0);
        self.entries_len += (self.buf.len() - at) as u64;
        self.topics += 1;
        if totals.floor > 0 {
            self.floors.add(name);
        }
        if self.buf.len() >= CHUNK_BYTES { self.flush() } else { Ok(()) }
    }

    /// Writes the dictionary and the trailer.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        let names = std::mem::replace(&mut self.names, fst::MapBuilder::memory());
        let mut names = names.into_inner().map_err(|_| wrong("dictionary"))?;
        let fst_len = names.len() as u64;
        names.resize(align8(names.len()), 0);
        self.crc.update(&names);
        self.out.write_all(&names)?;
        for number in [self.topics, self.entries_len, fst_len, self.segments] {
            self.buf.extend_from_slice(&number.to_le_bytes());
        }
        self.floors.encode(&mut self.buf);
        self.flush()?;
        self.out.write_all(&self.crc.finalize().to_le_bytes())?;
        self.out.write_all(&[0; 4])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.crc.update(&self.buf);
        self.out.write_all(&self.buf)?;
        self.buf.clear();
        Ok(())
    }
}

/// A table whose header, CRC and structure were checked.
#[derive(Debug)]
pub(crate) struct TableFile {
    bytes: Bytes,
    names: fst::Map<Bytes>,
    segments: Vec<Covered>,
    entries: std::ops::Range<usize>,
    floors: Floors,
}

impl TableFile {
    /// Checks the whole file and returns it with its header.
    pub(crate) fn read(bytes: Bytes) -> Result<(FileHeader, Self), FormatError> {
        let header = FileHeader::decode(&bytes, Magic::Table)?;
        let trailer = bytes.len().checked_sub(TRAILER_LEN).ok_or(FormatError::Short)?;
        check_end(&bytes)?;
        let long = |at| {
            let number = u64_at(&bytes, trailer + at).ok_or(FormatError::Short)?;
            usize::try_from(number).map_err(|_| FormatError::Field("length"))
        };
        let (entries_len, fst_len) = (long(ENTRIES_LEN_AT)?, long(FST_LEN_AT)?);
        let count = long(SEGMENTS_LEN_AT)?;
        if count > FILES_MAX {
            return Err(FormatError::Field("count"));
        }
        let entries_at = SEGMENTS_AT + count * SEGMENT_LEN;
        let names_at = entries_at.checked_add(entries_len).ok_or(FormatError::Field("length"))?;
        let end = names_at.checked_add(fst_len).and_then(|end| end.checked_next_multiple_of(8));
        if end != Some(trailer) {
            return Err(FormatError::Field("length"));
        }
        let segments = (0..count).map(|number| covered(&bytes, number));
        let segments: Vec<Covered> =
            segments.collect::<Option<_>>().ok_or(FormatError::Field("segment"))?;
        if !segments.is_sorted_by(|a, b| a.base <= b.base) {
            return Err(FormatError::Field("order of segments"));
        }
        let floors = Floors::read(&bytes, trailer + FLOORS_AT).ok_or(FormatError::Short)?;
        let names = fst::Map::new(bytes.slice(names_at..names_at + fst_len))
            .map_err(|_| FormatError::Field("dictionary"))?;
        if long(TOPICS_AT)? != names.len() {
            return Err(FormatError::Field("count"));
        }
        Ok((header, Self { names, segments, entries: entries_at..names_at, floors, bytes }))
    }

    /// The segments it covers, oldest first.
    pub(crate) fn segments(&self) -> &[Covered] {
        &self.segments
    }

    /// The topics, each with an argument for [`Self::entry`].
    pub(crate) const fn names(&self) -> &fst::Map<Bytes> {
        &self.names
    }

    /// Which topics may have a floor.
    pub(crate) const fn floors(&self) -> &Floors {
        &self.floors
    }

    /// The totals of a topic.
    pub(crate) fn find(&self, topic: &str) -> Option<TopicTotals> {
        self.names.get(topic).and_then(|place| self.entry(place))
    }

    /// The totals at a place from [`Self::names`].
    pub(crate) fn entry(&self, place: u64) -> Option<TopicTotals> {
        TopicTotals::read(self.entries(), usize::try_from(place).ok()?.checked_mul(8)?)
    }

    /// The numbers of the segments that hold the topic at a place from [`Self::names`]. Invalid
    /// bytes give fewer runs or none.
    pub(crate) fn runs(&self, place: u64) -> NumberRuns {
        self.read_runs(place).unwrap_or_default()
    }

    fn entries(&self) -> &[u8] {
        self.bytes.get(self.entries.clone()).unwrap_or_default()
    }

    fn read_runs(&self, place: u64) -> Option<NumberRuns> {
        let at = usize::try_from(place).ok()?.checked_mul(8)?;
        let len = u32_at(self.entries(), at.checked_add(ENTRY_LEN - 4)?)? as usize;
        let bytes = self.entries().get(at + ENTRY_LEN..)?.get(..len)?;
        let (mut at, mut next, mut runs) = (0, 0u32, NumberRuns::new());
        while at < bytes.len() {
            let first = next.checked_add(leb(bytes, &mut at)?)?;
            let last = first.checked_add(leb(bytes, &mut at)?)?;
            if last as usize >= self.segments.len() {
                break;
            }
            runs.push((first, last));
            next = last + 1;
        }
        Some(runs)
    }
}

fn covered(bytes: &[u8], number: usize) -> Option<Covered> {
    let at = SEGMENTS_AT + number * SEGMENT_LEN;
    Some(Covered {
        base: u64_at(bytes, at)?,
        generation: u32_at(bytes, at + 8).filter(|_| u32_at(bytes, at + 12) == Some(0))?,
        uuid: bytes_at(bytes, at + 16)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENTS: u32 = 700;

    fn totals(n: u64) -> TopicTotals {
        TopicTotals {
            stored: n + 9,
            left: n + 3,
            bytes: n * 100,
            first_offset: n + 2,
            last_offset: n + 70,
            floor: n % 2,
            first: FrameId::first_of_ms(n),
            last: FrameId::first_of_ms(n + 1),
            last_slot: n as u32,
            is_exact: true,
        }
    }

    fn topics() -> Vec<(&'static str, NumberRuns)> {
        vec![
            ("a", vec![(0, SEGMENTS - 1)]),
            ("a.b", vec![(0, 0), (3, 4), (300, 300), (SEGMENTS - 1, SEGMENTS - 1)]),
            ("b", vec![]),
            ("z", vec![(1, 127), (600, 601)]),
        ]
    }

    fn file(segments: u32) -> Vec<u8> {
        let header = FileHeader {
            magic: Magic::Table,
            salt: 0,
            store: [1; 16],
            file: [2; 16],
            base: 100,
            generation: 4,
        };
        let covered =
            |n| Covered { base: u64::from(n) * 10, generation: n % 3, uuid: [n as u8; 16] };
        let covered: Vec<_> = (0..segments).map(covered).collect();
        let mut out = Vec::new();
        let mut writer = TableWriter::new(&mut out, &header, &covered).unwrap();
        for (n, (name, runs)) in topics().iter().enumerate() {
            writer.add(name.as_bytes(), &totals(n as u64), runs).unwrap();
        }
        assert!(writer.add(b"c", &totals(0), &[]).is_err());
        writer.finish().unwrap();
        out
    }

    #[test]
    fn topics_round_trip() {
        let bytes = file(SEGMENTS);
        assert_eq!(bytes.len() % 8, 0);
        let (header, file) = TableFile::read(Bytes::from(bytes)).unwrap();
        assert_eq!((header.base, file.segments().len()), (100, SEGMENTS as usize));
        assert_eq!(file.segments()[5], Covered { base: 50, generation: 2, uuid: [5; 16] });
        for (n, (name, runs)) in topics().iter().enumerate() {
            assert_eq!(file.find(name), Some(totals(n as u64)));
            assert_eq!(file.runs(file.names().get(name).unwrap()), *runs);
        }
        assert_eq!((file.find("a.a"), file.names().len()), (None, 4));
        let mut floors = Floors::default();
        [&b"a.b"[..], b"z"].into_iter().for_each(|name| floors.add(name));
        assert_eq!(*file.floors(), floors);
    }

    #[test]
    fn damage_is_found_at_every_byte_and_cut() {
        let bytes = file(3);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x04;
            assert!(TableFile::read(Bytes::from(damaged)).is_err(), "{at}");
            assert!(TableFile::read(Bytes::copy_from_slice(&bytes[..at])).is_err(), "cut {at}");
        }
    }

    #[test]
    fn what_is_below_the_floor_is_not_left() {
        let of = |first: u64, last: u64, floor: u64| TopicTotals {
            stored: 4,
            left: if floor == 0 { 4 } else { 0 },
            is_exact: floor == 0,
            first_offset: first,
            last_offset: last,
            floor,
            bytes: 10,
            ..totals(first)
        };
        let add = |floor: u64, all: &[TopicTotals]| {
            let mut sum = TopicTotals::with_floor(floor);
            all.iter().for_each(|next| sum.add(next));
            (sum.stored, sum.left, sum.is_exact)
        };
        let segments = [of(0, 9, 0), of(12, 19, 0), of(20, 29, 15)];
        assert_eq!(add(0, &segments[..2]), (8, 8, true));
        assert_eq!(add(10, &segments[..2]), (8, 4, true));
        assert_eq!(add(9, &segments[..1]), (4, 1, true));
        assert_eq!(add(12, &segments[..2]), (8, 4, true));
        assert!(!add(15, &segments).2);
        let counted = TopicTotals { left: 3, is_exact: true, ..of(0, 19, 15) };
        assert_eq!(add(15, &[counted, segments[2]]), (8, 7, true));
        assert_eq!(add(29, &[counted, segments[2]]), (8, 1, true));
        assert_eq!(add(40, &[counted, segments[2]]), (8, 0, true));
    }
}
