//! The writing end of the log: batches are laid out in memory, written once per group, and
//! published by the commit once the policy allows it. One thread at a time holds it.

use std::io;
use std::sync::Arc;

use super::sealing::{SealJob, WriteError};
use super::{Segment, SegmentKey};
use crate::cursors::HeldCursor;
use crate::format::batch::{BATCH_HEADER_LEN, BatchHeader, RecordsCrc};
use crate::format::control::{self, Checkpoint, Control};
use crate::format::file::FILE_HEADER_LEN;
use crate::format::super_file::{FileEntry, FileKind, FileState};
use crate::limits::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX};
use crate::media::Media;
use crate::names::SEGMENT;
use crate::planted::{Bug, is_planted};
use crate::store::Inner;
use crate::value::{CursorName, FrameId};

/// Maximum records and bytes of a restated table in one batch; below the limits of a batch, because
/// the checkpoint record comes on top.
pub(crate) const RESTATED_COUNT: usize = BATCH_RECORDS_MAX - 1;
pub(crate) const RESTATED_BYTES: usize = BATCH_BYTES_MAX / 2;

/// The writing end of the log.
#[derive(Debug)]
pub(crate) struct Appender {
    active: Option<Active>,
    /// The segment this group rolled away from, with the seq of the first batch after it. It is
    /// sealed once the group is published.
    rolled: Option<(Active, u64)>,
    next_seq: u64,
    next_offset: u64,
    epoch: u64,
    /// Bytes laid out and not yet written: they follow `flushed` of the active segment.
    buf: Vec<u8>,
}

/// A segment that is written to.
#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) segment: Arc<Segment>,
    pub(crate) media: Arc<dyn Media>,
    /// End of the bytes written so far.
    pub(crate) flushed: u64,
    /// CRC of the newest batch header, 0 if there is none.
    pub(crate) prev_crc: u32,
    /// CRC of the file up to `flushed`.
    pub(crate) crc: crc32fast::Hasher,
    /// Frames in it.
    pub(crate) frames: u64,
    /// It holds tombstones, so it is kept even without a frame.
    pub(crate) tombstones: bool,
    /// It does not yet begin with a complete checkpoint.
    pub(crate) bare: bool,
}

/// A batch being laid out.
#[derive(Debug)]
pub(crate) struct OpenBatch {
    at: usize,
    count: u32,
    frames: u32,
    crcs: RecordsCrc,
}

/// The location of a batch.
#[derive(Debug, Clone)]
pub(crate) struct BatchAt {
    pub(crate) segment: Arc<Segment>,
    /// Position of its header in the file.
    pub(crate) position: u64,
    /// Its number.
    pub(crate) seq: u64,
    /// The offset after its frames.
    pub(crate) next_offset: u64,
}

impl OpenBatch {
    /// Frames in it so far.
    pub(crate) const fn frames(&self) -> u32 {
        self.frames
    }
}

impl Appender {
    pub(crate) fn new(active: Option<Active>, next_seq: u64, next_offset: u64, epoch: u64) -> Self {
        Self { active, rolled: None, next_seq, next_offset, epoch, buf: Vec::new() }
    }

    /// Continues in a segment that became writable only now.
    pub(crate) fn adopt(&mut self, active: Option<Active>) {
        self.active = active;
    }

    pub(crate) const fn next_seq(&self) -> u64 {
        self.next_seq
    }

    pub(crate) const fn next_offset(&self) -> u64 {
        self.next_offset
    }

