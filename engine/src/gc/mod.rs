//! Garbage collection: blobs that nothing in the log names any more leave the packs. Here is who
//! decides, from the log; rewriting packs is the business of `blob`.

mod names;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use crate::blob::{Condemned, Group, Marker, Sweep, SweepError, Switched, Tally};
use crate::error::{Corruption, ReadError, ReadOnlyReason, Shortage};
use crate::store::{Inner, Store};
use crate::value::BlobHash;
use names::Names;

/// How garbage is collected.
#[derive(Debug, Clone, Copy)]
pub struct GcOptions {
    /// A blob that nothing names is kept for this long after it was put. Time is told for packs as
    /// a whole: a blob stays until the newest one in its pack is that old.
    pub grace: Duration,
    /// A pack is rewritten when at least so many percent of its bytes are dead. With 0 and no grace
    /// no dead blob stays, the packs that are written to included.
    pub dead_percent: u8,
    /// Only tell what would be done.
    pub dry_run: bool,
    /// Bytes of packs read a second, at most.
    pub bytes_per_second: Option<u64>,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(24 * 60 * 60),
            dead_percent: 25,
            dry_run: false,
            bytes_per_second: None,
        }
    }
}

impl GcOptions {
    /// No dead blob stays, whatever it costs.
    #[must_use]
    pub fn everything() -> Self {
        Self { grace: Duration::ZERO, dead_percent: 0, ..Self::default() }
    }

    fn grace_ms(&self) -> u64 {
        u64::try_from(self.grace.as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether packs that are written to are looked at: what is in them is young by any grace.
    const fn takes_open(&self) -> bool {
        self.grace.is_zero() && self.dead_percent == 0
    }
}

/// What was found, and done unless it was a dry run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct GcReport {
    /// Packs looked at.
    pub packs: u64,
    /// Blobs in them.
    pub blobs: u64,
    /// Blobs that nothing names, kept because of the grace.
    pub young: u64,
    /// Blobs that nothing names and that may go.
    pub dead: u64,
    /// Bytes of those, as they were put.
    pub dead_bytes: u64,
    /// Of the dead those in packs that are rewritten or dropped; the others are too few in theirs.
    pub swept: u64,
    /// Bytes of those, as they were put.
    pub swept_bytes: u64,
    /// Packs of which nothing stays.
    pub packs_dropped: u64,
    /// Packs that lose some of their blobs.
    pub packs_rewritten: u64,
    /// Packs that cannot be read in full. They stay as they are.
    pub damaged: Vec<Corruption>,
    /// Groups of packs that were left because meanwhile something came to name a blob of theirs;
    /// the next collection gets them. Always 0 in a dry run.
    pub left: u64,
}

/// Why garbage was not collected, or not all of it. Nothing is lost by that.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GcError {
    /// The log or a pack cannot be read. What is unreadable may name any blob, so none goes.
    #[error("cannot tell which blobs are wanted: {0}")]
    Read(ReadError),
    /// The store is open for reading only.
    #[error("the store is read-only: {0}")]
    ReadOnly(ReadOnlyReason),
    /// There is no space, or no descriptor, for the packs that take the place of others.
    #[error(
        "{0}: {remedy}, or collect without the packs that are rewritten",
        remedy = .0.remedy("make room")
    )]
    StorageFull(Shortage),
    /// A write failed, now or earlier; the store takes no more until it is opened again.
    #[error("a write failed: the store takes no more until it is reopened")]
    Poisoned,
    /// The store is closed, or being closed.
    #[error("the store is closed")]
    Closed,
}

