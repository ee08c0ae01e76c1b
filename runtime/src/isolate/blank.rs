//! A thread with a runtime in which no module has run. Every isolate begins as one, made for a
//! module or kept ready for the next. It holds nothing of any module, and is given one once: with
//! it come its limits, its permissions and the watchdog, before a line of its code is read.

use std::ffi::CString;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
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
/// What the thread is called until it is given a module.
const THREAD_NAME: &str = "js-blank";

/// What cannot be changed any more once a runtime is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mould {
    heap_bytes: usize,
    /// The time at which the clock of a module under trial begins.
    trial_ms: Option<u64>,
}

impl Mould {
    /// Of a runtime for modules that are not under trial.
    pub(crate) const fn of_heap(heap_bytes: usize) -> Self {
        Self { heap_bytes, trial_ms: None }
    }

    /// Of the runtime that a module needs.
    pub(crate) fn of(spec: &IsolateSpec) -> Self {
        let trial_ms = spec.trial.as_ref().map(|trial| trial.now_ms);
        Self { heap_bytes: spec.limits.heap_bytes, trial_ms }
    }
}

/// A module, and the ends of all that leads to it.
pub(super) struct Work {
    pub(super) spec: IsolateSpec,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) requests: mpsc::UnboundedReceiver<Request>,
    /// Told when the module is ready, or why it is not.
    pub(super) started: oneshot::Sender<Result<Definition, ModuleError>>,
    pub(super) stop: Arc<Stop>,
    /// Dropped when the thread has taken down what it had.
    pub(super) gone: DropGuard,
}

/// The thread. Dropping it ends it.
pub(crate) struct Blank {
    mould: Mould,
    work: oneshot::Sender<Work>,
    /// Until it was waited for.
    made: Option<oneshot::Receiver<Result<(), ModuleError>>>,
}

impl Blank {
    /// Starts the thread, which makes the runtime.
    ///
    /// # Errors
    /// [`ModuleError`] when there is no thread to be had.
    pub(crate) fn start(mould: Mould) -> Result<Self, ModuleError> {
        engine::require_prepared()?;
        let (work, given) = oneshot::channel();
        let (tell, made) = oneshot::channel();
        let thread = std::thread::Builder::new().name(THREAD_NAME.to_owned());
        let spawned = thread.stack_size(STACK_BYTES).spawn(move || live(mould, tell, given));
        spawned.map_err(|error| {
            let text = format!("no thread for the module: {error}");
            ModuleError::new(FailureKind::Heap, text)
        })?;
        Ok(Self { mould, work, made: Some(made) })
    }

    /// Waits until the runtime is made. One kept ready is made already.
    ///
    /// # Errors
    /// [`ModuleError`] says why there is none, of the kind `Engine` when it takes too long.
    pub(crate) async fn made(&mut self, max: Duration) -> Result<(), ModuleError> {
        let Some(made) = &mut self.made else { return Ok(()) };
        let made = tokio::time::timeout(max, made).await;
        let made = made.map_err(|_| {
            let text = format!("the JavaScript engine did not start in {max:?}");
            ModuleError::new(FailureKind::Engine, text)
        })?;
        self.made = None;
        made.unwrap_or_else(|_| Err(panicked()))
    }

    /// Whether it is of this mould.
    pub(crate) fn is_of(&self, mould: Mould) -> bool {
        self.mould == mould
    }

    /// Gives it its module.
    ///
    /// # Errors
    /// [`ModuleError`] when the thread is gone.
    pub(super) fn give(self, work: Work) -> Result<(), ModuleError> {
        self.work.send(work).map_err(|work| {
            work.stop.over();
            panicked()
        })
    }
}

/// A runtime before any code of a module's.
pub(super) struct Made {
    /// Before the runtime, since it is dropped first.
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

/// The life of the thread.
fn live(
    mould: Mould,
    tell: oneshot::Sender<Result<(), ModuleError>>,
    given: oneshot::Receiver<Work>,
) {
    let tokio = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(tokio) => tokio,
        Err(error) => {
            let text = format!("no event loop for the module: {error}");
            let error = ModuleError::new(FailureKind::Heap, text);
            // Whoever keeps one ready listens, others learn it with their module.
            let _ = tell.send(Err(error.clone()));
            if let Ok(work) = given.blocking_recv() {
                work.stop.end(error);
                work.stop.over();
            }
            return;
        }
    };
    tokio.block_on(async {
        // A panic in here is the failure of one module, not of the Host (it happens inside of
        // deno_core when memory is short).
        let made = AssertUnwindSafe(|| Made::new(mould));
        let made = std::panic::catch_unwind(made).unwrap_or_else(|_| Err(panicked()));
        // Whoever keeps one ready listens, others learn it with their module.
        let _ = tell.send(made.as_ref().map(|_| ()).map_err(Clone::clone));
        if let Ok(work) = given.await {
            call_thread(&crate::name::thread_name(work.spec.create));
            run(work, made).await;
        }
    });
}

/// Names this thread, for whoever looks at the process or at what is left of it.
fn call_thread(name: &str) {
    let Ok(name) = CString::new(name) else { return };
    // SAFETY: PR_SET_NAME reads a text that ends, which lives as long as the call.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}
