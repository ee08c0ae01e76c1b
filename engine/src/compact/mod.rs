//! Compaction: reclaims the space of dead frames. Sealed segments are rewritten without them, as
//! the next generation and of exact length, with the offsets and ids of what is kept; small
//! neighbours are merged, and a wholly dead segment is removed.
//!
//! The manifest changes once, after the new file is durable and before an old one is unlinked, so a
//! crash at any step leaves either the old or the new. The active segment is never rewritten; a
//! compaction on request may seal it first.

mod owed;
mod pace;
mod plan;
mod survey;
mod switch;
mod thread;
mod write;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use crate::append::Batch;
use crate::commit::Roll;
use crate::error::{
    AppendError, CompactError, Corruption, ReadError, RemoveNowError, Shortage, Unwritable,
};
use crate::format::file::FILE_HEADER_LEN;
use crate::gc::dead::Unseen;
use crate::index::Candidate;
use crate::limits::SEGMENT_BYTES_MAX;
use crate::log::WriteError;
use crate::options::CompactOptions;
use crate::read::walk::{WINDOW_SCAN, Walk};
use crate::store::{Inner, Store};
use crate::value::{Appended, BlobHash, FrameId};
use pace::Pace;
pub(crate) use thread::Compaction;

/// Maximum tries of a rewrite that races with removals.
const TRIES: usize = 4;

/// Removals per batch, which fit into the smallest segment.
const REMOVES_PER_BATCH: usize = 64;

/// The active segment is sealed for compaction when this part of a full one is dead.
const ROLLED_PART: u64 = 4;

/// What a compaction did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CompactReport {
    /// Segments that were rewritten.
    pub rewritten: u64,
    /// New segments that replaced them.
    pub written: u64,
    /// Frames that were removed for good.
    pub frames: u64,
    /// Bytes of the segments that were rewritten.
    pub bytes_before: u64,
    /// Bytes of the new segments.
    pub bytes_after: u64,
    /// Damage that was met. Damaged segments are left unchanged.
    pub damaged: Vec<Corruption>,
    /// Bodies of permanently removed frames that are kept because another frame or a cursor names
    /// them.
    pub named: Vec<BlobHash>,
}

/// The result of a step of compaction.
type Stopped<T> = Result<T, Stop>;

/// Why segments were not rewritten.
#[derive(Debug)]
enum Stop {
    /// One of them is damaged.
    Damaged(Corruption),
    Unreadable(ReadError),
    Failed(WriteError),
    /// The store is being closed.
    Closing,
    /// A tombstone was appended for a frame that the survey had already left out for another
    /// reason.
    Overtaken,
}

impl From<WriteError> for Stop {
    fn from(error: WriteError) -> Self {
        Self::Failed(error)
    }
}

/// Selects the segments to rewrite.
enum Which<'a> {
    /// Those with this percentage of dead bytes, and small neighbours.
    Dead(u8),
    /// Those that hold a frame at one of these offsets.
    Holding(&'a [u64]),
}

impl Store {
    /// Rewrites the segments that are dead enough. First seals the active one if a quarter of a
    /// full segment is dead in it. Waits for another compaction in progress. After an error, what
    /// was done stays done.
    ///
    /// # Errors
    /// [`CompactError`]; everything readable stays readable.
    pub fn compact(&self, options: CompactOptions) -> Result<CompactReport, CompactError> {
        let inner = &self.inner;
        options.check()?;
        let which = Which::Dead(options.dead_percent);
        let (mut report, mut is_first) = (CompactReport::default(), true);
        loop {
            let _one = inner.compaction.begin_asked();
            // Checked under the lock, which closing the store waits for.
            inner.check_compactable()?;
            let is_dead =
                std::mem::take(&mut is_first) && inner.is_active_dead(options.dead_percent)?;
            let last = inner.secure_log(if is_dead { Roll::ToNew } else { Roll::IfNeeded })?;
            let (done, is_done) = inner.compact(&which, last, options.bytes_per_second)?;
            report.add(done);
            if is_done {
                return Ok(report);
            }
        }
    }

    /// Removes frames, and returns when no byte of them is left in log and journal, nor of their
    /// bodies in the packs unless something else names the same body: the files that held them are
    /// rewritten. A file that a reader still has open keeps its bytes, unlinked, until the reader
    /// is dropped. Frames that were removed before, or have expired, are included, unless a
    /// compaction has removed them already: [`gc`](Self::gc) then removes their bodies.
    ///
    /// # Errors
    /// [`RemoveNowError`]; the frames may be removed while their bytes remain: try again. Where it
    /// was for want of room, the thread that compacts tries again too, until the store is closed
    /// ([`SpaceStats::removals_left`](crate::SpaceStats::removals_left)).
    pub fn remove_now(&self, ids: &[FrameId]) -> Result<CompactReport, RemoveNowError> {
        let remove = || {
            ids.chunks(REMOVES_PER_BATCH).try_for_each(|ids| {
                let removes = ids.to_vec();
                self.append(Batch { removes, durable: true, ..Batch::default() }).map(drop)
            })
        };
        self.remove_now_by(ids, remove).map(|((), report)| report)
    }

