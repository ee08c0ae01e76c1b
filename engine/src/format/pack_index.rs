//! `.pidx`: the location of each blob of a sealed pack, and a filter that answers "not here" from
//! one cache line. Derived, and only an optimization: a lookup compares the whole hash with the one
//! in the pack.

use std::hint::black_box;

use super::file::{FILE_HEADER_LEN, FileHeader, FormatError, Magic};
use super::{bytes_at, u32_at, u64_at};

/// Bytes of file header and head.
pub const HEAD_LEN: usize = FILE_HEADER_LEN + 32;
const COUNT_AT: usize = FILE_HEADER_LEN;
const BLOCKS_AT: usize = COUNT_AT + 8;
const FILTER_CRC_AT: usize = BLOCKS_AT + 4;
const ENTRIES_CRC_AT: usize = FILTER_CRC_AT + 4;
const PLACES_AT: usize = ENTRIES_CRC_AT + 4;
const RESERVED_AT: usize = PLACES_AT + 4;
const HEAD_CRC_AT: usize = RESERVED_AT + 4;
const _: () = assert!(HEAD_CRC_AT + size_of::<u32>() == HEAD_LEN);

const ORDINAL_LEN: usize = 3;
const ENTRY_LEN: usize = 8 + ORDINAL_LEN;
const PLACE_LEN: usize = 4 + 4;
const BLOCK_LEN: usize = 32;
/// Bits of the filter per blob: a false positive rate of about 1 in 800.
const FILTER_BITS: u64 = 16;
/// Maximum blobs in one pack.
pub const COUNT_MAX: u64 = 1 << (8 * ORDINAL_LEN);

/// The location of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct IndexEntry {
    /// First 8 bytes of its hash as a number.
    pub prefix: u64,
    /// Position of its entry in the pack, divided by 8.
    pub slot: u32,
    /// Its number within the entry.
    pub number: u32,
}

/// The content of a pack, in file order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// For each entry its position divided by 8, and the number of blobs before it.
    places: Vec<(u32, u32)>,
    prefixes: Vec<u64>,
}

impl Contents {
    /// Adds an entry and the prefixes of its blobs. Entries must come in order of their positions.
    pub fn push(&mut self, slot: u32, prefixes: impl IntoIterator<Item = u64>) {
        self.places.push((slot, self.prefixes.len() as u32));
        self.prefixes.extend(prefixes);
    }

    /// Returns the number of blobs in the pack.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.prefixes.len()
    }

    /// Returns the location of each blob, in file order.
    pub fn entries(&self) -> impl Iterator<Item = IndexEntry> + '_ {
        let ends = self.places.iter().skip(1).map(|(_, first)| *first);
        let ends = ends.chain([self.prefixes.len() as u32]);
        self.places.iter().zip(ends).flat_map(|(&(slot, first), end)| {
            let prefixes = self.prefixes.get(first as usize..end as usize).unwrap_or_default();
            let entry = move |(&prefix, number)| IndexEntry { prefix, slot, number };
            prefixes.iter().zip(0..).map(entry)
        })
    }
}

/// Encodes an index of at most [`COUNT_MAX`] blobs.
#[must_use]
pub fn encode(header: &FileHeader, contents: &Contents) -> Vec<u8> {
    let count = contents.count() as u64;
    let blocks = (count * FILTER_BITS).div_ceil(BLOCK_LEN as u64 * 8).max(1);
    let mut filter = vec![0; blocks as usize * BLOCK_LEN];
    let places = contents.places.len();
    let mut list = Vec::with_capacity(contents.count() * ENTRY_LEN + places * PLACE_LEN);
    let mut entries: Vec<(u64, u32)> = contents.prefixes.iter().copied().zip(0..).collect();
    entries.sort_unstable();
    for (prefix, ordinal) in entries {
        filter_insert(&mut filter, prefix);
        list.extend_from_slice(&prefix.to_le_bytes());
        list.extend_from_slice(&ordinal.to_le_bytes()[..ORDINAL_LEN]);
    }
    for (slot, first) in &contents.places {
        list.extend_from_slice(&slot.to_le_bytes());
        list.extend_from_slice(&first.to_le_bytes());
    }
    let mut out = Vec::with_capacity(HEAD_LEN + filter.len() + list.len());
    out.extend_from_slice(&header.encode());
    out.extend_from_slice(&count.to_le_bytes());
    out.extend_from_slice(&(blocks as u32).to_le_bytes());
    out.extend_from_slice(&crc32fast::hash(&filter).to_le_bytes());
    out.extend_from_slice(&crc32fast::hash(&list).to_le_bytes());
    out.extend_from_slice(&(places as u32).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    let crc = crc32fast::hash(&out[FILE_HEADER_LEN..]);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&filter);
    out.extend_from_slice(&list);
    out
}

