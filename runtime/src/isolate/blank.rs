//! A thread with a runtime in which no module has run. Every isolate begins as one, made for a
//! module or kept as a spare. It holds nothing of any module, and is given one exactly once: its
//! limits, permissions and watchdog are set before a line of its code is read.

use std::ffi::CString;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use deno_core::JsRuntime;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::DropGuard;

use super::handle::Request;
use super::stop::Stop;
use super::thread::{Driver, panicked, run};
use super::{Backend, Definition, FailureKind, IsolateSpec, ModuleError, engine};
use crate::loader::GraphLoader;

/// Bytes of the thread's stack: QuickJS may use 3 MiB of it (`--stack-size`), Rust needs the rest.
const STACK_BYTES: usize = 4 * 1024 * 1024;
/// The thread's name until it is given a module.
const THREAD_NAME: &str = "js-blank";

/// How many times to wait for a runtime while others are being made: their progress shows that
/// nothing holds the state they share, and that the machine is just busy.
const WAITS_MAX: u32 = 20;

/// Runtimes made in this process so far.
static MADE: AtomicU64 = AtomicU64::new(0);

/// The settings that are fixed once a runtime is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mould {
    heap_bytes: usize,
    /// The start time of the clock of a module under trial.
    trial_ms: Option<u64>,
}

impl Mould {
    /// For modules that are not under trial.
    pub(crate) const fn of_heap(heap_bytes: usize) -> Self {
        Self { heap_bytes, trial_ms: None }
    }

    /// For the runtime that a module needs.
    pub(crate) fn of(spec: &IsolateSpec) -> Self {
        let trial_ms = spec.trial.as_ref().map(|trial| trial.clock.now_ms());
        Self { heap_bytes: spec.limits.heap_bytes, trial_ms }
    }
}

/// A module, and the thread's ends of its channels.
pub(super) struct Work {
    pub(super) spec: IsolateSpec,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) requests: mpsc::UnboundedReceiver<Request>,
    /// Receives the definition once the module is ready, or the error.
    pub(super) started: oneshot::Sender<Result<Definition, ModuleError>>,
    pub(super) stop: Arc<Stop>,
    /// Dropped when the thread has torn down its runtime.
    pub(super) gone: DropGuard,
}

/// The handle of the thread. Dropping it ends the thread.
pub(crate) struct Blank {
    mould: Mould,
    work: oneshot::Sender<Work>,
    /// `None` once the result has been received.
    made: Option<oneshot::Receiver<Result<(), ModuleError>>>,
}

impl Blank {
    /// Starts the thread, which then makes the runtime.
    ///
    /// # Errors
    /// [`ModuleError`] when no thread can be started.
    pub(crate) fn start(mould: Mould) -> Result<Self, ModuleError> {
        engine::require_prepared()?;
        let (work, given) = oneshot::channel();
        let (tell, made) = oneshot::channel();
        let thread = std::thread::Builder::new().name(THREAD_NAME.to_owned());
        let spawned = thread.stack_size(STACK_BYTES).spawn(move || live(mould, tell, given));
        spawned.map_err(|error| {
            let text = format!("cannot start a thread for the module: {error}");
            ModuleError::new(FailureKind::Heap, text)
        })?;
        Ok(Self { mould, work, made: Some(made) })
    }

    /// Waits until the runtime is made. A spare is already made.
    ///
    /// # Errors
    /// [`ModuleError`] says why there is none; it has kind `Engine` when it takes too long.
    pub(crate) async fn made(&mut self, max: Duration) -> Result<(), ModuleError> {
        let Some(made) = &mut self.made else { return Ok(()) };
        let Some(made) = unless_held(made, max, || MADE.load(Ordering::Relaxed)).await else {
            let text = format!("the JavaScript engine did not start in {max:?}");
            return Err(ModuleError::new(FailureKind::Engine, text));
        };
        self.made = None;
        made.unwrap_or_else(|_| Err(panicked()))
    }

    /// Whether it has these settings.
    pub(crate) fn is_of(&self, mould: Mould) -> bool {
        self.mould == mould
    }

    /// Gives the thread its module.
    ///
    /// # Errors
    /// [`ModuleError`] when the thread has ended.
    pub(super) fn give(self, work: Work) -> Result<(), ModuleError> {
        self.work.send(work).map_err(|work| {
            work.stop.over();
            panicked()
        })
    }
}

