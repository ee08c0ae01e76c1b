//! The time for which the store holds up a handler: what came before a call that waits is stored
//! first, which takes as long as the disk is full, and that is no fault of the call.

use std::cell::Cell;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// How long an isolate was held up so far.
#[derive(Default)]
pub(super) struct Held {
    before: Cell<Duration>,
    since: Cell<Option<Instant>>,
    goes_on: Notify,
}

/// It is held up as long as this is there.
pub(super) struct Hold<'a>(&'a Held);

impl Held {
    /// It waits for the store. There is one commit at a time to wait for.
    pub(super) fn begin(&self) -> Hold<'_> {
        self.since.set(Some(Instant::now()));
        Hold(self)
    }

    fn time(&self) -> Duration {
        let now = self.since.get().map(|since| since.elapsed()).unwrap_or_default();
        self.before.get() + now
    }

    /// Waits for a time in which it is not held up.
    pub(super) async fn pass(&self, time: Duration) {
        let (began, before) = (Instant::now(), self.time());
        loop {
            let held = self.time().saturating_sub(before);
            let left = time.saturating_sub(began.elapsed().saturating_sub(held));
            if left.is_zero() {
                return;
            }
            match self.since.get() {
                // No await lies between the look and this: one thread, no lost wake-up.
                Some(_) => self.goes_on.notified().await,
                None => tokio::time::sleep(left).await,
            }
        }
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.before.set(self.0.time());
        self.0.since.set(None);
        self.0.goes_on.notify_waiters();
    }
}
