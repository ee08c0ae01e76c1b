//! The Host's side of an isolate: requests go to its thread over a channel, answers come back over
//! others. Never blocks, and never waits for a thread that does not answer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::blank::{Blank, Mould, Work};
use super::{
    Backend, Call, Definition, FailureKind, HandlerFailure, HandlerReply, Input, IsolateSpec,
    ModuleError, Secrets,
};
use crate::ext::{Encoded, encode_behind};
use crate::isolate::stop::Stop;

/// The longest wait for a thread to tear down its runtime.
const TAKE_DOWN_MAX: Duration = Duration::from_secs(2);

/// A request to the thread.
pub(crate) enum Request {
    /// Load the saved state, before the first batch.
    State { saved: Option<Bytes>, foreign: bool, answer: oneshot::Sender<Result<(), ModuleError>> },
    /// Handle inputs; an empty batch is a `tick`.
    Handle { inputs: Vec<Input>, encoded: Encoded, replies: Replies },
    /// Run the generator until it ends.
    Run { answer: oneshot::Sender<Result<(), ModuleError>> },
    /// Answer one call.
    Call { call: Box<Call>, answer: oneshot::Sender<Result<(), ModuleError>> },
}

/// When a batch is handed over.
#[derive(Debug, Clone, Copy)]
enum Turn {
    /// Once the output of the previous one is committed.
    Own,
    /// Before that.
    Ahead,
}

impl Turn {
    /// The letter before the batch, for runtime/js/driver.js.
    const fn letter(self) -> &'static str {
        match self {
            Self::Own => "B",
            Self::Ahead => "A",
        }
    }
}

/// The thread's ends of a [`Handling`].
pub(crate) struct Replies {
    pub(crate) replies: mpsc::UnboundedSender<HandlerReply>,
    pub(crate) committed: mpsc::UnboundedReceiver<()>,
}

/// How an isolate ended; `None` while it lives.
pub(crate) type Fate = Option<ModuleError>;

/// A module on its thread. Dropping it stops the module at once, without its `finally` blocks.
pub struct Isolate {
    backend: Arc<dyn Backend>,
    requests: mpsc::UnboundedSender<Request>,
    fate: watch::Receiver<Fate>,
    stop: Arc<Stop>,
    /// Fires when the thread has torn down its runtime.
    gone: CancellationToken,
    secrets: Secrets,
}

impl fmt::Debug for Isolate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Isolate").finish_non_exhaustive()
    }
}

impl Isolate {
    /// Starts a thread, evaluates the module on it and checks its definition. Apart from its top
    /// level, nothing of the module runs until another method asks for it.
    ///
    /// # Errors
    /// [`ModuleError`] says what is wrong with the module, and where.
    pub async fn start(
        spec: IsolateSpec,
        backend: Arc<dyn Backend>,
    ) -> Result<(Self, Definition), ModuleError> {
        let blank = Blank::start(Mould::of(&spec))?;
        Self::start_on(blank, spec, backend).await
    }

    /// Evaluates a module like [`Isolate::start`], on an existing thread.
    ///
    /// # Errors
    /// [`ModuleError`] says what is wrong with the module, and where.
    pub(crate) async fn start_on(
        mut blank: Blank,
        spec: IsolateSpec,
        backend: Arc<dyn Backend>,
    ) -> Result<(Self, Definition), ModuleError> {
        blank.made(spec.limits.engine).await?;
        // Bounded by the callers, who wait for answers: calls up to the concurrency of the command,
        // a batch of inputs and the next one.
        let (requests, incoming) = mpsc::unbounded_channel();
        let (fate_out, fate) = watch::channel(None);
        let (started, definition) = oneshot::channel();
        let stop = Stop::new(spec.name.clone(), spec.limits, fate_out);
        let gone = CancellationToken::new();
        blank.give(Work {
            spec: spec.clone(),
            backend: Arc::clone(&backend),
            requests: incoming,
            started,
            stop: Arc::clone(&stop),
            gone: gone.clone().drop_guard(),
        })?;
        let secrets = Secrets::default();
        let mut isolate = Self { backend, requests, fate, stop, gone, secrets };
        let definition = isolate.answer(definition).await?;
        // The module has not seen any environment variable before this point.
        isolate.secrets = spec.secrets(&definition);
        Ok((isolate, definition))
    }

