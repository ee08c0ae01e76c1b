//! Watches and ends threads that run foreign code: one watchdog thread checks the CPU clocks of all
//! isolates. Terminating is a strong hint to QuickJS and no guarantee, so a thread that does not
//! react is abandoned and reported as wedged; the Host then restarts.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use deno_core::v8;
use parking_lot::{Condvar, Mutex};
use tokio::sync::{Notify, watch};

use super::handle::Fate;
use super::place;
use super::{FailureKind, Limits, ModuleError};

/// The watchdog's period.
const PERIOD: Duration = Duration::from_millis(50);
/// Time for a terminated thread to react.
const REACTION: Duration = Duration::from_secs(2);

/// Extra time for a thread that gets no CPU time from the machine.
const STARVED_MAX: Duration = Duration::from_secs(10);

/// Why execution was terminated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// It used the CPU too long.
    Cpu,
    /// It reached its heap limit.
    Heap,
    /// It was asked to stop.
    Stop,
}

/// The state shared by the handle, the watchdog and the isolate's thread.
pub(crate) struct Stop {
    name: String,
    limits: Limits,
    fate: watch::Sender<Fate>,
    isolate: OnceLock<v8::IsolateHandle>,
    clock: OnceLock<ThreadClock>,
    /// Whether the thread is inside JavaScript.
    busy: AtomicBool,
    /// Changes whenever a call into the module returns.
    progress: AtomicU32,
    reason: OnceLock<Reason>,
    /// Whether the module's position at termination was looked up, and the result.
    looked: AtomicBool,
    place: OnceLock<String>,
    over: AtomicBool,
    asked: Notify,
    watch: Mutex<Watch>,
}

/// The watchdog's state for one isolate.
#[derive(Default)]
struct Watch {
    progress: u32,
    slice_start: Option<Duration>,
    terminate_at: Option<Instant>,
    /// CPU time of the thread at its termination.
    terminated: Option<Duration>,
    give_up_at: Option<Instant>,
}

impl Stop {
    pub(super) fn new(name: String, limits: Limits, fate: watch::Sender<Fate>) -> Arc<Self> {
        let stop = Arc::new(Self {
            name,
            limits,
            fate,
            isolate: OnceLock::new(),
            clock: OnceLock::new(),
            busy: AtomicBool::new(false),
            progress: AtomicU32::new(0),
            reason: OnceLock::new(),
            looked: AtomicBool::new(false),
            place: OnceLock::new(),
            over: AtomicBool::new(false),
            asked: Notify::new(),
            watch: Mutex::default(),
        });
        watchdog().add(&stop);
        stop
    }

    /// Called on the isolate's own thread once the isolate exists.
    pub(super) fn attach(&self, isolate: v8::IsolateHandle) {
        // Each is set once: a thread attaches one isolate.
        let _ = self.clock.set(ThreadClock::of_this_thread());
        let _ = self.isolate.set(isolate);
    }

    /// Asks the module to stop; if it has not after the limit, it is terminated.
    pub(crate) fn ask(&self) {
        let mut watch = self.watch.lock();
        let terminate_at = Instant::now() + self.limits.stop;
        watch.terminate_at.get_or_insert(terminate_at);
        watch.give_up_at.get_or_insert(terminate_at + self.limits.stop);
        drop(watch);
        self.asked.notify_one();
    }

    /// Stops the module without asking.
    pub(crate) fn kill(&self) {
        if self.over.load(Ordering::Acquire) {
            return;
        }
        self.terminate(Reason::Stop);
        self.asked.notify_one();
    }

    /// Resolves when [`Stop::ask`] or [`Stop::kill`] was called.
    pub(super) async fn asked(&self) {
        self.asked.notified().await;
    }

    /// Terminates what runs now, for a reason; the first reason stands.
    pub(super) fn terminate(&self, reason: Reason) {
        let first = self.reason.set(reason);
        let mut watch = self.watch.lock();
        watch.give_up_at.get_or_insert_with(|| Instant::now() + REACTION);
        watch.terminated = watch.terminated.or_else(|| self.clock.get().and_then(ThreadClock::now));
        drop(watch);
        if first.is_ok() {
            self.interrupt();
        }
        if let Some(isolate) = self.isolate.get() {
            isolate.terminate_execution();
        }
    }

    /// Has [`place::interrupted`] called on the isolate's thread at the engine's next check.
    pub(super) fn interrupt(&self) {
        if let Some(isolate) = self.isolate.get() {
            isolate.request_interrupt(place::interrupted, std::ptr::null_mut());
        }
    }

    /// Takes the request to look up the module's position, made once when it is terminated for what
    /// it did; returns whether there was one.
    pub(super) fn take_stack_request(&self) -> bool {
        self.is_terminated() && !self.looked.swap(true, Ordering::AcqRel)
    }

    /// Records the module's position at termination: the text of a stack.
    pub(super) fn was_at(&self, stack: String) {
        // Asked for only once.
        let _ = self.place.set(stack);
    }

    /// The module's position at termination, if known.
    pub(super) fn place(&self) -> &str {
        self.place.get().map_or("", String::as_str)
    }

    /// Why it was terminated, if it was.
    pub(super) fn reason(&self) -> Option<Reason> {
        self.reason.get().copied()
    }

    /// Whether it was terminated for what it did.
    pub(super) fn is_terminated(&self) -> bool {
        self.reason().is_some_and(|reason| reason != Reason::Stop)
    }

