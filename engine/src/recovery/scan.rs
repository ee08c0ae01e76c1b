//! Walks a segment and finds out how much of it is whole. What lies behind the first bad batch is
//! looked through for headers that verify: they may know of durable batches before them.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::replay::Tables;
use crate::format::batch::{
    BATCH_HEADER_LEN, BATCH_MAGIC, BatchError, BatchHeader, Expect, Records,
};
use crate::format::file::FILE_HEADER_LEN;
use crate::format::record::{FLAG_OLD_ID, RecordKind, RecordPrefix};
use crate::log::SegmentKey;
use crate::media::Media;
#[cfg(xs_planted)]
use crate::planted::{Bug, is_planted};

/// Bytes read at a time, when nothing needs more. They and their copy fit into a cache.
const WINDOW_LEN: u64 = 256 * 1024;
/// Bytes between two places that a scan can be begun at again.
const SPOT_BYTES: u64 = 16 * 1024;

/// Reads a file front to back in large pieces.
#[derive(Debug)]
pub(crate) struct Readahead {
    media: Arc<dyn Media>,
    end: u64,
    start: u64,
    bytes: Bytes,
}

impl Readahead {
    /// Reads below `end`, which is published.
    pub(crate) fn new(media: Arc<dyn Media>, end: u64) -> Self {
        Self { media, end, start: 0, bytes: Bytes::new() }
    }

    /// A range of the file, as much of it as lies below the end.
    pub(crate) fn get(&mut self, range: Range<u64>) -> io::Result<Bytes> {
        let end = range.end.min(self.end);
        let start = range.start.min(end);
        let have = self.start..self.start + self.bytes.len() as u64;
        if start < have.start || end > have.end {
            let upto = end.max(start + WINDOW_LEN).min(self.end);
            self.bytes = self.media.view(start..upto)?;
            self.start = start;
        }
        let at = (start - self.start) as usize;
        Ok(self.bytes.slice(at..at + (end - start) as usize))
    }
}

/// A batch that verified.
#[derive(Debug)]
pub(crate) struct WholeBatch {
    pub(crate) header: BatchHeader,
    pub(crate) position: u64,
    pub(crate) records: Bytes,
    /// Which kinds of records are in it.
    pub(crate) kinds: Kinds,
}

/// Frames of a batch, and which other kinds of records it has.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Kinds {
    pub(crate) frames: u64,
    /// Where among the records the last of them begins.
    last_frame_at: u32,
    /// A bit for each other kind that is there.
    others: u8,
    pub(crate) old_ids: bool,
}

impl Kinds {
    #[inline]
    pub(crate) fn add(&mut self, at: usize, prefix: &RecordPrefix) {
        match prefix.kind {
            RecordKind::Frame => {
                self.frames += 1;
                self.last_frame_at = at as u32;
                self.old_ids |= prefix.flags & FLAG_OLD_ID != 0;
            }
            other => self.others |= 1 << other as u8,
        }
    }

    pub(crate) const fn has(&self, kind: RecordKind) -> bool {
        self.others & 1 << kind as u8 != 0
    }

    /// Whether there is nothing but frames.
    pub(crate) const fn is_frames_alone(&self) -> bool {
        self.others == 0
    }

    /// Whether there are idempotency keys or old ids.
    pub(crate) const fn has_keys(&self) -> bool {
        self.old_ids || self.has(RecordKind::Key)
    }

    /// Those of the records of a batch, whose CRCs need not be compared.
    pub(crate) fn of(records: &[u8]) -> Self {
        let mut kinds = Self::default();
        Records::new(records).flatten().for_each(|(at, prefix)| kinds.add(at, &prefix));
        kinds
    }
}

impl WholeBatch {
    /// The record of its last frame, and what may follow it.
    pub(crate) fn last_frame(&self) -> Option<&[u8]> {
        let rest = self.records.get(self.kinds.last_frame_at as usize..);
        rest.filter(|_| self.kinds.frames > 0)
    }

    /// The records: their positions in the file, prefixes and bytes.
    pub(crate) fn records(&self) -> impl Iterator<Item = (u64, RecordPrefix, &[u8])> + '_ {
        let at_file = self.position + BATCH_HEADER_LEN as u64;
        Records::new(&self.records).flatten().filter_map(move |(at, prefix)| {
            let record = self.records.get(at..at + prefix.len as usize)?;
            Some((at_file + at as u64, prefix, record))
        })
    }
}

/// A place between two batches.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spot {
    pub(crate) position: u64,
    /// Seq of the next batch, once one is known.
    pub(crate) seq: Option<u64>,
    /// CRC of the header before it.
    pub(crate) prev_crc: u32,
    /// Its base offset.
    pub(crate) offset: u64,
}

