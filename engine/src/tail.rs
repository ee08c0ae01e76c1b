//! The end of the log as followers see it: who is notified of a publish, and the most recent
//! ephemeral frames.
//!
//! It keeps no frame of the log. A follower reads the log from its own offset, so a slow one costs
//! nothing here; only ephemeral frames, which are stored nowhere else, are buffered, up to a limit.
//! A publish without listeners costs one fence and one load.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};

use crate::limits::{EPHEMERAL_RING_BYTES_MAX, EPHEMERAL_RING_MAX};
use crate::value::Frame;

type Waker = Arc<dyn Fn() + Send + Sync>;

/// State shared between followers and the commit.
pub(crate) struct Tail {
    /// Number of the next ephemeral frame; written under the lock of `ring`.
    next_ephemeral: AtomicU64,
    /// Sleepers and hooks. While it is 0 a publish wakes nobody.
    listeners: AtomicUsize,
    ring: Mutex<Ring>,
    sleep: Mutex<()>,
    woken: Condvar,
    hooks: RwLock<Vec<(u64, Waker)>>,
    next_hook: AtomicU64,
}

#[derive(Default)]
struct Ring {
    /// Number of the oldest frame in the buffer.
    first: u64,
    bytes: usize,
    frames: VecDeque<(u64, Frame)>,
}

/// The result of a lookup in the buffer.
#[derive(Debug)]
pub(crate) enum Ephemeral {
    /// The frame with the requested number, and the stored offset that it precedes.
    Frame(u64, Frame),
    /// This many frames from the requested number on were dropped.
    Lost(u64),
    /// The frame does not exist yet.
    None,
}

impl Tail {
    pub(crate) fn new() -> Self {
        Self {
            next_ephemeral: AtomicU64::new(0),
            listeners: AtomicUsize::new(0),
            ring: Mutex::new(Ring::default()),
            sleep: Mutex::new(()),
            woken: Condvar::new(),
            hooks: RwLock::new(Vec::new()),
            next_hook: AtomicU64::new(0),
        }
    }

    /// Buffers ephemeral frames, each with the offset of the stored frame it precedes. The commit
    /// calls this before it moves the head, so that readers that see the head find them.
    pub(crate) fn push(&self, frames: impl IntoIterator<Item = (u64, Frame)>) {
        let mut ring = self.ring.lock();
        let mut next = self.next_ephemeral.load(Ordering::Relaxed);
        for (before, frame) in frames {
            ring.bytes += frame.record().len();
            ring.frames.push_back((before, frame));
            next += 1;
        }
        while ring.frames.len() > EPHEMERAL_RING_MAX || ring.bytes > EPHEMERAL_RING_BYTES_MAX {
            let Some((_, oldest)) = ring.frames.pop_front() else { break };
            ring.bytes -= oldest.record().len();
            ring.first += 1;
        }
        self.next_ephemeral.store(next, Ordering::Release);
    }

    /// Wakes all listeners. The commit calls this after it moved the head or pushed frames, without
    /// the writer's lock, as there may be very many.
    pub(crate) fn publish(&self) {
        // Pairs with the fence of a listener: either it sees the new head, or this sees the
        // listener.
        fence(Ordering::SeqCst);
        if self.listeners.load(Ordering::Relaxed) == 0 {
            return;
        }
        drop(self.sleep.lock());
        self.woken.notify_all();
        // Called without the lock, so that a waker may register or drop a hook.
        let hooks: Vec<Waker> = self.hooks.read().iter().map(|(_, hook)| hook.clone()).collect();
        hooks.iter().for_each(|hook| hook());
    }

    /// Number of the next ephemeral frame.
    pub(crate) fn next_ephemeral(&self) -> u64 {
        self.next_ephemeral.load(Ordering::Acquire)
    }

