//! Drives a command: takes its calls from the log, runs them concurrently, and ensures that each
//! ends with exactly one `<name>.complete` or `<name>.error`, whatever happens in between.
//!
//! One task owns the cursor. Starts and ends of calls are collected and stored together, so a
//! command under load costs one commit per turn instead of one per call. Every commit is
//! conditional on the one before: if something else has written the place, the stored place wins
//! and the command resumes from it.

mod calls;
mod cancels;
mod cursor;
mod end;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use xs_engine::{Bound, CursorName, FrameId, NewFrame, ReadOptions, Start, TopicPatterns};
use xs_protocol::{AppendRequest, Appended, ClientError, Delivered, SubEvent, SubscribeOptions};

use self::calls::{Calls, Queued, cancelled_call, error_frame};
use self::cancels::Cancels;
pub(super) use self::cancels::{AllCancels, cancel_of};
use self::cursor::CommandCursor;
use super::backoff::{Backoff, random};
use super::commit::{Outcome, commit};
use super::driver::{Ending, RESUBSCRIBE, ask, is_wedged};
use super::store::{Finish, processor_cursor};
use super::version::{Started, Version};
use crate::isolate::{Definition, FailureKind, Isolate, LogLevel, ModuleError};
use crate::name::Request;
use crate::time::now_ms;

/// Bodies of calls up to this many bytes are delivered with their frames.
const BODIES_UP_TO: u32 = 16 * 1024;
/// Maximum number of calls taken from the log and not begun; more wait in the log.
const QUEUE_MAX: usize = 1_024;
/// How often one call is started when the process ends each time before the call does.
const CRASH_TRIES_MAX: u32 = 3;
/// Maximum number of frames in one commit.
const COMMIT_FRAMES_MAX: usize = 1_024;

/// A newer version for a running command.
pub(super) struct Swap {
    pub(super) version: Version,
    pub(super) started: Started,
    /// Signalled once the command has it; dropped when the command ends instead.
    pub(super) taken: oneshot::Sender<()>,
}

/// A command that is ready to run.
pub(super) struct Command {
    version: Version,
    definition: Definition,
    isolate: Arc<Isolate>,
    /// A new isolate being started in place of a failed one.
    restart: Option<Restart>,
    cursor: CursorName,
    /// The stored place.
    saved: CommandCursor,
    /// Something else wrote the place: resubscribe from the new one.
    moved: bool,
    queue: VecDeque<Queued>,
    /// Calls that a crash cut off and that are rerun, before all others.
    again: VecDeque<Queued>,
    calls: Calls,
    cancels: Arc<Cancels>,
    /// The newest call that has begun, or was answered instead.
    passed: Option<FrameId>,
    finishes: mpsc::UnboundedReceiver<Finish>,
    swaps: mpsc::UnboundedReceiver<Swap>,
    backoff: Backoff,
    /// When the isolate was started, or when the next one will be.
    began: Instant,
}

type Step<T = ()> = Result<T, Ending>;
type Restart = BoxFuture<'static, Result<Started, ModuleError>>;

impl Command {
    /// Brings a started version to its saved place.
    ///
    /// # Errors
    /// [`ModuleError`] when the store does not answer.
    pub(super) async fn new(
        version: Version,
        started: Started,
        finishes: mpsc::UnboundedReceiver<Finish>,
        swaps: mpsc::UnboundedReceiver<Swap>,
    ) -> Result<Self, ModuleError> {
        let cursor = processor_cursor(&version.key);
        let shared = version.shared();
        let stored = ask(&shared.shutdown, || shared.client.cursor_get(&cursor)).await;
        let stored = stored.map_err(Ending::into_error)?;
        let saved = stored
            .as_ref()
            .map_or_else(|| CommandCursor::new(version.offset + 1), CommandCursor::of);
        Ok(Self {
            definition: started.definition,
            isolate: Arc::new(started.isolate),
            restart: None,
            cancels: version.shared().cancels.of(&version.key.name),
            passed: None,
            version,
            cursor,
            saved,
            moved: false,
            queue: VecDeque::new(),
            again: VecDeque::new(),
            calls: Calls::default(),
            finishes,
            swaps,
            backoff: Backoff::default(),
            began: Instant::now(),
        })
    }

