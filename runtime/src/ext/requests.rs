//! How many requests of `fetch` are open; what may be, JavaScript knows.

use std::rc::Rc;

use deno_core::{OpState, op2};

use super::bridge::Bridge;

/// What Deno calls a request that has no answer yet, and an answer that was not read to its end.
const OPEN: [&str; 2] = ["fetchCancelHandle", "fetchResponse"];

/// Requests that hold a connection.
#[op2(fast)]
pub(super) fn op_xs_requests(state: &mut OpState) -> u32 {
    let open = state.resource_table.names().filter(|(_, name)| OPEN.contains(&name.as_ref()));
    u32::try_from(open.count()).unwrap_or(u32::MAX)
}

/// Has answers collected that nobody can read any more, before the next turn of the event loop.
/// They close by it.
#[op2(fast)]
pub(super) fn op_xs_collect(state: &mut OpState) {
    state.borrow::<Rc<Bridge>>().collect.set(true);
}
