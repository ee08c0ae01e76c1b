//! A length that one writer raises and any reader loads, without a lock: a reader that sees the
//! length sees everything written below it. The lengths of files and the head of the log are
//! published this way. Built with `--cfg loom` it uses loom's atomics, and the test below tries
//! every order that the memory model allows.

#[cfg(all(loom, test))]
use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(all(loom, test)))]
use std::sync::atomic::{AtomicU64, Ordering};

/// A length that only grows.
#[derive(Debug)]
pub(crate) struct Published(AtomicU64);

impl Published {
    /// Starts at `upto`.
    pub(crate) fn new(upto: u64) -> Self {
        Self(AtomicU64::new(upto))
    }

    /// Publishes everything below `upto`, which the caller has written. A smaller length changes
    /// nothing.
    pub(crate) fn raise(&self, upto: u64) {
        // Release pairs with the Acquire in `get`.
        self.0.fetch_max(upto, Ordering::Release);
    }

    /// The published length.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

#[cfg(all(loom, test))]
mod loom_tests {
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    const PIECES: u64 = 2;

    /// What the commit does for each group, in this order: bytes, published length, head.
    struct Log<H> {
        bytes: [UnsafeCell<u64>; PIECES as usize],
        length: Published,
        head: H,
    }

    // SAFETY: a cell is written before its number is published and read after that was seen, which
    // is what loom checks here: it reports an access that overlaps a write.
    unsafe impl<H: Sync> Sync for Log<H> {}

    fn write<H>(log: &Log<H>, raise_head: fn(&H, u64)) {
        for n in 0..PIECES {
            log.bytes[n as usize].with_mut(|byte| {
                // SAFETY: loom hands out a valid pointer, and there is one writer.
                unsafe { *byte = 7 + n }
            });
            log.length.raise(n + 1);
            raise_head(&log.head, n + 1);
        }
    }

    fn read<H>(log: &Log<H>, head: fn(&H) -> u64) {
        let head = head(&log.head);
        assert!(log.length.get() >= head, "frames are visible whose bytes are not");
        for n in 0..head {
            log.bytes[n as usize].with(|byte| {
                // SAFETY: loom hands out a valid pointer, and nothing published is written again.
                assert_eq!(unsafe { *byte }, 7 + n);
            });
        }
    }

    fn model<H: Send + Sync + 'static>(
        new: fn() -> H,
        raise_head: fn(&H, u64),
        head: fn(&H) -> u64,
    ) {
        loom::model(move || {
            let bytes = [UnsafeCell::new(0), UnsafeCell::new(0)];
            let log = Arc::new(Log { bytes, length: Published::new(0), head: new() });
            let readers = [(); 2].map(|()| {
                let log = Arc::clone(&log);
                thread::spawn(move || read(&log, head))
            });
            write(&log, raise_head);
            readers.into_iter().for_each(|reader| reader.join().unwrap());
        });
    }

    #[test]
    fn who_sees_the_head_sees_the_bytes() {
        model(|| Published::new(0), Published::raise, Published::get);
    }

    /// The same publication without ordering must fail, or the model proves nothing.
    #[test]
    #[should_panic(expected = "frames are visible whose bytes are not")]
    fn a_relaxed_head_is_found_out() {
        let raise = |head: &AtomicU64, upto| head.store(upto, Ordering::Relaxed);
        model(|| AtomicU64::new(0), raise, |head| head.load(Ordering::Relaxed));
    }
}
