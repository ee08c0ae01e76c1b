//! How a handler reacts when its code has failed: what becomes of the frame that was being handled,
//! and of the handler itself.

use jiff::Timestamp;
use serde_json::{Map, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use xs_engine::{Frame, FrameId, NewFrame, Origin, Ttl};

use super::cursor::{HandlerCursor, Retry};
use super::inputs::Inputs;
use super::parked::PARKED;
use super::policy::{Decision, decide};
use super::restart::rest;
use super::{Break, Handler, Step};
use crate::host::backoff::random;
use crate::host::driver::Ending;
use crate::host::lifecycle::Event;
use crate::host::report;
use crate::isolate::{FailureKind, HandlerFailure, LogLevel, ModuleError, Verdict};
use crate::time::now_ms;

impl Handler {
    /// Applies the policy to the first input left, which has failed.
    pub(super) async fn failed(
        &mut self,
        failure: HandlerFailure,
        inputs: &mut Inputs,
        stop: &CancellationToken,
    ) -> Step {
        let Some((frame, attempt)) = inputs.first() else {
            return self.failed_alone(failure.error, stop).await;
        };
        let id = frame.id();
        let decision = if failure.error.kind == FailureKind::Wedged {
            return Err(Break::End(Ending::Wedged { error: failure.error, input: Some(id) }));
        } else {
            decide(self.started.definition.on_error, failure.verdict, attempt)
        };
        match decision {
            Decision::Unregister => {
                let ending = Ending::FinError { error: failure.error, input: Some(id) };
                return Err(Break::End(ending));
            }
            Decision::Retry(wait) => {
                let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                // Another Host may have another clock; the store's clock is common to all.
                let due_ms = self.version.shared().clock.there(now_ms()).saturating_add(wait_ms);
                let create = self.version.create;
                let retry = Retry { frame: id, attempt, due_ms, create };
                let next = HandlerCursor { revision: 0, retry: Some(retry), ..self.saved.clone() };
                let next = HandlerCursor { offset: self.seen, ..next };
                if attempt == 1 {
                    // Once per input: further attempts are in the store's log.
                    let what = "an input failed and will be retried";
                    self.warn(what, &failure.error, &frame, attempt, Some(due_ms));
                }
                let line = self.retrying(&failure.error, &frame, retry);
                self.store_place(vec![line], next, stop).await?;
                self.retry = Some(retry);
                inputs.retry(retry);
            }
            Decision::Skip => {
                let text = format!("frame {id} was skipped: {}", failure.error);
                let create = self.version.create;
                let line = report::log(&self.version.key, create, LogLevel::Error, &text, None);
                self.pass(inputs);
                self.store(vec![line], None, stop).await?;
            }
            Decision::Park => {
                let parked = self.parked(&failure.error, &frame, attempt);
                self.pass(inputs);
                self.store(vec![parked], None, stop).await?;
                self.warn("an input was parked", &failure.error, &frame, attempt, None);
            }
        }
        if failure.fresh { self.replace(Some(id), stop).await } else { Ok(()) }
    }

    /// Applies the policy to a failure that belongs to no frame: of a `tick`, a timer or an
    /// unhandled rejection.
    pub(super) async fn failed_alone(
        &mut self,
        error: ModuleError,
        stop: &CancellationToken,
    ) -> Step {
        self.land().await?;
        if error.kind == FailureKind::Wedged {
            return Err(Break::End(Ending::Wedged { error, input: None }));
        }
        if self.is_ended_by_failures() {
            return Err(Break::End(Ending::FinError { error, input: None }));
        }
        let (key, create) = (&self.version.key, self.version.create);
        let line = report::log(key, create, LogLevel::Error, &error.to_string(), None);
        self.store(vec![line], None, stop).await?;
        self.replace(None, stop).await
    }

    /// Replaces a failed isolate, after a delay.
    async fn replace(&mut self, input: Option<FrameId>, stop: &CancellationToken) -> Step {
        self.pause(stop).await.map_err(Break::End)?;
        self.replace_isolate(input, stop).await.map_err(Break::End)
    }

    /// Whether a failure that belongs to no frame ends the handler.
    fn is_ended_by_failures(&self) -> bool {
        let on_error = self.started.definition.on_error;
        decide(on_error, Verdict::Policy, u32::MAX) == Decision::Unregister
    }

    /// Waits for the next attempt after an isolate failed to start, unless the failure ends the
    /// handler.
    pub(super) async fn not_started(
        &mut self,
        error: ModuleError,
        input: Option<FrameId>,
        stop: &CancellationToken,
    ) -> Result<(), Ending> {
        match error.kind {
            FailureKind::Stopped => return Err(Ending::Stopped),
            FailureKind::Wedged => return Err(Ending::Wedged { error, input }),
            _ if self.is_ended_by_failures() => return Err(Ending::FinError { error, input }),
            _ => {}
        }
        let wait = self.backoff.next(self.began.elapsed(), random());
        self.version.retrying(Some(&error), wait, self.backoff.tries(), &mut self.told).await;
        // The next commit reports the recovery, and need not wait for an input.
        self.is_retrying = true;
        self.move_at = Some(Instant::now());
        rest(wait, stop).await
    }

    /// The record of a parked input, which names the input as its cause.
    fn parked(&self, error: &ModuleError, input: &Frame, attempts: u32) -> NewFrame {
        let (key, create) = (&self.version.key, self.version.create);
        let mut fields = report::error_fields(error);
        fields.insert("frame".to_owned(), json!(input.id().to_string()));
        fields.insert("topic".to_owned(), json!(input.topic()));
        fields.insert("attempts".to_owned(), json!(attempts));
        let mut frame = report::frame(key, Event::Parked, create, fields);
        frame.topic = key.name.topic(PARKED);
        frame.ttl = Ttl::Forever;
        frame.origin = Some(Origin {
            processor: create,
            input: Some(input.id()),
            input_offset: input.offset(),
            hops: input.origin().map_or(0, |origin| origin.hops) + 1,
        });
        frame
    }

    /// A line in the process's log, for operators who do not look at the store's log.
    fn warn(
        &self,
        what: &str,
        error: &ModuleError,
        input: &Frame,
        attempt: u32,
        due_ms: Option<u64>,
    ) {
        let due = due_ms.and_then(|ms| Timestamp::from_millisecond(ms.try_into().ok()?).ok());
        tracing::warn!(
            target: report::TOLD,
            processor = %self.version.key,
            topic = input.topic(),
            input = %input.id(),
            attempt,
            due = due.map(|due| tracing::field::display(format!("{due:.3}"))),
            error = error.message.lines().next().unwrap_or_default(),
            "{what}"
        );
    }

    fn retrying(&self, error: &ModuleError, input: &Frame, retry: Retry) -> NewFrame {
        let mut fields = report::error_fields(error);
        fields.insert("frame".to_owned(), json!(input.id().to_string()));
        fields.insert("tries".to_owned(), json!(retry.attempt));
        fields.insert("due_ms".to_owned(), json!(retry.due_ms));
        report::frame(&self.version.key, Event::Retrying, self.version.create, fields)
    }

    pub(super) fn too_many_hops(&self, frame: &Frame) -> NewFrame {
        let text = "a chain of processors was cut: too many frames led to this one";
        let mut fields = Map::new();
        fields.insert("code".to_owned(), json!("hops"));
        fields.insert("frame".to_owned(), json!(frame.id().to_string()));
        let fields = serde_json::Value::Object(fields).to_string();
        let (key, create) = (&self.version.key, self.version.create);
        report::log(key, create, LogLevel::Error, text, Some(&fields))
    }
}
