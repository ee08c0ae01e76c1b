//! A walk over the batches of one segment, forward from any batch up to the published length.
//!
//! It steps by batch headers, whose CRC it checks, and by record lengths, which it does not trust:
//! the code that takes a record checks its CRC. After damage it searches for the next batch, so a
//! damaged place hides only itself. It knows neither topics nor visibility.

use std::fmt::Display;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Corruption, ReadError};
use crate::format::batch::{BATCH_HEADER_LEN, BatchHeader};
use crate::format::record::{RecordError, RecordKind, RecordPrefix};
use crate::limits::SEGMENT_BYTES_MAX;
use crate::log::Segment;
use crate::value::Frame;

/// Bytes fetched at a time by a sequential scan.
pub(crate) const WINDOW_SCAN: u64 = 256 * 1024;
/// Bytes fetched to visit selected frames in order.
pub(crate) const WINDOW_VISIT: u64 = 32 * 1024;
/// Bytes fetched to visit selected frames of a mapped segment: all of it.
pub(crate) const WINDOW_MAPPED: u64 = SEGMENT_BYTES_MAX;
/// Bytes fetched to read one frame.
pub(crate) const WINDOW_POINT: u64 = 4 * 1024;

const HEADER: u64 = BATCH_HEADER_LEN as u64;

/// A window over a segment's published bytes, moved along as it is read.
#[derive(Debug)]
pub(crate) struct Window {
    segment: Arc<Segment>,
    bytes: Bytes,
    at: u64,
    size: u64,
    limit: u64,
}

impl Window {
    pub(crate) fn new(segment: Arc<Segment>, size: u64) -> Self {
        let limit = segment.published_len();
        Self { segment, bytes: Bytes::new(), at: 0, size, limit }
    }

    /// The bytes of a range, or `None` when it is not published as a whole.
    #[inline]
    pub(crate) fn get(&mut self, position: u64, len: u64) -> Result<Option<&[u8]>, ReadError> {
        let Some(end) = position.checked_add(len).filter(|&end| end <= self.limit) else {
            return Ok(None);
        };
        if position < self.at || end > self.at + self.bytes.len() as u64 {
            let to = end.max((position + self.size).min(self.limit));
            self.bytes = self.segment.bytes(position..to)?;
            self.at = position;
        }
        let from = (position - self.at) as usize;
        Ok(self.bytes.get(from..from + len as usize))
    }

    /// The bytes that [`Self::get`] returned, sharing the file's memory.
    #[inline]
    fn share(&self, position: u64, len: u64) -> Bytes {
        let from = (position - self.at) as usize;
        self.bytes.slice(from..from + len as usize)
    }

    /// A byte, if the window holds it.
    #[inline]
    pub(crate) fn peek(&self, position: u64) -> u8 {
        let from = position.wrapping_sub(self.at) as usize;
        self.bytes.get(from).copied().unwrap_or_default()
    }

    /// The record that begins at `position`, its CRC checked, or `None` when there is none.
    #[inline]
    pub(crate) fn record_at(
        &mut self,
        position: u64,
    ) -> Result<Option<(RecordPrefix, &[u8])>, ReadError> {
        const PREFIX: u64 = crate::format::record::PREFIX_LEN as u64;
        let Some(Ok(prefix)) = self.get(position, PREFIX)?.map(RecordPrefix::read) else {
            return Ok(None);
        };
        let record = self.get(position, u64::from(prefix.len))?;
        let sound = record.filter(|record| prefix.verify(record).is_ok());
        Ok(sound.map(|record| (prefix, record)))
    }

    /// The frame whose record begins at `position`, checked, or `None` when there is none.
    pub(crate) fn frame_at(
        &mut self,
        position: u64,
        offset: u64,
    ) -> Result<Option<Frame>, ReadError> {
        const PREFIX: u64 = crate::format::record::PREFIX_LEN as u64;
        let Some(Ok(prefix)) = self.get(position, PREFIX)?.map(RecordPrefix::read) else {
            return Ok(None);
        };
        let Some(base) = offset.checked_sub(u64::from(prefix.offset_delta)) else {
            return Ok(None);
        };
        if self.get(position, u64::from(prefix.len))?.is_none() {
            return Ok(None);
        }
        let record = self.share(position, u64::from(prefix.len));
        Ok(Frame::of_prefix(record, &prefix, Some(base)).ok())
    }

