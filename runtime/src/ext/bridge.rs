//! What the ops of one isolate share: its work, its outputs, its streams. Lives on the isolate's
//! thread only, in the OpState, behind an Rc.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use deno_core::OpState;
use deno_error::JsErrorBox;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::DropGuard;
use xs_engine::{BlobHash, Body, Frame, Meta, NewFrame, Origin, Topic, Ttl};

use super::outbox::{Outbox, Weight};
use super::streams::Streams;
use crate::isolate::handle::{Replies, Request};
use crate::isolate::limits::{
    GROUP_BODIES_BYTES, GROUP_OUTPUTS, GROUP_RECORDS_BYTES, OUTPUT_BODY_BYTES_MAX,
    OUTPUT_BYTES_PER_CALL_MAX, OUTPUT_RECORDS_BYTES_PER_CALL_MAX, OUTPUTS_PER_CALL_MAX,
};
use crate::isolate::stop::Stop;
use crate::isolate::{
    Backend, Definition, FailureKind, HandlerFailure, HandlerReply, Input, IsolateSpec,
    ModuleError, Verdict,
};
use crate::permissions::Granted;

/// The number of the handler's run; generators and calls count from 1.
pub(super) const HANDLER_RUN: u32 = 0;

pub(crate) struct Bridge {
    pub(crate) spec: IsolateSpec,
    pub(super) backend: Arc<dyn Backend>,
    pub(crate) stop: Arc<Stop>,
    pub(super) streams: Streams,
    requests: RefCell<Option<mpsc::UnboundedReceiver<Request>>>,
    definition: RefCell<Option<Definition>>,
    granted: RefCell<Granted>,
    pub(super) batch: RefCell<Option<Batch>>,
    pub(super) runs: RefCell<HashMap<u32, Run>>,
    next_run: Cell<u32>,
    pub(super) state_answer: RefCell<Option<oneshot::Sender<Result<(), ModuleError>>>>,
    control: RefCell<VecDeque<String>>,
    controlled: Notify,
    ending: RefCell<Option<ModuleError>>,
    ended: Notify,
    idle: Notify,
    /// Somebody waits for a signal: an event loop without work is then no stall.
    signal_awaited: Cell<bool>,
}

/// A batch of frames in a handler.
pub(super) struct Batch {
    pub(super) inputs: Vec<Input>,
    /// The first input that no reply covers yet.
    pub(super) from: usize,
    /// Outputs since the last reply, with the index of the input they are from.
    outputs: Vec<(usize, NewFrame)>,
    /// What they weigh together.
    weight: Weight,
    /// The input that the last of them are from, how many these are and what they weigh.
    latest: (usize, usize, Weight),
    pub(super) replies: Replies,
    /// Counts the calls that waited, so that a timer knows whether its call is still the one.
    pub(super) wait: u64,
    /// The input whose call waits. What came before it is answered for.
    pub(super) waiting: Option<usize>,
}

