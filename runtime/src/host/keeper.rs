//! Keeps one processor in the state the log asks for: starts a version, replaces it, stops it, and
//! reports each change in the log. One task per name, so that orders for a name run in sequence.
//!
//! A new version is evaluated while the old one runs. It replaces the old one only if it evaluates,
//! and runs only after the old one has ended.

use std::sync::Arc;

use serde_json::{Map, json};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use xs_engine::{CursorChange, Frame, FrameId, NewFrame};
use xs_protocol::{AppendRequest, Appended, ClientError};

use super::command::{Command, Swap};
use super::commit::{Outcome, commit};
use super::driver::{Ending, is_wedged};
use super::generator::Generator;
use super::handler::Handler;
use super::keepers::{Asked, Busy};
use super::lifecycle::{Event, Key};
use super::report;
use super::store::Finish;
use super::version::{Shared, Started, Version};
use crate::isolate::{FailureKind, ModuleError};
use crate::name::Kind;
use crate::time::now_ms;

/// An order to a processor.
pub(super) enum Order {
    /// Run the pending version or, if that fails or there is none, the confirmed one.
    Resume { pending: Option<Frame>, confirmed: Option<Frame>, newest: Option<FrameId> },
    /// Run the version of this `create` frame.
    Create(Frame),
    /// This `create` frame cannot be applied.
    Refuse(Frame, ModuleError),
    /// Stop, and report that: for the version in the order, if nothing runs.
    Term(FrameId),
}

/// A reason for the whole Host to end.
#[derive(Debug)]
pub(super) enum Fatal {
    /// A thread of a module does not end.
    Wedged(Key),
    /// The connection to the store is lost.
    Lost(ClientError),
}

/// One processor.
pub(super) struct Keeper {
    shared: Arc<Shared>,
    key: Key,
    running: Option<Running>,
    /// The newest version that any order named.
    newest: Option<FrameId>,
    busy: Busy,
    fatal: mpsc::UnboundedSender<Fatal>,
}

struct Running {
    create: Frame,
    stop: CancellationToken,
    task: JoinHandle<Ending>,
    command: Option<CommandChannels>,
    /// Marks its keeper as busy.
    _busy: Busy,
}

/// Why nothing was stored.
enum Unsaid {
    /// A cursor was changed after it was read.
    Moved,
    /// Anything else; it is reported already.
    Failed,
}

/// A version ready to run.
enum Ready {
    Generator(Box<(Generator, Started)>),
    Handler(Box<Handler>),
    Command(Box<Command>, CommandChannels),
}

/// The channels of a command, which switches to a newer version without ending.
type CommandChannels = (mpsc::UnboundedSender<Swap>, mpsc::UnboundedSender<Finish>);

impl Ready {
    /// The cursor change to store with its `active` frame.
    fn first_change(&self) -> Option<CursorChange> {
        match self {
            Self::Generator(both) => both.0.first_change(),
            Self::Handler(handler) => handler.first_change(),
            Self::Command(command, _) => command.first_change(),
        }
    }

    /// The frame that reports that it runs.
    fn active(&self) -> NewFrame {
        match self {
            Self::Generator(both) => both.0.version().active(&both.1.definition),
            Self::Handler(handler) => handler.version().active(handler.definition()),
            Self::Command(command, _) => command.version().active(command.definition()),
        }
    }

    /// Records the revision of its first change.
    fn placed(&mut self, revision: u64) {
        match self {
            Self::Generator(_) => {}
            Self::Handler(handler) => handler.placed(revision),
            Self::Command(command, _) => command.placed(revision),
        }
    }

    /// Runs it in a task.
    fn spawn(self, stop: CancellationToken) -> (JoinHandle<Ending>, Option<CommandChannels>) {
        match self {
            Self::Generator(both) => {
                let (generator, started) = *both;
                (tokio::spawn(generator.run(started, stop)), None)
            }
            Self::Handler(handler) => (tokio::spawn(handler.run(stop)), None),
            Self::Command(command, channels) => (tokio::spawn(command.run(stop)), Some(channels)),
        }
    }
}