/// One bit in each of the eight words of a filter block.
fn filter_bits(prefix: u64) -> [u32; 8] {
    const ODD: [u32; 8] = [
        0x47b6_137b,
        0x4497_4d91,
        0x8824_ad5b,
        0xa2b7_289d,
        0x7054_95c7,
        0x2df1_424b,
        0x9efc_4947,
        0x5c6b_fb31,
    ];
    ODD.map(|odd| 1 << ((prefix as u32).wrapping_mul(odd) >> 27))
}

/// The filter block of a prefix: its upper half scaled to the number of blocks.
const fn filter_block(prefix: u64, filter_len: usize) -> usize {
    let blocks = (filter_len / BLOCK_LEN) as u64;
    (((prefix >> 32) * blocks) >> 32) as usize * BLOCK_LEN
}

fn filter_insert(filter: &mut [u8], prefix: u64) {
    let at = filter_block(prefix, filter.len());
    for (word, bit) in filter[at..at + BLOCK_LEN].chunks_exact_mut(4).zip(filter_bits(prefix)) {
        for (byte, bits) in word.iter_mut().zip(bit.to_le_bytes()) {
            *byte |= bits;
        }
    }
}

/// Loads the blocks of these prefixes at once, so that the lookups that follow do not wait for
/// memory one by one.
fn filter_fetch(filter: &[u8], prefixes: impl Iterator<Item = u64>) {
    let words = prefixes.map(|prefix| u32_at(filter, filter_block(prefix, filter.len())));
    black_box(words.fold(0, |all, word| all ^ word.unwrap_or_default()));
}

fn filter_holds(filter: &[u8], prefix: u64) -> bool {
    let at = filter_block(prefix, filter.len());
    let Some(block) = bytes_at::<BLOCK_LEN>(filter, at) else { return true };
    let missing = filter_bits(prefix)
        .into_iter()
        .enumerate()
        .fold(0, |missing, (n, bit)| missing | bit & !u32_at(&block, n * 4).unwrap_or_default());
    missing == 0
}

/// The filter of an index alone, copied to memory.
#[derive(Debug, Clone)]
pub(crate) struct PackFilter(Box<[u8]>);

impl PackFilter {
    /// Its length in bytes.
    pub(crate) const fn byte_count(&self) -> usize {
        self.0.len()
    }

    /// False when no blob of the pack has this prefix; true when one may.
    pub(crate) fn may_hold(&self, prefix: u64) -> bool {
        filter_holds(&self.0, prefix)
    }
}

/// An index whose head was checked. The two parts after the head have CRCs of their own, checked
/// by [`PackIndex::check_filter`] and [`PackIndex::check_entries`] before their first use, so that
/// a store with many packs opens without reading all of them.
#[derive(Debug)]
pub struct PackIndex<B> {
    bytes: B,
    header: FileHeader,
    filter_end: usize,
    count: usize,
    places: usize,
}

impl<B: AsRef<[u8]>> PackIndex<B> {
    /// Reads the head; `bytes` must be the whole file.
    ///
    /// # Errors
    /// [`FormatError`] says what is wrong.
    pub fn open(bytes: B) -> Result<Self, FormatError> {
        let all = bytes.as_ref();
        let header = FileHeader::decode(all, Magic::PackIndex)?;
        let head = all.get(..HEAD_LEN).ok_or(FormatError::Short)?;
        let crc = crc32fast::hash(&head[FILE_HEADER_LEN..HEAD_CRC_AT]);
        if u32_at(head, HEAD_CRC_AT) != Some(crc) {
            return Err(FormatError::Crc);
        }
        let count = u64_at(head, COUNT_AT).ok_or(FormatError::Short)?;
        let blocks = u32_at(head, BLOCKS_AT).ok_or(FormatError::Short)?;
        if count > COUNT_MAX || blocks == 0 || head[RESERVED_AT..HEAD_CRC_AT] != [0; 4] {
            return Err(FormatError::Field("head"));
        }
        let filter_end = HEAD_LEN + blocks as usize * BLOCK_LEN;
        let places = u32_at(head, PLACES_AT).ok_or(FormatError::Short)? as usize;
        let count = count as usize;
        match filter_end + count * ENTRY_LEN + places * PLACE_LEN == all.len() {
            true => Ok(Self { header, filter_end, count, places, bytes }),
            false => Err(FormatError::Field("length")),
        }
    }

