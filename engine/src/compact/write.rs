//! Writes what a survey keeps into one new segment, in a temporary file that nothing refers to.

use std::sync::Arc;

use super::pace::Pace;
use super::survey::{Survey, walk};
use super::{Stop, Stopped};
use crate::format::batch::{BATCH_HEADER_LEN, BatchHeader, RecordsCrc};
use crate::format::control::{self, Control};
use crate::format::record::{RecordKind, RecordPrefix};
use crate::index::{Noted, Rewriting};
use crate::log::{RESTATED_BYTES, RESTATED_COUNT, Segment, SegmentKey, WriteError};
use crate::media::Media;
use crate::names::{SEGMENT, unfinished};
use crate::planted::{Bug, is_planted};
use crate::read::walk::{FoundRecord, Walk};
use crate::store::Inner;

/// Bytes written at a time.
const PIECE_LEN: usize = 1024 * 1024;

/// A segment that is written and synced, still under its temporary name.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) key: SegmentKey,
    pub(super) length: u64,
    pub(super) crc: u32,
    pub(super) frames: u64,
    pub(super) index: Rewriting,
}

/// Writes what is kept; `None` when that is nothing.
pub(super) fn write(
    inner: &Inner,
    survey: &Survey,
    pace: &mut Pace<'_>,
) -> Stopped<Option<Written>> {
    let (Some(first), false) = (survey.inputs.first(), survey.output_len() == 0) else {
        return Ok(None);
    };
    let env = &inner.env;
    let key = SegmentKey {
        base: first.segment.base(),
        generation: first.segment.generation() + 1,
        uuid: env.random.bytes(),
        salt: env.random.salt(),
    };
    let header = key.header(env.manifest.state().store);
    let len = header.len() as u64 + survey.output_len();
    let path = unfinished(&env.log_path(key.base, key.generation, SEGMENT));
    let media = env.files.create(&path, len, false).map_err(WriteError::when_preparing)?;
    let mut output = Output {
        media,
        key,
        at: 0,
        out: header.to_vec(),
        crc: crc32fast::Hasher::new(),
        prev_crc: 0,
        frames: 0,
        index: Rewriting::new(key.base),
        last: None,
    };
    let written = output.fill(survey, pace);
    match written.and_then(|()| output.finish(&path, inner, len)) {
        Ok(written) => Ok(Some(written)),
        Err(stop) => {
            // Nothing refers to it; the next open would remove it too.
            let _ = env.files.remove(&path);
            Err(stop)
        }
    }
}

struct Output {
    media: Arc<dyn Media>,
    key: SegmentKey,
    /// Bytes written.
    at: u64,
    /// Bytes buffered after them.
    out: Vec<u8>,
    crc: crc32fast::Hasher,
    prev_crc: u32,
    frames: u64,
    index: Rewriting,
    /// The last batch header read, whether its batch is kept or not.
    last: Option<BatchHeader>,
}

/// A batch that is being written.
struct Unfinished {
    header: BatchHeader,
    /// Where it begins in `out`.
    at: usize,
    count: u32,
    crcs: RecordsCrc,
}

impl Output {
    fn fill(&mut self, survey: &Survey, pace: &mut Pace<'_>) -> Stopped<()> {
        for (input, keep) in survey.inputs.iter().zip(&survey.keep) {
            let mut walk = walk(input);
            let mut open: Option<(u64, Unfinished)> = None;
            let (mut number, mut batch) = (0, 0);
            while let Some(found) = walk.next() {
                let found = found?;
                if batch != found.batch {
                    batch = found.batch;
                    self.last = Some(header_of(&input.segment, &walk, &found)?);
                }
                if keep.get(number) {
                    if open.as_ref().is_none_or(|(at, _)| *at != batch) {
                        open.take().into_iter().for_each(|(_, open)| self.close(open));
                        self.write_out(pace)?;
                        open = self.last.map(|header| (batch, self.open(header)));
                    }
                    if let Some((_, open)) = &mut open {
                        self.record(&mut walk, &found, open)?;
                    }
                }
                number += 1;
            }
            open.into_iter().for_each(|(_, open)| self.close(open));
        }
        self.floors(survey)
    }

    fn open(&mut self, header: BatchHeader) -> Unfinished {
        let at = self.out.len();
        self.out.resize(at + BATCH_HEADER_LEN, 0);
        Unfinished { header, at, count: 0, crcs: RecordsCrc::default() }
    }

