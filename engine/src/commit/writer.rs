//! The one writer: gives the batches of a group their places, writes them, syncs as the policy
//! asks, and only then lets readers see them.
//!
//! The order is what makes a crash harmless. Blobs and log bytes are written first; under `sync`
//! both are durable before anything below happens; then the index learns of the frames, then the
//! published length and the head move, then the callers hear of it. A frame that a reader has seen
//! under `sync` can thus never be gone, and no acknowledged frame names a blob that is.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::append::{Appended, Pending, Stamp};
use crate::blob::StageError;
use crate::cursors::{CursorRoom, Cursors, HeldCursor};
use crate::error::AppendError;
use crate::format::align8;
use crate::format::batch::BATCH_HEADER_LEN;
use crate::format::control::{self, CHECKPOINT_LEN, Control, CursorRecord, Mark, StateRecord};
use crate::format::record::{FrameFields, RecordError, encode_frame, frame_len};
use crate::ids::IdSource;
use crate::index::Noted;
use crate::log::{Appender, Fault, OpenBatch, Place, RESTATED_BYTES, RESTATED_COUNT};
use crate::options::SyncPolicy;
use crate::recovery::Plan;
use crate::store::Inner;
use crate::value::{CursorName, ExpectRevision, Frame, Ttl};

/// The answer to one batch.
pub(crate) type Answer = Result<Appended, AppendError>;

/// What only the one who leads touches.
#[derive(Debug)]
pub(crate) struct Writer {
    appender: Appender,
    ids: IdSource,
    /// This opening has its epoch in the manifest, which no longer says that the store is clean.
    pub(crate) begun: bool,
    /// What recovery could not do on a full disk; done before anything else is written.
    deferred: Option<Plan>,
    /// The store was closed: nothing is committed any more.
    pub(crate) closed: bool,
    /// Changes of cursors in this group, not yet visible.
    changed: HashMap<CursorName, Option<HeldCursor>>,
    /// Bytes the table of cursors will take with those changes.
    cursor_bytes: usize,
    cursor_count: usize,
}

/// A batch of this group that was laid out.
struct Placed {
    appended: Appended,
    /// Where its records are; none for a batch of ephemeral frames alone.
    place: Option<Place>,
    ephemeral: Vec<(u64, Frame)>,
}

/// Why a batch was not laid out.
enum Refusal {
    /// This batch alone; nothing of it was written.
    Batch(AppendError),
    /// The group must be committed before this batch can be.
    NextGroup,
    /// Nobody can go on.
    Failed,
}