/// A generator's run or one call.
pub(super) struct Run {
    pub(super) outbox: Rc<Outbox>,
    pub(super) answer: Option<oneshot::Sender<Result<(), ModuleError>>>,
    pub(super) origin: Origin,
    pub(super) complete: Option<NewFrame>,
    pub(super) body: Option<(BlobHash, Bytes)>,
    /// Grows with each result, so that the call's timer knows that it is alive.
    pub(super) results: u64,
    /// Ends the timer of a call with the call.
    pub(super) _alive: Option<DropGuard>,
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
            requests: RefCell::new(Some(requests)),
            definition: RefCell::default(),
            granted: RefCell::default(),
            batch: RefCell::default(),
            runs: RefCell::default(),
            next_run: Cell::new(HANDLER_RUN + 1),
            state_answer: RefCell::default(),
            control: RefCell::default(),
            controlled: Notify::new(),
            ending: RefCell::default(),
            ended: Notify::new(),
            idle: Notify::new(),
            signal_awaited: Cell::new(false),
        })
    }

    /// Takes the definition once it is known, and what follows from it.
    pub(crate) fn define(&self, definition: Definition, granted: Granted) {
        *self.definition.borrow_mut() = Some(definition);
        *self.granted.borrow_mut() = granted;
    }

    pub(super) fn granted(&self) -> Granted {
        self.granted.borrow().clone()
    }

    pub(super) fn timeout(&self) -> Duration {
        self.definition.borrow().as_ref().map_or(Duration::from_secs(30), |known| known.timeout)
    }

    /// The configuration: the definition's defaults with the operator's values over them.
    pub(super) fn config(&self) -> Value {
        let mut config =
            self.definition.borrow().as_ref().map_or(Value::Null, |known| known.config.clone());
        match (&mut config, &self.spec.config) {
            (Value::Object(defaults), Value::Object(given)) => {
                defaults.extend(given.iter().map(|(key, value)| (key.clone(), value.clone())));
            }
            (_, Value::Null) => {}
            (_, given) => return given.clone(),
        }
        if config.is_null() { json!({}) } else { config }
    }

    /// The variables it asked for and the operator offers.
    pub(super) fn env(&self) -> Value {
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

    /// Resolves when [`Bridge::end`] was called.
    pub(crate) async fn ended(&self) -> ModuleError {
        loop {
            if let Some(error) = self.ending.borrow_mut().take() {
                return error;
            }
            self.ended.notified().await;
        }
    }

    /// Whether nothing of the module runs.
    fn is_idle(&self) -> bool {
        self.runs.borrow().is_empty() && self.batch.borrow().is_none()
    }

    /// Resolves when nothing of the module runs any more.
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

    /// Fires the signal of one run, or of all.
    pub(crate) fn abort(&self, run: Option<u32>, name: &str, message: &str) {
        let run = run.map_or(-1, i64::from);
        let text = json!({ "run": run, "name": name, "message": message }).to_string();
        self.control.borrow_mut().push_back(text);
        self.controlled.notify_one();
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

    /// Whether an event loop without work means that something waits for ever.
    pub(crate) fn is_stalled(&self) -> bool {
        !self.is_idle() && !self.signal_awaited.get()
    }

    /// Tells everybody who waits for the module that it has ended.
    pub(crate) fn fail_all(&self, error: &ModuleError) {
        if let Some(batch) = self.batch.borrow_mut().take() {
            let unfinished = batch.inputs.len().saturating_sub(batch.from);
            let (index, shared) =
                batch.waiting.map_or((batch.from, unfinished > 1), |index| (index, false));
            batch.fail(index, shared, true, error.clone(), Verdict::Policy);
        }
        for (_, run) in self.runs.borrow_mut().drain() {
            run.answer.map(|answer| answer.send(Err(error.clone())).is_ok());
        }
        let answer = self.state_answer.borrow_mut().take();
        answer.map(|answer| answer.send(Err(error.clone())).is_ok());
    }

    // ---- work

    /// The next request; never resolves once the handle is gone, since the thread is ending then.
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

    pub(super) fn begin(&self, inputs: Vec<Input>, replies: Replies) {
        *self.batch.borrow_mut() = Some(Batch {
            inputs,
            from: 0,
            outputs: Vec::new(),
            weight: Weight::default(),
            latest: Default::default(),
            replies,
            wait: 0,
            waiting: None,
        });
    }

    /// The body of a frame that travelled along with it.
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

    // ---- outputs

    /// Origin of what an input causes.
    pub(super) fn origin(&self, input: Option<&Frame>) -> Origin {
        let hops = input.map_or(0, |frame| frame.origin().map_or(0, |origin| origin.hops) + 1);
        Origin {
            processor: self.spec.create,
            input: input.map(Frame::id),
            input_offset: input.and_then(Frame::offset),
            hops,
        }
    }

    /// A frame as the module describes it; empty text stands for "not given".
    pub(super) fn frame(
        &self,
        topic: &str,
        meta: String,
        ttl: &str,
        body: Bytes,
        origin: Origin,
    ) -> Result<NewFrame, JsErrorBox> {
        if body.len() > OUTPUT_BODY_BYTES_MAX {
            return Err(JsErrorBox::range_error(format!(
                "a body of {} bytes is over the limit of {OUTPUT_BODY_BYTES_MAX}; \
                 keep large content with ctx.blob.put() and append its hash",
                body.len()
            )));
        }
        let definition = self.definition.borrow();
        let output = definition.as_ref().map(|known| &known.output);
        let topic = match (topic.is_empty(), output.and_then(|output| output.topic.clone())) {
            (true, Some(topic)) => topic,
            (true, None) => {
                let suffix = self.spec.kind.result_suffix();
                self.topic(&format!("{}.{suffix}", self.spec.name))?
            }
            (false, _) => self.topic(topic)?,
        };
        let ttl = match ttl {
            "" => output.map_or(Ttl::Forever, |output| output.ttl),
            text => Ttl::parse(text).map_err(type_error)?,
        };
        let meta = Meta::parse(meta).map_err(type_error)?;
        let body = if body.is_empty() { Body::None } else { Body::Inline(body) };
        Ok(NewFrame { topic, meta, body, ttl, origin: Some(origin) })
    }

    fn topic(&self, text: &str) -> Result<Topic, JsErrorBox> {
        let topic = Topic::parse(text).map_err(type_error)?;
        if topic.is_reserved() {
            return Err(JsErrorBox::type_error(format!(
                "topic {text:?} belongs to xs itself; append to a topic that does not begin with xs."
            )));
        }
        Ok(topic)
    }

    /// Takes one output of a run; whether the outputs buffered for a handler fill a commit.
    pub(super) fn emit(
        &self,
        run: u32,
        input: u32,
        topic: &str,
        meta: String,
        ttl: &str,
        body: Bytes,
    ) -> Result<bool, JsErrorBox> {
        if run == HANDLER_RUN {
            return self.emit_buffered(input as usize, topic, meta, ttl, body);
        }
        let (outbox, origin) = {
            let mut runs = self.runs.borrow_mut();
            let Some(run) = runs.get_mut(&run) else { return Err(over()) };
            run.results += 1;
            (Rc::clone(&run.outbox), run.origin)
        };
        if let Some(refusal) = outbox.take_refusal() {
            return Err(JsErrorBox::generic(refusal.message));
        }
        outbox.push(self.frame(topic, meta, ttl, body, origin)?, None);
        Ok(false)
    }

    fn emit_buffered(
        &self,
        input: usize,
        topic: &str,
        meta: String,
        ttl: &str,
        body: Bytes,
    ) -> Result<bool, JsErrorBox> {
        let mut batch = self.batch.borrow_mut();
        let Some(batch) = batch.as_mut() else { return Err(over()) };
        let origin = self.origin(batch.inputs.get(input).map(|input| &input.frame));
        let frame = self.frame(topic, meta, ttl, body, origin)?;
        let weight = Weight::of(&frame);
        let (count, of_call) = match batch.latest {
            (index, count, before) if index == input => (count + 1, before + weight),
            _ => (1, weight),
        };
        if count > OUTPUTS_PER_CALL_MAX
            || of_call.bodies > OUTPUT_BYTES_PER_CALL_MAX
            || of_call.records > OUTPUT_RECORDS_BYTES_PER_CALL_MAX
        {
            return Err(JsErrorBox::range_error(format!(
                "a call may append {OUTPUTS_PER_CALL_MAX} frames with \
                 {OUTPUT_RECORDS_BYTES_PER_CALL_MAX} bytes of meta and \
                 {OUTPUT_BYTES_PER_CALL_MAX} bytes of bodies; a generator or a command may append more"
            )));
        }
        batch.latest = (input, count, of_call);
        batch.weight = batch.weight + weight;
        batch.outputs.push((input, frame));
        Ok(batch.is_full())
    }
}

impl Batch {
    /// Whether the calls so far should be committed before another begins.
    const fn is_full(&self) -> bool {
        self.outputs.len() >= GROUP_OUTPUTS
            || self.weight.bodies >= GROUP_BODIES_BYTES
            || self.weight.records >= GROUP_RECORDS_BYTES
    }

    /// Answers for the next `done` inputs; `None` when that was the last answer.
    pub(super) fn reply(mut self, done: usize, state: Option<Bytes>) -> Option<Self> {
        let until = self.from + done;
        let tick = self.inputs.is_empty();
        let later = self.outputs.iter().position(|(index, _)| *index >= until && !tick);
        let rest = self.outputs.split_off(later.unwrap_or(self.outputs.len()));
        let outputs = std::mem::replace(&mut self.outputs, rest);
        let outputs = outputs.into_iter().map(|(_, frame)| frame).collect();
        let left = self.outputs.iter().map(|(_, frame)| Weight::of(frame));
        self.weight = left.fold(Weight::default(), |sum, more| sum + more);
        self.from = until;
        // The Host may have dropped its end: then nobody wants the rest either.
        let _ = self.replies.replies.send(HandlerReply { done, outputs, state, failure: None });
        (self.from < self.inputs.len()).then_some(self)
    }

    pub(super) fn undo(&mut self) {
        self.outputs.clear();
        self.weight = Weight::default();
    }

    /// Answers that the input at `index` could not be handled.
    pub(super) fn fail(
        self,
        index: usize,
        shared: bool,
        fresh: bool,
        error: ModuleError,
        verdict: Verdict,
    ) {
        let failure = HandlerFailure { error, index, shared, fresh: fresh || shared, verdict };
        // As above.
        let _ = self.replies.replies.send(HandlerReply {
            done: 0,
            outputs: Vec::new(),
            state: None,
            failure: Some(failure),
        });
    }
}

pub(super) fn type_error(error: impl std::fmt::Display) -> JsErrorBox {
    JsErrorBox::type_error(error.to_string())
}

fn over() -> JsErrorBox {
    JsErrorBox::generic("this run is over: nothing more can be appended from it")
}

/// What a promise that nothing can settle amounts to.
pub(crate) fn stalled(name: &str) -> ModuleError {
    ModuleError::new(
        FailureKind::Timeout,
        format!("{name} awaits a promise that nothing can settle any more"),
    )
}