impl From<ReadError> for GcError {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl From<SweepError> for GcError {
    fn from(error: SweepError) -> Self {
        match error {
            SweepError::Stopped => Self::Closed,
            SweepError::Full(shortage) => Self::StorageFull(shortage),
            SweepError::Read(error) => Self::Read(error.into()),
            SweepError::Failed(_) => Self::Poisoned,
        }
    }
}

impl GcReport {
    fn of(tally: Tally) -> Self {
        Self {
            packs: tally.packs,
            blobs: tally.blobs,
            young: tally.young,
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
    /// Takes blobs out of the packs that nothing names: no frame in the log, expired or removed
    /// ones included until they are compacted away, and no cursor. Runs beside reads and appends;
    /// one that comes to name a blob meanwhile keeps it.
    ///
    /// # Errors
    /// [`GcError`]; what was done before it stands.
    pub fn gc(&self, options: &GcOptions) -> Result<GcReport, GcError> {
        let inner = &self.inner;
        // Names are read on from where they were read last: no frame may move meanwhile.
        let _still = inner.compaction.hold();
        let sweep = inner.blobs.sweep(options.bytes_per_second);
        let condemned =
            Condemned::Unnamed { grace_ms: options.grace_ms(), dead_percent: options.dead_percent };
        if !options.dry_run {
            inner.may_sweep()?;
            if options.takes_open() {
                sweep.seal_all()?;
            }
        }
        let open = options.dry_run && options.takes_open();
        let mut collection = Collection::begin(inner, sweep, condemned, open)?;
        collection.read_names()?;
        let (report, groups) = collection.plan()?;
        if options.dry_run {
            return Ok(report);
        }
        let mut report = report;
        collection.sweep_groups(groups, &mut report).and_then(|()| collection.end(false))?;
        Ok(report)
    }
}

impl Inner {
    /// Takes these blobs out of the packs, unless something in the log or a cursor still names
    /// them, and returns when their bytes are gone from every file. The frames with the offsets
    /// `of`, which nobody sees any more, name nothing. A blob that is streamed just now is gone
    /// when the stream ends. Returns those that are still named; they stay. The caller holds
    /// compaction off.
    ///
    /// # Errors
    /// [`GcError`]; blobs may then be there or not. Damaged packs are an error here: what they hold
    /// cannot be taken out.
    pub(crate) fn drop_blobs(
        &self,
        hashes: BTreeSet<BlobHash>,
        of: &[u64],
    ) -> Result<BTreeSet<BlobHash>, GcError> {
        let sweep = self.blobs.sweep(None);
        self.may_sweep()?;
        sweep.seal_all()?;
        let mut collection = Collection::begin(self, sweep, Condemned::These(hashes), false)?;
        collection.names = Names::but_of(of);
        loop {
            collection.read_names()?;
            let (mut report, groups) = collection.plan()?;
            if let Some(corruption) = report.damaged.pop() {
                return Err(ReadError::Corrupt(corruption).into());
            }
            collection.sweep_groups(groups, &mut report)?;
            if let Some(corruption) = report.damaged.pop() {
                return Err(ReadError::Corrupt(corruption).into());
            }
            // One that was left has a blob that is named by now; the others go in the next round.
            if report.left == 0 {
                collection.end(true)?;
                return Ok(collection.named);
            }
        }
    }

    /// Whether packs may be changed.
    fn may_sweep(&self) -> Result<(), GcError> {
        use crate::error::AppendError;
        let refused = |error| match error {
            AppendError::ReadOnly(reason) => GcError::ReadOnly(reason),
            AppendError::Closed => GcError::Closed,
            AppendError::StorageFull(shortage) => GcError::StorageFull(shortage),
            _ => GcError::Poisoned,
        };
        self.begin_changing().map_err(refused)
    }
}

/// A collection at work.
struct Collection<'a> {
    inner: &'a Inner,
    sweep: Sweep<'a>,
    marker: Marker,
    names: Names,
    condemned: Condemned,
    /// Of the blobs that are to go, those that something names.
    named: BTreeSet<BlobHash>,
    /// Packs that could not even be looked at.
    unread: Vec<Corruption>,
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
        Ok(Self { inner, sweep, marker, names, condemned, named, unread })
    }

    /// Takes up what the log names since it was last read.
    fn read_names(&mut self) -> Result<(), GcError> {
        let Self { inner, sweep, marker, names, condemned, named, .. } = self;
        let go_on = || sweep.check_stop().map_err(GcError::from);
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
                    // Most of what came since is read without the lock.
                    self.read_names()?;
                    let switched = {
                        let writer = self.inner.writer.lock();
                        if writer.closed {
                            return Err(GcError::Closed);
                        }
                        if self.inner.is_poisoned() {
                            return Err(GcError::Poisoned);
                        }
                        self.read_names()?;
                        let Self { sweep, marker, condemned, .. } = self;
                        sweep.switch(marker, &group, &rewritten, condemned)?
                    };
                    match switched {
                        Some(switched) => self.confirm(switched)?,
                        None => {
                            report.left += 1;
                            self.sweep.abandon(rewritten);
                        }
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

    fn confirm(&mut self, switched: Switched) -> Result<(), GcError> {
        let confirmed = self.sweep.confirm(&mut self.marker, switched);
        confirmed.map_err(|error| self.fault(error))
    }

    /// Lets the files of replaced packs go.
    fn end(&self, wait: bool) -> Result<(), GcError> {
        self.sweep.tidy(wait).map_err(|error| self.fault(error))
    }

    /// After a failed write of the manifest nothing is written any more.
    fn fault(&self, error: SweepError) -> GcError {
        if matches!(error, SweepError::Failed(_)) {
            self.inner.poison(&error);
        }
        error.into()
    }
}
