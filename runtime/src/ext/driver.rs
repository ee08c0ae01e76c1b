//! Ops of the loop in runtime/js/driver.js: work in, results and failures out. Only strings and
//! numbers; nothing here panics on input from JavaScript.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use deno_core::convert::Uint8Array;
use deno_core::{JsBuffer, OpState, op2};
use deno_error::JsErrorBox;
use serde_json::json;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use xs_engine::Body;

use super::batch::Batch;
use super::batch::Waiting;
use super::bridge::{Bridge, HANDLER_RUN, Run, bridge};
use super::frames;
use super::outbox::Outbox;
use super::outputs::{inline, stored};
use crate::isolate::handle::Request;
use crate::isolate::{BackendError, Blame, Call, FailureKind, ModuleError, Verdict};
use crate::permissions::Denial;
use crate::time::{millis, now_ms};

/// The next piece of work: `S` and the state (`F` before a state saved by other code, else `O`),
/// `B` and frames (`A` while the previous batch is not committed), `T` for a tick, `R` and a run,
/// `C` and a call.
#[op2]
#[string]
pub(super) async fn op_xs_next(state: Rc<RefCell<OpState>>) -> String {
    let bridge = bridge(&state);
    match bridge.next_request().await {
        Request::State { saved, foreign, answer } => {
            *bridge.state_answer.borrow_mut() = Some(answer);
            let text = saved.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            let whose = if foreign { 'F' } else { 'O' };
            format!("S{whose}{}", text.unwrap_or_default())
        }
        Request::Handle { inputs, encoded, replies } => {
            let text = if inputs.is_empty() { "T".to_owned() } else { encoded.text };
            bridge.begin(inputs, encoded.places, replies);
            text
        }
        Request::Run { answer } => {
            let run = bridge.new_run(Run {
                outbox: Outbox::new(bridge.backend.clone()),
                answer: Some(answer),
                origin: bridge.origin(None),
                complete: None,
                body: None,
                results: 0,
                finished: false,
                _alive: None,
            });
            format!("R{run}")
        }
        Request::Call { call, answer } => begin_call(&bridge, *call, answer),
    }
}

fn begin_call(
    bridge: &Rc<Bridge>,
    call: Call,
    answer: oneshot::Sender<Result<(), ModuleError>>,
) -> String {
    let frame = call.input.frame;
    let over = CancellationToken::new();
    let run = bridge.new_run(Run {
        outbox: Outbox::new(bridge.backend.clone()),
        answer: Some(answer),
        origin: bridge.origin(Some(&frame)),
        complete: Some(call.complete),
        body: frame.hash().zip(call.input.body),
        results: 0,
        finished: false,
        _alive: Some(over.clone().drop_guard()),
    });
    let idle = bridge.timeout();
    let deadline = call.deadline_ms;
    let shown = deadline.unwrap_or_else(|| bridge.now_ms().saturating_add(millis(idle)));
    let text = frames::encode(std::iter::once(&frame), &*bridge.backend);
    let work = json!({ "run": run, "frame": text, "deadline": shown });
    let bridge = Rc::clone(bridge);
    drop(deno_core::unsync::spawn(async move {
        let error = tokio::select! {
            () = over.cancelled() => return,
            () = call.cancel.cancelled() =>
                ModuleError::new(FailureKind::Cancelled, "cancelled by the caller"),
            error = out_of_time(&bridge, run, deadline, idle) => error,
        };
        let name = if error.kind == FailureKind::Timeout { "TimeoutError" } else { "AbortError" };
        let answer = bridge.runs.borrow_mut().get_mut(&run).and_then(Run::cut);
        if let Some(answer) = answer {
            bridge.abort(Some(run), name, &error.message);
            // The caller may have dropped its end: then the error does not matter.
            let _ = answer.send(Err(error));
        }
        // Its code gets as much time as on a stop.
        tokio::select! {
            () = over.cancelled() => {}
            () = tokio::time::sleep(bridge.spec.limits.stop) => {
                bridge.runs.borrow_mut().remove(&run);
                bridge.leave(run);
                bridge.maybe_idle();
            }
        }
    }));
    format!("C{work}")
}

