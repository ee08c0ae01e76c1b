//! What happens when a module reaches its heap limit.
//!
//! QuickJS counts references, and looks for unreachable cycles only when the heap has grown by half
//! since it last looked. A heap that was two thirds full of live objects then reaches its limit
//! before the engine looks again. So the first time the limit is reached the module gets some room
//! until the engine's next check for interrupts, where the garbage is collected; only a module that
//! still needs more than its limit is terminated. V8 collects before it reports the limit.
//!
//! A terminated module runs on for a moment: a native function in progress (`JSON.parse`) runs
//! until it returns. QuickJS does not survive every failed allocation: one that fails while a stack
//! trace is taken makes it free the same memory twice. So allocations keep succeeding up to a
//! bound. Beyond it one fails, and the following ones get some room again: enough for the resulting
//! error and its stack trace.

use std::cell::RefCell;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Arc;

use deno_core::v8;

use super::Limits;
use super::interrupt;
use super::stop::{Reason, Stop};

/// Bytes granted at a time.
const STEP_BYTES: usize = 16 << 20;
/// Bytes granted after a failed allocation; the stack of its error takes some kilobytes.
const RESERVE_BYTES: usize = 1 << 20;
/// How many allocations fail that way before all of them fail.
const RESERVES_MAX: u32 = 32;

/// The limit of an isolate.
struct Heap {
    limit: usize,
    grace: Grace,
    stop: Arc<Stop>,
    /// The limit was reached, and a collection is to follow.
    is_full: bool,
}

thread_local! {
    /// The heap of this thread's isolate.
    static HEAP: RefCell<Option<Heap>> = const { RefCell::new(None) };
}

/// Limits the heap of this thread's isolate, which was created with this limit.
pub(super) fn enter(isolate: &mut v8::Isolate, limits: &Limits, stop: Arc<Stop>) {
    let grace = Grace::new(limits.heap_grace_bytes);
    let heap = Heap { limit: limits.heap_bytes, grace, stop, is_full: false };
    HEAP.with(|of| *of.borrow_mut() = Some(heap));
    isolate.add_near_heap_limit_callback(reached, null_mut());
}

/// Forgets the isolate; called before it is torn down.
pub(super) fn leave() {
    HEAP.with(|heap| heap.borrow_mut().take());
}

/// Returns the limit from now on. The engine calls it in the middle of an allocation: nothing here
/// may use the isolate.
///
/// # Safety
/// Only for [`v8::Isolate::add_near_heap_limit_callback`]. It is unsafe only because that type
/// demands it.
unsafe extern "C" fn reached(_data: *mut c_void, current: usize, _initial: usize) -> usize {
    let more = HEAP.with(|heap| {
        let mut heap = heap.try_borrow_mut().ok()?;
        let heap = heap.as_mut()?;
        if !heap.is_full && heap.stop.reason().is_none() && interrupt::is_entered() {
            heap.is_full = true;
            heap.stop.interrupt();
            interrupt::soon();
            return Some(STEP_BYTES);
        }
        heap.stop.terminate(Reason::Heap);
        interrupt::soon();
        Some(heap.grace.more())
    });
    // There is no entry while the isolate is torn down.
    current.saturating_add(more.unwrap_or(STEP_BYTES))
}

/// Collects the garbage of an isolate that has reached its limit, and terminates it if that is not
/// enough. Called where the engine checks for interrupts, on the isolate's thread.
pub(super) fn collect(isolate: &mut v8::Isolate) {
    let full = HEAP.with(|heap| {
        let heap = heap.try_borrow().ok()?;
        heap.as_ref().filter(|heap| heap.is_full).map(|heap| (heap.limit, Arc::clone(&heap.stop)))
    });
    let Some((limit, stop)) = full.filter(|(_, stop)| stop.reason().is_none()) else { return };
    isolate.low_memory_notification();
    // The engine reports the limit only an eighth above it, so that there is room for garbage.
    if isolate.get_heap_statistics().total_heap_size() > limit {
        stop.terminate(Reason::Heap);
        return;
    }
    // Lowers the limit again.
    isolate.remove_near_heap_limit_callback(reached, limit);
    isolate.add_near_heap_limit_callback(reached, null_mut());
    HEAP.with(|heap| {
        if let Ok(mut heap) = heap.try_borrow_mut()
            && let Some(heap) = heap.as_mut()
        {
            heap.is_full = false;
        }
    });
}

/// Room of a terminated module beyond its heap limit.
struct Grace {
    left: usize,
    reserves: u32,
    failed: bool,
}

impl Grace {
    /// Room of this many bytes, plus reserves for the resulting errors.
    fn new(bytes: usize) -> Self {
        Self { left: bytes, reserves: RESERVES_MAX, failed: false }
    }

    /// Bytes by which to raise the limit that was reached; with 0 an allocation fails.
    fn more(&mut self) -> usize {
        if self.left > 0 {
            let step = self.left.min(STEP_BYTES);
            self.left -= step;
            return step;
        }
        self.failed = !self.failed;
        if self.failed || self.reserves == 0 {
            return 0;
        }
        self.reserves -= 1;
        RESERVE_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_granted_has_a_bound() {
        let mut grace = Grace::new(40 << 20);
        let first: Vec<usize> = (0..3).map(|_| grace.more()).collect();
        assert_eq!(first, [STEP_BYTES, STEP_BYTES, 8 << 20]);
        // One allocation fails, the next succeeds.
        for _ in 0..RESERVES_MAX {
            assert_eq!((grace.more(), grace.more()), (0, RESERVE_BYTES));
        }
        assert!((0..1000).all(|_| grace.more() == 0));
    }
}
