//! The background check of a whole store, at a pace that leaves disk bandwidth to others. Its
//! position is kept in memory only: an open starts a new pass.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::error::MaintainError;
use super::finding::{Progress, VerifyReport};
use crate::options::ScrubOptions;
use crate::store::Inner;
use crate::sys;
use crate::worker::Worker;

/// The state of a store's scrub, and the result of its last pass.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ScrubStats {
    /// Completed passes since the store was opened.
    pub passes: u64,
    /// The file being read.
    pub path: Option<PathBuf>,
    /// Bytes read in the present pass.
    pub bytes: u64,
    /// Bytes to read in it.
    pub bytes_total: u64,
    /// Result of the last completed pass.
    pub last: Option<VerifyReport>,
    /// When that pass ended, in milliseconds since 1970.
    pub last_ms: Option<u64>,
    /// Why the last pass was not completed, if so.
    pub failure: Option<Arc<str>>,
}

/// The thread and its published state.
#[derive(Debug, Default)]
pub(crate) struct Scrub {
    state: Mutex<State>,
    changed: Condvar,
    thread: Worker,
}

#[derive(Debug, Default)]
struct State {
    stop: bool,
    stats: ScrubStats,
}

impl Scrub {
    /// Starts the thread, if the store was opened with one.
    pub(crate) fn start(&self, inner: &Arc<Inner>) -> std::io::Result<()> {
        let Some(options) = inner.env.options.scrub else { return Ok(()) };
        let (shared, told) = (Arc::clone(inner), Arc::clone(inner));
        let on_panic = move || {
            let failure = Some(Arc::from("the thread xs-scrub has panicked"));
            told.scrub.state.lock().stats.failure = failure;
        };
        self.thread.start("xs-scrub", move || run(&shared, options), on_panic)
    }

    /// Ends the thread and waits for it.
    pub(crate) fn stop(&self) {
        self.state.lock().stop = true;
        self.changed.notify_all();
        self.thread.join();
    }

    /// A copy of the published state.
    pub(crate) fn stats(&self) -> ScrubStats {
        self.state.lock().stats.clone()
    }

    /// Waits until `passes` passes have ended.
    #[cfg(test)]
    pub(crate) fn wait_passes(&self, passes: u64) {
        let mut state = self.state.lock();
        while state.stats.passes < passes && state.stats.failure.is_none() {
            self.changed.wait(&mut state);
        }
    }

    /// Sleeps; returns whether to continue.
    fn sleep(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut state = self.state.lock();
        while !state.stop && !self.changed.wait_until(&mut state, until).timed_out() {}
        !state.stop
    }

    fn step(&self, progress: &Progress<'_>) -> bool {
        let mut state = self.state.lock();
        let stats = &mut state.stats;
        if stats.path.as_deref() != Some(progress.path) {
            stats.path = Some(progress.path.to_owned());
        }
        (stats.bytes, stats.bytes_total) = (progress.bytes, progress.bytes_total);
        !state.stop
    }

    fn ended(&self, pass: Result<VerifyReport, MaintainError>, now_ms: u64) {
        let mut state = self.state.lock();
        let stats = &mut state.stats;
        (stats.path, stats.bytes) = (None, 0);
        match pass {
            Ok(report) => {
                stats.passes += 1;
                stats.failure = None;
                (stats.last, stats.last_ms) = (Some(report), Some(now_ms));
            }
            Err(MaintainError::Stopped) => {}
            Err(error) => stats.failure = Some(error.to_string().into()),
        }
        self.changed.notify_all();
    }
}

fn run(inner: &Inner, options: ScrubOptions) {
    sys::give_way();
    let scrub = &inner.scrub;
    loop {
        let began = Instant::now();
        let pass = inner.verify(&mut |progress| {
            if !scrub.step(progress) {
                return ControlFlow::Break(());
            }
            let due = time_of(progress.bytes, options.bytes_per_second);
            let ahead = due.saturating_sub(began.elapsed());
            match ahead.is_zero() || scrub.sleep(ahead) {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        });
        scrub.ended(pass, inner.env.clock.now_ms());
        if !scrub.sleep(Duration::from_millis(options.pause_ms)) {
            return;
        }
    }
}

/// How long this many bytes should take.
fn time_of(bytes: u64, bytes_per_second: u64) -> Duration {
    let ms = u128::from(bytes) * 1000 / u128::from(bytes_per_second.max(1));
    Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_kept() {
        assert_eq!(time_of(10_000_000, 10_000_000), Duration::from_secs(1));
        assert_eq!(time_of(1, 0), Duration::from_secs(1));
        assert!(time_of(u64::MAX, 1) > Duration::from_secs(1 << 40));
        assert_eq!(time_of(1 << 30, u64::MAX), Duration::ZERO);
    }
}
