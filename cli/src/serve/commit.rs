//! Commits what is queued. Where commits sync, a separate thread leads them, so that connection
//! tasks never wait for the disk and everything queued during one sync shares the next.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use xs_engine::Store;

/// The thread that leads commits. Dropping it commits what is queued and ends it.
pub(super) struct Committer {
    thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl Committer {
    /// Starts the thread.
    pub(super) fn start(store: Arc<Store>) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new().name("xs-commit".to_owned()).spawn(move || {
            loop {
                let last = stopped.load(Ordering::Acquire);
                while store.lead() {}
                if last {
                    return;
                }
                // A wake between the commit and this point is not lost: park() then returns at
                // once.
                thread::park();
            }
        })?;
        Ok(Self { thread: Some(thread), stop })
    }

    /// Requests a commit of everything queued so far, without waiting for it.
    pub(super) fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
        if let Some(thread) = self.thread.take() {
            // A panic there has already poisoned the store, which says more than this could.
            let _ = thread.join();
        }
    }
}