    /// Appends a batch durably, and returns when no byte of the frames it removes is left, as with
    /// [`remove_now`](Self::remove_now).
    ///
    /// # Errors
    /// [`RemoveNowError`]; with [`RemoveNowError::Append`] nothing was appended, unless that error
    /// says otherwise. With any other error the frames are removed while their bytes may remain.
    pub fn append_removing_now(
        &self,
        batch: Batch,
    ) -> Result<(Appended, CompactReport), RemoveNowError> {
        let ids = batch.removes.clone();
        self.remove_now_by(&ids, || self.append(Batch { durable: true, ..batch }))
    }

    fn remove_now_by<T>(
        &self,
        ids: &[FrameId],
        remove: impl FnOnce() -> Result<T, AppendError>,
    ) -> Result<(T, CompactReport), RemoveNowError> {
        let inner = &self.inner;
        inner.check_compactable().map_err(AppendError::from)?;
        // Before they are removed: another compaction may remove the frames, but not their bodies.
        let stored = inner.stored_with(ids).map_err(AppendError::Unreadable)?;
        let removed = remove()?;
        let _one = inner.compaction.hold();
        inner.check_compactable().map_err(CompactError::from)?;
        Ok((removed, inner.remove_bytes(&stored)?))
    }
}

impl Inner {
    /// Offsets and bodies of the frames in the log with these ids, removed or not.
    fn stored_with(&self, ids: &[FrameId]) -> Result<Vec<(u64, Option<BlobHash>)>, ReadError> {
        let mut stored = Vec::with_capacity(ids.len());
        for &id in ids {
            for offset in self.stored_offsets(id)? {
                let frame = self.stored_at(offset)?;
                stored.push((offset, frame.and_then(|frame| frame.hash())));
            }
        }
        Ok(stored)
    }

    /// Rewrites the files that hold those of these frames that were removed, and their bodies. The
    /// bodies go first: while the log still has the frames, a retry after an error or a crash finds
    /// out from it which bodies are meant.
    fn rewrite_without(
        &self,
        stored: Vec<(u64, Option<BlobHash>)>,
    ) -> Result<CompactReport, RemoveNowError> {
        let (mut offsets, mut bodies) = (Vec::with_capacity(stored.len()), BTreeSet::new());
        for (offset, body) in stored {
            // Visible frames are kept; before an import several frames could have this id.
            if self.get_at(offset).map_err(CompactError::Unreadable)?.is_none() {
                offsets.push(offset);
                bodies.extend(body);
            }
        }
        if offsets.is_empty() {
            return Ok(CompactReport::default());
        }
        let mut report = CompactReport::default();
        if !bodies.is_empty() {
            // Durable and sealed before: where a log may not be durable, the next open cuts it at a
            // frame whose blob is missing, and a lost removal would bring the frame back.
            self.secure_log_of(&offsets)?;
            self.sync_log_written().map_err(CompactError::from)?;
            report.named = self.drop_blobs(bodies, &offsets)?.into_iter().collect();
        }
        for _ in 0..TRIES {
            let last = self.secure_log_of(&offsets)?;
            report.add(self.compact(&Which::Holding(&offsets), last, None)?.0);
            let mut left = Vec::new();
            for offset in offsets {
                let found = self.stored_at(offset).map_err(CompactError::Unreadable)?;
                left.extend(found.map(|_| offset));
            }
            if left.is_empty() {
                return Ok(report);
            }
            offsets = left;
        }
        Err(RemoveNowError::Left(offsets.len()))
    }

    /// Erases the journal, after its content was applied to log and packs.
    fn wipe_journal(&self) -> Result<(), CompactError> {
        let writer = self.writer.lock();
        if !self.journal.is_there() {
            return Ok(());
        }
        let settled = writer
            .check_not_poisoned(self)
            .and_then(|()| writer.settle(self).map_err(WriteError::Failed));
        settled.map_err(|error| self.poisoned_by(error))?;
        // On a full disk everything is unchanged.
        let wiped = self.journal.wipe(&self.env).map_err(WriteError::when_preparing);
        wiped.map_err(|error| self.poisoned_by(error))
    }

