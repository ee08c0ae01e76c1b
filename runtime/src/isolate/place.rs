//! Where a module's code was when it was terminated. A termination carries no stack, so one is
//! taken just before it, when the engine looks for interrupts. Nothing is promised: code that is
//! ended elsewhere, inside a native function for example, has no place. From then on the engine
//! looks at each call, so that nothing runs on for long.

use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::Arc;

use deno_core::v8;

use super::interrupt;
use super::stop::Stop;

/// Frames that are taken.
const FRAMES_MAX: usize = 20;

/// An isolate, and whom it tells its place.
type Here = Option<(v8::Global<v8::Context>, Arc<Stop>)>;

thread_local! {
    /// The isolate of this thread.
    static HERE: RefCell<Here> = const { RefCell::new(None) };
}

/// That this thread's isolate is known. Dropped on its thread, before it is taken down.
pub(super) struct Entered(());

/// Makes this thread's isolate able to tell its place to `stop`, and to be interrupted at once.
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
        HERE.with(|here| here.borrow_mut().take());
    }
}

/// Takes the stack of the isolate it is called in, which is that of the present thread and has been
/// terminated, and has itself called again at the next call in there.
///
/// # Safety
/// For [`v8::IsolateHandle::request_interrupt`] alone: the engine calls it on the isolate's thread,
/// between two instructions of JavaScript, with a valid isolate.
pub(super) unsafe extern "C" fn interrupted(isolate: v8::UnsafeRawIsolatePtr, _data: *mut c_void) {
    HERE.with(|here| {
        // Both fail only when it is not where the engine promises to call it from.
        let Ok(here) = here.try_borrow() else { return };
        let Some((context, stop)) = here.as_ref() else { return };
        if stop.asks_where() {
            // SAFETY: the engine calls with the isolate that runs on this thread; this value is not
            // its owner and disposes of nothing.
            let mut isolate = unsafe { v8::Isolate::from_raw_isolate_ptr(isolate) };
            v8::scope!(let scope, &mut isolate);
            let context = v8::Local::new(scope, context);
            let scope = &mut v8::ContextScope::new(scope, context);
            // An `Error` of the module's own runs in here, and is ended as everything else.
            stop.was_at(stack(scope));
        }
        interrupt::rearm(stop);
    });
}

/// The present stack, written as `.stack` of an error is.
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
