//! Whether a store has room: told by what it refused last, as a disk with a few bytes left takes a
//! small event and no blob. What the log, `/readyz`, the metrics and `doctor` say comes from here.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use xs_engine::Shortage;

/// Free bytes with which a store that was full is taken to have room again: a segment's worth.
const ROOM_BYTES: u64 = 64 * 1024 * 1024;

/// What is put into a store.
#[derive(Debug, Clone, Copy)]
pub(super) enum Put {
    /// A batch, with the bodies that came in it.
    Batch,
    /// A blob that was uploaded.
    Blob,
}

/// What found too little room and has not been stored since.
#[derive(Debug, Default)]
pub(crate) struct Fullness {
    dir: PathBuf,
    batches: AtomicBool,
    blobs: AtomicBool,
}

impl Fullness {
    /// That of the store in a directory.
    pub(crate) fn of(dir: PathBuf) -> Self {
        Self { dir, ..Self::default() }
    }

    /// Something was stored, or refused for want of what it says.
    pub(super) fn note(&self, put: Put, refused: Option<Shortage>) {
        let flag = self.flag(put);
        // Stored batches are many: the flag is written when it changes.
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

    /// The same with so many free bytes. Nobody may have put anything since there is room again.
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
