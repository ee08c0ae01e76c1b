//! Lays out a batch after those before it in the group: checks it against everything that it must
//! not break, assigns its ids and offsets, and encodes it. Also stages its blobs, and rolls to a
//! new segment when one is full. The log is written later, for the whole group.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::Ordering;

use super::super::changes::Change;
use super::super::conditions::{Before, Conditions};
use super::super::placed::Placed;
use super::Writer;
use crate::append::{Pending, Target};
use crate::blob::StageError;
use crate::cursors::HeldCursor;
use crate::error::AppendError;
use crate::format::control::{self, Control, CursorRecord, StateRecord};
use crate::format::key_index::UsedKey;
use crate::format::record::{RecordError, encode_frame};
use crate::keys::{expires_ms, short};
use crate::log::{OpenBatch, WriteError};
use crate::store::Inner;
use crate::value::{BlobHash, Body, Frame, FrameId, Import, NewFrame, Removal, Stamp, Ttl};

fn answer_to(target: &Option<Target>) -> Removal {
    if target.is_some() { Removal::Removed } else { Removal::Absent }
}

/// Why a batch was not laid out.
pub(super) enum Refusal {
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
    /// Lays out one batch after those before it.
    pub(super) fn place(
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
            // Checked before the conditions, which held when the batch was stored.
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
                // Rolling consumed an offset, which the next frame does not get.
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
            // which frame an id means. From here on nothing can change that, because it takes the
            // writer.
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
    pub(super) fn make_room(&mut self, inner: &Inner, len: usize) -> Result<(), Refusal> {
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
    pub(super) fn roll(&mut self, inner: &Inner, len: usize) -> Result<(), WriteError> {
        self.appender.roll(inner, self.changes.checkpoint_len(), len)
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
