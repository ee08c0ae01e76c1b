//! Reads which blobs the log names, incrementally. Everything that is still in the files counts,
//! visible or not: an expired or removed frame names its body until it is compacted away.

use std::ops::Range;

use bytes::Bytes;

use crate::cursors::HeldState;
use crate::error::{Corruption, ReadError};
use crate::format::batch::{BATCH_HEADER_LEN, BatchHeader};
use crate::format::control::named_blob;
use crate::format::file::FILE_HEADER_LEN;
use crate::format::record::{RecordKind, RecordPrefix};
use crate::log::Segment;
use crate::planted::{Bug, is_planted};
use crate::store::Inner;
use crate::value::BlobHash;

/// Bytes of a segment read at a time, but at least a whole batch.
const WINDOW: u64 = 1024 * 1024;
/// In this many of the newest segments every cursor record counts, in older ones only the current
/// ones. A power cut can take what is unsynced, two segments at most, and opening then starts from
/// the checkpoint in the segment before: all cursor records that it can find are in these segments.
const CURSOR_SEGMENTS: usize = 3;

/// Reads names; each call reads those added since the last.
#[derive(Debug, Default)]
pub(super) struct Names {
    began: bool,
    /// The last segment read, by base and uuid, and how far.
    last: (u64, [u8; 16]),
    position: u64,
}

impl Names {
    /// Calls `take` with each name added since the last call, some more than once. Calls `go_on`
    /// before each segment, which may end it.
    pub(super) fn read<E: From<ReadError>>(
        &mut self,
        inner: &Inner,
        go_on: impl Fn() -> Result<(), E>,
        mut take: impl FnMut(&BlobHash) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.began && is_planted(Bug::ForgetLateNames) {
            return Ok(());
        }
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
        let segments = inner.log.view().segments;
        for (n, segment) in segments.iter().enumerate() {
            let place = (segment.base(), segment.uuid());
            if self.began && place.0 < self.last.0 {
                continue;
            }
            go_on()?;
            let from = match self.began && place == self.last {
                true => self.position,
                false => FILE_HEADER_LEN as u64,
            };
            let upto = segment.published_len();
            let cursors = n + CURSOR_SEGMENTS >= segments.len();
            read_batches(segment, from..upto, cursors, &mut take)?;
            (self.began, self.last, self.position) = (true, place, upto.max(from));
        }
        Ok(())
    }
}

fn read_batches<E: From<ReadError>>(
    segment: &Segment,
    range: Range<u64>,
    cursors: bool,
    take: &mut impl FnMut(&BlobHash) -> Result<(), E>,
) -> Result<(), E> {
    let mut position = range.start;
    let mut window = Bytes::new();
    while position < range.end {
        let header = BatchHeader::read(&window).ok().filter(|h| h.salt == segment.salt());
        let whole = header.as_ref().map(|h| BATCH_HEADER_LEN + h.length as usize);
        let Some(len) = whole.filter(|&len| len <= window.len()) else {
            // Not in the window; or, if the window began here already, not there at all.
            let want = whole.map_or(WINDOW, |len| (len as u64).max(WINDOW));
            let to = (position + want).min(range.end);
            if window.len() as u64 >= to - position {
                if is_planted(Bug::SweepOverDamage) {
                    return Ok(());
                }
                return Err(damaged(segment, position, "no batch begins here").into());
            }
            window = segment.bytes(position..to)?;
            continue;
        };
        let batch = window.split_to(len);
        read_records(segment, position, &batch[BATCH_HEADER_LEN..], cursors, take)?;
        position += len as u64;
    }
    Ok(())
}

fn read_records<E: From<ReadError>>(
    segment: &Segment,
    batch: u64,
    mut records: &[u8],
    cursors: bool,
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
        let counts = match prefix.kind {
            RecordKind::Cursor => cursors && !is_planted(Bug::ForgetStates),
            _ => true,
        };
        if let Some(hash) = named_blob(record, &prefix).filter(|_| counts) {
            take(&hash)?;
        }
        records = records.get(prefix.stride()..).unwrap_or_default();
    }
    Ok(())
}

fn damaged(segment: &Segment, position: u64, what: impl std::fmt::Display) -> ReadError {
    Corruption::new(segment.path(), position, what).into()
}
