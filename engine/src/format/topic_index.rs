//! The topic index of a sealed segment (`.top`): a dictionary of its topics with the locations of
//! their frames. Derived: one that does not verify is rebuilt from the segment.
//!
//! Dictionary and postings have separate CRCs, so that listing topics reads dictionaries only.

use bytes::Bytes;
use fst::Streamer as _;

use super::file::{FILE_HEADER_LEN, FileHeader, FormatError, Magic};
use super::floors::{FLOORS_LEN, Floors};
use super::postings::{Chunk, Posting};
use super::{align8, bytes_at, u32_at, u64_at};
use crate::value::FrameId;

const TOPICS_AT: usize = FILE_HEADER_LEN;
const FST_LEN_AT: usize = TOPICS_AT + 4;
const POSTINGS_LEN_AT: usize = FST_LEN_AT + 4;
const POSTINGS_CRC_AT: usize = POSTINGS_LEN_AT + 8;
const DICTIONARY_CRC_AT: usize = POSTINGS_CRC_AT + 4;
const FLOORS_AT: usize = DICTIONARY_CRC_AT + 4;
const ENTRIES_AT: usize = FLOORS_AT + FLOORS_LEN;
const ENTRY_LEN: usize = 4 * 4 + 4 * 8 + 2 * 16;
const _: () = assert!(FLOORS_AT == 88 && ENTRIES_AT == 216 && ENTRY_LEN == 80);

/// The entry of one topic in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TopicEntry {
    /// Frames.
    pub(crate) count: u32,
    /// Start of its postings among all postings.
    pub(crate) postings_at: u32,
    /// Bytes of the postings.
    pub(crate) postings_len: u32,
    /// Position of the last frame's record divided by 8.
    pub(crate) last_slot: u32,
    /// Offset of the first frame.
    pub(crate) first_offset: u64,
    /// Offset of the last frame.
    pub(crate) last_offset: u64,
    /// Bytes of records and bodies.
    pub(crate) bytes: u64,
    /// Frames of the topic with a lower offset, in any segment, were removed by a ttl `last:n` of a
    /// frame in this one.
    pub(crate) floor: u64,
    /// Id of the first frame.
    pub(crate) first_id: FrameId,
    /// Id of the last frame.
    pub(crate) last_id: FrameId,
}

impl TopicEntry {
    fn encode(&self, out: &mut Vec<u8>) {
        for word in [self.count, self.postings_at, self.postings_len, self.last_slot] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        for number in [self.first_offset, self.last_offset, self.bytes, self.floor] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(self.first_id.as_bytes());
        out.extend_from_slice(self.last_id.as_bytes());
    }

    fn read(bytes: &[u8], at: usize) -> Option<Self> {
        Some(Self {
            count: u32_at(bytes, at)?,
            postings_at: u32_at(bytes, at + 4)?,
            postings_len: u32_at(bytes, at + 8)?,
            last_slot: u32_at(bytes, at + 12)?,
            first_offset: u64_at(bytes, at + 16)?,
            last_offset: u64_at(bytes, at + 24)?,
            bytes: u64_at(bytes, at + 32)?,
            floor: u64_at(bytes, at + 40)?,
            first_id: FrameId::from_bytes(bytes_at(bytes, at + 48)?),
            last_id: FrameId::from_bytes(bytes_at(bytes, at + 64)?),
        })
    }
}

/// Builds a file topic by topic, in byte order of the names.
pub(crate) struct TopicFileBuilder {
    names: fst::MapBuilder<Vec<u8>>,
    entries: Vec<u8>,
    topics: u32,
    floors: Floors,
    postings: Vec<u8>,
}

impl TopicFileBuilder {
    /// A file without topics.
    pub(crate) fn new() -> Self {
        Self {
            names: fst::MapBuilder::memory(),
            entries: Vec::new(),
            topics: 0,
            floors: Floors::default(),
            postings: Vec::new(),
        }
    }