/// Walks the batches of a segment as long as they are whole and in their places.
#[derive(Debug)]
pub(crate) struct Scan {
    window: Readahead,
    salt: u32,
    pub(crate) at: Spot,
    /// Batches and frames may be missing: it may have been compacted.
    leaps: bool,
    /// The CRCs of records were compared by an earlier walk.
    trusts: bool,
    /// CRC of the file up to where the walk is, if it is kept.
    crc: Option<crc32fast::Hasher>,
}

impl Scan {
    /// Begins behind the file header. `end` is published.
    pub(crate) fn new(media: Arc<dyn Media>, key: &SegmentKey, end: u64) -> Self {
        let position = FILE_HEADER_LEN as u64;
        let at = Spot { position, seq: None, prev_crc: 0, offset: key.base };
        let window = Readahead::new(media, end);
        Self { window, salt: key.salt, at, leaps: false, trusts: false, crc: None }
    }

    /// The same for a sealed segment, which may have been compacted.
    pub(crate) fn sealed(self) -> Self {
        Self { leaps: true, ..self }
    }

    /// The same from another place on.
    pub(crate) fn from(self, at: Spot) -> Self {
        Self { at, ..self }
    }

    /// The same over records whose CRCs were compared before.
    pub(crate) fn trusting(self) -> Self {
        Self { trusts: true, ..self }
    }

    /// The next batch, or what is wrong where it should be.
    pub(crate) fn next(&mut self) -> io::Result<Result<WholeBatch, BatchError>> {
        let seq = self.at.seq.filter(|_| !self.leaps);
        let expect = Expect { salt: self.salt, seq, prev_crc: self.at.prev_crc };
        let (batch, bytes) = match self.read(self.at.position)? {
            Ok(read) => read,
            #[cfg(xs_planted)]
            Err(_) if is_planted(Bug::KeepBehindHole) && self.find_behind()? => return self.next(),
            Err(error) => return Ok(Err(error)),
        };
        if let Err(error) = batch.header.check_place(&expect) {
            return Ok(Err(error));
        }
        if self.leaps {
            let header = &batch.header;
            // Neither falls; the floors at the end share the number of the batch before them.
            if self.at.seq.is_some_and(|seq| header.seq.saturating_add(1) < seq) {
                return Ok(Err(BatchError::Chain("sequence")));
            }
            if header.base_offset < self.at.offset {
                return Ok(Err(BatchError::Chain("base offset")));
            }
            self.at.offset = header.base_offset;
        }
        if batch.header.base_offset != self.at.offset {
            return Ok(Err(BatchError::Chain("base offset")));
        }
        if let Some(crc) = &mut self.crc {
            crc.update(&bytes);
        }
        self.at.position += batch.header.batch_len();
        self.at.seq = Some(batch.header.seq + 1);
        self.at.prev_crc = batch.header.header_crc;
        self.at.offset += batch.kinds.frames;
        Ok(Ok(batch))
    }

    /// Goes to the next whole batch of this segment behind a bad one: a bug on purpose.
    #[cfg(xs_planted)]
    fn find_behind(&mut self) -> io::Result<bool> {
        let mut position = self.at.position + 8;
        while !self.window.get(position..position + BATCH_HEADER_LEN as u64)?.is_empty() {
            if let Ok((WholeBatch { header, .. }, _)) = self.read(position)?
                && header.salt == self.salt
            {
                let (prev_crc, offset) = (header.prev_crc, header.base_offset);
                self.at = Spot { position, seq: None, prev_crc, offset };
                return Ok(true);
            }
            position += 8;
        }
        Ok(false)
    }

    /// The batch at a position, whole, wherever in a chain it belongs, and all its bytes.
    fn read(&mut self, position: u64) -> io::Result<Result<(WholeBatch, Bytes), BatchError>> {
        let records_at = position + BATCH_HEADER_LEN as u64;
        let header = match BatchHeader::read(&self.window.get(position..records_at)?) {
            Ok(header) => header,
            Err(error) => return Ok(Err(error)),
        };
        let bytes = self.window.get(position..position + header.batch_len())?;
        let records = bytes.slice(BATCH_HEADER_LEN.min(bytes.len())..);
        let mut kinds = Kinds::default();
        if self.trusts && records.len() == header.length as usize {
            kinds = Kinds::of(&records);
        } else if let Err(error) = header.check_each(&records, |at, prefix| kinds.add(at, prefix)) {
            return Ok(Err(error));
        }
        Ok(Ok((WholeBatch { header, position, records, kinds }, bytes)))
    }
}

