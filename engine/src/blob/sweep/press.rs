//! Pressing: rewrites a pack, compressed, that was sealed as written because many blobs arrived at
//! the time. It is a sweep that removes nothing, and it gives way to all others.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::Shared;
use super::super::seal::{NotRewritten, rewrite};
use super::super::sealed::SealedPack;
use super::{Sweep, SweepError, Switched};
use crate::format::super_file::FileEntry;

/// How long to wait for a lock before checking whether to stop.
const LOCK_WAIT: Duration = Duration::from_millis(1);

impl Shared {
    /// Replaces the oldest pack that was sealed as written by a compressed one. Returns whether it
    /// did: not when `stop` reports more urgent work, or another sweep runs or waits. A damaged
    /// pack is left unchanged.
    pub(in super::super) fn press(&self, stop: &dyn Fn() -> bool) -> Result<bool, SweepError> {
        let Some(one) = self.sweeps.one.try_lock() else { return Ok(false) };
        let sweep = Sweep::new(self, one, None);
        let list = self.packs.list();
        let oldest = list.sealed.iter().rev().find(|pack| pack.is_plain()).cloned();
        let Some(pack) = oldest else { return Ok(true) };
        let opened = self.packs.opened(&list, &pack);
        // Holding a list would keep the files of packs that are replaced meanwhile.
        drop(list);
        let others = || self.sweeps.waiting.load(Ordering::Relaxed) > 0;
        let stop = || stop() || others() || self.sweeps.stop.load(Ordering::Relaxed);
        let rewritten = opened.map_err(NotRewritten::from).and_then(|opened| {
            let next = pack.next_generation();
            rewrite(&self.env, pack.line(), next, opened.walk(), &stop)
        });
        let built = match rewritten {
            Ok(built) => built,
            Err(NotRewritten::Stopped) => return Ok(false),
            Err(NotRewritten::Failed(error)) => {
                if error.is_corrupt() {
                    pack.leave();
                }
                return Err(SweepError::of(error));
            }
        };
        built.write_index(&self.env);
        // A thread that holds this lock may be waiting until a full pack is sealed, which is done
        // by this thread.
        let writing = loop {
            if stop() {
                break None;
            }
            let writing = self.writing.try_lock_for(LOCK_WAIT);
            if writing.is_some() {
                break writing;
            }
        };
        let forget = || {
            // What remains is removed by the next open.
            let _ = super::remove_dropped(&self.env, &built.line);
        };
        let Some(mut writing) = writing else {
            forget();
            return Ok(false);
        };
        if let Err(error) = self.usable(writing.closed) {
            forget();
            return Err(error.into());
        }
        // Under this lock, as a put may find a blob in the pack and mark the pack as touched.
        let line = FileEntry { newest_ms: pack.newest_ms(), ..built.line };
        let new = Arc::new(SealedPack::new(Arc::clone(&self.env), line));
        self.packs.change(|list| {
            list.sealed.retain(|other| !Arc::ptr_eq(other, &pack));
            list.sealed.push(Arc::clone(&new));
        });
        writing.forget();
        drop(writing);
        sweep.tell(Switched { old: vec![pack], new: Some(new) })?;
        Ok(true)
    }
}

#[cfg(test)]
impl super::super::Blobs {
    /// Seals all packs, and presses those that were sealed as written.
    pub(crate) fn press_all(&self) -> Result<(), SweepError> {
        self.sweep(None).seal_all()?;
        let is_left = || self.shared.packs.list().sealed.iter().any(|pack| pack.is_plain());
        while is_left() {
            self.shared.press(&|| false)?;
        }
        Ok(())
    }
}
