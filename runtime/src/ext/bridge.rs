//! The state shared by the ops of one isolate: its work, its outputs, its streams. Lives only on
//! the isolate's thread, in the OpState, behind an Rc.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use deno_core::OpState;
use deno_error::JsErrorBox;
use deno_permissions::PermissionsContainer;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::DropGuard;
use xs_engine::{BlobHash, NewFrame, Origin, Topic};

use super::batch::Batch;
use super::blobs::Uploads;
use super::child::Children;
use super::held::Held;
use super::outbox::Outbox;
use super::pipes::Pipes;
use super::place::SourcePlaces;
use super::socket::Sockets;
use super::streams::Streams;
use super::trial::Answers;
use crate::isolate::handle::{Replies, Request};
use crate::isolate::stop::Stop;
use crate::isolate::{
    Backend, Blame, Definition, FailureKind, Input, IsolateSpec, ModuleError, Secrets, Verdict,
};
use crate::permissions::{Denial, Granted};
use crate::time::now_ms;

/// The error name for a denied permission.
pub(super) const NOT_CAPABLE: &str = "NotCapable";
/// The number of a handler's run; generators and calls count from 1.
pub(super) const HANDLER_RUN: u32 = 0;

pub(crate) struct Bridge {
    pub(crate) spec: IsolateSpec,
    pub(super) backend: Arc<dyn Backend>,
    pub(crate) stop: Arc<Stop>,
    pub(super) streams: Streams<String>,
    pub(super) bytes: Streams<Bytes>,
    pub(super) uploads: Uploads,
    pub(super) children: Children,
    pub(super) pipes: Pipes,
    pub(super) sockets: Sockets,
    pub(super) answers: Answers,
    requests: RefCell<Option<mpsc::UnboundedReceiver<Request>>>,
    pub(super) definition: RefCell<Option<Definition>>,
    /// The topic of results that name none, computed on first use.
    pub(super) results: OnceCell<Topic>,
    granted: RefCell<Granted>,
    /// The hosts that a module under trial names. Its requests go to the test, and only for these
    /// hosts.
    pub(super) named_net: RefCell<Option<PermissionsContainer>>,
    secrets: RefCell<Secrets>,
    pub(super) batch: RefCell<Option<Batch>>,
    pub(super) held: Held,
    pub(super) runs: RefCell<HashMap<u32, Run>>,
    /// Where sources resume in the next run.
    pub(super) places: SourcePlaces,
    next_run: Cell<u32>,
    pub(super) state_answer: RefCell<Option<oneshot::Sender<Result<(), ModuleError>>>>,
    control: RefCell<VecDeque<String>>,
    controlled: Notify,
    /// All runs were told to end.
    stopping: Cell<bool>,
    ending: RefCell<Option<ModuleError>>,
    ended: Notify,
    idle: Notify,
    /// Whether to run a garbage collection before the next turn.
    pub(super) collect: Cell<bool>,
    /// Some code waits for a signal: then an event loop without work is not a stall.
    signal_awaited: Cell<bool>,
}

/// A generator's run or one call.
pub(super) struct Run {
    pub(super) outbox: Rc<Outbox>,
    pub(super) answer: Option<oneshot::Sender<Result<(), ModuleError>>>,
    pub(super) origin: Origin,
    pub(super) complete: Option<NewFrame>,
    pub(super) body: Option<(BlobHash, Bytes)>,
    /// Grows with each result, so that the call's timer sees progress.
    pub(super) results: u64,
    /// Ends the timer of a call with the call.
    pub(super) _alive: Option<DropGuard>,
    /// Its code has ended; its output is being stored.
    pub(super) finished: bool,
}

impl Run {
    /// Whether it was answered early; its code may continue for a while.
    pub(super) fn is_cut(&self) -> bool {
        self.answer.is_none()
    }

    /// Cuts the run off: its code may continue, but its output is refused.
    pub(super) fn cut(&mut self) -> Option<oneshot::Sender<Result<(), ModuleError>>> {
        (self.complete, self.body) = (None, None);
        self.answer.take()
    }
}

pub(super) fn bridge(state: &RefCell<OpState>) -> Rc<Bridge> {
    Rc::clone(state.borrow().borrow::<Rc<Bridge>>())
}

impl Bridge {
    pub(crate) fn new(
        spec: IsolateSpec,
        backend: Arc<dyn Backend>,
        stop: Arc<Stop>,
        requests: mpsc::UnboundedReceiver<Request>,
    ) -> Rc<Self> {
        Rc::new(Self {
            spec,
            backend,
            stop,
            streams: Streams::default(),
            bytes: Streams::default(),
            uploads: Uploads::default(),
            children: Children::default(),
            pipes: Pipes::default(),
            sockets: Sockets::default(),
            answers: Answers::default(),
            requests: RefCell::new(Some(requests)),
            definition: RefCell::default(),
            results: OnceCell::new(),
            granted: RefCell::default(),
            named_net: RefCell::default(),
            secrets: RefCell::default(),
            batch: RefCell::default(),
            held: Held::default(),
            runs: RefCell::default(),
            places: SourcePlaces::default(),
            next_run: Cell::new(HANDLER_RUN + 1),
            state_answer: RefCell::default(),
            control: RefCell::default(),
            controlled: Notify::new(),
            stopping: Cell::new(false),
            ending: RefCell::default(),
            ended: Notify::new(),
            idle: Notify::new(),
            collect: Cell::new(false),
            signal_awaited: Cell::new(false),
        })
    }

