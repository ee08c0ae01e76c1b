//! Whether a store has space: judged by its last refusal, since a disk with a few bytes left takes
//! a small event and no blob. The log, `/readyz`, the metrics and `doctor` report it from here.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

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

/// The kinds of data that found too little space and have not been stored since.
#[derive(Debug, Default)]
pub(crate) struct Fullness {
    dir: PathBuf,
    batches: AtomicBool,
    blobs: AtomicBool,
}

impl Fullness {
    /// For the store in a directory.
    pub(crate) fn of(dir: PathBuf) -> Self {
        Self { dir, ..Self::default() }
    }

    /// Records that data was stored, or refused for lack of what `refused` says.
    pub(super) fn note(&self, put: Put, refused: Option<Shortage>) {
        let flag = self.flag(put);
        // Most batches are stored: the flag is written only when it changes.
        if flag.load(Ordering::Relaxed) == refused.is_some() {
            return;
        }
        let was_full = self.is_noted();
        flag.store(refused.is_some(), Ordering::Relaxed);
        match refused {
            Some(shortage) if !was_full => {
                tracing::warn!(
                    "{shortage}: the store refuses what it has no room for; reads go on"
                );
            }
            None if !self.is_noted() => tracing::info!("the store has room again"),
            _ => {}
        }
    }

    /// Whether the store is full.
    pub(super) fn is_full(&self) -> bool {
        self.is_full_with(free(&self.dir))
    }

    /// Whether the store is full, given this many free bytes. Nothing may have been put since space
    /// was freed, so enough free bytes reset it.
    fn is_full_with(&self, free: Option<u64>) -> bool {
        if self.is_noted() && free.is_some_and(|free| free >= ROOM_BYTES) {
            self.note(Put::Batch, None);
            self.note(Put::Blob, None);
        }
        self.is_noted()
    }

    fn is_noted(&self) -> bool {
        [Put::Batch, Put::Blob].into_iter().any(|put| self.flag(put).load(Ordering::Relaxed))
    }

    const fn flag(&self, put: Put) -> &AtomicBool {
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
        assert!(!fullness.is_full_with(Some(0)), "nothing was refused");
        fullness.note(Put::Blob, Some(Shortage::Space));
        fullness.note(Put::Batch, None);
        assert!(fullness.is_full_with(Some(ROOM_BYTES - 1)), "a small event says nothing of blobs");
        fullness.note(Put::Blob, None);
        assert!(!fullness.is_full_with(Some(0)));
        fullness.note(Put::Batch, Some(Shortage::Space));
        assert!(fullness.is_full_with(None));
        assert!(!fullness.is_full_with(Some(ROOM_BYTES)));
        assert!(!fullness.is_full_with(Some(0)), "there was room meanwhile");
    }
}
