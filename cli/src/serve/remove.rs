//! Removals: resolves the ids and offsets of a request to ids in the store, and maps the result
//! back to one answer for each. Permissions were checked before; this module only enforces the
//! topics.

use xs_engine::limits::BATCH_RECORDS_MAX;
use xs_engine::{
    AppendError, Appended, Batch, Bound, FrameId, Removal, Store, SyncPolicy, TopicPatterns,
};
use xs_protocol::{AppendRequest, Code, Detail, Refusal};

use super::refuse;

/// The requested removals, in order: an id, or `None` where there is no frame.
pub(super) struct Removes(Vec<Option<FrameId>>);

impl Removes {
    /// The answer to a batch that has no effect because nothing it removes exists. A durable batch
    /// still goes to the store: the earlier removal may not be durable yet.
    pub(super) fn nothing_to_do(&self, store: &Store, batch: &Batch) -> Option<Appended> {
        let is_empty =
            batch.frames.is_empty() && batch.cursors.is_empty() && batch.removes.is_empty();
        let is_plain = batch.conditions.is_empty() && batch.key.is_none() && !batch.durable;
        (is_empty && is_plain && !self.0.is_empty()).then(|| Appended {
            removed: vec![Removal::Absent; self.0.len()],
            durable: store.sync_policy() == SyncPolicy::Sync,
            head: store.head(),
            ..Appended::default()
        })
    }

    /// The result with one entry for each requested removal, in order.
    pub(super) fn outcome(&self, mut appended: Appended) -> Appended {
        let mut done = std::mem::take(&mut appended.removed).into_iter();
        let found = |id: &Option<FrameId>| id.and_then(|_| done.next()).unwrap_or(Removal::Absent);
        appended.removed = self.0.iter().map(found).collect();
        appended
    }
}

/// Converts a batch of the protocol to one of the store.
///
/// # Errors
/// [`Refusal`] when it is empty, or a frame to be removed has another topic or cannot be read.
pub(super) fn resolve(store: &Store, batch: AppendRequest) -> Result<(Batch, Removes), Refusal> {
    if batch.frames.is_empty() && batch.cursors.is_empty() && batch.removes.is_empty() {
        // The store itself accepts an empty durable batch: that is what remains when all its
        // removals are of missing frames.
        let max = BATCH_RECORDS_MAX - usize::from(batch.key.is_some());
        return Err(refuse::append(&AppendError::BatchCount { count: 0, max }));
    }
    let within = batch.removes_within.as_ref();
    let ids = batch.removes.iter().map(|&at| id_of(store, at, within));
    let ids = ids.collect::<Result<Vec<_>, _>>()?;
    let AppendRequest { frames, cursors, conditions, key, durable, .. } = batch;
    let removes = ids.iter().copied().flatten().collect();
    let batch = Batch { frames, removes, cursors, conditions, key, durable, ..Batch::default() };
    Ok((batch, Removes(ids)))
}

/// The id of a frame to be removed; `None` when it does not exist.
fn id_of(
    store: &Store,
    at: Bound,
    within: Option<&TopicPatterns>,
) -> Result<Option<FrameId>, Refusal> {
    let frame = match (at, within) {
        (Bound::Id(id), None) => return Ok(Some(id)),
        (Bound::Id(id), Some(_)) => store.get(id),
        (Bound::Offset(offset), _) => store.get_at(offset),
    };
    let Some(frame) = frame.map_err(|error| refuse::read(&error))? else { return Ok(None) };
    if within.is_some_and(|topics| !topics.matches(frame.topic())) {
        let text = format!("frame {} of {} may not be removed here", frame.id(), frame.topic());
        return Err(Refusal::new(Code::Denied, text).with(Detail::Frame(frame.id())));
    }
    Ok(Some(frame.id()))
}

/// Removes frames together with their bytes.
///
/// # Errors
/// [`Refusal`]; the frames may be removed although their bytes are still there.
pub(super) fn now(store: &Store, batch: AppendRequest) -> Result<Appended, Refusal> {
    let (batch, removes) = resolve(store, batch)?;
    if let Some(nothing) = removes.nothing_to_do(store, &batch) {
        return Ok(nothing);
    }
    let frames = batch.removes.len();
    let done = store.append_removing_now(batch);
    let (done, report) = done.map_err(|error| refuse::compact(&error))?;
    tracing::info!(frames, rewritten = report.rewritten, "removed for good");
    Ok(removes.outcome(done))
}
