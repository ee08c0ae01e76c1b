//! One version of a processor: turns its `create` frame into something that can be started, and
//! restarted after a failure. Whether it should run is decided elsewhere.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use serde_json::{Map, Value, json};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use xs_engine::{BlobHash, Frame, FrameId, NewFrame, Ttl};
use xs_protocol::{AppendRequest, Client};

use super::clock::Clock;
use super::command::AllCancels;
use super::config::Config;
use super::driver::{Ending, ask};
use super::lifecycle::{Event, Key, Versions};
use super::part::Part;
use super::report;
use super::spare::Spare;
use super::store::{Finish, ProcessorStore};
use crate::isolate::{
    Backend, Blank, Definition, FailureKind, Isolate, IsolateSpec, Limits, ModuleError, Mould,
};
use crate::loader::ModuleGraph;
use crate::name::Kind;
use crate::permissions::{Allow, Apart};

/// Number of frames kept that report a recovery.
const RECOVERIES_KEPT: u64 = 16;

/// Maximum bytes of a version's source in the store: the largest graph with its paths.
const SOURCE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Isolates that are evaluated at the same time; more would only compete for the CPU.
pub(super) const STARTS_MAX: usize = 4;
/// The value of `format` in the meta of a `create` frame whose body is a whole graph.
pub(super) const GRAPH: &str = "graph";

/// State that all processors of a Host share.
pub(super) struct Shared {
    pub(super) client: Client,
    pub(super) versions: Versions,
    /// The offset to the store's clock.
    pub(super) clock: Clock,
    pub(super) dir: PathBuf,
    pub(super) config: RwLock<Config>,
    pub(super) env: BTreeMap<String, String>,
    pub(super) allow: Allow,
    pub(super) limits: Limits,
    pub(super) starts: Semaphore,
    /// A spare isolate for the next start.
    pub(super) spare: Spare,
    /// Fires when the Host ends, for any reason.
    pub(super) shutdown: CancellationToken,
    /// Fires when an isolate was not ready in time, so that no other will be.
    pub(super) stuck: CancellationToken,
    /// How many isolates have been given a module.
    pub(super) made: watch::Sender<usize>,
    /// Calls of commands in progress; closed when no more may begin.
    pub(super) calls: TaskTracker,
    /// Calls that were cancelled.
    pub(super) cancels: AllCancels,
    /// The processors that the Host runs.
    pub(super) part: Part,
    /// How its process is confined.
    pub(super) confined: Vec<(&'static str, String)>,
}

/// A version that can be started.
#[derive(Clone)]
pub(super) struct Version {
    pub(super) key: Key,
    pub(super) create: FrameId,
    /// Offset of its `create` frame: later frames are new to it.
    pub(super) offset: u64,
    /// How long the ends of its calls are kept.
    pub(super) calls_ttl: Ttl,
    code: BlobHash,
    spec: IsolateSpec,
    pub(super) backend: Arc<dyn Backend>,
    shared: Arc<Shared>,
}

/// The last error written to the process's log: an error that repeats at every attempt is logged
/// once, when it begins.
#[derive(Debug, Default)]
pub(super) struct Told(String);

impl Told {
    /// Notes the error of an attempt; returns whether it is new.
    fn note(&mut self, error: &ModuleError, tries: u32) -> bool {
        let is_news = tries <= 1 || self.0 != error.message;
        self.0.clone_from(&error.message);
        is_news
    }
}

/// A version whose module was evaluated.
pub(super) struct Started {
    pub(super) isolate: Isolate,
    pub(super) definition: Definition,
}

impl Version {
    /// Reads the version of a `create` frame. A command's finished calls go to `finishes`.
    ///
    /// # Errors
    /// [`ModuleError`] when the source is missing or is not a module.
    pub(super) async fn read(
        shared: &Arc<Shared>,
        key: &Key,
        frame: &Frame,
        finishes: Option<mpsc::UnboundedSender<Finish>>,
    ) -> Result<Self, ModuleError> {
        if let Some(error) = told_error(frame) {
            return Err(error);
        }
        let meta: Value = serde_json::from_slice(frame.meta()).unwrap_or_default();
        let graph = graph_of(&shared.client, key, frame, &shared.shutdown).await?;
        let module = shared.config.read().module(&key.name);
        let config = meta.get("config").cloned();
        let mut allow = module.widen(&shared.allow);
        if !shared.confined.is_empty() {
            let (read, env) = (module.read.clone(), module.env.clone());
            allow.apart = Some(Arc::new(Apart { name: key.name.as_str().to_owned(), read, env }));
        }
        let code = graph.hash();
        let spec = IsolateSpec {
            name: key.name.as_str().to_owned(),
            kind: key.kind,
            create: frame.id(),
            graph: Arc::new(graph),
            config: config.unwrap_or_else(|| Value::Object(module.config.clone())),
            env: shared.env.clone(),
            limits: shared.limits,
            allow,
            base: shared.dir.clone(),
            sealed: false,
            trial: None,
            trials: None,
            script: None,
        };
        let finishes = finishes.filter(|_| key.kind == Kind::Command);
        let (client, versions) = (shared.client.clone(), shared.versions.clone());
        let store = ProcessorStore::new(client, key.clone(), frame.id(), versions, finishes);
        Ok(Self {
            key: key.clone(),
            create: frame.id(),
            offset: frame.offset().unwrap_or_default(),
            calls_ttl: module.calls_ttl,
            code,
            spec,
            backend: super::store::shared(store),
            shared: Arc::clone(shared),
        })
    }

