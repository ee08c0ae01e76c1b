//! Writes segments of a store that is being repaired: the records are those that were found, in new
//! batches.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::survey::{SoundRecord, Stretch};
use crate::env::Env;
use crate::format::align8;
use crate::format::batch::{BATCH_HEADER_LEN, BatchHeader, RecordsCrc};
use crate::format::control::{self, Checkpoint, Control};
use crate::format::file::FILE_HEADER_LEN;
use crate::format::record::{FLAG_RESTATED, PREFIX_LEN, RecordKind};
use crate::format::super_file::{FileEntry, FileState};
use crate::limits::{FINDINGS_MAX, SEGMENT_BYTES_MAX};
use crate::log::{Active, Appender, Segment, SegmentKey, unmarked};
use crate::media::Media;
use crate::names::SEGMENT;
use crate::recovery::replay::Tables;
use crate::recovery::scan::{Kinds, WholeBatch};
use crate::value::CursorName;

/// Bytes collected before they are written.
const BUFFER_LEN: usize = 1024 * 1024;
/// No segment can hold more frames than this.
const SEGMENT_FRAMES_MAX: u64 = SEGMENT_BYTES_MAX / PREFIX_LEN as u64;

/// State carried from segment to segment.
#[derive(Debug, Default)]
pub(super) struct Chain {
    /// Seq of the next batch.
    pub(super) next_seq: u64,
    /// Frames with a lower offset are written.
    pub(super) next_offset: u64,
    pub(super) epoch: u64,
    pub(super) tables: Tables,
    /// Offsets below the next one that no frame has.
    holes: Vec<Range<u64>>,
    /// Frames with a lower offset existed in the old log, saved or not.
    reached: u64,
}

impl Chain {
    /// Whether a tombstone still has a frame to hide.
    fn holds(&self, offset: u64) -> bool {
        let behind = self.holes.partition_point(|hole| hole.end <= offset);
        let in_hole = self.holes.get(behind).is_some_and(|hole| hole.start <= offset);
        offset < self.next_offset && !in_hole
    }

    /// Advances past a frame.
    fn pass(&mut self, offset: u64) {
        if offset > self.next_offset {
            self.holes.push(self.next_offset..offset);
        }
        self.next_offset = offset + 1;
    }

    /// Notes evidence that the old log reached this offset.
    pub(super) fn reach(&mut self, offset: u64) {
        self.reached = self.reached.max(offset);
    }

    /// Ends the log where the old one ended, as far as known: readers that have seen its last
    /// frames, for example through a saved cursor, must not get new frames at those offsets.
    pub(super) fn end(&mut self) {
        let told = self.reached.max(self.next_offset);
        // A cursor can hold any number. One that was saved by a reader that had come there is less
        // than a segment's frames away from the base of its segment, and that base was noted as
        // reached. One that is farther away proves nothing.
        let near = |&offset: &u64| offset <= told.saturating_add(SEGMENT_FRAMES_MAX);
        let cursors = self.tables.cursors.iter().map(|(_, held)| held.offset);
        let end = cursors.filter(near).max().unwrap_or_default().max(told);
        if end > self.next_offset {
            self.holes.push(self.next_offset..end);
            self.next_offset = end;
        }
    }
}

impl Chain {
    /// The cursors above the end of the log, in order, as many as may be reported.
    pub(super) fn cursors_ahead(&self) -> Vec<CursorName> {
        let ahead = self.tables.cursors.iter().filter(|(_, held)| held.offset > self.next_offset);
        let mut names: Vec<_> = ahead.map(|(name, _)| name.clone()).collect();
        names.sort_unstable();
        names.truncate(FINDINGS_MAX);
        names
    }
}

/// A segment being written.
pub(super) struct SegmentWriter {
    env: Arc<Env>,
    key: SegmentKey,
    path: PathBuf,
    media: Arc<dyn Media>,
    buffer: Vec<u8>,
    written: u64,
    crc: crc32fast::Hasher,
    prev_crc: u32,
    frames: u64,
    tombstones: bool,
}

