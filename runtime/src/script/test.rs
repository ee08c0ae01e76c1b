//! A filter expression over frames. It gets many frames at a time and can reach nothing else; a
//! frame on which it throws does not match.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use xs_engine::{Frame, FrameId};

use super::{Desk, Kept, Script, Work, fits, keep, rewrite};
use crate::host::check::NoStore;
use crate::isolate::{FailureKind, IsolateSpec, ModuleError};
use crate::loader::ModuleGraph;
use crate::name::Kind;

/// Maximum bytes of a body that an expression can read; longer ones are not available.
pub const TEXT_BYTES_MAX: u64 = crate::isolate::limits::READ_BYTES_MAX;
/// The file name of the expression in its errors.
const FILE: &str = "--where";
/// Characters kept of the first error.
const SHOWN_CHARS: usize = 200;
/// Maximum frames filtered at a time.
const BATCH: usize = 512;
/// Bytes of bodies and meta above which a batch is smaller.
const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// A frame, with its body if available.
#[derive(Debug, Clone)]
pub struct Whole {
    /// The frame.
    pub frame: Frame,
    /// Its body, of at most [`TEXT_BYTES_MAX`] bytes.
    pub body: Option<Bytes>,
}

/// The result of an expression for a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It holds.
    Holds,
    /// It does not.
    Fails,
    /// It threw, or returned a promise.
    Threw,
}

/// A running isolate for an expression over `f`.
pub struct Test {
    kept: Kept,
    desk: Desk,
    reads_bodies: bool,
    /// The first error it threw, in one line.
    thrown: Mutex<Option<String>>,
}

impl fmt::Debug for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Test").field("reads_bodies", &self.reads_bodies).finish_non_exhaustive()
    }
}

/// Checks that something is an expression, without running it.
///
/// # Errors
/// [`FailureKind::Syntax`] with position and code frame.
pub fn check(expression: &str) -> Result<(), ModuleError> {
    fits(expression)?;
    rewrite::expression(FILE, expression).map(|_| ())
}

impl Test {
    /// Starts an isolate for an expression.
    ///
    /// # Errors
    /// [`FailureKind::Syntax`] when it is not an expression.
    pub async fn start(expression: &str) -> Result<Self, ModuleError> {
        fits(expression)?;
        let compiled = rewrite::expression(FILE, expression)?;
        let none = std::path::Path::new("/");
        let graph = ModuleGraph::of_script(none, FILE, expression, compiled, "where")?;
        let (script, desk) = Script::default().with_work();
        let mut spec = IsolateSpec::new(FILE, Kind::Generator, FrameId::ZERO, graph);
        spec.sealed = true;
        spec.script = Some(Arc::new(script));
        let kept = keep(spec, Arc::new(NoStore)).await?;
        let reads_bodies = ["text", "json"].iter().any(|name| expression.contains(name));
        Ok(Self { kept, desk, reads_bodies, thrown: Mutex::default() })
    }

    /// Whether it may read bodies: then frames should be given with theirs.
    #[must_use]
    pub const fn reads_bodies(&self) -> bool {
        self.reads_bodies
    }

    /// The first error it threw, in one line.
    #[must_use]
    pub fn thrown(&self) -> Option<String> {
        self.thrown.lock().clone()
    }

    /// Returns the result for each of the frames.
    ///
    /// # Errors
    /// [`ModuleError`] when the expression does not end, or needs too much memory.
    pub async fn ask(&self, frames: &[Whole]) -> Result<Vec<Verdict>, ModuleError> {
        let mut verdicts = Vec::with_capacity(frames.len());
        let mut left = frames;
        while !left.is_empty() {
            let (batch, rest) = left.split_at(batch_len(left));
            left = rest;
            let (work, ended) = (Work::Frames(batch.to_vec()), self.kept.isolate.failed());
            let answer = self.desk.ask(work, CancellationToken::new(), ended);
            let answer = answer.await?;
            let (answer, thrown) = answer.split_once('\n').unwrap_or((&answer, ""));
            if !thrown.is_empty() {
                self.thrown
                    .lock()
                    .get_or_insert_with(|| thrown.chars().take(SHOWN_CHARS).collect());
            }
            if answer.len() != batch.len() {
                let text = "the expression was not evaluated for every frame";
                return Err(ModuleError::new(FailureKind::Throw, text));
            }
            verdicts.extend(answer.bytes().map(|byte| match byte {
                b'1' => Verdict::Holds,
                b'0' => Verdict::Fails,
                _ => Verdict::Threw,
            }));
        }
        Ok(verdicts)
    }
}

/// How many of the frames are filtered together: at least one.
fn batch_len(frames: &[Whole]) -> usize {
    let mut bytes = 0;
    let fits = frames.iter().take(BATCH).take_while(|whole| {
        bytes += whole.body.as_ref().map_or(0, Bytes::len) + whole.frame.meta().len();
        bytes <= BATCH_BYTES
    });
    fits.count().max(1)
}
