//! IMPORT: frames of another store become one batch of this one. Frames that cannot be stored are
//! reported individually; the rest is stored together.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use xs_engine::{
    Batch, BlobHash, Body, Frame, FrameId, Import, Meta, NewFrame, Store, SyncPolicy, Topic, Ttl,
};
use xs_protocol::{
    Code, Delivered, DoneImport, ImportIds, ImportOutcome, ImportRequest, Imported, Refusal,
};

use super::refuse;
use super::service::Core;
use crate::clock::now_ms;

/// The outcome of planning an import.
struct Plan {
    outcomes: Vec<ImportOutcome>,
    frames: Vec<NewFrame>,
    ids: Vec<FrameId>,
}

/// The imports in progress. Queued frames are not in the store yet, so an import of the same frames
/// waits until they are. Later imports wait after it: they would store newer ids and offsets before
/// it. A waiting import counts as in progress on its connection, which bounds their number.
#[derive(Default)]
pub(super) struct Imports(Mutex<UnderWay>);

#[derive(Default)]
struct UnderWay {
    ids: HashSet<FrameId>,
    waiting: VecDeque<(ImportRequest, DoneImport)>,
    /// Some caller is queueing imports that need not wait any more.
    is_moving: bool,
}

impl UnderWay {
    /// Takes the first waiting import and marks it as in progress, unless it must still wait.
    fn first(&mut self) -> Option<(ImportRequest, DoneImport)> {
        let (request, _) = self.waiting.front()?;
        if ids_of(request).any(|id| self.ids.contains(&id)) {
            return None;
        }
        let first = self.waiting.pop_front()?;
        self.ids.extend(ids_of(&first.0));
        Some(first)
    }
}

fn ids_of(request: &ImportRequest) -> impl Iterator<Item = FrameId> {
    request.frames.iter().map(|one| one.frame.id())
}

/// Queues the storable part of a request, once no other import of the same frames is in progress
/// and no earlier import waits.
pub(super) fn submit(core: &Arc<Core>, request: ImportRequest, done: DoneImport) {
    let first = {
        let mut under_way = core.imports.0.lock();
        under_way.waiting.push_back((request, done));
        // The caller that moves the queue will reach this import too.
        if under_way.is_moving { None } else { under_way.first() }
    };
    if let Some((request, done)) = first {
        begin(core, request, done);
    }
}

fn begin(core: &Arc<Core>, request: ImportRequest, done: DoneImport) {
    let ids: Vec<FrameId> = ids_of(&request).collect();
    let held = Arc::clone(core);
    submit_now(core, request, move |result| {
        done(result);
        go_on(&held, &ids);
    });
}

/// After an import of these frames has ended: queues the imports that waited for it, up to one that
/// must still wait.
fn go_on(core: &Arc<Core>, ended: &[FrameId]) {
    {
        let mut under_way = core.imports.0.lock();
        for id in ended {
            under_way.ids.remove(id);
        }
        // The caller that moves the queue checks again; an import may end inside its own submit.
        if std::mem::replace(&mut under_way.is_moving, true) {
            return;
        }
    }
    let mut has_moved = false;
    loop {
        let first = {
            let mut under_way = core.imports.0.lock();
            let first = under_way.first();
            under_way.is_moving = first.is_some();
            first
        };
        let Some((request, done)) = first else { break };
        begin(core, request, done);
        has_moved = true;
    }
    if has_moved {
        core.committer.wake();
    }
}

fn submit_now(
    core: &Core,
    request: ImportRequest,
    done: impl FnOnce(Result<Imported, Refusal>) + Send + 'static,
) {
    let (ids, durable) = (request.ids, request.durable);
    let Plan { outcomes, frames, ids: of_frames } = match plan(&core.store, request) {
        Ok(plan) => plan,
        Err(refusal) => return done(Err(refusal)),
    };
    if frames.is_empty() && !durable {
        let durable = core.store.sync_policy() == SyncPolicy::Sync;
        return done(Ok(Imported { outcomes, durable, head: core.store.head() }));
    }
    let import = match ids {
        ImportIds::Verbatim => Import::Verbatim(of_frames),
        ImportIds::New => Import::NewIds(of_frames),
    };
    let batch = Batch { frames, import: Some(import), durable, ..Batch::default() };
    core.submit(batch, move |result| {
        done(result.map_err(|error| refuse::append(&error)).map(|appended| Imported {
            outcomes,
            durable: appended.durable,
            head: appended.head,
        }));
    });
}