impl SegmentWriter {
    /// Starts a segment of at most `len_max` bytes.
    pub(super) fn create(env: &Arc<Env>, base: u64, len_max: u64) -> io::Result<Self> {
        let (uuid, salt) = (env.random.bytes(), env.random.salt());
        let key = SegmentKey { base, generation: 0, uuid, salt };
        let path = env.log_path(base, 0, SEGMENT);
        // A file that is truncated within the padding of a record has that record whole.
        let len_max = len_max.max(FILE_HEADER_LEN as u64).next_multiple_of(8);
        let media = env.files.create(&path, len_max, false)?;
        Ok(Self {
            env: Arc::clone(env),
            path,
            media,
            buffer: key.header(env.manifest.state().store).to_vec(),
            key,
            written: 0,
            crc: crc32fast::Hasher::new(),
            prev_crc: 0,
            frames: 0,
            tombstones: false,
        })
    }

    /// Writes the new records of a stretch as one batch. Returns the number of frames kept.
    pub(super) fn add(&mut self, stretch: &Stretch, chain: &mut Chain) -> io::Result<u64> {
        // Without a header this is a guess, but never too high.
        chain.reach(stretch.base);
        let at = self.buffer.len();
        self.buffer.resize(at + BATCH_HEADER_LEN, 0);
        let (mut crcs, mut count, mut frames) = (RecordsCrc::default(), 0, 0);
        for record in &stretch.records {
            match record.prefix.kind {
                RecordKind::Frame => {
                    let delta = u64::from(record.prefix.offset_delta);
                    let offset = stretch.base.saturating_add(delta);
                    if offset < chain.next_offset {
                        continue;
                    }
                    chain.pass(offset);
                    frames += 1;
                }
                RecordKind::Tombstone => match tombstone_of(record) {
                    Some(offset) if chain.holds(offset) => self.tombstones = true,
                    // The frame it removed no longer exists.
                    _ => continue,
                },
                RecordKind::Checkpoint => {
                    let told = checkpoint_of(record).map(|checkpoint| checkpoint.next_offset);
                    chain.reach(told.unwrap_or_default());
                }
                _ => {}
            }
            crcs.add(self.record(record, chain.next_seq));
            count += 1;
        }
        if count == 0 {
            self.buffer.truncate(at);
            return Ok(0);
        }
        chain.epoch = stretch.header.map_or(chain.epoch, |header| header.epoch);
        let mut header = BatchHeader {
            header_crc: 0,
            length: (self.buffer.len() - at - BATCH_HEADER_LEN) as u32,
            count,
            base_offset: stretch.base,
            epoch: chain.epoch,
            durable_upto: chain.next_seq,
            salt: self.key.salt,
            records_crc: crcs.value(),
            seq: chain.next_seq,
            prev_crc: self.prev_crc,
        };
        self.buffer[at..at + BATCH_HEADER_LEN].copy_from_slice(&header.encode());
        self.prev_crc = header.header_crc;
        chain.next_seq += 1;
        let records = Bytes::copy_from_slice(&self.buffer[at + BATCH_HEADER_LEN..]);
        let (position, kinds) = (self.written + at as u64, Kinds::of(&records));
        chain.tables.take(&WholeBatch { header, position, records, kinds });
        self.frames += frames;
        if self.buffer.len() >= BUFFER_LEN {
            self.flush()?;
        }
        Ok(frames)
    }

    /// Appends a record unchanged, except for the seq in a checkpoint. Returns its CRC.
    fn record(&mut self, record: &SoundRecord, next_seq: u64) -> u32 {
        if let Some(checkpoint) = checkpoint_of(record) {
            let at = self.buffer.len();
            let restated = record.prefix.flags & FLAG_RESTATED != 0;
            let again = Control::Checkpoint(Checkpoint { next_seq, ..checkpoint });
            match control::encode(&mut self.buffer, &again, restated) {
                Ok(crc) => return crc,
                Err(_) => self.buffer.truncate(at),
            }
        }
        let at = self.buffer.len();
        self.buffer.extend_from_slice(&record.bytes);
        self.buffer.resize(at + align8(record.bytes.len()), 0);
        record.prefix.crc
    }

