//! Hands inputs to the isolate in batches, and commits the output of each batch.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::inputs::{Inputs, Next};
use super::{BATCH_TIME, Break, Handler, MOVE_EVERY, Step, until};
use crate::host::driver::Ending;
use crate::isolate::{
    Blame, HandlerFailure, HandlerReply, INPUTS_MAX, Input, ModuleError, Verdict,
};
use crate::time::now_ms;

impl Handler {
    /// Handles inputs until none is left.
    pub(super) async fn work(&mut self, inputs: &mut Inputs, stop: &CancellationToken) -> Step {
        loop {
            if self.tick_at.is_some_and(|at| at <= Instant::now()) {
                self.tick(stop).await?;
            }
            match inputs.next(self.most) {
                Next::None => return Ok(()),
                Next::TooManyHops(frame) => {
                    let line = self.too_many_hops(&frame);
                    self.pass(inputs);
                    self.store(vec![line], None, stop).await?;
                }
                Next::Batch(batch) => {
                    if let Some(due_ms) = inputs.due() {
                        self.wait_until(due_ms, stop).await?;
                    }
                    let (count, began) = (batch.len(), Instant::now());
                    let failure = self.batch(batch, inputs, stop).await?;
                    self.took(count, began.elapsed());
                    let Some(failure) = failure else { continue };
                    match failure.blame {
                        Blame::UpTo(index) if count > 1 => inputs.one_by_one(index),
                        Blame::Sharing(index) if count > 1 => inputs.without(index),
                        _ => {
                            self.failed(failure, inputs, stop).await?;
                            continue;
                        }
                    }
                    // No delay: each of these inputs is finished, one way or the other, before
                    // there can be another batch.
                    self.replace_isolate(None, stop).await.map_err(Break::End)?;
                }
            }
        }
    }

    /// Hands one batch to the isolate and commits its output.
    async fn batch(
        &mut self,
        batch: Vec<Input>,
        inputs: &mut Inputs,
        stop: &CancellationToken,
    ) -> Step<Option<HandlerFailure>> {
        let (count, first) = (batch.len(), inputs.first_alone().map(|first| (first, self.seen)));
        let isolate = &self.started.isolate;
        let handling = match &self.under_way {
            Some(_) => isolate.handle_ahead(batch),
            None => isolate.handle(batch),
        };
        let mut handling = match handling {
            Ok(handling) => handling,
            Err(error) => return self.note_death(error, count).await,
        };
        let mut done = 0;
        loop {
            let reply = tokio::select! {
                biased;
                landed = self.land(), if self.under_way.is_some() => {
                    landed?;
                    handling.before_is_committed();
                    continue;
                }
                reply = handling.next() => reply,
                () = stop.cancelled() => return Err(Break::End(Ending::Stopped)),
            };
            let reply = match reply {
                Ok(Some(reply)) => reply,
                Ok(None) => return Ok(None),
                Err(error) => return self.note_death(error, count.saturating_sub(done)).await,
            };
            done += reply.done;
            for _ in 0..reply.done {
                self.pass(inputs);
            }
            if let Some(mut failure) = reply.failure {
                // This reply has nothing to store; the reaction to the failure begins from a stored
                // place.
                self.land().await?;
                failure.blame = failure.blame.after(done);
                return Ok(Some(failure));
            }
            if !self.begin_made(reply, stop).await? {
                continue;
            }
            if let Some((first, seen)) = &first {
                // An input handled alone is blamed for its output.
                let Some(error) = self.land_or_refused().await? else { continue };
                self.seen = *seen;
                inputs.put_back(first.clone());
                let (blame, verdict) = (Blame::Input(0), Verdict::Policy);
                return Ok(Some(HandlerFailure { error, blame, fresh: true, verdict }));
            }
            // The isolate may work ahead on the next inputs, but not on the rest of this batch.
            if !handling.is_over() {
                self.land().await?;
            }
        }
    }

    /// Starts to store the output of calls; returns `false` when there is nothing to store.
    pub(super) async fn begin_made(
        &mut self,
        reply: HandlerReply,
        stop: &CancellationToken,
    ) -> Step<bool> {
        let HandlerReply { outputs, removes, state, .. } = reply;
        let made = !outputs.is_empty() || !removes.is_empty() || state.is_some();
        if made || self.saved.retry != self.retry {
            self.begin_store(outputs, removes, state, stop).await?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Waits for the commit in flight like [`Handler::land`], but returns a refusal of the module's
    /// output as a value.
    pub(super) async fn land_or_refused(&mut self) -> Step<Option<ModuleError>> {
        match self.land().await {
            Err(Break::Refused(error)) => Ok(Some(error)),
            landed => landed.map(|()| None),
        }
    }

    /// The isolate died during a batch: the culprit is known only if a single input was left.
    async fn note_death(
        &mut self,
        error: ModuleError,
        left: usize,
    ) -> Step<Option<HandlerFailure>> {
        self.land().await?;
        let (blame, verdict) = (Blame::of_end(left, left.saturating_sub(1)), Verdict::Policy);
        Ok(Some(HandlerFailure { error, blame, fresh: true, verdict }))
    }

    /// Adjusts the batch size so that a batch takes no longer than its time.
    fn took(&mut self, count: usize, time: Duration) {
        let most = self.started.definition.pulse.map_or(BATCH_TIME, |pulse| pulse.min(BATCH_TIME));
        if time > most {
            self.most = (count / 2).max(1);
        } else if time < most / 2 && count == self.most {
            self.most = (self.most * 2).min(INPUTS_MAX);
        }
    }

    /// Records that the first input left was handled or skipped.
    pub(super) fn pass(&mut self, inputs: &mut Inputs) {
        self.retry = None;
        if let Some(offset) = inputs.pass() {
            self.seen = offset + 1;
            self.move_at.get_or_insert_with(|| Instant::now() + MOVE_EVERY);
        }
    }

    /// Waits for the next attempt of the first input. Ticks continue, and an isolate that dies
    /// meanwhile is not the input's fault.
    async fn wait_until(&mut self, due_ms: u64, stop: &CancellationToken) -> Step {
        loop {
            let due_ms = self.version.shared().clock.here(due_ms);
            let wait = Duration::from_millis(due_ms.saturating_sub(now_ms()));
            let (failed, tick_at) = (self.started.isolate.failed(), self.tick_at);
            tokio::select! {
                biased;
                () = stop.cancelled() => return Err(Break::End(Ending::Stopped)),
                error = failed => self.failed_alone(error, stop).await?,
                () = tokio::time::sleep(wait) => return Ok(()),
                () = until(tick_at) => self.tick(stop).await?,
            }
        }
    }
}
