//! The blobs that were put by themselves and that no batch has named yet. One that never is named
//! lies dead in its pack once its grace is over, and nothing else would say so. Only this process's
//! are known: an open is a reason to collect in any case.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::value::BlobHash;

/// Maximum blobs that are remembered.
const UPLOADS_MAX: usize = 65_536;

/// The blobs that nothing names yet, each with when it was put, in milliseconds since 1970.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    /// There may be some: appends need not look otherwise.
    any: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    put_ms: HashMap<BlobHash, u64>,
    /// When the last one was put that is not remembered. It counts as one that nothing names.
    beyond_ms: Option<u64>,
}

impl Uploads {
    /// Notes a blob that was put.
    pub(super) fn put(&self, hash: BlobHash, now_ms: u64) {
        let mut state = self.state.lock();
        if state.put_ms.len() < UPLOADS_MAX || state.put_ms.contains_key(&hash) {
            state.put_ms.insert(hash, now_ms);
        } else {
            state.beyond_ms = Some(now_ms);
        }
        self.any.store(true, Ordering::Release);
    }

    /// Whether [`name`](Self::name) has anything to do.
    pub(super) fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// Notes blobs that a batch names.
    pub(super) fn name(&self, hashes: impl Iterator<Item = BlobHash>) {
        let mut state = self.state.lock();
        hashes.for_each(|hash| _ = state.put_ms.remove(&hash));
        self.any.store(!state.put_ms.is_empty(), Ordering::Release);
    }

    /// Whether one was put after the first of these times, and by the second.
    pub(super) fn any_within(&self, after_ms: u64, by_ms: u64) -> bool {
        let state = self.state.lock();
        let mut put_ms = state.put_ms.values().chain(&state.beyond_ms);
        put_ms.any(|&at| after_ms < at && at <= by_ms)
    }

    /// Forgets those that were put by this time: a collection has looked at them.
    pub(super) fn forget(&self, by_ms: u64) {
        let mut state = self.state.lock();
        state.put_ms.retain(|_, &mut at| at > by_ms);
        state.put_ms.shrink_to(UPLOADS_MAX / 64);
        state.beyond_ms = state.beyond_ms.filter(|&at| at > by_ms);
        self.any.store(!state.put_ms.is_empty(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(n: usize) -> BlobHash {
        BlobHash::of(&n.to_le_bytes())
    }

    #[test]
    fn what_is_named_or_looked_at_is_forgotten() {
        let uploads = Uploads::default();
        assert!(!uploads.any() && !uploads.any_within(0, u64::MAX));
        (1..=3).for_each(|n| uploads.put(hash(n), n as u64));
        assert!(uploads.any_within(0, 1) && uploads.any_within(2, 3) && !uploads.any_within(3, 9));
        uploads.name([hash(2), hash(7)].into_iter());
        assert!(uploads.any() && !uploads.any_within(1, 2));
        uploads.forget(1);
        assert!(!uploads.any_within(0, 2) && uploads.any_within(0, 3));
        uploads.name([hash(3)].into_iter());
        assert!(!uploads.any() && !uploads.any_within(0, u64::MAX));
    }

    #[test]
    fn of_too_many_some_count_as_never_named() {
        let uploads = Uploads::default();
        (0..=UPLOADS_MAX).for_each(|n| uploads.put(hash(n), 5));
        assert_eq!(uploads.state.lock().put_ms.len(), UPLOADS_MAX);
        uploads.name((0..=UPLOADS_MAX).map(hash));
        assert!(uploads.any_within(4, 5));
        uploads.forget(5);
        assert!(!uploads.any_within(0, u64::MAX));
    }
}
