//! Garbage collection: removes blobs from the packs that nothing in the log names any more. This
//! module decides which, from the log; `blob` rewrites the packs.

pub(crate) mod dead;
mod names;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use crate::blob::{Condemned, Group, Hurry, Marker, Sweep, SweepError, Tally};
use crate::error::{Corruption, GcError, ReadError};
use crate::io_error::IoError;
use crate::log::WriteError;
use crate::options::{CollectOptions, GcOptions};
use crate::planted::{Bug, is_planted};
use crate::space::{Collected, Found};
use crate::store::{Inner, Store};
use crate::value::BlobHash;
use dead::{Dead, Unseen};
use names::Names;

/// What was found, and removed unless it was a dry run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct GcReport {
    /// Packs examined.
    pub packs: u64,
    /// Blobs in them.
    pub blobs: u64,
    /// Blobs that nothing names, kept because of the grace.
    pub young: u64,
    /// Bytes of those, estimated from their share of the blobs in their packs.
    pub young_bytes: u64,
    /// Blobs that nothing names and that may be removed.
    pub dead: u64,
    /// Bytes of those, uncompressed.
    pub dead_bytes: u64,
    /// Dead blobs in packs that are rewritten or dropped; other packs have too few of them.
    pub swept: u64,
    /// Bytes of those, uncompressed.
    pub swept_bytes: u64,
    /// Packs that are removed whole.
    pub packs_dropped: u64,
    /// Packs that lose some of their blobs.
    pub packs_rewritten: u64,
    /// Packs that cannot be read completely. They are left unchanged.
    pub damaged: Vec<Corruption>,
    /// Groups of packs that were skipped because one of their blobs was named meanwhile; the next
    /// collection handles them. Always 0 in a dry run.
    pub left: u64,
}

impl From<SweepError> for GcError {
    fn from(error: SweepError) -> Self {
        match error {
            SweepError::Stopped => Self::Closed,
            SweepError::Full(shortage) => Self::StorageFull(shortage),
            SweepError::Read(error) => Self::Read(error.into()),
            SweepError::Failed(_) => Self::Poisoned(IoError::from(&error)),
        }
    }
}

impl GcReport {
    fn of(tally: Tally) -> Self {
        Self {
            packs: tally.packs,
            blobs: tally.blobs,
            young: tally.young,
            young_bytes: tally.young_bytes,
            dead: tally.dead,
            dead_bytes: tally.dead_bytes,
            swept: tally.swept,
            swept_bytes: tally.swept_bytes,
            packs_dropped: tally.dropped,
            packs_rewritten: tally.rewritten,
            damaged: tally.damaged,
            left: 0,
        }
    }
}

impl Store {
    /// Removes blobs from the packs that nothing names: no cursor, and no frame that a reader sees.
    /// A removed or superseded frame names nothing, nor does one that expired more than
    /// [`GcOptions::grace`] ago, even while the log still holds it; a reader that began earlier may
    /// find its body missing. Runs concurrently with reads and appends; a blob that an append names
    /// meanwhile is kept.
    ///
    /// # Errors
    /// [`GcError`]; the work done before it is kept.
    pub fn gc(&self, options: &GcOptions) -> Result<GcReport, GcError> {
        options.check()?;
        // Names are read from where the last read ended, so no frame may move meanwhile.
        let _still = self.inner.compaction.hold();
        self.inner.collect(options, None)
    }
}

impl Inner {
    /// Collects if that is due. Waits for a compaction or a collection in progress.
    pub(crate) fn collect_if_due(&self, options: &CollectOptions) {
        if !self.space.is_due(self, options) {
            return;
        }
        let _still = self.compaction.begin();
        // Another thread may have done it meanwhile.
        if !self.compaction.is_stopped() && self.space.is_due(self, options) {
            let hurry = || self.compaction.is_awaited();
            // Failures are reported in the statistics and retried.
            let _told = self.collect(&options.gc(), Some(Hurry(&hurry)));
        }
    }

    /// Deletes the files of replaced packs once they have no user.
    pub(crate) fn tidy(&self) -> Result<(), GcError> {
        if !self.blobs.is_untidy() {
            return Ok(());
        }
        self.ended(self.blobs.sweep(None).tidy(false).map_err(GcError::from))
    }

