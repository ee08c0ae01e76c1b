//! The valid keys: the newest N that have not expired. The key of a batch expires a fixed time
//! after the time in its first frame's id; ids ascend along the log, so expired keys are always the
//! oldest ones, and each key costs O(1) over its lifetime.

use std::collections::{HashMap, VecDeque};

use crate::format::key_index::UsedKey;
use crate::limits::{KEY_MS, KEYS_MAX};
use crate::value::FrameId;

/// When a key expires, by the id of the first frame of its batch; in ms since 1970.
pub(crate) fn expires_ms(id: FrameId) -> u64 {
    id.time_ms().saturating_add(KEY_MS)
}

/// The valid keys.
#[derive(Debug)]
pub(crate) struct KeyWindow {
    /// In the order of the log.
    used: VecDeque<UsedKey>,
    /// The number of each key: its index in `used` plus the number of dropped keys.
    numbers: HashMap<[u8; 16], u64>,
    dropped: u64,
    max: usize,
}

impl Default for KeyWindow {
    fn default() -> Self {
        Self::with_max(KEYS_MAX)
    }
}

impl KeyWindow {
    fn with_max(max: usize) -> Self {
        Self { used: VecDeque::new(), numbers: HashMap::new(), dropped: 0, max }
    }

    /// Adds keys older than all others, newest first, as long as they are valid. Returns whether
    /// older ones can be valid.
    pub(super) fn extend_back(
        &mut self,
        newest_first: impl Iterator<Item = UsedKey>,
        now_ms: u64,
    ) -> bool {
        for used in newest_first {
            if self.used.len() >= self.max || expires_ms(used.id) <= now_ms {
                return false;
            }
            self.used.push_front(used);
        }
        true
    }

    /// Indexes the keys that [`Self::extend_back`] added.
    pub(super) fn number(&mut self) {
        // A key that occurs twice had expired between its uses, by a clock that went backwards
        // since: the later use counts.
        let numbered = self.used.iter().zip(self.dropped..);
        self.numbers = numbered.map(|(used, number)| (used.key, number)).collect();
    }

    /// The batch that used a key, if the key is valid.
    pub(super) fn find(&mut self, key: &[u8; 16], now_ms: u64) -> Option<UsedKey> {
        while self.used.front().is_some_and(|used| expires_ms(used.id) <= now_ms) {
            self.drop_oldest();
        }
        self.get(key)
    }

    /// Adds the key of the newest batch.
    pub(super) fn push(&mut self, used: UsedKey) {
        if self.used.len() >= self.max {
            self.drop_oldest();
        }
        self.numbers.insert(used.key, self.dropped + self.used.len() as u64);
        self.used.push_back(used);
    }

    /// The key, if it has not been dropped.
    pub(super) fn get(&self, key: &[u8; 16]) -> Option<UsedKey> {
        let number = self.numbers.get(key)?;
        let place = usize::try_from(number.checked_sub(self.dropped)?).ok()?;
        self.used.get(place).copied()
    }

    fn drop_oldest(&mut self) {
        let Some(oldest) = self.used.pop_front() else { return };
        if self.numbers.get(&oldest.key) == Some(&self.dropped) {
            self.numbers.remove(&oldest.key);
        }
        self.dropped += 1;
        if self.used.is_empty() {
            // Frees the memory that a burst of keys took.
            (self.used, self.numbers) = (VecDeque::new(), HashMap::new());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(n: u8, ms: u64) -> UsedKey {
        let id = FrameId::first_of_ms(ms);
        UsedKey { key: [n; 16], content: [n; 16], id, offset: u64::from(n) }
    }

    #[test]
    fn keys_go_by_age_and_by_number() {
        let mut window = KeyWindow::with_max(3);
        (1..=4).for_each(|n| window.push(used(n, u64::from(n))));
        assert_eq!(window.find(&[1; 16], 0), None);
        assert_eq!((window.used.len(), window.numbers.len()), (3, 3));
        assert_eq!(window.find(&[2; 16], KEY_MS + 1).map(|used| used.offset), Some(2));
        assert_eq!(window.find(&[2; 16], KEY_MS + 2), None);
        assert_eq!(window.find(&[4; 16], KEY_MS + 3).map(|used| used.offset), Some(4));
        assert_eq!((window.used.len(), window.numbers.len()), (1, 1));
        window.push(used(2, 9));
        assert_eq!(window.find(&[2; 16], KEY_MS + 8), Some(used(2, 9)));
        assert_eq!(window.find(&[2; 16], KEY_MS + 9), None);
        assert_eq!((window.used.len(), window.numbers.len()), (0, 0));
    }

    #[test]
    fn loading_stops_at_the_first_that_does_not_count() {
        let mut window = KeyWindow::with_max(4);
        assert!(window.extend_back([used(1, 9), used(2, 8)].into_iter(), KEY_MS));
        assert!(window.extend_back([].into_iter(), KEY_MS));
        assert!(!window.extend_back([used(1, 7), used(3, 0), used(4, 6)].into_iter(), KEY_MS));
        window.number();
        assert_eq!(window.find(&[1; 16], KEY_MS), Some(used(1, 9)));
        assert_eq!(window.find(&[2; 16], KEY_MS), Some(used(2, 8)));
        assert_eq!((window.find(&[3; 16], 0), window.find(&[4; 16], 0)), (None, None));
        window.push(used(5, 9));
        assert!(!window.extend_back([used(6, 9)].into_iter(), KEY_MS));
        // The older use of key 1 is removed, the later one stays.
        window.push(used(6, 9));
        assert_eq!(window.find(&[1; 16], KEY_MS), Some(used(1, 9)));
    }
}
