//! Drives a handler: frames in, and its outputs, state and cursor out in one commit. Every commit
//! is conditional on the one before, so whatever fails in between, the place in the log is the
//! truth and the handler goes on from it: exactly once inside the store.

mod failure;
mod inputs;
pub(super) mod parked;
pub(super) mod place;
mod policy;

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use xs_engine::{Bound, CursorName, FrameId, NewFrame, ReadOptions, Start};
use xs_protocol::{AppendRequest, ClientError, SubEvent, SubscribeOptions, Subscription};

use self::inputs::{Inputs, Next};
use self::place::{Place, State};
use super::commit::{Outcome, commit};
use super::driver::{Ending, RESUBSCRIBE, stop_isolate, wall_ms};
use super::store::processor_cursor;
use super::version::{Started, Version};
use crate::isolate::{
    Definition, FailureKind, HandlerFailure, Handling, Input, LogLevel, ModuleError, StartAt,
    Verdict,
};

/// Bodies up to so many bytes come with their frames.
const BODIES_UP_TO: u32 = 16 * 1024;
/// A cursor that moves without outputs is written at most so often.
const MOVE_EVERY: Duration = Duration::from_secs(1);

/// A handler that is ready to run.
pub(super) struct Handler {
    version: Version,
    started: Started,
    cursor: CursorName,
    place: Place,
    /// The first frame not handled; at or beyond the stored place.
    seen: u64,
    /// When the stored place is to catch up with `seen`.
    move_at: Option<Instant>,
}

/// Why the present run of the loop is over.
enum Break {
    /// For good.
    End(Ending),
    /// The place is to be read again and the handler started from it.
    Again,
}

type Step<T = ()> = Result<T, Break>;

impl Handler {
    /// Takes a started version to its saved place. A handler without one gets it now, so that
    /// nothing appended from here on is missed whatever happens next.
    ///
    /// # Errors
    /// [`ModuleError`] when the state cannot be loaded or the store does not answer.
    pub(super) async fn new(version: Version, started: Started) -> Result<Self, ModuleError> {
        let cursor = processor_cursor(&version.key);
        let place = read_place(&version, &cursor).await?;
        let place = match place {
            Some(place) => place,
            None => Place::new(first_offset(&version, started.definition.start).await?),
        };
        load(&version, &started, &place).await?;
        let seen = place.offset;
        Ok(Self { version, started, cursor, place, seen, move_at: None })
    }

    /// The change that stores the place of a handler that had none, beside its `active` frame.
    pub(super) fn first_change(&self) -> Option<xs_engine::CursorChange> {
        (self.place.revision == 0).then(|| self.place.change(&self.cursor, &self.place))
    }

    /// What its module says about itself.
    pub(super) const fn definition(&self) -> &Definition {
        &self.started.definition
    }

    /// Notes that the first change was stored.
    pub(super) const fn placed(&mut self, revision: u64) {
        self.place.revision = revision;
    }