    /// Collects. The caller blocks compaction. When hurried it stops early.
    fn collect(&self, options: &GcOptions, hurry: Option<Hurry<'_>>) -> Result<GcReport, GcError> {
        let (began, freed) = (Instant::now(), self.blobs.freed());
        let (found, mut is_cut) = (Found::now(self, options.grace_ms()), false);
        self.space.clear_left(self);
        let done = self.ended(self.collect_now(options, hurry, &mut is_cut));
        match &done {
            Ok(report) if options.dry_run => self.space.examined(report),
            Err(_) if options.dry_run => {}
            Err(GcError::Closed) => {}
            _ => {
                let done = done.clone();
                let done = done.map_err(|error| error.to_string().into());
                let (took, freed) = (began.elapsed(), self.blobs.freed() - freed);
                let is_asked = hurry.is_none();
                let collected = Collected { found, took, freed, done, is_cut, is_asked };
                self.space.collected(self, collected);
            }
        }
        done
    }

    fn collect_now(
        &self,
        options: &GcOptions,
        hurry: Option<Hurry<'_>>,
        is_cut: &mut bool,
    ) -> Result<GcReport, GcError> {
        let sweep = self.blobs.sweep(options.bytes_per_second).hurried_by(hurry);
        let condemned =
            Condemned::Unnamed { grace_ms: options.grace_ms(), dead_percent: options.dead_percent };
        if !options.dry_run {
            self.begin_changing()?;
            if options.takes_open() {
                sweep.seal_all()?;
            }
        }
        let open = options.dry_run && options.takes_open();
        let mut collection = Collection::begin(self, sweep, condemned, open)?;
        collection.names = Names::but_of(Dead::Unseen(Unseen::now(self, options.grace_ms())));
        collection.read_names(true)?;
        let (mut report, groups) = collection.plan()?;
        if options.dry_run {
            return Ok(report);
        }
        let buries = collection.names.passed_any() && !is_planted(Bug::SkipBury);
        if !groups.is_empty() && buries {
            self.bury()?;
        }
        let swept = collection.sweep_groups(groups, &mut report);
        *is_cut = collection.is_cut;
        swept?;
        collection.sweep.tidy(false)?;
        Ok(report)
    }

    /// Makes sure that frames which no reader sees now, and states that cursors had, never come
    /// back, since their blobs will be missing: makes durable whatever removed or superseded them.
    /// Their records become durable too, and are covered by a mark: where the log may not be
    /// durable, recovery cuts it at a record whose blob is missing.
    fn bury(&self) -> Result<(), GcError> {
        let mut writer = self.writer.lock();
        self.begin_writing_with(&mut writer)?;
        match writer.mark_all(self) {
            Ok(()) => Ok(()),
            Err(WriteError::Full(shortage)) => Err(GcError::StorageFull(shortage)),
            Err(WriteError::Failed(error)) => Err(GcError::Poisoned(error.into())),
        }
    }

    /// Removes these blobs from the packs, unless something in the log or a cursor still names
    /// them, and returns when no file has their bytes. Names in the frames at the offsets `of`,
    /// which no reader sees, do not count. A blob that is being streamed is removed when the stream
    /// ends. Returns those that are still named, which are kept. The caller blocks compaction.
    ///
    /// # Errors
    /// [`GcError`]; blobs may then be removed or not. Damaged packs are an error here: their blobs
    /// cannot be removed.
    pub(crate) fn drop_blobs(
        &self,
        hashes: BTreeSet<BlobHash>,
        of: &[u64],
    ) -> Result<BTreeSet<BlobHash>, GcError> {
        self.ended(self.drop_blobs_now(hashes, of))
    }

    fn drop_blobs_now(
        &self,
        hashes: BTreeSet<BlobHash>,
        of: &[u64],
    ) -> Result<BTreeSet<BlobHash>, GcError> {
        let sweep = self.blobs.sweep(None);
        self.begin_changing()?;
        sweep.seal_all()?;
        let mut collection = Collection::begin(self, sweep, Condemned::These(hashes), false)?;
        collection.names = Names::but_of(Dead::These(of.iter().copied().collect()));
        loop {
            collection.read_names(false)?;
            let (mut report, groups) = collection.plan()?;
            if let Some(corruption) = report.damaged.pop() {
                return Err(ReadError::Corrupt(corruption).into());
            }
            collection.sweep_groups(groups, &mut report)?;
            if let Some(corruption) = report.damaged.pop() {
                return Err(ReadError::Corrupt(corruption).into());
            }
            // A skipped group has a blob that is named by now; the next round handles the others.
            if report.left == 0 {
                collection.sweep.tidy(true)?;
                return Ok(collection.named);
            }
        }
    }

