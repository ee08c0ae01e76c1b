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
/// It rests no longer than this.
const REST_MAX: Duration = Duration::from_secs(60 * 60);

/// Compaction of one store.
#[derive(Debug, Default)]
pub(crate) struct Compaction {
    /// Held while segments are rewritten, so that one thread does it at a time.
    pub(super) running: Mutex<()>,
    state: Mutex<State>,
    changed: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// How long it took to look when that was last done.
    looked: Mutex<Duration>,
}

#[derive(Debug, Default)]
struct State {
    woken: bool,
    stopped: bool,
    /// Who waits for segments to stay as they are.
    waiting: usize,
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

    /// Keeps segments from being rewritten as long as the answer is held. A compaction at work ends
    /// what it is at without a pause, and goes on afterwards.
    pub(crate) fn hold(&self) -> MutexGuard<'_, ()> {
        if let Some(held) = self.running.try_lock() {
            return held;
        }
        self.state.lock().waiting += 1;
        self.changed.notify_all();
        let held = self.running.lock();
        self.state.lock().waiting -= 1;
        self.changed.notify_all();
        held
    }

    /// Lets nobody else rewrite segments as long as the answer is held. Whoever waits for them to
    /// stay as they are comes first.
    pub(super) fn begin(&self) -> MutexGuard<'_, ()> {
        let mut state = self.state.lock();
        while state.waiting > 0 && !state.stopped {
            self.changed.wait(&mut state);
        }
        drop(state);
        self.running.lock()
    }

    /// Whether somebody waits for segments to stay as they are.
    pub(super) fn is_wanted(&self) -> bool {
        self.state.lock().waiting > 0
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
    fn sleep(&self, period: Duration) -> bool {
        self.sleep_unless(period, |_| false)
    }

    /// The same in the middle of work that somebody may wait for.
    pub(super) fn pause(&self, period: Duration) -> bool {
        self.sleep_unless(period, |state| state.waiting > 0)
    }

    fn sleep_unless(&self, period: Duration, is_over: impl Fn(&State) -> bool) -> bool {
        let until = Instant::now() + period;
        let mut state = self.state.lock();
        while !state.stopped
            && !is_over(&state)
            && !self.changed.wait_until(&mut state, until).timed_out()
        {}
        state.stopped
    }

    /// Notes how long it took to look for what to rewrite.
    pub(super) fn note_look(&self, took: Duration) {
        *self.looked.lock() = took;
    }

    /// It was cut short: there is more to do.
    fn go_on_later(&self) {
        self.state.lock().woken = true;
    }

    /// Sleeps until woken, at most so long, and says whether it was; nothing to go on no more.
    fn wait(&self) -> Option<bool> {
        let mut state = self.state.lock();
        if !state.stopped && !state.woken {
            let _ = self.changed.wait_for(&mut state, PERIOD);
        }
        let woken = std::mem::take(&mut state.woken);
        (!state.stopped).then_some(woken)
    }
}

/// How the store was when nothing was to do.
#[derive(Debug)]
pub(super) struct Seen {
    /// The number of the next batch: with one come frames and removals.
    seq: u64,
    /// Nothing expires before.
    expires_ms: u64,
}

fn run(inner: &Inner, options: CompactOptions) {
    sys::give_way();
    let compaction = &inner.compaction;
    let mut seen = None;
    while let Some(woken) = compaction.wait() {
        if inner.is_poisoned() {
            continue;
        }
        let looked = round(inner, options, &mut seen, woken);
        if compaction.sleep(rest(looked)) {
            return;
        }
    }
}

fn rest(looked: Duration) -> Duration {
    looked.saturating_mul(REST).min(REST_MAX)
}

/// Looks for what to rewrite, which takes as long as there are topics and segments, unless nothing
/// can have changed since there was nothing, and rewrites it. Says how long it looked.
pub(super) fn round(
    inner: &Inner,
    options: CompactOptions,
    seen: &mut Option<Seen>,
    woken: bool,
) -> Duration {
    let compaction = &inner.compaction;
    let _one = compaction.begin();
    let seq = inner.writer.lock().appender().next_seq();
    let now_ms = inner.env.clock.now_ms();
    let is_same = |seen: &Seen| seen.seq == seq && now_ms < seen.expires_ms;
    if !woken && seen.as_ref().is_some_and(is_same) {
        if inner.index.forget_gone() {
            // Tombstones were kept for whoever read what they hit.
            *seen = None;
        }
        return Duration::ZERO;
    }
    compaction.note_look(Duration::ZERO);
    let which = Which::Dead(options.dead_percent);
    // What failed, for example on a full disk, is tried again. The last sealed segment may be
    // needed by an opening and is left alone.
    let done = inner.compact(&which, false, options.bytes_per_second);
    if done.as_ref().is_ok_and(|(_, is_done)| !is_done) {
        compaction.go_on_later();
    }
    let is_idle = done.is_ok_and(|(report, is_done)| is_done && report.rewritten == 0);
    let expires_ms = || inner.index.next_expiry(now_ms);
    *seen = is_idle.then(|| Seen { seq, expires_ms: expires_ms() });
    *compaction.looked.lock()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rests_longer_than_it_looks() {
        let rests = [0, 1, 12, 500].map(|secs| rest(Duration::from_secs(secs)).as_secs());
        assert_eq!(rests, [0, 20, 240, 3600]);
    }
}