    /// The ephemeral frame with a number.
    pub(crate) fn ephemeral(&self, number: u64) -> Ephemeral {
        if number >= self.next_ephemeral() {
            return Ephemeral::None;
        }
        let ring = self.ring.lock();
        if number < ring.first {
            return Ephemeral::Lost(ring.first - number);
        }
        match ring.frames.get((number - ring.first) as usize) {
            Some((before, frame)) => Ephemeral::Frame(*before, frame.clone()),
            None => Ephemeral::None,
        }
    }

    /// Sleeps until `ready` holds or the timeout expires, and returns whether it holds.
    pub(crate) fn wait(&self, timeout: Duration, ready: impl Fn() -> bool) -> bool {
        if ready() {
            return true;
        }
        let until = Instant::now().checked_add(timeout);
        self.listeners.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let mut sleep = self.sleep.lock();
        let ready = loop {
            if ready() {
                break true;
            }
            match until {
                Some(until) if self.woken.wait_until(&mut sleep, until).timed_out() => {
                    break ready();
                }
                Some(_) => {}
                None => self.woken.wait(&mut sleep),
            }
        };
        drop(sleep);
        self.listeners.fetch_sub(1, Ordering::Relaxed);
        ready
    }

    /// Calls `waker` after each publish until the hook is dropped.
    pub(crate) fn on_publish(self: &Arc<Self>, waker: Waker) -> PublishHook {
        let number = self.next_hook.fetch_add(1, Ordering::Relaxed);
        self.hooks.write().push((number, waker));
        self.listeners.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        PublishHook { tail: Arc::downgrade(self), number }
    }
}

impl fmt::Debug for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tail")
            .field("next_ephemeral", &self.next_ephemeral)
            .field("listeners", &self.listeners)
            .finish_non_exhaustive()
    }
}

/// A registered waker; dropping it ends the calls (one in progress may still come).
#[derive(Debug)]
#[must_use = "the waker is called only as long as this is kept"]
pub struct PublishHook {
    tail: Weak<Tail>,
    number: u64,
}

impl Drop for PublishHook {
    fn drop(&mut self) {
        if let Some(tail) = self.tail.upgrade() {
            tail.hooks.write().retain(|(number, _)| *number != self.number);
            tail.listeners.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::value::{FrameId, NewFrame, Topic};

    fn frame(n: u64) -> Frame {
        let new = NewFrame::new(Topic::parse("t").unwrap());
        Frame::assemble(&new, FrameId::first_of_ms(n), None, None).unwrap()
    }

    #[test]
    fn the_ring_forgets_the_oldest_and_says_so() {
        let tail = Tail::new();
        assert!(matches!(tail.ephemeral(0), Ephemeral::None));
        let many = EPHEMERAL_RING_MAX as u64 + 10;
        tail.push((0..many).map(|n| (n, frame(n))));
        assert!(matches!(tail.ephemeral(3), Ephemeral::Lost(7)));
        assert!(matches!(tail.ephemeral(10), Ephemeral::Frame(10, f) if f.id().time_ms() == 10));
        assert!(matches!(tail.ephemeral(many), Ephemeral::None));
    }

    #[test]
    fn a_publish_wakes_sleepers_and_hooks() {
        let tail = Arc::new(Tail::new());
        let (flag, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let counter = calls.clone();
        let hook = tail.on_publish(Arc::new(move || {
            counter.fetch_add(1, Ordering::SeqCst);
        }));
        let sleeper = {
            let (tail, flag) = (tail.clone(), flag.clone());
            std::thread::spawn(move || {
                tail.wait(Duration::from_secs(60), || flag.load(Ordering::SeqCst))
            })
        };
        flag.store(true, Ordering::SeqCst);
        tail.publish();
        assert!(sleeper.join().unwrap());
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        drop(hook);
        tail.publish();
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        assert_eq!(tail.listeners.load(Ordering::SeqCst), 0);
        assert!(!tail.wait(Duration::from_millis(1), || false));
    }
}