impl From<AppendError> for Refusal {
    fn from(error: AppendError) -> Self {
        Self::Batch(error)
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Full => Self::Batch(AppendError::StorageFull),
            Fault::Failed(_) => Self::Failed,
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
            changed: HashMap::new(),
            cursor_bytes: cursors.restated_bytes(),
            cursor_count: cursors.len(),
        }
    }

    /// Does what recovery had to leave undone, if the disk has room for it now.
    pub(crate) fn catch_up(&mut self, inner: &Inner) -> Result<(), Fault> {
        let Some(plan) = &self.deferred else { return Ok(()) };
        let recovered = plan.carry_out(&inner.env, &inner.blobs, &inner.open_files);
        let recovered = recovered.map_err(Fault::when_preparing)?;
        // The same bases and positions in other files, so readers notice nothing.
        for segment in &recovered.segments {
            inner.log.rewritten(segment);
            inner.index.rewritten(segment);
        }
        for segment in &recovered.sealed_now {
            let _ = inner.index.seal(segment);
        }
        self.appender.adopt(recovered.active);
        inner.durable_upto.store(self.appender.next_seq(), Ordering::Release);
        self.deferred = None;
        Ok(())
    }

    pub(crate) const fn appender(&self) -> &Appender {
        &self.appender
    }

    /// Commits batches from the front of `group`, as many as one group can take and at least one,
    /// and appends their answers to `answers`.
    pub(crate) fn commit(&mut self, inner: &Inner, group: &[Pending], answers: &mut Vec<Answer>) {
        if let Err(error) = inner.begin_writing_with(self) {
            answers.extend(group.iter().map(|_| Err(error.clone())));
            return;
        }
        let now_ms = inner.env.clock.now_ms();
        let mut placed: Vec<Result<Placed, AppendError>> = Vec::with_capacity(group.len());
        let mut failed = false;
        for pending in group {
            match self.place(inner, pending, now_ms) {
                Ok(batch) => placed.push(Ok(batch)),
                Err(Refusal::Batch(error)) => placed.push(Err(error)),
                Err(Refusal::NextGroup) => break,
                Err(Refusal::Failed) => {
                    failed = true;
                    break;
                }
            }
        }
        let durable = group[..placed.len()].iter().any(|pending| pending.batch.durable);
        if failed || self.write(inner, durable).is_err() {
            inner.poison();
            let answer = |batch: Result<Placed, AppendError>| match batch {
                Ok(_) => Err(AppendError::Indeterminate),
                Err(error) => Err(error),
            };
            let count = placed.len();
            answers.extend(placed.into_iter().map(answer));
            // The batch that failed may have been written in part; those after it were not.
            let rest = group[count..].iter().enumerate();
            answers.extend(rest.map(|(index, _)| match index {
                0 if failed => Err(AppendError::Indeterminate),
                _ => Err(AppendError::Poisoned),
            }));
            return;
        }
        self.publish(inner, group, &mut placed);
        let (head, seq) = (inner.log.head(), self.appender.next_seq());
        let durable = inner.durable_upto.load(Ordering::Acquire) >= seq;
        answers.extend(placed.into_iter().map(|batch| {
            batch.map(|Placed { appended, .. }| Appended { durable, head, ..appended })
        }));
    }

    /// Lays out one batch behind those before it.
    fn place(&mut self, inner: &Inner, pending: &Pending, now_ms: u64) -> Result<Placed, Refusal> {
        let revisions = self.check_cursors(inner, pending)?;
        let stored = pending.is_stored();
        if stored {
            self.make_room(inner, pending.len)?;
        }
        if !pending.staged.is_empty() {
            match inner.blobs.stage(&pending.staged) {
                Ok(()) => {}
                Err(StageError::Failed(_)) => return Err(Refusal::Failed),
                Err(error) => return Err(AppendError::from(error).into()),
            }
        }
        let mut placed = Placed {
            appended: Appended {
                frames: Vec::with_capacity(pending.batch.frames.len()),
                cursors: revisions,
                durable: false,
                head: 0,
            },
            place: None,
            ephemeral: Vec::new(),
        };
        if !stored {
            self.place_ephemeral(pending, now_ms, &mut placed)?;
            return Ok(placed);
        }
        let mut open = self.appender.begin();
        let durable_upto = inner.durable_upto.load(Ordering::Acquire);
        match self.encode(pending, now_ms, &mut open, &mut placed) {
            Ok(changes) => {
                placed.place = Some(self.appender.finish(&open, Some(durable_upto)));
                self.take_changes(inner, changes);
                Ok(placed)
            }
            Err(error) => {
                self.appender.abandon(&open);
                Err(AppendError::Invalid(error).into())
            }
        }
    }

    /// Makes sure that a batch with so many bytes of records fits where the next one goes.
    fn make_room(&mut self, inner: &Inner, len: usize) -> Result<(), Refusal> {
        let restated = if self.appender.is_bare() { self.checkpoint_len() } else { 0 };
        if !self.appender.has_room(restated + len) {
            if self.appender.has_rolled() {
                return Err(Refusal::NextGroup);
            }
            self.appender.roll(inner)?;
        }
        if self.appender.is_bare() {
            let table = inner.cursors.read();
            let unchanged = table.iter().filter(|(name, _)| !self.changed.contains_key(*name));
            let changed = self.changed.iter();
            let changed = changed.filter_map(|(name, held)| Some((name, held.as_ref()?)));
            let restated: Vec<_> = unchanged.chain(changed).collect();
            let durable_upto = inner.durable_upto.load(Ordering::Acquire);
            self.appender.checkpoint(self.ids.last(), &restated, durable_upto);
        }
        Ok(())
    }

    /// Bytes a checkpoint takes, at most.
    const fn checkpoint_len(&self) -> usize {
        let batches = 1 + self.cursor_count / RESTATED_COUNT + self.cursor_bytes / RESTATED_BYTES;
        align8(CHECKPOINT_LEN) + self.cursor_bytes + batches * BATCH_HEADER_LEN
    }

    /// Checks the conditions on cursors and says which revisions they get.
    fn check_cursors(&self, inner: &Inner, pending: &Pending) -> Result<Vec<u64>, AppendError> {
        let changes = &pending.batch.cursors;
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let table = inner.cursors.read();
        let (mut bytes, mut count) = (self.cursor_bytes, self.cursor_count);
        let mut revisions = Vec::with_capacity(changes.len());
        for (change, state) in changes.iter().zip(&pending.states) {
            let held = match self.changed.get(&change.name) {
                Some(changed) => changed.as_ref(),
                None => table.get(&change.name),
            };
            let actual = held.map_or(0, |held| held.revision);
            if let ExpectRevision::Is(expected) = change.expect
                && expected != actual
            {
                let name = change.name.clone();
                return Err(AppendError::CursorConflict { name, expected, actual });
            }
            bytes -= held.map_or(0, |held| held.record_len(&change.name));
            count -= usize::from(held.is_some());
            if state.is_some() {
                bytes += crate::cursors::record_len(&change.name, state.as_ref());
                count += 1;
            }
            revisions.push(if state.is_some() { actual + 1 } else { 0 });
        }
        let grows = bytes > self.cursor_bytes;
        let room = CursorRoom::new(inner.env.options.segment_bytes);
        if grows && !room.fits(count, bytes) {
            return Err(AppendError::TooManyCursors);
        }
        Ok(revisions)
    }

    /// Encodes the records of a batch; the caller finishes or abandons it.
    fn encode(
        &mut self,
        pending: &Pending,
        now_ms: u64,
        open: &mut OpenBatch,
        placed: &mut Placed,
    ) -> Result<Vec<(CursorName, Option<HeldCursor>)>, RecordError> {
        let base = self.appender.next_offset();
        for (index, new) in pending.batch.frames.iter().enumerate() {
            let id = self.ids.next(now_ms);
            let body = pending.body(index);
            let next = base + u64::from(open.frames());
            if new.ttl == Ttl::Ephemeral {
                placed.ephemeral.push((next, Frame::assemble(new, id, None, body)?));
                placed.appended.frames.push(Stamp { id, offset: None });
                continue;
            }
            self.appender.record(open, true, |out, delta| {
                encode_frame(out, &FrameFields::of(new, id, delta, body))
            })?;
            placed.appended.frames.push(Stamp { id, offset: Some(next) });
        }
        let mut changes = Vec::with_capacity(pending.batch.cursors.len());
        for (index, change) in pending.batch.cursors.iter().enumerate() {
            let held = change.set.as_ref().zip(pending.states[index].clone());
            let held = held.map(|((offset, _), state)| HeldCursor {
                revision: placed.appended.cursors[index],
                epoch: self.appender.epoch(),
                offset: *offset,
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
        Ok(changes)
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

    fn take_changes(&mut self, inner: &Inner, changes: Vec<(CursorName, Option<HeldCursor>)>) {
        if changes.is_empty() {
            return;
        }
        let table = inner.cursors.read();
        for (name, held) in changes {
            let len = |held: &HeldCursor| held.record_len(&name);
            let old = match self.changed.get(&name) {
                Some(changed) => changed.as_ref(),
                None => table.get(&name),
            };
            self.cursor_bytes -= old.map_or(0, len);
            self.cursor_count -= usize::from(old.is_some());
            self.cursor_bytes += held.as_ref().map_or(0, len);
            self.cursor_count += usize::from(held.is_some());
            self.changed.insert(name, held);
        }
    }

    /// Writes the group and syncs it if the policy or one of its batches asks for that.
    fn write(&mut self, inner: &Inner, durable: bool) -> io::Result<()> {
        if !self.appender.is_ahead() {
            return Ok(());
        }
        let bytes = self.appender.flush()?;
        inner.upkeep.wrote(inner, bytes, self.appender.fill_percent());
        if durable || inner.env.options.sync == SyncPolicy::Sync {
            self.sync(inner)?;
        }
        Ok(())
    }

    /// Makes everything written durable, log and packs at once.
    pub(crate) fn sync(&self, inner: &Inner) -> io::Result<()> {
        let waiting = inner.sealing.waiting();
        let media: Vec<_> = waiting.iter().chain(self.appender.media()).collect();
        inner.sync_files(&media)?;
        // After the syncs: the next header may say that all before it is durable.
        inner.durable_upto.fetch_max(self.appender.next_seq(), Ordering::AcqRel);
        Ok(())
    }

    /// Lets readers see the group.
    fn publish(
        &mut self,
        inner: &Inner,
        group: &[Pending],
        placed: &mut [Result<Placed, AppendError>],
    ) {
        let mut ephemeral = Vec::new();
        let mut batches = group
            .iter()
            .zip(placed)
            .filter_map(|(pending, placed)| placed.as_mut().ok().map(|placed| (pending, placed)));
        let mut next = batches.next();
        while let Some((pending, batch)) = next.take() {
            ephemeral.append(&mut batch.ephemeral);
            let Some(place) = &batch.place else {
                next = batches.next();
                continue;
            };
            // One lock of the index for all batches in a row that share a segment.
            let segment = Arc::clone(&place.segment);
            let mut notes = inner.index.notes(&segment);
            note(pending, batch, &mut |noted| notes.frame(noted));
            for (pending, batch) in batches.by_ref() {
                ephemeral.append(&mut batch.ephemeral);
                match &batch.place {
                    Some(place) if !Arc::ptr_eq(&place.segment, &segment) => {
                        next = Some((pending, batch));
                        break;
                    }
                    _ => note(pending, batch, &mut |noted| notes.frame(noted)),
                }
            }
        }
        if !self.changed.is_empty() {
            let mut table = inner.cursors.write();
            self.changed.drain().for_each(|(name, held)| table.set(name, held));
        }
        if !ephemeral.is_empty() {
            inner.tail.push(ephemeral);
        }
        self.publish_log(inner);
        inner.tail.publish();
    }

    /// Lets readers see the bytes written, and hands on the segment that was left.
    fn publish_log(&mut self, inner: &Inner) {
        self.appender.publish(inner);
        if let Some(job) = self.appender.take_rolled() {
            inner.sealing.hand_over(job);
            inner.upkeep.wake();
        }
    }

    /// Writes the MARK of a clean close, if there is a segment to write it to.
    pub(crate) fn mark_close(&mut self, inner: &Inner) -> Result<(), Fault> {
        match self.appender.active() {
            Some(_) => self.mark(inner, Mark::CleanClose),
            None => Ok(()),
        }
    }

    /// Writes a MARK: all before it is durable, and after it returns so is the mark.
    pub(crate) fn mark(&mut self, inner: &Inner, what: Mark) -> Result<(), Fault> {
        self.sync(inner).map_err(Fault::Failed)?;
        match self.make_room(inner, control::MARK_LEN) {
            Ok(()) => {}
            Err(Refusal::Batch(_) | Refusal::NextGroup) => return Err(Fault::Full),
            Err(Refusal::Failed) => return Err(Fault::Failed(io::ErrorKind::Other.into())),
        }
        let mut open = self.appender.begin();
        let record = Control::Mark { what, time_ms: inner.env.clock.now_ms() };
        let encoded =
            self.appender.record(&mut open, false, |out, _| control::encode(out, &record, false));
        encoded.map_err(|_| Fault::Failed(io::ErrorKind::InvalidInput.into()))?;
        // All before it is durable only if rolling for it wrote nothing itself.
        let durable_upto = inner.durable_upto.load(Ordering::Acquire);
        self.appender.finish(&open, Some(durable_upto));
        self.appender.flush().and_then(|_| self.sync(inner)).map_err(Fault::Failed)?;
        self.publish_log(inner);
        Ok(())
    }
}

/// Tells the index of the frames of one batch.
fn note(pending: &Pending, batch: &Placed, tell: &mut impl FnMut(&Noted<'_>)) {
    let Some(place) = &batch.place else { return };
    let mut record = place.position + BATCH_HEADER_LEN as u64;
    for (index, (new, stamp)) in pending.batch.frames.iter().zip(&batch.appended.frames).enumerate()
    {
        let Some(offset) = stamp.offset else { continue };
        let body = pending.body(index);
        let len = frame_len(&FrameFields::of(new, stamp.id, 0, body));
        tell(&Noted {
            offset,
            id: stamp.id,
            topic: new.topic.as_str(),
            batch: place.position as u32,
            record: record as u32,
            record_len: len as u32,
            body_len: body.map_or(0, |(len, _)| len),
            ttl: new.ttl,
        });
        record += align8(len) as u64;
    }
}
