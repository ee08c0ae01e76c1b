//! A candidate: a handler's file, run over the store's history as if it had been there, and what
//! the processor of its name recorded for the same inputs.

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use xs_engine::{Bound, Frame, FrameId, NewFrame, ReadOptions, Start};
use xs_protocol::{Client, ClientError};

use super::shelf::{Said, Shelf};
use super::{Begin, Fold, ReplayError, Source, creates, history, seal, versions};
use crate::host::config::Config;
use crate::host::files::module_name;
use crate::host::handler::offer::{self, Offer, Unparked, unpark_topic, unparked};
use crate::host::lifecycle::Key;
use crate::isolate::{FailureKind, INPUTS_MAX, Input, IsolateSpec, ModuleError};
use crate::loader::ModuleGraph;
use crate::name::{Kind, ProcessorName};

/// Which code saved a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The code that is run.
    Same,
    /// Other code: the definition's `migrate` converts the state.
    Other,
}

/// A handler's file.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The processor that it defines.
    pub key: Key,
    dir: PathBuf,
    graph: ModuleGraph,
    config: serde_json::Map<String, Value>,
    /// The environment variables it is offered.
    env: BTreeMap<String, String>,
}

impl Candidate {
    /// Loads a file. Below a directory `handlers`, the module's name and its imports resolve as on
    /// a server; elsewhere the name is the file's. `name` overrides it. `env` holds the environment
    /// variables it is offered; it sees those it asks for.
    ///
    /// # Errors
    /// [`ModuleError`] when it cannot be read or defines no handler.
    pub fn load(
        file: &Path,
        name: Option<ProcessorName>,
        env: BTreeMap<String, String>,
    ) -> Result<Self, ModuleError> {
        let wrong = |text: String| ModuleError::new(FailureKind::Import, text);
        let (dir, path) =
            placed(file).ok_or_else(|| wrong(format!("{file:?} does not name a file")))?;
        let below = path.strip_prefix("handlers/").unwrap_or(&path);
        let name = match name {
            Some(name) => name,
            None => module_name(below)
                .and_then(|name| ProcessorName::parse(&name).ok())
                .ok_or_else(|| wrong(format!("{below:?} is not a module name; pass one")))?,
        };
        let graph = ModuleGraph::load(&dir, &path)?;
        let config = Config::load(&dir).map_err(|error| wrong(error.to_string()))?;
        let config = config.module(&name).config;
        Ok(Self { key: Key { kind: Kind::Handler, name }, dir, graph, config, env })
    }

    fn spec(&self) -> IsolateSpec {
        let (name, graph) = (self.key.name.as_str(), self.graph.clone());
        let mut spec = IsolateSpec::new(name, Kind::Handler, FrameId::ZERO, graph);
        spec.config = Value::Object(self.config.clone());
        spec.base = self.dir.clone();
        spec.env = self.env.clone();
        seal(&mut spec);
        spec
    }
}

/// The modules directory of a file, and the file's path in it.
fn placed(file: &Path) -> Option<(PathBuf, String)> {
    let parents = file.ancestors().skip(1);
    let mut kinds = parents.filter(|dir| dir.file_name().is_some_and(|name| name == "handlers"));
    let dir = match kinds.next() {
        Some(handlers) => handlers.parent()?,
        None => file.parent()?,
    };
    let path = file.strip_prefix(dir).ok()?.to_str()?.to_owned();
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    Some((dir.to_owned(), path))
}

/// The state to start a candidate from: that of the processor of its name after the frame `at`,
/// recomputed with the processor's present code; `None` for the initial state.
///
/// # Errors
/// The errors of [`state_at`](super::state_at).
pub async fn state_for(
    client: &Client,
    candidate: &Candidate,
    at: FrameId,
) -> Result<Option<(Bytes, Code)>, ReplayError> {
    let source = Source::newest(client, &candidate.key).await?;
    let state = source.state_at(client, &candidate.key, at, &candidate.env).await?;
    let is_same = source.graph.hash() == candidate.graph.hash();
    let code = if is_same { Code::Same } else { Code::Other };
    Ok(state.map(|state| (state, code)))
}

