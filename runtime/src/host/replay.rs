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
use xs_engine::{Bound, Frame, FrameId, NewFrame, ReadOptions, Start, TopicPatterns};
use xs_protocol::{Client, ClientError};

use self::shelf::Shelf;
use super::driver::Ending;
use super::handler::cursor::{Began, HandlerCursor};
use super::handler::offer::{self, Offer, Unparked, first_offset, unpark_topic, unparked};
use super::handler::parked::{PARKED, about};
use super::lifecycle::{Event, Key, Versions};
use super::store::processor_cursor;
use super::version::{graph_of, told_error};
use crate::isolate::{
    Backend, Definition, FailureKind, INPUTS_MAX, Input, Isolate, IsolateSpec, LastResort,
    ModuleError, OnError, Verdict,
};
use crate::loader::ModuleGraph;
use crate::name::{Kind, ProcessorName};

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
    Source::newest(client, key).await?.state_at(client, key, until, env).await
}

/// What the log holds of a handler's code.
struct Source {
    /// The `create` frame of its newest version that could be loaded.
    create: Frame,
    graph: ModuleGraph,
    /// The offset of the oldest one.
    begun: u64,
}

impl Source {
    async fn newest(client: &Client, key: &Key) -> Result<Self, ReplayError> {
        let creates = creates(client, key).await?.into_iter();
        let mut creates = creates.filter(|frame| told_error(frame).is_none());
        let first = creates.next().ok_or_else(|| ReplayError::NoSource(key.clone()))?;
        let begun = first.offset().unwrap_or_default();
        let create = creates.next_back().unwrap_or(first);
        let graph = graph_of(client, key, &create, &CancellationToken::new()).await?;
        Ok(Self { create, graph, begun })
    }

