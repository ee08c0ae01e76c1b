//! What a handler's state was: its present code over the frames it was given, from where it began.
//! Nothing is stored and nothing outside is reached; a handler that reads the store or the network
//! cannot be repeated this way, and says so.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use xs_engine::limits::HOPS_MAX;
use xs_engine::{Bound, Frame, FrameId, ReadOptions, Start, TopicPattern, TopicPatterns};
use xs_protocol::{Client, ClientError};

use super::check::NoStore;
use super::handler::parked::{PARKED, UNPARK, about};
use super::lifecycle::{Event, Key};
use super::version::{graph_of, told_error};
use crate::isolate::{
    Definition, FailureKind, INPUTS_MAX, Input, Isolate, IsolateSpec, LastResort, ModuleError,
    OnError, StartAt, Verdict,
};
use crate::loader::ModuleGraph;

/// Why a state cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The store refused, or is gone.
    #[error(transparent)]
    Store(#[from] ClientError),
    /// The log holds no source of the handler that could run.
    #[error("no source of {0} is in the log")]
    NoSource(Key),
    /// The handler failed.
    #[error("{0}")]
    Module(#[from] ModuleError),
}

/// The state of a handler after the frame `until`, as JSON; `None` is its initial one.
///
/// # Errors
/// [`ReplayError`] when the frames cannot be read or the handler cannot be run over them.
pub async fn state_at(
    client: &Client,
    key: &Key,
    until: FrameId,
) -> Result<Option<Bytes>, ReplayError> {
    let topics = TopicPatterns::from(key.name.event_topic(key.kind, Event::Create.as_str()));
    let creates = all(client, ReadOptions { topics, ..ReadOptions::default() }).await?;
    let own: HashSet<FrameId> = creates.iter().map(Frame::id).collect();
    let newest = creates.iter().rev().find(|frame| told_error(frame).is_none());
    let Some(newest) = newest else { return Err(ReplayError::NoSource(key.clone())) };
    let graph = graph_of(client, key, newest).await?;
    let mut fold = Fold::start(key, newest, graph).await?;
    let first = match fold.definition.start {
        StartAt::First => 0,
        StartAt::New => creates.first().and_then(Frame::offset).map_or(0, |offset| offset + 1),
        StartAt::After(id) => {
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
    let (mut frames, mut batch) = (client.fetch(&options), Vec::new());
    while let Some(frame) = frames.next().await {
        let mut frame = frame?;
        if frame.topic() == unpark.as_str() {
            let Some(input) = unparked(client, key, &frame).await? else { continue };
            frame = input;
        }
        let origin = frame.origin();
        if origin.is_some_and(|o| own.contains(&o.processor) || o.hops >= HOPS_MAX) {
            continue;
        }
        batch.push(Input { frame, body: None, attempt: 1 });
        if batch.len() == INPUTS_MAX {
            fold.take(std::mem::take(&mut batch)).await?;
        }
    }
    fold.take(batch).await?;
    Ok(fold.state)
}

async fn all(client: &Client, options: ReadOptions) -> Result<Vec<Frame>, ClientError> {
    let (mut frames, mut all) = (client.fetch(&options), Vec::new());
    while let Some(frame) = frames.next().await {
        all.push(frame?);
    }
    Ok(all)
}

/// The input that an `unpark` frame brings back.
async fn unparked(client: &Client, key: &Key, frame: &Frame) -> Result<Option<Frame>, ClientError> {
    let Some(record) = about(frame, PARKED) else { return Ok(None) };
    let record = client.get(Bound::Id(record)).await?;
    let record = record.filter(|record| record.topic() == key.name.topic(PARKED).as_str());
    match record.and_then(|record| about(&record, "frame")) {
        Some(input) => client.get(Bound::Id(input)).await,
        None => Ok(None),
    }
}

/// A handler that is run for its state.
struct Fold {
    spec: IsolateSpec,
    isolate: Isolate,
    definition: Definition,
    state: Option<Bytes>,
}

impl Fold {
    async fn start(key: &Key, create: &Frame, graph: ModuleGraph) -> Result<Self, ModuleError> {
        let meta: serde_json::Value = serde_json::from_slice(create.meta()).unwrap_or_default();
        let mut spec = IsolateSpec::new(key.name.as_str(), key.kind, create.id(), graph);
        spec.config = meta.get("config").cloned().unwrap_or_default();
        // What it names is asked for, and then not there.
        spec.allow.net_any = true;
        spec.allow.net_private = true;
        spec.allow.run = true;
        spec.sealed = true;
        let (isolate, definition) = Isolate::start(spec.clone(), Arc::new(NoStore)).await?;
        isolate.load_state(None).await?;
        Ok(Self { spec, isolate, definition, state: None })
    }

    async fn fresh(&mut self) -> Result<(), ModuleError> {
        let (isolate, _) = Isolate::start(self.spec.clone(), Arc::new(NoStore)).await?;
        isolate.load_state(self.state.clone()).await?;
        self.isolate = isolate;
        Ok(())
    }

    /// Hands inputs over: together, and one by one where one of them fails.
    async fn take(&mut self, inputs: Vec<Input>) -> Result<(), ModuleError> {
        let mut left = inputs;
        let mut together = true;
        while !left.is_empty() {
            let count = if together { left.len() } else { 1 };
            let mut handling = self.isolate.handle(left[..count].to_vec())?;
            let (mut done, mut failed) = (0, None);
            while let Some(reply) = handling.next().await? {
                done += reply.done;
                self.state = reply.state.or_else(|| self.state.take());
                failed = reply.failure;
            }
            left.drain(..done);
            let Some(failure) = failed else { continue };
            if failure.shared && together {
                together = false;
            } else {
                self.passes_over(&failure.error, failure.verdict, &left[0])?;
                left.remove(0);
            }
            self.fresh().await?;
        }
        Ok(())
    }

    /// Whether the handler goes on behind an input that fails, as it did or would.
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
