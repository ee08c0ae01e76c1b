//! Walks a segment of the log from end to end, whatever it contains: whole batches, sound records
//! of damaged ones, and places where nothing can be identified. Unlike the walk of recovery it
//! continues after damage, and unlike that of readers it keeps records that are not frames.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::format::batch::{BATCH_HEADER_LEN, BATCH_MAGIC, BatchError, BatchHeader, Expect};
use crate::format::control::named_blob;
use crate::format::file::FILE_HEADER_LEN;
use crate::format::record::{PREFIX_LEN, RecordError, RecordKind, RecordPrefix};
use crate::limits::BATCH_BYTES_MAX;
use crate::media::{Media, find_first};
use crate::recovery::scan::Readahead;
use crate::value::BlobHash;

const HEADER_LEN: u64 = BATCH_HEADER_LEN as u64;
/// Bytes scanned at a time for the next batch; a multiple of 8.
const SEARCH_LEN: u64 = 256 * 1024;

/// A record that passed its CRC.
#[derive(Debug, Clone)]
pub(super) struct SoundRecord {
    /// Where it begins in the file.
    pub(super) position: u64,
    pub(super) prefix: RecordPrefix,
    pub(super) bytes: Bytes,
}

impl SoundRecord {
    fn blob(&self) -> Option<BlobHash> {
        named_blob(&self.bytes, &self.prefix)
    }
}

/// A stretch of a segment that was written by one append, as far as it can be identified.
#[derive(Debug)]
pub(super) struct Stretch {
    /// Its range in the file.
    pub(super) range: Range<u64>,
    /// Its header, if that is sound.
    pub(super) header: Option<BatchHeader>,
    /// The offset its deltas count from; without a header, the expected one.
    pub(super) base: u64,
    pub(super) records: Vec<SoundRecord>,
    /// Seq of the batch after it, as far as known.
    pub(super) seq_end: Option<u64>,
    /// What is wrong with it, and where.
    pub(super) bad: Option<(u64, BatchError)>,
}

impl Stretch {
    /// Whether it is damaged and was never known to be durable: every batch with a seq below
    /// `durable_upto` was.
    pub(super) fn is_torn(&self, durable_upto: u64) -> bool {
        self.bad.is_some() && self.seq_end.is_some_and(|end| end > durable_upto)
    }

    /// Whether it is unknown if it was durable.
    pub(super) fn is_doubtful(&self, durable_upto: u64) -> bool {
        self.header.is_some_and(|header| header.seq >= durable_upto)
    }

    /// The blobs that its frames and cursors name, with the positions of those records.
    pub(super) fn blobs(&self) -> impl Iterator<Item = (u64, BlobHash)> + '_ {
        self.records.iter().filter_map(|record| Some((record.position, record.blob()?)))
    }

    /// The offset after its last sound frame.
    pub(super) fn next_offset(&self) -> u64 {
        let frames = self.records.iter().filter(|record| record.prefix.kind == RecordKind::Frame);
        let deltas = frames.map(|record| u64::from(record.prefix.offset_delta) + 1);
        self.base.saturating_add(deltas.max().unwrap_or(0))
    }
}

/// The walk.
#[derive(Debug)]
pub(super) struct Survey {
    window: Readahead,
    salt: u32,
    end: u64,
    /// The last batch ends at `end`: zeros before it are a hole.
    is_exact: bool,
    /// The current position.
    pub(super) position: u64,
    /// What the next header must contain to follow the previous one.
    expect: Expect,
    /// Gaps in batches and frames are allowed: the segment may have been compacted.
    leaps: bool,
    /// The offset of the next frame if none is missing.
    pub(super) next_offset: u64,
}

impl Survey {
    /// Reads up to a published end; with `is_exact` the last batch is known to end there. `leaps`
    /// means that the segment is sealed and so may have been compacted.
    pub(super) fn new(
        media: Arc<dyn Media>,
        (salt, base): (u32, u64),
        (end, is_exact): (u64, bool),
        leaps: bool,
    ) -> Self {
        Self {
            window: Readahead::new(media, end),
            salt,
            end,
            is_exact,
            position: FILE_HEADER_LEN as u64,
            expect: Expect { salt, seq: None, prev_crc: 0 },
            leaps,
            next_offset: base,
        }
    }

    /// The next stretch, or `None` at the end: at the end of the file or, unless the end is exact,
    /// when only zeros follow.
    pub(super) fn next(&mut self) -> io::Result<Option<Stretch>> {
        if self.position >= self.end {
            return Ok(None);
        }
        let at = self.position;
        let stretch = match self.header_at(at)? {
            Ok(header) if header.salt == self.salt => self.batch(at, header)?,
            Ok(_) => self.hole(at, BatchError::Chain("salt"))?,
            Err(BatchError::Absent) if !self.is_exact && self.is_zero_from(at)? => {
                self.position = self.end;
                return Ok(None);
            }
            Err(error) => self.hole(at, error)?,
        };
        self.position = stretch.range.end;
        self.next_offset = stretch.next_offset().max(self.next_offset);
        Ok(Some(stretch))
    }

    /// Seq of the batch after the last one, as far as known.
    pub(super) const fn next_seq(&self) -> Option<u64> {
        self.expect.seq
    }

    fn header_at(&mut self, at: u64) -> io::Result<Result<BatchHeader, BatchError>> {
        Ok(BatchHeader::read(&self.window.get(at..at + HEADER_LEN)?))
    }