    fn check_compactable(&self) -> Result<(), Unwritable> {
        self.check_healthy()?;
        match self.compaction.is_stopped() {
            true => Err(Unwritable::Closed),
            false => Ok(()),
        }
    }

    /// Whether the active segment is worth compacting: it has dead frames, at least `percent` of
    /// its bytes are dead, and enough of them to be worth a new segment. Other records count as
    /// dead: they are restated elsewhere, or concern frames that go with them.
    fn is_active_dead(&self, percent: u8) -> Result<bool, CompactError> {
        let active = {
            let writer = self.writer.lock();
            writer.appender().active().map(|active| Arc::clone(&active.segment))
        };
        let Some(segment) = active else { return Ok(false) };
        let (len, base) = (segment.published_len(), segment.base());
        let (mut unseen, mut live, mut has_dead) = (Unseen::now(self, 0), 0, false);
        let mut walk = Walk::new(segment, FILE_HEADER_LEN as u64, base, WINDOW_SCAN);
        while let Some(found) = walk.next() {
            // A damaged segment is not rewritten.
            let Ok(frame) = found.and_then(|found| walk.frame(&found)) else { return Ok(false) };
            match unseen.has(self, &frame.borrow()) {
                true => has_dead = true,
                false => live += frame.record().len() as u64,
            }
        }
        let dead = len.saturating_sub(live);
        let is_much = dead >= self.env.options.segment_bytes / ROLLED_PART;
        Ok(has_dead && is_much && dead * 100 >= len * u64::from(percent))
    }

    /// [`Self::secure_log`], sealing the active segment if it holds a frame at one of these
    /// offsets.
    fn secure_log_of(&self, offsets: &[u64]) -> Result<bool, CompactError> {
        let active = {
            let writer = self.writer.lock();
            writer.appender().active().map(|active| active.segment.base())
        };
        let is_meant = active.is_some_and(|base| offsets.iter().any(|&offset| offset >= base));
        self.secure_log(if is_meant { Roll::ToNew } else { Roll::IfNeeded })
    }

    /// Makes sure that opening the store needs nothing of the sealed segments but their frames and
    /// tombstones; returns whether that holds.
    fn secure_log(&self, roll: Roll) -> Result<bool, CompactError> {
        let secured = {
            let mut writer = self.writer.lock();
            if roll == Roll::ToNew {
                self.begin_writing_with(&mut writer)?;
            }
            writer.secure(self, roll)
        };
        let secured = secured.map_err(|error| self.poisoned_by(error))?;
        self.sealing.seal_now(self).map_err(|error| self.poisoned_by(error))?;
        let _indexed = self.sealing.index_sealed(self);
        Ok(secured)
    }

    /// Rewrites segments, the last sealed one only with `last`. The caller holds the lock. Returns
    /// whether everything was done; unless specific frames are meant, it stops early when another
    /// thread waits for the lock.
    fn compact(
        &self,
        which: &Which<'_>,
        last: bool,
        bytes_per_second: Option<u64>,
    ) -> Result<(CompactReport, bool), CompactError> {
        self.index.forget_gone();
        self.space.clear_left(self);
        let mut report = CompactReport::default();
        if self.writer.lock().is_deferred() {
            // The log is not writable yet.
            return Ok((report, true));
        }
        let began = Instant::now();
        // When specific frames are meant, the amount of dead bytes is irrelevant.
        let estimate = matches!(which, Which::Dead(_));
        let mut candidates = self.index.candidates(self.env.clock.now_ms(), estimate);
        self.compaction.note_look(began.elapsed());
        let dead = candidates.iter().map(|of| of.dead).sum::<u64>();
        if !last {
            candidates.pop();
        }
        let mut pace = Pace::new(self, bytes_per_second);
        let (mut full, mut is_done) = (None, true);
        let mut jobs = plan::plan(&candidates, which, self.env.options.segment_bytes).into_iter();
        while let Some(job) = jobs.next() {
            full = self.job(&candidates[job], which, &mut pace, &mut report)?.or(full);
            if estimate && self.compaction.is_wanted() {
                is_done = jobs.len() == 0;
                break;
            }
        }
        self.index.forget_gone();
        if estimate {
            self.space.looked(dead.saturating_sub(report.freed()));
        }
        full.map_or(Ok((report, is_done)), |shortage| Err(CompactError::StorageFull(shortage)))
    }

