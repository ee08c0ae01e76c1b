//! Decides when a repeated signal counts as a second one. Handles no signals itself: its caller
//! does.

use std::time::{Duration, Instant};

/// Wrappers that forward signals, as `timeout` and many script runners do, send them to the process
/// and to its group, so that one arrives twice at once. That is one request, not two.
const SAME_WISH: Duration = Duration::from_secs(1);

/// Resolves when `next` does so again, well after the request that preceded this call.
pub(crate) async fn asked_again(mut next: impl AsyncFnMut()) {
    let first = Instant::now();
    loop {
        next().await;
        if is_another(first) {
            return;
        }
    }
}

/// Whether a signal arriving now is a new request, separate from the `first`.
pub(crate) fn is_another(first: Instant) -> bool {
    first.elapsed() >= SAME_WISH
}
