//! How many requests of `fetch` are open; the limit is in JavaScript.

use std::rc::Rc;

use deno_core::{OpState, op2};

use super::bridge::Bridge;

/// Deno's names for a request without a response, and for a response whose body was not read to its
/// end.
const OPEN: [&str; 2] = ["fetchCancelHandle", "fetchResponse"];

/// The number of requests that hold a connection.
#[op2(fast)]
pub(super) fn op_xs_requests(state: &mut OpState) -> u32 {
    let open = state.resource_table.names().filter(|(_, name)| OPEN.contains(&name.as_ref()));
    u32::try_from(open.count()).unwrap_or(u32::MAX)
}

/// Requests a garbage collection before the next turn of the event loop. It closes answers that
/// nothing can read any more.
#[op2(fast)]
pub(super) fn op_xs_collect(state: &mut OpState) {
    state.borrow::<Rc<Bridge>>().collect.set(true);
}
