//! A prompt: one isolate, line after line; what a line declares is there for the next.

use std::sync::Arc;

use serde_json::Value;

use super::rewrite::{self, LineError};
use super::{Desk, Kept, Script, Surroundings, Work, fits, keep};
use crate::isolate::ModuleError;
use crate::loader::ModuleGraph;

/// What came of a line.
#[derive(Debug)]
pub enum Line {
    /// It ran, and what it gave was shown.
    Done,
    /// It is not whole yet: more has to follow.
    Unfinished,
    /// It is wrong, or threw.
    Failed(ModuleError),
    /// The isolate has ended of it, and with it what was declared.
    Lost(ModuleError),
}

/// An isolate at a prompt.
pub struct Prompt {
    kept: Kept,
    desk: Desk,
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

    /// Runs what was typed.
    pub async fn line(&self, typed: &str) -> Line {
        let code = match fits(typed).map_err(LineError::Wrong).and_then(|()| rewrite::line(typed)) {
            Ok(code) => code,
            Err(LineError::Unfinished) => return Line::Unfinished,
            Err(LineError::Wrong(error)) => return Line::Failed(error),
        };
        let ended = self.kept.isolate.failed();
        let failure = match self.desk.ask(Work::Line(code), ended).await {
            Ok(failure) => failure,
            Err(error) => return Line::Lost(error),
        };
        if failure.is_empty() {
            return Line::Done;
        }
        let failure: Value = serde_json::from_str(&failure).unwrap_or_default();
        let text = |key: &str| failure[key].as_str().unwrap_or_default().to_owned();
        let graph = Arc::new(ModuleGraph::of_runner("prompt"));
        Line::Failed(graph.thrown(&text("name"), &text("message"), &text("stack")))
    }
}