    pub(crate) const fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) const fn active(&self) -> Option<&Active> {
        self.active.as_ref()
    }

    /// Whether the group has rolled once; it must be published before it rolls again.
    pub(crate) const fn has_rolled(&self) -> bool {
        self.rolled.is_some()
    }

    /// Whether a batch with `len` bytes of records fits into the active segment.
    pub(crate) fn has_room(&self, len: usize) -> bool {
        self.active.as_ref().is_some_and(|active| self.end_with(active, len) <= active.media.len())
    }

    /// Allocates space for a batch that fits.
    pub(crate) fn reserve(&self, len: usize) -> io::Result<()> {
        match &self.active {
            Some(active) => active.media.reserve(self.end_with(active, len)),
            None => Ok(()),
        }
    }

    /// Where a batch with `len` bytes of records would end.
    fn end_with(&self, active: &Active, len: usize) -> u64 {
        active.flushed + (self.buf.len() + BATCH_HEADER_LEN + len) as u64
    }

    /// Whether the next batch must be a checkpoint.
    pub(crate) fn is_bare(&self) -> bool {
        self.active.as_ref().is_some_and(|active| active.bare)
    }

    /// How full the active segment is, in percent.
    pub(crate) fn fill_percent(&self) -> u64 {
        self.active.as_ref().map_or(0, |active| active.flushed * 100 / active.media.len().max(1))
    }

    /// Begins a batch. The caller has made sure that it fits.
    pub(crate) fn begin(&mut self) -> OpenBatch {
        let at = self.buf.len();
        self.buf.resize(at + BATCH_HEADER_LEN, 0);
        OpenBatch { at, count: 0, frames: 0, crcs: RecordsCrc::default() }
    }

    /// Appends a record. `encode` gets the offset delta of the next frame and returns the record's
    /// CRC.
    pub(crate) fn record<E>(
        &mut self,
        open: &mut OpenBatch,
        is_frame: bool,
        encode: impl FnOnce(&mut Vec<u8>, u32) -> Result<u32, E>,
    ) -> Result<(), E> {
        let crc = encode(&mut self.buf, open.frames)?;
        open.crcs.add(crc);
        open.count += 1;
        open.frames += u32::from(is_frame);
        Ok(())
    }

    /// Notes that a tombstone was laid out.
    pub(crate) fn note_tombstone(&mut self) {
        if let Some(active) = &mut self.active {
            active.tombstones = true;
        }
    }

    /// Discards a batch that could not be laid out.
    pub(crate) fn abandon(&mut self, open: &OpenBatch) {
        self.buf.truncate(open.at);
    }

    /// Completes a batch with its header. Every batch with a seq below `durable_upto` is durable.
    pub(crate) fn finish(&mut self, open: &OpenBatch, durable_upto: u64) -> BatchAt {
        let active = self.active.as_mut().expect("a batch is begun only in an active segment");
        let mut header = BatchHeader {
            header_crc: 0,
            length: (self.buf.len() - open.at - BATCH_HEADER_LEN) as u32,
            count: open.count,
            base_offset: self.next_offset,
            epoch: self.epoch,
            durable_upto,
            salt: active.segment.salt(),
            records_crc: open.crcs.value(),
            seq: self.next_seq,
            prev_crc: active.prev_crc,
        };
        self.buf[open.at..open.at + BATCH_HEADER_LEN].copy_from_slice(&header.encode());
        active.prev_crc = header.header_crc;
        active.frames += u64::from(open.frames);
        let at = BatchAt {
            segment: Arc::clone(&active.segment),
            position: active.flushed + open.at as u64,
            seq: self.next_seq,
            next_offset: self.next_offset + u64::from(open.frames),
        };
        self.next_seq += 1;
        self.next_offset = at.next_offset;
        at
    }

    /// Whether something is laid out or rolled and not yet published.
    pub(crate) fn is_ahead(&self) -> bool {
        !self.buf.is_empty() || self.rolled.is_some()
    }

    /// The bytes laid out, with their segment and position.
    pub(crate) fn laid_out(&self) -> Option<(&Segment, u64, &[u8])> {
        let active = self.active.as_ref().filter(|_| !self.buf.is_empty())?;
        Some((&active.segment, active.flushed, &self.buf))
    }

    /// Writes what was laid out, and returns the number of bytes.
    pub(crate) fn flush(&mut self) -> io::Result<u64> {
        let Some(active) = &mut self.active else { return Ok(0) };
        let bytes = self.buf.len() as u64;
        if bytes == 0 {
            return Ok(0);
        }
        active.media.write_at(active.flushed, &self.buf)?;
        active.flushed += bytes;
        active.crc.update(&self.buf);
        self.buf.clear();
        Ok(bytes)
    }

    /// Files whose bytes may not be durable, except those that are being sealed.
    pub(crate) fn media(&self) -> impl Iterator<Item = &Arc<dyn Media>> {
        let rolled = self.rolled.iter().map(|(active, _)| active);
        rolled.chain(&self.active).map(|active| &active.media)
    }

    /// Makes everything written readable. The caller knows that the policy allows it.
    pub(crate) fn publish(&mut self, inner: &Inner) {
        let rolled = self.rolled.iter().map(|(active, _)| active);
        for active in rolled.chain(&self.active) {
            active.media.publish(active.flushed);
        }
        // After the bytes: a reader that sees the head may read every frame below it.
        inner.log.publish(self.next_offset);
    }

    /// The segment the published group rolled away from, to be sealed.
    pub(crate) fn take_rolled(&mut self) -> Option<SealJob> {
        let (rolled, upto_seq) = self.rolled.take()?;
        let Active { segment, media, flushed, crc, frames, tombstones, .. } = rolled;
        let next = self.active.as_ref().map(|active| Arc::clone(&active.media))?;
        let crc = crc.finalize();
        let length = flushed;
        Some(SealJob { segment, media, next, length, crc, frames, tombstones, upto_seq })
    }

    /// Rolls to a new segment with space for its checkpoint, of at most `checkpoint` bytes, and
    /// `needed` bytes of records. So a segment is never published without a checkpoint, and the one
    /// before it may then be dropped. The new segment is durably part of the store before it is
    /// used. Until then nothing has changed, including what was laid out, so a full disk does no
    /// harm.
    pub(crate) fn roll(
        &mut self,
        inner: &Inner,
        checkpoint: usize,
        needed: usize,
    ) -> Result<(), WriteError> {
        inner.sealing.seal_now(inner)?;
        inner.sealing.index_excess(inner);
        let env = &inner.env;
        // Segments that are kept differ in their base. One that holds tombstones and no frame is
        // kept, and takes an offset that no frame ever has.
        let takes_one =
            |active: &Active| active.tombstones && active.segment.base() == self.next_offset;
        let base = self.next_offset + u64::from(self.active.as_ref().is_some_and(takes_one));
        // A segment with neither has the same base: it is dropped once this one restates its
        // tables, and until then the generation distinguishes the two.
        let generation = match &self.active {
            Some(active) if active.segment.base() == base => active.segment.generation() + 1,
            _ => 0,
        };
        let key =
            SegmentKey { base, generation, uuid: env.random.bytes(), salt: env.random.salt() };
        let upto = (FILE_HEADER_LEN + checkpoint + BATCH_HEADER_LEN + needed) as u64;
        let media = inner.sealing.take_spare(inner, checkpoint, upto)?;
        let path = env.log_path(base, generation, SEGMENT);
        let header = key.header(env.manifest.state().store);
        media.write_at(0, &header).and_then(|()| media.sync()).map_err(WriteError::Failed)?;
        let named = || {
            env.files.rename(media.path(), &path)?;
            if !is_planted(Bug::SkipDirSync) {
                env.files.sync_dir(&env.log_dir())?;
            }
            env.manifest.update(|state| state.files.push(unmarked(&key)))
        };
        if let Err(error) = named() {
            let error = WriteError::when_preparing(error);
            if matches!(error, WriteError::Full(_)) {
                // The manifest does not name it: without this its space would be lost until the
                // next open.
                let _ = env.files.remove(media.path()).and_then(|()| env.files.remove(&path));
            }
            return Err(error);
        }
        // Only now: a group that stays in the old segment is written, and synced, as a whole.
        inner.blobs.flush().and_then(|()| self.flush()).map_err(WriteError::Failed)?;
        self.next_offset = base;
        media.publish(FILE_HEADER_LEN as u64);
        let segment = Arc::new(Segment::active(key, path, Arc::clone(&media)));
        inner.log.push(Arc::clone(&segment));
        let mut crc = crc32fast::Hasher::new();
        crc.update(&header);
        let flushed = FILE_HEADER_LEN as u64;
        let active = Active {
            segment,
            media,
            flushed,
            prev_crc: 0,
            crc,
            frames: 0,
            tombstones: false,
            bare: true,
        };
        let next_seq = self.next_seq;
        self.rolled = self.active.replace(active).map(|rolled| (rolled, next_seq));
        Ok(())
    }

    /// Restates the tables at the beginning of a segment, so that opening needs nothing before it.
    pub(crate) fn checkpoint(
        &mut self,
        (last_id, has_old_ids): (FrameId, bool),
        cursors: &[(&CursorName, &HeldCursor)],
        durable_upto: u64,
    ) {
        let mut open = self.begin();
        let checkpoint = Control::Checkpoint(Checkpoint {
            count: cursors.len() as u64,
            next_offset: self.next_offset,
            next_seq: self.next_seq,
            last_id,
            has_old_ids,
        });
        self.restate(&mut open, &checkpoint);
        for (name, held) in cursors {
            let bytes = self.buf.len() - open.at;
            if open.count as usize > RESTATED_COUNT || bytes > RESTATED_BYTES {
                self.finish(&open, durable_upto);
                open = self.begin();
            }
            self.restate(&mut open, &held.record(name));
        }
        self.finish(&open, durable_upto);
        if let Some(active) = &mut self.active {
            active.bare = false;
        }
    }

    fn restate(&mut self, open: &mut OpenBatch, record: &Control<'_>) {
        self.record(open, false, |out, _| control::encode(out, record, true))
            .expect("what the table holds was a record before");
    }
}

/// The manifest's entry of a new segment.
pub(crate) fn unmarked(key: &SegmentKey) -> FileEntry {
    FileEntry {
        kind: FileKind::Segment,
        state: FileState::Unmarked,
        generation: key.generation,
        base: key.base,
        uuid: key.uuid,
        length: 0,
        crc: 0,
        count: 0,
        newest_ms: 0,
        gone: 0,
        purged_seq: 0,
    }
}