/// Resolves when the call has timed out, or has ended.
async fn out_of_time(
    bridge: &Bridge,
    run: u32,
    deadline_ms: Option<u64>,
    idle: Duration,
) -> ModuleError {
    let mut seen = None;
    loop {
        let results = bridge.runs.borrow().get(&run).map(|run| run.results);
        let stuck = seen.replace(results) == Some(results);
        if results.is_none() || (stuck && deadline_ms.is_none()) {
            let seconds = idle.as_secs_f64();
            return ModuleError::new(
                FailureKind::Timeout,
                format!("no result for {seconds} s; raise timeout in the definition"),
            );
        }
        match deadline_ms {
            None => tokio::time::sleep(idle).await,
            Some(at) => {
                let left = at.saturating_sub(now_ms());
                if left == 0 {
                    return ModuleError::new(
                        FailureKind::Timeout,
                        "the call's deadline has passed",
                    );
                }
                tokio::time::sleep(Duration::from_millis(left)).await;
            }
        }
    }
}

/// The positions of the batch's frames in its text: 4-byte little-endian numbers.
#[op2]
pub(super) fn op_xs_places(state: &mut OpState) -> Uint8Array {
    let mut batch = state.borrow::<Rc<Bridge>>().batch.borrow_mut();
    let places = batch.as_mut().map(|batch| std::mem::take(&mut batch.places)).unwrap_or_default();
    Uint8Array(places.into_iter().flat_map(u32::to_le_bytes).collect())
}

/// The next abort signal to fire.
#[op2]
#[string]
pub(super) async fn op_xs_control(state: Rc<RefCell<OpState>>) -> String {
    bridge(&state).next_control().await
}

/// A call into the module has returned. Returns whether what a handler's calls have done should be
/// committed before another begins.
#[op2(fast)]
pub(super) fn op_xs_alive(state: &mut OpState) -> bool {
    let bridge = state.borrow::<Rc<Bridge>>();
    bridge.stop.alive();
    bridge.batch.borrow().as_ref().is_some_and(Batch::is_late)
}

/// The attempt number of the input at `index`.
#[op2(fast)]
pub(super) fn op_xs_attempt(state: &mut OpState, index: u32) -> u32 {
    let batch = state.borrow::<Rc<Bridge>>().batch.borrow();
    let input = batch.as_ref().and_then(|batch| batch.inputs.get(index as usize));
    input.map_or(1, |input| input.attempt)
}

/// The module holds a run's signal.
#[op2(fast)]
pub(super) fn op_xs_watch_signal(state: &mut OpState, run: u32) {
    // A handler's calls have a timeout; only other runs may wait for nothing but the signal.
    if run != HANDLER_RUN {
        state.borrow::<Rc<Bridge>>().watch_signal();
    }
}

/// Checks the topic and the ttl of a frame that is handed over later; empty text stands for "not
/// given".
#[op2(fast)]
pub(super) fn op_xs_check_frame(
    state: &mut OpState,
    #[string] topic: &str,
    #[string] ttl: &str,
) -> Result<(), JsErrorBox> {
    state.borrow::<Rc<Bridge>>().check_frame(topic, ttl)
}

/// Buffers an output with a text body; empty text stands for "not given". Returns whether a commit
/// is full.
#[op2(fast)]
pub(super) fn op_xs_emit(
    state: &mut OpState,
    run: u32,
    input: u32,
    #[string] topic: String,
    #[string] meta: String,
    #[string] ttl: String,
    #[string] body: String,
) -> Result<bool, JsErrorBox> {
    let bridge = Rc::clone(state.borrow::<Rc<Bridge>>());
    bridge.emit(run, input, &topic, meta, &ttl, inline(body))
}

/// Buffers results of a handler's calls that consist only of meta: a line with the input's index, a
/// line with the meta, and so on. Returns whether a commit is full.
#[op2(fast)]
pub(super) fn op_xs_results(
    state: &mut OpState,
    #[string] text: String,
) -> Result<bool, JsErrorBox> {
    let bridge = Rc::clone(state.borrow::<Rc<Bridge>>());
    let (mut lines, mut full) = (text.split('\n'), false);
    while let (Some(input), Some(meta)) = (lines.next(), lines.next()) {
        let input = input.parse().unwrap_or(u32::MAX);
        full |= bridge.emit(HANDLER_RUN, input, "", meta.to_owned(), "", Body::None)?;
    }
    Ok(full)
}

/// Buffers an output with a body of bytes; otherwise like `op_xs_emit`.
#[op2]
pub(super) fn op_xs_emit_bytes(
    state: &mut OpState,
    run: u32,
    input: u32,
    #[string] topic: String,
    #[string] meta: String,
    #[string] ttl: String,
    #[buffer] body: JsBuffer,
) -> Result<bool, JsErrorBox> {
    let bridge = Rc::clone(state.borrow::<Rc<Bridge>>());
    bridge.emit(run, input, &topic, meta, &ttl, inline(Bytes::copy_from_slice(&body)))
}