    /// The error for a record that fails its check.
    pub(crate) fn damaged(&self, position: u64, offset: u64) -> ReadError {
        self.corrupt(position, offset, RecordError::Crc)
    }

    /// The error that names a place in this file.
    pub(crate) fn corrupt(&self, position: u64, offset: u64, what: impl Display) -> ReadError {
        Corruption::new(self.segment.path(), position, what).at_offset(offset).into()
    }
}

#[derive(Debug, Clone, Copy)]
struct AtHand {
    at: u64,
    base: u64,
    end: u64,
    count: u32,
    seq: u64,
}

/// A record that was reached but not checked: a FRAME, unless other kinds were requested too.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FoundRecord {
    /// Its offset, if the batch has no gaps; certain once the record is checked.
    pub(crate) offset: u64,
    /// Where the record begins in the file.
    pub(crate) position: u64,
    /// Where its batch begins.
    pub(crate) batch: u64,
    /// Offset of the batch.
    base: u64,
    /// Its first bytes.
    pub(crate) prefix: RecordPrefix,
}

/// The walk.
#[derive(Debug)]
pub(crate) struct Walk {
    window: Window,
    position: u64,
    batch: Option<AtHand>,
    /// Offset of the next frame when nothing is missing.
    next: u64,
    /// Whether records that are not frames are yielded too.
    controls: bool,
}

impl Walk {
    /// Starts at a batch. `next` is the offset of the first frame at or after it, as far as known.
    pub(crate) fn new(segment: Arc<Segment>, position: u64, next: u64, window: u64) -> Self {
        let window = Window::new(segment, window);
        Self { window, position, batch: None, next, controls: false }
    }

    /// Makes the walk yield records of every kind.
    pub(crate) fn with_controls(self) -> Self {
        Self { controls: true, ..self }
    }

    /// The seq of the batch that holds the last record found.
    pub(crate) fn batch_seq(&self) -> u64 {
        self.batch.map_or(0, |batch| batch.seq)
    }

    /// The offset of the next frame when nothing is missing.
    pub(crate) const fn next_offset(&self) -> u64 {
        self.next
    }

    /// After damage: the offset at which the next frames are found, as far as this segment tells.
    pub(super) fn resumes(&mut self) -> Option<u64> {
        if self.batch.is_some_and(|batch| self.position < batch.end) {
            return Some(self.next);
        }
        let salt = self.window.segment.salt();
        match self.header_at(self.position, salt) {
            Ok(Some(header)) => Some(header.base_offset.max(self.next)),
            // More damage, which the next call reports.
            Ok(None) if self.position + HEADER <= self.window.limit => Some(self.next),
            Ok(None) | Err(_) => None,
        }
    }

    /// The next FRAME record, `None` at the end of what is published, or an error for a damaged
    /// place; the walk continues after it.
    #[inline]
    pub(crate) fn next(&mut self) -> Option<Result<FoundRecord, ReadError>> {
        loop {
            match self.batch {
                Some(batch) if self.position < batch.end => match self.record(batch) {
                    Ok(Some(found)) => return Some(Ok(found)),
                    Ok(None) => {}
                    Err(error) => return Some(Err(error)),
                },
                _ => match self.header() {
                    Ok(true) => {}
                    Ok(false) => return None,
                    Err(error) => return Some(Err(error)),
                },
            }
        }
    }

    /// Passes the next frames of this batch to `visit` with their offsets, their CRCs checked,
    /// until it breaks or one is not below `end`. Stops before anything that [`Self::next`] has to
    /// decide about, and before a record that `visit` rejects.
    #[inline]
    pub(crate) fn visit(
        &mut self,
        end: u64,
        mut visit: impl FnMut(u64, &RecordPrefix, &[u8]) -> Result<ControlFlow<()>, RecordError>,
    ) -> Result<ControlFlow<()>, ReadError> {
        let Some(batch) = self.batch.filter(|batch| self.position < batch.end) else {
            return Ok(ControlFlow::Continue(()));
        };
        let bytes = self.window.get(self.position, batch.end - self.position)?.unwrap_or_default();
        let (mut at, mut next, mut flow) = (0, self.next, ControlFlow::Continue(()));
        while flow.is_continue()
            && next < end
            && let Some(rest) = bytes.get(at..)
            && let Ok(prefix) = RecordPrefix::read(rest)
            && prefix.kind == RecordKind::Frame
            && prefix.stride() <= rest.len()
            && batch.base.checked_add(u64::from(prefix.offset_delta)) == Some(next)
            && let Some(record) = rest.get(..prefix.len as usize)
            && prefix.verify(record).is_ok()
            && let Ok(told) = visit(next, &prefix, record)
        {
            flow = told;
            at += prefix.stride();
            next += 1;
        }
        self.position += at as u64;
        self.next = next;
        Ok(flow)
    }

