//! Walks a segment and finds out how much of it is whole. What lies behind the first bad batch is
//! looked through for headers that verify: they may know of durable batches before them.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::format::batch::{
    BATCH_HEADER_LEN, BATCH_MAGIC, BatchError, BatchHeader, Expect, Records,
};
use crate::format::file::FILE_HEADER_LEN;
use crate::format::record::{RecordKind, RecordPrefix};
use crate::log::SegmentKey;
use crate::media::Media;
use crate::planted::{Bug, is_planted};

/// Bytes read at a time, when nothing needs more.
const WINDOW_LEN: u64 = 1024 * 1024;

/// Reads a file front to back in large pieces.
#[derive(Debug)]
pub(crate) struct Window {
    media: Arc<dyn Media>,
    end: u64,
    start: u64,
    bytes: Bytes,
}

impl Window {
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
pub(crate) struct Batch {
    pub(crate) header: BatchHeader,
    pub(crate) position: u64,
    pub(crate) records: Bytes,
}

impl Batch {
    /// The records: their positions in the file, prefixes and bytes.
    pub(crate) fn records(&self) -> impl Iterator<Item = (u64, RecordPrefix, Bytes)> + '_ {
        let at_file = self.position + BATCH_HEADER_LEN as u64;
        Records::new(&self.records).flatten().map(move |(at, prefix)| {
            let record = self.records.slice(at..at + prefix.len as usize);
            (at_file + at as u64, prefix, record)
        })
    }

    pub(crate) fn frames(&self) -> u64 {
        let frame = |(_, prefix, _): &(u64, RecordPrefix, Bytes)| prefix.kind == RecordKind::Frame;
        self.records().filter(frame).count() as u64
    }
}

/// Walks the batches of a segment as long as they are whole and in their places.
#[derive(Debug)]
pub(crate) struct Walk {
    window: Window,
    salt: u32,
    /// Where the next batch begins.
    pub(crate) position: u64,
    /// Its seq, once one is known.
    pub(crate) seq: Option<u64>,
    pub(crate) prev_crc: u32,
    /// Its base offset.
    pub(crate) offset: u64,
    /// Batches and frames may be missing: it may have been compacted.
    leaps: bool,
}

impl Walk {
    /// Begins behind the file header. `end` is published.
    pub(crate) fn new(media: Arc<dyn Media>, key: &SegmentKey, end: u64) -> Self {
        Self {
            window: Window::new(media, end),
            salt: key.salt,
            position: FILE_HEADER_LEN as u64,
            seq: None,
            prev_crc: 0,
            offset: key.base,
            leaps: false,
        }
    }

    /// The same for a sealed segment, which may have been compacted.
    pub(crate) fn sealed(self) -> Self {
        Self { leaps: true, ..self }
    }

    /// The next batch, or what is wrong where it should be.
    pub(crate) fn next(&mut self) -> io::Result<Result<Batch, BatchError>> {
        let seq = self.seq.filter(|_| !self.leaps);
        let expect = Expect { salt: self.salt, seq, prev_crc: self.prev_crc };
        let batch = match self.read(self.position)? {
            Ok(batch) => batch,
            Err(_) if is_planted(Bug::KeepBehindHole) && self.find_behind()? => return self.next(),
            Err(error) => return Ok(Err(error)),
        };
        if let Err(error) = batch.header.check_place(&expect) {
            return Ok(Err(error));
        }
        if self.leaps {
            let header = &batch.header;
            // Neither falls; the floors at the end share the number of the batch before them.
            if self.seq.is_some_and(|seq| header.seq.saturating_add(1) < seq) {
                return Ok(Err(BatchError::Chain("sequence")));
            }
            if header.base_offset < self.offset {
                return Ok(Err(BatchError::Chain("base offset")));
            }
            self.offset = header.base_offset;
        }
        if batch.header.base_offset != self.offset {
            return Ok(Err(BatchError::Chain("base offset")));
        }
        self.position += batch.header.batch_len();
        self.seq = Some(batch.header.seq + 1);
        self.prev_crc = batch.header.header_crc;
        self.offset += batch.frames();
        Ok(Ok(batch))
    }