    /// After a failed write nothing more is written.
    fn ended<T>(&self, done: Result<T, GcError>) -> Result<T, GcError> {
        done.map_err(|error| match error {
            GcError::Poisoned(why) => GcError::Poisoned(self.poison(why)),
            other => other,
        })
    }
}

/// A collection in progress.
struct Collection<'a> {
    inner: &'a Inner,
    sweep: Sweep<'a>,
    marker: Marker,
    names: Names,
    condemned: Condemned,
    /// The condemned blobs that something names.
    named: BTreeSet<BlobHash>,
    /// Packs that could not be examined at all.
    unread: Vec<Corruption>,
    /// It stopped early because another thread waits.
    is_cut: bool,
}

impl<'a> Collection<'a> {
    fn begin(
        inner: &'a Inner,
        sweep: Sweep<'a>,
        condemned: Condemned,
        open: bool,
    ) -> Result<Self, GcError> {
        let (marker, unread) = match &condemned {
            Condemned::Unnamed { .. } => sweep.examine(open, false)?,
            Condemned::These(hashes) => {
                let (mut marker, unread) = sweep.examine(open, true)?;
                sweep.condemn(&mut marker, hashes)?;
                (marker, unread)
            }
        };
        let (names, named) = (Names::default(), BTreeSet::new());
        let is_cut = false;
        Ok(Self { inner, sweep, marker, names, condemned, named, unread, is_cut })
    }

    /// Marks the blobs that the log has named since the last read. Throttled if `paced`, which must
    /// not be set while the writer's lock is held.
    fn read_names(&mut self, paced: bool) -> Result<(), GcError> {
        let Self { inner, sweep, marker, names, condemned, named, .. } = self;
        let go_on = |bytes| {
            let passed = if paced { sweep.pass(bytes) } else { sweep.check_stop() };
            passed.map_err(GcError::from)
        };
        names.read(inner, go_on, |hash| match condemned {
            Condemned::Unnamed { .. } => sweep.name(marker, hash).map_err(GcError::from),
            Condemned::These(hashes) if hashes.contains(hash) => {
                named.insert(*hash);
                sweep.name(marker, hash).map_err(GcError::from)
            }
            Condemned::These(_) => Ok(()),
        })?;
        Ok(sweep.take_names(marker)?)
    }

    fn plan(&mut self) -> Result<(GcReport, Vec<Group>), GcError> {
        let plan = self.sweep.plan(&mut self.marker, &self.condemned)?;
        let mut report = GcReport::of(plan.tally);
        report.packs += self.unread.len() as u64;
        report.damaged.extend(self.unread.iter().cloned());
        Ok((report, plan.groups))
    }

    fn sweep_groups(&mut self, groups: Vec<Group>, report: &mut GcReport) -> Result<(), GcError> {
        let mut groups = VecDeque::from(groups);
        while let Some(group) = groups.pop_front() {
            match self.sweep.rewrite(&self.marker, &group, &self.condemned)? {
                Ok(rewritten) => {
                    // Most of what was appended since the last read is read without the lock.
                    self.read_names(false)?;
                    let switched = {
                        let writer = self.inner.writer.lock();
                        if writer.closed {
                            return Err(GcError::Closed);
                        }
                        if let Some(why) = self.inner.failure.get() {
                            return Err(GcError::Poisoned(why.clone()));
                        }
                        self.read_names(false)?;
                        let Self { sweep, marker, condemned, .. } = self;
                        sweep.switch(marker, &group, &rewritten, condemned)?
                    };
                    match switched {
                        Some(switched) => self.sweep.confirm(&mut self.marker, switched)?,
                        None => {
                            report.left += 1;
                            self.sweep.abandon(rewritten);
                        }
                    }
                    if !groups.is_empty() && self.sweep.is_hurried() {
                        self.is_cut = true;
                        return Ok(());
                    }
                }
                Err((corruption, parts)) => {
                    report.damaged.push(corruption);
                    groups.extend(parts.into_iter().filter(|part| !part.is_empty()));
                }
            }
        }
        Ok(())
    }
}
