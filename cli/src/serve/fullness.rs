//! Whether a store has space: judged by its last refusal, since a disk with a few bytes left takes
//! a small event and no blob. The log, `/readyz`, the metrics and `doctor` report it from here.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};

use xs_engine::Shortage;

/// Free bytes at which a full store counts as having space again: one segment.
const ROOM_BYTES: u64 = 64 * 1024 * 1024;

/// The kind of data put into a store.
#[derive(Debug, Clone, Copy)]
pub(super) enum Put {
    /// A batch, with its inline bodies.
    Batch,
    /// An uploaded blob.
    Blob,
}

/// For each kind of data, what was missing when it was last refused: 0 if it has been stored since,
/// otherwise 1 plus the index in [`SHORTAGES`].
#[derive(Debug, Default)]
pub(crate) struct Fullness {
    dir: PathBuf,
    batches: AtomicU8,
    blobs: AtomicU8,
}

const SHORTAGES: [Shortage; 3] = [Shortage::Space, Shortage::Descriptors, Shortage::Files];

fn number(shortage: Shortage) -> u8 {
    (1..).zip(SHORTAGES).find(|(_, known)| *known == shortage).map_or(0, |(number, _)| number)
}

impl Fullness {
    /// For the store in a directory.
    pub(crate) fn of(dir: PathBuf) -> Self {
        Self { dir, ..Self::default() }
    }

    /// Records that data was stored, or was refused because of a shortage.
    pub(super) fn note(&self, put: Put, refused: Option<Shortage>) {
        let noted = self.noted(put);
        let now = refused.map_or(0, number);
        // Batches are frequent, so this is written only when it changes.
        if noted.load(Ordering::Relaxed) == now {
            return;
        }
        let was_full = self.is_noted();
        noted.store(now, Ordering::Relaxed);
        match refused {
            Some(shortage) if !was_full => {
                tracing::warn!(
                    "{shortage}: appends are refused until there is room; reads continue"
                );
            }
            None if !self.is_noted() => tracing::info!("the store has room again"),
            _ => {}
        }
    }

    /// Looks whether there is space again: nothing may have been stored since.
    pub(super) fn refresh(&self) {
        if self.is_noted() {
            self.refresh_with(free(&self.dir));
        }
    }

    /// Forgets the shortage if this many bytes are free and they suffice.
    fn refresh_with(&self, free: Option<u64>) {
        if free.is_some_and(|free| free >= ROOM_BYTES) {
            self.note(Put::Batch, None);
            self.note(Put::Blob, None);
        }
    }

    /// What the store was short of at the last refusal, if anything.
    pub(super) fn shortage(&self) -> Option<Shortage> {
        let numbers = [Put::Batch, Put::Blob].map(|put| self.noted(put).load(Ordering::Relaxed));
        let place = usize::from(numbers.into_iter().find(|number| *number > 0)?) - 1;
        SHORTAGES.get(place).copied()
    }

    fn is_noted(&self) -> bool {
        [Put::Batch, Put::Blob].into_iter().any(|put| self.noted(put).load(Ordering::Relaxed) > 0)
    }

    const fn noted(&self, put: Put) -> &AtomicU8 {
        match put {
            Put::Batch => &self.batches,
            Put::Blob => &self.blobs,
        }
    }
}

fn free(dir: &Path) -> Option<u64> {
    super::metrics::room(dir).map(|(free, _)| free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_over_when_what_was_refused_is_stored_or_with_room() {
        let fullness = Fullness::default();
        let full_with = |free| {
            fullness.refresh_with(free);
            fullness.shortage().is_some()
        };
        assert!(!full_with(Some(0)), "nothing was refused");
        fullness.note(Put::Blob, Some(Shortage::Space));
        fullness.note(Put::Batch, None);
        assert!(full_with(Some(ROOM_BYTES - 1)), "a small event says nothing of blobs");
        fullness.note(Put::Blob, None);
        assert!(!full_with(Some(0)));
        fullness.note(Put::Batch, Some(Shortage::Space));
        assert!(full_with(None));
        assert!(!full_with(Some(ROOM_BYTES)));
        assert!(!full_with(Some(0)), "there was room meanwhile");
    }

    #[test]
    fn what_was_missing_last_is_told() {
        let fullness = Fullness::default();
        for shortage in SHORTAGES {
            fullness.note(Put::Batch, Some(shortage));
            assert_eq!(fullness.shortage(), Some(shortage));
        }
        fullness.note(Put::Batch, None);
        assert_eq!(fullness.shortage(), None);
    }
}
