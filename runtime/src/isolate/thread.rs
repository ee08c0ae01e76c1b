//! The main function of an isolate's thread: evaluates the module and drives the event loop until
//! the module fails or is asked to stop. Everything in the isolate lives and dies on this thread.

use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use deno_core::error::{CoreError, CoreErrorKind, JsError};
use deno_core::{JsRuntime, PollEventLoopOptions, v8};
use futures::FutureExt as _;
use tokio::sync::oneshot;

use super::blank::{Made, Work};
use super::stop::Stop;
use super::{Definition, FailureKind, ModuleError, engine, heap, parse, place};
use crate::ext::{self, Bridge};
use crate::loader::{GraphLoader, ModuleGraph};
use crate::permissions::Granted;

/// The failure for a termination, at the position where the code was or, if the engine did not
/// check for interrupts in time, where its definition begins.
fn terminated(graph: &ModuleGraph, stop: &Stop) -> Option<ModuleError> {
    let failure = graph.located(stop.failure()?, stop.place());
    let placeless = failure.file.is_none() && failure.kind != FailureKind::Stopped;
    Some(if placeless { graph.at_definition(failure) } else { failure })
}

/// The failure of a module that was asked to stop, or terminated while it waited.
fn ended(graph: &ModuleGraph, stop: &Stop) -> ModuleError {
    terminated(graph, stop).unwrap_or_else(|| ModuleError::new(FailureKind::Stopped, "stopped"))
}

/// The failure after a panic in the engine.
pub(super) fn panicked() -> ModuleError {
    ModuleError::new(
        FailureKind::Throw,
        "the JavaScript engine failed internally; see the Host's log",
    )
}

/// Runs a module on this thread until it has failed or was stopped.
pub(super) async fn run(work: Work, made: Result<Made, ModuleError>) {
    let Work { spec, backend, requests, started, stop, gone } = work;
    let bridge = Bridge::new(spec, backend, Arc::clone(&stop), requests);
    let error = match made {
        Ok(made) => {
            let run = AssertUnwindSafe(evaluate_and_drive(&bridge, made, started));
            run.catch_unwind()
                .await
                .unwrap_or_else(|_| terminated(&bridge.spec.graph, &stop).unwrap_or_else(panicked))
        }
        Err(error) => error,
    };
    conclude(&bridge, error).await;
    drop(gone);
}

/// Publishes how it ended, once the output that its runs handed over is stored: that was accepted,
/// and the frame about the end must come after it.
async fn conclude(bridge: &Bridge, error: ModuleError) {
    // Nothing of the module runs any more, not even while the runtime is torn down.
    bridge.stop.over();
    let limit = bridge.spec.limits.stop;
    if tokio::time::timeout(limit, bridge.handed_over()).await.is_err() {
        let processor = &bridge.spec.name;
        tracing::warn!(processor, "the last frames were not stored within {limit:?}");
    }
    bridge.fail_all(&error);
    bridge.stop.end(error);
}

async fn evaluate_and_drive(
    bridge: &Rc<Bridge>,
    made: Made,
    started: oneshot::Sender<Result<Definition, ModuleError>>,
) -> ModuleError {
    let mut isolate = Running::new(bridge, made);
    let error = match isolate.evaluate().await {
        Ok(definition) => {
            // The Host may have given up meanwhile; then a stop is on its way.
            let _ = started.send(Ok(definition));
            isolate.drive().await
        }
        Err(error) => {
            let _ = started.send(Err(error.clone()));
            error
        }
    };
    conclude(bridge, error.clone()).await;
    error
}

/// A runtime with a module loaded.
struct Running {
    /// Comes first, so that nothing interrupts a runtime that is being torn down.
    _entered: place::Entered,
    bridge: Rc<Bridge>,
    /// Comes before the runtime, since it must be dropped first.
    driver: Driver,
    js: JsRuntime,
}

impl Running {
    /// Sets the watchdog and the limits on a runtime, and installs the module's loader, bridge and
    /// driver.
    fn new(bridge: &Rc<Bridge>, made: Made) -> Self {
        let Made { mut js, loader, driver } = made;
        loader.give(&bridge.spec.graph);
        let stop = Arc::clone(&bridge.stop);
        stop.attach(js.v8_isolate().thread_safe_handle());
        let context = js.main_context();
        let entered = place::enter(js.v8_isolate(), context, Arc::clone(&stop));
        heap::enter(js.v8_isolate(), &bridge.spec.limits, stop);
        ext::install(&mut js, bridge);
        Self { _entered: entered, bridge: Rc::clone(bridge), js, driver }
    }