/// Takes an output of a generator or a call with a body that is already in the store; otherwise
/// like `op_xs_emit`.
#[op2(fast)]
pub(super) fn op_xs_emit_stored(
    state: &mut OpState,
    run: u32,
    #[string] topic: String,
    #[string] meta: String,
    #[string] ttl: String,
    #[string] hash: &str,
) -> Result<bool, JsErrorBox> {
    let bridge = Rc::clone(state.borrow::<Rc<Bridge>>());
    bridge.emit(run, 0, &topic, meta, &ttl, stored(hash)?)
}

/// Whether a run has reached its limit of outstanding frames.
#[op2(fast)]
pub(super) fn op_xs_full(state: &mut OpState, run: u32) -> bool {
    let runs = state.borrow::<Rc<Bridge>>().runs.borrow();
    runs.get(&run).is_some_and(|run| run.outbox.is_full())
}

/// Resolves when a run may hand over more frames.
#[op2]
pub(super) async fn op_xs_drained(state: Rc<RefCell<OpState>>, run: u32) {
    let outbox = bridge(&state).runs.borrow().get(&run).map(|run| Rc::clone(&run.outbox));
    if let Some(outbox) = outbox {
        outbox.room().await;
    }
}

/// Whether a generator's run or a call has ended or was cut off: its output is refused.
#[op2(fast)]
pub(super) fn op_xs_is_over(state: &mut OpState, run: u32) -> bool {
    state.borrow::<Rc<Bridge>>().runs.borrow().get(&run).is_none_or(Run::is_cut)
}

/// Discards the outputs since the last reply.
#[op2(fast)]
pub(super) fn op_xs_undo(state: &mut OpState) {
    if let Some(batch) = state.borrow::<Rc<Bridge>>().batch.borrow_mut().as_mut() {
        batch.undo();
    }
}

/// Replies for the next `done` inputs; empty text stands for an unchanged state.
#[op2(fast)]
pub(super) fn op_xs_reply(
    state: &mut OpState,
    done: u32,
    #[string] text: String,
) -> Result<(), JsErrorBox> {
    let max = crate::isolate::limits::STATE_BYTES_MAX;
    if text.len() > max {
        return Err(JsErrorBox::range_error(format!(
            "the state is {} bytes of JSON, over the limit of {max}; keep large data in frames or blobs",
            text.len()
        )));
    }
    let bridge = Rc::clone(state.borrow::<Rc<Bridge>>());
    let batch = bridge.batch.borrow_mut().take();
    let rest = batch.and_then(|batch| {
        batch.reply(done as usize, (!text.is_empty()).then(|| Bytes::from(text)))
    });
    *bridge.batch.borrow_mut() = rest;
    bridge.maybe_idle();
    Ok(())
}

/// Resolves when the last reply is committed.
#[op2]
pub(super) async fn op_xs_committed(state: Rc<RefCell<OpState>>) {
    let bridge = bridge(&state);
    let _held = bridge.held.begin();
    std::future::poll_fn(|cx| match bridge.batch.borrow_mut().as_mut() {
        Some(batch) => batch.replies.committed.poll_recv(cx).map(|_| ()),
        None => std::task::Poll::Ready(()),
    })
    .await;
}

/// Notes that the call of the input at `index` waits, or with -1 that none does. From now on it may
/// wait for the definition's timeout at most; time spent waiting for the store does not count.
#[op2(fast)]
pub(super) fn op_xs_waits(state: &mut OpState, index: i32) {
    let bridge = Rc::clone(state.borrow::<Rc<Bridge>>());
    let over = CancellationToken::new();
    {
        let mut batch = bridge.batch.borrow_mut();
        let Some(batch) = batch.as_mut() else { return };
        let index = usize::try_from(index).ok();
        batch.waiting = index.map(|index| Waiting::new(index, &over));
        if batch.waiting.is_none() {
            return;
        }
    }
    let timeout = bridge.timeout();
    drop(deno_core::unsync::spawn(async move {
        tokio::select! {
            biased;
            () = over.cancelled() => {}
            () = bridge.held.pass(timeout) => bridge.end(ModuleError::new(
                FailureKind::Timeout,
                format!(
                    "the call did not finish in {} s; raise timeout in the definition",
                    timeout.as_secs_f64()
                ),
            )),
        }
    }));
}