    /// The hash over its sources, which decides whether a saved state is its own.
    pub(super) const fn code(&self) -> BlobHash {
        self.code
    }

    /// The state it shares with the other processors.
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Evaluates the module on its own thread, without running anything else of it.
    ///
    /// # Errors
    /// [`ModuleError`] says what is wrong with the module, and where. It has kind `Stopped` when
    /// the Host is ending and no engine can be had.
    pub(super) async fn start(&self) -> Result<Started, ModuleError> {
        match self.start_in_time().await {
            Err(error) if error.kind == FailureKind::Engine => Err(self.stuck(error).await),
            started => started,
        }
    }

    /// Ends the Host: an engine that cannot start is a fault of the process, and no module is to
    /// blame. The next Host starts them all.
    async fn stuck(&self, error: ModuleError) -> ModuleError {
        let shared = &self.shared;
        let line = report::failure(&self.key, Event::Retrying, self.create, &error, None);
        let append = shared.client.append(&AppendRequest::frames(vec![line])).await;
        if let Err(error) = append {
            tracing::warn!(processor = %self.key, %error, "cannot report that it does not start");
        }
        shared.stuck.cancel();
        shared.shutdown.cancelled().await;
        ModuleError::new(FailureKind::Stopped, error.message)
    }

    /// The frame that reports that it runs.
    pub(super) fn active(&self, definition: &Definition) -> NewFrame {
        let (config, confined) = (&self.spec.config, &self.shared.confined);
        report::active(&self.key, self.create, definition, config, confined, self.calls_ttl)
    }

    /// The frame that reports a recovery. There may be one per input, so few are kept.
    pub(super) fn recovered(&self, definition: &Definition) -> NewFrame {
        let mut frame = self.active(definition);
        frame.ttl = report::last(RECOVERIES_KEPT);
        frame
    }

    /// Reports that the module restarts after a delay, because of an error or because it finished.
    pub(super) async fn retrying(
        &self,
        error: Option<&ModuleError>,
        wait: Duration,
        tries: u32,
        told: &mut Told,
    ) {
        if let Some(error) = error.filter(|error| told.note(error, tries)) {
            tracing::warn!(
                target: report::TOLD,
                processor = %self.key,
                place = error.place().map(tracing::field::display),
                wait_ms = wait.as_millis(),
                error = error.message.lines().next().unwrap_or_default(),
                "failed and will restart"
            );
        }
        let mut more = error.map_or_else(Map::new, report::error_fields);
        let reason = if error.is_some() { "error" } else { "finished" };
        more.insert("reason".to_owned(), json!(reason));
        more.insert("wait_ms".to_owned(), json!(wait.as_millis()));
        more.insert("tries".to_owned(), json!(tries));
        let frame = report::frame(&self.key, Event::Retrying, self.create, more);
        let append = self.shared.client.append(&AppendRequest::frames(vec![frame]));
        if let Err(error) = append.await {
            tracing::warn!(processor = %self.key, %error, "cannot report that it will restart");
        }
    }