    /// Returns the file header.
    pub const fn header(&self) -> &FileHeader {
        &self.header
    }

    /// Returns the number of blobs in the pack.
    pub const fn count(&self) -> usize {
        self.count
    }

    fn filter(&self) -> &[u8] {
        self.bytes.as_ref().get(HEAD_LEN..self.filter_end).unwrap_or_default()
    }

    fn entries(&self) -> &[u8] {
        self.bytes.as_ref().get(self.filter_end..).unwrap_or_default()
    }

    fn check(&self, part: &[u8], crc_at: usize) -> Result<(), FormatError> {
        match u32_at(self.bytes.as_ref(), crc_at) == Some(crc32fast::hash(part)) {
            true => Ok(()),
            false => Err(FormatError::Crc),
        }
    }

    /// Checks the CRC of the filter.
    ///
    /// # Errors
    /// [`FormatError::Crc`] when it is damaged.
    pub fn check_filter(&self) -> Result<(), FormatError> {
        self.check(self.filter(), FILTER_CRC_AT)
    }

    /// Checks the CRC of the entries.
    ///
    /// # Errors
    /// [`FormatError::Crc`] when they are damaged.
    pub fn check_entries(&self) -> Result<(), FormatError> {
        self.check(self.entries(), ENTRIES_CRC_AT)
    }

    /// Returns false when no blob of the pack has this prefix, true when one may.
    pub fn may_hold(&self, prefix: u64) -> bool {
        filter_holds(self.filter(), prefix)
    }

    /// Prefetches the filter blocks of these prefixes.
    pub(crate) fn fetch(&self, prefixes: impl Iterator<Item = u64>) {
        filter_fetch(self.filter(), prefixes);
    }

    /// Prefetches the entries of these prefixes.
    pub(crate) fn fetch_entries(&self, prefixes: impl Iterator<Item = u64>) {
        let found = prefixes.map(|prefix| self.prefix(self.guess(prefix)));
        black_box(found.fold(0, |all, prefix| all ^ prefix.unwrap_or_default()));
    }

    /// Returns the length of the filter in bytes.
    pub const fn filter_len(&self) -> usize {
        self.filter_end - HEAD_LEN
    }

    /// A copy of the filter.
    pub(crate) fn filter_copy(&self) -> PackFilter {
        PackFilter(self.filter().into())
    }

    /// Returns the n-th prefix in ascending order.
    pub fn prefix(&self, n: usize) -> Option<u64> {
        let at = n.checked_mul(ENTRY_LEN)?;
        if n < self.count { u64_at(self.entries(), at) } else { None }
    }

    /// Returns the n-th entry in ascending order of prefixes.
    pub fn entry(&self, n: usize) -> Option<IndexEntry> {
        let prefix = self.prefix(n)?;
        let [a, b, c] = bytes_at::<ORDINAL_LEN>(self.entries(), n * ENTRY_LEN + 8)?;
        let ordinal = u32::from_le_bytes([a, b, c, 0]);
        let place = self.place_of(ordinal)?;
        let number = ordinal.checked_sub(place.1)?;
        Some(IndexEntry { prefix, slot: place.0, number })
    }

    /// The last place with at most `ordinal` blobs before it. Places hold similar numbers of blobs:
    /// one, or as many as fit into a BLOCK.
    fn place_of(&self, ordinal: u32) -> Option<(u32, u32)> {
        let place = |n: usize| {
            let at = self.count * ENTRY_LEN + n * PLACE_LEN;
            Some((u32_at(self.entries(), at)?, u32_at(self.entries(), at + 4)?))
        };
        let guess = (ordinal as usize + 1) * self.places / self.count;
        let begins = |n: usize| place(n).is_some_and(|place| place.1 <= ordinal);
        search_from(guess, 1, self.places, begins).checked_sub(1).and_then(place)
    }

    /// Returns all entries with a prefix.
    pub fn find(&self, prefix: u64) -> impl Iterator<Item = IndexEntry> + '_ {
        self.numbers(prefix).map_while(|n| self.entry(n))
    }

    /// Returns the numbers of the entries with a prefix, in order of prefixes.
    pub fn numbers(&self, prefix: u64) -> impl Iterator<Item = usize> + '_ {
        let same = move |&n: &usize| self.prefix(n) == Some(prefix);
        (self.lower_bound(prefix)..self.count).take_while(same)
    }

    /// The estimated number of the entry with a prefix: hashes are evenly distributed.
    const fn guess(&self, prefix: u64) -> usize {
        ((prefix as u128 * self.count as u128) >> 64) as usize
    }

    /// The number of the first entry whose prefix is not below `prefix`.
    fn lower_bound(&self, prefix: u64) -> usize {
        let below = |n: usize| self.prefix(n).is_some_and(|other| other < prefix);
        search_from(self.guess(prefix), 16, self.count, below)
    }
}