    /// Rewrites segments that are to become one. Returns the shortage if there was no room for some
    /// of them.
    fn job(
        &self,
        mut left: &[Candidate],
        which: &Which<'_>,
        pace: &mut Pace<'_>,
        report: &mut CompactReport,
    ) -> Result<Option<Shortage>, CompactError> {
        let (mut most, mut full) = (left.len(), None);
        while !left.is_empty() {
            let (some, _) = left.split_at(most.min(left.len()));
            let taken = match self.rewrite(some, which, pace) {
                Ok((done, taken)) => {
                    report.add(done);
                    taken.max(1)
                }
                // There may be room for the remainder of one segment, and then for more.
                Err(Stop::Failed(WriteError::Full(_))) if some.len() > 1 => {
                    most = 1;
                    0
                }
                Err(Stop::Failed(WriteError::Full(shortage))) => {
                    full = Some(shortage);
                    1
                }
                Err(Stop::Damaged(corruption)) => {
                    report.damaged.push(corruption);
                    left.len()
                }
                Err(Stop::Overtaken) => left.len(),
                Err(Stop::Closing) => return Err(CompactError::Closed),
                Err(Stop::Unreadable(error)) => return Err(CompactError::Unreadable(error)),
                Err(Stop::Failed(error)) => return Err(error.into()),
            };
            left = left.get(taken..).unwrap_or_default();
        }
        Ok(full)
    }

    /// Rewrites consecutive segments, as many of the first ones as fit into one; returns how many
    /// it examined.
    fn rewrite(
        &self,
        inputs: &[Candidate],
        which: &Which<'_>,
        pace: &mut Pace<'_>,
    ) -> Stopped<(CompactReport, usize)> {
        let (Some(first), Some(last)) = (inputs.first(), inputs.last()) else {
            return Ok((CompactReport::default(), 0));
        };
        let offsets = first.segment.base()..last.segment.end().max(first.segment.base());
        let longest = inputs.iter().map(|input| input.segment.published_len()).max().unwrap_or(0);
        let limit = self.env.options.segment_bytes.max(longest).min(SEGMENT_BYTES_MAX);
        let mut tries = TRIES;
        loop {
            // Under the writer's lock, so that exactly the tombstones before this batch are
            // included.
            let (purged_seq, marks) = {
                let writer = self.writer.lock();
                (writer.appender().next_seq(), self.index.marks(offsets.clone()))
            };
            let survey = survey::survey(self, inputs, marks, limit, pace)?;
            let now_ms = self.env.clock.now_ms();
            for (input, &stays) in survey.inputs.iter().zip(&survey.stays) {
                self.index.surveyed(input, stays, now_ms);
            }
            let taken = survey.inputs.len();
            if !plan::is_worth_it(&survey, which) {
                return Ok((CompactReport::default(), taken));
            }
            // The reasons for leaving frames out must be durable before the frames are removed.
            self.sync_log_written().map_err(Stop::Failed)?;
            let written = write::write(self, &survey, pace)?;
            match switch::switch(self, &survey, written, purged_seq) {
                Err(Stop::Overtaken) if tries > 1 => tries -= 1,
                done => return done.map(|report| (report, taken)),
            }
        }
    }

    /// Makes everything written so far durable.
    fn sync_log_written(&self) -> Result<(), WriteError> {
        use std::sync::atomic::Ordering;
        let seq = self.writer.lock().appender().next_seq();
        if self.durable_upto.load(Ordering::Acquire) >= seq {
            return Ok(());
        }
        let synced = crate::upkeep::sync_log(self);
        if let Err(WriteError::Failed(error)) = &synced {
            self.poison(error);
        }
        synced
    }

    /// The error of a write after which it is unknown what the disk holds.
    fn poisoned_by(&self, error: WriteError) -> CompactError {
        if let WriteError::Failed(error) = &error {
            self.poison(error);
        }
        error.into()
    }
}

impl From<WriteError> for CompactError {
    /// The error of a write that leaves no doubt: the new file does not count yet.
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Full(shortage) => Self::StorageFull(shortage),
            WriteError::Failed(error) => Self::Io(error.into()),
        }
    }
}

impl CompactReport {
    const fn freed(&self) -> u64 {
        self.bytes_before.saturating_sub(self.bytes_after)
    }

    /// Adds the result of another step. Damage and blobs that both report are listed once.
    fn add(&mut self, done: Self) {
        let Self { rewritten, written, frames, bytes_before, bytes_after, damaged, named } = done;
        self.rewritten += rewritten;
        self.written += written;
        self.frames += frames;
        self.bytes_before += bytes_before;
        self.bytes_after += bytes_after;
        for corruption in damaged {
            if !self.damaged.contains(&corruption) {
                self.damaged.push(corruption);
            }
        }
        for hash in named {
            if !self.named.contains(&hash) {
                self.named.push(hash);
            }
        }
    }
}

#[cfg(test)]
mod tests;
