//! The code position of a module at its termination. A termination carries no stack, so one is
//! taken just before, when the engine checks for interrupts. This is best effort: code that ends
//! elsewhere, inside a native function for example, has no position. From then on the engine checks
//! at each call, so that nothing runs on for long.
//!
//! The same check serves an isolate whose heap is full.

use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::Arc;

use deno_core::v8;

use super::stop::Stop;
use super::{heap, interrupt};

/// Maximum number of stack frames taken.
const FRAMES_MAX: usize = 20;

/// An isolate, and the receiver of its position.
type Here = Option<(v8::Global<v8::Context>, Arc<Stop>)>;

thread_local! {
    /// The isolate of this thread.
    static HERE: RefCell<Here> = const { RefCell::new(None) };
}

/// Guard: this thread's isolate is registered. Dropped on its thread, before the isolate is torn
/// down.
pub(super) struct Entered(());

/// Registers this thread's isolate: it can report its position to `stop`, and be interrupted at
/// once.
pub(super) fn enter(
    isolate: &mut v8::Isolate,
    context: v8::Global<v8::Context>,
    stop: Arc<Stop>,
) -> Entered {
    interrupt::enter(context.open(isolate));
    HERE.with(|here| *here.borrow_mut() = Some((context, stop)));
    Entered(())
}

impl Drop for Entered {
    fn drop(&mut self) {
        interrupt::leave();
        heap::leave();
        HERE.with(|here| here.borrow_mut().take());
    }
}

/// Collects the garbage of this thread's isolate if its heap is full. If it has been terminated,
/// takes its stack and arranges to be called again at its next call.
///
/// # Safety
/// Only for [`v8::IsolateHandle::request_interrupt`]: the engine calls it on the isolate's thread,
/// between two JavaScript instructions, with a valid isolate.
pub(super) unsafe extern "C" fn interrupted(isolate: v8::UnsafeRawIsolatePtr, _data: *mut c_void) {
    HERE.with(|here| {
        // Both fail only if the engine calls it from a place where it promises not to.
        let Ok(here) = here.try_borrow() else { return };
        let Some((context, stop)) = here.as_ref() else { return };
        // SAFETY: the engine passes the isolate that runs on this thread; this value does not own
        // it and disposes of nothing.
        let mut isolate = unsafe { v8::Isolate::from_raw_isolate_ptr(isolate) };
        heap::collect(&mut isolate);
        if stop.take_stack_request() {
            v8::scope!(let scope, &mut isolate);
            let context = v8::Local::new(scope, context);
            let scope = &mut v8::ContextScope::new(scope, context);
            // An `Error` hook of the module may run in here, and is terminated like any other code.
            stop.was_at(stack(scope));
        }
        if stop.reason().is_some() {
            interrupt::rearm(stop);
        }
    });
}

/// The current stack, in the format of an error's `.stack`.
fn stack(scope: &mut v8::PinScope<'_, '_>) -> String {
    let Some(trace) = v8::StackTrace::current_stack_trace(scope, FRAMES_MAX) else {
        return String::new();
    };
    let mut text = String::new();
    for index in 0..trace.get_frame_count() {
        let Some(frame) = trace.get_frame(scope, index) else { continue };
        let name = |name: Option<v8::Local<'_, v8::String>>| {
            name.map(|name| name.to_rust_string_lossy(scope)).unwrap_or_default()
        };
        let (function, file) =
            (name(frame.get_function_name(scope)), name(frame.get_script_name(scope)));
        let (line, column) = (frame.get_line_number(), frame.get_column());
        text += &format!("    at {function} ({file}:{line}:{column})\n");
    }
    text
}