    /// Runs until it is stopped or ends.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Ending {
        loop {
            let ending = match self.follow(&stop).await {
                Ok(()) => continue,
                Err(Break::End(ending)) => ending,
                Err(Break::Again) => match self.restart().await {
                    Ok(()) => continue,
                    Err(error) => Ending::FinError { error, input: None },
                },
            };
            if matches!(ending, Ending::Stopped) && self.move_at.is_some() {
                let next = Place { offset: self.seen, ..self.place.clone() };
                let change = self.place.change(&self.cursor, &next);
                // Only convenience: without it the frames since are offered once more.
                let _ = self.version.shared().client.cursor_set(change).await;
            }
            return stop_isolate(self.started.isolate, ending).await;
        }
    }

    /// Reads the place again and goes on from it with a fresh isolate.
    async fn restart(&mut self) -> Result<(), ModuleError> {
        self.place = match read_place(&self.version, &self.cursor).await? {
            Some(place) => place,
            // Reset by its operator while it ran: what is new begins now.
            None => match self.started.definition.start {
                StartAt::New => Place::new(self.seen),
                start => Place::new(first_offset(&self.version, start).await?),
            },
        };
        self.seen = self.place.offset;
        self.move_at = None;
        self.fresh().await
    }

    /// Replaces the isolate by one that starts from the saved state.
    async fn fresh(&mut self) -> Result<(), ModuleError> {
        self.started = self.version.start().await?;
        load(&self.version, &self.started, &self.place).await
    }

    /// One subscription, from the first frame not handled.
    async fn follow(&mut self, stop: &CancellationToken) -> Step {
        let options = ReadOptions {
            topics: self.topics(),
            start: Start::From(Bound::Offset(self.seen)),
            follow: true,
            ..ReadOptions::default()
        };
        let how = SubscribeOptions { bodies_up_to: BODIES_UP_TO, ..SubscribeOptions::default() };
        let subscribed = self.version.shared().client.subscribe(&options, how).await;
        let mut subscription = subscribed.map_err(lost_or_again)?;
        let pulse = self.started.definition.pulse;
        let mut tick_at = pulse.map(|pulse| Instant::now() + pulse);
        loop {
            let idle = tokio::select! {
                biased;
                () = stop.cancelled() => return Err(Break::End(Ending::Stopped)),
                error = self.started.isolate.failed() => Some(Idle::Failed(error)),
                () = until(self.move_at) => Some(Idle::Move),
                () = until(tick_at) => Some(Idle::Tick),
                event = subscription.next() => {
                    if !self.event(event, &mut subscription, stop).await? {
                        return Ok(());
                    }
                    None
                }
            };
            match idle {
                Some(Idle::Failed(error)) => self.failed_alone(error, stop).await?,
                Some(Idle::Move) => self.store(Vec::new(), None, stop).await?,
                Some(Idle::Tick) => {
                    self.tick(stop).await?;
                    tick_at = pulse.map(|pulse| Instant::now() + pulse);
                }
                None => {}
            }
        }
    }

    /// Takes what the subscription tells; `false` when it is over.
    async fn event(
        &mut self,
        event: Option<Result<SubEvent, ClientError>>,
        subscription: &mut Subscription,
        stop: &CancellationToken,
    ) -> Step<bool> {
        match event {
            Some(Ok(SubEvent::Frames { frames, scanned_to })) => {
                let frames = self.with_unparked(frames).await?;
                let mut inputs = Inputs::new(&self.version, frames, self.place.retry);
                self.work(&mut inputs, stop).await?;
                self.seen = self.seen.max(scanned_to);
                Ok(true)
            }
            Some(Ok(SubEvent::CaughtUp { .. } | SubEvent::Pulse)) => Ok(true),
            Some(Ok(SubEvent::Gap(gap))) => {
                let text = format!("frames are missing here: {gap:?}");
                self.version.backend.log(LogLevel::Warn, text, None);
                Ok(true)
            }
            Some(Ok(SubEvent::Dropped { .. })) | None => {
                self.seen = self.seen.max(subscription.position().unwrap_or_default());
                tokio::time::sleep(RESUBSCRIBE).await;
                Ok(false)
            }
            Some(Err(error)) => Err(lost_or_again(error)),
        }
    }

    /// Handles inputs until none is left.
    async fn work(&mut self, inputs: &mut Inputs, stop: &CancellationToken) -> Step {
        loop {
            match inputs.next() {
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
                    let count = batch.len();
                    let Some(failure) = self.batch(batch, inputs, stop).await? else { continue };
                    if failure.shared && count > 1 {
                        inputs.one_by_one(failure.index);
                        self.fresh_or_end(None).await?;
                    } else {
                        self.failed(failure, inputs, stop).await?;
                    }
                }
            }
        }
    }

    /// Hands one batch to the isolate and commits what comes back.
    async fn batch(
        &mut self,
        batch: Vec<Input>,
        inputs: &mut Inputs,
        stop: &CancellationToken,
    ) -> Step<Option<HandlerFailure>> {
        let count = batch.len();
        let mut handling = match self.started.isolate.handle(batch) {
            Ok(handling) => handling,
            Err(error) => return Ok(Some(died(error, count))),
        };
        let mut done = 0;
        loop {
            let reply = tokio::select! {
                reply = handling.next() => reply,
                () = stop.cancelled() => return Err(Break::End(Ending::Stopped)),
            };
            let reply = match reply {
                Ok(Some(reply)) => reply,
                Ok(None) => return Ok(None),
                Err(error) => return Ok(Some(died(error, count.saturating_sub(done)))),
            };
            done += reply.done;
            for _ in 0..reply.done {
                self.pass(inputs);
            }
            let made = !reply.outputs.is_empty() || !reply.removes.is_empty();
            if made || reply.state.is_some() || self.place.retry.is_some() {
                self.store_reply(reply.outputs, reply.removes, reply.state, stop).await?;
            }
            if let Some(mut failure) = reply.failure {
                failure.index = failure.index.saturating_sub(done);
                return Ok(Some(failure));
            }
        }
    }

    /// Calls `tick` and commits what comes back.
    async fn tick(&mut self, stop: &CancellationToken) -> Step {
        let mut handling: Handling = match self.started.isolate.tick() {
            Ok(handling) => handling,
            Err(error) => return self.failed_alone(error, stop).await,
        };
        let reply = tokio::select! {
            reply = handling.next() => reply,
            () = stop.cancelled() => return Err(Break::End(Ending::Stopped)),
        };
        match reply {
            Ok(Some(reply)) => {
                let made = !reply.outputs.is_empty() || !reply.removes.is_empty();
                if made || reply.state.is_some() {
                    self.store_reply(reply.outputs, reply.removes, reply.state, stop).await?;
                }
                match reply.failure {
                    Some(failure) => self.failed_alone(failure.error, stop).await,
                    None => Ok(()),
                }
            }
            Ok(None) => Ok(()),
            Err(error) => self.failed_alone(error, stop).await,
        }
    }

    /// The first input left is handled, or passed over.
    fn pass(&mut self, inputs: &mut Inputs) {
        if let Some(offset) = inputs.pass() {
            self.seen = offset + 1;
            self.move_at.get_or_insert_with(|| Instant::now() + MOVE_EVERY);
        }
    }

    /// Stores frames and the place reached, in one batch.
    async fn store(
        &mut self,
        frames: Vec<NewFrame>,
        state: Option<bytes::Bytes>,
        stop: &CancellationToken,
    ) -> Step {
        self.store_reply(frames, Vec::new(), state, stop).await
    }

    /// The same, with frames that are to be gone.
    async fn store_reply(
        &mut self,
        frames: Vec<NewFrame>,
        removes: Vec<FrameId>,
        state: Option<bytes::Bytes>,
        stop: &CancellationToken,
    ) -> Step {
        let code = self.version.code();
        let state = state.map(|json| State { json, code }).or_else(|| self.place.state.clone());
        let next = Place { revision: 0, offset: self.seen, state, retry: None };
        self.store_place(frames, removes, next, stop).await
    }

    async fn store_place(
        &mut self,
        frames: Vec<NewFrame>,
        removes: Vec<FrameId>,
        next: Place,
        stop: &CancellationToken,
    ) -> Step {
        let change = self.place.change(&self.cursor, &next);
        let removes_within = match removes.is_empty() {
            true => None,
            false => self.started.definition.permissions.remove.clone(),
        };
        let batch = AppendRequest {
            frames,
            cursors: vec![change],
            removes: removes.into_iter().map(Bound::Id).collect(),
            removes_within,
            ..AppendRequest::default()
        };
        match commit(&self.version.shared().client, &batch, stop).await {
            Outcome::Stored(appended) => {
                let revision = appended.cursors.first().copied().unwrap_or_default();
                self.place = Place { revision, ..next };
                self.move_at = None;
                Ok(())
            }
            Outcome::Conflict | Outcome::Unknown(_) => Err(Break::Again),
            Outcome::Lost(error) => Err(Break::End(Ending::Lost(error))),
            Outcome::Stopped => Err(Break::End(Ending::Stopped)),
            Outcome::Refused(error) => {
                let text = format!("the store refused what the handler made: {error}");
                let error = ModuleError::new(FailureKind::Store, text);
                Err(Break::End(Ending::FinError { error, input: None }))
            }
        }
    }

    async fn wait_until(&self, due_ms: u64, stop: &CancellationToken) -> Step {
        let wait = Duration::from_millis(due_ms.saturating_sub(wall_ms()));
        tokio::select! {
            () = stop.cancelled() => Err(Break::End(Ending::Stopped)),
            () = tokio::time::sleep(wait) => Ok(()),
        }
    }
}