    /// Stores the definition once it is known, with the permissions and secrets that follow from
    /// it.
    pub(crate) fn define(&self, definition: Definition, granted: Granted) {
        *self.secrets.borrow_mut() = self.spec.secrets(&definition);
        *self.definition.borrow_mut() = Some(definition);
        *self.granted.borrow_mut() = granted;
    }

    /// Stores which hosts a module under trial names.
    pub(crate) fn name_net(&self, named: PermissionsContainer) {
        *self.named_net.borrow_mut() = Some(named);
    }

    /// The time by the module's clock, in milliseconds since the Unix epoch.
    pub(super) fn now_ms(&self) -> u64 {
        self.spec.trial.as_ref().map_or_else(now_ms, |trial| trial.clock.now_ms())
    }

    /// A text of the module with its secrets masked.
    pub(super) fn masked(&self, text: String) -> String {
        self.secrets.borrow().mask(text)
    }

    /// The message for a denied access outside the store: the denial's own text, unless no line in
    /// the definition would help.
    pub(super) fn why_not(&self, denial: &Denial) -> String {
        let spec = &self.spec;
        let anew = spec.sealed && spec.trial.is_none() && spec.script.is_none();
        let known = self.definition.borrow().is_some();
        let what = denial.what();
        if !known {
            format!(
                "{what} is not allowed at the top level of a module; ask for it in run, where the \
                 permissions of the definition hold"
            )
        } else if anew {
            format!("{what} is not repeated: a replayed handler reaches nothing outside the store")
        } else if denial.is_private() && !spec.allow.net_private {
            format!(
                "{denial}; it is a private address, which needs `xs serve --allow-net-private` \
                 too, or allow = [\"net-private\"] below the module's name in xs.toml"
            )
        } else {
            denial.to_string()
        }
    }

    /// The denial as a JavaScript error.
    pub(super) fn denied(&self, denial: &Denial) -> JsErrorBox {
        JsErrorBox::new(NOT_CAPABLE, self.why_not(denial))
    }

    pub(super) fn granted(&self) -> Granted {
        self.granted.borrow().clone()
    }

    pub(super) fn timeout(&self) -> Duration {
        self.definition.borrow().as_ref().map_or(Duration::from_secs(30), |known| known.timeout)
    }

    /// Whether the generator reads input sent to it.
    pub(super) fn is_duplex(&self) -> bool {
        self.definition.borrow().as_ref().is_some_and(|known| known.duplex)
    }

    /// The configuration: the definition's defaults with the operator's values over them.
    pub(super) fn config(&self) -> Value {
        let known = self.definition.borrow();
        let config = known.as_ref().map(|known| known.config_with(&self.spec.config));
        config.filter(|config| !config.is_null()).unwrap_or_else(|| json!({}))
    }

    /// The environment variables it asked for and the operator offers.
    pub(super) fn env(&self) -> Value {
        if self.spec.script.as_ref().is_some_and(|script| script.is_free()) {
            let all = self.spec.env.iter();
            return all.map(|(name, value)| (name.clone(), Value::from(value.clone()))).collect();
        }
        let definition = self.definition.borrow();
        let names = definition.as_ref().map_or(&[][..], |known| &known.permissions.env);
        let offered = names.iter().filter_map(|name| Some((name, self.spec.env.get(name)?)));
        offered.map(|(name, value)| (name.clone(), Value::from(value.clone()))).collect()
    }

    // ---- endings

    /// Ends the isolate from inside an op or a task.
    pub(super) fn end(&self, error: ModuleError) {
        self.ending.borrow_mut().get_or_insert(error);
        self.ended.notify_one();
    }

    /// Resolves once [`Bridge::end`] has been called.
    pub(crate) async fn ended(&self) -> ModuleError {
        loop {
            if let Some(error) = self.ending.borrow_mut().take() {
                return error;
            }
            self.ended.notified().await;
        }
    }

    /// Whether no code of the module runs.
    fn is_idle(&self) -> bool {
        self.runs.borrow().is_empty() && self.batch.borrow().is_none()
    }

    /// Resolves once no code of the module runs.
    pub(crate) async fn idle(&self) {
        while !self.is_idle() {
            self.idle.notified().await;
        }
    }

    pub(super) fn maybe_idle(&self) {
        if self.is_idle() {
            self.idle.notify_one();
        }
    }

