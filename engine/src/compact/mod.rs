//! Compaction: gives back the space of frames that are gone. Sealed segments are written anew
//! without them, as the next generation and of exact length, with the offsets and ids of what
//! stays; neighbours that have become small are put together, and of what is wholly dead nothing is
//! left.
//!
//! The manifest changes once, after the new file is durable and before an old one is unlinked, so a
//! crash at any step leaves either the old or the new. It never touches a segment that is written
//! to.

mod pace;
mod plan;
mod survey;
mod switch;
mod thread;
mod write;

use std::collections::BTreeSet;
use std::time::Instant;

use crate::append::Batch;
use crate::error::{AppendError, CompactError, Corruption, ReadError, Shortage};
use crate::index::Candidate;
use crate::limits::SEGMENT_BYTES_MAX;
use crate::log::Fault;
use crate::options::OptionsError;
use crate::store::{Inner, Store};
use crate::value::{Appended, BlobHash, FrameId};
use pace::Pace;
pub(crate) use thread::Compaction;

/// Tries of a rewrite that removals overtake.
const TRIES: usize = 4;

/// Removals in one batch, which fit into the smallest segment.
const REMOVES_PER_BATCH: usize = 64;

/// How segments are compacted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompactOptions {
    /// A segment is rewritten once so many percent of its bytes are dead, 1 to 100.
    pub dead_percent: u8,
    /// Bytes read and written in a second; as fast as possible when there is none.
    pub bytes_per_second: Option<u64>,
}

impl Default for CompactOptions {
    fn default() -> Self {
        Self { dead_percent: 50, bytes_per_second: Some(32 * 1024 * 1024) }
    }
}

impl CompactOptions {
    pub(crate) fn check(&self) -> Result<(), OptionsError> {
        match self.dead_percent {
            1..=100 => Ok(()),
            percent => Err(OptionsError::DeadPercent(percent)),
        }
    }
}

/// What a compaction did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CompactReport {
    /// Segments that were rewritten.
    pub rewritten: u64,
    /// Segments that took their place.
    pub written: u64,
    /// Frames that are gone for good.
    pub frames: u64,
    /// Bytes of the segments that were rewritten.
    pub bytes_before: u64,
    /// Bytes of those that took their place.
    pub bytes_after: u64,
    /// Damage that was met. The segments that have it stay as they are.
    pub damaged: Vec<Corruption>,
    /// Of the bodies of frames that were removed for good those that stay, as another frame or a
    /// cursor names them.
    pub named: Vec<BlobHash>,
}

/// What a step of compaction answers.
type Stopped<T> = Result<T, Stop>;

/// Why segments were not rewritten.
#[derive(Debug)]
enum Stop {
    /// One of them is damaged.
    Damaged(Corruption),
    Unreadable(ReadError),
    Failed(Fault),
    /// The store is being closed.
    Closing,
    /// A frame was removed meanwhile that had been left out for another reason.
    Overtaken,
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Failed(fault)
    }
}

/// Which segments to rewrite.
enum Which<'a> {
    /// Those with so many dead bytes, in percent, and small neighbours.
    Dead(u8),
    /// Those that hold a frame of these offsets.
    Holding(&'a [u64]),
}

impl Store {
    /// Rewrites the sealed segments of which enough is dead. Waits for another compaction that is
    /// under way. What was done when it fails stays done.
    ///
    /// # Errors
    /// [`CompactError`]; all that can be read stays readable.
    pub fn compact(&self, options: CompactOptions) -> Result<CompactReport, CompactError> {
        let inner = &self.inner;
        options.check()?;
        let which = Which::Dead(options.dead_percent);
        let mut report = CompactReport::default();
        loop {
            let _one = inner.compaction.begin();
            // After the lock, which closing the store waits for.
            inner.check_compactable()?;
            let last = inner.secure_log(&[])?;
            let (done, is_done) = inner.compact(&which, last, options.bytes_per_second)?;
            report.add(done);
            if is_done {
                return Ok(report);
            }
        }
    }

