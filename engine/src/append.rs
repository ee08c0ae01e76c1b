//! The input and the result of an append. Everything about a batch that needs no lock is checked
//! and prepared here: limits, lengths, hashes, which frames are to be removed.

use std::sync::Arc;

use bytes::Bytes;

use crate::blob::{Blobs, Prepared, StageError};
use crate::cursors::{CursorRoom, HeldState};
use crate::error::AppendError;
use crate::format::align8;
use crate::format::control::{TOMBSTONE_LEN, Tombstone, key_len};
use crate::format::record::{FrameFields, frame_len};
use crate::ids::is_usable;
use crate::keys::{content_of, key_hash};
use crate::limits::{
    BATCH_BODIES_BYTES_MAX, BATCH_BYTES_MAX, BATCH_RECORDS_MAX, CONDITIONS_MAX,
    CURSOR_STATE_BYTES_MAX, RECORD_BYTES_MAX, TOPIC_BYTES_MAX,
};
use crate::value::{
    BlobHash, Body, Condition, CursorChange, CursorValue, FrameId, IdempotencyKey, Import,
    NewFrame, Ttl,
};

/// Frames, cursor changes and removals that are stored together or not at all.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// The frames, in order.
    pub frames: Vec<NewFrame>,
    /// Frames to remove, before the new ones are stored. All ids are looked up first. An id that
    /// does not exist, or that names the same frame as another id, is not an error: see
    /// [`Removal`](crate::Removal).
    pub removes: Vec<FrameId>,
    /// Changes of cursors; the batch is refused whole when one of their conditions is not met.
    pub cursors: Vec<CursorChange>,
    /// What must hold for the batch to be appended; it is refused whole when one condition does
    /// not.
    pub conditions: Vec<Condition>,
    /// An idempotency key: the batch is stored once, however often it is sent within 24 hours (or
    /// the next million keys). It needs a frame that is not ephemeral.
    pub key: Option<IdempotencyKey>,
    /// The ids its frames had in the store they come from: the batch is an import.
    pub import: Option<Import>,
    /// Acknowledge only once durable, whatever the store's policy. Such a batch may be empty: it is
    /// acknowledged once everything before it is durable.
    pub durable: bool,
}

impl From<NewFrame> for Batch {
    fn from(frame: NewFrame) -> Self {
        Self { frames: vec![frame], ..Self::default() }
    }
}

/// A batch's key, with its hash and the hash of the batch's content.
#[derive(Debug)]
pub(crate) struct HashedKey {
    pub(crate) key: IdempotencyKey,
    /// First 16 bytes of the hash of the key.
    pub(crate) hash: [u8; 16],
    /// Hash of what the batch stores.
    pub(crate) content: BlobHash,
}

/// A batch that is ready to be written.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) batch: Batch,
    /// Length and hash of each frame's body; empty when no frame has one.
    pub(crate) bodies: Vec<Option<(u64, BlobHash)>>,
    /// The state of each cursor that is set, in the order of the changes.
    pub(crate) states: Vec<Option<HeldState>>,
    /// The frames to remove that exist, in the order of the ids.
    pub(crate) targets: Vec<Option<Target>>,
    /// The head and the count of rewrites, taken before the frames to remove were looked up.
    pub(crate) looked_up: LookedUp,
    /// Bodies and states that go to the packs.
    pub(crate) staged: Vec<Prepared>,
    /// A body that is named by its hash and that the store does not have. Only a repeated batch may
    /// lack one.
    pub(crate) missing: Option<BlobHash>,
    pub(crate) key: Option<HashedKey>,
    /// Upper bound of the bytes its records take in the log.
    pub(crate) len: usize,
}

/// A frame that is to be removed, as the lookup found it.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) id: FrameId,
    pub(crate) offset: u64,
    /// Bytes of its record without padding.
    pub(crate) len: u32,
    pub(crate) topic: Arc<str>,
}

/// The state of the log when frames were looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct LookedUp {
    /// Number of segment rewrites so far.
    pub(crate) rewrites: u64,
    /// The head that readers saw.
    pub(crate) head: u64,
}

impl Target {
    /// The record that removes it.
    pub(crate) fn tombstone(&self) -> Tombstone<'_> {
        let Self { id, offset, len, ref topic, .. } = *self;
        Tombstone { id, offset, len, topic }
    }
}

/// What a batch is checked against.
pub(crate) struct Checks<'a> {
    pub(crate) blobs: &'a Blobs,
    pub(crate) segment_bytes: u64,
    /// Bytes the table of cursors takes now; accurate enough to decide where a state is stored.
    pub(crate) cursor_bytes: usize,
    /// The head and the count of rewrites, taken before frames to remove are looked up.
    pub(crate) looked_up: LookedUp,
    /// Finds a frame that is to be removed.
    pub(crate) find: &'a dyn Fn(FrameId) -> Result<Option<Target>, AppendError>,
    /// Whether a key was used before and is still remembered.
    pub(crate) is_used: &'a dyn Fn(&HashedKey) -> bool,
}

