//! The single writer: assigns the batches of a group their places, writes them, syncs as the policy
//! asks, and only then publishes them to readers.
//!
//! The order makes a crash harmless. Blobs and log bytes are written first; under `sync` both are
//! durable before anything below happens; then the index gets the frames, then the published length
//! and the head move, then the callers are answered. So under `sync` a frame that a reader has seen
//! is never lost, and no acknowledged frame names a lost blob.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;

use super::PANICKED;
use super::changes::{Change, Changes};
use super::conditions::{Before, Conditions};
use super::placed::{self, Placed};
use super::timing::Stage;
use crate::append::{Pending, Target};
use crate::blob::StageError;
use crate::cursors::{Cursors, HeldCursor};
use crate::error::{AppendError, Shortage};
use crate::format::control::{self, Control, CursorRecord, Mark, StateRecord};
use crate::format::key_index::UsedKey;
use crate::format::record::{RecordError, encode_frame};
use crate::ids::IdSource;
use crate::keys::{expires_ms, short};
use crate::log::{Active, Appender, OpenBatch, WriteError};
use crate::options::SyncPolicy;
use crate::planted::{Bug, is_planted};
use crate::recovery::Plan;
use crate::store::Inner;
use crate::value::{
    Appended, BlobHash, Body, Frame, FrameId, Import, NewFrame, Removal, Stamp, Ttl,
};

/// The answer to one batch.
pub(crate) type Answer = Result<Appended, AppendError>;

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
    /// The store was closed: nothing is committed any more.
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
            self.0.poison(&PANICKED);
        }
    }
}

fn answer_to(target: &Option<Target>) -> Removal {
    if target.is_some() { Removal::Removed } else { Removal::Absent }
}

/// What the answers to a group will say about durability.
#[derive(Debug, Clone, Copy)]
struct Promise {
    /// A batch asks to be durable, whatever the policy.
    durable: bool,
    /// Some batches before this group are not durable yet.
    behind: bool,
}

/// Why a batch was not laid out.
enum Refusal {
    /// This batch alone; nothing of it was written.
    Batch(AppendError),
    /// The group must be committed before this batch can be.
    NextGroup,
    /// No further appends are possible.
    Failed(io::Error),
}

impl From<AppendError> for Refusal {
    fn from(error: AppendError) -> Self {
        Self::Batch(error)
    }
}

