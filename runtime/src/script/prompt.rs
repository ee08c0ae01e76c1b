//! A prompt: one isolate, line after line; declarations of one line are visible to the next.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::rewrite::{self, LineError};
use super::{Console, Desk, Kept, Script, Surroundings, Work, fits, keep};
use crate::isolate::{LogLevel, ModuleError};
use crate::loader::{GraphLoader, ModuleGraph};
use crate::typescript::Compiled;

/// The answer of runtime/js/script.js for a cancelled line.
const CANCELLED: &str = "cancelled";
/// Time for a cancelled line to come to rest.
const GRACE: Duration = Duration::from_secs(1);
/// It is at rest when none of its code has run for this long: longer than a commit of a busy store
/// takes, as a loop that appends waits for one.
const REST: Duration = Duration::from_millis(300);
/// The newest lines whose places are shown in stacks; functions of older ones appear in none.
const LINES_MAX: usize = 1_000;
/// A longer line is not kept for that.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// The result of a line.
#[derive(Debug)]
pub enum Line {
    /// It ran, and its value was printed.
    Done,
    /// It is incomplete: more has to follow.
    Unfinished,
    /// It is invalid, or threw.
    Failed(ModuleError),
    /// It was cancelled. Whatever it awaited may still complete, but its value is not printed.
    Cancelled,
    /// It was cancelled and did not come to rest: the isolate was ended, with all declarations.
    Ended,
    /// It ended the isolate, with all declarations.
    Lost(ModuleError),
}

/// What was typed, as files of a graph, so that stacks name its lines.
struct Typed {
    graph: ModuleGraph,
    /// The paths of the lines in it, oldest first.
    paths: VecDeque<String>,
    count: usize,
}

impl Typed {
    fn new() -> Self {
        Self { graph: ModuleGraph::of_runner("prompt"), paths: VecDeque::new(), count: 0 }
    }

    /// Adds a line, and returns the engine's name for it and its code.
    fn add(&mut self, typed: &str, mut compiled: Compiled) -> (String, String) {
        self.count += 1;
        let path = format!("[prompt-{}]", self.count);
        let name = GraphLoader::specifier(&path).map_or_else(|_| String::new(), String::from);
        // The code is only needed once.
        let code = compiled.code.take().unwrap_or_default();
        if typed.len() > LINE_BYTES_MAX {
            return (name, code);
        }
        self.graph.add(&path, typed, compiled);
        self.paths.push_back(path);
        if self.paths.len() > LINES_MAX
            && let Some(oldest) = self.paths.pop_front()
        {
            self.graph.remove(&oldest);
        }
        (name, code)
    }
}

/// The output of a prompt. The stack of an error that is shown as a value names the places of what
/// was typed, and none of xs.
struct Shown {
    console: Arc<dyn Console>,
    typed: Arc<Mutex<Typed>>,
}

impl Console for Shown {
    fn text(&self, text: &str) -> bool {
        let told = self.typed.lock().graph.retold(text.to_owned(), "\n");
        self.console.text(&told)
    }

    fn bytes(&self, bytes: &[u8]) -> bool {
        self.console.bytes(bytes)
    }

    fn log(&self, level: LogLevel, message: &str, fields: Option<&str>) -> bool {
        self.console.log(level, message, fields)
    }
}

/// An isolate at a prompt.
pub struct Prompt {
    kept: Kept,
    desk: Desk,
    typed: Arc<Mutex<Typed>>,
}

impl fmt::Debug for Prompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prompt").finish_non_exhaustive()
    }
}

impl Prompt {
    /// Starts a prompt.
    ///
    /// # Errors
    /// [`ModuleError`] when there is no thread or memory for it.
    pub async fn start(around: &Surroundings) -> Result<Self, ModuleError> {
        let typed = Typed::new();
        let graph = typed.graph.clone();
        let typed = Arc::new(Mutex::new(typed));
        let (console, known) = (Arc::clone(&around.console), Arc::clone(&typed));
        let shown = Shown { console, typed: known };
        let console: Arc<dyn Console> = Arc::new(shown);
        let (script, desk) = Script::showing(&console).with_work();
        let spec = around.spec("the prompt", graph, script);
        Ok(Self { kept: keep(spec, around.store()).await?, desk, typed })
    }

    /// Runs a line until it ends or `cancel` fires.
    pub async fn line(&self, typed: &str, cancel: &CancellationToken) -> Line {
        let line = match fits(typed).map_err(LineError::Wrong).and_then(|()| rewrite::line(typed)) {
            Ok(line) => line,
            Err(LineError::Unfinished) => return Line::Unfinished,
            Err(LineError::Wrong(error)) => return Line::Failed(error),
        };
        let (name, code) = self.typed.lock().add(typed, line);
        let ended = self.kept.isolate.failed();
        let failure = match self.desk.ask(Work::Line { name, code }, cancel.clone(), ended).await {
            Ok(failure) => failure,
            Err(error) => return Line::Lost(error),
        };
        match failure.as_str() {
            "" => return Line::Done,
            CANCELLED => return self.come_to_rest().await,
            _ => {}
        }
        let failure: Value = serde_json::from_str(&failure).unwrap_or_default();
        let text = |key: &str| failure[key].as_str().unwrap_or_default().to_owned();
        let (name, message, stack) = (text("name"), text("message"), text("stack"));
        Line::Failed(self.typed.lock().graph.thrown(&name, &message, &stack))
    }

    /// A cancelled line may still run, and only ending its isolate stops a loop without output.
    async fn come_to_rest(&self) -> Line {
        let until = Instant::now() + GRACE;
        while Instant::now() < until {
            if self.kept.isolate.rests(REST).await {
                return Line::Cancelled;
            }
        }
        self.kept.isolate.take_down().await;
        Line::Ended
    }
}