/// Maximum bytes of a batch's records in segments of this size: half a segment, so that a batch
/// always fits after the restated tables.
const fn records_max(segment_bytes: u64) -> usize {
    let half = segment_bytes as usize / 2;
    if half < BATCH_BYTES_MAX { half } else { BATCH_BYTES_MAX }
}

impl Pending {
    /// Checks a batch and prepares its bodies and states.
    pub(crate) fn prepare(batch: Batch, checks: &Checks<'_>) -> Result<Self, AppendError> {
        let count = batch.frames.len() + batch.cursors.len() + batch.removes.len();
        let max = BATCH_RECORDS_MAX - usize::from(batch.key.is_some());
        let min = usize::from(!batch.durable);
        if !(min..=max).contains(&count) {
            return Err(AppendError::BatchCount { count, max });
        }
        let count = batch.conditions.len();
        if count > CONDITIONS_MAX {
            return Err(AppendError::TooManyConditions { count, max: CONDITIONS_MAX });
        }
        check_import(&batch)?;
        let mut pending = Self {
            batch,
            bodies: Vec::new(),
            states: Vec::new(),
            targets: Vec::new(),
            looked_up: checks.looked_up,
            staged: Vec::new(),
            missing: None,
            key: None,
            len: 0,
        };
        pending.prepare_bodies(checks)?;
        pending.prepare_states(checks)?;
        pending.prepare_key()?;
        if let Some(hash) = pending.missing
            && !pending.key.as_ref().is_some_and(checks.is_used)
        {
            return Err(AppendError::UnknownBlob(hash));
        }
        let ids = pending.batch.removes.iter();
        pending.targets = ids.map(|&id| (checks.find)(id)).collect::<Result<_, _>>()?;
        pending.len = pending.records_len()?;
        let max = records_max(checks.segment_bytes);
        if pending.len > max {
            return Err(AppendError::BatchTooLarge { bytes: pending.len, max });
        }
        Ok(pending)
    }