/// The result of one input.
#[derive(Debug)]
pub struct Made {
    /// The input frame.
    pub input: Frame,
    /// The frames it would have appended.
    pub outputs: Vec<NewFrame>,
    /// The error it threw, if it continued after it.
    pub error: Option<ModuleError>,
}

/// Runs a candidate over the inputs that a handler of its name would have in `range`: the frames
/// that its topics select, except its own output and frames with too many hops, and in place of
/// each `unpark` the parked input, if that is parked here too. `saved` is the initial state. `each`
/// gets the result of each input, in order, and may stop the run.
///
/// # Errors
/// [`ReplayError`] when the frames cannot be read, or the candidate fails on one that it does not
/// skip.
pub async fn replay(
    client: &Client,
    candidate: &Candidate,
    range: ReadOptions,
    saved: Option<(Bytes, Code)>,
    said: Said,
    each: impl FnMut(Made) -> ControlFlow<()>,
) -> Result<(), ReplayError> {
    let key = &candidate.key;
    let begin = saved.map_or(Begin::Anew, |(saved, code)| Begin::With(saved, code));
    let shelf = Arc::new(Shelf::new(client.clone(), said));
    let fold = Fold::start(candidate.spec(), shelf, begin).await?;
    let versions = versions(client, &key.name).await?;
    let (began, topics) = (history(client, key).await?, offer::topics(&fold.definition, key));
    // The limit does not count frames that are left out here.
    let mut left = range.limit.unwrap_or(u64::MAX);
    let mut frames = client.fetch(&ReadOptions { topics, limit: None, ..range.clone() });
    let mut run = Run { fold, batch: Vec::new(), each };
    while left > 0 {
        let Some(mut frame) = frames.next().await.transpose()? else { break };
        if frame.topic() == unpark_topic(key).as_str() {
            // What was parked here is known once all inputs before it were handled.
            if run.take().await?.is_break() {
                return Ok(());
            }
            let began = began.filter(|began| frame.offset().is_some_and(|at| began.has(at)));
            let Unparked::Input(input) = unparked(client, key, began, &frame).await? else {
                continue;
            };
            if !run.take_back(&input, &range) {
                continue;
            }
            frame = input;
        }
        if Offer::of(&frame, &versions, &key.name) != Offer::Yes {
            continue;
        }
        left -= 1;
        run.batch.push(Input { frame, body: None, attempt: 1 });
        if run.batch.len() == INPUTS_MAX && run.take().await?.is_break() {
            return Ok(());
        }
    }
    run.take().await.map(|_| ())
}

/// A candidate that is being run.
struct Run<E> {
    fold: Fold,
    /// Inputs not handled yet.
    batch: Vec<Input>,
    each: E,
}

impl<E: FnMut(Made) -> ControlFlow<()>> Run<E> {
    /// Handles the batch. Results before a failure are passed on first.
    async fn take(&mut self) -> Result<ControlFlow<()>, ReplayError> {
        let batch = std::mem::take(&mut self.batch);
        let inputs: Vec<Frame> = batch.iter().map(|input| input.frame.clone()).collect();
        let taken = self.fold.take(batch).await;
        for made in sorted(&mut self.fold, inputs, taken.as_ref().err()) {
            if (self.each)(made).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        taken?;
        Ok(ControlFlow::Continue(()))
    }

    /// Takes a parked input back. Returns whether it was parked: by the candidate, or by its
    /// predecessor before the range.
    fn take_back(&mut self, input: &Frame, range: &ReadOptions) -> bool {
        let was_before = input.offset().is_some_and(|at| !holds(range, at, input.id()));
        self.fold.parked.remove(&input.id()) || was_before
    }
}

/// The results of the inputs, up to one that failed for good.
fn sorted(fold: &mut Fold, inputs: Vec<Frame>, failure: Option<&ModuleError>) -> Vec<Made> {
    let mut outputs: BTreeMap<FrameId, Vec<NewFrame>> = BTreeMap::new();
    for frame in fold.made.drain(..) {
        let input = frame.origin.and_then(|origin| origin.input).unwrap_or(FrameId::ZERO);
        outputs.entry(input).or_default().push(frame);
    }
    let mut errors: BTreeMap<FrameId, ModuleError> = fold.passed.drain(..).collect();
    let done = match failure {
        Some(_) => fold.done,
        None => inputs.len(),
    };
    let made = inputs.into_iter().take(done).map(|input| Made {
        outputs: outputs.remove(&input.id()).unwrap_or_default(),
        error: errors.remove(&input.id()),
        input,
    });
    made.collect()
}

/// A frame that a processor recorded for an input.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Offset of the input.
    pub offset: u64,
    /// Its id.
    pub input: FrameId,
    /// The frame appended for it.
    pub frame: Frame,
}