    /// Loads a handler's saved state, or the definition's initial state for `None`. To be called
    /// before the first [`Isolate::handle`].
    ///
    /// # Errors
    /// [`ModuleError`] when it is not JSON.
    pub async fn load_state(&self, saved: Option<Bytes>) -> Result<(), ModuleError> {
        self.take_state(saved, false).await
    }

    /// Loads a state that other code saved: the definition's `migrate` converts it, if there is
    /// one.
    ///
    /// # Errors
    /// [`ModuleError`] when it is not JSON, or `migrate` failed.
    pub async fn migrate_state(&self, saved: Bytes) -> Result<(), ModuleError> {
        self.take_state(Some(saved), true).await
    }

    async fn take_state(&self, saved: Option<Bytes>, foreign: bool) -> Result<(), ModuleError> {
        let (answer, answered) = oneshot::channel();
        self.send(Request::State { saved, foreign, answer })?;
        self.answer(answered).await
    }

    /// Hands a handler up to [`INPUTS_MAX`](super::INPUTS_MAX) frames in order. Only one batch at a
    /// time.
    ///
    /// # Errors
    /// [`ModuleError`] when the isolate has ended.
    pub fn handle(&self, inputs: Vec<Input>) -> Result<Handling, ModuleError> {
        self.hand_over(inputs, Turn::Own)
    }

    /// Hands over a batch like [`Isolate::handle`] while the output of the previous batch is not
    /// committed yet: nothing is read and nothing answered before
    /// [`Handling::before_is_committed`].
    ///
    /// # Errors
    /// [`ModuleError`] when the isolate has ended.
    pub fn handle_ahead(&self, inputs: Vec<Input>) -> Result<Handling, ModuleError> {
        self.hand_over(inputs, Turn::Ahead)
    }

    fn hand_over(&self, inputs: Vec<Input>, turn: Turn) -> Result<Handling, ModuleError> {
        // At most one reply per input and one commit for each reply and for the previous batch.
        let (replies, receiver) = mpsc::unbounded_channel();
        let (committed, commits) = mpsc::unbounded_channel();
        let total = inputs.len();
        // Encoded here to spare the isolate's thread, which has enough to do.
        let frames = inputs.iter().map(|input| &input.frame);
        let encoded = encode_behind(turn.letter(), frames, &*self.backend);
        let replies = Replies { replies, committed: commits };
        self.send(Request::Handle { inputs, encoded, replies })?;
        let (fate, secrets) = (self.fate.clone(), self.secrets.clone());
        let state = Stage::Waiting;
        Ok(Handling { replies: receiver, committed, fate, secrets, total, done: 0, state })
    }

    /// Calls a handler's `tick`, which gives one reply with `done` 0.
    ///
    /// # Errors
    /// [`ModuleError`] when the isolate has ended.
    pub fn tick(&self) -> Result<Handling, ModuleError> {
        self.handle(Vec::new())
    }

    /// Runs the generator until it ends; its frames go to the backend. `Ok` means that it returned.
    ///
    /// # Errors
    /// [`ModuleError`] says why it ended otherwise.
    pub async fn run_generator(&self) -> Result<(), ModuleError> {
        let (answer, answered) = oneshot::channel();
        self.send(Request::Run { answer })?;
        self.answer(answered).await
    }

    /// Runs one call; its results and, after success, `call.complete` go to the backend. Calls run
    /// concurrently. The caller writes the error frame.
    ///
    /// # Errors
    /// [`ModuleError`] says why the call failed; [`Isolate::failed`] whether the isolate did.
    pub async fn call(&self, call: Call) -> Result<(), ModuleError> {
        let (answer, answered) = oneshot::channel();
        self.send(Request::Call { call: Box::new(call), answer })?;
        self.answer(answered).await
    }

    /// Stops the module: `ctx.signal` fires, iterators end, `finally` blocks run. After the limit
    /// of [`Limits::stop`](super::Limits) it is terminated, and after twice that its thread is
    /// abandoned.
    ///
    /// # Errors
    /// [`FailureKind::Wedged`] when the thread is still running.
    pub async fn stop(self) -> Result<(), ModuleError> {
        self.stop.ask();
        let fate = ended(self.fate.clone()).await;
        if fate.kind == FailureKind::Wedged { Err(fate) } else { Ok(()) }
    }

    /// Stops the module at once, without its `finally` blocks, and returns when its memory is
    /// freed. Another isolate takes its place only then, so that a module that fails again and
    /// again keeps one thread busy and not two. A thread that takes too long is not waited for.
    pub(crate) async fn take_down(&self) {
        self.stop.kill();
        // Even after a timeout it has been asked to stop, and the watchdog watches its end.
        let _ = tokio::time::timeout(TAKE_DOWN_MAX, self.gone.cancelled()).await;
    }