/// The result of making a runtime; `None` after `max` without a result, unless another runtime was
/// made meanwhile.
async fn unless_held<T>(
    told: &mut oneshot::Receiver<T>,
    max: Duration,
    made: impl Fn() -> u64,
) -> Option<Result<T, oneshot::error::RecvError>> {
    for _ in 0..WAITS_MAX {
        let before = made();
        if let Ok(told) = tokio::time::timeout(max, &mut *told).await {
            return Some(told);
        }
        if made() == before {
            break;
        }
    }
    None
}

/// A runtime before any code of a module runs in it.
pub(super) struct Made {
    /// Comes before the runtime, since it must be dropped first.
    pub(super) driver: Driver,
    pub(super) js: JsRuntime,
    pub(super) loader: Rc<GraphLoader>,
}

impl Made {
    fn new(mould: Mould) -> Result<Self, ModuleError> {
        let loader = Rc::new(GraphLoader::default());
        let made = || {
            let mut js = engine::runtime(Rc::clone(&loader), mould.heap_bytes)?;
            let driver = engine::boot(&mut js, mould.trial_ms)?;
            Ok(Self { js, loader: Rc::clone(&loader), driver })
        };
        made().map_err(|error: deno_core::error::CoreError| {
            let text = format!("the JavaScript engine did not start: {error}");
            ModuleError::new(FailureKind::Throw, text)
        })
    }
}

/// The thread's main function.
fn live(
    mould: Mould,
    tell: oneshot::Sender<Result<(), ModuleError>>,
    given: oneshot::Receiver<Work>,
) {
    let tokio = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(tokio) => tokio,
        Err(error) => {
            let text = format!("cannot start an event loop for the module: {error}");
            let error = ModuleError::new(FailureKind::Heap, text);
            // The owner of a spare receives this; otherwise it is reported with the module.
            let _ = tell.send(Err(error.clone()));
            if let Ok(work) = given.blocking_recv() {
                work.stop.end(error);
                work.stop.over();
            }
            return;
        }
    };
    tokio.block_on(async {
        // A panic in here is the failure of one module, not of the Host: deno_core panics when
        // memory is short.
        let made = AssertUnwindSafe(|| Made::new(mould));
        let made = std::panic::catch_unwind(made).unwrap_or_else(|_| Err(panicked()));
        MADE.fetch_add(1, Ordering::Relaxed);
        // The owner of a spare receives this; otherwise it is reported with the module.
        let _ = tell.send(made.as_ref().map(|_| ()).map_err(Clone::clone));
        if let Ok(work) = given.await {
            call_thread(&crate::name::thread_name(work.spec.create));
            run(work, made).await;
        }
    });
}

/// Names this thread, for process listings and core dumps.
fn call_thread(name: &str) {
    let Ok(name) = CString::new(name) else { return };
    // SAFETY: PR_SET_NAME reads a NUL-terminated string, which lives as long as the call.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    /// Regression test: dozens of runtimes that started at once on a busy machine timed out one by
    /// one, and ended their Host.
    #[tokio::test]
    async fn a_runtime_is_waited_for_while_others_are_made() {
        let (tell, mut told) = oneshot::channel();
        let (tell, looks) = (RefCell::new(Some(tell)), Cell::new(0));
        let made = || {
            looks.set(looks.get() + 1);
            if looks.get() == 9 {
                tell.take().map(|tell| tell.send(())).unwrap().unwrap();
            }
            looks.get()
        };
        assert!(matches!(unless_held(&mut told, Duration::ZERO, made).await, Some(Ok(()))));
        assert_eq!(looks.get(), 9);
    }

    #[tokio::test]
    async fn a_runtime_that_is_held_is_given_up() {
        let (_tell, mut told) = oneshot::channel::<()>();
        let looks = Cell::new(0);
        let made = |others: u64| {
            looks.set(looks.get() + 1);
            looks.get() * others
        };
        assert!(unless_held(&mut told, Duration::ZERO, || made(0)).await.is_none());
        assert_eq!(looks.replace(0), 2);
        // While other runtimes are made, the wait still ends, after `WAITS_MAX` rounds.
        assert!(unless_held(&mut told, Duration::ZERO, || made(1)).await.is_none());
        assert_eq!(looks.get(), 2 * u64::from(WAITS_MAX));
    }
}