    /// Removes frames and ends when none of their bytes is left in log and journal, and none of
    /// their bodies' in the packs unless something else names the same body: the files that held
    /// them are rewritten. A file that a reader still has open keeps its bytes, without a name,
    /// until the reader is gone. Frames that were removed before, or have expired, count as well,
    /// unless a compaction has taken them already: their bodies are for
    /// [`gc`](Self::gc) then.
    ///
    /// # Errors
    /// [`CompactError`]; the frames may be removed and their bytes still there: try again.
    pub fn remove_now(&self, ids: &[FrameId]) -> Result<CompactReport, CompactError> {
        let remove = || {
            ids.chunks(REMOVES_PER_BATCH).try_for_each(|ids| {
                let removes = ids.to_vec();
                self.append(Batch { removes, durable: true, ..Batch::default() }).map(drop)
            })
        };
        self.remove_now_by(ids, remove).map(|((), report)| report)
    }

    /// Appends a batch, durably, and ends when none of the bytes of the frames that it removes is
    /// left, as with [`remove_now`](Self::remove_now).
    ///
    /// # Errors
    /// [`CompactError`]; with [`CompactError::Append`] nothing was appended, unless that says so.
    /// Otherwise the frames may be removed and their bytes still there.
    pub fn append_removing_now(
        &self,
        batch: Batch,
    ) -> Result<(Appended, CompactReport), CompactError> {
        let ids = batch.removes.clone();
        self.remove_now_by(&ids, || self.append(Batch { durable: true, ..batch }))
    }

    fn remove_now_by<T>(
        &self,
        ids: &[FrameId],
        remove: impl FnOnce() -> Result<T, AppendError>,
    ) -> Result<(T, CompactReport), CompactError> {
        let inner = &self.inner;
        inner.check_compactable()?;
        // Before they are removed: another compaction may take the frames, but not their bodies.
        let stored = inner.stored_with(ids)?;
        let removed = remove()?;
        let _one = inner.compaction.hold();
        inner.check_compactable()?;
        let report = inner.rewrite_without(stored)?;
        inner.wipe_journal()?;
        Ok((removed, report))
    }
}

impl Inner {
    /// Offsets and bodies of the frames with these ids that are in the log, removed or not.
    fn stored_with(&self, ids: &[FrameId]) -> Result<Vec<(u64, Option<BlobHash>)>, CompactError> {
        let mut stored = Vec::with_capacity(ids.len());
        for &id in ids {
            for offset in self.stored_offsets(id).map_err(CompactError::Unreadable)? {
                let frame = self.stored_at(offset).map_err(CompactError::Unreadable)?;
                stored.push((offset, frame.and_then(|frame| frame.hash())));
            }
        }
        Ok(stored)
    }