    /// Copies a record, byte for byte.
    fn record(
        &mut self,
        walk: &mut Walk,
        found: &FoundRecord,
        open: &mut Unfinished,
    ) -> Stopped<()> {
        let position = self.at + self.out.len() as u64;
        if found.prefix.kind == RecordKind::Frame {
            let frame = walk.frame(found)?;
            self.index.frame(&Noted {
                offset: found.offset,
                id: frame.id(),
                topic: frame.topic(),
                batch: place_in(self.at + open.at as u64)?,
                record: place_in(position)?,
                record_len: found.prefix.len,
                body_len: frame.body_len(),
                ttl: frame.ttl(),
            });
            self.frames += 1;
        }
        let record = walk.peek(found);
        let prefix = RecordPrefix::check(record).map_err(|_| walk.damaged(found))?;
        if let Ok(Control::Tombstone(tombstone)) = control::decode(record, &prefix) {
            self.index.tombstone(open.header.seq, &tombstone);
        }
        let end = self.out.len() + prefix.stride();
        self.out.extend_from_slice(record);
        self.out.resize(end, 0);
        open.crcs.add(prefix.crc);
        open.count += 1;
        Ok(())
    }

    /// Completes a batch; the fields that place it in the log are unchanged.
    fn close(&mut self, open: Unfinished) {
        let mut header = BatchHeader {
            length: (self.out.len() - open.at - BATCH_HEADER_LEN) as u32,
            count: open.count,
            salt: self.key.salt,
            records_crc: open.crcs.value(),
            prev_crc: self.prev_crc,
            ..open.header
        };
        let bytes = header.encode();
        self.out[open.at..open.at + BATCH_HEADER_LEN].copy_from_slice(&bytes);
        self.prev_crc = header.header_crc;
    }

    /// Writes the floors, after all frames they hide.
    fn floors(&mut self, survey: &Survey) -> Stopped<()> {
        let Some(last) = self.last.filter(|_| !survey.floors.is_empty()) else { return Ok(()) };
        let header = BatchHeader { base_offset: survey.offsets.end, ..last };
        let mut open = self.open(header);
        for (topic, offset) in &survey.floors {
            let bytes = self.out.len() - open.at;
            if open.count as usize >= RESTATED_COUNT || bytes >= RESTATED_BYTES {
                self.close(open);
                open = self.open(header);
            }
            let floor = Control::Floor { offset: *offset, topic };
            let crc = control::encode(&mut self.out, &floor, false).map_err(|_| {
                Stop::Failed(WriteError::Failed(std::io::ErrorKind::InvalidData.into()))
            })?;
            open.crcs.add(crc);
            open.count += 1;
            self.index.floor(topic, *offset);
        }
        self.close(open);
        Ok(())
    }

    fn write_out(&mut self, pace: &mut Pace<'_>) -> Stopped<()> {
        if self.out.len() >= PIECE_LEN {
            let bytes = self.out.len();
            self.flush()?;
            pace.pass(bytes)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Stopped<()> {
        self.media.write_at(self.at, &self.out).map_err(WriteError::when_preparing)?;
        self.crc.update(&self.out);
        self.at += self.out.len() as u64;
        self.out.clear();
        Ok(())
    }

    fn finish(mut self, path: &std::path::Path, inner: &Inner, len: u64) -> Stopped<Written> {
        self.flush()?;
        if !is_planted(Bug::SkipCompactSync) {
            self.media.sync().map_err(WriteError::when_preparing)?;
        }
        if self.at < len {
            inner.env.files.cut(path, self.at).map_err(WriteError::when_preparing)?;
        }
        let Self { key, at: length, frames, index, crc, .. } = self;
        Ok(Written { key, length, crc: crc.finalize(), frames, index })
    }
}

/// A position in the file as the index keeps it. Segments are short enough to fit.
fn place_in(at: u64) -> Stopped<u32> {
    let too_far = |_| Stop::Failed(WriteError::Failed(std::io::ErrorKind::FileTooLarge.into()));
    u32::try_from(at).map_err(too_far)
}

/// The header of the batch that a record was found in.
fn header_of(segment: &Segment, walk: &Walk, found: &FoundRecord) -> Stopped<BatchHeader> {
    let bytes = segment.bytes(found.batch..found.batch + BATCH_HEADER_LEN as u64)?;
    BatchHeader::read(&bytes).map_err(|_| Stop::from(walk.damaged(found)))
}
