//! Drives a handler: frames in, and its outputs, state and cursor out in one commit. Every commit
//! is conditional on the one before, so whatever fails in between, the stored place decides where
//! the handler resumes: exactly once inside the store.

mod ahead;
mod batch;
pub(super) mod cursor;
mod failure;
mod inputs;
pub(super) mod offer;
pub(super) mod parked;
mod policy;
mod restart;

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use xs_engine::{Bound, CursorName, ReadOptions, Start};
use xs_protocol::{ClientError, SubEvent, SubscribeOptions, Subscription};

use self::ahead::UnderWay;
use self::cursor::{HandlerCursor, Retry};
use self::inputs::Inputs;
use self::offer::first_offset;
use self::restart::{load, read_saved};
use super::backoff::Backoff;
use super::driver::{Ending, passes, stop_isolate};
use super::store::processor_cursor;
use super::version::{Started, Told, Version};
use crate::isolate::{Definition, Handling, LogLevel, ModuleError};

/// Bodies up to this many bytes are delivered with their frames.
const BODIES_UP_TO: u32 = 16 * 1024;
/// The initial batch size, as nothing is known of how long a call takes.
const FIRST_INPUTS: usize = 16;
/// A batch is to take no longer than this, or than a pulse: ticks, a stop and a new version wait
/// for it.
const BATCH_TIME: Duration = Duration::from_millis(500);
/// A cursor that moves without outputs is written at most this often.
const MOVE_EVERY: Duration = Duration::from_secs(1);

/// A handler that is ready to run.
pub(super) struct Handler {
    version: Version,
    started: Started,
    cursor: CursorName,
    saved: HandlerCursor,
    /// The offset of the first frame not handled; at or beyond the stored place.
    seen: u64,
    /// Set if the first input not handled is to be retried.
    retry: Option<Retry>,
    /// When to store `seen` as the place.
    move_at: Option<Instant>,
    /// When `tick` is due.
    tick_at: Option<Instant>,
    /// The maximum batch size at present.
    most: usize,
    /// The commit in flight, which leads from `saved` to the next.
    under_way: Option<UnderWay>,
    /// Inputs below this offset, and those without an offset, are handled alone: the store refused
    /// the output of a batch of them. 0 if that never happened.
    alone_to: u64,
    backoff: Backoff,
    told: Told,
    /// When the isolate was started.
    began: Instant,
    /// Whether the log's last report about the handler is that something is being retried.
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
    /// Brings a started version to its saved place. A handler without a place gets one now, so that
    /// nothing appended from here on is missed, whatever happens next.
    ///
    /// # Errors
    /// [`ModuleError`] when the state cannot be loaded or the store does not answer.
    pub(super) async fn new(version: Version, started: Started) -> Result<Self, ModuleError> {
        let cursor = processor_cursor(&version.key);
        let stop = version.shared().shutdown.clone();
        let saved = read_saved(&version, &cursor, &stop).await.map_err(Ending::into_error)?;
        let saved = match saved {
            Some(saved) => saved,
            None => {
                let (client, start) = (&version.shared().client, started.definition.start);
                let first = first_offset(client, start, version.offset, &stop).await;
                HandlerCursor::new(first.map_err(Ending::into_error)?, version.offset)
            }
        };
        load(&version, &started, &saved).await?;
        Ok(Self {
            version,
            started,
            cursor,
            seen: saved.offset,
            retry: saved.retry,
            saved,
            move_at: None,
            tick_at: None,
            most: FIRST_INPUTS,
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
        (self.saved.revision == 0).then(|| self.saved.change(&self.cursor, &self.saved))
    }

    /// The version it is of.
    pub(super) const fn version(&self) -> &Version {
        &self.version
    }

    /// The definition of its module.
    pub(super) const fn definition(&self) -> &Definition {
        &self.started.definition
    }

    /// Records that the first change was stored.
    pub(super) const fn placed(&mut self, revision: u64) {
        self.saved.revision = revision;
    }

    /// Runs until it is stopped or ends.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Ending {
        loop {
            let going = match self.follow(&stop).await {
                Ok(()) => continue,
                Err(over) => self.go_on(over, &stop).await,
            };
            let Err(ending) = going else { continue };
            // By the time the next version reads the place, the commit in flight is stored or has
            // failed. Its failure is the same as the ending's, or comes too late to matter.
            let _ = self.land().await;
            if matches!(ending, Ending::Stopped) && self.move_at.is_some() {
                let next = HandlerCursor { offset: self.seen, ..self.saved.clone() };
                let change = self.saved.change(&self.cursor, &next);
                // Best effort: without it, the frames since are offered once more.
                let _ = self.version.shared().client.cursor_set(change).await;
            }
            return stop_isolate(self.started.isolate, ending).await;
        }
    }

    /// Follows one subscription, from the first frame not handled.
    async fn follow(&mut self, stop: &CancellationToken) -> Step {
        let options = ReadOptions {
            topics: offer::topics(&self.started.definition, &self.version.key),
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

    /// Calls `tick` and stores its output in a commit of its own.
    async fn tick(&mut self, stop: &CancellationToken) -> Step {
        let ticked = self.tick_once(stop).await;
        self.tick_at = self.next_tick();
        ticked
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

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
