//! The background thread that compacts and collects, and how it is stopped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::owed::Owed;
use super::{CompactOptions, Which};
use crate::error::CompactError;
use crate::store::Inner;
use crate::sys;
use crate::worker::Worker;

/// Interval between checks for expired frames and due collections when nothing wakes it.
const PERIOD: Duration = Duration::from_secs(30);
/// The rest after a search for work, as a multiple of the search's duration.
const REST: u32 = 20;
/// The longest rest.
const REST_MAX: Duration = Duration::from_secs(60 * 60);

/// Compaction of one store.
#[derive(Debug, Default)]
pub(crate) struct Compaction {
    /// Held while segments are rewritten, so that one thread does it at a time.
    pub(super) running: Mutex<()>,
    state: Mutex<State>,
    changed: Condvar,
    thread: Worker,
    /// Duration of the last search for work.
    looked: Mutex<Duration>,
    /// Removals that are not complete.
    pub(crate) owed: Owed,
}

#[derive(Debug, Default)]
struct State {
    woken: bool,
    stopped: bool,
    /// Threads that wait for segments not to be rewritten.
    waiting: usize,
    /// Threads that wait to compact on request.
    asking: usize,
}

impl Compaction {
    /// Starts the thread, if the options ask for it.
    pub(crate) fn start(&self, inner: &Arc<Inner>) -> std::io::Result<()> {
        let Some(options) = inner.env.options.compaction else { return Ok(()) };
        inner.space.begin(inner);
        let (shared, told) = (Arc::clone(inner), Arc::clone(inner));
        let on_panic = move || {
            told.space.compact_ended(Some("the thread xs-compact has panicked".to_owned()));
        };
        self.thread.start("xs-compact", move || run(&shared, options), on_panic)
    }

    /// Ends the thread and any other compaction, and waits for both.
    pub(crate) fn stop(&self) {
        self.state.lock().stopped = true;
        self.changed.notify_all();
        self.thread.join();
        drop(self.running.lock());
    }

    /// Blocks rewriting of segments while the guard is held. A running compaction finishes its
    /// current rewrite without pauses, and resumes afterwards.
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

    /// Starts a compaction; no other one runs while the guard is held. Threads that wait in
    /// [`hold`](Self::hold) come first.
    pub(crate) fn begin(&self) -> MutexGuard<'_, ()> {
        let mut state = self.state.lock();
        while state.waiting > 0 && !state.stopped {
            self.changed.wait(&mut state);
        }
        drop(state);
        self.running.lock()
    }

    /// As [`begin`](Self::begin), for a compaction on request.
    pub(super) fn begin_asked(&self) -> MutexGuard<'_, ()> {
        self.state.lock().asking += 1;
        let running = self.begin();
        self.state.lock().asking -= 1;
        running
    }

    /// Whether a thread waits in [`hold`](Self::hold).
    pub(super) fn is_wanted(&self) -> bool {
        self.state.lock().waiting > 0
    }

    /// Whether any thread waits for the running one.
    pub(crate) fn is_awaited(&self) -> bool {
        let state = self.state.lock();
        state.waiting > 0 || state.asking > 0
    }

    /// Wakes the thread: a segment was sealed.
    pub(crate) fn wake(&self) {
        self.state.lock().woken = true;
        self.changed.notify_all();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.state.lock().stopped
    }

    /// Sleeps, and returns whether to stop.
    fn sleep(&self, period: Duration) -> bool {
        self.sleep_unless(period, |_| false)
    }

    /// Sleeps in the middle of a rewrite, unless a thread waits for it; returns whether to stop.
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

    /// Records how long the search for work took.
    pub(super) fn note_look(&self, took: Duration) {
        *self.looked.lock() = took;
    }

    /// Notes that the compaction was cut short: there is more to do.
    fn go_on_later(&self) {
        self.state.lock().woken = true;
    }

    /// Sleeps until woken, at most for `PERIOD`, and returns whether it was woken; `None` to end
    /// the thread.
    fn wait(&self) -> Option<bool> {
        let mut state = self.state.lock();
        if !state.stopped && !state.woken {
            let _ = self.changed.wait_for(&mut state, PERIOD);
        }
        let woken = std::mem::take(&mut state.woken);
        (!state.stopped).then_some(woken)
    }
}

/// The state of the store when there was nothing to do.
#[derive(Debug)]
pub(super) struct Seen {
    /// Seq of the next batch: frames and removals come in batches.
    seq: u64,
    /// Nothing expires before this time.
    expires_ms: u64,
}

pub(super) fn run(inner: &Inner, options: CompactOptions) {
    sys::give_way();
    let compaction = &inner.compaction;
    let mut seen = None;
    while let Some(woken) = compaction.wait() {
        if inner.is_poisoned() {
            continue;
        }
        let looked = round(inner, options, &mut seen, woken);
        inner.complete_removals_in_time();
        collect(inner);
        if compaction.sleep(rest(looked)) {
            return;
        }
    }
}

/// Collects if that is due. Failures are reported in the statistics and retried.
pub(super) fn collect(inner: &Inner) {
    // A failure to delete files is reported by the collection that replaced them.
    let _retried = inner.tidy();
    if let Some(options) = &inner.env.options.collection
        && !inner.is_poisoned()
    {
        inner.collect_if_due(options);
    }
}

/// How long to rest after work that took so long.
pub(super) fn rest(looked: Duration) -> Duration {
    looked.saturating_mul(REST).min(REST_MAX)
}

/// Searches for segments to rewrite, which takes time proportional to topics and segments, and
/// rewrites them. Skipped if nothing can have changed since a search found nothing. Returns how
/// long the search took.
pub(super) fn round(
    inner: &Inner,
    options: CompactOptions,
    seen: &mut Option<Seen>,
    woken: bool,
) -> Duration {
    let compaction = &inner.compaction;
    let _one = compaction.begin();
    inner.space.clear_left(inner);
    let seq = inner.writer.lock().appender().next_seq();
    let now_ms = inner.env.clock.now_ms();
    let is_same = |seen: &Seen| seen.seq == seq && now_ms < seen.expires_ms;
    if !woken && seen.as_ref().is_some_and(is_same) {
        if inner.index.forget_gone() {
            // Tombstones were kept for readers of the frames they removed.
            *seen = None;
        }
        return Duration::ZERO;
    }
    compaction.note_look(Duration::ZERO);
    let which = Which::Dead(options.dead_percent);
    // Failures, for example on a full disk, are reported in the statistics and retried. An open may
    // need the last sealed segment, so it is left alone.
    let done = inner.compact(&which, false, options.bytes_per_second);
    inner.space.compact_ended(match &done {
        Ok((report, _)) => report.damaged.first().map(ToString::to_string),
        Err(CompactError::Closed) => None,
        Err(error) => Some(error.to_string()),
    });
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
