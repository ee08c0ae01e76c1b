//! Removals: resolves the ids and offsets of a request to ids in the store, and maps the result
//! back to one answer for each. Permissions were checked before; this module only enforces the
//! topics.

use xs_engine::limits::BATCH_RECORDS_MAX;
use xs_engine::{
    AppendError, Appended, Batch, Bound, FrameId, Removal, Store, SyncPolicy, TopicPatterns,
};
use xs_protocol::{AppendRequest, Code, Detail, Refusal};

use super::refuse;

/// The requested removals, in order.
pub(super) struct Removes(Vec<Asked>);

/// A requested removal.
#[derive(Debug, Clone, Copy, Default)]
struct Asked {
    /// The frame to remove; `None` if there is none.
    id: Option<FrameId>,
    /// There was a frame, but readers no longer see it.
    is_gone: bool,
}

impl Removes {
    fn ids(&self) -> Vec<FrameId> {
        self.0.iter().filter_map(|asked| asked.id).collect()
    }

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
        let found = |asked: &Asked| match (asked.id.and_then(|_| done.next()), asked.is_gone) {
            (_, true) => Removal::Removed,
            (done, false) => done.unwrap_or(Removal::Absent),
        };
        appended.removed = self.0.iter().map(found).collect();
        appended
    }

    /// Also counts as removed the frames that readers no longer see, because their bytes must go
    /// too: repeating a removal that was cut off finishes it and gives the same answer. A frame
    /// that compaction has dropped is known by an offset below the head, unless only some topics
    /// are allowed. An id tells nothing.
    fn with_gone(
        &mut self,
        store: &Store,
        asked: &[Bound],
        within: Option<&TopicPatterns>,
    ) -> Result<(), Refusal> {
        let failed = |error| refuse::read(&error);
        for (asked, &at) in self.0.iter_mut().zip(asked) {
            let stored = match at {
                Bound::Id(id) if store.get(id).map_err(failed)?.is_none() => {
                    store.stored(id).map_err(failed)?.pop()
                }
                Bound::Offset(offset) if asked.id.is_none() => {
                    store.stored_at(offset).map_err(failed)?
                }
                _ => continue,
            };
            match (stored, within) {
                (Some(frame), _) if within.is_none_or(|of| of.matches(frame.topic())) => {
                    // Since an import, a visible frame may have the same id; it is not the one
                    // meant.
                    let id = frame.id();
                    if store.get(id).map_err(failed)?.is_none() {
                        *asked = Asked { id: asked.id.or(Some(id)), is_gone: true };
                    }
                }
                (None, None) => {
                    asked.is_gone = matches!(at, Bound::Offset(at) if at < store.head());
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn has_gone(&self) -> bool {
        self.0.iter().any(|asked| asked.is_gone)
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
    let asked = batch
        .removes
        .iter()
        .map(|&at| id_of(store, at, within).map(|id| Asked { id, is_gone: false }));
    let removes = Removes(asked.collect::<Result<_, _>>()?);
    let AppendRequest { frames, cursors, conditions, key, durable, .. } = batch;
    let ids = removes.ids();
    let batch =
        Batch { frames, removes: ids, cursors, conditions, key, durable, ..Batch::default() };
    Ok((batch, removes))
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
    let (asked, within) = (batch.removes.clone(), batch.removes_within.clone());
    let (mut batch, mut removes) = resolve(store, batch)?;
    removes.with_gone(store, &asked, within.as_ref())?;
    batch.removes = removes.ids();
    // The journal may still have bytes of frames that are gone.
    if !removes.has_gone()
        && let Some(nothing) = removes.nothing_to_do(store, &batch)
    {
        return Ok(nothing);
    }
    let frames = batch.removes.len();
    let done = store.append_removing_now(batch);
    let (done, report) = done.map_err(|error| refuse::remove_now(&error))?;
    tracing::info!(frames, rewritten = report.rewritten, "removed for good");
    Ok(removes.outcome(done))
}

#[cfg(test)]
mod tests {
    use xs_engine::{Batch, NewFrame, StoreOptions, Topic};

    use super::*;

    fn request(removes: Vec<Bound>) -> AppendRequest {
        AppendRequest { removes, ..AppendRequest::default() }
    }

    /// A store with five frames; the second and the third were removed, and lie in the log.
    fn store(dir: &std::path::Path) -> (Store, Vec<FrameId>) {
        let options = StoreOptions { compaction: None, ..StoreOptions::default() };
        let store = Store::open(dir, options).unwrap();
        let new = |topic: &str| NewFrame::new(Topic::parse(topic).unwrap());
        let frames = ["a", "a", "b", "a", "a"].map(new).to_vec();
        let done = store.append(Batch { frames, ..Batch::default() }).unwrap();
        let ids: Vec<_> = done.frames.iter().map(|stamp| stamp.id).collect();
        store.remove(ids[1]).unwrap();
        store.remove(ids[2]).unwrap();
        (store, ids)
    }

    #[test]
    fn a_removal_that_was_cut_off_is_finished_by_the_same_again() {
        use Removal::{Absent, Removed};
        let dir = tempfile::tempdir().unwrap();
        let (store, ids) = store(dir.path());
        let is_stored = |at| store.stored_at(at).unwrap().is_some();
        let asked = vec![Bound::Offset(0), Bound::Offset(1), Bound::Id(ids[2]), Bound::Offset(9)];
        assert_eq!([0, 1, 2].map(is_stored), [true; 3], "the removals were cut off");
        let done = now(&store, request(asked.clone())).unwrap();
        assert_eq!(done.removed, [Removed, Removed, Removed, Absent]);
        assert_eq!([0, 1, 2, 3].map(is_stored), [false, false, false, true]);
        // The id of a frame that was compacted away looks like one that never existed.
        let done = now(&store, request(asked)).unwrap();
        assert_eq!(done.removed, [Removed, Removed, Absent, Absent]);
        assert_eq!(store.head(), 5);
        // Without a request to remove the bytes, only visible frames count.
        let (batch, removes) = resolve(&store, request(vec![Bound::Offset(0)])).unwrap();
        assert_eq!(removes.nothing_to_do(&store, &batch).unwrap().removed, [Absent]);
    }

    #[test]
    fn who_may_remove_some_topics_is_told_of_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = store(dir.path());
        let within = Some(TopicPatterns::parse("a").unwrap());
        let asked = [1, 2].map(Bound::Offset).to_vec();
        let asked = AppendRequest { removes_within: within, ..request(asked) };
        let done = now(&store, asked.clone()).unwrap();
        assert_eq!(done.removed, [Removal::Removed, Removal::Absent]);
        assert_eq!(now(&store, asked).unwrap().removed, [Removal::Absent; 2]);
    }
}
