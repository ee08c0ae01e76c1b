//! Ops for a script that a user typed: its work, and its output.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use deno_core::{OpState, op2};
use deno_error::JsErrorBox;
use serde_json::json;
use xs_engine::BlobHash;

use super::bridge::{Bridge, bridge};
use super::frames;
use crate::script::{Console, Script, Work};

fn script(state: &OpState) -> Option<Arc<Script>> {
    state.borrow::<Rc<Bridge>>().spec.script.clone()
}

/// The next piece of work: code typed at a prompt, or frames. Never resolves when there is no more.
#[op2]
#[string]
pub(super) async fn op_xs_script_next(state: Rc<RefCell<OpState>>) -> String {
    let bridge = bridge(&state);
    let Some(script) = bridge.spec.script.clone() else { return std::future::pending().await };
    match script.next().await {
        Work::Line { name, code } => json!({ "name": name, "code": code }).to_string(),
        Work::Frames(list) => {
            let found = list.iter().map(|whole| &whole.frame);
            let text = frames::encode(found, &*bridge.backend);
            script.hold(list);
            text
        }
    }
}

/// The result of the last piece of work.
#[op2(fast)]
pub(super) fn op_xs_script_answer(state: &mut OpState, #[string] answer: String) {
    if let Some(script) = script(state) {
        script.answer(answer);
    }
}

/// Resolves when the current work is cancelled or done.
#[op2]
pub(super) async fn op_xs_script_cancelled(state: Rc<RefCell<OpState>>) {
    let script = bridge(&state).spec.script.clone();
    if let Some(cancel) = script.and_then(|script| script.cancel()) {
        cancel.cancelled().await;
    }
}

/// The body of one of the frames being filtered as text, if it was delivered with the frame.
#[op2]
#[string]
pub(super) fn op_xs_script_body(state: &mut OpState, #[string] hash: String) -> Option<String> {
    let bytes = script(state)?.body(BlobHash::parse(&hash).ok()?)?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn shown(state: &OpState, show: impl FnOnce(&dyn Console) -> bool) -> Result<(), JsErrorBox> {
    let shown = script(state).and_then(|script| script.console().map(|console| show(&*console)));
    match shown {
        Some(true) => Ok(()),
        _ => Err(JsErrorBox::generic("the output has been closed")),
    }
}

/// Writes a line of text.
#[op2(fast)]
pub(super) fn op_xs_show(state: &mut OpState, #[string] text: &str) -> Result<(), JsErrorBox> {
    shown(state, |console| console.text(text))
}

/// Writes bytes unchanged.
#[op2(fast)]
pub(super) fn op_xs_show_bytes(
    state: &mut OpState,
    #[buffer] bytes: &[u8],
) -> Result<(), JsErrorBox> {
    shown(state, |console| console.bytes(bytes))
}
