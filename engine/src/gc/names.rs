//! Reading which blobs the log names, from where it was read last. Everything that is still in the
//! files counts, whether a reader would see it or not: a frame that is expired or removed names its
//! body until compaction has taken it out, unless it is just being removed for good.

use std::collections::HashSet;
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

/// Bytes of a segment taken at a time, but at least a whole batch.
const WINDOW: u64 = 1024 * 1024;
/// Of so many of the newest segments every cursor record counts, of older ones only what is
/// current. A power cut can take what is unsynced, two segments at most, and opening then goes back
/// to the checkpoint in the one before: all that it can find is in these.
const CURSOR_SEGMENTS: usize = 3;

/// Reads names, each time those that came since.
#[derive(Debug, Default)]
pub(super) struct Names {
    began: bool,
    /// The segment that was read last, by base and uuid, and how far.
    last: (u64, [u8; 16]),
    position: u64,
    /// Offsets of frames that do not count.
    but_of: HashSet<u64>,
}

impl Names {
    /// Reads all names but those of the frames with these offsets.
    pub(super) fn but_of(offsets: &[u64]) -> Self {
        Self { but_of: offsets.iter().copied().collect(), ..Self::default() }
    }

    /// Tells `take` of each name since the last call, some more than once. Asks before each segment
    /// whether it may go on.
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
            let counts = Counts { cursors, but_of: &self.but_of };
            read_batches(segment, from..upto, &counts, &mut take)?;
            (self.began, self.last, self.position) = (true, place, upto.max(from));
        }
        Ok(())
    }
}

/// What counts of a segment.
struct Counts<'a> {
    cursors: bool,
    but_of: &'a HashSet<u64>,
}

impl Counts<'_> {
    fn takes(&self, batch: &BatchHeader, prefix: &RecordPrefix) -> bool {
        let offset = || batch.base_offset.checked_add(u64::from(prefix.offset_delta));
        match prefix.kind {
            RecordKind::Cursor => self.cursors && !is_planted(Bug::ForgetStates),
            RecordKind::Frame => !offset().is_some_and(|offset| self.but_of.contains(&offset)),
            _ => true,
        }
    }
}

fn read_batches<E: From<ReadError>>(
    segment: &Segment,
    range: Range<u64>,
    counts: &Counts<'_>,
    take: &mut impl FnMut(&BlobHash) -> Result<(), E>,
) -> Result<(), E> {
    let mut position = range.start;
    let mut window = Bytes::new();
    while position < range.end {
        let header = BatchHeader::read(&window).ok().filter(|h| h.salt == segment.salt());
        let whole = header.as_ref().map(|h| BATCH_HEADER_LEN + h.length as usize);
        let there = header.zip(whole).filter(|&(_, len)| len <= window.len());
        let Some((header, len)) = there else {
            // Not there yet, or not there at all when the window began here already.
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
        let records = &batch[BATCH_HEADER_LEN..];
        read_records(segment, position, records, |prefix| counts.takes(&header, prefix), take)?;
        position += len as u64;
    }
    Ok(())
}

fn read_records<E: From<ReadError>>(
    segment: &Segment,
    batch: u64,
    mut records: &[u8],
    counts: impl Fn(&RecordPrefix) -> bool,
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
        if let Some(hash) = named_blob(record, &prefix).filter(|_| counts(&prefix)) {
            take(&hash)?;
        }
        records = records.get(prefix.stride()..).unwrap_or_default();
    }
    Ok(())
}

fn damaged(segment: &Segment, position: u64, what: impl std::fmt::Display) -> ReadError {
    Corruption::new(segment.path(), position, what).into()
}