    /// Adds a topic. Sets the positions of its postings in `entry`.
    pub(crate) fn add<'a>(
        &mut self,
        name: &str,
        mut entry: TopicEntry,
        postings: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), FormatError> {
        let place = |len: usize| u32::try_from(len).map_err(|_| FormatError::Field("postings"));
        entry.postings_at = place(self.postings.len())?;
        postings.for_each(|run| self.postings.extend_from_slice(run));
        entry.postings_len = place(self.postings.len())? - entry.postings_at;
        let number = u64::from(self.topics);
        self.names.insert(name, number).map_err(|_| FormatError::Field("order of topics"))?;
        entry.encode(&mut self.entries);
        if entry.floor > 0 {
            self.floors.add(name.as_bytes());
        }
        self.topics += 1;
        Ok(())
    }

    /// Encodes the file.
    pub(crate) fn finish(self, header: &FileHeader) -> Result<Vec<u8>, FormatError> {
        let names = self.names.into_inner().map_err(|_| FormatError::Field("dictionary"))?;
        let fst_len = u32::try_from(names.len()).map_err(|_| FormatError::Field("dictionary"))?;
        let mut out = Vec::with_capacity(
            ENTRIES_AT + self.entries.len() + names.len() + align8(self.postings.len()) + 8,
        );
        out.extend_from_slice(&header.encode());
        out.extend_from_slice(&self.topics.to_le_bytes());
        out.extend_from_slice(&fst_len.to_le_bytes());
        out.extend_from_slice(&(self.postings.len() as u64).to_le_bytes());
        out.extend_from_slice(&crc32fast::hash(&self.postings).to_le_bytes());
        let mut crc = crc32fast::Hasher::new();
        crc.update(&out);
        let mut floors = Vec::with_capacity(FLOORS_LEN);
        self.floors.encode(&mut floors);
        [&floors, &self.entries, &names].into_iter().for_each(|part| crc.update(part));
        out.extend_from_slice(&crc.finalize().to_le_bytes());
        out.extend_from_slice(&floors);
        out.extend_from_slice(&self.entries);
        out.extend_from_slice(&names);
        out.extend_from_slice(&self.postings);
        out.resize(align8(out.len()), 0);
        Ok(out)
    }
}

/// A file whose dictionary was checked.
#[derive(Debug)]
pub(crate) struct TopicFile {
    bytes: Bytes,
    names: fst::Map<Bytes>,
    postings_at: usize,
    postings_len: usize,
}

impl TopicFile {
    /// Checks header and dictionary, not the postings, and returns the file with its header.
    pub(crate) fn read(bytes: Bytes) -> Result<(FileHeader, Self), FormatError> {
        let header = FileHeader::decode(&bytes, Magic::Topic)?;
        let word = |at| u32_at(&bytes, at).ok_or(FormatError::Short);
        let entries_len = (word(TOPICS_AT)? as usize).checked_mul(ENTRY_LEN);
        let names_at = entries_len.and_then(|len| len.checked_add(ENTRIES_AT));
        let names_at = names_at.ok_or(FormatError::Field("topics"))?;
        let postings_at = names_at.checked_add(word(FST_LEN_AT)? as usize);
        let postings_at = postings_at.ok_or(FormatError::Field("dictionary"))?;
        let postings_len = u64_at(&bytes, POSTINGS_LEN_AT).ok_or(FormatError::Short)?;
        let end = usize::try_from(postings_len).ok().and_then(|len| postings_at.checked_add(len));
        let end = end.ok_or(FormatError::Field("postings"))?;
        if end > bytes.len() || align8(end) != bytes.len() || bytes[end..].iter().any(|&b| b != 0) {
            return Err(FormatError::Field("length"));
        }
        let mut crc = crc32fast::Hasher::new();
        crc.update(&bytes[..DICTIONARY_CRC_AT]);
        crc.update(&bytes[FLOORS_AT..postings_at]);
        if word(DICTIONARY_CRC_AT)? != crc.finalize() {
            return Err(FormatError::Crc);
        }
        let names = fst::Map::new(bytes.slice(names_at..postings_at))
            .map_err(|_| FormatError::Field("dictionary"))?;
        Ok((header, Self { names, postings_at, postings_len: end - postings_at, bytes }))
    }

    /// Checks the postings; called once, before they are first read.
    pub(crate) fn check_postings(&self) -> Result<(), FormatError> {
        let postings = &self.bytes[self.postings_at..self.postings_at + self.postings_len];
        let crc = u32_at(&self.bytes, POSTINGS_CRC_AT).ok_or(FormatError::Short)?;
        if crc == crc32fast::hash(postings) { Ok(()) } else { Err(FormatError::Crc) }
    }

    /// The topics, each with the number of its entry.
    pub(crate) const fn names(&self) -> &fst::Map<Bytes> {
        &self.names
    }

