//! Code that a user typed, in an isolate with a module's limits, in the process of whoever asks: a
//! script, the lines of a prompt, an expression over frames. It is no processor: nothing of it is
//! in the log but what it appends, and that as if its user had.

mod prompt;
mod rewrite;
mod store;
mod test;

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

/// Bytes of a script's own source.
pub const SOURCE_BYTES_MAX: usize = 1024 * 1024;

/// Where a script shows things. False says that nobody looks any more: then it is not asked again.
pub trait Console: Send + Sync + 'static {
    /// A value, as a line of text.
    fn text(&self, text: &str) -> bool;
    /// A value, as bytes.
    fn bytes(&self, bytes: &[u8]) -> bool;
    /// A line of `console` or `ctx.log`, with fields as JSON.
    fn log(&self, level: LogLevel, message: &str, fields: Option<&str>) -> bool;
}

/// What a script works with.
#[derive(Clone)]
pub struct Surroundings {
    /// The store, with the rights of the user.
    pub client: Client,
    /// Where it shows things.
    pub console: Arc<dyn Console>,
    /// `ctx.env`.
    pub env: BTreeMap<String, String>,
    /// The variables whose values are kept out of errors and of what `console` says.
    pub hidden: Vec<String>,
    /// Directory that relative paths of files start from.
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

/// Runs a script to its end and shows the value of its last expression. `path` is its name below
/// `dir`, which imports are looked for in; a name that ends in `.js` or `.mjs` is not TypeScript.
///
/// # Errors
/// [`ModuleError`] with the place in the source as it was written.
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
    // What it left running ends with it.
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

/// A piece of work for an isolate that is kept.
pub(crate) enum Work {
    /// Code of a prompt.
    Line(String),
    /// Frames to be tested.
    Frames(Vec<Whole>),
}

/// Work, who waits for what comes of it, and what tells that nobody does any more.
type Job = (Work, Answer);
type Answer = (oneshot::Sender<String>, CancellationToken);

/// What makes an isolate one of a script.
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
    /// One that shows things.
    fn showing(console: &Arc<dyn Console>) -> Self {
        Self { console: Some(Arc::clone(console)), ..Self::default() }
    }

    /// The same with work that comes piece by piece.
    fn with_work(self) -> (Self, Desk) {
        let (jobs, work) = mpsc::channel(1);
        (Self { jobs: tokio::sync::Mutex::new(Some(work)), ..self }, Desk(jobs))
    }

    /// Whether it may do what its user may. One that shows nothing reaches nothing either.
    pub(crate) const fn is_free(&self) -> bool {
        self.console.is_some()
    }

    /// The variables whose values are not to be seen.
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

    /// Keeps the bodies of the frames that are under test.
    pub(crate) fn hold(&self, frames: Vec<Whole>) {
        let bodies = frames.into_iter().filter_map(|whole| whole.frame.hash().zip(whole.body));
        *self.bodies.lock() = bodies.collect();
    }

    pub(crate) fn body(&self, hash: BlobHash) -> Option<Bytes> {
        self.bodies.lock().get(&hash).cloned()
    }

    /// What tells that the present work is cancelled.
    pub(crate) fn cancel(&self) -> Option<CancellationToken> {
        self.waiting.lock().as_ref().map(|(_, cancel)| cancel.clone())
    }

    pub(crate) fn answer(&self, text: String) {
        self.bodies.lock().clear();
        if let Some((answer, cancel)) = self.waiting.lock().take() {
            cancel.cancel();
            // Whoever asked may have given up.
            let _ = answer.send(text);
        }
    }
}

/// Where an isolate gets its work from.
struct Desk(mpsc::Sender<Job>);

impl Desk {
    /// Hands a piece of work over; what came of it. It may look at `cancel`.
    ///
    /// # Errors
    /// Why the isolate has ended instead.
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

/// Starts an isolate that is kept, and its run.
async fn keep(
    spec: IsolateSpec,
    store: Arc<dyn crate::isolate::Backend>,
) -> Result<Kept, ModuleError> {
    let (isolate, _) = Isolate::start(spec, store).await?;
    let isolate = Arc::new(isolate);
    let run = Arc::clone(&isolate);
    // It ends with the isolate, which says why.
    let task = tokio::spawn(async move { drop(run.run_generator().await) });
    Ok(Kept { isolate, task })
}

/// An isolate that is kept for more work.
struct Kept {
    isolate: Arc<Isolate>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.task.abort();
    }
}