    /// A stretch whose header is sound.
    fn batch(&mut self, at: u64, header: BatchHeader) -> io::Result<Stretch> {
        let from = at + HEADER_LEN;
        let end = (from + u64::from(header.length)).min(self.end);
        let bytes = self.window.get(from..end)?;
        let mut bad = header.check_records(&bytes).err().map(|error| (at, error));
        let records = sound_records(&bytes, from, &mut bad);
        if bad.is_none() {
            // After damage was reported, its consequence for the next batch is not reported again.
            bad = self.check_place(&header).err().map(|error| (at, error));
        }
        if bad.is_none() && header.base_offset < self.next_offset {
            bad = Some((at, BatchError::Chain("base offset")));
        }
        let seq_end = Some(header.seq.saturating_add(1));
        (self.expect.seq, self.expect.prev_crc) = (seq_end, header.header_crc);
        let base = header.base_offset;
        Ok(Stretch { range: at..end, header: Some(header), base, records, seq_end, bad })
    }

    /// Whether a header follows the previous one.
    fn check_place(&self, header: &BatchHeader) -> Result<(), BatchError> {
        let seq = self.expect.seq.filter(|_| !self.leaps);
        header.check_place(&Expect { seq, ..self.expect })?;
        // Seqs do not decrease; the floors at the end have the seq of the batch before them.
        match self.expect.seq.is_some_and(|seq| header.seq.saturating_add(1) < seq) {
            true => Err(BatchError::Chain("sequence")),
            false => Ok(()),
        }
    }

    /// A stretch without a header: continues to the next sound header. Records after a damaged
    /// header may be sound.
    fn hole(&mut self, at: u64, why: BatchError) -> io::Result<Stretch> {
        let end = self.find_header(at + 8)?;
        let from = (at + HEADER_LEN).min(end);
        let near = end.min(from + BATCH_BYTES_MAX as u64);
        let records = sound_records(&self.window.get(from..near)?, from, &mut None);
        let next = if end < self.end { self.header_at(end)?.ok() } else { None };
        // The next batch follows an unknown one.
        let at_least = self.expect.seq.map(|seq| seq.saturating_add(1));
        let seq_end = next.map(|header| header.seq).or(at_least);
        self.expect.seq = next.map(|header| header.seq);
        self.expect.prev_crc = next.map_or(0, |header| header.prev_crc);
        let mut stretch = Stretch {
            range: at..end,
            header: None,
            base: self.next_offset,
            records,
            seq_end,
            bad: Some((at, why)),
        };
        // Their offsets are known only if nothing else is missing here.
        let fits = match next {
            Some(next) => stretch.next_offset() == next.base_offset,
            None => !self.leaps,
        };
        if !fits {
            stretch.records.clear();
        }
        Ok(stretch)
    }

    /// Raw bytes of the file, as many as exist.
    pub(super) fn peek(&mut self, range: Range<u64>) -> io::Result<Bytes> {
        self.window.get(range)
    }

    /// The position of the next sound header of this segment, or the end.
    fn find_header(&mut self, from: u64) -> io::Result<u64> {
        let mut at = from;
        while at < self.end {
            let upto = (at + SEARCH_LEN).min(self.end);
            let bytes = self.window.get(at..upto)?;
            for step in (0..bytes.len()).step_by(8) {
                if !bytes[step..].starts_with(&BATCH_MAGIC) {
                    continue;
                }
                let position = at + step as u64;
                if self.header_at(position)?.is_ok_and(|header| header.salt == self.salt) {
                    return Ok(position);
                }
            }
            at = upto;
        }
        Ok(self.end)
    }

    /// Whether only zeros follow.
    pub(super) fn is_zero_from(&mut self, from: u64) -> io::Result<bool> {
        let mut at = from;
        while at < self.end {
            let upto = (at + SEARCH_LEN).min(self.end);
            if self.window.get(at..upto)?.iter().any(|&byte| byte != 0) {
                return Ok(false);
            }
            at = upto;
        }
        Ok(true)
    }
}

/// The records of `bytes`, which begin at `from` in the file, that pass their CRC. At a bad one,
/// `bad` is set to it, and the walk continues where that record claims to end, if a sound one is
/// there.
fn sound_records(
    bytes: &Bytes,
    from: u64,
    bad: &mut Option<(u64, BatchError)>,
) -> Vec<SoundRecord> {
    let mut records = Vec::new();
    let mut at = 0;
    let mut told = false;
    while at + PREFIX_LEN <= bytes.len() {
        let checked = RecordPrefix::read(&bytes[at..]).and_then(|prefix| {
            let record = bytes.get(at..at + prefix.len as usize);
            let record = record.ok_or(RecordError::Short)?;
            RecordPrefix::check(record).map(|prefix| (prefix, bytes.slice_ref(record)))
        });
        match checked {
            Ok((prefix, record)) => {
                records.push(SoundRecord { position: from + at as u64, prefix, bytes: record });
                at += prefix.stride();
            }
            Err(error) => {
                if let Some(bad) = bad.as_mut().filter(|_| !std::mem::replace(&mut told, true)) {
                    *bad = (from + at as u64, error.into());
                }
                at = next_sound(bytes, at + 8);
            }
        }
    }
    records
}

/// The position of the next sound record after a damaged one.
fn next_sound(bytes: &Bytes, from: usize) -> usize {
    (from..bytes.len())
        .step_by(8)
        .find(|&at| {
            let Ok(prefix) = RecordPrefix::read(&bytes[at..]) else { return false };
            let record = bytes.get(at..at + prefix.len as usize);
            record.is_some_and(|record| RecordPrefix::check(record).is_ok())
        })
        .unwrap_or(bytes.len())
}

/// The salt of a segment with a damaged header, from the first batch that verifies.
pub(crate) fn find_salt(media: &dyn Media) -> Option<u32> {
    let salt = |bytes: &[u8]| BatchHeader::read(bytes).ok().map(|header| header.salt);
    find_first(media, FILE_HEADER_LEN as u64, &BATCH_MAGIC, salt).ok().flatten()
}