/// The first of `count` numbers for which `before` is false; it must be false for all after it.
/// The search starts at `guess` and widens from there, by `step` first.
fn search_from(
    guess: usize,
    mut step: usize,
    count: usize,
    before: impl Fn(usize) -> bool,
) -> usize {
    let (mut low, mut high) = (guess.min(count), guess.min(count));
    while low > 0 && !before(low - 1) {
        low = low.saturating_sub(step);
        step *= 2;
    }
    while high < count && before(high) {
        high = (high + step).min(count);
        step *= 2;
    }
    while low < high {
        let middle = low + (high - low) / 2;
        if before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::BlobHash;

    fn header() -> FileHeader {
        FileHeader {
            magic: Magic::PackIndex,
            salt: 0,
            store: [1; 16],
            file: [2; 16],
            base: 3,
            generation: 4,
        }
    }

    /// Entries of one to seven blobs.
    fn contents(count: u32) -> (Contents, Vec<IndexEntry>) {
        let prefix = |n: u32| BlobHash::of(&n.to_le_bytes()).prefix();
        let (mut contents, mut all, mut next) = (Contents::default(), Vec::new(), 0);
        for slot in 8.. {
            let end = count.min(next + 1 + slot % 7);
            contents.push(slot, (next..end).map(prefix));
            let entry = |n| IndexEntry { prefix: prefix(n), slot, number: n - next };
            all.extend((next..end).map(entry));
            next = end;
            if next == count {
                break;
            }
        }
        (contents, all)
    }

    #[test]
    fn every_blob_is_found_and_few_others_pass_the_filter() {
        for count in [0, 1, 2, 1000, 20_000] {
            let (contents, all) = contents(count);
            assert!(contents.entries().eq(all.iter().copied()));
            let index = PackIndex::open(encode(&header(), &contents)).unwrap();
            index.check_filter().unwrap();
            index.check_entries().unwrap();
            assert_eq!((index.count(), index.header()), (count as usize, &header()));
            let filter = index.filter_copy();
            assert_eq!(filter.byte_count(), index.filter_len());
            for entry in &all {
                assert!(index.may_hold(entry.prefix) && filter.may_hold(entry.prefix));
                assert_eq!(index.find(entry.prefix).collect::<Vec<_>>(), [*entry]);
            }
            let strange = (0..10_000u64).map(|n| BlobHash::of(&n.to_le_bytes()).prefix());
            let passed = strange.filter(|&prefix| filter.may_hold(prefix)).count();
            assert!(passed < 50, "{passed} of 10000 strangers pass for {count}");
            for prefix in [0, 1, u64::MAX] {
                assert_eq!(index.find(prefix).count(), 0);
            }
        }
    }

    #[test]
    fn uneven_and_equal_prefixes_are_found() {
        let mut contents = Contents::default();
        (0..500).for_each(|n| contents.push(n, [u64::from(n) * 3]));
        contents.push(500, [7 << 60; 40]);
        let index = PackIndex::open(encode(&header(), &contents)).unwrap();
        let same: Vec<_> = index.find(7 << 60).collect();
        assert!(same.iter().map(|entry| (entry.slot, entry.number)).eq((0..40).map(|n| (500, n))));
        assert_eq!((0..1500).filter(|&prefix| index.find(prefix).count() == 1).count(), 500);
    }

    #[test]
    fn damage_is_found_at_every_byte_and_cut() {
        let good = encode(&header(), &contents(40).0);
        let whole = |bytes: Vec<u8>| {
            PackIndex::open(bytes)
                .and_then(|index| index.check_filter().and_then(|()| index.check_entries()))
        };
        assert_eq!(whole(good.clone()), Ok(()));
        for at in 0..good.len() {
            assert!(whole(good[..at].to_vec()).is_err());
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(whole(bad).is_err(), "{at}");
        }
    }

    #[test]
    fn the_bytes_are_pinned() {
        let mut contents = Contents::default();
        contents.push(8, [10, 9]);
        let bytes = encode(&header(), &contents);
        let text: String = bytes[64..].iter().map(|byte| format!("{byte:02x}")).collect();
        let want = "020000000000000001000000426349c0bda7cabd010000000000000066b8f2c60000\
                    01020020200000040002000880000010004000000802400004008000080009000000\
                    000000000100000a000000000000000000000800000000000000";
        assert_eq!(text, want);
    }
}
