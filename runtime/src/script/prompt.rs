//! A prompt: one isolate, line after line; declarations of one line are visible to the next.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::rewrite::{self, LineError};
use super::{Console, Desk, Kept, Script, Surroundings, Work, fits, keep};
use crate::isolate::{LogLevel, ModuleError};
use crate::loader::ModuleGraph;

/// The answer of runtime/js/script.js for a cancelled line.
const CANCELLED: &str = "cancelled";
/// Time for a cancelled line to come to rest.
const GRACE: Duration = Duration::from_secs(1);
/// It is at rest when none of its code has run for this long: longer than a commit of a busy store
/// takes, as a loop that appends waits for one.
const REST: Duration = Duration::from_millis(300);

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

/// The output of a prompt. An error that is shown as a value has no lines of xs in its stack, and
/// none of typed code: the engine gives those the name of the script that evaluates them, and
/// positions that do not match what was typed.
struct Shown {
    console: Arc<dyn Console>,
    graph: ModuleGraph,
}

impl Console for Shown {
    fn text(&self, text: &str) -> bool {
        let told = self.graph.retold(text.to_owned(), "\n");
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
        let graph = ModuleGraph::of_runner("prompt");
        let shown = Shown { console: Arc::clone(&around.console), graph: graph.clone() };
        let console: Arc<dyn Console> = Arc::new(shown);
        let (script, desk) = Script::showing(&console).with_work();
        let spec = around.spec("the prompt", graph, script);
        Ok(Self { kept: keep(spec, around.store()).await?, desk })
    }

    /// Runs a line until it ends or `cancel` fires.
    pub async fn line(&self, typed: &str, cancel: &CancellationToken) -> Line {
        let code = match fits(typed).map_err(LineError::Wrong).and_then(|()| rewrite::line(typed)) {
            Ok(code) => code,
            Err(LineError::Unfinished) => return Line::Unfinished,
            Err(LineError::Wrong(error)) => return Line::Failed(error),
        };
        let ended = self.kept.isolate.failed();
        let failure = match self.desk.ask(Work::Line(code), cancel.clone(), ended).await {
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
        let graph = Arc::new(ModuleGraph::of_runner("prompt"));
        Line::Failed(graph.thrown(&text("name"), &text("message"), &text("stack")))
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
