//! Makes the engine notice a termination at its next call or loop iteration. QuickJS counts 10,000
//! of those before it checks for interrupts, which is too late in two ways: a module at its heap
//! limit keeps allocating until allocations fail in places where the engine cannot handle that; and
//! a chain of microtasks whose length divides the count is interrupted at the same place each time,
//! which can be one where the interrupt is lost.
//!
//! V8 needs none of this: its terminations do not depend on a count.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr::null_mut;

use deno_core::v8;

use super::stop::Stop;

thread_local! {
    /// The engine's own context of this thread's isolate, or null.
    static CONTEXT: Cell<*mut c_void> = const { Cell::new(null_mut()) };
}

#[cfg(all(feature = "quickjs", target_pointer_width = "64"))]
mod engine {
    use std::ffi::c_void;

    /// The tag with which v8x marks the value that a context's handle points to.
    const CONTEXT_TAG: i64 = 0x7632;

    /// A QuickJS value, on targets with 64-bit pointers.
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Value {
        pointer: *mut c_void,
        tag: i64,
    }

    unsafe extern "C" {
        fn JS_TriggerInterrupt(context: *mut c_void);
    }

    /// The `JSContext` behind a handle, or null where v8x stores it in another way.
    pub(super) fn context_of(handle: *const deno_core::v8::Context) -> *mut c_void {
        // SAFETY: v8x of this version points its handles at boxed values of QuickJS; Cargo.lock
        // holds the version, and the tag tells whether it is the value of a context.
        let value = unsafe { handle.cast::<Value>().read() };
        if value.tag == CONTEXT_TAG { value.pointer } else { std::ptr::null_mut() }
    }

    /// Ends the interrupt count of a context now.
    ///
    /// # Safety
    /// Must be called on the context's thread, while the context is alive.
    pub(super) unsafe fn trigger(context: *mut c_void) {
        // SAFETY: as the caller promises; the function sets one number in the context.
        unsafe { JS_TriggerInterrupt(context) };
    }
}

/// Remembers the isolate of this thread.
pub(super) fn enter(context: &v8::Context) {
    #[cfg(all(feature = "quickjs", target_pointer_width = "64"))]
    CONTEXT.set(engine::context_of(std::ptr::from_ref(context)));
    #[cfg(not(all(feature = "quickjs", target_pointer_width = "64")))]
    let _ = context;
}

/// Forgets the isolate; called before it is torn down.
pub(super) fn leave() {
    CONTEXT.set(null_mut());
}

/// Whether this thread has an isolate that can be interrupted soon. Never with V8.
pub(super) fn is_entered() -> bool {
    !CONTEXT.get().is_null()
}

/// Has `stop` called back at the next call or loop iteration of this thread's isolate. Does nothing
/// with V8, which would call back endlessly.
pub(super) fn rearm(stop: &Stop) {
    if is_entered() {
        stop.interrupt();
        soon();
    }
}

/// Makes the engine check for interrupts at the next call or loop iteration of this thread's
/// isolate.
pub(super) fn soon() {
    let context = CONTEXT.get();
    if context.is_null() {
        return;
    }
    // SAFETY: `enter` took it from a handle of this thread's isolate, which lives until `leave`.
    #[cfg(all(feature = "quickjs", target_pointer_width = "64"))]
    unsafe {
        engine::trigger(context);
    }
}