    /// Evaluates the module and checks its definition.
    async fn evaluate(&mut self) -> Result<Definition, ModuleError> {
        let bridge = Rc::clone(&self.bridge);
        let stop = Arc::clone(&bridge.stop);
        let spec = &bridge.spec;
        if self.is_free() {
            // A user's permissions depend on no definition: they hold for imports as well.
            let (_, permissions) = Granted::to_user(&spec.allow, &spec.base)?;
            ext::permit(&mut self.js.op_state().borrow_mut(), permissions);
        }
        let entry = GraphLoader::specifier(spec.graph.entry())
            .map_err(|error| ModuleError::new(FailureKind::Import, error.to_string()))?;
        let loaded = {
            let mut load = std::pin::pin!(self.js.load_main_es_module(&entry));
            std::future::poll_fn(|cx| stop.watched(|| load.as_mut().poll(cx))).await
        };
        let id = loaded.map_err(|error| self.failure(error))?;
        let mut evaluated = Box::pin(stop.watched(|| self.js.mod_evaluate(id)));
        let turns = std::future::poll_fn(|cx| {
            if stop.is_terminated() {
                // Another turn would only produce a warning of the engine that nobody reads.
                return Poll::Ready(Err(CoreErrorKind::PendingPromiseResolution.into_box()));
            }
            stop.watched(|| match self.js.poll_event_loop(cx, PollEventLoopOptions::default()) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                looped => match evaluated.as_mut().poll(cx) {
                    Poll::Ready(done) => Poll::Ready(done),
                    // It can never resolve, or it was terminated among microtasks.
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
        let json = stop
            .watched(|| {
                engine::define(&mut self.js, &self.driver, &namespace, spec.kind, &spec.name)
            })
            .map_err(|error| {
                let mut error = self.thrown(&error);
                error.kind = FailureKind::Definition;
                error
            })?;
        let definition = parse::definition(spec.kind, &json)?;
        let granted = self.grant(&definition)?;
        bridge.define(definition.clone(), granted);
        stop.watched(|| engine::start(&mut self.js, &self.driver)).map_err(|e| self.thrown(&e))?;
        Ok(definition)
    }

    /// Whether it has all the permissions of its user.
    fn is_free(&self) -> bool {
        self.bridge.spec.script.as_ref().is_some_and(|script| script.is_free())
    }

    /// Grants the permissions that the definition asks for, as far as allowed.
    fn grant(&mut self, definition: &Definition) -> Result<Granted, ModuleError> {
        let spec = &self.bridge.spec;
        let mut asked = definition.permissions.clone();
        if spec.trial.is_some() {
            self.bridge.name_net(Granted::new(&asked, &spec.allow, &spec.base)?.1);
        }
        if spec.sealed {
            asked.net.clear();
            asked.run.clear();
        }
        if spec.sealed && spec.trial.is_none() {
            asked.read.clear();
        }
        let (granted, permissions) = match self.is_free() {
            true => Granted::to_user(&spec.allow, &spec.base)?,
            false => Granted::new(&asked, &spec.allow, &spec.base)?,
        };
        ext::permit(&mut self.js.op_state().borrow_mut(), permissions);
        Ok(granted.below(spec.trial.as_ref().map(|trial| trial.files.clone())))
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
            if bridge.take_collect_request() {
                self.js.v8_isolate().low_memory_notification();
            }
            let turn =
                stop.watched(|| self.js.poll_event_loop(cx, PollEventLoopOptions::default()));
            // After a termination among microtasks, anything that awaits the remaining ones waits
            // forever.
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
            Ok(()) => {
                let abandoned = bridge.answer_abandoned_runs(&ended(&bridge.spec.graph, &stop));
                // The driver always waits for work: only a call that waits for nothing gets here.
                if !abandoned && bridge.is_stalled() {
                    return ext::stalled(&bridge.spec.name);
                }
                stopped.await
            }
        }
    }

    /// The failure for a termination, with its position.
    fn terminated(&self) -> Option<ModuleError> {
        terminated(&self.bridge.spec.graph, &self.bridge.stop)
    }

    /// Converts an error of the engine.
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

/// An error of deno_core, reduced to what it says about the module.
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
