//! Code that a user typed, in an isolate with a module's limits, in the user's own process: a
//! script, the lines of a prompt, a filter expression over frames. It is not a processor: the log
//! shows only what it appends, as if its user had.

mod edits;
mod prompt;
mod rewrite;
mod store;
mod test;
mod vars;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use xs_engine::{BlobHash, FrameId};
use xs_protocol::Client;

pub use self::prompt::{Line, Prompt};
use self::store::ScriptStore;
pub use self::test::{TEXT_BYTES_MAX, Test, Verdict, Whole, check};
use crate::isolate::{FailureKind, Isolate, IsolateSpec, LogLevel, ModuleError};
use crate::loader::ModuleGraph;
use crate::name::Kind;

/// Maximum bytes of a script's own source.
pub const SOURCE_BYTES_MAX: usize = 1024 * 1024;

/// The output of a script. The methods return false if the reader is gone.
pub trait Console: Send + Sync + 'static {
    /// A value, as a line of text.
    fn text(&self, text: &str) -> bool;
    /// A value, as bytes.
    fn bytes(&self, bytes: &[u8]) -> bool;
    /// A line of `console` or `ctx.log`, with fields as JSON.
    fn log(&self, level: LogLevel, message: &str, fields: Option<&str>) -> bool;
}

/// The environment of a script.
#[derive(Clone)]
pub struct Surroundings {
    /// The store, with the rights of the user.
    pub client: Client,
    /// Its output.
    pub console: Arc<dyn Console>,
    /// `ctx.env`.
    pub env: BTreeMap<String, String>,
    /// Environment variables whose values are masked in errors and in `console` output.
    pub hidden: Vec<String>,
    /// Base directory of relative paths.
    pub base: PathBuf,
    /// Directories that it may not read: the store's own files.
    pub read_denied: Vec<PathBuf>,
}

impl fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Surroundings")
            .field("base", &self.base)
            .field("read_denied", &self.read_denied)
            .finish_non_exhaustive()
    }
}

impl Surroundings {
    fn spec(&self, name: &str, graph: ModuleGraph, script: Script) -> IsolateSpec {
        let mut spec = IsolateSpec::new(name, Kind::Generator, FrameId::ZERO, graph);
        spec.env = self.env.clone();
        spec.base = self.base.clone();
        spec.allow.read_denied = self.read_denied.clone();
        spec.script = Some(Arc::new(Script { hidden: self.hidden.clone(), ..script }));
        spec
    }

    fn store(&self) -> Arc<ScriptStore> {
        Arc::new(ScriptStore::new(self.client.clone(), Arc::clone(&self.console)))
    }
}

/// Runs a script to its end and prints the value of its last expression. `path` is its name below
/// `dir`, where its imports are resolved; a name with the suffix `.js` or `.mjs` is not TypeScript.
///
/// # Errors
/// [`ModuleError`] with the position in the original source.
pub async fn run(
    dir: &Path,
    path: &str,
    source: &str,
    around: &Surroundings,
) -> Result<(), ModuleError> {
    fits(source)?;
    let compiled = rewrite::main(path, source)?;
    let graph = ModuleGraph::of_script(dir, path, source, compiled, "run")?;
    let script = Script::showing(&around.console);
    let (isolate, _) =
        Isolate::start(around.spec("the script", graph, script), around.store()).await?;
    let ended = isolate.run_generator().await;
    // Whatever it left running ends here.
    let stopped = isolate.stop().await;
    ended.and(stopped)
}

fn fits(source: &str) -> Result<(), ModuleError> {
    if source.len() <= SOURCE_BYTES_MAX {
        return Ok(());
    }
    let text = format!("the source is longer than {SOURCE_BYTES_MAX} bytes");
    Err(ModuleError::new(FailureKind::Syntax, text))
}

/// A piece of work for a long-lived isolate.
pub(crate) enum Work {
    /// A line of a prompt: the engine's name for it, and its code.
    Line { name: String, code: String },
    /// Frames to be filtered.
    Frames(Vec<Whole>),
}

/// Work, the receiver of its result, and the token that cancels it.
type Job = (Work, Answer);
type Answer = (oneshot::Sender<String>, CancellationToken);