    /// Rewrites the files that hold these frames, of those that were removed, and their bodies. The
    /// bodies go first: as long as the log has the frames, whoever is cut off or fails finds out
    /// from it once more which bodies are meant.
    fn rewrite_without(
        &self,
        stored: Vec<(u64, Option<BlobHash>)>,
    ) -> Result<CompactReport, CompactError> {
        let (mut offsets, mut bodies) = (Vec::with_capacity(stored.len()), BTreeSet::new());
        for (offset, body) in stored {
            // Of several that had an id before, those that a reader can see stay.
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
            // Durable and sealed before: the next open cuts a log that may not be durable where it
            // names a missing blob, and a removal that is lost brings the frame back.
            self.secure_log(&offsets)?;
            self.sync_log_written().map_err(|fault| self.compact_error(fault, false))?;
            report.named = self.drop_blobs(bodies, &offsets)?.into_iter().collect();
        }
        for _ in 0..TRIES {
            let last = self.secure_log(&offsets)?;
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
        Err(CompactError::Left(offsets.len()))
    }

    /// Has no byte stay in the journal: what it held is in its place first.
    fn wipe_journal(&self) -> Result<(), CompactError> {
        let writer = self.writer.lock();
        if !self.journal.is_there() {
            return Ok(());
        }
        let settled =
            writer.check_whole(self).and_then(|()| writer.settle(self).map_err(Fault::Failed));
        settled.map_err(|fault| self.compact_error(fault, true))?;
        // On a full disk all is as it was.
        let wiped = self.journal.wipe(&self.env).map_err(Fault::when_preparing);
        wiped.map_err(|fault| self.compact_error(fault, true))
    }

    fn check_compactable(&self) -> Result<(), CompactError> {
        match &self.read_only {
            Some(reason) => Err(CompactError::ReadOnly(reason.clone())),
            None if self.is_poisoned() => Err(CompactError::Poisoned),
            None if self.compaction.is_stopped() => Err(CompactError::Closed),
            None => Ok(()),
        }
    }

    /// Makes sure that opening the store would need nothing of the sealed segments but their frames
    /// and tombstones; says whether it does. What holds a frame of `offsets` is sealed then.
    fn secure_log(&self, offsets: &[u64]) -> Result<bool, CompactError> {
        let secured = {
            let mut writer = self.writer.lock();
            let active = writer.appender().active().map(|active| active.segment.base());
            let roll = active.is_some_and(|base| offsets.iter().any(|&offset| offset >= base));
            if roll {
                self.begin_writing_with(&mut writer)?;
            }
            writer.secure(self, roll)
        };
        let secured = secured.map_err(|fault| self.compact_error(fault, true))?;
        self.sealing.seal_now(self).map_err(|fault| self.compact_error(fault, true))?;
        let _indexed = self.sealing.index_sealed(self);
        Ok(secured)
    }

    /// Rewrites segments, the last sealed one only with `last`. The caller holds the lock. Says
    /// whether that was all; where it does not matter which are meant, it ends early when somebody
    /// waits for the lock.
    fn compact(
        &self,
        which: &Which<'_>,
        last: bool,
        bytes_per_second: Option<u64>,
    ) -> Result<(CompactReport, bool), CompactError> {
        self.index.forget_gone();
        let mut report = CompactReport::default();
        if self.writer.lock().is_deferred() {
            // The log is not fit to be written yet.
            return Ok((report, true));
        }
        let began = Instant::now();
        // Where it is known which segments are meant it does not matter what is dead.
        let estimate = matches!(which, Which::Dead(_));
        let mut candidates = self.index.candidates(self.env.clock.now_ms(), estimate);
        self.compaction.note_look(began.elapsed());
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
        full.map_or(Ok((report, is_done)), |shortage| Err(CompactError::StorageFull(shortage)))
    }

    /// Rewrites segments that are meant to become one. Says whether there was no room for some of
    /// them.
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
                // There may be room for what is left of one, and then for more.
                Err(Stop::Failed(Fault::Full(_))) if some.len() > 1 => {
                    most = 1;
                    0
                }
                Err(Stop::Failed(Fault::Full(shortage))) => {
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
                Err(Stop::Failed(fault)) => return Err(self.compact_error(fault, false)),
            };
            left = left.get(taken..).unwrap_or_default();
        }
        Ok(full)
    }

    /// Rewrites segments that follow one another, as many of the first ones as fit into one; says
    /// how many it looked at.
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
            // Under the writer's lock, so that the tombstones before this batch are just these.
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
            // What frames are left out for must not be lost where they are not.
            self.sync_log_written().map_err(Stop::Failed)?;
            let written = write::write(self, &survey, pace)?;
            match switch::switch(self, &survey, written, purged_seq) {
                Err(Stop::Overtaken) if tries > 1 => tries -= 1,
                done => return done.map(|report| (report, taken)),
            }
        }
    }

    /// Makes everything written so far durable.
    fn sync_log_written(&self) -> Result<(), Fault> {
        use std::sync::atomic::Ordering;
        let seq = self.writer.lock().appender().next_seq();
        if self.durable_upto.load(Ordering::Acquire) >= seq {
            return Ok(());
        }
        let synced = crate::upkeep::sync_log(self);
        if let Err(Fault::Failed(error)) = &synced {
            self.poison(error);
        }
        synced
    }

    fn compact_error(&self, fault: Fault, poisons: bool) -> CompactError {
        match fault {
            Fault::Full(shortage) => CompactError::StorageFull(shortage),
            Fault::Failed(error) => {
                if poisons {
                    self.poison(&error);
                }
                CompactError::Io(error.to_string().into())
            }
        }
    }
}

impl CompactReport {
    /// Adds what another step did. What both met is listed once.
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
