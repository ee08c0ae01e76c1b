//! The blobs that a connection with a limited scope may use. A blob has no topic, and asking for
//! one by its hash must not tell whether others have stored these bytes, nor attaching it to a
//! frame of one's own make it readable. So such a connection may use what it has put, and what
//! frames that were sent to it name; everything else is, to it, not there.

use std::collections::{BTreeMap, HashMap};

use xs_engine::BlobHash;

use crate::limits::KNOWN_BLOBS_MAX;

/// Blobs that a connection has put or was told of; those it met longest ago are forgotten.
#[derive(Debug, Default)]
pub(crate) struct KnownBlobs {
    /// When each was met last.
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
        // The one that was met again is among the newest.
        assert!(!blobs.has(&hash(1)) && blobs.has(&hash(0)) && blobs.has(&hash(KNOWN_BLOBS_MAX)));
        assert_eq!((blobs.known.len(), blobs.order.len()), (KNOWN_BLOBS_MAX, KNOWN_BLOBS_MAX));
    }
}
