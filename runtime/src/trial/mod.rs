//! `xs test`: runs `*.test.ts`, each in an isolate of its own, and the modules that they try in
//! others, against a store in memory. Files, variables and what the network answers are made up by
//! the test; nothing outside is reached, and no time is waited for.

mod memory;
mod run;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use xs_engine::{Frame, FrameId, Meta, NewFrame, Topic};

use self::memory::{Blobs, Store};
use crate::host::files;
use crate::isolate::{
    Call, FailureKind, Input, Isolate, IsolateSpec, Limits, LogLevel, ModuleError,
};
use crate::loader::ModuleGraph;
use crate::name::Kind;
use crate::permissions::Allow;

/// The name that tests go by in their own messages.
const NAME: &str = "test";

/// Who sees a test file run. Told by the threads of the modules, in the order of what happens.
pub trait Watch: Send + Sync {
    /// A test, or a module that it tries, has something to say.
    fn log(&self, name: &str, level: LogLevel, message: &str, fields: Option<&str>);

    /// A test has ended.
    fn tested(&self, tested: &Tested);
}

/// What a module under trial asks the test for.
pub(crate) struct Ask {
    /// Method, URL and headers, as JSON.
    pub(crate) request: String,
    pub(crate) body: Bytes,
    /// The test's answer: status and headers as JSON, and the body; or why there is none.
    pub(crate) answer: oneshot::Sender<Result<(String, Bytes), String>>,
}

/// What makes an isolate one under trial.
#[derive(Debug)]
pub struct Trial {
    /// Where its requests go.
    pub(crate) asks: mpsc::UnboundedSender<Ask>,
    /// The directory that stands for the root of its files.
    pub(crate) files: PathBuf,
    /// The time at which it begins, in milliseconds since 1970.
    pub(crate) now_ms: u64,
}

impl std::fmt::Debug for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.request)
    }
}

/// The trials of one test file.
pub(crate) struct Trials {
    dir: PathBuf,
    blobs: Arc<Blobs>,
    /// Variables that all of them may ask for.
    env: BTreeMap<String, String>,
    watch: Arc<dyn Watch>,
    next: AtomicU32,
    open: Mutex<HashMap<u32, Open>>,
}

/// A trial under way.
struct Open {
    asks: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Ask>>>,
    outcome: Option<oneshot::Receiver<(String, Vec<Frame>)>>,
}

impl std::fmt::Debug for Trials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trials").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Trials {
    /// Begins a trial; its number.
    ///
    /// # Errors
    /// What of the request is not understood.
    pub(crate) fn begin(&self, request: &str) -> Result<u32, String> {
        let mut request: run::Request =
            serde_json::from_str(request).map_err(|error| format!("trial(): {error}"))?;
        for (name, value) in &self.env {
            request.env.entry(name.clone()).or_insert_with(|| value.clone());
        }
        // Each is waited for in the isolate, whose heap bounds them.
        let (asks, asked) = mpsc::unbounded_channel();
        let (done, outcome) = oneshot::channel();
        let (dir, blobs) = (self.dir.clone(), Arc::clone(&self.blobs));
        let watch = Arc::clone(&self.watch);
        tokio::task::spawn(async move {
            let outcome = run::run(&dir, request, asks, blobs, watch).await;
            let (state, error, out) = match outcome {
                Ok(outcome) => (outcome.state, outcome.error, outcome.out),
                Err(error) => (None, Some(error), Vec::new()),
            };
            let state = state.map(|text| String::from_utf8_lossy(&text).into_owned());
            let error = error.map(|error| error.to_json());
            // The test may not wait any more.
            let _ = done.send((json!({ "state": state, "error": error }).to_string(), out));
        });
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let asks = Arc::new(tokio::sync::Mutex::new(asked));
        self.open.lock().insert(number, Open { asks, outcome: Some(outcome) });
        Ok(number)
    }

    /// What the module of a trial asks next; nothing once it is over.
    pub(crate) async fn asked(&self, number: u32) -> Option<Ask> {
        let asks = self.open.lock().get(&number).map(|open| Arc::clone(&open.asks))?;
        asks.lock().await.recv().await
    }

    /// What came of a trial: its state and its error as JSON, and its frames.
    pub(crate) async fn ended(&self, number: u32) -> Option<(String, Vec<Frame>)> {
        let outcome = self.open.lock().get_mut(&number).and_then(|open| open.outcome.take())?;
        let outcome = outcome.await.ok();
        self.open.lock().remove(&number);
        outcome
    }
}

/// What came of a test.
#[derive(Debug)]
pub struct Tested {
    /// Its name.
    pub name: String,
    /// How long it took, in milliseconds.
    pub ms: f64,
    /// Why it failed.
    pub error: Option<ModuleError>,
}

/// What came of a test file.
#[derive(Debug)]
pub struct TestFile {
    /// Its tests, in order.
    pub tests: Vec<Tested>,
    /// Why not all of them were run.
    pub error: Option<ModuleError>,
}

