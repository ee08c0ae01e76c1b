//! Memory that the JavaScript engine may still allocate after a module has reached its heap limit.
//! The module is terminated at the limit, but a native function in progress (`JSON.parse`) runs
//! until it returns. QuickJS does not survive every failed allocation: one that fails while a stack
//! trace is taken makes it free the same memory twice. So allocations keep succeeding up to a
//! bound. Beyond it one fails, and the following ones get some room again: enough for the resulting
//! error and its stack trace.

/// Bytes granted at a time.
const STEP_BYTES: usize = 16 << 20;
/// Bytes granted after a failed allocation; the stack of its error takes some kilobytes.
const RESERVE_BYTES: usize = 1 << 20;
/// How many allocations fail that way before all of them fail.
const RESERVES_MAX: u32 = 32;

/// Room beyond a heap limit.
pub(super) struct Grace {
    left: usize,
    reserves: u32,
    failed: bool,
}

impl Grace {
    /// Room of this many bytes, plus reserves for the resulting errors.
    pub(super) fn new(bytes: usize) -> Self {
        Self { left: bytes, reserves: RESERVES_MAX, failed: false }
    }

    /// Bytes by which to raise the limit that has been reached; with 0 an allocation fails.
    pub(super) fn more(&mut self) -> usize {
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