/// Replies that the input at `index` could not be handled.
#[op2(fast)]
pub(super) fn op_xs_fail(
    state: &mut OpState,
    index: u32,
    of_call: bool,
    verdict: u32,
    after_ms: f64,
    #[string] name: String,
    #[string] message: String,
    #[string] stack: String,
) {
    let bridge = Rc::clone(state.borrow::<Rc<Bridge>>());
    let Some(batch) = bridge.batch.borrow_mut().take() else { return };
    let error = bridge.spec.graph.thrown(&name, &message, &stack);
    let verdict = match verdict {
        // A float outside the range of milliseconds saturates, as intended.
        1 => Verdict::Retry { after_ms: (after_ms >= 0.0).then_some(after_ms as u64) },
        2 => Verdict::Park,
        _ => Verdict::Policy,
    };
    let index = index as usize;
    let blame = match index > batch.from {
        true if of_call => Blame::Sharing(index),
        true => Blame::UpTo(index),
        false => Blame::Input(index),
    };
    batch.fail(blame, false, error, verdict);
    bridge.maybe_idle();
}

/// Ends a run; an empty name and message stand for success. Run 0 is the loading of the state.
#[op2(fast)]
pub(super) fn op_xs_finish(
    state: &mut OpState,
    run: u32,
    #[string] name: String,
    #[string] message: String,
    #[string] stack: String,
) {
    let bridge = Rc::clone(state.borrow::<Rc<Bridge>>());
    let thrown = !(name.is_empty() && message.is_empty());
    let failure = thrown.then(|| bridge.spec.graph.thrown(&name, &message, &stack));
    if run == HANDLER_RUN {
        let answer = bridge.state_answer.borrow_mut().take();
        // The Host may have given up waiting.
        answer.map(|answer| answer.send(failure.map_or(Ok(()), Err)).is_ok());
        return;
    }
    // Set at once: with the run's code over, the event loop may run out of work before the answer.
    if let Some(run) = bridge.runs.borrow_mut().get_mut(&run) {
        run.finished = true;
    }
    drop(deno_core::unsync::spawn(finish(bridge, run, failure)));
}

/// Waits until the run's whole output is stored, then answers. Its end is not stored without its
/// output.
async fn finish(bridge: Rc<Bridge>, run: u32, failure: Option<ModuleError>) {
    let (outbox, complete) = {
        let mut runs = bridge.runs.borrow_mut();
        let Some(run) = runs.get_mut(&run) else { return };
        (Rc::clone(&run.outbox), run.complete.take())
    };
    let refused = |loss: BackendError| ModuleError::new(FailureKind::Store, loss.message);
    let mut failure = failure.or_else(|| outbox.take_loss().map(refused));
    // Queued after the outstanding frames: if one of those is refused, this is not stored either.
    if let (Some(complete), None) = (complete, &failure) {
        outbox.push(complete, None);
    }
    outbox.empty().await;
    // The next run resumes where this one stopped.
    bridge.places.written().await;
    failure = failure.or_else(|| outbox.take_loss().map(refused));
    let ended = bridge.runs.borrow_mut().remove(&run);
    if let Some(answer) = ended.and_then(|run| run.answer) {
        // The caller may have dropped its end: then the run's end does not matter.
        let _ = answer.send(failure.map_or(Ok(()), Err));
    }
    bridge.maybe_idle();
}

/// The configuration as JSON.
#[op2]
#[string]
pub(super) fn op_xs_config(state: &mut OpState) -> String {
    state.borrow::<Rc<Bridge>>().config().to_string()
}

/// The granted environment variables as JSON.
#[op2]
#[string]
pub(super) fn op_xs_env(state: &mut OpState) -> String {
    state.borrow::<Rc<Bridge>>().env().to_string()
}

/// The line of xs.toml that passes a requested variable to the module's own process; empty when the
/// module has no such process, or the process already has the variable.
#[op2]
#[string]
pub(super) fn op_xs_env_line(state: &mut OpState, #[string] name: &str) -> String {
    let bridge = Rc::clone(state.borrow::<Rc<Bridge>>());
    let apart = bridge.spec.allow.apart.as_ref();
    let apart = apart.filter(|apart| !apart.env.iter().any(|given| given == name));
    apart.map_or_else(String::new, |apart| apart.line("env", name))
}

/// The message for an author whose access to a host is denied.
#[op2]
#[string]
pub(super) fn op_xs_why_not(state: &mut OpState, #[string] host: String) -> String {
    state.borrow::<Rc<Bridge>>().why_not(&Denial::Network(host))
}
