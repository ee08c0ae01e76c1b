//! Reads which blobs the log names, from where the last read ended. Every name in the files counts,
//! except those in frames that were dead when the reading began.

use std::ops::Range;

use bytes::Bytes;

use super::dead::Dead;
use crate::cursors::HeldState;
use crate::error::{Corruption, ReadError};
use crate::format::batch::{BATCH_HEADER_LEN, BatchHeader};
use crate::format::control::named_blob;
use crate::format::file::FILE_HEADER_LEN;
use crate::format::record::{RecordKind, RecordPrefix};
use crate::log::Segment;
use crate::planted::{Bug, is_planted};
use crate::store::Inner;
use crate::value::{BlobHash, FrameRef};

/// Bytes of a segment read at a time, but at least a whole batch.
const WINDOW: u64 = 1024 * 1024;
/// In this many of the newest segments every cursor record counts that the caller does not make
/// final, in older ones only the current ones. A power cut can take what is unsynced, at most two
/// segments, and opening then starts from the checkpoint in the segment before: every cursor record
/// that it can find is in these segments.
const CURSOR_SEGMENTS: usize = 3;

/// Reads names; each call reads those added since the last.
#[derive(Debug, Default)]
pub(super) struct Names {
    began: bool,
    /// The last segment read, by base and uuid, and how far.
    last: (u64, [u8; 16]),
    position: u64,
    /// Frames that do not count, until the log was read once.
    dead: Option<Dead>,
    /// Whether a frame that readers once saw, or a cursor's record, was skipped.
    passed: bool,
}

impl Names {
    /// Reads all names except those of dead frames.
    pub(super) fn but_of(dead: Dead) -> Self {
        Self { dead: Some(dead), ..Self::default() }
    }

    /// Whether a frame was skipped because no reader sees it any more, or a cursor's record because
    /// a later one supersedes it. That is final once everything appended so far is durable.
    pub(super) const fn passed_any(&self) -> bool {
        self.passed
    }

    /// Calls `take` with each name added since the last call, with some more than once. Calls
    /// `go_on` before each segment and after each piece of one, with the bytes read, and stops if
    /// it fails.
    pub(super) fn read<E: From<ReadError>>(
        &mut self,
        inner: &Inner,
        go_on: impl Fn(u64) -> Result<(), E>,
        mut take: impl FnMut(&BlobHash) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.began && is_planted(Bug::ForgetLateNames) {
            return Ok(());
        }
        let segments = inner.log.view().segments;
        // Cursors change before the log that says so is published: those below know every record
        // before this end.
        let end = segments.last().map(|last| (last.base(), last.published_len()));
        if !self.began && !is_planted(Bug::ForgetStates) {
            let states: Vec<BlobHash> = inner
                .cursors
                .read()
                .iter()
                .filter_map(|(_, held)| match held.state {
                    HeldState::Blob(_, hash) => Some(hash),
                    HeldState::Inline(_) => None,
                })
                .collect();
            states.iter().try_for_each(&mut take)?;
        }
        for (n, segment) in segments.iter().enumerate() {
            let place = (segment.base(), segment.uuid());
            if self.began && place.0 < self.last.0 {
                continue;
            }
            go_on(0)?;
            let from = match self.began && place == self.last {
                true => self.position,
                false => FILE_HEADER_LEN as u64,
            };
            let upto = segment.published_len();
            let cursors = n + CURSOR_SEGMENTS >= segments.len();
            let known = match end {
                Some((base, _)) if place.0 < base => u64::MAX,
                Some((base, position)) if place.0 == base => position,
                _ => 0,
            };
            let mut counts = Counts { inner, cursors, known, dead: self.dead.as_mut() };
            read_batches(segment, from..upto, &go_on, &mut counts, &mut take)?;
            (self.began, self.last, self.position) = (true, place, upto.max(from));
        }
        // Whatever killed frames later may not be durable yet.
        self.passed |= matches!(self.dead.take(), Some(Dead::Unseen(unseen)) if unseen.passed);
        Ok(())
    }
}

/// Which records of a segment count.
struct Counts<'a> {
    inner: &'a Inner,
    cursors: bool,
    /// Cursor records before this position are current, and counted already, or superseded.
    known: u64,
    dead: Option<&'a mut Dead>,
}

impl Counts<'_> {
    /// Whether a record of a batch at this position that names a blob counts.
    fn takes(&mut self, (at, base): (u64, u64), prefix: &RecordPrefix, record: &[u8]) -> bool {
        match (prefix.kind, &mut self.dead) {
            (RecordKind::Cursor, Some(Dead::Unseen(unseen))) if at < self.known => {
                unseen.passed = true;
                false
            }
            (RecordKind::Cursor, _) => self.cursors && !is_planted(Bug::ForgetStates),
            (RecordKind::Frame, Some(dead)) => {
                let offset = base.saturating_add(u64::from(prefix.offset_delta));
                let frame = FrameRef::of_checked(record, prefix, offset);
                !frame.is_ok_and(|frame| dead.has(self.inner, &frame))
            }
            _ => true,
        }
    }
}

fn read_batches<E: From<ReadError>>(
    segment: &Segment,
    range: Range<u64>,
    go_on: &impl Fn(u64) -> Result<(), E>,
    counts: &mut Counts<'_>,
    take: &mut impl FnMut(&BlobHash) -> Result<(), E>,
) -> Result<(), E> {
    let mut position = range.start;
    let mut window = Bytes::new();
    while position < range.end {
        let header = BatchHeader::read(&window).ok().filter(|h| h.salt == segment.salt());
        let whole = header.as_ref().map(|h| BATCH_HEADER_LEN + h.length as usize);
        let there = header.zip(whole).filter(|&(_, len)| len <= window.len());
        let Some((header, len)) = there else {
            // Not in the window yet; or, if the window began here already, missing.
            let want = whole.map_or(WINDOW, |len| (len as u64).max(WINDOW));
            let to = (position + want).min(range.end);
            if window.len() as u64 >= to - position {
                if is_planted(Bug::SweepOverDamage) {
                    return Ok(());
                }
                return Err(damaged(segment, position, "no batch begins here").into());
            }
            window = segment.bytes(position..to)?;
            go_on(to - position)?;
            continue;
        };
        let batch = window.split_to(len);
        let records = &batch[BATCH_HEADER_LEN..];
        read_records(segment, (position, header.base_offset), records, counts, take)?;
        position += len as u64;
    }
    Ok(())
}

fn read_records<E: From<ReadError>>(
    segment: &Segment,
    (batch, base): (u64, u64),
    mut records: &[u8],
    counts: &mut Counts<'_>,
    take: &mut impl FnMut(&BlobHash) -> Result<(), E>,
) -> Result<(), E> {
    while !records.is_empty() {
        let checked = RecordPrefix::read(records).and_then(|prefix| {
            let record = records.get(..prefix.len as usize).unwrap_or_default();
            RecordPrefix::check(record).map(|prefix| (prefix, record))
        });
        if checked.is_err() && is_planted(Bug::SweepOverDamage) {
            return Ok(());
        }
        let (prefix, record) = checked.map_err(|error| damaged(segment, batch, error))?;
        if let Some(hash) = named_blob(record, &prefix)
            && counts.takes((batch, base), &prefix, record)
        {
            take(&hash)?;
        }
        records = records.get(prefix.stride()..).unwrap_or_default();
    }
    Ok(())
}

fn damaged(segment: &Segment, position: u64, what: impl std::fmt::Display) -> ReadError {
    Corruption::new(segment.path(), position, what).into()
}
