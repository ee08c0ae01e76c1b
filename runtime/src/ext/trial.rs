//! Ops of tests and of the modules under trial: the module asks, the test answers.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use deno_core::url::Url;
use deno_core::{JsBuffer, OpState, op2};
use deno_error::JsErrorBox;
use serde_json::json;
use tokio::sync::oneshot;

use super::bridge::{Bridge, bridge, type_error};
use super::frames;
use crate::permissions::{self, Denial};
use crate::trial::Ask;

/// Requests that wait for a test's answer.
pub(super) type Answers = RefCell<HashMap<u32, oneshot::Sender<Result<(String, Bytes), String>>>>;

/// Refuses a request to what the definition does not name.
fn may_reach(bridge: &Bridge, url: &str) -> Result<(), JsErrorBox> {
    let url = Url::parse(url).map_err(type_error)?;
    let named = bridge.named_net.borrow().clone();
    let mut named = named.unwrap_or_else(permissions::nothing);
    named.check_net_url(&url, "fetch()").map_err(|_| {
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().map_or_else(String::new, |port| format!(":{port}"));
        bridge.denied(&Denial::Network(format!("{host}{port}")))
    })
}

fn no_trials() -> JsErrorBox {
    type_error("trial() is for *.test.ts files, which `xs test` runs")
}

/// Begins a trial and returns its number.
#[op2(fast)]
pub(super) fn op_xs_trial(state: &mut OpState, #[string] request: &str) -> Result<u32, JsErrorBox> {
    let bridge = state.borrow::<Rc<Bridge>>();
    bridge.spec.trials.as_ref().ok_or_else(no_trials)?.begin(request).map_err(type_error)
}

/// The next request of a module under trial as JSON, with a number; empty once the trial is over.
#[op2]
#[string]
pub(super) async fn op_xs_trial_asked(
    state: Rc<RefCell<OpState>>,
    trial: u32,
) -> Result<String, JsErrorBox> {
    let bridge = bridge(&state);
    let trials = bridge.spec.trials.clone().ok_or_else(no_trials)?;
    let Some(Ask { request, body, answer }) = trials.asked(trial).await else {
        return Ok(String::new());
    };
    let mut answers = bridge.answers.borrow_mut();
    let number = (0..u32::MAX).find(|number| !answers.contains_key(number)).unwrap_or_default();
    answers.insert(number, answer);
    Ok(json!({ "number": number, "request": request, "body": STANDARD.encode(&body) }).to_string())
}

/// Answers a request. An empty head means that the body is an error's message.
#[op2(fast)]
pub(super) fn op_xs_trial_answer(
    state: &mut OpState,
    number: u32,
    #[string] head: String,
    #[buffer] body: &[u8],
) {
    let bridge = state.borrow::<Rc<Bridge>>();
    let Some(answer) = bridge.answers.borrow_mut().remove(&number) else { return };
    let answered = match head.is_empty() {
        true => Err(String::from_utf8_lossy(body).into_owned()),
        false => Ok((head, Bytes::copy_from_slice(body))),
    };
    // The module may have given up.
    let _ = answer.send(answered);
}

/// The outcome of a trial: a line of JSON, and its frames.
#[op2]
#[string]
pub(super) async fn op_xs_trial_ended(
    state: Rc<RefCell<OpState>>,
    trial: u32,
) -> Result<String, JsErrorBox> {
    let bridge = bridge(&state);
    let trials = bridge.spec.trials.clone().ok_or_else(no_trials)?;
    let ended = trials.ended(trial).await;
    let (result, out) = ended.ok_or_else(|| JsErrorBox::generic("the trial was cancelled"))?;
    Ok(format!("{result}\n{}", frames::encode(out.iter(), &*bridge.backend)))
}

/// Sets the clock of a module under trial, in milliseconds since the Unix epoch.
#[op2(fast)]
pub(super) fn op_xs_trial_now(state: &mut OpState, now_ms: f64) {
    if let Some(trial) = &state.borrow::<Rc<Bridge>>().spec.trial {
        // A time before the epoch is taken as the epoch.
        trial.clock.set(now_ms as u64);
    }
}

/// Sends a request to the test instead of the network and returns head and body of the answer as
/// JSON. A host that the definition does not name is denied, as on the network.
#[op2]
#[string]
pub(super) async fn op_xs_ask(
    state: Rc<RefCell<OpState>>,
    #[string] request: String,
    #[string] url: String,
    #[buffer] body: JsBuffer,
) -> Result<String, JsErrorBox> {
    let bridge = bridge(&state);
    may_reach(&bridge, &url)?;
    let (answer, answered) = oneshot::channel();
    let ask = Ask { request, body: Bytes::copy_from_slice(&body), answer };
    let asked = bridge.spec.trial.as_ref().is_some_and(|trial| trial.asks.send(ask).is_ok());
    let answered = if asked { answered.await.ok() } else { None };
    let (head, body) = match answered {
        Some(Ok(answered)) => answered,
        Some(Err(message)) => return Err(type_error(message)),
        None => return Err(type_error("the test does not answer")),
    };
    Ok(json!({ "head": head, "body": STANDARD.encode(&body) }).to_string())
}