    /// The change that stores the first place of a command without one, committed with its `active`
    /// frame.
    pub(super) fn first_change(&self) -> Option<xs_engine::CursorChange> {
        (self.saved.revision == 0).then(|| self.saved.change(&self.cursor))
    }

    /// The version it is of.
    pub(super) const fn version(&self) -> &Version {
        &self.version
    }

    /// The definition of its module.
    pub(super) const fn definition(&self) -> &Definition {
        &self.definition
    }

    /// Records that the first change was stored.
    pub(super) const fn placed(&mut self, revision: u64) {
        self.saved.revision = revision;
    }

    /// Runs until it is stopped or the store is lost.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Ending {
        let ending = loop {
            let followed = match self.interrupted(&stop).await {
                Ok(()) => self.follow(&stop).await,
                Err(ending) => Err(ending),
            };
            if let Err(ending) = followed {
                break ending;
            }
        };
        self.end(ending).await
    }

    /// Answers the calls that are noted as running but were cut off by a crash, or queues them to
    /// run again.
    async fn interrupted(&mut self, stop: &CancellationToken) -> Step {
        loop {
            self.moved = false;
            self.again.clear();
            let (mut next, mut frames) = (self.saved.clone(), Vec::new());
            for (id, tries) in self.saved.running.clone() {
                if self.calls.has(id) {
                    continue;
                }
                let client = &self.version.shared().client;
                match ask(stop, || client.get(Bound::Id(id))).await? {
                    Some(frame) if self.definition.retry_after_crash && tries < CRASH_TRIES_MAX => {
                        let cut = Delivered { frame, body: None };
                        self.again.push_back(Queued::new(cut, &self.version.shared().clock));
                        continue;
                    }
                    Some(call) => {
                        let text = "the call was cut off when its process ended; call again";
                        frames.push(error_frame(&self.version, &call, "interrupted", text, None));
                    }
                    None => {}
                }
                next.running.remove(&id);
            }
            if frames.is_empty() {
                self.saved = next;
                return Ok(());
            }
            if let Some(written) = self.write(frames, next, stop).await? {
                return written.map(|_| ()).map_err(refused);
            }
            // Some calls in the place as it is now may already be answered.
        }
    }

    /// Follows one subscription, from the first call not begun.
    async fn follow(&mut self, stop: &CancellationToken) -> Step {
        let name = &self.version.key.name;
        let calls = TopicPatterns::from(name.topic("call"));
        let cancels = TopicPatterns::from(name.request_topic(Request::Cancel));
        let both = [calls.as_slice(), cancels.as_slice()].concat();
        self.queue.clear();
        let options = ReadOptions {
            topics: TopicPatterns::new(both).unwrap_or(calls),
            start: Start::From(Bound::Offset(self.saved.offset)),
            follow: true,
            ..ReadOptions::default()
        };
        let how = SubscribeOptions { bodies_up_to: BODIES_UP_TO, ..SubscribeOptions::default() };
        let client = self.version.shared().client.clone();
        let mut subscription = ask(stop, || client.subscribe(&options, how)).await?;
        loop {
            self.begin(stop).await?;
            if self.moved {
                return Ok(());
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Err(Ending::Stopped),
                Some(swap) = self.swaps.recv() => self.swap(swap),
                Some(finish) = self.finishes.recv() => self.finish(finish, stop).await?,
                Some((call, result)) = self.calls.ended() => self.ended(call, result, stop).await?,
                () = self.cancels.told() => self.cancel(),
                changed = change(&mut self.isolate, &mut self.restart) => match changed {
                    Ok(()) => {}
                    Err(error) if is_wedged(&error) => {
                        return Err(Ending::Wedged { error, input: None });
                    }
                    Err(error) => self.start_again(&error),
                },
                event = subscription.next(), if self.queue.len() < QUEUE_MAX => {
                    if !self.event(event, stop).await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Handles one event of the subscription; `false` when it has ended.
    async fn event(
        &mut self,
        event: Option<Result<SubEvent, ClientError>>,
        stop: &CancellationToken,
    ) -> Step<bool> {
        match event {
            Some(Ok(SubEvent::Frames { frames, .. })) => {
                for delivered in frames {
                    self.take(delivered);
                }
                Ok(true)
            }
            Some(Ok(SubEvent::CaughtUp { .. } | SubEvent::Pulse | SubEvent::Gap(_))) => Ok(true),
            Some(Ok(SubEvent::Dropped { .. })) | None => {
                tokio::select! {
                    () = stop.cancelled() => Err(Ending::Stopped),
                    () = tokio::time::sleep(RESUBSCRIBE) => Ok(false),
                }
            }
            Some(Err(error)) => Err(Ending::Lost(error)),
        }
    }

    /// Queues a call, or records a cancel.
    fn take(&mut self, delivered: Delivered) {
        if delivered.frame.topic().starts_with("xs.") {
            if let Some(call) = cancelled_call(&delivered.frame) {
                self.cancels.add(call);
            }
        } else {
            self.queue.push_back(Queued::new(delivered, &self.version.shared().clock));
        }
    }

    /// Cancels running calls whose callers gave up. Cancels of calls that have not begun are kept
    /// until their turn; such calls may not even have been read from the log yet.
    fn cancel(&self) {
        let again = |call| self.again.iter().any(|queued| queued.input.frame.id() == call);
        let waits = |call| self.passed.is_none_or(|passed| passed < call) || again(call);
        self.cancels.retain(|call| !self.calls.cancel(call) && waits(call));
    }

    /// Starts as many calls as may run, after storing that they have begun.
    async fn begin(&mut self, stop: &CancellationToken) -> Step {
        let room = self.definition.concurrency.saturating_sub(self.calls.len());
        let wanted = room > 0 && !(self.again.is_empty() && self.queue.is_empty());
        let may = !self.isolate.has_ended() && !self.version.shared().calls.is_closed();
        if !wanted || !may || self.moved {
            return Ok(());
        }
        let (mut begun, mut frames) = (Vec::new(), Vec::new());
        let (mut saved, mut passed) = (self.saved.clone(), self.passed);
        let now_ms = now_ms();
        while begun.len() < room && frames.len() < COMMIT_FRAMES_MAX {
            let next = self.again.pop_front().or_else(|| self.queue.pop_front());
            let Some(queued) = next else { break };
            let call = &queued.input.frame;
            passed = passed.max(Some(call.id()));
            if let Some(offset) = call.offset() {
                // A call that is rerun is already before the place.
                saved.offset = saved.offset.max(offset + 1);
            }
            if let Some((code, text)) = queued.refusal(self.cancels.has(call.id()), now_ms) {
                saved.running.remove(&call.id());
                frames.push(error_frame(&self.version, call, code, text, None));
                continue;
            }
            if call.offset().is_some() {
                *saved.running.entry(call.id()).or_default() += 1;
            }
            begun.push(queued);
        }
        match self.write(frames, saved, stop).await? {
            Some(Ok(_)) => {
                self.passed = passed;
                if self.isolate.has_ended() {
                    // The isolate's error concerns none of these calls: the next isolate runs them.
                    self.again.extend(begun);
                    return Ok(());
                }
                for queued in begun {
                    self.calls.begin(&self.version, &self.isolate, queued);
                }
                Ok(())
            }
            Some(Err(error)) => Err(refused(error)),
            // They are delivered again, if the new place says that they have not begun.
            None => Ok(()),
        }
    }

    /// Handles an isolate that failed or did not start: its calls end with its error, and later
    /// calls wait for a new isolate.
    fn start_again(&mut self, error: &ModuleError) {
        let wait = self.backoff.next(self.began.elapsed(), random());
        let text = format!("restarting in {} ms after: {error}", wait.as_millis());
        self.version.backend.log(LogLevel::Error, text, None);
        self.began = Instant::now() + wait;
        let version = self.version.clone();
        self.restart = Some(Box::pin(async move {
            tokio::time::sleep(wait).await;
            version.start().await
        }));
    }

    /// Routes later calls to a newer version. The old version's isolate ends with its last call.
    fn swap(&mut self, swap: Swap) {
        // A failed send means that the keeper no longer waits.
        let _ = swap.taken.send(());
        self.version = swap.version;
        self.definition = swap.started.definition;
        let old = std::mem::replace(&mut self.isolate, Arc::new(swap.started.isolate));
        self.calls.leave(old);
        self.restart = None;
    }

    /// Stores frames that end calls; returns an error if the store refuses their content.
    async fn offer(
        &mut self,
        frames: Vec<NewFrame>,
        ended: &[FrameId],
        stop: &CancellationToken,
    ) -> Step<Result<Appended, ClientError>> {
        loop {
            let mut next = self.saved.clone();
            for call in ended {
                next.running.remove(call);
            }
            if let Some(written) = self.write(frames.clone(), next, stop).await? {
                return Ok(written);
            }
        }
    }

    /// Stores frames and the place that follows the current one. `None`: the current place was
    /// stale. It has been read again, and nothing was stored.
    async fn write(
        &mut self,
        frames: Vec<NewFrame>,
        next: CommandCursor,
        stop: &CancellationToken,
    ) -> Step<Option<Result<Appended, ClientError>>> {
        let cursors = vec![next.change(&self.cursor)];
        let batch = AppendRequest { frames, cursors, ..AppendRequest::default() };
        match commit(&self.version.shared().client, &batch, stop).await {
            Outcome::Stored(appended) => {
                let revision = appended.cursors.first().copied().unwrap_or_default();
                self.saved = CommandCursor { revision, ..next };
                Ok(Some(Ok(appended)))
            }
            Outcome::Refused(error) => Ok(Some(Err(error))),
            // The next Host reads again what is stored.
            Outcome::Lost(error) | Outcome::Unknown(error) => Err(Ending::Lost(error)),
            Outcome::Stopped => Err(Ending::Stopped),
            Outcome::Conflict => self.read_again(stop).await.map(|()| None),
        }
    }

    /// Reads the place that something else has written: an operator, or the previous Host with a
    /// late commit.
    async fn read_again(&mut self, stop: &CancellationToken) -> Step {
        self.moved = true;
        self.passed = None;
        let client = &self.version.shared().client;
        let Some(stored) = ask(stop, || client.cursor_get(&self.cursor)).await? else {
            // The cursor was deleted while the command ran; the running calls are kept.
            self.saved.revision = 0;
            return Ok(());
        };
        let before = std::mem::replace(&mut self.saved, CommandCursor::of(&stored));
        for (call, tries) in before.running {
            if self.calls.has(call) {
                self.saved.running.entry(call).or_insert(tries);
            }
        }
        Ok(())
    }
}

/// Waits until the new isolate has started, if one is starting, or until the present one fails.
async fn change(
    isolate: &mut Arc<Isolate>,
    restart: &mut Option<Restart>,
) -> Result<(), ModuleError> {
    let Some(starting) = restart else { return Err(isolate.failed().await) };
    let started = starting.await;
    *restart = None;
    *isolate = Arc::new(started?.isolate);
    Ok(())
}

/// The ending of a command whose own frames the store refuses.
fn refused(error: ClientError) -> Ending {
    Ending::failed(
        FailureKind::Store,
        format!("the store refused a commit of the command: {error}"),
    )
}
