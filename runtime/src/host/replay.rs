//! Reruns a handler over frames in the log: to find what its state was, or what other code would
//! have made of them. Nothing is stored and nothing outside is reached; a handler that uses the
//! network or runs programs cannot be replayed, and gets an error. Its reads of the store see the
//! log up to the frame being handled.

mod candidate;
mod shelf;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use xs_engine::limits::HOPS_MAX;
use xs_engine::{Bound, Frame, FrameId, NewFrame, ReadOptions, Start, TopicPattern, TopicPatterns};
use xs_protocol::{Client, ClientError};

use self::shelf::Shelf;
use super::handler::cursor::{Began, HandlerCursor};
use super::handler::parked::{PARKED, UNPARK, about};
use super::lifecycle::{Event, Key};
use super::store::processor_cursor;
use super::version::{graph_of, told_error};
use crate::isolate::{
    Backend, Definition, FailureKind, INPUTS_MAX, Input, Isolate, IsolateSpec, LastResort,
    ModuleError, OnError, StartAt, Verdict,
};
use crate::loader::ModuleGraph;

pub use self::candidate::{Candidate, Code, Made, Recorded, recorded, replay, state_for};
pub use self::shelf::Said;

/// Why a state cannot be reconstructed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The store refused, or the connection to it is lost.
    #[error(transparent)]
    Store(#[from] ClientError),
    /// The log holds no source of the handler that could run.
    #[error("the log has no source of {0}")]
    NoSource(Key),
    /// The handler failed.
    #[error(transparent)]
    Module(#[from] ModuleError),
}

/// The state of a handler after the frame `until`, as JSON; `None` is its initial state. `env`
/// holds the environment variables it is offered.
///
/// # Errors
/// [`ReplayError`] when the frames cannot be read or the handler cannot be run over them.
pub async fn state_at(
    client: &Client,
    key: &Key,
    until: FrameId,
    env: &BTreeMap<String, String>,
) -> Result<Option<Bytes>, ReplayError> {
    let creates = creates(client, key).await?;
    let own: HashSet<FrameId> = creates.iter().map(Frame::id).collect();
    let newest = creates.iter().rev().find(|frame| told_error(frame).is_none());
    let Some(newest) = newest else { return Err(ReplayError::NoSource(key.clone())) };
    let graph = graph_of(client, key, newest, &CancellationToken::new()).await?;
    let shelf = Arc::new(Shelf::new(client.clone(), Box::new(|_, _| {})));
    let mut spec = spec(key, newest, graph);
    spec.env = env.clone();
    let mut fold = Fold::start(spec, shelf, Begin::Anew).await?;
    let began = began(client, key, until).await?;
    let first = match (began, fold.definition.start) {
        (Some(began), _) => began.from,
        (None, StartAt::First) => 0,
        (None, StartAt::New) => {
            let begun = creates.iter().find(|frame| told_error(frame).is_none());
            begun.and_then(Frame::offset).map_or(0, |offset| offset + 1)
        }
        (None, StartAt::After(id)) => {
            let frame = client.get(Bound::Id(id)).await?;
            frame.and_then(|frame| frame.offset()).map_or(0, |offset| offset + 1)
        }
    };
    let unpark = key.name.event_topic(key.kind, UNPARK);
    let handled = fold.definition.topics.clone().unwrap_or_else(TopicPatterns::all);
    let both = handled.as_slice().iter().cloned().chain([TopicPattern::Exact(unpark.clone())]);
    let options = ReadOptions {
        topics: TopicPatterns::new(both.collect()).unwrap_or(handled),
        start: Start::From(Bound::Offset(first)),
        before: Some(Bound::Id(until.next())),
        ..ReadOptions::default()
    };
    let mut parked = parked(client, key, until, began).await?;
    let (mut frames, mut batch) = (client.fetch(&options), Vec::new());
    while let Some(frame) = frames.next().await {
        let mut frame = frame?;
        if frame.topic() == unpark.as_str() {
            let record = about(&frame, PARKED).filter(|record| parked.records.contains(record));
            let Some(input) = unparked(client, record).await? else { continue };
            frame = input;
        }
        if parked.takes(frame.id()) {
            continue;
        }
        let origin = frame.origin();
        if origin.is_some_and(|o| own.contains(&o.processor) || o.hops >= HOPS_MAX) {
            continue;
        }
        batch.push(Input { frame, body: None, attempt: 1 });
        if batch.len() == INPUTS_MAX {
            fold.take(std::mem::take(&mut batch)).await?;
            fold.made.clear();
        }
    }
    fold.take(batch).await?;
    Ok(fold.state)
}

/// The `create` frames of a processor.
async fn creates(client: &Client, key: &Key) -> Result<Vec<Frame>, ClientError> {
    let topics = TopicPatterns::from(key.name.event_topic(key.kind, Event::Create.as_str()));
    all(client, ReadOptions { topics, ..ReadOptions::default() }).await
}

async fn all(client: &Client, options: ReadOptions) -> Result<Vec<Frame>, ClientError> {
    let (mut frames, mut all) = (client.fetch(&options), Vec::new());
    while let Some(frame) = frames.next().await {
        all.push(frame?);
    }
    Ok(all)
}

/// The inputs that a handler has parked. Each record stands for one occurrence of an input.
#[derive(Default)]
struct Parked {
    records: HashSet<FrameId>,
    times: HashMap<FrameId, u32>,
}

impl Parked {
    /// Whether this occurrence of an input was parked; uses up one of its records.
    fn takes(&mut self, input: FrameId) -> bool {
        let Some(times) = self.times.get_mut(&input).filter(|times| **times > 0) else {
            return false;
        };
        *times -= 1;
        true
    }
}

/// Where the handler's current history begins, if the frame `at` belongs to it: each reset begins a
/// new history.
async fn began(client: &Client, key: &Key, at: FrameId) -> Result<Option<Began>, ClientError> {
    let place = client.cursor_get(&processor_cursor(key)).await?;
    let began =
        place.and_then(|cursor| HandlerCursor::of(&cursor).ok()).and_then(|place| place.began);
    let Some(began) = began else { return Ok(None) };
    // The frame itself may have been removed.
    let start = Start::From(Bound::Id(at.next()));
    let next = ReadOptions { start, limit: Some(1), ..ReadOptions::default() };
    let next = client.fetch(&next).next().await.transpose()?;
    let offset =
        next.and_then(|frame| frame.offset()).map_or(u64::MAX, |next| next.saturating_sub(1));
    Ok(Some(began).filter(|began| began.has(offset)))
}

/// The inputs parked up to a frame; only those of the current history if the frame belongs to it.
async fn parked(
    client: &Client,
    key: &Key,
    until: FrameId,
    began: Option<Began>,
) -> Result<Parked, ClientError> {
    let options = ReadOptions {
        topics: TopicPatterns::from(key.name.topic(PARKED)),
        before: Some(Bound::Id(until.next())),
        ..ReadOptions::default()
    };
    let mut parked = Parked::default();
    for record in all(client, options).await? {
        if began.is_none_or(|began| began.has_parked(&record))
            && let Some(input) = about(&record, "frame")
        {
            parked.records.insert(record.id());
            *parked.times.entry(input).or_default() += 1;
        }
    }
    Ok(parked)
}

/// The input that a parked record is about.
async fn unparked(client: &Client, record: Option<FrameId>) -> Result<Option<Frame>, ClientError> {
    let Some(record) = record else { return Ok(None) };
    let record = client.get(Bound::Id(record)).await?;
    match record.and_then(|record| about(&record, "frame")) {
        Some(input) => client.get(Bound::Id(input)).await,
        None => Ok(None),
    }
}

/// The version of a `create` frame, sealed off from the outside.
fn spec(key: &Key, create: &Frame, graph: ModuleGraph) -> IsolateSpec {
    let meta: serde_json::Value = serde_json::from_slice(create.meta()).unwrap_or_default();
    let mut spec = IsolateSpec::new(key.name.as_str(), key.kind, create.id(), graph);
    spec.config = meta.get("config").cloned().unwrap_or_default();
    seal(&mut spec);
    spec
}

/// Grants every permission, so that asking never fails, but seals the isolate: nothing is
/// reachable.
fn seal(spec: &mut IsolateSpec) {
    spec.allow.net_any = true;
    spec.allow.net_private = true;
    spec.allow.run = true;
    spec.sealed = true;
}

/// The state with which a handler begins.
enum Begin {
    /// The initial state of its definition.
    Anew,
    /// A saved state, and which code saved it.
    With(Bytes, Code),
}

/// A handler that is being run over frames.
struct Fold {
    spec: IsolateSpec,
    shelf: Arc<Shelf>,
    isolate: Isolate,
    definition: Definition,
    state: Option<Bytes>,
    /// The frames its calls appended, in order, each with its input as its origin.
    made: Vec<NewFrame>,
    /// The inputs it threw on and skipped.
    passed: Vec<(FrameId, ModuleError)>,
    /// How many of the inputs of the last `take` are finished.
    done: usize,
}

impl Fold {
    async fn start(
        spec: IsolateSpec,
        shelf: Arc<Shelf>,
        begin: Begin,
    ) -> Result<Self, ModuleError> {
        let backend = Arc::clone(&shelf) as Arc<dyn Backend>;
        let (isolate, definition) = Isolate::start(spec.clone(), backend).await?;
        let state = match begin {
            Begin::Anew => {
                isolate.load_state(None).await?;
                None
            }
            Begin::With(saved, Code::Same) => {
                isolate.load_state(Some(saved.clone())).await?;
                Some(saved)
            }
            Begin::With(saved, Code::Other) => {
                isolate.migrate_state(saved.clone()).await?;
                Some(saved)
            }
        };
        let (made, passed) = (Vec::new(), Vec::new());
        Ok(Self { spec, shelf, isolate, definition, state, made, passed, done: 0 })
    }

    /// Continues from the current state in a new isolate.
    async fn replace_isolate(&mut self) -> Result<(), ModuleError> {
        let backend = Arc::clone(&self.shelf) as Arc<dyn Backend>;
        let (isolate, _) = Isolate::start(self.spec.clone(), backend).await?;
        isolate.load_state(self.state.clone()).await?;
        self.isolate = isolate;
        Ok(())
    }

    /// Handles inputs: all together, then one by one if one of them fails.
    async fn take(&mut self, inputs: Vec<Input>) -> Result<(), ModuleError> {
        let mut left = inputs;
        self.done = 0;
        let mut together = true;
        while !left.is_empty() {
            let count = if together { left.len() } else { 1 };
            self.shelf.turn_to(&left[0].frame);
            let mut handling = self.isolate.handle(left[..count].to_vec())?;
            let (mut done, mut failed) = (0, None);
            while let Some(reply) = handling.next().await? {
                done += reply.done;
                // An input that awaits is announced by this reply, and reads once the next reply is
                // requested.
                left.get(done).into_iter().for_each(|input| self.shelf.turn_to(&input.frame));
                self.state = reply.state.or_else(|| self.state.take());
                self.made.extend(reply.outputs);
                failed = reply.failure;
            }
            left.drain(..done);
            self.done += done;
            let Some(failure) = failed else { continue };
            if failure.shared && together {
                together = false;
            } else {
                self.passes_over(&failure.error, failure.verdict, &left[0])?;
                let input = left.remove(0);
                self.done += 1;
                self.passed.push((input.frame.id(), failure.error));
            }
            self.replace_isolate().await?;
        }
        Ok(())
    }

    /// Whether the handler continues after a failing input, as it did or would in production.
    fn passes_over(
        &self,
        error: &ModuleError,
        verdict: Verdict,
        input: &Input,
    ) -> Result<(), ModuleError> {
        let resort = match self.definition.on_error {
            OnError::Now(resort) | OnError::Retry { then: resort, .. } => resort,
        };
        if verdict == Verdict::Park || resort != LastResort::Unregister {
            return Ok(());
        }
        let text = format!("frame {}: {}", input.frame.id(), error.message);
        Err(ModuleError { message: text, kind: FailureKind::Throw, ..error.clone() })
    }
}
