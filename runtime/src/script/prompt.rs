//! A prompt: one isolate, line after line; what a line declares is there for the next.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::rewrite::{self, LineError};
use super::{Desk, Kept, Script, Surroundings, Work, fits, keep};
use crate::isolate::ModuleError;
use crate::loader::ModuleGraph;

/// What runtime/js/script.js answers for a line that was cancelled.
const CANCELLED: &str = "cancelled";
/// Time in which a line that was cancelled comes to rest.
const GRACE: Duration = Duration::from_secs(1);
/// It rests when nothing of it has run for so long.
const REST: Duration = Duration::from_millis(100);

/// What came of a line.
#[derive(Debug)]
pub enum Line {
    /// It ran, and what it gave was shown.
    Done,
    /// It is not whole yet: more has to follow.
    Unfinished,
    /// It is wrong, or threw.
    Failed(ModuleError),
    /// It was cancelled. What it waited for may still come, but shows nothing of its value.
    Cancelled,
    /// It was cancelled and did not come to rest: the isolate was ended, and with it what was
    /// declared.
    Ended,
    /// The isolate has ended of it, and with it what was declared.
    Lost(ModuleError),
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
    /// Starts one.
    ///
    /// # Errors
    /// [`ModuleError`] when there is no thread or memory for it.
    pub async fn start(around: &Surroundings) -> Result<Self, ModuleError> {
        let (script, desk) = Script::showing(&around.console).with_work();
        let spec = around.spec("the prompt", ModuleGraph::of_runner("prompt"), script);
        Ok(Self { kept: keep(spec, around.store()).await?, desk })
    }

    /// Runs what was typed, until `cancel` fires.
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

    /// A line that was cancelled may go on, and nothing but the end of its isolate stops a loop
    /// that shows nothing.
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
