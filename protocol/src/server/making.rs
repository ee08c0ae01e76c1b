//! Room for lists while they are built and their final length is unknown: each is counted at its
//! maximum length, and one without room waits for those before it. The shelf counts the actual
//! length of finished lists.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use xs_engine::limits::CURSORS_MAX;
use xs_engine::{CursorSummary, Frame, TopicPattern};

use crate::limits::{LAST_MAX, LIST_BYTES_COUNTED, LISTS_BYTES_MAX};
use crate::message::LastRequest;

/// A growing list may allocate twice the length of its entries.
const GROWTH: usize = 2;
/// Bytes of a cursor with the longest name.
const CURSOR_BYTES: usize = size_of::<CursorSummary>() + 255;

/// Maximum bytes of the answer to a LAST while it is built.
pub(crate) fn bytes_of_last(last: &LastRequest) -> usize {
    let is_exact = |of: &TopicPattern| matches!(of, TopicPattern::Exact(_));
    let topics = last.topics.as_slice();
    let most = match last.per_topic {
        false => last.n,
        true if topics.iter().all(is_exact) => last.n.saturating_mul(topics.len() as u64),
        true => LAST_MAX,
    };
    GROWTH * size_of::<Frame>() * most.min(LAST_MAX) as usize
}

/// Maximum bytes of the newest frames of a gap while they are looked up.
pub(crate) const fn bytes_of_gap() -> usize {
    GROWTH * size_of::<u64>() * LAST_MAX as usize
}

/// Maximum bytes of the cursors of a store while they are listed.
pub(crate) const fn bytes_of_cursors() -> usize {
    GROWTH * CURSOR_BYTES * CURSORS_MAX
}

/// The lists being built.
#[derive(Default)]
pub(crate) struct Makers {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Default)]
struct State {
    bytes: usize,
    /// The number of the next arrival, and of the one whose turn it is.
    next: u64,
    turn: u64,
}

/// Room for a list being built, released on drop.
pub(crate) struct Making {
    makers: Arc<Makers>,
    bytes: usize,
}

impl Makers {
    /// Reserves room for a list of at most `bytes`; blocks until it is available.
    pub(crate) fn room(self: &Arc<Self>, bytes: usize) -> Making {
        let bytes = if bytes < LIST_BYTES_COUNTED { 0 } else { bytes };
        if bytes > 0 {
            let mut state = self.state.lock();
            let number = state.next;
            state.next += 1;
            let waits = |state: &mut State| {
                let has_room = state.bytes == 0 || state.bytes + bytes <= LISTS_BYTES_MAX;
                state.turn != number || !has_room
            };
            self.moved.wait_while(&mut state, waits);
            state.turn += 1;
            state.bytes += bytes;
            // The next one may have room too.
            self.moved.notify_all();
        }
        Making { makers: Arc::clone(self), bytes }
    }

    #[cfg(test)]
    fn waiting(&self) -> u64 {
        let state = self.state.lock();
        state.next - state.turn
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.makers.state.lock().bytes -= self.bytes;
            self.makers.moved.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use xs_engine::TopicPatterns;

    use super::*;

    #[test]
    fn what_has_no_room_waits_in_its_order() {
        const HALF: usize = LISTS_BYTES_MAX / 2;
        let makers = Arc::<Makers>::default();
        let (first, second) = (makers.room(HALF), makers.room(HALF));
        let (sender, done) = mpsc::channel();
        let threads = [HALF, LISTS_BYTES_MAX, HALF].into_iter().enumerate().map(|(at, bytes)| {
            let (theirs, sender) = (Arc::clone(&makers), sender.clone());
            let thread = thread::spawn(move || {
                let room = theirs.room(bytes);
                sender.send(at).unwrap();
                drop(room);
            });
            // Each has queued before the next one starts.
            while makers.waiting() <= at as u64 {
                thread::yield_now();
            }
            thread
        });
        let threads: Vec<_> = threads.collect();
        drop(makers.room(LIST_BYTES_COUNTED - 1));
        assert!(done.try_recv().is_err());
        drop(second);
        assert_eq!(done.recv(), Ok(0));
        assert!(done.try_recv().is_err(), "the second needs all of it, and the third is behind it");
        drop(first);
        assert_eq!([done.recv(), done.recv()], [Ok(1), Ok(2)]);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(makers.state.lock().bytes, 0);
    }

    #[test]
    fn a_list_counts_as_long_as_it_may_become() {
        let bytes = |topics: &str, n, per_topic| {
            let topics = TopicPatterns::parse(topics).unwrap();
            bytes_of_last(&LastRequest { topics, n, per_topic }) / size_of::<Frame>()
        };
        assert_eq!(bytes("*", 300, false), 600);
        assert_eq!(bytes("a, b", 300, true), 1200);
        assert_eq!(bytes("a, b.*", 1, true), 2 * LAST_MAX as usize);
        assert_eq!(bytes("a, b", u64::MAX, true), 2 * LAST_MAX as usize);
        // Each fits into the total: a larger one would be built only when no other is.
        let all = [bytes_of_gap(), bytes_of_cursors(), GROWTH * size_of::<Frame>() * 1_000_000];
        assert!(all.into_iter().all(|bytes| bytes <= LISTS_BYTES_MAX));
    }
}
