//! Makes the engine notice a termination at its next call or turn of a loop. QuickJS counts 10,000
//! of those before it looks for interrupts, which is late in two ways: a module that has reached
//! its heap limit allocates on, until allocations fail in places where the engine does not stand
//! that; and a chain of microtasks whose length divides the count is interrupted at the same place
//! each time, which can be one where the interruption is lost.
//!
//! With V8 there is nothing to do: its terminations need no count.

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

    /// What v8x marks the value with that a handle of a context points to.
    const CONTEXT_TAG: i64 = 0x7632;

    /// A value of QuickJS where pointers have 64 bits.
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Value {
        pointer: *mut c_void,
        tag: i64,
    }

    unsafe extern "C" {
        fn JS_TriggerInterrupt(context: *mut c_void);
    }

    /// The `JSContext` behind a handle, or null where v8x keeps it otherwise.
    pub(super) fn context_of(handle: *const deno_core::v8::Context) -> *mut c_void {
        // SAFETY: v8x of this version points its handles at boxed values of QuickJS; Cargo.lock
        // holds the version, and the tag tells whether it is the value of a context.
        let value = unsafe { handle.cast::<Value>().read() };
        if value.tag == CONTEXT_TAG { value.pointer } else { std::ptr::null_mut() }
    }

    /// Has the count of a context end now.
    ///
    /// # Safety
    /// On the thread of the context, which has to be alive.
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

/// Forgets it; called before it is taken down.
pub(super) fn leave() {
    CONTEXT.set(null_mut());
}

/// Has `stop` called back at the next call or turn of a loop of this thread's isolate. With V8 it
/// is not: V8 calls back until nobody asks for it.
pub(super) fn rearm(stop: &Stop) {
    if !CONTEXT.get().is_null() {
        stop.interrupt();
        soon();
    }
}

/// Has the engine look for interrupts at the next call or turn of a loop of this thread's isolate.
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
