//! Who commits what was queued. Where a commit syncs, a thread of its own leads, so that the tasks
//! of connections never wait for the disk and everything queued during one sync shares the next.

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
                // A wake between the commit and here is not lost: park() returns at once then.
                thread::park();
            }
        })?;
        Ok(Self { thread: Some(thread), stop })
    }

    /// Has everything queued so far committed, without waiting for it.
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
            // A panic there has poisoned the store already, which says more than this could.
            let _ = thread.join();
        }
    }
}