/// The frames that the processor of a name appended for the inputs of `range` and those at the
/// offsets that are `given` too, up to the offset `last` if given, in log order and without parked
/// inputs. Of inputs that a reset offered again only those since then. At most `max`.
///
/// # Errors
/// [`ClientError`] when the log cannot be read.
pub async fn recorded(
    client: &Client,
    key: &Key,
    range: &ReadOptions,
    given: impl Fn(u64) -> bool,
    last: Option<u64>,
    max: usize,
) -> Result<Vec<Recorded>, ClientError> {
    let own: HashSet<FrameId> = creates(client, key).await?.iter().map(Frame::id).collect();
    let began = history(client, key).await?;
    let parked = key.name.topic(crate::host::handler::parked::PARKED);
    // A frame appended for an input comes after it.
    let (start, since_ms) = (range.start, range.since_ms);
    let behind = ReadOptions { start, since_ms, ..ReadOptions::default() };
    let (mut frames, mut found) = (client.fetch(&behind), Vec::new());
    while let Some(frame) = frames.next().await.transpose()? {
        let Some(origin) = frame.origin().filter(|origin| own.contains(&origin.processor)) else {
            continue;
        };
        let (Some(offset), Some(input)) = (origin.input_offset, origin.input) else { continue };
        let within = last.is_none_or(|last| offset <= last)
            && (holds(range, offset, input) || given(offset));
        let is_current = began.is_none_or(|began| began.has_made(&frame));
        if within && is_current && frame.topic() != parked.as_str() {
            found.push(Recorded { offset, input, frame });
        }
        if found.len() >= max {
            break;
        }
    }
    Ok(found)
}

/// Whether a frame is within a range, whatever its topic.
fn holds(range: &ReadOptions, offset: u64, id: FrameId) -> bool {
    let at = |bound: Bound| match bound {
        Bound::Id(other) => id.cmp(&other),
        Bound::Offset(other) => offset.cmp(&other),
    };
    let begun = match range.start {
        Start::From(bound) => at(bound).is_ge(),
        Start::After(bound) => at(bound).is_gt(),
        Start::First | Start::Last(_) | Start::New => true,
    };
    begun
        && range.since_ms.is_none_or(|ms| id.time_ms() >= ms)
        && range.until_ms.is_none_or(|ms| id.time_ms() < ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_holds_what_a_read_would_give() {
        let id = FrameId::first_of_ms(50);
        let range = |start| ReadOptions { start, ..ReadOptions::default() };
        assert!(holds(&range(Start::First), 3, id));
        assert!(holds(&range(Start::From(Bound::Offset(3))), 3, id));
        assert!(!holds(&range(Start::After(Bound::Id(id))), 3, id));
        let timed = |since_ms, until_ms| ReadOptions { since_ms, until_ms, ..Default::default() };
        assert!(holds(&timed(Some(50), Some(51)), 3, id));
        assert!(!holds(&timed(Some(51), None), 3, id) && !holds(&timed(None, Some(50)), 3, id));
    }

    #[test]
    fn a_file_is_placed_as_a_server_finds_it() {
        let at = |text: &str| placed(Path::new(text)).unwrap();
        let is = |dir: &str, path: &str| (PathBuf::from(dir), path.to_owned());
        assert_eq!(at("m/handlers/a/b.ts"), is("m", "handlers/a/b.ts"));
        assert_eq!(at("handlers/b.ts"), is(".", "handlers/b.ts"));
        assert_eq!(at("new/b.ts"), is("new", "b.ts"));
        assert_eq!(at("b.ts"), is(".", "b.ts"));
    }
}