impl Keeper {
    /// Keeps a processor until the Host ends, or drops this keeper as idle.
    pub(super) fn spawn(
        shared: Arc<Shared>,
        key: Key,
        orders: mpsc::Receiver<Asked>,
        busy: Busy,
        fatal: mpsc::UnboundedSender<Fatal>,
    ) -> JoinHandle<()> {
        tokio::spawn(Self { shared, key, running: None, newest: None, busy, fatal }.run(orders))
    }

    async fn run(mut self, mut orders: mpsc::Receiver<Asked>) {
        let shutdown = self.shared.shutdown.clone();
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                ending = ended(&mut self.running) => self.ended(ending).await,
                asked = orders.recv() => match asked {
                    Some((order, busy)) => {
                        self.obey(order).await;
                        drop(busy);
                    }
                    None => break,
                },
            }
        }
        if let Ok(Some(create)) | Err(Some(create)) = self.stop().await {
            let stopped = report::frame(&self.key, Event::Stopped, create, Map::new());
            self.say(vec![stopped]).await;
        }
    }

    async fn obey(&mut self, order: Order) {
        match order {
            Order::Resume { pending, confirmed, newest } => {
                self.newest = self.newest.max(newest);
                let fell_back = match pending {
                    Some(frame) => !self.create(frame, confirmed.is_some()).await,
                    None => true,
                };
                if let (true, Some(frame)) = (fell_back, confirmed) {
                    self.create(frame, false).await;
                }
            }
            Order::Create(frame) => {
                self.create(frame, false).await;
            }
            Order::Refuse(frame, error) => {
                let is_down = self.running.is_none();
                self.invalid(&frame, &error, is_down).await;
            }
            Order::Term(told) => {
                let (Ok(stopped) | Err(stopped)) = self.stop().await;
                let create = stopped.unwrap_or(told);
                let done = report::frame(&self.key, Event::FinTerm, create, Map::new());
                self.say(vec![done]).await;
            }
        }
    }

    /// Starts the version of a `create` frame and returns whether that worked. If not, the old
    /// version keeps running, or the caller starts another if it `falls_back`.
    async fn create(&mut self, frame: Frame, falls_back: bool) -> bool {
        self.create_over(frame, falls_back, None).await
    }

    /// Starts a version like [`Keeper::create`]. `before` ran and was stopped for it.
    async fn create_over(&mut self, frame: Frame, falls_back: bool, before: Option<Frame>) -> bool {
        let (finishes, finished) = match self.running.as_ref().and_then(|r| r.command.as_ref()) {
            Some((_, finishes)) => (finishes.clone(), None),
            None => {
                // Holds one entry per running call, which waits for its answer.
                let (finishes, finished) = mpsc::unbounded_channel();
                (finishes, Some(finished))
            }
        };
        let version = Version::read(&self.shared, &self.key, &frame, Some(finishes.clone())).await;
        let started = match version {
            Ok(version) => version.start().await.map(|started| (version, started)),
            Err(error) => Err(error),
        };
        let (version, started) = match started {
            Ok(started) => started,
            // The Host is ending: that says nothing about the version.
            Err(error) if error.kind == FailureKind::Stopped => return false,
            Err(error) if self.running.is_none() => {
                self.not_ready(&frame, &error, falls_back, before).await;
                return false;
            }
            Err(error) => {
                self.invalid(&frame, &error, false).await;
                return false;
            }
        };
        let Some(finished) = finished else {
            return self.swap(frame, version, started).await;
        };
        let before = self.running.as_ref().map(|running| running.create.clone()).or(before);
        // No other version starts while the old one's thread is running: the next Host starts this
        // version.
        if self.stop().await.is_err() {
            return false;
        }
        match self.ready(version, started, finishes, finished).await {
            Ok(ready) => {
                let old = before.as_ref().map(Frame::id);
                match self.activate(&frame, ready, old).await {
                    Ok(()) => true,
                    Err(Unsaid::Failed) => false,
                    // An operator or a late commit of the previous Host has set its cursor.
                    Err(Unsaid::Moved) => {
                        Box::pin(self.create_over(frame, falls_back, before)).await
                    }
                }
            }
            // The Host is ending: that says nothing about the version.
            Err(error) if error.kind == FailureKind::Stopped => false,
            Err(error) => {
                self.not_ready(&frame, &error, falls_back, before).await;
                false
            }
        }
    }

    /// Reports a version that does not run, and starts again what ran before it.
    async fn not_ready(
        &mut self,
        frame: &Frame,
        error: &ModuleError,
        falls_back: bool,
        before: Option<Frame>,
    ) {
        // It is not started again if it is this version.
        let before = before.filter(|before| before.id() != frame.id());
        let is_down = before.is_none() && !falls_back;
        self.invalid(frame, error, is_down).await;
        if let Some(before) = before {
            Box::pin(self.create(before, falls_back)).await;
        }
    }

    async fn ready(
        &self,
        version: Version,
        started: Started,
        finishes: mpsc::UnboundedSender<Finish>,
        finished: mpsc::UnboundedReceiver<Finish>,
    ) -> Result<Ready, ModuleError> {
        Ok(match self.key.kind {
            Kind::Generator => {
                let generator = Generator::new(version, &started.definition).await?;
                Ready::Generator(Box::new((generator, started)))
            }
            Kind::Handler => Ready::Handler(Box::new(Handler::new(version, started).await?)),
            Kind::Command => {
                // Holds one entry per version started here; the command takes these before anything
                // else.
                let (swaps, swapped) = mpsc::unbounded_channel();
                let command = Command::new(version, started, finished, swapped).await?;
                Ready::Command(Box::new(command), (swaps, finishes))
            }
        })
    }

    /// Reports a version as active, and runs it.
    async fn activate(
        &mut self,
        frame: &Frame,
        mut ready: Ready,
        old: Option<FrameId>,
    ) -> Result<(), Unsaid> {
        let first = ready.first_change();
        let frames = self.turn(frame, old, ready.active());
        let appended = self.try_to_say(frames, first.into_iter().collect()).await?;
        if let Some(revision) = appended.cursors.first() {
            ready.placed(*revision);
        }
        let stop = CancellationToken::new();
        let (task, command) = ready.spawn(stop.clone());
        let busy = self.busy.clone();
        let create = frame.clone();
        self.running = Some(Running { create, stop, task, command, _busy: busy });
        Ok(())
    }

    /// Hands a newer version to a running command; calls in progress finish on the old one.
    async fn swap(&mut self, frame: Frame, version: Version, started: Started) -> bool {
        let Some(running) = &self.running else { return false };
        let old = Some(running.create.id()).filter(|old| *old != frame.id());
        let frames = self.turn(&frame, old, version.active(&started.definition));
        let (taken, is_taken) = oneshot::channel();
        let Some((swaps, _)) = &running.command else { return false };
        // A failed send drops the message and `taken` with it.
        let _ = swaps.send(Swap { version, started, taken });
        let is_taken = tokio::select! {
            is_taken = is_taken => is_taken.is_ok(),
            // The next Host starts it.
            () = self.shared.shutdown.cancelled() => return false,
        };
        if !is_taken {
            // The command ended on its own meanwhile, which ends its own version.
            let ending = ended(&mut self.running).await;
            self.ended(ending).await;
            return Box::pin(self.create(frame, false)).await;
        }
        if let Some(running) = &mut self.running {
            running.create = frame;
        }
        self.say(frames).await.is_some()
    }

    fn turn(&self, frame: &Frame, old: Option<FrameId>, active: NewFrame) -> Vec<NewFrame> {
        let replaced = old.map(|old| {
            let by = Map::from_iter([("by".to_owned(), json!(frame.id().to_string()))]);
            report::frame(&self.key, Event::Replaced, old, by)
        });
        replaced.into_iter().chain([active]).collect()
    }

    /// Reports that a version cannot run. `is_down`: nothing runs, and nothing else is tried.
    async fn invalid(&mut self, frame: &Frame, error: &ModuleError, is_down: bool) {
        tracing::warn!(target: report::TOLD, processor = %self.key, %error, "invalid");
        self.newest = self.newest.max(Some(frame.id()));
        let down = self.newest.filter(|_| is_down);
        self.say(vec![report::invalid(&self.key, frame.id(), error, down)]).await;
        if is_wedged(error) {
            self.fail(Fatal::Wedged(self.key.clone()));
        }
    }

    /// Stops the running version and returns it: as an error if it did not end or the store is
    /// lost, and then the Host ends.
    async fn stop(&mut self) -> Result<Option<FrameId>, Option<FrameId>> {
        let Some(Running { create, stop, task, .. }) = self.running.take() else { return Ok(None) };
        stop.cancel();
        let create = Some(create.id());
        match outcome(task.await) {
            Ending::Stopped | Ending::FinError { .. } => return Ok(create),
            Ending::Wedged { error, .. } => {
                tracing::error!(processor = %self.key, %error, "does not stop");
                self.fail(Fatal::Wedged(self.key.clone()));
            }
            Ending::Lost(error) => self.fail(Fatal::Lost(error)),
        }
        Err(create)
    }

    /// Reports that the running version has ended on its own.
    async fn ended(&mut self, ending: Ending) {
        let Some(running) = self.running.take() else { return };
        let create = running.create.id();
        let (error, input) = match ending {
            Ending::Stopped => return,
            Ending::Lost(error) => return self.fail(Fatal::Lost(error)),
            Ending::FinError { error, input } | Ending::Wedged { error, input } => (error, input),
        };
        tracing::warn!(target: report::TOLD, processor = %self.key, %error, "ended with an error");
        let fin = report::failure(&self.key, Event::FinError, create, &error, input);
        self.say(vec![fin]).await;
        if is_wedged(&error) {
            self.fail(Fatal::Wedged(self.key.clone()));
        }
    }

    /// Appends frames; `None` when that failed.
    async fn say(&self, frames: Vec<NewFrame>) -> Option<Appended> {
        self.try_to_say(frames, Vec::new()).await.ok()
    }

    /// Appends frames and cursors.
    async fn try_to_say(
        &self,
        frames: Vec<NewFrame>,
        cursors: Vec<CursorChange>,
    ) -> Result<Appended, Unsaid> {
        let batch = AppendRequest { frames, cursors, ..AppendRequest::default() };
        // The last reports of an ending Host are appended too, if the store takes them at once.
        let sent_ms = now_ms();
        match commit(&self.shared.client, &batch, &self.shared.shutdown).await {
            Outcome::Stored(appended) => {
                if let Some(last) = appended.frames.last() {
                    self.shared.clock.learn(sent_ms, last.id);
                }
                return Ok(appended);
            }
            Outcome::Stopped => {}
            Outcome::Conflict => {
                tracing::info!(processor = %self.key, "its place was changed; it is read again");
                return Err(Unsaid::Moved);
            }
            Outcome::Refused(error) => {
                tracing::error!(processor = %self.key, %error, "a lifecycle frame was refused");
            }
            Outcome::Unknown(error) | Outcome::Lost(error) => self.fail(Fatal::Lost(error)),
        }
        Err(Unsaid::Failed)
    }

    fn fail(&self, fatal: Fatal) {
        // Nobody receives this when the Host is already ending.
        let _ = self.fatal.send(fatal);
    }
}

async fn ended(running: &mut Option<Running>) -> Ending {
    match running {
        Some(running) => outcome((&mut running.task).await),
        None => std::future::pending().await,
    }
}

fn outcome(joined: Result<Ending, tokio::task::JoinError>) -> Ending {
    joined.unwrap_or_else(|error| {
        let text = format!("the Host failed while running it: {error}");
        Ending::FinError { error: ModuleError::new(FailureKind::Throw, text), input: None }
    })
}
