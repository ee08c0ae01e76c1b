//! Times that modules wait for. The waiting itself is a timer in JavaScript.

use deno_core::op2;
use deno_error::JsErrorBox;

use super::bridge::type_error;
use crate::cron::{Cron, zone};

/// The next time after `after_ms` that matches a cron expression; an empty zone is the system's
/// own.
#[op2(fast)]
pub(super) fn op_xs_cron_next(
    #[string] expression: &str,
    #[string] zone_name: &str,
    after_ms: f64,
) -> Result<f64, JsErrorBox> {
    let zone = zone(Some(zone_name).filter(|name| !name.is_empty())).map_err(type_error)?;
    // An invalid time saturates, and then there is no next one.
    let next = Cron::parse(expression).and_then(|cron| cron.next(after_ms as i64, &zone));
    Ok(next.map_err(type_error)? as f64)
}
