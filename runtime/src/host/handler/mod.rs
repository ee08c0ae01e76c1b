//! Drives a handler: frames in, and its outputs, state and cursor out in one commit. Every commit
//! is conditional on the one before, so whatever fails in between, the stored place decides where
//! the handler resumes: exactly once inside the store.

mod ahead;
mod failure;
mod inputs;
pub(super) mod parked;
pub(super) mod place;
mod policy;

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use xs_engine::{Bound, CursorName, Frame, FrameId, ReadOptions, Start, TopicPatterns};
use xs_protocol::{ClientError, LastRequest, SubEvent, SubscribeOptions, Subscription};

use self::ahead::UnderWay;
use self::inputs::{Inputs, Next};
use self::parked::PARKED;
use self::place::{Place, Retry, State};
use super::backoff::{Backoff, random};
use super::driver::{Ending, RESUBSCRIBE, ask, passes, stop_isolate, wall_ms};
use super::lifecycle::Event;
use super::store::processor_cursor;
use super::version::{Started, Told, Version};
use crate::isolate::{
    Definition, FailureKind, HandlerFailure, HandlerReply, Handling, INPUTS_MAX, Input, LogLevel,
    ModuleError, StartAt, Verdict,
};

/// Bodies up to this many bytes are delivered with their frames.
const BODIES_UP_TO: u32 = 16 * 1024;
/// The initial batch size of a handler with ticks, which run between batches.
const TICKED_INPUTS: usize = 16;
/// A cursor that moves without outputs is written at most this often.
const MOVE_EVERY: Duration = Duration::from_secs(1);

/// A handler that is ready to run.
pub(super) struct Handler {
    version: Version,
    started: Started,
    cursor: CursorName,
    place: Place,
    /// The offset of the first frame not handled; at or beyond the stored place.
    seen: u64,
    /// Set if the first input not handled is to be retried.
    retry: Option<Retry>,
    /// When to store `seen` as the place.
    move_at: Option<Instant>,
    /// When `tick` is due, and the batch size of a handler with ticks.
    tick_at: Option<Instant>,
    most: usize,
    /// The commit in flight, which leads from `place` to the next.
    under_way: Option<UnderWay>,
    /// Inputs below this offset, and those without an offset, are handled alone: the store refused
    /// the output of a batch of them. 0 if that never happened.
    alone_to: u64,
    backoff: Backoff,
    told: Told,
    /// When the isolate was started.
    began: Instant,
    /// The log's last report about the handler is that something is being retried.
    is_retrying: bool,
}

/// Why the present run of the loop ended.
enum Break {
    /// For good.
    End(Ending),
    /// Read the place again and restart the handler from it.
    Again,
    /// Resubscribe after a moment; the isolate is kept.
    Later,
    /// Like [`Break::Again`], because the store will never accept the output of the module's code.
    Refused(ModuleError),
}

type Step<T = ()> = Result<T, Break>;

impl Handler {
    /// Brings a started version to its saved place. A handler without one gets it now, so that
    /// nothing appended from here on is missed whatever happens next.
    ///
    /// # Errors
    /// [`ModuleError`] when the state cannot be loaded or the store does not answer.
    pub(super) async fn new(version: Version, started: Started) -> Result<Self, ModuleError> {
        let cursor = processor_cursor(&version.key);
        let stop = version.shared().shutdown.clone();
        let place = read_place(&version, &cursor, &stop).await.map_err(Ending::into_error)?;
        let place = match place {
            Some(place) => place,
            None => {
                let first = first_offset(&version, started.definition.start, &stop).await;
                Place::new(first.map_err(Ending::into_error)?, version.offset)
            }
        };
        load(&version, &started, &place).await?;
        Ok(Self {
            version,
            started,
            cursor,
            seen: place.offset,
            retry: place.retry,
            place,
            move_at: None,
            tick_at: None,
            most: TICKED_INPUTS,
            under_way: None,
            alone_to: 0,
            backoff: Backoff::default(),
            told: Told::default(),
            began: Instant::now(),
            is_retrying: false,
        })
    }

    /// The change that stores the first place of a handler without one, committed with its `active`
    /// frame.
    pub(super) fn first_change(&self) -> Option<xs_engine::CursorChange> {
        (self.place.revision == 0).then(|| self.place.change(&self.cursor, &self.place))
    }

    /// The definition of its module.
    pub(super) const fn definition(&self) -> &Definition {
        &self.started.definition
    }