    /// Which topics may have a floor.
    pub(crate) fn floors(&self) -> Floors {
        Floors::read(&self.bytes, FLOORS_AT).unwrap_or(Floors([u64::MAX; 16]))
    }

    /// The entry with a number from [`Self::names`].
    pub(crate) fn entry(&self, number: u64) -> Option<TopicEntry> {
        let at = usize::try_from(number).ok()?.checked_mul(ENTRY_LEN)?.checked_add(ENTRIES_AT)?;
        TopicEntry::read(&self.bytes, at)
    }

    /// The entry of a topic.
    pub(crate) fn find(&self, topic: &str) -> Option<TopicEntry> {
        self.names.get(topic).and_then(|number| self.entry(number))
    }

    /// All topics with their entries, in byte order of the names.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(&str, &TopicEntry)) {
        let mut stream = self.names.stream();
        while let Some((name, number)) = stream.next() {
            if let (Ok(name), Some(entry)) = (std::str::from_utf8(name), self.entry(number)) {
                visit(name, &entry);
            }
        }
    }

    /// The postings of a topic, in one chunk. `base` is the segment's.
    pub(crate) fn postings(&self, entry: &TopicEntry, base: u64) -> Chunk {
        let at = self.postings_at + entry.postings_at as usize;
        let end = at + entry.postings_len as usize;
        if end > self.postings_at + self.postings_len {
            return Chunk::default();
        }
        let delta = entry.last_offset.saturating_sub(base) as u32;
        Chunk {
            bytes: self.bytes.slice(at..end),
            before: Posting::default(),
            last: Posting { delta, slot: entry.last_slot },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::postings::push;
    use super::*;

    fn file() -> Vec<u8> {
        let header = FileHeader {
            magic: Magic::Topic,
            salt: 0,
            store: [1; 16],
            file: [2; 16],
            base: 100,
            generation: 0,
        };
        let mut builder = TopicFileBuilder::new();
        for (topic, slots) in [("a", &[8u32, 20][..]), ("a.b", &[11]), ("z", &[14, 17, 30])] {
            let (mut bytes, mut last) = (Vec::new(), Posting::default());
            for (n, &slot) in slots.iter().enumerate() {
                let next = Posting { delta: slot / 3 + n as u32, slot };
                push(&mut bytes, last, next);
                last = next;
            }
            let entry = TopicEntry {
                count: slots.len() as u32,
                postings_at: 0,
                postings_len: 0,
                last_slot: last.slot,
                first_offset: 102,
                last_offset: 100 + u64::from(last.delta),
                bytes: 77,
                floor: if topic == "a.b" { 102 } else { 0 },
                first_id: FrameId::ZERO,
                last_id: FrameId::MAX,
            };
            builder.add(topic, entry, [&bytes[..]].into_iter()).unwrap();
        }
        builder.finish(&header).unwrap()
    }

    #[test]
    fn topics_and_postings_round_trip() {
        let bytes = file();
        assert_eq!(bytes.len() % 8, 0);
        let (header, file) = TopicFile::read(Bytes::from(bytes)).unwrap();
        file.check_postings().unwrap();
        assert_eq!(header.base, 100);
        let entry = file.find("z").unwrap();
        let chunk = file.postings(&entry, header.base);
        let slots: Vec<_> = chunk.clone().forward().map(|posting| posting.slot).collect();
        let back: Vec<_> = chunk.backward().map(|posting| posting.slot).collect();
        assert_eq!((slots, back), (vec![14, 17, 30], vec![30, 17, 14]));
        assert!(file.find("b").is_none());
        let mut names = Vec::new();
        file.for_each(|name, entry| names.push((name.to_owned(), entry.count)));
        assert_eq!(names, [("a".into(), 2), ("a.b".into(), 1), ("z".into(), 3)]);
        let mut floors = Floors::default();
        floors.add(b"a.b");
        assert_eq!(file.floors(), floors);
    }

    #[test]
    fn damage_is_found_at_every_byte_and_cut() {
        let bytes = file();
        let check = |bytes: Vec<u8>| {
            TopicFile::read(Bytes::from(bytes)).and_then(|(_, file)| file.check_postings())
        };
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x04;
            assert!(check(damaged).is_err(), "{at}");
            assert!(check(bytes[..at].to_vec()).is_err(), "cut {at}");
        }
    }
}
