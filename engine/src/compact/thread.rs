//! The thread that compacts by itself, and what tells it to stop.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{CompactOptions, Which};
use crate::store::Inner;
use crate::sys;

/// How often it looks whether something has expired, when nothing wakes it.
const PERIOD: Duration = Duration::from_secs(30);
/// It rests so many times as long as it took to look.
const REST: u32 = 20;

/// Compaction of one store.
#[derive(Debug, Default)]
pub(crate) struct Compaction {
    /// Held while segments are rewritten, so that one thread does it at a time.
    pub(super) running: Mutex<()>,
    state: Mutex<State>,
    changed: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct State {
    woken: bool,
    stopped: bool,
}

impl Compaction {
    /// Starts the thread, if the options ask for it.
    pub(crate) fn start(&self, inner: &Arc<Inner>) -> std::io::Result<()> {
        let Some(options) = inner.env.options.compaction else { return Ok(()) };
        let shared = Arc::clone(inner);
        let thread = std::thread::Builder::new()
            .name("xs-compact".to_owned())
            .spawn(move || run(&shared, options))?;
        *self.thread.lock() = Some(thread);
        Ok(())
    }

    /// Ends the thread and whatever rewrites segments, and waits for both.
    pub(crate) fn stop(&self) {
        self.state.lock().stopped = true;
        self.changed.notify_all();
        let thread = self.thread.lock().take();
        // A panic there was a panic of ours; the store closes all the same.
        let _ = thread.map(JoinHandle::join);
        drop(self.running.lock());
    }

    /// Keeps segments from being rewritten as long as the answer is held.
    pub(crate) fn hold(&self) -> MutexGuard<'_, ()> {
        self.running.lock()
    }

    /// Wakes the thread: a segment was sealed.
    pub(crate) fn wake(&self) {
        self.state.lock().woken = true;
        self.changed.notify_all();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.state.lock().stopped
    }

    /// Sleeps for a while, and says whether to stop.
    pub(super) fn sleep(&self, period: Duration) -> bool {
        let until = Instant::now() + period;
        let mut state = self.state.lock();
        while !state.stopped && !self.changed.wait_until(&mut state, until).timed_out() {}
        state.stopped
    }

    /// Sleeps until woken, at most so long, and says whether to go on.
    fn wait(&self) -> bool {
        let mut state = self.state.lock();
        if !state.stopped && !state.woken {
            let _ = self.changed.wait_for(&mut state, PERIOD);
        }
        state.woken = false;
        !state.stopped
    }
}

fn run(inner: &Inner, options: CompactOptions) {
    sys::give_way();
    let compaction = &inner.compaction;
    while compaction.wait() {
        if inner.is_poisoned() {
            continue;
        }
        let began = Instant::now();
        {
            let _one = compaction.running.lock();
            let which = Which::Dead(options.dead_percent.clamp(1, 100));
            // What failed, for example on a full disk, is tried again. The last sealed segment may
            // be needed by an opening and is left alone.
            let _ = inner.compact(&which, false, options.bytes_per_second);
        }
        if compaction.sleep((began.elapsed() * REST).min(PERIOD)) {
            return;
        }
    }
}
