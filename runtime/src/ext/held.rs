//! Time during which the store holds up a handler. Before a call can wait, the output of earlier
//! calls must be stored; on a full disk that takes as long as the disk is full, and does not count
//! against the call's timeout.

use std::cell::Cell;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// How long an isolate has been held up so far.
#[derive(Default)]
pub(super) struct Held {
    before: Cell<Duration>,
    since: Cell<Option<Instant>>,
    goes_on: Notify,
}

/// The isolate is held up until this is dropped.
pub(super) struct Hold<'a>(&'a Held);

impl Held {
    /// Starts a wait for the store. There is at most one commit to wait for at a time.
    pub(super) fn begin(&self) -> Hold<'_> {
        self.since.set(Some(Instant::now()));
        Hold(self)
    }

    fn time(&self) -> Duration {
        let now = self.since.get().map(|since| since.elapsed()).unwrap_or_default();
        self.before.get() + now
    }

    /// Resolves once this much time has passed in which the isolate was not held up.
    pub(super) async fn pass(&self, time: Duration) {
        let (began, before) = (Instant::now(), self.time());
        loop {
            let held = self.time().saturating_sub(before);
            let left = time.saturating_sub(began.elapsed().saturating_sub(held));
            if left.is_zero() {
                return;
            }
            match self.since.get() {
                // No await lies between the check and this registration: one thread, no lost
                // wake-up.
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