    fn flush(&mut self) -> io::Result<()> {
        self.media.write_at(self.written, &self.buffer)?;
        self.crc.update(&self.buffer);
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Truncates the segment after its last batch. A segment with neither frames nor tombstones is
    /// removed: the last segment restates whatever else it held.
    pub(super) fn finish(mut self, chain: &mut Chain) -> io::Result<Option<FileEntry>> {
        if self.frames == 0 && !self.tombstones {
            self.env.files.remove(&self.path)?;
            return Ok(None);
        }
        if self.frames == 0 {
            // Segments differ in their base: it takes an offset that no frame has.
            chain.pass(self.key.base);
        }
        let span = chain.next_offset.saturating_sub(self.key.base);
        let gone = u32::try_from(span.saturating_sub(self.frames)).unwrap_or(u32::MAX);
        self.flush()?;
        self.media.sync()?;
        drop(self.media);
        self.env.files.cut(&self.path, self.written)?;
        Ok(Some(FileEntry {
            state: FileState::Sealed,
            length: self.written,
            crc: self.crc.finalize(),
            count: self.frames,
            gone,
            ..unmarked(&self.key)
        }))
    }
}

fn tombstone_of(record: &SoundRecord) -> Option<u64> {
    match control::decode(&record.bytes, &record.prefix) {
        Ok(Control::Tombstone(tombstone)) => Some(tombstone.offset),
        Ok(_) | Err(_) => None,
    }
}

fn checkpoint_of(record: &SoundRecord) -> Option<Checkpoint> {
    if record.prefix.kind != RecordKind::Checkpoint {
        return None;
    }
    match control::decode(&record.bytes, &record.prefix) {
        Ok(Control::Checkpoint(checkpoint)) => Some(checkpoint),
        Ok(_) | Err(_) => None,
    }
}

/// Writes the last segment: it holds no frame and restates the tables, so that opening needs
/// nothing that may have been damaged.
pub(super) fn last_segment(env: &Arc<Env>, chain: &Chain) -> io::Result<FileEntry> {
    let (uuid, salt) = (env.random.bytes(), env.random.salt());
    let key = SegmentKey { base: chain.next_offset, generation: 0, uuid, salt };
    let path = env.log_path(key.base, 0, SEGMENT);
    let mut cursors: Vec<_> = chain.tables.cursors.iter().collect();
    cursors.sort_unstable_by(|a, b| a.0.cmp(b.0));
    // An upper bound: a batch header for each record, twice.
    let room = chain.tables.cursors.restated_bytes() + (cursors.len() + 4) * BATCH_HEADER_LEN * 2;
    let media = env.files.create(&path, (FILE_HEADER_LEN + room) as u64, false)?;
    let header = key.header(env.manifest.state().store);
    media.write_at(0, &header)?;
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header);
    let segment = Arc::new(Segment::active(key, path.clone(), Arc::clone(&media)));
    let flushed = FILE_HEADER_LEN as u64;
    let active = Active {
        segment,
        media: Arc::clone(&media),
        flushed,
        prev_crc: 0,
        crc,
        frames: 0,
        bare: true,
        tombstones: false,
    };
    let mut appender = Appender::new(Some(active), chain.next_seq, chain.next_offset, chain.epoch);
    let last_id = chain.tables.last_id.unwrap_or(crate::value::FrameId::ZERO);
    appender.checkpoint((last_id, chain.tables.has_old_ids), &cursors, chain.next_seq);
    let length = flushed + appender.flush()?;
    media.sync()?;
    drop((appender, media));
    env.files.cut(&path, length)?;
    Ok(FileEntry { length, ..unmarked(&key) })
}