    /// The failure that corresponds to the termination.
    pub(super) fn failure(&self) -> Option<ModuleError> {
        Some(match self.reason()? {
            Reason::Cpu => ModuleError::new(
                FailureKind::Cpu,
                format!(
                    "{} ran for {:?} of CPU time without a pause; await something in long loops",
                    self.name, self.limits.slice
                ),
            ),
            Reason::Heap => ModuleError::new(
                FailureKind::Heap,
                format!(
                    "{} needed more than {} MiB of memory; keep less in variables and state",
                    self.name,
                    self.limits.heap_bytes >> 20
                ),
            ),
            Reason::Stop => ModuleError::new(FailureKind::Stopped, "stopped"),
        })
    }

    /// Runs JavaScript under the watchdog.
    pub(super) fn watched<T>(&self, run: impl FnOnce() -> T) -> T {
        self.alive();
        self.busy.store(true, Ordering::Release);
        let result = run();
        self.busy.store(false, Ordering::Release);
        result
    }

    /// A call into the module has returned: its CPU slice restarts.
    pub(crate) fn alive(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
    }

    /// Changes with each turn of the event loop and each call; `None` during one.
    pub(super) fn turn(&self) -> Option<u32> {
        (!self.busy.load(Ordering::Acquire)).then(|| self.progress.load(Ordering::Relaxed))
    }

    /// Publishes how it ended; the first ending stands.
    pub(super) fn end(&self, error: ModuleError) {
        self.fate.send_if_modified(|fate| {
            let first = fate.is_none();
            fate.get_or_insert(error);
            first
        });
    }

    /// Records that the thread has left JavaScript for good.
    pub(super) fn over(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// Whether a thread could not react yet, because a busy machine has not let it run.
    fn is_starved(&self, watch: &Watch, late: Duration) -> bool {
        let used = self.clock.get().and_then(ThreadClock::now);
        let since = used.zip(watch.terminated).map(|(now, then)| now.saturating_sub(then));
        late < STARVED_MAX && since.is_some_and(|since| since < REACTION / 2)
    }

    /// One check by the watchdog.
    fn check(&self) {
        if self.over.load(Ordering::Acquire) {
            return;
        }
        let mut watch = self.watch.lock();
        let now = Instant::now();
        if watch.give_up_at.is_some_and(|at| now >= at && !self.is_starved(&watch, now - at)) {
            drop(watch);
            self.over();
            self.end(ModuleError::new(
                FailureKind::Wedged,
                format!(
                    "{} did not react when it was stopped; its thread was abandoned",
                    self.name
                ),
            ));
            return;
        }
        if watch.terminate_at.is_some_and(|at| now >= at) {
            watch.terminate_at = None;
            drop(watch);
            self.terminate(Reason::Stop);
            self.asked.notify_one();
            return;
        }
        let used = self.clock.get().and_then(ThreadClock::now);
        let progress = self.progress.load(Ordering::Relaxed);
        if !self.busy.load(Ordering::Acquire) || watch.progress != progress {
            // If it was terminated just as it began to wait, it must be notified.
            if self.is_terminated() {
                self.asked.notify_one();
            }
            watch.progress = progress;
            watch.slice_start = used;
            return;
        }
        let start = *watch.slice_start.get_or_insert_with(|| used.unwrap_or_default());
        let over = used.is_some_and(|used| used.saturating_sub(start) > self.limits.slice);
        drop(watch);
        // Repeated at each check: a termination that falls between two slices is lost.
        if let Some(reason) = self.reason().or_else(|| over.then_some(Reason::Cpu)) {
            self.terminate(reason);
        }
    }
}

/// The CPU clock of one thread, readable from other threads. Reading it after the thread has ended
/// is an error and nothing worse.
struct ThreadClock(libc::clockid_t);

impl ThreadClock {
    fn of_this_thread() -> Self {
        let mut clock = libc::CLOCK_MONOTONIC;
        // SAFETY: the thread is this one, so its handle is valid, and `clock` outlives the call.
        let failed = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut clock) };
        // A wall clock is stricter than a CPU clock: a module would be stopped too early, not late.
        Self(if failed == 0 { clock } else { libc::CLOCK_MONOTONIC })
    }

    fn now(&self) -> Option<Duration> {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is valid for the write; the id of a thread that has ended gives EINVAL.
        let failed = unsafe { libc::clock_gettime(self.0, &raw mut time) };
        let secs = u64::try_from(time.tv_sec).ok()?;
        let nanos = u32::try_from(time.tv_nsec).ok()?;
        (failed == 0).then(|| Duration::new(secs, nanos))
    }
}

/// The single thread that watches all isolates of the process.
struct Watchdog {
    watched: Mutex<Vec<Weak<Stop>>>,
    some: Condvar,
}

fn watchdog() -> &'static Watchdog {
    static WATCHDOG: OnceLock<&'static Watchdog> = OnceLock::new();
    WATCHDOG.get_or_init(|| {
        let dog: &'static Watchdog =
            Box::leak(Box::new(Watchdog { watched: Mutex::default(), some: Condvar::new() }));
        // Without it an endless loop would run forever: failing to start it is fatal.
        std::thread::Builder::new()
            .name("xs-watchdog".to_owned())
            .spawn(|| dog.run())
            .expect("the watchdog thread starts when the process does");
        dog
    })
}

impl Watchdog {
    fn add(&self, stop: &Arc<Stop>) {
        self.watched.lock().push(Arc::downgrade(stop));
        self.some.notify_one();
    }

    fn run(&self) {
        loop {
            let mut watched = self.watched.lock();
            while watched.is_empty() {
                self.some.wait(&mut watched);
            }
            watched.retain(|stop| {
                stop.upgrade().is_some_and(|stop| {
                    stop.check();
                    !stop.over.load(Ordering::Acquire)
                })
            });
            drop(watched);
            std::thread::sleep(PERIOD);
        }
    }
}