    /// Goes to the next whole batch of this segment behind a bad one.
    fn find_behind(&mut self) -> io::Result<bool> {
        let mut position = self.position + 8;
        while !self.window.get(position..position + BATCH_HEADER_LEN as u64)?.is_empty() {
            if let Ok(batch) = self.read(position)?
                && batch.header.salt == self.salt
            {
                (self.position, self.seq) = (position, None);
                (self.prev_crc, self.offset) = (batch.header.prev_crc, batch.header.base_offset);
                return Ok(true);
            }
            position += 8;
        }
        Ok(false)
    }

    /// The batch at a position, whole, wherever in a chain it belongs.
    fn read(&mut self, position: u64) -> io::Result<Result<Batch, BatchError>> {
        let records_at = position + BATCH_HEADER_LEN as u64;
        let header = match BatchHeader::read(&self.window.get(position..records_at)?) {
            Ok(header) => header,
            Err(error) => return Ok(Err(error)),
        };
        let records = self.window.get(records_at..records_at + u64::from(header.length))?;
        Ok(match header.check_records(&records) {
            Ok(()) => Ok(Batch { header, position, records }),
            Err(error) => Err(error),
        })
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
    /// Whether all behind `end` is zero.
    pub(crate) rest_is_zero: bool,
    /// The highest `durable_upto` of any header in it.
    pub(crate) durable_upto: u64,
    /// Where the last whole batch ends that lies behind `end`, and the offset after it.
    pub(crate) beyond: Option<(u64, u64)>,
}

/// Scans the first `len` bytes of a segment, all of them published.
pub(crate) fn scan(media: &Arc<dyn Media>, key: &SegmentKey, len: u64) -> io::Result<Scanned> {
    let mut walk = Walk::new(Arc::clone(media), key, len);
    let (mut first_seq, mut durable_upto, mut tombstones) = (None, 0, false);
    let why = loop {
        match walk.next()? {
            Ok(batch) => {
                first_seq.get_or_insert(batch.header.seq);
                durable_upto = durable_upto.max(batch.header.durable_upto);
                let is_tombstone = |kind| kind == RecordKind::Tombstone;
                tombstones |= batch.records().any(|(_, prefix, _)| is_tombstone(prefix.kind));
            }
            Err(error) => break error,
        }
    };
    let mut scanned = Scanned {
        end: walk.position,
        prev_crc: walk.prev_crc,
        first_seq,
        next_seq: walk.seq,
        next_offset: walk.offset,
        why,
        tombstones,
        rest_is_zero: true,
        durable_upto,
        beyond: None,
    };
    resync(&mut walk, &mut scanned, len)?;
    Ok(scanned)
}

/// Looks through what lies behind the first bad batch.
fn resync(walk: &mut Walk, scanned: &mut Scanned, len: u64) -> io::Result<()> {
    let mut at = scanned.end;
    while at < len {
        let upto = (at + WINDOW_LEN).min(len);
        let bytes = walk.window.get(at..upto)?;
        let zero = bytes.iter().all(|&byte| byte == 0);
        scanned.rest_is_zero &= zero;
        if !zero {
            for step in (0..bytes.len()).step_by(8) {
                if !bytes[step..].starts_with(&BATCH_MAGIC) {
                    continue;
                }
                let position = at + step as u64;
                let header = walk.window.get(position..position + BATCH_HEADER_LEN as u64)?;
                match BatchHeader::read(&header) {
                    Ok(header) if header.salt == walk.salt => {
                        scanned.durable_upto = scanned.durable_upto.max(header.durable_upto);
                        if let Ok(batch) = walk.read(position)? {
                            let end = position + header.batch_len();
                            scanned.beyond = Some((end, header.base_offset + batch.frames()));
                        }
                    }
                    _ => {}
                }
            }
        }
        at = upto;
    }
    Ok(())
}
