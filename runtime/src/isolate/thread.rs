//! The thread of an isolate: makes the runtime, evaluates the module, drives the event loop until
//! the module has failed or is told to stop. Everything of the isolate lives and dies on it.

use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use deno_core::error::{CoreError, CoreErrorKind, JsError};
use deno_core::{JsRuntime, PollEventLoopOptions, v8};
use futures::FutureExt as _;
use tokio::sync::{mpsc, oneshot, watch};

use super::handle::{Fate, Request};
use super::stop::{Reason, Stop};
use super::{Backend, Definition, FailureKind, IsolateSpec, ModuleError, engine, parse, place};
use crate::ext::{self, Bridge};
use crate::loader::{GraphLoader, ModuleGraph};
use crate::permissions::Granted;

/// Bytes of the thread's stack: QuickJS may use 3 MiB of it (`--stack-size`), Rust needs the rest.
const STACK_BYTES: usize = 4 * 1024 * 1024;

/// Starts the thread; `started` is told when the module is ready or why it is not.
pub(super) fn spawn(
    spec: IsolateSpec,
    backend: Arc<dyn Backend>,
    requests: mpsc::UnboundedReceiver<Request>,
    started: oneshot::Sender<Result<Definition, ModuleError>>,
    fate: watch::Sender<Fate>,
) -> Result<Arc<Stop>, ModuleError> {
    engine::require_prepared()?;
    let stop = Stop::new(spec.name.clone(), spec.limits, fate);
    let shared = Arc::clone(&stop);
    let failed = |error: &std::io::Error| {
        ModuleError::new(FailureKind::Heap, format!("no thread for the module: {error}"))
    };
    let name = crate::name::thread_name(spec.create);
    let thread = std::thread::Builder::new().name(name).stack_size(STACK_BYTES);
    thread
        .spawn(move || {
            let bridge = Bridge::new(spec, backend, Arc::clone(&shared), requests);
            let run = AssertUnwindSafe(|| run(&bridge, started));
            // A panic in here is the failure of one module, not of the Host (it happens inside of
            // deno_core when memory is short).
            let error = std::panic::catch_unwind(run).unwrap_or_else(|_| {
                terminated(&bridge.spec.graph, &shared).unwrap_or_else(panicked)
            });
            place::leave();
            bridge.fail_all(&error);
            shared.end(error);
            shared.over();
        })
        .map_err(|error| {
            stop.over();
            failed(&error)
        })?;
    Ok(stop)
}

/// The failure that a termination amounts to: where the code was or, when the engine did not look
/// for interrupts in time, where its definition begins.
fn terminated(graph: &ModuleGraph, stop: &Stop) -> Option<ModuleError> {
    let failure = graph.located(stop.failure()?, stop.place());
    let placeless = failure.file.is_none() && failure.kind != FailureKind::Stopped;
    Some(if placeless { graph.at_definition(failure) } else { failure })
}

/// The end of one that was told to stop, or terminated while it waited.
fn ended(graph: &ModuleGraph, stop: &Stop) -> ModuleError {
    terminated(graph, stop).unwrap_or_else(|| ModuleError::new(FailureKind::Stopped, "stopped"))
}

fn panicked() -> ModuleError {
    ModuleError::new(FailureKind::Throw, "the JavaScript engine failed inside; see the Host's log")
}

fn run(
    bridge: &Rc<Bridge>,
    started: oneshot::Sender<Result<Definition, ModuleError>>,
) -> ModuleError {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(tokio) = runtime else {
        return ModuleError::new(FailureKind::Heap, "no event loop for the module");
    };
    tokio.block_on(async {
        let mut isolate = match Running::new(bridge) {
            Ok(isolate) => isolate,
            Err(error) => return error,
        };
        let ready = isolate.evaluate().await;
        let error = match ready {
            Ok(definition) => {
                // The Host may have given up meanwhile; then the stop is on its way.
                let _ = started.send(Ok(definition));
                isolate.drive().await
            }
            Err(error) => {
                let _ = started.send(Err(error.clone()));
                error
            }
        };
        place::leave();
        bridge.fail_all(&error);
        bridge.stop.end(error.clone());
        // While the runtime is taken down nothing of the module runs any more.
        bridge.stop.over();
        error
    })
}

