//! A background thread of a store: started once, joined when the store closes. A thread that
//! panics reports that before it ends, so that nothing waits for it forever and nothing that
//! depends on it is promised any longer.

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;

/// At most one thread at a time.
#[derive(Debug, Default)]
pub(crate) struct Worker(Mutex<Option<JoinHandle<()>>>);

impl Worker {
    /// Starts the thread. If `body` panics, the thread calls `on_panic` and ends. A thread started
    /// before must have ended.
    ///
    /// # Errors
    /// The system's error when it gives no thread.
    pub(crate) fn start(
        &self,
        name: &str,
        body: impl FnOnce() + Send + 'static,
        on_panic: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let mut thread = self.0.lock();
        debug_assert!(thread.as_ref().is_none_or(JoinHandle::is_finished), "one {name} at a time");
        *thread = Some(thread::Builder::new().name(name.to_owned()).spawn(move || {
            // The panic hook has printed it. What `body` shares is in doubt, and `on_panic` says
            // so.
            if panic::catch_unwind(AssertUnwindSafe(body)).is_err() {
                on_panic();
            }
        })?);
        Ok(())
    }

    /// Whether the thread was started and has not ended.
    pub(crate) fn is_running(&self) -> bool {
        self.0.lock().as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Waits until the thread, which was told to stop, has ended.
    pub(crate) fn join(&self) {
        let thread = self.0.lock().take();
        if let Some(thread) = thread {
            // `Err` only if `on_panic` panicked; the store closes nevertheless.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn a_panic_is_reported_and_the_thread_can_be_started_again() {
        let (worker, reports) = (Worker::default(), Arc::new(AtomicU32::new(0)));
        let report = || {
            let reports = Arc::clone(&reports);
            move || {
                reports.fetch_add(1, Ordering::Relaxed);
            }
        };
        worker.start("xs-test", || panic!("planted"), report()).unwrap();
        worker.join();
        assert_eq!(reports.load(Ordering::Relaxed), 1);
        worker.start("xs-test", || (), report()).unwrap();
        worker.join();
        assert!(!worker.is_running());
        assert_eq!(reports.load(Ordering::Relaxed), 1);
    }
}
