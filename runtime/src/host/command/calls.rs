//! The running calls of a command, each in a task of its own, and the frames that end them.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use xs_engine::limits::HOPS_MAX;
use xs_engine::{Frame, FrameId, NewFrame, Origin};
use xs_protocol::Delivered;

use crate::host::clock::Clock;
use crate::host::report;
use crate::host::version::Version;
use crate::isolate::{Call, FailureKind, Input, Isolate, ModuleError};

/// A call that has not begun, or has not been answered.
pub(super) struct Queued {
    pub(super) input: Input,
    deadline_ms: Option<u64>,
    /// Counts it as in progress, from its start until it is answered.
    _begun: Option<TaskTrackerToken>,
}

impl Queued {
    /// Wraps a call as delivered. Its meta may hold `deadline`, in milliseconds since the Unix
    /// epoch by the store's clock.
    pub(super) fn new(Delivered { frame, body }: Delivered, clock: &Clock) -> Self {
        let meta: Value = serde_json::from_slice(frame.meta()).unwrap_or_default();
        let deadline_ms = meta.get("deadline").and_then(Value::as_u64).map(|at| clock.here(at));
        let input = Input { frame, body, attempt: 1 };
        Self { input, deadline_ms, _begun: None }
    }

    /// The reason why it must not begin, if there is one: a code and a sentence.
    pub(super) fn refusal(
        &self,
        cancelled: bool,
        now_ms: u64,
    ) -> Option<(&'static str, &'static str)> {
        let hops = self.input.frame.origin().map_or(0, |origin| origin.hops);
        if cancelled {
            Some(("cancelled", "the caller cancelled the call before it began"))
        } else if self.deadline_ms.is_some_and(|deadline| deadline <= now_ms) {
            Some(("timeout", "the call's deadline had passed before it could begin"))
        } else if hops >= HOPS_MAX {
            Some(("hops", "a chain of processors was cut: too many calls led to this one"))
        } else {
            None
        }
    }
}

/// The running calls.
#[derive(Default)]
pub(super) struct Calls {
    /// Calls whose end is not stored yet, each with its cancellation token.
    open: HashMap<FrameId, CancellationToken>,
    tasks: JoinSet<(Queued, Arc<Isolate>, Result<(), ModuleError>)>,
    /// Isolates that are stopping, with time left for the code of calls that were cut off.
    leaving: TaskTracker,
}

impl Calls {
    /// How many calls run.
    pub(super) fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether a call runs and its end is not stored yet.
    pub(super) fn has(&self, call: FrameId) -> bool {
        self.open.contains_key(&call)
    }

    /// Records that the end of a call is stored or about to be; returns whether it was still open.
    pub(super) fn close(&mut self, call: FrameId) -> bool {
        self.open.remove(&call).is_some()
    }

    /// Runs a call. The call holds the isolate, so that a replaced isolate lives as long as its
    /// last call.
    pub(super) fn begin(&mut self, version: &Version, isolate: &Arc<Isolate>, mut queued: Queued) {
        queued._begun = Some(version.shared().calls.token());
        let cancel = CancellationToken::new();
        self.open.insert(queued.input.frame.id(), cancel.clone());
        let call = Call {
            input: queued.input.clone(),
            deadline_ms: queued.deadline_ms,
            complete: end_frame(version, &queued.input.frame, "complete", Map::new()),
            cancel,
        };
        let isolate = Arc::clone(isolate);
        self.tasks.spawn(async move {
            let result = isolate.call(call).await;
            (queued, isolate, result)
        });
    }

    /// Waits for the next call to end; `None` when none runs.
    pub(super) async fn ended(&mut self) -> Option<(Queued, Result<(), ModuleError>)> {
        loop {
            match self.tasks.join_next().await? {
                Ok((queued, isolate, result)) => {
                    self.leave(isolate);
                    return Some((queued, result));
                }
                // A task that panicked is our bug; its call is answered when the command ends.
                Err(error) => tracing::error!(%error, "the task of a call failed"),
            }
        }
    }

    /// Cancels one call; returns whether it was open.
    pub(super) fn cancel(&self, call: FrameId) -> bool {
        self.open.get(&call).map(CancellationToken::cancel).is_some()
    }

    /// Cancels all open calls and returns their ids.
    pub(super) fn cancel_all(&self) -> Vec<FrameId> {
        self.open.values().for_each(CancellationToken::cancel);
        self.open.keys().copied().collect()
    }

    /// Releases an isolate; the last holder stops it.
    pub(super) fn leave(&self, isolate: Arc<Isolate>) {
        if let Some(last) = Arc::into_inner(isolate) {
            // If the thread does not end, that concerns only the old isolate: no call waits for it.
            tokio::spawn(self.leaving.track_future(async move { drop(last.stop().await) }));
        }
    }

    /// Waits until no call runs.
    pub(super) async fn drain(&mut self) {
        while self.ended().await.is_some() {}
    }

    /// Waits until the released isolates have ended.
    pub(super) async fn left(&self) {
        self.leaving.close();
        self.leaving.wait().await;
    }
}

/// The call that a frame `xs.command.<name>.cancel` names.
pub(super) fn cancelled_call(frame: &Frame) -> Option<FrameId> {
    let meta: Value = serde_json::from_slice(frame.meta()).ok()?;
    FrameId::parse(meta.get("call")?.as_str()?).ok()
}

/// `<name>.error` as the answer to a call.
pub(super) fn error_frame(
    version: &Version,
    call: &Frame,
    code: &str,
    message: &str,
    error: Option<&ModuleError>,
) -> NewFrame {
    let plain = ModuleError::new(FailureKind::Throw, message);
    let mut fields = report::error_fields(error.unwrap_or(&plain));
    fields.insert("code".to_owned(), json!(code));
    end_frame(version, call, "error", fields)
}

/// The frame that ends a call, with the call's id in its meta.
fn end_frame(
    version: &Version,
    call: &Frame,
    suffix: &str,
    mut fields: Map<String, Value>,
) -> NewFrame {
    fields.insert("call".to_owned(), json!(call.id().to_string()));
    let mut frame = NewFrame::new(version.key.name.topic(suffix));
    frame.meta = report::meta_of(fields);
    frame.ttl = version.calls_ttl;
    frame.origin = Some(Origin {
        processor: version.create,
        input: Some(call.id()),
        input_offset: call.offset(),
        hops: call.origin().map_or(0, |origin| origin.hops).saturating_add(1),
    });
    frame
}
