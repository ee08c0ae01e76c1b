//! One trial: a module in its own isolate, given the test's inputs, until it has handled them. Its
//! output and its final state are the outcome.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use xs_engine::{Body, Frame, FrameId, Meta, NewFrame, Topic, Ttl};

use super::memory::{Blobs, Store};
use super::{Ask, Clock, Trial, Watch};
use crate::host::files::module_name;
use crate::isolate::{
    Call, Definition, FailureKind, Input, Isolate, IsolateSpec, Limits, ModuleError,
};
use crate::loader::ModuleGraph;
use crate::name::{Kind, ProcessorName};
use crate::permissions::{Allow, normal};
use crate::time::now_ms;

/// Maximum real time of a trial.
const TIME_MAX: Duration = Duration::from_secs(20);
/// Maximum number of files of a trial.
const FILES_MAX: usize = 1_000;

/// A test's request for a trial.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Request {
    pub(super) file: String,
    #[serde(default)]
    frames: Vec<Given>,
    #[serde(default)]
    args: Value,
    #[serde(default)]
    state: Option<Value>,
    #[serde(default)]
    config: Value,
    #[serde(default)]
    pub(super) env: BTreeMap<String, String>,
    #[serde(default)]
    files: BTreeMap<String, String>,
    #[serde(default)]
    take: Option<usize>,
    #[serde(default)]
    ticks: usize,
    #[serde(default)]
    now: Option<u64>,
}

/// A frame that exists before the trial.
#[derive(Deserialize)]
struct Given {
    topic: String,
    #[serde(default)]
    meta: String,
    #[serde(default)]
    body: String,
    #[serde(default)]
    ttl: String,
}

/// The outcome of a trial.
pub(super) struct Outcome {
    pub(super) out: Vec<Frame>,
    /// As JSON.
    pub(super) state: Option<Bytes>,
    pub(super) error: Option<ModuleError>,
}

/// The files of a trial, removed with it.
struct Files(PathBuf);