    /// Records that the first change was stored.
    pub(super) const fn placed(&mut self, revision: u64) {
        self.place.revision = revision;
    }

    /// Runs until it is stopped or ends.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Ending {
        loop {
            let going = match self.follow(&stop).await {
                Ok(()) => continue,
                Err(over) => self.go_on(over, &stop).await,
            };
            let Err(ending) = going else { continue };
            // The commit in flight is stored or not by the time the next version reads the place.
            // Its failure is the same as the ending's, or comes too late to matter.
            let _ = self.land().await;
            if matches!(ending, Ending::Stopped) && self.move_at.is_some() {
                let next = Place { offset: self.seen, ..self.place.clone() };
                let change = self.place.change(&self.cursor, &next);
                // Best effort: without it, the frames since are offered once more.
                let _ = self.version.shared().client.cursor_set(change).await;
            }
            return stop_isolate(self.started.isolate, ending).await;
        }
    }

    /// Prepares another run of the loop, unless the handler has ended for good.
    async fn go_on(&mut self, over: Break, stop: &CancellationToken) -> Result<(), Ending> {
        match over {
            Break::End(ending) => Err(ending),
            Break::Later => rest(RESUBSCRIBE, stop).await,
            Break::Again => self.start_over(stop).await,
            Break::Refused(error) => {
                let text = format!("{error}; its inputs are handled again, one by one");
                self.version.backend.log(LogLevel::Warn, text, None);
                self.start_over(stop).await
            }
        }
    }

    /// Waits for the commit in flight, then for a delay, and resumes from the saved place with a
    /// new isolate.
    async fn start_over(&mut self, stop: &CancellationToken) -> Result<(), Ending> {
        // Whatever the result of the commit in flight, the place is read after it.
        if let Err(Break::End(ending)) = self.land().await {
            return Err(ending);
        }
        self.pause(stop).await?;
        self.restart(stop).await
    }

    /// Takes the isolate down and waits, the longer the sooner the last ones were replaced: each
    /// isolate that is created costs the process memory for good.
    async fn pause(&mut self, stop: &CancellationToken) -> Result<(), Ending> {
        self.started.isolate.take_down().await;
        let wait = self.backoff.next(self.began.elapsed(), random());
        rest(wait, stop).await
    }

    /// Reads the place again and resumes from it with a fresh isolate.
    async fn restart(&mut self, stop: &CancellationToken) -> Result<(), Ending> {
        self.place = match read_place(&self.version, &self.cursor, stop).await? {
            Some(place) => place,
            // Reset by its operator while it ran: `new` starts counting now.
            None => {
                let first = match self.started.definition.start {
                    StartAt::New => self.newest_begin(stop).await?,
                    start => first_offset(&self.version, start, stop).await?,
                };
                Place::new(first, self.last_parked(stop).await?)
            }
        };
        self.seen = self.place.offset;
        self.retry = self.place.retry;
        self.move_at = None;
        self.replace_isolate(None, stop).await
    }

    /// Where new frames begin after a reset: after the newer version, if there is one, as a reset
    /// asks for, else at the first frame not handled.
    async fn newest_begin(&self, stop: &CancellationToken) -> Result<u64, Ending> {
        let key = &self.version.key;
        let topics = TopicPatterns::from(key.name.event_topic(key.kind, Event::Create.as_str()));
        let request = LastRequest { topics, n: 1, per_topic: false };
        let found = ask(stop, || self.version.shared().client.last(&request)).await?;
        let newest = found.first().and_then(Frame::offset);
        let newer = newest.filter(|newest| *newest > self.version.offset);
        Ok(newer.map_or(self.seen, |newest| newest + 1))
    }

    /// The offset of the last parked record, or of the version if that is later: later parked
    /// records come after it.
    async fn last_parked(&self, stop: &CancellationToken) -> Result<u64, Ending> {
        let topics = TopicPatterns::from(self.version.key.name.topic(PARKED));
        let request = LastRequest { topics, n: 1, per_topic: false };
        let found = ask(stop, || self.version.shared().client.last(&request)).await?;
        let newest = found.first().and_then(Frame::offset);
        Ok(newest.map_or(self.version.offset, |newest| newest.max(self.version.offset)))
    }

    /// Replaces the isolate by one that starts from the saved state. Loading that state worked
    /// before, so a failure is retried, unless the definition says that a failure ends the handler.
    async fn replace_isolate(
        &mut self,
        input: Option<FrameId>,
        stop: &CancellationToken,
    ) -> Result<(), Ending> {
        loop {
            self.started.isolate.take_down().await;
            self.began = Instant::now();
            match self.start().await {
                Ok(()) => return Ok(()),
                Err(error) => self.not_started(error, input, stop).await?,
            }
        }
    }

    async fn start(&mut self) -> Result<(), ModuleError> {
        self.started = self.version.start().await?;
        load(&self.version, &self.started, &self.place).await
    }

    /// Follows one subscription, from the first frame not handled.
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
        self.tick_at = self.tick_at.or_else(|| self.next_tick());
        loop {
            let failed = self.started.isolate.failed();
            let (move_at, tick_at) = (self.move_at, self.tick_at);
            let idle = tokio::select! {
                biased;
                () = stop.cancelled() => return Err(Break::End(Ending::Stopped)),
                landed = self.land(), if self.under_way.is_some() => {
                    landed?;
                    continue;
                }
                error = failed => Some(Idle::Failed(error)),
                () = until(move_at) => Some(Idle::Move),
                () = until(tick_at) => Some(Idle::Tick),
                event = subscription.next() => {
                    self.event(event, &mut subscription, stop).await?;
                    None
                }
            };
            match idle {
                Some(Idle::Failed(error)) => self.failed_alone(error, stop).await?,
                Some(Idle::Move) => self.store(Vec::new(), None, stop).await?,
                Some(Idle::Tick) => self.tick(stop).await?,
                None => {}
            }
        }
    }

    /// Handles one event of the subscription.
    async fn event(
        &mut self,
        event: Option<Result<SubEvent, ClientError>>,
        subscription: &mut Subscription,
        stop: &CancellationToken,
    ) -> Step {
        match event {
            Some(Ok(SubEvent::Frames { frames, scanned_to })) => {
                let frames = self.with_unparked(frames).await?;
                let mut inputs = Inputs::new(&self.version, frames, self.retry);
                inputs.alone_below(self.alone_to);
                if self.alone_to > 0 {
                    inputs.ephemeral_alone();
                }
                self.work(&mut inputs, stop).await?;
                self.seen = self.seen.max(scanned_to);
                Ok(())
            }
            Some(Ok(SubEvent::CaughtUp { .. } | SubEvent::Pulse)) => Ok(()),
            Some(Ok(SubEvent::Gap(gap))) => {
                let text = format!("frames are missing here: {gap:?}");
                self.version.backend.log(LogLevel::Warn, text, None);
                Ok(())
            }
            Some(Ok(SubEvent::Dropped { .. })) | None => {
                self.seen = self.seen.max(subscription.position().unwrap_or_default());
                Err(Break::Later)
            }
            Some(Err(error)) => Err(lost_or_again(error)),
        }
    }

    /// Handles inputs until none is left.
    async fn work(&mut self, inputs: &mut Inputs, stop: &CancellationToken) -> Step {
        loop {
            if self.tick_at.is_some_and(|at| at <= Instant::now()) {
                self.tick(stop).await?;
            }
            match inputs.next(self.most()) {
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
                    self.took(began.elapsed());
                    let Some(failure) = failure else { continue };
                    if failure.shared && count > 1 {
                        inputs.one_by_one(failure.index);
                        // Without a delay: each of these inputs is finished, one way or the other,
                        // before there can be another batch.
                        self.replace_isolate(None, stop).await.map_err(Break::End)?;
                    } else {
                        self.failed(failure, inputs, stop).await?;
                    }
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
                // The failure came with nothing to store; the reaction to it begins from a stored
                // place.
                self.land().await?;
                failure.index = failure.index.saturating_sub(done);
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
                let (shared, fresh, verdict) = (false, true, Verdict::Policy);
                return Ok(Some(HandlerFailure { error, index: 0, shared, fresh, verdict }));
            }
            // The isolate may work ahead on the next inputs, but not on the rest of this batch.
            if !handling.is_over() {
                self.land().await?;
            }
        }
    }

    /// Starts to store the output of calls; `false` when there is nothing to store.
    async fn begin_made(&mut self, reply: HandlerReply, stop: &CancellationToken) -> Step<bool> {
        let HandlerReply { outputs, removes, state, .. } = reply;
        let made = !outputs.is_empty() || !removes.is_empty() || state.is_some();
        if made || self.place.retry != self.retry {
            self.begin_store(outputs, removes, state, stop).await?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Waits for the commit in flight like [`Handler::land`], but returns a refusal of the module's
    /// output as a value.
    async fn land_or_refused(&mut self) -> Step<Option<ModuleError>> {
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
        let (index, shared) = (left.saturating_sub(1), left > 1);
        let verdict = Verdict::Policy;
        Ok(Some(HandlerFailure { error, index, shared, fresh: true, verdict }))
    }

    /// Calls `tick` and stores its output in a commit of its own.
    async fn tick(&mut self, stop: &CancellationToken) -> Step {
        let ticked = self.tick_once(stop).await;
        self.tick_at = self.next_tick();
        ticked
    }

    fn most(&self) -> usize {
        self.started.definition.pulse.map_or(INPUTS_MAX, |_| self.most)
    }

    /// Adjusts the batch size so that a batch takes no longer than a pulse.
    fn took(&mut self, time: Duration) {
        match self.started.definition.pulse {
            Some(pulse) if time > pulse => self.most = (self.most / 2).max(1),
            Some(pulse) if time < pulse / 2 => self.most = (self.most * 2).min(INPUTS_MAX),
            _ => {}
        }
    }

    fn next_tick(&self) -> Option<Instant> {
        self.started.definition.pulse.map(|pulse| Instant::now() + pulse)
    }

    async fn tick_once(&mut self, stop: &CancellationToken) -> Step {
        self.land().await?;
        let mut handling: Handling = match self.started.isolate.tick() {
            Ok(handling) => handling,
            Err(error) => return self.failed_alone(error, stop).await,
        };
        let reply = tokio::select! {
            reply = handling.next() => reply,
            () = stop.cancelled() => return Err(Break::End(Ending::Stopped)),
        };
        match reply {
            Ok(Some(mut reply)) => {
                let failure = reply.failure.take().map(|failure| failure.error);
                self.begin_made(reply, stop).await?;
                match self.land_or_refused().await?.or(failure) {
                    Some(error) => self.failed_alone(error, stop).await,
                    None => Ok(()),
                }
            }
            Ok(None) => Ok(()),
            Err(error) => self.failed_alone(error, stop).await,
        }
    }

    /// The first input left is handled or skipped.
    fn pass(&mut self, inputs: &mut Inputs) {
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
            let wait = Duration::from_millis(due_ms.saturating_sub(wall_ms()));
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

enum Idle {
    Failed(ModuleError),
    Move,
    Tick,
}

fn lost_or_again(error: ClientError) -> Break {
    match error {
        error if passes(&error) => Break::Later,
        ClientError::Refused(_) => Break::Again,
        other => Break::End(Ending::Lost(other)),
    }
}

/// Loads the state of a place into an isolate.
async fn load(version: &Version, started: &Started, place: &Place) -> Result<(), ModuleError> {
    match &place.state {
        Some(State { json, code }) if *code != version.code() => {
            started.isolate.migrate_state(json.clone()).await
        }
        Some(State { json, .. }) => started.isolate.load_state(Some(json.clone())).await,
        None => started.isolate.load_state(None).await,
    }
}

/// Sleeps, unless it is stopped.
async fn rest(wait: Duration, stop: &CancellationToken) -> Result<(), Ending> {
    tokio::select! {
        () = stop.cancelled() => Err(Ending::Stopped),
        () = tokio::time::sleep(wait) => Ok(()),
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn read_place(
    version: &Version,
    cursor: &CursorName,
    stop: &CancellationToken,
) -> Result<Option<Place>, Ending> {
    let stored = ask(stop, || version.shared().client.cursor_get(cursor)).await?;
    let place = stored.as_ref().map(Place::of).transpose();
    let place = place.map(|place| place.map(|place| place.for_version(version.create)));
    place.map_err(|error| {
        let text = format!("the cursor {cursor} was not written by a Host: {error}");
        Ending::failed(FailureKind::Store, text)
    })
}

/// Where a handler without a cursor begins. Everything after its `create` frame is new to it.
async fn first_offset(
    version: &Version,
    start: StartAt,
    stop: &CancellationToken,
) -> Result<u64, Ending> {
    match start {
        StartAt::New => Ok(version.offset + 1),
        StartAt::First => Ok(0),
        StartAt::After(id) => {
            let frame = ask(stop, || version.shared().client.get(Bound::Id(id))).await?;
            frame.and_then(|frame| frame.offset()).map(|offset| offset + 1).ok_or_else(|| {
                Ending::failed(FailureKind::Definition, format!("start: no frame has the id {id}"))
            })
        }
    }
}