/// The test files of a modules directory, relative to it, in order.
///
/// # Errors
/// When the directory cannot be read.
pub fn test_files(dir: &Path) -> io::Result<Vec<String>> {
    let files = files::sources(dir)?.into_iter();
    Ok(files.filter(|file| file.ends_with(".test.ts") || file.ends_with(".test.js")).collect())
}

/// Runs the tests of a file in a modules directory. Modules are offered the variables of `env` that
/// a test does not make up itself. `watch` sees each test when it ends, and what is said meanwhile.
pub async fn run_file(
    dir: &Path,
    file: &str,
    env: &BTreeMap<String, String>,
    watch: &Arc<dyn Watch>,
) -> TestFile {
    let mut tests = Vec::new();
    loop {
        // Each round passes a test at least, or is the last.
        let failed = match run_tests(dir, file, env, watch, &mut tests).await {
            Ok(()) => return TestFile { tests, error: None },
            Err(Ended { begun: None, error }) => return TestFile { tests, error: Some(error) },
            Err(Ended { begun: Some(name), error }) => Tested { name, ms: 0.0, error: Some(error) },
        };
        // The test that ended the isolate; those behind it are run in another.
        watch.tested(&failed);
        tests.push(failed);
    }
}

/// Why not all tests were run.
struct Ended {
    /// The test that was running.
    begun: Option<String>,
    error: ModuleError,
}

impl From<ModuleError> for Ended {
    fn from(error: ModuleError) -> Self {
        Self { begun: None, error }
    }
}

/// Runs the tests behind those that have been.
async fn run_tests(
    dir: &Path,
    file: &str,
    env: &BTreeMap<String, String>,
    watch: &Arc<dyn Watch>,
    tests: &mut Vec<Tested>,
) -> Result<(), Ended> {
    let graph = Arc::new(ModuleGraph::of_test(dir, file)?);
    let blobs = Arc::<Blobs>::default();
    let trials = Trials {
        dir: dir.to_owned(),
        blobs: Arc::clone(&blobs),
        env: env.clone(),
        watch: Arc::clone(watch),
        next: AtomicU32::new(0),
        open: Mutex::default(),
    };
    let store = Store::new(NAME, 0, blobs, Arc::clone(watch));
    let spec = IsolateSpec {
        name: NAME.to_owned(),
        kind: Kind::Command,
        create: FrameId::ZERO,
        graph: Arc::clone(&graph),
        config: Value::Null,
        env: BTreeMap::new(),
        limits: Limits::default(),
        allow: Allow::default(),
        base: dir.to_owned(),
        sealed: false,
        trial: None,
        trials: Some(Arc::new(trials)),
        script: None,
    };
    let (isolate, _) = Isolate::start(spec, store.clone()).await?;
    let topic = |text: &str| Topic::parse(text).expect("a constant that parses");
    let refused =
        |error: crate::isolate::BackendError| ModuleError::new(FailureKind::Store, error.message);
    let mut first = NewFrame::new(topic("test.call"));
    first.meta = Meta::parse(json!({ "args": { "from": tests.len() } }).to_string())
        .expect("a number within the limits of meta");
    let frame = store.push(&first).map_err(refused)?;
    let call = Call {
        input: Input { frame, body: None, attempt: 1 },
        deadline_ms: None,
        complete: NewFrame::new(topic("test.complete")),
        cancel: CancellationToken::new(),
    };
    let mut results = Results { graph: &graph, seen: 0, tests, begun: None };
    let mut changes = store.changes();
    let error = {
        let mut called = std::pin::pin!(isolate.call(call));
        loop {
            tokio::select! {
                ended = &mut called => break ended.err(),
                // It never fails: whoever changes it lives as long as the store does.
                _ = changes.changed() => results.take(&store, watch),
            }
        }
    };
    // What a test left running ends with it.
    let _ = isolate.stop().await;
    results.take(&store, watch);
    match error {
        Some(error) => Err(Ended { begun: results.begun, error }),
        None => Ok(()),
    }
}

/// The results of a file, as they come.
struct Results<'a> {
    graph: &'a ModuleGraph,
    seen: usize,
    tests: &'a mut Vec<Tested>,
    /// The test that runs.
    begun: Option<String>,
}

impl Results<'_> {
    fn take(&mut self, store: &Store, watch: &Arc<dyn Watch>) {
        let frames = store.frames();
        for frame in frames.iter().skip(self.seen) {
            if frame.topic() == "test.recv" {
                let meta: Value = serde_json::from_slice(frame.meta()).unwrap_or_default();
                if meta["begun"] == true {
                    self.begun = meta["name"].as_str().map(str::to_owned);
                    continue;
                }
                self.begun = None;
                let tested = tested(self.graph, &meta);
                watch.tested(&tested);
                self.tests.push(tested);
            }
        }
        self.seen = frames.len();
    }
}

fn tested(graph: &ModuleGraph, meta: &Value) -> Tested {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let error = &meta["error"];
    let failed = (!error.is_null()).then(|| {
        graph.thrown(&text(&error["name"]), &text(&error["message"]), &text(&error["stack"]))
    });
    Tested { name: text(&meta["name"]), ms: meta["ms"].as_f64().unwrap_or_default(), error: failed }
}