    /// The blobs that keep their place in the packs once this is in the log.
    pub(crate) fn named(&self) -> impl Iterator<Item = BlobHash> + '_ {
        let stays = |(index, _): &(usize, _)| self.batch.frames[*index].ttl != Ttl::Ephemeral;
        let bodies = self.bodies.iter().enumerate().filter(stays);
        let bodies = bodies.filter_map(|(_, body)| body.map(|(_, hash)| hash));
        let states = self.states.iter().filter_map(|state| match state {
            Some(HeldState::Blob(_, hash)) => Some(*hash),
            _ => None,
        });
        bodies.chain(states)
    }

    /// Length and hash of a frame's body.
    pub(crate) fn body(&self, index: usize) -> Option<(u64, BlobHash)> {
        self.bodies.get(index).copied().flatten()
    }

    /// The fields of a frame's record.
    pub(crate) fn fields(&self, index: usize, id: FrameId, offset_delta: u32) -> FrameFields<'_> {
        let old_id = match &self.batch.import {
            Some(Import::NewIds(ids)) => ids.get(index).copied(),
            Some(Import::Verbatim(_)) | None => None,
        };
        let new = &self.batch.frames[index];
        FrameFields { old_id, ..FrameFields::of(new, id, offset_delta, self.body(index)) }
    }

    /// Whether any of it is written to the log, given whether something is removed.
    pub(crate) fn is_stored(&self, removes: bool) -> bool {
        let stored = |frame: &NewFrame| frame.ttl != Ttl::Ephemeral;
        removes || !self.batch.cursors.is_empty() || self.batch.frames.iter().any(stored)
    }

    fn prepare_bodies(&mut self, checks: &Checks<'_>) -> Result<(), AppendError> {
        if self.batch.frames.iter().all(|frame| frame.body == Body::None) {
            return Ok(());
        }
        let inline = |frame: &NewFrame| match &frame.body {
            Body::Inline(bytes) => bytes.len(),
            _ => 0,
        };
        let bytes = self.batch.frames.iter().map(inline).sum();
        if bytes > BATCH_BODIES_BYTES_MAX {
            return Err(AppendError::BatchTooLarge { bytes, max: BATCH_BODIES_BYTES_MAX });
        }
        self.bodies.reserve(self.batch.frames.len());
        for frame in &self.batch.frames {
            let body = match &frame.body {
                Body::None => None,
                // Zero bytes count as no body.
                Body::Inline(bytes) if bytes.is_empty() => None,
                Body::Inline(bytes) => {
                    let blob = prepare(bytes, checks)?.of_topic(frame.topic.as_str());
                    Some(stage(&mut self.staged, blob))
                }
                Body::Stored(hash) => match checks.blobs.len_of(hash) {
                    Ok(Some(len)) => Some((len, *hash)),
                    Ok(None) => {
                        self.missing = Some(*hash);
                        Some((0, *hash))
                    }
                    Err(error) => return Err(AppendError::blob_refused(error)),
                },
            };
            self.bodies.push(body);
        }
        Ok(())
    }

    fn prepare_states(&mut self, checks: &Checks<'_>) -> Result<(), AppendError> {
        let room = CursorRoom::new(checks.segment_bytes);
        for (index, change) in self.batch.cursors.iter().enumerate() {
            if self.batch.cursors[..index].iter().any(|other| other.name == change.name) {
                return Err(AppendError::CursorTwice(change.name.clone()));
            }
            let state = match &change.set {
                None => None,
                Some(CursorValue { state: bytes, .. }) if bytes.len() > CURSOR_STATE_BYTES_MAX => {
                    return Err(AppendError::StateTooLarge {
                        name: change.name.clone(),
                        bytes: bytes.len(),
                        max: CURSOR_STATE_BYTES_MAX,
                    });
                }
                Some(CursorValue { state: bytes, .. })
                    if room.is_inline(checks.cursor_bytes, bytes.len()) =>
                {
                    // A copy, because a state is held for long and should not keep the message it
                    // came in alive.
                    Some(HeldState::Inline(Bytes::copy_from_slice(bytes)))
                }
                Some(CursorValue { state: bytes, .. }) => {
                    let (len, hash) = stage(&mut self.staged, prepare(bytes, checks)?);
                    Some(HeldState::Blob(len, hash))
                }
            };
            self.states.push(state);
        }
        Ok(())
    }

    fn prepare_key(&mut self) -> Result<(), AppendError> {
        let Some(key) = self.batch.key.clone() else { return Ok(()) };
        if self.batch.frames.iter().all(|frame| frame.ttl == Ttl::Ephemeral) {
            return Err(AppendError::KeyWithoutFrame);
        }
        let content = content_of(self).map_err(AppendError::Invalid)?;
        self.key = Some(HashedKey { hash: key_hash(key.as_str()), key, content });
        Ok(())
    }

    fn records_len(&self) -> Result<usize, AppendError> {
        let mut total = 0;
        for (index, frame) in self.batch.frames.iter().enumerate() {
            let len = frame_len(&self.fields(index, FrameId::ZERO, 0));
            if len > RECORD_BYTES_MAX {
                return Err(AppendError::BatchTooLarge { bytes: len, max: RECORD_BYTES_MAX });
            }
            if frame.ttl != Ttl::Ephemeral {
                total += align8(len);
            }
        }
        for (change, state) in self.batch.cursors.iter().zip(&self.states) {
            total += crate::cursors::record_len(&change.name, state.as_ref());
        }
        total += self.key.as_ref().map_or(0, |key| key_len(key.key.as_str()));
        // The writer decides which of these exist; this is the upper bound.
        total += self.targets.len() * align8(TOMBSTONE_LEN + TOPIC_BYTES_MAX);
        Ok(total)
    }
}

/// Does those checks of the ids of an import that need no lock.
fn check_import(batch: &Batch) -> Result<(), AppendError> {
    let Some(import) = &batch.import else { return Ok(()) };
    let (frames, ids) = (batch.frames.len(), import.ids().len());
    if frames != ids {
        return Err(AppendError::ImportCount { frames, ids });
    }
    if let Some(index) = batch.frames.iter().position(|frame| frame.ttl == Ttl::Ephemeral) {
        return Err(AppendError::ImportEphemeral { index });
    }
    let Import::Verbatim(ids) = import else { return Ok(()) };
    if batch.key.is_some() {
        return Err(AppendError::ImportKey);
    }
    if let Some(index) = ids.windows(2).position(|pair| pair[0] >= pair[1]) {
        let (index, id, newest) = (index + 1, ids[index + 1], ids[index]);
        return Err(AppendError::ImportOrder { index, id, newest });
    }
    match ids.last() {
        Some(&id) if !is_usable(id) => Err(AppendError::ImportId(id)),
        _ => Ok(()),
    }
}

fn prepare(bytes: &Bytes, checks: &Checks<'_>) -> Result<Prepared, AppendError> {
    let prepared = checks.blobs.prepare(bytes);
    prepared.map_err(AppendError::blob_refused)
}

/// Stages a blob; returns its length and hash.
fn stage(staged: &mut Vec<Prepared>, blob: Prepared) -> (u64, BlobHash) {
    let body = (blob.len(), blob.hash());
    staged.push(blob);
    body
}

impl From<StageError> for AppendError {
    /// The error for a writer of blobs. Whether it poisons the store is decided elsewhere.
    fn from(error: StageError) -> Self {
        match error {
            StageError::Full(shortage) => Self::StorageFull(shortage),
            StageError::Refused(error) => Self::blob_refused(error),
            StageError::Gone => Self::blob_refused(error),
            StageError::Closed => Self::Closed,
            StageError::Failed(error) => Self::Indeterminate(error.into()),
        }
    }
}