impl From<WriteError> for Refusal {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Full(shortage) => Self::Batch(AppendError::StorageFull(shortage)),
            WriteError::Failed(error) => Self::Failed(error),
        }
    }
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

    /// The newest id assigned, or kept by an imported frame.
    pub(crate) fn newest_id(&self) -> FrameId {
        self.ids.last()
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
        if let Err(error) = inner.begin_writing_with(self) {
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
                Ok(_) => Err(AppendError::Indeterminate(Arc::clone(&why))),
                Err(error) => Err(error),
            };
            let count = placed.len();
            answers.extend(placed.into_iter().map(answer));
            // The batch that failed may have been written in part; those after it were not.
            let rest = group[count..].iter().enumerate();
            answers.extend(rest.map(|(index, _)| match index {
                0 if !laid_out => Err(AppendError::Indeterminate(Arc::clone(&why))),
                _ => Err(AppendError::Poisoned(Arc::clone(&why))),
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

    /// Lays out one batch after those before it.
    fn place(
        &mut self,
        inner: &Inner,
        pending: &Pending,
        before: Before<'_>,
        conditions: &mut Conditions,
    ) -> Result<Placed, Refusal> {
        let now_ms = before.now_ms;
        if let Some(key) = &pending.key
            && let Some(used) = inner.keys.used(key, now_ms)?
        {
            // Before all conditions: they held when the batch was stored.
            return Ok(Placed { repeats: Some(used), ..Placed::default() });
        }
        if let Some(hash) = pending.missing {
            // The key was in use when the batch was prepared, but has expired.
            return Err(AppendError::UnknownBlob(hash).into());
        }
        if !self.removing.is_empty() && !pending.batch.conditions.is_empty() {
            // Conditions must see what the group has removed.
            return Err(Refusal::NextGroup);
        }
        conditions.check(inner, pending, before)?;
        self.check_ids(pending)?;
        let revisions = self.changes.check(inner, pending)?;
        if self.hides && !pending.targets.is_empty() {
            // Removals must see the frames that the group added and hid.
            return Err(Refusal::NextGroup);
        }
        let targets = self.targets(inner, pending)?;
        let stored = pending.is_stored(targets.iter().any(Option::is_some));
        if stored {
            if self.has_too_many_topics(inner) {
                self.roll(inner, pending.len)?;
            }
            self.make_room(inner, pending.len)?;
            let head = self.appender.next_offset();
            if head != before.head {
                // The segment rolled away from consumed an offset, which the next frame does not
                // get.
                conditions.check(inner, pending, Before { head, ..before })?;
            }
        }
        if !pending.staged.is_empty() {
            match inner.blobs.stage(&pending.staged) {
                Ok(()) => {}
                Err(StageError::Failed(error)) => return Err(Refusal::Failed(error)),
                Err(error) => return Err(AppendError::from(error).into()),
            }
        }
        still_there(inner, pending)?;
        let mut placed = Placed::default();
        placed.appended.frames.reserve_exact(pending.batch.frames.len());
        placed.appended.cursors = revisions;
        placed.appended.removed = targets.iter().map(answer_to).collect();
        placed.removed = targets.into_iter().flatten().collect();
        if !stored {
            self.place_ephemeral(pending, now_ms, &mut placed)?;
            return Ok(placed);
        }
        let mut open = self.appender.begin();
        let durable_upto = inner.durable_upto.load(Ordering::Acquire);
        match self.encode(pending, now_ms, &mut open, &mut placed) {
            Ok(changes) => {
                let at = self.appender.finish(&open, durable_upto);
                self.changes.take(inner, changes);
                self.removing.extend(placed.removed.iter().map(|target| target.offset));
                let hides = |frame: &NewFrame| matches!(frame.ttl, Ttl::Last(_));
                self.hides |= pending.batch.frames.iter().any(hides);
                self.hides |= pending.batch.import.is_some();
                self.take_up(inner, pending, &placed, at.segment.base());
                placed.at = Some(at);
                Ok(placed)
            }
            Err(error) => {
                self.appender.abandon(&open);
                Err(AppendError::Invalid(error).into())
            }
        }
    }

    /// The frames that a batch removes, in the order of its ids: those that still exist, each once.
    fn targets(&self, inner: &Inner, pending: &Pending) -> Result<Vec<Option<Target>>, Refusal> {
        let mut met = HashSet::new();
        let mut targets = Vec::with_capacity(pending.targets.len());
        if pending.targets.is_empty() {
            return Ok(targets);
        }
        let (now, old_ids) = (inner.looked_up(), inner.keys.has_old_ids());
        for (target, &id) in pending.targets.iter().zip(&pending.batch.removes) {
            let mut target = target.clone();
            // Since the lookup, compaction may have run, and frames or removals may have changed
            // which frame an id means. From here on nothing can: that needs the writer.
            let grown = now.head != pending.looked_up.head && target.is_none();
            if old_ids || grown || now.rewrites != pending.looked_up.rewrites {
                target = inner.target(id)?;
            }
            let removing = |found: &Target| self.removing.contains(&found.offset);
            if old_ids && target.as_ref().is_some_and(removing) {
                // Once that removal is visible, the id may mean another frame that had it before.
                return Err(Refusal::NextGroup);
            }
            let is_there = |found: &Target| {
                let Target { offset, topic, .. } = found;
                !self.removing.contains(offset) && !inner.index.is_hidden(topic, *offset, u64::MAX)
            };
            targets.push(target.filter(is_there).filter(|found| met.insert(found.offset)));
        }
        Ok(targets)
    }

    /// Whether the active segment should take no more topics. A segment without frames takes any.
    fn has_too_many_topics(&self, inner: &Inner) -> bool {
        // After the group has rolled, the index knows only the previous segment.
        self.appender.active().is_some_and(|active| active.frames > 0)
            && !self.appender.has_rolled()
            && inner.index.is_full()
    }

    /// Makes sure that a batch with `len` bytes of records fits where the next one goes, and that
    /// space is allocated for it.
    fn make_room(&mut self, inner: &Inner, len: usize) -> Result<(), Refusal> {
        let restated =
            |writer: &Self| writer.appender.is_bare().then(|| writer.changes.checkpoint_len());
        if !self.appender.has_room(restated(self).unwrap_or(0) + len) {
            if self.appender.has_rolled() {
                return Err(Refusal::NextGroup);
            }
            self.roll(inner, len)?;
        }
        let needed = restated(self).unwrap_or(0) + len;
        self.appender.reserve(needed).map_err(WriteError::when_preparing)?;
        if self.appender.is_bare() {
            let table = inner.cursors.read();
            let restated = self.changes.restated(&table);
            let durable_upto = inner.durable_upto.load(Ordering::Acquire);
            let known = (self.ids.last(), inner.keys.has_old_ids());
            self.appender.checkpoint(known, &restated, durable_upto);
        }
        Ok(())
    }

    /// Rolls to a new segment with space for a batch with `len` bytes of records.
    fn roll(&mut self, inner: &Inner, len: usize) -> Result<(), WriteError> {
        self.appender.roll(inner, self.changes.checkpoint_len() + len)
    }

    /// Encodes the records of a batch; the caller finishes or abandons it.
    fn encode(
        &mut self,
        pending: &Pending,
        now_ms: u64,
        open: &mut OpenBatch,
        placed: &mut Placed,
    ) -> Result<Vec<Change>, RecordError> {
        // Tombstones first: a `last:n` after them counts the frames that then exist.
        for target in &placed.removed {
            let record = Control::Tombstone(target.tombstone());
            self.appender.record(open, false, |out, _| control::encode(out, &record, false))?;
            self.appender.note_tombstone();
        }
        let base = self.appender.next_offset();
        for (index, new) in pending.batch.frames.iter().enumerate() {
            let id = match &pending.batch.import {
                Some(Import::Verbatim(ids)) => ids[index],
                Some(Import::NewIds(_)) | None => self.ids.next(now_ms),
            };
            let next = base + u64::from(open.frames());
            if new.ttl == Ttl::Ephemeral {
                placed.ephemeral.push((next, Frame::assemble(new, id, None, pending.body(index))?));
                placed.appended.frames.push(Stamp { id, offset: None });
                continue;
            }
            self.appender.record(open, true, |out, delta| {
                encode_frame(out, &pending.fields(index, id, delta))
            })?;
            placed.appended.frames.push(Stamp { id, offset: Some(next) });
        }
        let mut changes = Vec::with_capacity(pending.batch.cursors.len());
        for (index, change) in pending.batch.cursors.iter().enumerate() {
            let held = change.set.as_ref().zip(pending.states[index].clone());
            let held = held.map(|(value, state)| HeldCursor {
                revision: placed.appended.cursors[index],
                epoch: self.appender.epoch(),
                offset: value.offset,
                time_ms: now_ms,
                state,
            });
            let record = match &held {
                Some(held) => held.record(&change.name),
                None => Control::Cursor(CursorRecord {
                    name: change.name.as_str(),
                    revision: 0,
                    epoch: self.appender.epoch(),
                    offset: 0,
                    time_ms: now_ms,
                    state: StateRecord::Removed,
                }),
            };
            self.appender.record(open, false, |out, _| control::encode(out, &record, false))?;
            changes.push((change.name.clone(), held));
        }
        if let Some((key, used)) = pending.key.as_ref().zip(used_key(pending, placed, base)) {
            let record = Control::Key {
                expires_ms: expires_ms(used.id),
                id: used.id,
                offset: base,
                content: key.content,
                key: key.key.as_str(),
            };
            self.appender.record(open, false, |out, _| control::encode(out, &record, false))?;
        }
        Ok(changes)
    }

    /// Checks the ids that imported frames keep.
    fn check_ids(&self, pending: &Pending) -> Result<(), AppendError> {
        match &pending.batch.import {
            Some(Import::Verbatim(ids)) => match (ids.first(), self.ids.last()) {
                (Some(&id), newest) if id <= newest => {
                    Err(AppendError::ImportOrder { index: 0, id, newest })
                }
                _ => Ok(()),
            },
            Some(Import::NewIds(_)) | None => Ok(()),
        }
    }

    /// Records the key and the ids of a batch that was laid out in the segment with this base.
    fn take_up(&mut self, inner: &Inner, pending: &Pending, placed: &Placed, base: u64) {
        let old_ids: &[FrameId] = match &pending.batch.import {
            Some(Import::NewIds(ids)) => ids,
            Some(Import::Verbatim(ids)) => {
                ids.last().into_iter().for_each(|&id| self.ids.adopt(id));
                &[]
            }
            None => &[],
        };
        if pending.key.is_none() && old_ids.is_empty() {
            return;
        }
        let offsets = placed.appended.frames.iter().map(|stamp| stamp.offset);
        let first = offsets.clone().flatten().next();
        let used = first.and_then(|first| used_key(pending, placed, first));
        let old_ids = old_ids.iter().copied().zip(offsets.flatten());
        inner.keys.take_up(base, used, old_ids);
    }

    fn place_ephemeral(
        &mut self,
        pending: &Pending,
        now_ms: u64,
        placed: &mut Placed,
    ) -> Result<(), AppendError> {
        let next = self.appender.next_offset();
        for (index, new) in pending.batch.frames.iter().enumerate() {
            let id = self.ids.next(now_ms);
            let frame = Frame::assemble(new, id, None, pending.body(index));
            placed.ephemeral.push((next, frame.map_err(AppendError::Invalid)?));
            placed.appended.frames.push(Stamp { id, offset: None });
        }
        Ok(())
    }

    /// Writes the group and makes it durable if the policy or one of its batches asks for that.
    fn write(
        &mut self,
        inner: &Inner,
        Promise { durable, behind }: Promise,
        since: &mut Option<Instant>,
    ) -> io::Result<()> {
        // Before the records that name them.
        inner.blobs.flush()?;
        if !self.appender.is_ahead() {
            // What is acknowledged was written before: a repeated batch, or a removal.
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

    /// Refuses to go on after a group that failed: what it laid out may not be written. To be
    /// called before any sync but that of a group.
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
    /// store needs no older segment; with `roll` it is a new segment. Returns false when there is
    /// none.
    pub(crate) fn secure(&mut self, inner: &Inner, roll: bool) -> Result<bool, WriteError> {
        self.check_not_poisoned(inner)?;
        self.catch_up(inner)?;
        if roll && !self.appender.has_rolled() {
            self.roll(inner, control::MARK_LEN)?;
        }
        let Some(active) = self.appender.active() else { return Ok(false) };
        let durable = inner.durable_upto.load(Ordering::Acquire) >= self.appender.next_seq();
        if !active.bare && durable && !roll {
            return Ok(true);
        }
        if !self.begun {
            return Ok(false);
        }
        self.mark(inner, Mark::Sync)?;
        Ok(true)
    }

    /// Rolls to a new segment when reading the current one would slow down the next open. Without
    /// room for that it stays.
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

    /// Makes everything written durable, and has the log say so. Without an active segment it
    /// does: what is sealed is durable.
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

/// The key of a batch whose frames were laid out. `offset` is that of its first stored frame.
fn used_key(pending: &Pending, placed: &Placed, offset: u64) -> Option<UsedKey> {
    let (key, first) = (pending.key.as_ref()?, placed.appended.frames.first()?);
    Some(UsedKey { key: key.hash, content: short(&key.content), id: first.id, offset })
}

/// Checks that the packs still have the blobs that frames name by hash. Called while the writer is
/// held, so that none is swept before the frame is published.
fn still_there(inner: &Inner, pending: &Pending) -> Result<(), Refusal> {
    let named = |frame: &NewFrame| match frame.body {
        Body::Stored(hash) => Some(hash),
        _ => None,
    };
    let len_of = |hash: &BlobHash| {
        let len = inner.blobs.len_of(hash);
        len.map_err(AppendError::blob_refused)
    };
    for hash in pending.batch.frames.iter().filter_map(named) {
        if len_of(&hash)?.is_some() {
            continue;
        }
        // An earlier batch of the group may have staged it.
        inner.blobs.flush().map_err(Refusal::Failed)?;
        if len_of(&hash)?.is_none() {
            return Err(AppendError::UnknownBlob(hash).into());
        }
    }
    Ok(())
}