    /// Enters the next batch if the current one was read to its end. Returns whether it did: not
    /// within a batch, and not at the end of what is published.
    #[inline]
    pub(crate) fn enter(&mut self) -> Result<bool, ReadError> {
        match self.batch {
            Some(batch) if self.position < batch.end => Ok(false),
            _ => self.header(),
        }
    }

    /// Skips whole batches that end before `offset`: those followed by one that does not begin
    /// beyond it. A batch's own header does not tell how far it reaches, as frames may have been
    /// compacted away from it.
    pub(crate) fn skip_to(&mut self, offset: u64) -> Result<(), ReadError> {
        self.batch = None;
        let salt = self.window.segment.salt();
        let Some(mut header) = self.header_at(self.position, salt)? else { return Ok(()) };
        loop {
            let position = self.position + HEADER + u64::from(header.length);
            match self.header_at(position, salt)? {
                Some(next) if next.base_offset <= offset => header = next,
                _ => return Ok(()),
            }
            (self.position, self.next) = (position, header.base_offset);
        }
    }

    fn header_at(&mut self, position: u64, salt: u32) -> Result<Option<BatchHeader>, ReadError> {
        Ok(self.window.get(position, HEADER)?.and_then(|bytes| read_header(bytes, salt)))
    }

    /// The frame of a record that was found, checked.
    #[inline]
    pub(crate) fn frame(&mut self, found: &FoundRecord) -> Result<Frame, ReadError> {
        let record = self.window.share(found.position, u64::from(found.prefix.len));
        match Frame::of_prefix(record, &found.prefix, Some(found.base)) {
            Ok(frame) => {
                self.next = frame.offset().unwrap_or(found.offset) + 1;
                Ok(frame)
            }
            Err(_) => Err(self.bad_record(found)),
        }
    }

    /// The bytes of a record that was found, to decide whether to take it.
    #[inline]
    pub(crate) fn peek(&self, found: &FoundRecord) -> &[u8] {
        let from = (found.position - self.window.at) as usize;
        self.window.bytes.get(from..from + found.prefix.len as usize).unwrap_or_default()
    }

    /// The error for a record that was found and is damaged.
    pub(crate) fn damaged(&self, found: &FoundRecord) -> ReadError {
        self.window.damaged(found.position, found.offset)
    }

    /// Checks the CRC of a frame that is skipped, so that damage cannot hide a frame by changing
    /// its topic.
    #[inline]
    pub(crate) fn pass(&mut self, found: &FoundRecord) -> Result<(), ReadError> {
        match found.prefix.verify(self.peek(found)) {
            Ok(()) => Ok(()),
            Err(_) => Err(self.bad_record(found)),
        }
    }

    fn header(&mut self) -> Result<bool, ReadError> {
        self.batch = None;
        let salt = self.window.segment.salt();
        let Some(bytes) = self.window.get(self.position, HEADER)? else { return Ok(false) };
        let header = read_header(bytes, salt);
        let end = header.as_ref().map(|h| self.position + HEADER + u64::from(h.length));
        match (header, end) {
            (Some(header), Some(end)) if end <= self.window.limit => {
                let base = header.base_offset;
                self.window.get(self.position, end - self.position)?;
                let (count, seq) = (header.count, header.seq);
                self.batch = Some(AtHand { at: self.position, base, end, count, seq });
                self.next = base;
                self.position += HEADER;
                Ok(true)
            }
            _ => {
                let error = self.window.corrupt(
                    self.position,
                    self.next,
                    "no batch of this segment begins here",
                );
                self.find_batch(self.position + 8)?;
                Err(error)
            }
        }
    }