    async fn start_in_time(&self) -> Result<Started, ModuleError> {
        let _turn = self.shared.starts.acquire().await;
        if self.shared.shutdown.is_cancelled() {
            return Err(shutting_down());
        }
        self.shared.made.send_modify(|made| *made += 1);
        let mould = Mould::of(&self.spec);
        let blank = match self.shared.spare.take(mould) {
            Some(blank) => blank,
            None => Blank::start(mould)?,
        };
        let start = Isolate::start_on(blank, self.spec.clone(), Arc::clone(&self.backend));
        tokio::select! {
            started = start => started.map(|(isolate, definition)| Started { isolate, definition }),
            // Evaluating a module may take long, and nothing of it runs yet.
            () = self.shared.shutdown.cancelled() => Err(shutting_down()),
        }
    }
}

fn shutting_down() -> ModuleError {
    ModuleError::new(FailureKind::Stopped, "the Host is shutting down")
}

/// The sources of a `create` frame.
///
/// # Errors
/// [`ModuleError`] when they are missing or are not a module. It has kind `Stopped` when the store
/// is lost or `stop` fires, which says nothing about the sources.
pub(super) async fn graph_of(
    client: &Client,
    key: &Key,
    frame: &Frame,
    stop: &CancellationToken,
) -> Result<ModuleGraph, ModuleError> {
    let meta: Value = serde_json::from_slice(frame.meta()).unwrap_or_default();
    let bytes = source(client, frame, stop).await?;
    let bytes = if meta["format"] == GRAPH { bytes } else { plain(key, &meta, &bytes)? };
    graph(move || ModuleGraph::from_bytes(&bytes)).await
}

/// The body of a `create` frame.
async fn source(
    client: &Client,
    frame: &Frame,
    stop: &CancellationToken,
) -> Result<Bytes, ModuleError> {
    let Some(hash) = frame.hash() else {
        return Err(ModuleError::new(
            FailureKind::Syntax,
            "the create frame has no body; append it with the module's source as its body",
        ));
    };
    let fetched = ask(stop, || async move {
        match client.blob_get(&hash).await? {
            Some(blob) => blob.bytes(SOURCE_BYTES_MAX).await.map(Some),
            None => Ok(None),
        }
    });
    fetched.await.map_err(Ending::into_error)?.ok_or_else(|| {
        let text = format!("the source {hash} is not in the store");
        ModuleError::new(FailureKind::Store, text)
    })
}

/// The graph of a single source, as an admin appends it. TypeScript is a superset of JavaScript, so
/// it is the default.
fn plain(key: &Key, meta: &Value, source: &[u8]) -> Result<Bytes, ModuleError> {
    let source = std::str::from_utf8(source).map_err(|error| {
        ModuleError::new(FailureKind::Syntax, format!("the source is not UTF-8: {error}"))
    })?;
    let named = meta.get("file").and_then(Value::as_str);
    let path = named.map_or_else(|| format!("{}/{}.ts", key.kind.dir(), key.name), str::to_owned);
    let files = Map::from_iter([(path.clone(), Value::from(source))]);
    Ok(Bytes::from(json!([path, files]).to_string()))
}

/// Parses sources on a blocking thread, since that may take long.
async fn graph<F>(parse: F) -> Result<ModuleGraph, ModuleError>
where
    F: FnOnce() -> Result<ModuleGraph, ModuleError> + Send + 'static,
{
    let parsed = tokio::task::spawn_blocking(parse).await;
    parsed.unwrap_or_else(|error| Err(ModuleError::new(FailureKind::Syntax, error.to_string())))
}

/// The error that was found in a file before its `create` frame was appended.
pub(super) fn told_error(frame: &Frame) -> Option<ModuleError> {
    let meta: Value = serde_json::from_slice(frame.meta()).ok()?;
    meta.get("error").map(told)
}

fn told(error: &Value) -> ModuleError {
    let text = |name: &str| error.get(name).and_then(Value::as_str).map(str::to_owned);
    let number = |name: &str| {
        error.get(name).and_then(Value::as_u64).and_then(|number| u32::try_from(number).ok())
    };
    let kind = match text("code").as_deref() {
        Some("import") => FailureKind::Import,
        Some("definition") => FailureKind::Definition,
        Some("permission") => FailureKind::Permission,
        _ => FailureKind::Syntax,
    };
    let mut told = ModuleError::new(kind, text("message").unwrap_or_default());
    told.stack = text("stack");
    told.file = text("file");
    told.line = number("line");
    told.column = number("column");
    told.code_frame = text("code_frame");
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_comes_again_and_again_is_told_when_it_begins() {
        let error = |text: &str| ModuleError::new(FailureKind::Throw, text);
        let mut told = Told::default();
        let tries =
            [("a", 1), ("a", 2), ("a", 3), ("b", 4), ("b", 5), ("b", 1), ("b", 2), ("a", 3)];
        let news = tries.map(|(text, tries)| told.note(&error(text), tries));
        assert_eq!(news, [true, false, false, true, false, true, false, true]);
    }
}