    async fn state_at(
        &self,
        client: &Client,
        key: &Key,
        until: FrameId,
        env: &BTreeMap<String, String>,
    ) -> Result<Option<Bytes>, ReplayError> {
        let shelf = Arc::new(Shelf::new(client.clone(), Box::new(|_, _| {})));
        let mut spec = spec(key, &self.create, self.graph.clone());
        spec.env = env.clone();
        let mut fold = Fold::start(spec, shelf, Begin::Anew).await?;
        let began = history_at(client, key, until).await?;
        let first = match began {
            Some(began) => began.from,
            None => {
                let (start, stop) = (fold.definition.start, CancellationToken::new());
                let first = first_offset(client, start, self.begun, &stop).await;
                first.map_err(ReplayError::of)?
            }
        };
        let options = ReadOptions {
            topics: offer::topics(&fold.definition, key),
            start: Start::From(Bound::Offset(first)),
            before: Some(Bound::Id(until.next())),
            ..ReadOptions::default()
        };
        let (versions, unpark) = (versions(client, &key.name).await?, unpark_topic(key));
        let mut parked = parked(client, key, until, began).await?;
        let (mut frames, mut batch) = (client.fetch(&options), Vec::new());
        while let Some(frame) = frames.next().await {
            let mut frame = frame?;
            if frame.topic() == unpark.as_str() {
                let Unparked::Input(input) = unparked(client, key, began, &frame).await? else {
                    continue;
                };
                frame = input;
            }
            if takes(&mut parked, frame.id())
                || Offer::of(&frame, &versions, &key.name) != Offer::Yes
            {
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
}

impl ReplayError {
    fn of(ending: Ending) -> Self {
        match ending {
            Ending::Lost(error) => Self::Store(error),
            other => Self::Module(other.into_error()),
        }
    }
}

/// The `create` frames of a processor.
async fn creates(client: &Client, key: &Key) -> Result<Vec<Frame>, ClientError> {
    let topics = TopicPatterns::from(key.name.event_topic(key.kind, Event::Create));
    all(client, ReadOptions { topics, ..ReadOptions::default() }).await
}

/// The versions of a name, of whatever kind.
async fn versions(client: &Client, name: &ProcessorName) -> Result<Versions, ClientError> {
    let versions = Versions::default();
    for kind in Kind::ALL {
        for create in creates(client, &Key { kind, name: name.clone() }).await? {
            versions.insert(create.id(), name.clone());
        }
    }
    Ok(versions)
}

async fn all(client: &Client, options: ReadOptions) -> Result<Vec<Frame>, ClientError> {
    let (mut frames, mut all) = (client.fetch(&options), Vec::new());
    while let Some(frame) = frames.next().await {
        all.push(frame?);
    }
    Ok(all)
}

/// Where the handler's current history begins: each reset begins a new one.
async fn history(client: &Client, key: &Key) -> Result<Option<Began>, ClientError> {
    let place = client.cursor_get(&processor_cursor(key)).await?;
    Ok(place.and_then(|cursor| HandlerCursor::of(&cursor).ok()).and_then(|place| place.began))
}

/// Where the handler's current history begins, if the frame `at` belongs to it.
async fn history_at(client: &Client, key: &Key, at: FrameId) -> Result<Option<Began>, ClientError> {
    let Some(began) = history(client, key).await? else { return Ok(None) };
    // The frame itself may have been removed.
    let start = Start::From(Bound::Id(at.next()));
    let next = ReadOptions { start, limit: Some(1), ..ReadOptions::default() };
    let next = client.fetch(&next).next().await.transpose()?;
    let offset =
        next.and_then(|frame| frame.offset()).map_or(u64::MAX, |next| next.saturating_sub(1));
    Ok(Some(began).filter(|began| began.has(offset)))
}

/// How often each input was parked up to a frame; only within the current history if the frame
/// belongs to it.
async fn parked(
    client: &Client,
    key: &Key,
    until: FrameId,
    began: Option<Began>,
) -> Result<HashMap<FrameId, u32>, ClientError> {
    let options = ReadOptions {
        topics: TopicPatterns::from(key.name.topic(PARKED)),
        before: Some(Bound::Id(until.next())),
        ..ReadOptions::default()
    };
    let mut parked = HashMap::new();
    for record in all(client, options).await? {
        if began.is_none_or(|began| began.has_made(&record))
            && let Some(input) = about(&record, "frame")
        {
            *parked.entry(input).or_default() += 1;
        }
    }
    Ok(parked)
}

/// Whether this occurrence of an input was parked; uses up one of its records.
fn takes(parked: &mut HashMap<FrameId, u32>, input: FrameId) -> bool {
    let Some(times) = parked.get_mut(&input).filter(|times| **times > 0) else { return false };
    *times -= 1;
    true
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
    /// Those of them that it parked.
    parked: HashSet<FrameId>,
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
        let (made, passed, parked) = (Vec::new(), Vec::new(), HashSet::new());
        Ok(Self { spec, shelf, isolate, definition, state, made, passed, parked, done: 0 })
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
            if together && failure.blame.is_shared() {
                together = false;
            } else {
                let parks = self.passes_over(&failure.error, failure.verdict, &left[0])?;
                let input = left.remove(0);
                self.done += 1;
                if parks {
                    self.parked.insert(input.frame.id());
                }
                self.passed.push((input.frame.id(), failure.error));
            }
            self.replace_isolate().await?;
        }
        Ok(())
    }

    /// Continues after a failing input, as the handler did or would in production. Returns whether
    /// it parks the input.
    fn passes_over(
        &self,
        error: &ModuleError,
        verdict: Verdict,
        input: &Input,
    ) -> Result<bool, ModuleError> {
        let resort = match self.definition.on_error {
            OnError::Now(resort) | OnError::Retry { then: resort, .. } => resort,
        };
        if verdict == Verdict::Park || resort != LastResort::Unregister {
            return Ok(verdict == Verdict::Park || resort == LastResort::Park);
        }
        let text = format!("frame {}: {}", input.frame.id(), error.message);
        Err(ModuleError { message: text, kind: FailureKind::Throw, ..error.clone() })
    }
}