    /// Fires the abort signal of one run, or of all.
    pub(crate) fn abort(&self, run: Option<u32>, name: &str, message: &str) {
        self.stopping.set(self.stopping.get() || run.is_none());
        let run = run.map_or(-1, i64::from);
        let text = json!({ "run": run, "name": name, "message": message }).to_string();
        self.control.borrow_mut().push_back(text);
        self.controlled.notify_one();
    }

    /// Tells JavaScript that the time for the code of a run that was cut off is over.
    pub(super) fn leave(&self, run: u32) {
        self.abort(Some(run), "", "the call is over");
    }

    pub(super) async fn next_control(&self) -> String {
        loop {
            if let Some(text) = self.control.borrow_mut().pop_front() {
                return text;
            }
            self.controlled.notified().await;
        }
    }

    pub(super) fn watch_signal(&self) {
        self.signal_awaited.set(true);
    }

    /// Ends the remaining runs if an event loop without work means that they can never end, because
    /// they were told to end and wait for something that never comes. Returns whether that is so.
    pub(crate) fn answer_abandoned_runs(&self, error: &ModuleError) -> bool {
        let told = self.stopping.get() && self.control.borrow().is_empty();
        if !told || self.batch.borrow().is_some() {
            return false;
        }
        // The output of finished runs is being stored.
        for (_, run) in self.runs.borrow_mut().extract_if(|_, run| !run.finished) {
            run.answer.map(|answer| answer.send(Err(error.clone())).is_ok());
        }
        self.maybe_idle();
        true
    }

    /// Takes the request for a garbage collection; returns whether there was one.
    pub(crate) fn take_collect_request(&self) -> bool {
        self.collect.take()
    }

    /// Whether an event loop without work means that something waits forever.
    pub(crate) fn is_stalled(&self) -> bool {
        let finishing = self.runs.borrow().values().any(|run| run.finished || run.is_cut());
        !self.is_idle() && !finishing && !self.signal_awaited.get()
    }

    /// Resolves when the store has answered for all frames handed over by generators and calls.
    pub(crate) async fn handed_over(&self) {
        let outboxes: Vec<_> =
            self.runs.borrow().values().map(|run| Rc::clone(&run.outbox)).collect();
        for outbox in outboxes {
            outbox.empty().await;
        }
    }

    /// Reports the isolate's end to all pending requests.
    pub(crate) fn fail_all(&self, error: &ModuleError) {
        if let Some(batch) = self.batch.borrow_mut().take() {
            let unfinished = batch.inputs.len().saturating_sub(batch.from);
            let last = batch.inputs.len().saturating_sub(1);
            let blame = match &batch.waiting {
                Some(waiting) => Blame::Input(waiting.index),
                None => Blame::of_end(unfinished, last),
            };
            batch.fail(blame, true, error.clone(), Verdict::Policy);
        }
        for (_, run) in self.runs.borrow_mut().drain() {
            run.answer.map(|answer| answer.send(Err(error.clone())).is_ok());
        }
        let answer = self.state_answer.borrow_mut().take();
        answer.map(|answer| answer.send(Err(error.clone())).is_ok());
    }

    // ---- work

    /// The next request; never resolves once the handle is dropped, since the thread is ending
    /// then.
    pub(super) async fn next_request(&self) -> Request {
        let Some(mut requests) = self.requests.borrow_mut().take() else {
            return std::future::pending().await;
        };
        let request = requests.recv().await;
        *self.requests.borrow_mut() = Some(requests);
        match request {
            Some(request) => request,
            None => std::future::pending().await,
        }
    }

    pub(super) fn new_run(&self, run: Run) -> u32 {
        let number = self.next_run.get();
        self.next_run.set(number.wrapping_add(1).max(HANDLER_RUN + 1));
        self.runs.borrow_mut().insert(number, run);
        number
    }

    pub(super) fn begin(&self, inputs: Vec<Input>, places: Vec<u32>, replies: Replies) {
        *self.batch.borrow_mut() = Some(Batch::new(inputs, places, replies));
    }

    /// The body of a frame, if it was delivered with the frame.
    pub(super) fn body_at_hand(&self, hash: BlobHash) -> Option<Bytes> {
        let batch = self.batch.borrow();
        let inputs = batch.as_ref().map_or(&[][..], |batch| &batch.inputs);
        let in_batch =
            inputs.iter().find(|input| input.body.is_some() && input.frame.hash() == Some(hash));
        if let Some(input) = in_batch {
            return input.body.clone();
        }
        let runs = self.runs.borrow();
        let mut bodies = runs.values().filter_map(|run| run.body.as_ref());
        bodies.find(|(of, _)| *of == hash).map(|(_, body)| body.clone())
    }
}

pub(super) fn type_error(error: impl std::fmt::Display) -> JsErrorBox {
    JsErrorBox::type_error(error.to_string())
}

/// The error for a promise that nothing can settle.
pub(crate) fn stalled(name: &str) -> ModuleError {
    ModuleError::new(
        FailureKind::Timeout,
        format!("{name} awaits a promise that nothing can settle any more"),
    )
}