/// A runtime with a module in it.
struct Running {
    bridge: Rc<Bridge>,
    js: JsRuntime,
}

impl Running {
    fn new(bridge: &Rc<Bridge>) -> Result<Self, ModuleError> {
        let loader = Rc::new(GraphLoader(Arc::clone(&bridge.spec.graph)));
        let mut js = engine::runtime(loader, &bridge.spec.limits).map_err(|error| {
            ModuleError::new(
                FailureKind::Throw,
                format!("the JavaScript engine did not start: {error}"),
            )
        })?;
        let stop = Arc::clone(&bridge.stop);
        stop.attach(js.v8_isolate().thread_safe_handle());
        place::enter(js.main_context(), Arc::clone(&stop));
        let grace = bridge.spec.limits.heap_grace_bytes;
        let mut granted = false;
        js.add_near_heap_limit_callback(move |current, _initial| {
            stop.terminate(Reason::Heap);
            // Room to report the failure, once; a limit without any headroom makes deno_core panic.
            let more = if std::mem::replace(&mut granted, true) { 0 } else { grace };
            current.saturating_add(more)
        });
        ext::install(&mut js, bridge);
        Ok(Self { bridge: Rc::clone(bridge), js })
    }

    /// Evaluates the module and checks its definition.
    async fn evaluate(&mut self) -> Result<Definition, ModuleError> {
        let bridge = Rc::clone(&self.bridge);
        let stop = Arc::clone(&bridge.stop);
        let now_ms = bridge.spec.trial.as_ref().map(|trial| trial.now_ms);
        let booted = stop.watched(|| engine::boot(&mut self.js, now_ms));
        let driver = booted.map_err(|e| self.failure(e))?;
        let entry = GraphLoader::specifier(bridge.spec.graph.entry())
            .map_err(|error| ModuleError::new(FailureKind::Import, error.to_string()))?;
        let loaded = {
            let mut load = std::pin::pin!(self.js.load_main_es_module(&entry));
            std::future::poll_fn(|cx| stop.watched(|| load.as_mut().poll(cx))).await
        };
        let id = loaded.map_err(|error| self.failure(error))?;
        let mut evaluated = Box::pin(stop.watched(|| self.js.mod_evaluate(id)));
        let turns = std::future::poll_fn(|cx| {
            stop.watched(|| match self.js.poll_event_loop(cx, PollEventLoopOptions::default()) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                looped => match evaluated.as_mut().poll(cx) {
                    Poll::Ready(done) => Poll::Ready(done),
                    // Nothing will come of it, or it was terminated among microtasks.
                    Poll::Pending if looped.is_ready() || stop.is_terminated() => {
                        Poll::Ready(Err(CoreErrorKind::PendingPromiseResolution.into_box()))
                    }
                    Poll::Pending => Poll::Pending,
                },
            })
        });
        let limit = bridge.spec.limits.start;
        let done = tokio::select! {
            done = turns => done,
            () = tokio::time::sleep(limit) => {
                return Err(ModuleError::new(
                    FailureKind::Timeout,
                    format!("the module's top level did not finish in {limit:?}"),
                ));
            }
            () = stop.asked() => return Err(ended(&bridge.spec.graph, &stop)),
        };
        done.map_err(|error| self.failure(error))?;
        let namespace = self.js.get_module_namespace(id).map_err(|error| self.failure(error))?;
        let spec = &bridge.spec;
        let json = stop
            .watched(|| engine::define(&mut self.js, &driver, &namespace, spec.kind, &spec.name))
            .map_err(|error| {
                let mut error = self.thrown(&error);
                error.kind = FailureKind::Definition;
                error
            })?;
        let definition = parse::definition(spec.kind, &json)?;
        let mut asked = definition.permissions.clone();
        if spec.sealed {
            asked.net.clear();
            asked.run.clear();
        }
        if spec.sealed && spec.trial.is_none() {
            asked.read.clear();
        }
        let (granted, permissions) = match &spec.script {
            Some(script) if script.is_free() => Granted::to_user(&spec.allow, &spec.base)?,
            _ => Granted::new(&asked, &spec.allow, &spec.base)?,
        };
        let root = spec.trial.as_ref().map(|trial| trial.files.clone());
        let granted = granted.below(root);
        self.js.op_state().borrow_mut().put(permissions);
        bridge.define(definition.clone(), granted);
        stop.watched(|| engine::start(&mut self.js, &driver)).map_err(|e| self.thrown(&e))?;
        Ok(definition)
    }

    /// Runs the event loop until the module fails or has stopped.
    async fn drive(&mut self) -> ModuleError {
        let bridge = Rc::clone(&self.bridge);
        let stop = Arc::clone(&bridge.stop);
        let stopped = async {
            stop.asked().await;
            if stop.reason().is_none() {
                bridge.abort(None, "AbortError", "the processor is being stopped");
                tokio::select! {
                    () = bridge.idle() => {}
                    () = stop.asked() => {}
                }
            }
            ended(&bridge.spec.graph, &stop)
        };
        let mut stopped = std::pin::pin!(stopped.fuse());
        let turns = std::future::poll_fn(|cx| {
            let turn =
                stop.watched(|| self.js.poll_event_loop(cx, PollEventLoopOptions::default()));
            // Terminated among microtasks, what waits for the rest of them waits for ever.
            if turn.is_pending() && stop.is_terminated() { Poll::Ready(Ok(())) } else { turn }
        });
        let turn = tokio::select! {
            biased;
            error = bridge.ended() => return error,
            turn = turns => turn,
            error = &mut stopped => return error,
        };
        match turn {
            Err(error) => self.failure(error),
            // A termination can look like an event loop without work.
            Ok(()) if stop.reason().is_some() => self.terminated().unwrap_or_else(panicked),
            // The driver always waits for work: only a call that waits for nothing gets here.
            Ok(()) if bridge.is_stalled() => ext::stalled(&bridge.spec.name),
            Ok(()) => stopped.await,
        }
    }

    /// The failure that a termination amounts to, at its place.
    fn terminated(&self) -> Option<ModuleError> {
        terminated(&self.bridge.spec.graph, &self.bridge.stop)
    }

    /// What an error of the engine means.
    fn failure(&self, error: impl Into<Box<CoreFailure>>) -> ModuleError {
        if let Some(failure) = self.terminated() {
            return failure;
        }
        let error: Box<CoreFailure> = error.into();
        match *error {
            CoreFailure::Js(error) => self.thrown(&error),
            CoreFailure::Other(message) => ModuleError::new(FailureKind::Import, message),
            CoreFailure::Pending => ext::stalled(&self.bridge.spec.name),
        }
    }

    fn thrown(&self, error: &JsError) -> ModuleError {
        if let Some(failure) = self.terminated() {
            return failure;
        }
        let name = error.name.as_deref().unwrap_or_default();
        let message = error.message.as_deref().unwrap_or(&error.exception_message);
        if error.exception_message.contains("Top-level await promise never resolved") {
            return ext::stalled(&self.bridge.spec.name);
        }
        self.bridge.spec.graph.thrown(name, message, error.stack.as_deref().unwrap_or_default())
    }
}

/// An error of deno_core by what it says about the module.
enum CoreFailure {
    Js(Box<JsError>),
    Pending,
    Other(String),
}

impl From<CoreError> for Box<CoreFailure> {
    fn from(error: CoreError) -> Self {
        Self::new(match error.into_kind() {
            CoreErrorKind::Js(error) => CoreFailure::Js(error),
            CoreErrorKind::PendingPromiseResolution => CoreFailure::Pending,
            other => CoreFailure::Other(other.to_string()),
        })
    }
}

/// The driver's functions in JavaScript.
pub(super) struct Driver {
    pub(super) object: v8::Global<v8::Object>,
}
