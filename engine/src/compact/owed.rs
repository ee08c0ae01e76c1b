//! Removals whose frames are gone for readers, while the disk had no room to write the files anew
//! that hold their bytes. Without this they would stay until somebody repeats the removal, or so
//! much else dies that the files are rewritten anyway. Kept in memory: an open forgets them, and
//! whoever asked was told that the removal is not complete.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::CompactReport;
use super::thread::rest;
use crate::error::RemoveNowError;
use crate::store::Inner;
use crate::value::BlobHash;

/// Maximum frames that are remembered.
const OWED_MAX: usize = 65_536;

/// A removed frame: its offset and body.
pub(super) type Stored = (u64, Option<BlobHash>);

/// The removals that are not complete.
#[derive(Debug, Default)]
pub(crate) struct Owed(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    frames: BTreeMap<u64, Option<BlobHash>>,
    /// No attempt is made before.
    rests_until: Option<Instant>,
}

impl Owed {
    /// The number of frames.
    pub(crate) fn len(&self) -> usize {
        self.0.lock().frames.len()
    }

    /// Notes how removing the bytes of these frames went.
    fn note(&self, stored: &[Stored], is_full: bool) {
        let mut state = self.0.lock();
        for &(offset, body) in stored {
            match is_full {
                true if state.frames.len() < OWED_MAX => drop(state.frames.insert(offset, body)),
                true => {}
                false => drop(state.frames.remove(&offset)),
            }
        }
    }

    fn rest(&self, time: Duration) {
        self.0.lock().rests_until = Some(Instant::now() + time);
    }

    fn is_due(&self) -> bool {
        let state = self.0.lock();
        !state.frames.is_empty() && state.rests_until.is_none_or(|until| Instant::now() >= until)
    }

    fn frames(&self) -> Vec<Stored> {
        self.0.lock().frames.iter().map(|(&offset, &body)| (offset, body)).collect()
    }
}

impl Inner {
    /// Rewrites the files that hold removed frames and their bodies, and erases the journal. If
    /// there is no room, that is tried again later. The caller blocks compaction.
    pub(super) fn remove_bytes(&self, stored: &[Stored]) -> Result<CompactReport, RemoveNowError> {
        let done = self.rewrite_without(stored.to_vec());
        let done = done.and_then(|report| Ok(self.wipe_journal().map(|()| report)?));
        self.compaction.owed.note(stored, done.as_ref().is_err_and(RemoveNowError::is_full));
        done
    }

    /// Completes removals for which there was no room, if it is time to try.
    pub(super) fn complete_removals_in_time(&self) {
        if self.compaction.owed.is_due() {
            let began = Instant::now();
            self.complete_removals();
            self.compaction.owed.rest(rest(began.elapsed()));
        }
    }

    /// Completes removals for which there was no room, if there is now.
    pub(super) fn complete_removals(&self) {
        let _one = self.compaction.begin();
        let stored = self.compaction.owed.frames();
        if stored.is_empty() || self.check_compactable().is_err() {
            return;
        }
        // A failure for another reason is final: the next one to remove them is told.
        let _told = self.remove_bytes(&stored);
    }
}