fn plan(store: &Store, request: ImportRequest) -> Result<Plan, Refusal> {
    let ImportRequest { frames, ids, .. } = request;
    let read = |error| refuse::read(&error);
    // No frame has the id zero.
    let mut newest = store.newest_id().unwrap_or(FrameId::ZERO);
    let now_ms = now_ms();
    let mut plan =
        Plan { outcomes: Vec::with_capacity(frames.len()), frames: Vec::new(), ids: Vec::new() };
    let mut taken: HashMap<FrameId, Frame> = HashMap::new();
    for Delivered { frame, body } in frames {
        let id = frame.id();
        let is_late = ids == ImportIds::Verbatim && id <= newest;
        // Includes frames no longer visible: repeating an import brings none back.
        let mut stored = match ids == ImportIds::New || is_late {
            true => store.stored(id).map_err(read)?,
            false => Vec::new(),
        };
        // A frame may occur twice in a request.
        stored.extend(taken.get(&id).cloned());
        let outcome = if stored.iter().any(|found| is_same(found, &frame)) {
            ImportOutcome::There
        } else if is_late && stored.is_empty() && has_expired(&frame, now_ms) {
            // It may have been imported before, and would expire at once.
            ImportOutcome::There
        } else if is_late || !stored.is_empty() {
            ImportOutcome::Refused(Code::ImportOrder)
        } else {
            match new_frame(store, &frame, body) {
                Ok(new) => {
                    plan.frames.push(new);
                    plan.ids.push(id);
                    newest = newest.max(id);
                    taken.insert(id, frame);
                    ImportOutcome::New
                }
                Err(code) => ImportOutcome::Refused(code),
            }
        };
        plan.outcomes.push(outcome);
    }
    Ok(plan)
}

/// Whether a frame that keeps its id has expired.
fn has_expired(frame: &Frame, now_ms: u64) -> bool {
    matches!(frame.ttl(), Ttl::TimeMs(ms) if frame.id().time_ms().saturating_add(ms) <= now_ms)
}

/// Whether a stored frame equals the one to be imported.
fn is_same(found: &Frame, frame: &Frame) -> bool {
    found.topic() == frame.topic()
        && found.meta() == frame.meta()
        && found.hash() == frame.hash()
        && found.ttl() == frame.ttl()
        && found.origin() == frame.origin()
}

/// The frame to append, or why it cannot be imported.
fn new_frame(store: &Store, frame: &Frame, body: Option<bytes::Bytes>) -> Result<NewFrame, Code> {
    if frame.ttl() == Ttl::Ephemeral {
        return Err(Code::InvalidValue);
    }
    let body = match (frame.hash(), body) {
        (None, _) => Body::None,
        (Some(hash), Some(bytes)) if BlobHash::of(&bytes) == hash => Body::Inline(bytes),
        (Some(_), Some(_)) => return Err(Code::InvalidValue),
        (Some(hash), None) => match store.has_blob(&hash) {
            Ok(true) => Body::Stored(hash),
            Ok(false) => return Err(Code::UnknownBlob),
            Err(error) => return Err(refuse::read(&error).code),
        },
    };
    // A frame that was read is valid; a peer may still send one that is not.
    let topic = Topic::parse(frame.topic()).map_err(|_| Code::InvalidValue)?;
    let meta = match frame.meta() {
        [] => Meta::none(),
        text => Meta::parse(text.to_vec()).map_err(|_| Code::InvalidValue)?,
    };
    Ok(NewFrame { topic, meta, body, ttl: frame.ttl(), origin: frame.origin() })
}
