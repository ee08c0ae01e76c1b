//! Walks a segment and determines how much of it is whole. The bytes after the first bad batch are
//! searched for headers that verify: they may prove that earlier batches were durable.

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

/// Minimum bytes read at a time. They and their copy fit into a cache.
const WINDOW_LEN: u64 = 256 * 1024;
/// Bytes between two points at which a scan can restart.
const RESTART_BYTES: u64 = 16 * 1024;

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

    /// A range of the file, up to the end.
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
    /// The kinds of its records.
    pub(crate) kinds: Kinds,
}

/// Number of frames of a batch, and which other kinds of records it has.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Kinds {
    pub(crate) frames: u64,
    /// Where the last frame begins in the records.
    last_frame_at: u32,
    /// One bit for each other kind.
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

    /// Whether it has only frames.
    pub(crate) const fn is_frames_alone(&self) -> bool {
        self.others == 0
    }

    /// Whether it has idempotency keys or old ids.
    pub(crate) const fn has_keys(&self) -> bool {
        self.old_ids || self.has(RecordKind::Key)
    }

    /// The kinds of a batch's records, whose CRCs need not be checked.
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

/// A position between two batches.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ScanPosition {
    pub(crate) position: u64,
    /// Seq of the next batch, once one is known.
    pub(crate) seq: Option<u64>,
    /// CRC of the header before it.
    pub(crate) prev_crc: u32,
    /// Offset of the next frame.
    pub(crate) offset: u64,
}

/// Walks the batches of a segment as long as they are whole and in sequence.
#[derive(Debug)]
pub(crate) struct Scan {
    window: Readahead,
    salt: u32,
    pub(crate) at: ScanPosition,
    /// Gaps in batches and frames are allowed: the segment may have been compacted.
    leaps: bool,
    /// Record CRCs are not checked: an earlier walk did.
    trusts: bool,
    /// CRC of the file up to the walk's position, if it is kept.
    crc: Option<crc32fast::Hasher>,
}

impl Scan {
    /// Starts after the file header. `end` is published.
    pub(crate) fn new(media: Arc<dyn Media>, key: &SegmentKey, end: u64) -> Self {
        let position = FILE_HEADER_LEN as u64;
        let at = ScanPosition { position, seq: None, prev_crc: 0, offset: key.base };
        let window = Readahead::new(media, end);
        Self { window, salt: key.salt, at, leaps: false, trusts: false, crc: None }
    }

    /// Adapts the walk to a sealed segment, which may have been compacted.
    pub(crate) fn sealed(self) -> Self {
        Self { leaps: true, ..self }
    }

    /// Moves the walk to another position.
    pub(crate) fn from(self, at: ScanPosition) -> Self {
        Self { at, ..self }
    }

    /// Makes the walk skip the check of record CRCs, which an earlier walk did.
    pub(crate) fn trusting(self) -> Self {
        Self { trusts: true, ..self }
    }

    /// The next batch, or what is wrong at its position.
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
            // Neither decreases; the floors at the end have the seq of the batch before them.
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

    /// Moves to the next whole batch of this segment after a bad one: a planted bug.
    #[cfg(xs_planted)]
    fn find_behind(&mut self) -> io::Result<bool> {
        let mut position = self.at.position + 8;
        while !self.window.get(position..position + BATCH_HEADER_LEN as u64)?.is_empty() {
            if let Ok((WholeBatch { header, .. }, _)) = self.read(position)?
                && header.salt == self.salt
            {
                let (prev_crc, offset) = (header.prev_crc, header.base_offset);
                self.at = ScanPosition { position, seq: None, prev_crc, offset };
                return Ok(true);
            }
            position += 8;
        }
        Ok(false)
    }

    /// The batch at a position, whole but not checked against its neighbours, and all its bytes.
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

/// The result of scanning a segment.
#[derive(Debug)]
pub(crate) struct Scanned {
    /// Position of the first bad batch, or of the end.
    pub(crate) end: u64,
    pub(crate) prev_crc: u32,
    /// Seq of its first batch, if that is whole.
    pub(crate) first_seq: Option<u64>,
    /// Seq of the batch at `end`, if known.
    pub(crate) next_seq: Option<u64>,
    /// Offset of the frame at `end`.
    pub(crate) next_offset: u64,
    /// What is wrong at `end`.
    pub(crate) why: BatchError,
    /// Whether it holds a tombstone.
    pub(crate) tombstones: bool,
    /// Where the checkpoint at its beginning ends, if it is complete.
    pub(crate) complete_at: Option<u64>,
    /// From here on everything is zero; at least `end`.
    pub(crate) zero_from: u64,
    /// The highest `durable_upto` of any header in it.
    pub(crate) durable_upto: u64,
    /// The highest epoch of any whole batch with a frame in it.
    pub(crate) epoch: u64,
    /// End of the last whole batch after `end`, and the offset after it.
    pub(crate) beyond: Option<(u64, u64)>,
    /// CRC of the file up to `end`.
    pub(crate) crc: Option<crc32fast::Hasher>,
    /// Restart points, about [`RESTART_BYTES`] apart, with the state there.
    restarts: Vec<RestartPoint>,
    len: u64,
}

/// A position at which a scan can restart.
#[derive(Debug, Clone)]
struct RestartPoint {
    at: ScanPosition,
    crc: crc32fast::Hasher,
    tombstones: bool,
}

/// Scans the first `len` bytes of a segment, all of them published.
pub(crate) fn scan(media: &Arc<dyn Media>, key: &SegmentKey, len: u64) -> io::Result<Scanned> {
    begin(media, key, (len, media.zero_from().min(len)))
}

/// Scans the first `len` bytes of a segment, of which all from `zero_from` on are zero.
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
        restarts: Vec::new(),
        len,
    };
    scanned.go_on(walk)?;
    Ok(scanned)
}