enum Idle {
    Failed(ModuleError),
    Move,
    Tick,
}

/// A batch during which the isolate ended: which input did it is known only of the last.
fn died(error: ModuleError, left: usize) -> HandlerFailure {
    let index = left.saturating_sub(1);
    HandlerFailure { error, index, shared: left > 1, fresh: true, verdict: Verdict::Policy }
}

fn lost_or_again(error: ClientError) -> Break {
    match error {
        ClientError::Refused(_) => Break::Again,
        other => Break::End(Ending::Lost(other)),
    }
}

/// Gives an isolate the state of a place.
async fn load(version: &Version, started: &Started, place: &Place) -> Result<(), ModuleError> {
    match &place.state {
        Some(State { json, code }) if *code != version.code() => {
            started.isolate.migrate_state(json.clone()).await
        }
        Some(State { json, .. }) => started.isolate.load_state(Some(json.clone())).await,
        None => started.isolate.load_state(None).await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn read_place(version: &Version, cursor: &CursorName) -> Result<Option<Place>, ModuleError> {
    let failed = |text: String| ModuleError::new(FailureKind::Store, text);
    let stored = version.shared().client.cursor_get(cursor).await;
    let stored = stored.map_err(|error| failed(format!("cannot read its cursor: {error}")))?;
    let place = stored.as_ref().map(Place::of).transpose();
    place.map_err(|error| failed(format!("the cursor {cursor} was not written by a Host: {error}")))
}

/// Where a handler without a cursor begins. Everything behind its `create` frame is new to it.
async fn first_offset(version: &Version, start: StartAt) -> Result<u64, ModuleError> {
    match start {
        StartAt::New => Ok(version.offset + 1),
        StartAt::First => Ok(0),
        StartAt::After(id) => {
            let found = version.shared().client.get(Bound::Id(id)).await;
            let frame = found.map_err(|error| {
                ModuleError::new(FailureKind::Store, format!("cannot read its start: {error}"))
            })?;
            frame.and_then(|frame| frame.offset()).map(|offset| offset + 1).ok_or_else(|| {
                let text = format!("start: no frame has the id {id}");
                ModuleError::new(FailureKind::Definition, text)
            })
        }
    }
}
