//! The single writer: assigns the batches of a group their places, writes them, syncs as the policy
//! asks, and only then publishes them to readers.
//!
//! The order makes a crash harmless. Blobs and log bytes are written first; under `sync` both are
//! durable before anything below happens; then the index gets the frames, then the published length
//! and the head move, then the callers are answered. So under `sync` a frame that a reader has seen
//! is never lost, and no acknowledged frame names a lost blob.

mod layout;

use std::collections::HashSet;
use std::io;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;

use super::changes::Changes;
use super::conditions::{Before, Conditions};
use super::panicked;
use super::placed::{self, Placed};
use super::timing::Stage;
use crate::append::Pending;
use crate::cursors::Cursors;
use crate::error::{AppendError, Shortage};
use crate::format::control::{self, Control, Mark};
use crate::ids::IdSource;
use crate::log::{Active, Appender, WriteError};
use crate::options::SyncPolicy;
use crate::planted::{Bug, is_planted};
use crate::recovery::Plan;
use crate::store::Inner;
use crate::value::{Appended, FrameId};

use layout::Refusal;

/// The answer to one batch.
pub(crate) type Answer = Result<Appended, AppendError>;

/// Whether the log is to go on in a new segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Roll {
    /// Only where the work at hand cannot do without.
    IfNeeded,
    /// In any case: the present one is to be sealed.
    ToNew,
}

/// Maximum bytes of the last segment that an open after a clean close reads.
const REOPENED_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Maximum blobs of a group to prefetch: more would evict each other.
const PREFETCHED_MAX: usize = 256;

/// State that only the leader touches.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(super) appender: Appender,
    ids: IdSource,
    /// This opening has its epoch in the manifest, which no longer says that the store is clean.
    pub(crate) begun: bool,
    /// What recovery could not do on a full disk; done before anything else is written.
    pub(crate) deferred: Option<Plan>,
    /// The store was closed: nothing more is committed.
    pub(crate) closed: bool,
    changes: Changes,
    /// Offsets of the frames that this group removes.
    removing: HashSet<u64>,
    /// A frame of this group may hide others, or have an id that was known before.
    hides: bool,
    /// The group, encoded as a journal entry.
    pub(super) entry: Vec<u8>,
}

/// Held while a group is committed. A panic poisons the store before another thread gets the
/// writer: what was laid out may not have been written.
struct Doubt<'a>(&'a Inner);

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.poison(panicked());
        }
    }
}

/// What the answers to a group will say about durability.
#[derive(Debug, Clone, Copy)]
struct Promise {
    /// A batch asks to be durable, whatever the policy.
    durable: bool,
    /// Some batches before this group are not durable yet.
    behind: bool,
}

impl Writer {
    pub(crate) fn new(
        appender: Appender,
        ids: IdSource,
        cursors: &Cursors,
        deferred: Option<Plan>,
    ) -> Self {
        Self {
            appender,
            ids,
            begun: false,
            deferred,
            closed: false,
            changes: Changes::new(cursors),
            removing: HashSet::new(),
            hides: false,
            entry: Vec::new(),
        }
    }

    /// Does what recovery had to defer, if the disk has room for it now.
    pub(crate) fn catch_up(&mut self, inner: &Inner) -> Result<(), WriteError> {
        let Some(plan) = &self.deferred else { return Ok(()) };
        let recovered = plan.carry_out(&inner.env, &inner.blobs, &inner.open_files);
        let recovered = recovered.map_err(WriteError::when_preparing)?;
        // The bases and positions are unchanged and only the files differ, so readers notice
        // nothing.
        for segment in &recovered.segments {
            inner.log.rewritten(segment);
            inner.index.rewritten(segment);
        }
        for segment in &recovered.sealed_now {
            let _ = inner.index.seal(segment);
            let _ = inner.keys.seal(&inner.env, &inner.index, segment);
        }
        self.appender.adopt(recovered.active);
        inner.durable_upto.store(self.appender.next_seq(), Ordering::Release);
        self.deferred = None;
        Ok(())
    }

    pub(crate) const fn appender(&self) -> &Appender {
        &self.appender
    }

    /// The newest id assigned, or kept by an imported frame, if there was any.
    pub(crate) fn newest_id(&self) -> Option<FrameId> {
        Some(self.ids.last()).filter(|&id| id > FrameId::ZERO)
    }

