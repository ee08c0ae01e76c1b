//! Ops that remove frames: at once, or with the commit of a handler's call. Only in topics that the
//! definition names; the store enforces that for the Host.

use std::cell::RefCell;
use std::rc::Rc;

use deno_core::{OpState, op2};
use deno_error::JsErrorBox;
use xs_engine::{FrameId, TopicPatterns};

use super::bridge::{Bridge, bridge, type_error};

/// The topics whose frames a module may remove; `None` for code with all permissions of its user.
fn removable(bridge: &Bridge) -> Result<Option<TopicPatterns>, JsErrorBox> {
    if bridge.spec.script.as_ref().is_some_and(|script| script.is_free()) {
        return Ok(None);
    }
    let definition = bridge.definition.borrow();
    let topics = definition.as_ref().and_then(|known| known.permissions.remove.clone());
    topics.map(Some).ok_or_else(|| {
        let text = "removing frames is not allowed; add permissions: { remove: [\"the.topic\"] } to \
                    the definition";
        JsErrorBox::new("NotCapable", text)
    })
}

fn not_allowed(topic: &str) -> JsErrorBox {
    let text = format!(
        "removing frames of {topic} is not allowed; add permissions: {{ remove: [{topic:?}] }} to \
         the definition"
    );
    JsErrorBox::new("NotCapable", text)
}

/// Removes a frame; a missing one is no error.
#[op2]
pub(super) async fn op_xs_remove(
    state: Rc<RefCell<OpState>>,
    run: u32,
    #[string] id: String,
) -> Result<(), JsErrorBox> {
    let bridge = bridge(&state);
    let id = FrameId::parse(&id).map_err(type_error)?;
    let within = removable(&bridge)?;
    let outbox = {
        let runs = bridge.runs.borrow();
        runs.get(&run).filter(|run| !run.is_cut()).map(|run| Rc::clone(&run.outbox))
    };
    let Some(outbox) = outbox else {
        return Err(JsErrorBox::generic("this run has ended and can remove nothing more"));
    };
    let refused = |error: crate::isolate::BackendError| JsErrorBox::generic(error.message);
    if let Some(topics) = &within
        && let Some(frame) = bridge.backend.get(id).await.map_err(refused)?
        && !topics.matches(frame.topic())
    {
        return Err(not_allowed(frame.topic()));
    }
    // Earlier output is stored first: it may be all that is left of the frame.
    outbox.stored().await.map_err(refused)?;
    bridge.backend.remove(vec![id], within).await.map_err(refused)
}

/// Removes a frame with the commit of the call of the input at `index`. Returns whether a commit is
/// full.
#[op2(fast)]
pub(super) fn op_xs_remove_later(
    state: &mut OpState,
    index: u32,
    #[string] id: &str,
) -> Result<bool, JsErrorBox> {
    let bridge = state.borrow::<Rc<Bridge>>();
    let id = FrameId::parse(id).map_err(type_error)?;
    removable(bridge)?;
    let mut batch = bridge.batch.borrow_mut();
    let Some(batch) = batch.as_mut() else {
        return Err(JsErrorBox::generic("this run has ended and can remove nothing more"));
    };
    batch.remove(index as usize, id)
}
