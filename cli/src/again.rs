//! When a signal that comes again is a second one. Not a handler of signals: it is told of them.

use std::time::{Duration, Instant};

/// Who passes a signal on, as `timeout` and many runners of scripts do, sends it to the process and
/// to its group, so it comes twice at once. That is one wish, not two.
const SAME_WISH: Duration = Duration::from_secs(1);

/// Ends when `next` does so once more, well after the wish that came before this call.
pub(crate) async fn asked_again(mut next: impl AsyncFnMut()) {
    let first = Instant::now();
    loop {
        next().await;
        if is_another(first) {
            return;
        }
    }
}

/// Whether what comes now is another wish than the one that came `first`.
pub(crate) fn is_another(first: Instant) -> bool {
    first.elapsed() >= SAME_WISH
}