    /// Commits batches from the front of `group`, as many as one group can take and at least one,
    /// and appends their answers to `answers`. Returns whether there may be something new to read;
    /// readers are woken once the writer's lock is released.
    pub(super) fn commit(
        &mut self,
        inner: &Inner,
        group: &[Pending],
        answers: &mut Vec<Answer>,
    ) -> bool {
        if let Err(error) = inner.begin_writing_with(self).map_err(AppendError::from) {
            answers.extend(group.iter().map(|_| Err(error.clone())));
            return false;
        }
        let _doubt = Doubt(inner);
        let now_ms = inner.env.clock.now_ms();
        let behind = inner.durable_upto.load(Ordering::Acquire) < self.appender.next_seq();
        let mut since = inner.timing.begin(inner.env.options.sync == SyncPolicy::Sync);
        let mut placed: Vec<Result<Placed, AppendError>> = Vec::with_capacity(group.len());
        let mut failed = None;
        let mut conditions = Conditions::default();
        let blobs = group.iter().flat_map(|pending| &pending.staged).take(PREFETCHED_MAX);
        if blobs.clone().nth(1).is_some() {
            inner.blobs.prefetch(blobs);
        }
        for pending in group {
            let head = self.appender.next_offset();
            let before = Before { group, placed: &placed, head, now_ms };
            match self.place(inner, pending, before, &mut conditions) {
                Ok(batch) => placed.push(Ok(batch)),
                Err(Refusal::Batch(error)) => placed.push(Err(error)),
                Err(Refusal::NextGroup) => break,
                Err(Refusal::Failed(error)) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        let mut taken = group.iter().zip(&placed).filter(|(_, place)| place.is_ok());
        let promise = Promise { durable: taken.any(|(one, _)| one.batch.durable), behind };
        let laid_out = failed.is_none();
        let written = failed.map_or_else(|| self.write(inner, promise, &mut since), Err);
        if let Err(error) = written {
            let why = inner.poison(&error);
            let answer = |batch: Result<Placed, AppendError>| match batch {
                Ok(_) => Err(AppendError::Indeterminate(why.clone())),
                Err(error) => Err(error),
            };
            let count = placed.len();
            answers.extend(placed.into_iter().map(answer));
            // The batch that failed may have been written in part; those after it were not.
            let rest = group[count..].iter().enumerate();
            answers.extend(rest.map(|(index, _)| match index {
                0 if !laid_out => Err(AppendError::Indeterminate(why.clone())),
                _ => Err(AppendError::Poisoned(why.clone())),
            }));
            return false;
        }
        let is_news = placed.iter().any(Result::is_ok);
        self.publish(inner, group, &mut placed);
        inner.timing.end(Stage::Publish, &mut since);
        let (head, seq) = (inner.log.head(), self.appender.next_seq());
        let durable = inner.durable_upto.load(Ordering::Acquire) >= seq;
        answers.extend(group.iter().zip(placed).map(|(pending, batch)| {
            batch.map(|Placed { appended, repeats, .. }| match repeats {
                Some(used) => {
                    let frames = inner.first_stamps(&pending.batch, &used);
                    Appended { frames, repeated: true, durable, head, ..appended }
                }
                None => Appended { durable, head, ..appended },
            })
        }));
        is_news
    }

    /// Writes the group and makes it durable if the policy or one of its batches asks for that.
    fn write(
        &mut self,
        inner: &Inner,
        Promise { durable, behind }: Promise,
        since: &mut Option<Instant>,
    ) -> io::Result<()> {
        // Blobs are written before the records that name them.
        inner.blobs.flush()?;
        if !self.appender.is_ahead() {
            // Nothing is new: what is acknowledged, a repeated batch or a removal, was written
            // before.
            return if durable && behind { self.sync(inner) } else { Ok(()) };
        }
        if is_planted(Bug::AckBeforeSync) {
            self.sync(inner)?;
        }
        let durable = durable || inner.env.options.sync == SyncPolicy::Sync;
        let alone = !behind || is_planted(Bug::JournalBehindGap);
        let entry = if durable && alone { self.enter(inner)? } else { None };
        let bytes = self.appender.flush()?;
        inner.timing.end(Stage::Write, since);
        inner.upkeep.wrote(inner, bytes, self.appender.fill_percent());
        if is_planted(Bug::PublishBeforeDurable) {
            self.appender.publish(inner);
        }
        if is_planted(Bug::AckBeforeSync) {
            inner.durable_upto.fetch_max(self.appender.next_seq(), Ordering::AcqRel);
            return Ok(());
        }
        if durable {
            match entry {
                Some(entry) => self.journal(inner, &entry)?,
                None => self.sync(inner)?,
            }
            inner.timing.end(Stage::Sync, since);
        }
        Ok(())
    }

    /// Publishes the group to readers.
    fn publish(
        &mut self,
        inner: &Inner,
        group: &[Pending],
        placed: &mut [Result<Placed, AppendError>],
    ) {
        let ephemeral = placed::take_up(&inner.index, group, placed);
        let is_stored =
            |placed: &Result<Placed, _>| placed.as_ref().is_ok_and(|of| of.at.is_some());
        let stored = group.iter().zip(&*placed).filter(|(_, placed)| is_stored(placed));
        inner.space.named(stored.map(|(pending, _)| pending));
        self.changes.publish(inner);
        self.removing.clear();
        self.hides = false;
        if !ephemeral.is_empty() {
            inner.tail.push(ephemeral);
        }
        self.publish_log(inner);
    }

    /// Publishes the written bytes, and hands over the segment that was rolled away from.
    fn publish_log(&mut self, inner: &Inner) {
        self.appender.publish(inner);
        if let Some(job) = self.appender.take_rolled() {
            inner.sealing.hand_over(job);
            inner.upkeep.wake();
        }
    }

    /// Fails after a group has failed: what it laid out may not have been written. Must be called
    /// before every sync except that of a group.
    pub(crate) fn check_not_poisoned(&self, inner: &Inner) -> Result<(), WriteError> {
        match inner.failure.get() {
            Some(why) => {
                Err(WriteError::Failed(io::Error::other(format!("an earlier write failed, {why}"))))
            }
            None => Ok(()),
        }
    }

    /// Whether recovery deferred something.
    pub(crate) const fn is_deferred(&self) -> bool {
        self.deferred.is_some()
    }

    /// Makes sure that the active segment begins with a durable checkpoint, so that opening the
    /// store needs no older segment. Returns whether there is such a segment.
    pub(crate) fn secure(&mut self, inner: &Inner, roll: Roll) -> Result<bool, WriteError> {
        self.check_not_poisoned(inner)?;
        self.catch_up(inner)?;
        if roll == Roll::ToNew && !self.appender.has_rolled() {
            self.roll(inner, control::MARK_LEN)?;
        }
        let Some(active) = self.appender.active() else { return Ok(false) };
        let durable = inner.durable_upto.load(Ordering::Acquire) >= self.appender.next_seq();
        if !active.bare && durable && roll == Roll::IfNeeded {
            return Ok(true);
        }
        if !self.begun {
            return Ok(false);
        }
        self.mark(inner, Mark::Sync)?;
        Ok(true)
    }

    /// Rolls to a new segment when reading the current one would slow down the next open. Keeps the
    /// current one if there is no space for that.
    pub(crate) fn leave_long(&mut self, inner: &Inner) -> Result<(), WriteError> {
        let is_long = |active: &Active| active.flushed > REOPENED_BYTES_MAX;
        if !self.appender.active().is_some_and(is_long) {
            return Ok(());
        }
        match self.roll(inner, control::MARK_LEN) {
            Err(WriteError::Full(_)) => Ok(()),
            rolled => rolled,
        }
    }

    /// Writes the MARK of a clean close, if there is a segment to write it to.
    pub(crate) fn mark_close(&mut self, inner: &Inner) -> Result<(), WriteError> {
        match self.appender.active() {
            Some(_) => self.mark(inner, Mark::CleanClose),
            None => Ok(()),
        }
    }

    /// Makes everything written durable, and records that in the log. Without an active segment
    /// there is nothing to do: sealed segments are durable.
    pub(crate) fn mark_all(&mut self, inner: &Inner) -> Result<(), WriteError> {
        self.catch_up(inner)?;
        match self.appender.active() {
            Some(_) => self.mark(inner, Mark::Sync),
            None => Ok(()),
        }
    }

    /// Writes a MARK: everything before it is durable, and on return so is the mark.
    pub(crate) fn mark(&mut self, inner: &Inner, what: Mark) -> Result<(), WriteError> {
        self.check_not_poisoned(inner)?;
        self.sync(inner).map_err(WriteError::Failed)?;
        match self.make_room(inner, control::MARK_LEN) {
            Ok(()) => {}
            Err(Refusal::Batch(AppendError::StorageFull(shortage))) => {
                return Err(WriteError::Full(shortage));
            }
            Err(Refusal::Batch(_) | Refusal::NextGroup) => {
                return Err(WriteError::Full(Shortage::Space));
            }
            Err(Refusal::Failed(error)) => return Err(WriteError::Failed(error)),
        }
        let mut open = self.appender.begin();
        let record = Control::Mark { what, time_ms: inner.env.clock.now_ms() };
        let encoded =
            self.appender.record(&mut open, false, |out, _| control::encode(out, &record, false));
        encoded.map_err(|_| WriteError::Failed(io::ErrorKind::InvalidInput.into()))?;
        // Rolling may have written something that is not durable.
        let durable_upto = inner.durable_upto.load(Ordering::Acquire);
        self.appender.finish(&open, durable_upto);
        self.appender.flush().and_then(|_| self.sync(inner)).map_err(WriteError::Failed)?;
        self.publish_log(inner);
        Ok(())
    }
}