impl Scanned {
    /// The end of everything whole, including what is after damage, and the offset of the frame
    /// after it.
    pub(crate) fn reach(&self) -> (u64, u64) {
        self.beyond.unwrap_or((self.end, self.next_offset))
    }

    /// Whether everything after the end is zero.
    pub(crate) const fn rest_is_zero(&self) -> bool {
        self.zero_from <= self.end
    }

    /// Cuts it at a position before its end.
    pub(crate) fn cut(&mut self, at: ScanPosition) {
        self.zero_from = self.zero_from.max(self.end);
        let ScanPosition { position, seq, prev_crc, offset } = at;
        (self.end, self.prev_crc, self.next_offset) = (position, prev_crc, offset);
        (self.next_seq, self.crc) = (seq, None);
        self.restarts.retain(|point| point.at.position <= position);
    }

    /// The last restart point before the first batch that may not be durable, or before the end.
    fn restart_before(&self, durable_upto: u64) -> Option<&RestartPoint> {
        let durable = |point: &RestartPoint| point.at.seq.is_none_or(|seq| seq <= durable_upto);
        self.restarts.partition_point(durable).checked_sub(1).and_then(|at| self.restarts.get(at))
    }

    /// Walks the whole batches with a seq of at least `durable_upto`.
    pub(crate) fn doubtful(
        &self,
        media: &Arc<dyn Media>,
        key: &SegmentKey,
        durable_upto: u64,
    ) -> io::Result<Scan> {
        let mut walk = Scan::new(Arc::clone(media), key, self.end).trusting();
        if let Some(point) = self.restart_before(durable_upto) {
            walk = walk.from(point.at);
        }
        loop {
            let before = walk.at;
            match walk.next()? {
                Ok(batch) if batch.header.seq < durable_upto => {}
                _ => return Ok(walk.from(before)),
            }
        }
    }

    /// The bytes to distrust: from a restart point before the first batch that may not be
    /// durable to where everything is zero.
    pub(crate) fn disbelieved(&self, durable_upto: u64) -> Option<Range<u64>> {
        let all_durable = self.next_seq.is_none_or(|next| next <= durable_upto);
        if all_durable && self.rest_is_zero() {
            return None;
        }
        let from = self.restart_before(durable_upto).map_or(0, |point| point.at.position);
        Some(from..self.zero_from.max(self.end))
    }

    /// Scans the distrusted bytes again, after their cached pages were dropped. Keeps the
    /// durability claims that the first scan found.
    pub(crate) fn again(
        &mut self,
        media: &Arc<dyn Media>,
        key: &SegmentKey,
        durable_upto: u64,
    ) -> io::Result<()> {
        let Some(point) = self.restart_before(durable_upto).cloned() else {
            let durable_upto = self.durable_upto;
            *self = begin(media, key, (self.len, self.zero_from))?;
            self.durable_upto = self.durable_upto.max(durable_upto);
            return Ok(());
        };
        let mut walk = Scan::new(Arc::clone(media), key, self.len).from(point.at);
        walk.crc = Some(point.crc);
        self.tombstones = point.tombstones;
        self.restarts.retain(|other| other.at.position <= point.at.position);
        self.beyond = None;
        self.go_on(walk)
    }

    /// Scans from the walk's position. What is known of earlier batches is kept.
    fn go_on(&mut self, mut walk: Scan) -> io::Result<()> {
        let mut tables = Tables::default();
        let mut next_point = walk.at.position + RESTART_BYTES;
        self.why = loop {
            // No restart point within a checkpoint, which is read whole or not at all.
            if walk.at.position >= next_point
                && self.complete_at.is_some()
                && let Some(crc) = &walk.crc
            {
                next_point = walk.at.position + RESTART_BYTES;
                let (at, crc, tombstones) = (walk.at, crc.clone(), self.tombstones);
                self.restarts.push(RestartPoint { at, crc, tombstones });
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
        let ScanPosition { position, seq, prev_crc, offset } = walk.at;
        (self.end, self.prev_crc, self.next_offset) = (position, prev_crc, offset);
        self.next_seq = seq;
        self.crc = walk.crc.take();
        self.resync(&mut walk)
    }

    fn note_epoch(&mut self, batch: &WholeBatch) {
        // A MARK may come from an opening that wrote nothing else, and whose epoch the next one
        // reuses.
        if batch.kinds.frames > 0 {
            self.epoch = self.epoch.max(batch.header.epoch);
        }
    }

    /// Searches the bytes after the first bad batch.
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

    /// Evaluates a possible batch after the end.
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

/// The position of the last byte that is not zero.
fn last_non_zero(bytes: &[u8]) -> Option<usize> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut pieces = bytes.chunks(ZEROS.len()).enumerate().rev();
    // Comparing whole pieces takes a fraction of the time of checking each byte.
    let (number, piece) = pieces.find(|(_, piece)| **piece != ZEROS[..piece.len()])?;
    Some(number * ZEROS.len() + piece.iter().rposition(|&byte| byte != 0)?)
}
