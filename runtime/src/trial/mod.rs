//! `xs test`: runs `*.test.ts`, each in its own isolate, and the modules under trial in others,
//! against an in-memory store. The test supplies files, environment variables and network answers;
//! nothing outside is reached, and no timer really waits.

mod memory;
mod run;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

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

/// The name of tests in their own messages.
const NAME: &str = "test";

/// Observes the run of a test file. Called on the modules' threads, in the order of events.
pub trait Watch: Send + Sync {
    /// A test, or a module under trial, logs a line.
    fn log(&self, name: &str, level: LogLevel, message: &str, fields: Option<&str>);

    /// A test has ended.
    fn tested(&self, tested: &Tested);
}

/// A request of a module under trial to its test.
pub(crate) struct Ask {
    /// Method, URL and headers, as JSON.
    pub(crate) request: String,
    pub(crate) body: Bytes,
    /// The test's answer: status and headers as JSON, and the body; or why there is none.
    pub(crate) answer: oneshot::Sender<Result<(String, Bytes), String>>,
}

/// The part of an isolate that puts its module under trial.
#[derive(Debug)]
pub struct Trial {
    /// The receiver of its requests.
    pub(crate) asks: mpsc::UnboundedSender<Ask>,
    /// The directory that serves as root of its files.
    pub(crate) files: PathBuf,
    /// Its clock, which begins at the time that the test names.
    pub(crate) clock: Arc<Clock>,
}

/// The clock of a trial: advanced by its module, read by its store.
#[derive(Debug)]
pub(crate) struct Clock(AtomicU64);

impl Clock {
    /// A clock at a time, in milliseconds since the Unix epoch.
    pub(crate) fn at(now_ms: u64) -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(now_ms)))
    }

    /// The time, in milliseconds since the Unix epoch.
    pub(crate) fn now_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Advances to a time, in milliseconds since the Unix epoch.
    pub(crate) fn set(&self, now_ms: u64) {
        self.0.store(now_ms, Ordering::Relaxed);
    }
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
    /// Environment variables that any of them may request.
    env: BTreeMap<String, String>,
    watch: Arc<dyn Watch>,
    next: AtomicU32,
    open: Mutex<HashMap<u32, Open>>,
}

/// A trial in progress.
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
    /// Begins a trial and returns its number.
    ///
    /// # Errors
    /// The part of the request that is invalid.
    pub(crate) fn begin(&self, request: &str) -> Result<u32, String> {
        let mut request: run::Request =
            serde_json::from_str(request).map_err(|error| format!("trial(): {error}"))?;
        for (name, value) in &self.env {
            request.env.entry(name.clone()).or_insert_with(|| value.clone());
        }
        // The isolate awaits each request, so that its heap bounds their number.
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
            // The test may no longer wait.
            let _ = done.send((json!({ "state": state, "error": error }).to_string(), out));
        });
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let asks = Arc::new(tokio::sync::Mutex::new(asked));
        self.open.lock().insert(number, Open { asks, outcome: Some(outcome) });
        Ok(number)
    }

    /// The next request of a trial's module; `None` once the trial is over.
    pub(crate) async fn asked(&self, number: u32) -> Option<Ask> {
        let asks = self.open.lock().get(&number).map(|open| Arc::clone(&open.asks))?;
        asks.lock().await.recv().await
    }

    /// The outcome of a trial: its state and its error as JSON, and its frames.
    pub(crate) async fn ended(&self, number: u32) -> Option<(String, Vec<Frame>)> {
        let outcome = self.open.lock().get_mut(&number).and_then(|open| open.outcome.take())?;
        let outcome = outcome.await.ok();
        self.open.lock().remove(&number);
        outcome
    }
}

/// The result of a test.
#[derive(Debug)]
pub struct Tested {
    /// Its name.
    pub name: String,
    /// How long it took, in milliseconds.
    pub ms: f64,
    /// Why it failed.
    pub error: Option<ModuleError>,
}

/// The result of a test file.
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
/// a test does not set itself. `watch` is called at the end of each test, and for lines logged
/// meanwhile.
pub async fn run_file(
    dir: &Path,
    file: &str,
    env: &BTreeMap<String, String>,
    watch: &Arc<dyn Watch>,
) -> TestFile {
    let mut tests = Vec::new();
    loop {
        // Each round finishes at least one test, or is the last.
        let failed = match run_tests(dir, file, env, watch, &mut tests).await {
            Ok(()) => return TestFile { tests, error: None },
            Err(Ended { begun: None, error }) => return TestFile { tests, error: Some(error) },
            Err(Ended { begun: Some(name), error }) => Tested { name, ms: 0.0, error: Some(error) },
        };
        // This test ended the isolate; the tests after it run in another one.
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

/// Runs the tests after those already finished.
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
    let store = Store::new(NAME, Clock::at(0), blobs, Arc::clone(watch));
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
                // It never fails: the sender lives as long as the store.
                _ = changes.changed() => results.take(&store, watch),
            }
        }
    };
    // Whatever a test left running ends here.
    let _ = isolate.stop().await;
    results.take(&store, watch);
    match error {
        Some(error) => Err(Ended { begun: results.begun, error }),
        None => Ok(()),
    }
}

/// The results of a file, as they arrive.
struct Results<'a> {
    graph: &'a ModuleGraph,
    seen: usize,
    tests: &'a mut Vec<Tested>,
    /// The running test.
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