    /// Whether nothing of the module runs during this time.
    pub(crate) async fn rests(&self, time: Duration) -> bool {
        let before = self.stop.turn();
        tokio::time::sleep(time).await;
        before.is_some() && self.stop.turn() == before
    }

    /// Resolves when the isolate has ended for any reason: it failed outside of any request (a
    /// timer, an unhandled rejection), inside one, or was stopped.
    pub fn failed(&self) -> impl Future<Output = ModuleError> + Send + 'static + use<> {
        let (fate, secrets) = (self.fate.clone(), self.secrets.clone());
        async move { secrets.mask_error(ended(fate).await) }
    }

    /// Whether [`Isolate::failed`] would resolve at once.
    pub(crate) fn has_ended(&self) -> bool {
        self.fate.borrow().is_some()
    }

    fn send(&self, request: Request) -> Result<(), ModuleError> {
        let fate = || self.secrets.mask_error(fate_of(&self.fate));
        self.requests.send(request).map_err(|_| fate())
    }

    /// Waits for an answer, or for the end of an isolate that will never give one.
    async fn answer<T>(
        &self,
        answered: oneshot::Receiver<Result<T, ModuleError>>,
    ) -> Result<T, ModuleError> {
        let answer = tokio::select! {
            biased;
            answer = answered => match answer {
                Ok(answer) => answer,
                Err(_) => Err(ended(self.fate.clone()).await),
            },
            fate = ended(self.fate.clone()) => Err(fate),
        };
        answer.map_err(|error| self.secrets.mask_error(error))
    }
}

impl Drop for Isolate {
    fn drop(&mut self) {
        self.stop.kill();
    }
}

/// A batch being handled. Dropping it does not undo the calls.
#[must_use = "its replies are committed one by one"]
pub struct Handling {
    replies: mpsc::UnboundedReceiver<HandlerReply>,
    committed: mpsc::UnboundedSender<()>,
    fate: watch::Receiver<Fate>,
    secrets: Secrets,
    total: usize,
    done: usize,
    state: Stage,
}

impl fmt::Debug for Handling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handling")
            .field("total", &self.total)
            .field("done", &self.done)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    HandedOut,
    Over,
}

impl Handling {
    /// The next reply, or `None` after the last. Calling it means that the previous reply is
    /// committed: only then do reads of a waiting call continue.
    ///
    /// # Errors
    /// [`ModuleError`] when the isolate ended before all inputs were finished.
    pub async fn next(&mut self) -> Result<Option<HandlerReply>, ModuleError> {
        if self.state == Stage::HandedOut {
            // The thread may have ended: then there is no receiver.
            let _ = self.committed.send(());
            self.state = Stage::Waiting;
        }
        if self.state == Stage::Over {
            return Ok(None);
        }
        let reply = tokio::select! {
            biased;
            reply = self.replies.recv() => reply,
            fate = ended(self.fate.clone()) => return Err(self.secrets.mask_error(fate)),
        };
        let Some(mut reply) = reply else {
            return Err(self.secrets.mask_error(ended(self.fate.clone()).await));
        };
        if let Some(failure) = reply.failure.take() {
            let error = self.secrets.mask_error(failure.error);
            reply.failure = Some(HandlerFailure { error, ..failure });
        }
        self.done += reply.done;
        let last = reply.failure.is_some() || self.done >= self.total;
        self.state = if last { Stage::Over } else { Stage::HandedOut };
        Ok(Some(reply))
    }

    /// Reports that the output of the previous batch is committed, after [`Isolate::handle_ahead`].
    pub fn before_is_committed(&self) {
        // The thread may have ended: then there is no receiver.
        let _ = self.committed.send(());
    }

    /// Whether the last reply has been returned.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.state == Stage::Over
    }
}

async fn ended(mut fate: watch::Receiver<Fate>) -> ModuleError {
    // An error means that the thread dropped its end: its last value stands.
    let _ = fate.wait_for(Option::is_some).await;
    fate_of(&fate)
}

fn fate_of(fate: &watch::Receiver<Fate>) -> ModuleError {
    fate.borrow().clone().unwrap_or_else(gone)
}

fn gone() -> ModuleError {
    ModuleError::new(FailureKind::Throw, "the isolate's thread ended unexpectedly")
}