/// What a scan found out about a segment.
#[derive(Debug)]
pub(crate) struct Scanned {
    /// Where the first bad batch is, or nothing begins.
    pub(crate) end: u64,
    pub(crate) prev_crc: u32,
    /// Seq of its first batch, if that is whole.
    pub(crate) first_seq: Option<u64>,
    /// Seq of the batch at `end`, if any is known.
    pub(crate) next_seq: Option<u64>,
    /// Offset of the frame at `end`.
    pub(crate) next_offset: u64,
    /// What is wrong at `end`.
    pub(crate) why: BatchError,
    /// Whether there is a tombstone in it.
    pub(crate) tombstones: bool,
    /// Where the checkpoint at its beginning is complete, if it is.
    pub(crate) complete_at: Option<u64>,
    /// Behind this all is zero, from `end` on.
    pub(crate) zero_from: u64,
    /// The highest `durable_upto` of any header in it.
    pub(crate) durable_upto: u64,
    /// The highest epoch of any whole batch with a frame in it.
    pub(crate) epoch: u64,
    /// Where the last whole batch ends that lies behind `end`, and the offset after it.
    pub(crate) beyond: Option<(u64, u64)>,
    /// CRC of the file up to `end`.
    pub(crate) crc: Option<crc32fast::Hasher>,
    /// Places on the way, about [`SPOT_BYTES`] apart, with what was known there.
    marks: Vec<Mark>,
    len: u64,
}

/// A place that a scan may be begun at again.
#[derive(Debug, Clone)]
struct Mark {
    spot: Spot,
    crc: crc32fast::Hasher,
    tombstones: bool,
}

/// Scans the first `len` bytes of a segment, all of them published.
pub(crate) fn scan(media: &Arc<dyn Media>, key: &SegmentKey, len: u64) -> io::Result<Scanned> {
    begin(media, key, (len, media.zero_from().min(len)))
}

/// The same when all from `zero_from` on is known to be zero.
fn begin(
    media: &Arc<dyn Media>,
    key: &SegmentKey,
    (len, zero_from): (u64, u64),
) -> io::Result<Scanned> {
    let mut walk = Scan::new(Arc::clone(media), key, len);
    let mut crc = crc32fast::Hasher::new();
    crc.update(&walk.window.get(0..FILE_HEADER_LEN as u64)?);
    walk.crc = Some(crc);
    let mut scanned = Scanned {
        end: walk.at.position,
        prev_crc: 0,
        first_seq: None,
        next_seq: None,
        next_offset: key.base,
        why: BatchError::Absent,
        tombstones: false,
        complete_at: None,
        zero_from,
        durable_upto: 0,
        epoch: 0,
        beyond: None,
        crc: None,
        marks: Vec::new(),
        len,
    };
    scanned.go_on(walk)?;
    Ok(scanned)
}

impl Scanned {
    /// Where what is whole ends, also behind a damaged place, and the offset of the frame after it.
    pub(crate) fn reach(&self) -> (u64, u64) {
        self.beyond.unwrap_or((self.end, self.next_offset))
    }

    /// Whether all behind the end is zero.
    pub(crate) const fn rest_is_zero(&self) -> bool {
        self.zero_from <= self.end
    }

    /// Cuts it at a place before its end.
    pub(crate) fn cut(&mut self, at: Spot) {
        self.zero_from = self.zero_from.max(self.end);
        let Spot { position, seq, prev_crc, offset } = at;
        (self.end, self.prev_crc, self.next_offset) = (position, prev_crc, offset);
        (self.next_seq, self.crc) = (seq, None);
        self.marks.retain(|mark| mark.spot.position <= position);
    }

    /// The last known place before the first batch that may not be durable, or before the end.
    fn mark_before(&self, durable_upto: u64) -> Option<&Mark> {
        let durable = |mark: &Mark| mark.spot.seq.is_none_or(|seq| seq <= durable_upto);
        self.marks.partition_point(durable).checked_sub(1).and_then(|at| self.marks.get(at))
    }

    /// Walks the whole batches from the first one of `durable_upto` or more on.
    pub(crate) fn doubtful(
        &self,
        media: &Arc<dyn Media>,
        key: &SegmentKey,
        durable_upto: u64,
    ) -> io::Result<Scan> {
        let mut walk = Scan::new(Arc::clone(media), key, self.end).trusting();
        if let Some(mark) = self.mark_before(durable_upto) {
            walk = walk.from(mark.spot);
        }
        loop {
            let before = walk.at;
            match walk.next()? {
                Ok(batch) if batch.header.seq < durable_upto => {}
                _ => return Ok(walk.from(before)),
            }
        }
    }

