//! How a handler resumes after a failure, a refusal or a reset: from its stored place, with an
//! isolate that starts from the saved state.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use xs_engine::{CursorName, Frame, FrameId, TopicPatterns};
use xs_protocol::LastRequest;

use super::cursor::{HandlerCursor, State};
use super::offer::first_offset;
use super::parked::PARKED;
use super::{Break, Handler};
use crate::host::backoff::random;
use crate::host::driver::{Ending, RESUBSCRIBE, ask};
use crate::host::lifecycle::Event;
use crate::host::version::{Started, Version};
use crate::isolate::{FailureKind, LogLevel, ModuleError, StartAt};

impl Handler {
    /// Prepares another run of the loop, unless the handler has ended for good.
    pub(super) async fn go_on(
        &mut self,
        over: Break,
        stop: &CancellationToken,
    ) -> Result<(), Ending> {
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

    /// Takes the isolate down and waits, longer if isolates are replaced in quick succession: each
    /// one that is created leaks memory until the process exits.
    pub(super) async fn pause(&mut self, stop: &CancellationToken) -> Result<(), Ending> {
        self.started.isolate.take_down().await;
        let wait = self.backoff.next(self.began.elapsed(), random());
        rest(wait, stop).await
    }

    /// Reads the place again and resumes from it with a fresh isolate.
    async fn restart(&mut self, stop: &CancellationToken) -> Result<(), Ending> {
        self.saved = match read_saved(&self.version, &self.cursor, stop).await? {
            Some(saved) => saved,
            // Reset by an operator while it ran: `new` counts from now.
            None => {
                let first = match self.started.definition.start {
                    StartAt::New => self.newest_begin(stop).await?,
                    start => {
                        let (version, shared) = (&self.version, self.version.shared());
                        first_offset(&shared.client, start, version.offset, stop).await?
                    }
                };
                HandlerCursor::new(first, self.last_parked(stop).await?)
            }
        };
        self.seen = self.saved.offset;
        self.retry = self.saved.retry;
        self.move_at = None;
        self.replace_isolate(None, stop).await
    }

    /// Where frames begin to be new after a reset: after the newer version, if there is one, as a
    /// reset demands, else at the first frame not handled.
    async fn newest_begin(&self, stop: &CancellationToken) -> Result<u64, Ending> {
        let key = &self.version.key;
        let topics = TopicPatterns::from(key.name.event_topic(key.kind, Event::Create));
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

    /// Replaces the isolate with one that starts from the saved state. Loading that state worked
    /// before, so a failure is retried, unless the definition says that a failure ends the handler.
    pub(super) async fn replace_isolate(
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
        load(&self.version, &self.started, &self.saved).await
    }
}

/// Loads the state of a place into an isolate.
pub(super) async fn load(
    version: &Version,
    started: &Started,
    saved: &HandlerCursor,
) -> Result<(), ModuleError> {
    match &saved.state {
        Some(State { json, code }) if *code != version.code() => {
            started.isolate.migrate_state(json.clone()).await
        }
        Some(State { json, .. }) => started.isolate.load_state(Some(json.clone())).await,
        None => started.isolate.load_state(None).await,
    }
}

/// Sleeps, unless it is stopped.
pub(super) async fn rest(wait: Duration, stop: &CancellationToken) -> Result<(), Ending> {
    tokio::select! {
        () = stop.cancelled() => Err(Ending::Stopped),
        () = tokio::time::sleep(wait) => Ok(()),
    }
}

pub(super) async fn read_saved(
    version: &Version,
    cursor: &CursorName,
    stop: &CancellationToken,
) -> Result<Option<HandlerCursor>, Ending> {
    let stored = ask(stop, || version.shared().client.cursor_get(cursor)).await?;
    let saved = stored.as_ref().map(HandlerCursor::of).transpose();
    let saved = saved.map(|saved| saved.map(|saved| saved.for_version(version.create)));
    saved.map_err(|error| {
        let text = format!("the cursor {cursor} was not written by a Host: {error}");
        Ending::failed(FailureKind::Store, text)
    })
}
