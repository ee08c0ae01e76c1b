//! The blobs that a connection with a limited scope may use. A blob has no topic. A lookup by hash
//! must not reveal whether someone else stored these bytes, and attaching a foreign blob to an own
//! frame must not make it readable. So such a connection may use only the blobs that it uploaded
//! and those named by frames that were sent to it; to it, no other blob exists.

use std::collections::{BTreeMap, HashMap};

use xs_engine::BlobHash;

use crate::limits::KNOWN_BLOBS_MAX;

/// Blobs that a connection may use; the least recently used are forgotten.
#[derive(Debug, Default)]
pub(crate) struct KnownBlobs {
    /// The sequence number of the last use of each.
    known: HashMap<BlobHash, u64>,
    order: BTreeMap<u64, BlobHash>,
    met: u64,
}

impl KnownBlobs {
    pub(crate) fn add(&mut self, hash: BlobHash) {
        self.met += 1;
        if let Some(before) = self.known.insert(hash, self.met) {
            self.order.remove(&before);
        }
        self.order.insert(self.met, hash);
        if self.order.len() > KNOWN_BLOBS_MAX
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.known.remove(&oldest);
        }
    }

    pub(crate) fn has(&self, hash: &BlobHash) -> bool {
        self.known.contains_key(hash)
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
        blobs.add(hash(0));
        assert!(blobs.has(&hash(1)));
        blobs.add(hash(KNOWN_BLOBS_MAX));
        // The one used again is among the newest.
        assert!(!blobs.has(&hash(1)) && blobs.has(&hash(0)) && blobs.has(&hash(KNOWN_BLOBS_MAX)));
        assert_eq!((blobs.known.len(), blobs.order.len()), (KNOWN_BLOBS_MAX, KNOWN_BLOBS_MAX));
    }
}