    /// The bytes that are not believed: from a place before the first batch that may not be durable
    /// to where all is zero.
    pub(crate) fn disbelieved(&self, durable_upto: u64) -> Option<Range<u64>> {
        let all_durable = self.next_seq.is_none_or(|next| next <= durable_upto);
        if all_durable && self.rest_is_zero() {
            return None;
        }
        let from = self.mark_before(durable_upto).map_or(0, |mark| mark.spot.position);
        Some(from..self.zero_from.max(self.end))
    }

    /// Scans what was not believed again, after the cache was made to forget it. How far the log
    /// was durable once, as it was told, is kept.
    pub(crate) fn again(
        &mut self,
        media: &Arc<dyn Media>,
        key: &SegmentKey,
        durable_upto: u64,
    ) -> io::Result<()> {
        let Some(mark) = self.mark_before(durable_upto).cloned() else {
            let durable_upto = self.durable_upto;
            *self = begin(media, key, (self.len, self.zero_from))?;
            self.durable_upto = self.durable_upto.max(durable_upto);
            return Ok(());
        };
        let mut walk = Scan::new(Arc::clone(media), key, self.len).from(mark.spot);
        walk.crc = Some(mark.crc);
        self.tombstones = mark.tombstones;
        self.marks.retain(|other| other.spot.position <= mark.spot.position);
        self.beyond = None;
        self.go_on(walk)
    }

    /// Scans from where the walk is. What is known of the batches before stays.
    fn go_on(&mut self, mut walk: Scan) -> io::Result<()> {
        let mut tables = Tables::default();
        let mut next_mark = walk.at.position + SPOT_BYTES;
        self.why = loop {
            // None within a checkpoint, which is read whole or not at all.
            if walk.at.position >= next_mark
                && self.complete_at.is_some()
                && let Some(crc) = &walk.crc
            {
                next_mark = walk.at.position + SPOT_BYTES;
                let (spot, crc, tombstones) = (walk.at, crc.clone(), self.tombstones);
                self.marks.push(Mark { spot, crc, tombstones });
            }
            match walk.next()? {
                Ok(batch) => {
                    self.first_seq.get_or_insert(batch.header.seq);
                    self.durable_upto = self.durable_upto.max(batch.header.durable_upto);
                    self.tombstones |= batch.kinds.has(RecordKind::Tombstone);
                    self.note_epoch(&batch);
                    if self.complete_at.is_none() {
                        tables.take(&batch);
                        self.complete_at = tables.complete.then_some(walk.at.position);
                    }
                }
                Err(error) => break error,
            }
        };
        let Spot { position, seq, prev_crc, offset } = walk.at;
        (self.end, self.prev_crc, self.next_offset) = (position, prev_crc, offset);
        self.next_seq = seq;
        self.crc = walk.crc.take();
        self.resync(&mut walk)
    }

    fn note_epoch(&mut self, batch: &WholeBatch) {
        // A mark may be of an opening that wrote nothing else, and whose number the next one has.
        if batch.kinds.frames > 0 {
            self.epoch = self.epoch.max(batch.header.epoch);
        }
    }

    /// Looks through what lies behind the first bad batch.
    fn resync(&mut self, walk: &mut Scan) -> io::Result<()> {
        let len = self.zero_from;
        self.zero_from = self.end;
        let mut at = self.end;
        while at < len {
            let upto = (at + WINDOW_LEN).min(len);
            let bytes = walk.window.get(at..upto)?;
            if let Some(last) = last_non_zero(&bytes) {
                self.zero_from = at + last as u64 + 1;
                for step in (0..bytes.len()).step_by(8) {
                    if bytes[step..].starts_with(&BATCH_MAGIC) {
                        self.meet(walk, at + step as u64)?;
                    }
                }
            }
            at = upto;
        }
        Ok(())
    }

    /// Learns from what may be a batch behind the end.
    fn meet(&mut self, walk: &mut Scan, position: u64) -> io::Result<()> {
        let header = walk.window.get(position..position + BATCH_HEADER_LEN as u64)?;
        match BatchHeader::read(&header) {
            Ok(header) if header.salt == walk.salt => {
                self.durable_upto = self.durable_upto.max(header.durable_upto);
                if let Ok((batch, _)) = walk.read(position)? {
                    self.note_epoch(&batch);
                    let end = position + header.batch_len();
                    self.beyond = Some((end, header.base_offset + batch.kinds.frames));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// The place of the last byte that is not zero.
fn last_non_zero(bytes: &[u8]) -> Option<usize> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut pieces = bytes.chunks(ZEROS.len()).enumerate().rev();
    // Whole pieces are compared, which takes a small part of the time of looking at each byte.
    let (number, piece) = pieces.find(|(_, piece)| **piece != ZEROS[..piece.len()])?;
    Some(number * ZEROS.len() + piece.iter().rposition(|&byte| byte != 0)?)
}