impl Drop for Files {
    fn drop(&mut self) {
        // A directory that cannot be removed stays among the temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a trial.
pub(super) async fn run(
    dir: &Path,
    request: Request,
    asks: mpsc::UnboundedSender<Ask>,
    blobs: Arc<Blobs>,
    watch: Arc<dyn Watch>,
) -> Result<Outcome, ModuleError> {
    let wrong = |text: String| ModuleError::new(FailureKind::Definition, text);
    let (kind, name) = named(&request.file)
        .ok_or_else(|| wrong(format!("{} defines no processor", request.file)))?;
    let now_ms = request.now.unwrap_or_else(now_ms);
    let files = files(dir, &request.files).map_err(|error| wrong(format!("files: {error}")))?;
    let clock = Clock::at(now_ms);
    let trial = Trial { asks, files: files.0.clone(), clock: Arc::clone(&clock) };
    let store = Store::new(name.as_str(), clock, blobs, watch);
    let spec = IsolateSpec {
        name: name.as_str().to_owned(),
        kind,
        create: FrameId::ZERO,
        graph: Arc::new(ModuleGraph::load(dir, &request.file)?),
        config: request.config.clone(),
        env: request.env.clone(),
        limits: Limits::default(),
        allow: Allow { net_any: true, net_private: true, run: true, ..Allow::default() },
        base: dir.to_owned(),
        sealed: true,
        trial: Some(Arc::new(trial)),
        trials: None,
        script: None,
    };
    let (isolate, definition) = Isolate::start(spec, store.clone()).await?;
    let driver = Driver { isolate, definition, store, name };
    driver.drive(request).await
}

struct Driver {
    isolate: Isolate,
    definition: Definition,
    store: Arc<Store>,
    name: ProcessorName,
}

impl Driver {
    async fn drive(self, mut request: Request) -> Result<Outcome, ModuleError> {
        let mut given = Vec::new();
        for frame in std::mem::take(&mut request.frames) {
            let new = frame.frame().map_err(|text| ModuleError::new(FailureKind::Store, text))?;
            given.push(self.push(&new)?);
        }
        let before = self.store.frames().len();
        let (mut state, mut error) = (None, None);
        let kind = match self.definition.topics {
            Some(_) => Kind::Handler,
            None => named_kind(&request.file).unwrap_or(Kind::Generator),
        };
        let work = async {
            match kind {
                Kind::Handler => self.handle(&request, given, &mut state).await,
                Kind::Generator => self.generate(before, request.take).await,
                Kind::Command => self.call(&request).await,
            }
        };
        match tokio::time::timeout(TIME_MAX, work).await {
            Ok(Ok(())) => {}
            Ok(Err(failed)) => error = Some(failed),
            Err(_) => {
                let text = format!("the trial did not end in {} s", TIME_MAX.as_secs());
                error = Some(ModuleError::new(FailureKind::Timeout, text));
            }
        }
        let complete = self.name.topic("complete");
        let own = |frame: &Frame| frame.origin().is_some() && frame.topic() != complete.as_str();
        // A generator runs until it has made enough frames and is stopped.
        let most = request.take.filter(|_| kind == Kind::Generator).unwrap_or(usize::MAX);
        let out = self.store.frames().into_iter().skip(before).filter(own).take(most).collect();
        // A module that does not stop fails the trial in its own way.
        let stopped = self.isolate.stop().await.err();
        Ok(Outcome { out, state, error: error.or(stopped) })
    }

    fn push(&self, new: &NewFrame) -> Result<Frame, ModuleError> {
        let stored = self.store.push(new);
        stored.map_err(|error| ModuleError::new(FailureKind::Store, error.message))
    }

    /// Handles each frame of its topics in a commit of its own, up to the first failure.
    async fn handle(
        &self,
        request: &Request,
        given: Vec<Frame>,
        state: &mut Option<Bytes>,
    ) -> Result<(), ModuleError> {
        let saved = request.state.as_ref().map(|state| Bytes::from(state.to_string()));
        self.isolate.load_state(saved.clone()).await?;
        *state = saved;
        let topics = self.definition.topics.as_ref();
        let wanted = |frame: &Frame| topics.is_none_or(|topics| topics.matches(frame.topic()));
        let inputs = given.into_iter().filter(wanted);
        let calls = inputs.map(|frame| vec![Input { frame, body: None, attempt: 1 }]);
        for inputs in calls.chain((0..request.ticks).map(|_| Vec::new())) {
            let mut handling = self.isolate.handle(inputs)?;
            while let Some(reply) = handling.next().await? {
                for new in &reply.outputs {
                    self.push(new)?;
                }
                *state = reply.state.or_else(|| state.take());
                if let Some(failure) = reply.failure {
                    return Err(failure.error);
                }
            }
        }
        Ok(())
    }

    /// Runs until it ends, or has made the wanted number of frames.
    async fn generate(&self, before: usize, take: Option<usize>) -> Result<(), ModuleError> {
        let mut changes = self.store.changes();
        let enough = async {
            let wanted = before.saturating_add(take.unwrap_or(usize::MAX));
            // It never fails: the sender lives as long as the receiver.
            drop(changes.wait_for(|count| *count >= wanted).await);
        };
        tokio::select! {
            // Checked first: frames beyond the wanted number do not concern the trial.
            biased;
            () = enough => Ok(()),
            ended = self.isolate.run_generator() => ended,
        }
    }

    async fn call(&self, request: &Request) -> Result<(), ModuleError> {
        let args = if request.args.is_null() { "{}".to_owned() } else { request.args.to_string() };
        let mut call = NewFrame::new(self.name.topic("call"));
        call.meta = Meta::parse(format!("{{\"args\":{args}}}"))
            .map_err(|error| ModuleError::new(FailureKind::Store, error.to_string()))?;
        let frame = self.push(&call)?;
        let mut complete = NewFrame::new(self.name.topic("complete"));
        complete.origin = Some(xs_engine::Origin {
            processor: FrameId::ZERO,
            input: Some(frame.id()),
            input_offset: frame.offset(),
            hops: 1,
        });
        let input = Input { frame, body: None, attempt: 1 };
        let cancel = CancellationToken::new();
        self.isolate.call(Call { input, deadline_ms: None, complete, cancel }).await
    }
}

impl Given {
    fn frame(self) -> Result<NewFrame, String> {
        let text = |error: xs_engine::ValueError| error.to_string();
        let body = STANDARD.decode(&self.body).map_err(|error| error.to_string())?;
        let mut frame = NewFrame::new(Topic::parse(&self.topic).map_err(text)?);
        frame.meta = Meta::parse(self.meta).map_err(text)?;
        if !self.ttl.is_empty() {
            frame.ttl = Ttl::parse(&self.ttl).map_err(text)?;
        }
        frame.body = if body.is_empty() { Body::None } else { Body::Inline(body.into()) };
        Ok(frame)
    }
}

fn named_kind(file: &str) -> Option<Kind> {
    let dir = file.split('/').next()?;
    Kind::ALL.into_iter().find(|kind| kind.dir() == dir)
}

fn named(file: &str) -> Option<(Kind, ProcessorName)> {
    let kind = named_kind(file)?;
    let below = file.strip_prefix(kind.dir())?.strip_prefix('/')?;
    Some((kind, ProcessorName::parse(&module_name(below)?).ok()?))
}

/// Writes the files of a trial below a temporary directory that serves as root.
fn files(base: &Path, given: &BTreeMap<String, String>) -> std::io::Result<Files> {
    if given.len() > FILES_MAX {
        return Err(std::io::Error::other(format!("at most {FILES_MAX}")));
    }
    let name = format!("xs-trial-{}", scru128::new_string());
    let files = Files(std::env::temp_dir().join(name).canonicalize_parent()?);
    fs::create_dir(&files.0)?;
    for (path, text) in given {
        let path = normal(&base.join(path));
        let path = files.0.join(path.strip_prefix("/").unwrap_or(&path));
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, text)?;
    }
    Ok(files)
}

trait Parent: Sized {
    fn canonicalize_parent(self) -> std::io::Result<Self>;
}

impl Parent for PathBuf {
    /// The path with symbolic links in its directory resolved: it is compared with resolved paths.
    fn canonicalize_parent(self) -> std::io::Result<Self> {
        match (self.parent(), self.file_name()) {
            (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
            _ => Ok(self),
        }
    }
}