/// The part of an isolate that makes it a script's.
#[derive(Default)]
pub(crate) struct Script {
    console: Option<Arc<dyn Console>>,
    jobs: tokio::sync::Mutex<Option<mpsc::Receiver<Job>>>,
    waiting: Mutex<Option<Answer>>,
    bodies: Mutex<HashMap<BlobHash, Bytes>>,
    hidden: Vec<String>,
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Script").finish_non_exhaustive()
    }
}

impl Script {
    /// A script with an output.
    fn showing(console: &Arc<dyn Console>) -> Self {
        Self { console: Some(Arc::clone(console)), ..Self::default() }
    }

    /// Adds a channel through which work arrives piece by piece.
    fn with_work(self) -> (Self, Desk) {
        let (jobs, work) = mpsc::channel(1);
        (Self { jobs: tokio::sync::Mutex::new(Some(work)), ..self }, Desk(jobs))
    }

    /// Whether it has all permissions of its user. A script without an output has none.
    pub(crate) const fn is_free(&self) -> bool {
        self.console.is_some()
    }

    /// The environment variables whose values must be masked.
    pub(crate) fn hidden(&self) -> &[String] {
        &self.hidden
    }

    pub(crate) fn console(&self) -> Option<Arc<dyn Console>> {
        self.console.clone()
    }

    /// The next piece of work. Never resolves when there is no more: the isolate is ending.
    pub(crate) async fn next(&self) -> Work {
        let mut jobs = self.jobs.lock().await;
        let job = match jobs.as_mut() {
            Some(jobs) => jobs.recv().await,
            None => None,
        };
        let Some((work, answer)) = job else { return std::future::pending().await };
        *self.waiting.lock() = Some(answer);
        work
    }

    /// Keeps the bodies of the frames being filtered.
    pub(crate) fn hold(&self, frames: Vec<Whole>) {
        let bodies = frames.into_iter().filter_map(|whole| whole.frame.hash().zip(whole.body));
        *self.bodies.lock() = bodies.collect();
    }

    pub(crate) fn body(&self, hash: BlobHash) -> Option<Bytes> {
        self.bodies.lock().get(&hash).cloned()
    }

    /// The cancellation token of the current work.
    pub(crate) fn cancel(&self) -> Option<CancellationToken> {
        self.waiting.lock().as_ref().map(|(_, cancel)| cancel.clone())
    }

    pub(crate) fn answer(&self, text: String) {
        self.bodies.lock().clear();
        if let Some((answer, cancel)) = self.waiting.lock().take() {
            cancel.cancel();
            // The receiver may have given up.
            let _ = answer.send(text);
        }
    }
}

/// The sending end of an isolate's work.
struct Desk(mpsc::Sender<Job>);

impl Desk {
    /// Hands over a piece of work and returns its result. The work may watch `cancel`.
    ///
    /// # Errors
    /// The isolate's failure, if it ended instead.
    async fn ask(
        &self,
        work: Work,
        cancel: CancellationToken,
        ended: impl Future<Output = ModuleError>,
    ) -> Result<String, ModuleError> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.0.send((work, (answer, cancel))).await.ok()?;
            answered.await.ok()
        };
        let mut ended = std::pin::pin!(ended);
        tokio::select! {
            biased;
            error = &mut ended => Err(error),
            text = asked => match text {
                Some(text) => Ok(text),
                None => Err(ended.await),
            },
        }
    }
}

/// Starts a long-lived isolate, and its run.
async fn keep(
    spec: IsolateSpec,
    store: Arc<dyn crate::isolate::Backend>,
) -> Result<Kept, ModuleError> {
    let (isolate, _) = Isolate::start(spec, store).await?;
    let isolate = Arc::new(isolate);
    let run = Arc::clone(&isolate);
    // The run ends with the isolate, which reports the reason.
    let task = tokio::spawn(async move { drop(run.run_generator().await) });
    Ok(Kept { isolate, task })
}

/// A long-lived isolate.
struct Kept {
    isolate: Arc<Isolate>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.task.abort();
    }
}
