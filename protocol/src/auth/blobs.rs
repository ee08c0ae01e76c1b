//! The blobs that a connection with a limited scope may use. A blob has no topic, and asking for
//! one by its hash must not tell whether others have stored these bytes, nor attaching it to a
//! frame of one's own make it readable. So such a connection may use what it has put, and what
//! frames that were sent to it name; everything else is, to it, not there.

use std::collections::{HashSet, VecDeque};

use xs_engine::BlobHash;

use crate::limits::KNOWN_BLOBS_MAX;

/// Blobs that a connection has put or was told of; the oldest are forgotten.
#[derive(Debug, Default)]
pub(crate) struct KnownBlobs {
    known: HashSet<BlobHash>,
    order: VecDeque<BlobHash>,
}

impl KnownBlobs {
    pub(crate) fn add(&mut self, hash: BlobHash) {
        if !self.known.insert(hash) {
            return;
        }
        if self.order.len() >= KNOWN_BLOBS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.order.push_back(hash);
    }

    pub(crate) fn has(&self, hash: &BlobHash) -> bool {
        self.known.contains(hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten() {
        let mut blobs = KnownBlobs::default();
        let hash = |n: usize| BlobHash::of(&n.to_le_bytes());
        (0..KNOWN_BLOBS_MAX).for_each(|n| blobs.add(hash(n)));
        blobs.add(hash(1));
        assert!(blobs.has(&hash(0)));
        blobs.add(hash(KNOWN_BLOBS_MAX));
        assert!(!blobs.has(&hash(0)) && blobs.has(&hash(1)) && blobs.has(&hash(KNOWN_BLOBS_MAX)));
        assert_eq!((blobs.known.len(), blobs.order.len()), (KNOWN_BLOBS_MAX, KNOWN_BLOBS_MAX));
    }
}