    #[inline]
    fn record(&mut self, batch: AtHand) -> Result<Option<FoundRecord>, ReadError> {
        let position = self.position;
        let bytes = self.window.get(position, batch.end - position)?.unwrap_or_default();
        let prefix = match RecordPrefix::read(bytes) {
            Ok(prefix) if prefix.stride() as u64 <= batch.end - position => prefix,
            _ => {
                self.position = batch.end;
                return Err(self.window.corrupt(position, self.next, RecordError::Short));
            }
        };
        self.position += prefix.stride() as u64;
        if prefix.kind != RecordKind::Frame {
            let (batch_at, base) = (batch.at, batch.base);
            let found = FoundRecord { offset: self.next, position, batch: batch_at, base, prefix };
            if prefix.verify(self.peek(&found)).is_err() {
                self.doubt(batch, &found)?;
            }
            return Ok(self.controls.then_some(found));
        }
        let offset = batch.base.saturating_add(u64::from(prefix.offset_delta));
        let found = FoundRecord { offset, position, batch: batch.at, base: batch.base, prefix };
        // A delta that leaves a gap may be right in a compacted segment; it is believed only after
        // its CRC is checked, as a wrong one could move a wanted frame before or after the range.
        if offset != self.next && found.prefix.verify(self.peek(&found)).is_err() {
            let expected = FoundRecord { offset: self.next, ..found };
            self.next += 1;
            return Err(self.bad_record(&expected));
        }
        self.next = offset + 1;
        Ok(Some(found))
    }

    /// Handles a non-frame record that fails its CRC: an error if it may have been a frame whose
    /// kind was damaged. It was not a frame if the following frame has the next expected offset.
    #[cold]
    fn doubt(&mut self, batch: AtHand, found: &FoundRecord) -> Result<(), ReadError> {
        let error = self.bad_record(found);
        let follows = self.following(batch)?;
        // Reading ahead may have moved the window.
        self.window.get(found.position, batch.end - found.position)?;
        if follows == Some(self.next) {
            return Ok(());
        }
        self.next += 1;
        Err(error)
    }

    /// The offset of the next sound frame of a batch, or of the batch after it; `None` when neither
    /// is known.
    fn following(&mut self, batch: AtHand) -> Result<Option<u64>, ReadError> {
        let mut position = self.position;
        while position < batch.end {
            let bytes = self.window.get(position, batch.end - position)?.unwrap_or_default();
            let Ok(prefix) = RecordPrefix::read(bytes) else { break };
            let record = bytes.get(..prefix.len as usize).unwrap_or_default();
            if prefix.kind == RecordKind::Frame && prefix.verify(record).is_ok() {
                return Ok(batch.base.checked_add(u64::from(prefix.offset_delta)));
            }
            position += prefix.stride() as u64;
        }
        let segment = Arc::clone(&self.window.segment);
        if batch.end >= self.window.limit {
            return Ok(segment.is_sealed().then(|| segment.end()));
        }
        Ok(self.header_at(batch.end, segment.salt())?.map(|header| header.base_offset))
    }

    /// The error for a record that fails its CRC. Its length may be wrong too, so the walk
    /// continues with the next record only if the strides of the whole batch add up.
    fn bad_record(&mut self, found: &FoundRecord) -> ReadError {
        if let Some(batch) = self.batch
            && !self.strides_fit(batch)
        {
            self.position = batch.end;
        }
        self.window.damaged(found.position, found.offset)
    }

    fn strides_fit(&self, batch: AtHand) -> bool {
        let from = |position: u64| position.checked_sub(self.window.at).map(|at| at as usize);
        let (Some(start), Some(end)) = (from(batch.at + HEADER), from(batch.end)) else {
            return false;
        };
        let Some(mut rest) = self.window.bytes.get(start..end) else { return false };
        let mut count = 0;
        while !rest.is_empty() {
            let Ok(prefix) = RecordPrefix::read(rest) else { return false };
            let Some(after) = rest.get(prefix.stride()..) else { return false };
            count += 1;
            rest = after;
        }
        count == batch.count
    }

    /// Moves to the first position from `position` on where a batch of this segment begins, or to
    /// the end. The salt, which is secret, keeps content from passing for a batch.
    fn find_batch(&mut self, mut position: u64) -> Result<(), ReadError> {
        let salt = self.window.segment.salt();
        while let Some(bytes) = self.window.get(position, HEADER)? {
            let found = read_header(bytes, salt).filter(|header| header.base_offset >= self.next);
            if let Some(header) = found {
                self.next = header.base_offset;
                break;
            }
            position += 8;
        }
        self.position = position;
        Ok(())
    }
}

fn read_header(bytes: &[u8], salt: u32) -> Option<BatchHeader> {
    BatchHeader::read(bytes).ok().filter(|header| header.salt == salt)
}
