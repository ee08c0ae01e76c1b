//! Sweeping: removes unwanted blobs from packs by rewriting the packs without them. It runs
//! alongside everything else and changes no valid file until the next generation is complete.
//!
//! A blob that is about to be named is not lost. An append checks, under the writer's lock, whether
//! the packs have it, and publishes the record that names it before it releases the lock. A sweep
//! takes that lock too, reads the names published since its last read, and only then removes the
//! old packs from the list. So there are two cases:
//!
//! - The name was published first: the sweep sees it and leaves the pack alone.
//! - The list changed first: the append no longer finds the blob, and writes a copy or fails
//!   because there is none.
//!
//! The manifest is updated later, without the lock: until then the old packs, which have
//! everything, count.
//!
//! A put comes before any name. When it finds its blob stored it marks the pack as touched, under
//! the staging lock. A sweep with a grace period checks the mark under the same lock, and skips
//! packs touched within that period.

mod marks;
mod plan;
mod press;
mod rewrite;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::error::{BlobError, Unusable};
use super::recover::remove_dropped;
use super::sealed::{Opened, SealedPack};
use super::{Blobs, Shared};
use crate::error::{Corruption, Shortage};
use crate::format::super_file::{FileEntry, FileState};
use crate::io_error::IoError;
use crate::media::is_full;
use crate::planted::{Bug, is_planted};
use crate::value::BlobHash;
pub(crate) use marks::Marker;
use marks::{Marked, Target};
pub(crate) use plan::{Group, Tally};
pub(crate) use rewrite::Rewritten;

/// How long a throttled sweep sleeps between checks of the stop flag.
const NAP: Duration = Duration::from_millis(20);

/// A replaced pack, while it has users, and its entry in the manifest.
type Leaving = (Weak<dyn Debug + Send + Sync>, FileEntry);

/// State shared by all sweeps of a store.
#[derive(Debug, Default)]
pub(super) struct Sweeps {
    /// Held by the running sweep: there is one at a time.
    one: Mutex<()>,
    /// Number of sweeps that wait for their turn.
    waiting: AtomicUsize,
    stop: AtomicBool,
    /// Replaced packs whose files are deleted once their last user drops them. Only the running
    /// sweep uses this.
    leaving: Mutex<Vec<Leaving>>,
    /// Bytes by which packs became shorter.
    freed: AtomicU64,
}

/// Asks whether a throttled sweep should go on without pauses.
#[derive(Clone, Copy)]
pub(crate) struct Hurry<'a>(pub(crate) &'a dyn Fn() -> bool);

impl Debug for Hurry<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hurry")
    }
}

/// What a sweep removes.
#[derive(Debug)]
pub(crate) enum Condemned {
    /// Blobs that nothing names, from packs into which nothing was put for `grace_ms` milliseconds,
    /// and of whose bytes at least `dead_percent` percent are dead.
    Unnamed { grace_ms: u64, dead_percent: u8 },
    /// These blobs, unless something names them.
    These(BTreeSet<BlobHash>),
}

/// Why a sweep ended early. What it did before stands, and nothing is lost.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SweepError {
    /// The store is being closed.
    #[error("the store is being closed")]
    Stopped,
    /// There is no space.
    #[error("no room for packs: {0}")]
    Full(Shortage),
    /// A pack cannot be read, or its next generation cannot be written.
    #[error(transparent)]
    Read(BlobError),
    /// The manifest could not be written: the state on disk is unknown.
    #[error("writing packs failed: {0}")]
    Failed(io::Error),
}

impl From<&SweepError> for IoError {
    fn from(error: &SweepError) -> Self {
        match error {
            SweepError::Full(shortage) => Self::from(*shortage).described(error),
            SweepError::Failed(cause) => Self::from(cause).described(error),
            SweepError::Stopped | SweepError::Read(_) => Self::other(error),
        }
    }
}

impl SweepError {
    fn of(error: BlobError) -> Self {
        match error {
            BlobError::Io { path, error } => match Shortage::of(&error) {
                Some(shortage) => Self::Full(shortage),
                None => Self::Read(BlobError::Io { path, error }),
            },
            other => Self::Read(other),
        }
    }
}

impl From<Unusable> for SweepError {
    fn from(why: Unusable) -> Self {
        match why {
            Unusable::Failed(why) => Self::Failed(why.into()),
            Unusable::Closed => Self::Stopped,
        }
    }
}

/// A running sweep.
#[derive(Debug)]
pub(crate) struct Sweep<'a> {
    shared: &'a Shared,
    _one: MutexGuard<'a, ()>,
    bytes_per_second: Option<u64>,
    hurry: Option<Hurry<'a>>,
    began: Instant,
    passed: AtomicU64,
}

/// Packs that were removed from the list and are still in the manifest.
#[derive(Debug)]
pub(crate) struct Switched {
    old: Vec<Arc<SealedPack>>,
    new: Option<Arc<SealedPack>>,
}

impl Blobs {
    /// Starts a sweep; waits for another one to end.
    pub(crate) fn sweep(&self, bytes_per_second: Option<u64>) -> Sweep<'_> {
        let shared = &*self.shared;
        shared.sweeps.waiting.fetch_add(1, Ordering::Relaxed);
        let one = shared.sweeps.one.lock();
        shared.sweeps.waiting.fetch_sub(1, Ordering::Relaxed);
        Sweep::new(shared, one, bytes_per_second)
    }

    /// Bytes of files by which sweeps made packs shorter.
    pub(crate) fn freed(&self) -> u64 {
        self.shared.sweeps.freed.load(Ordering::Relaxed)
    }

    /// Bytes of all packs, as far as they are written.
    pub(crate) fn pack_bytes(&self) -> u64 {
        let list = self.shared.packs.list();
        let sealed = list.sealed.iter().map(|pack| pack.line().length);
        let open = list.open.iter().filter(|pack| !pack.is_empty());
        sealed.chain(open.map(|pack| pack.line().length)).sum()
    }

    /// The newest pack that is written to and has blobs, by its number: until it is sealed most
    /// sweeps leave it alone.
    pub(crate) fn newest_open(&self) -> Option<u64> {
        let list = self.shared.packs.list();
        list.open.iter().find(|pack| !pack.is_empty()).map(|pack| pack.line().base)
    }

    /// Whether a pack is written to.
    pub(crate) fn is_open(&self, number: u64) -> bool {
        self.shared.packs.list().open.iter().any(|pack| pack.line().base == number)
    }

    /// Whether a replaced pack has no user any more, and is still in the manifest or on disk.
    pub(crate) fn is_untidy(&self) -> bool {
        let leaving = self.shared.sweeps.leaving.lock();
        leaving.iter().any(|(pack, _)| pack.strong_count() == 0)
    }

    /// Tells a running sweep to end, and prevents new ones.
    pub(crate) fn stop_sweeps(&self) {
        self.shared.sweeps.stop.store(true, Ordering::Release);
    }

    /// Tells a running sweep to end, prevents new ones, and waits for it.
    pub(crate) fn end_sweeps(&self) {
        self.stop_sweeps();
        drop(self.shared.sweeps.one.lock());
    }
}

impl<'a> Sweep<'a> {
    fn new(shared: &'a Shared, one: MutexGuard<'a, ()>, bytes_per_second: Option<u64>) -> Self {
        let passed = AtomicU64::new(0);
        let (hurry, began) = (None, Instant::now());
        Self { shared, _one: one, bytes_per_second, hurry, began, passed }
    }

    /// The same, without pauses while it is asked to hurry.
    pub(crate) fn hurried_by(self, hurry: Option<Hurry<'a>>) -> Self {
        Self { hurry, ..self }
    }
}

impl Sweep<'_> {
    /// Seals the packs that are written to, so that they can be swept.
    pub(crate) fn seal_all(&self) -> Result<(), SweepError> {
        let open: Vec<_> = self.shared.packs.list().open.clone();
        self.shared.seal_all()?;
        let list = self.shared.packs.list();
        let mut leaving = self.shared.sweeps.leaving.lock();
        for pack in open {
            let line = pack.line();
            let same = |new: &&Arc<SealedPack>| new.line().base == line.base;
            if list.sealed.iter().find(same).is_some_and(|new| new.line().uuid != line.uuid) {
                let pack: Arc<dyn Debug + Send + Sync> = pack;
                leaving.push((Arc::downgrade(&pack), line));
            }
        }
        Ok(())
    }

    /// Examines the sealed packs and, with `open`, those that are written to. Initially every blob
    /// is marked as wanted, or none, by `wanted`. Also returns the damage of packs that cannot be
    /// examined.
    pub(crate) fn examine(
        &self,
        open: bool,
        wanted: bool,
    ) -> Result<(Marker, Vec<Corruption>), SweepError> {
        let list = self.shared.packs.list();
        let (mut marker, mut unread) = (Marker::new(), Vec::new());
        let mut add = |target, newest_ms, opened: Result<Arc<Opened>, BlobError>| match opened {
            Ok(opened) => {
                marker.add(target, newest_ms, &opened, wanted);
                Ok(())
            }
            Err(BlobError::Corrupt(corruption)) => {
                unread.push(corruption);
                Ok(())
            }
            Err(error) => Err(SweepError::Read(error)),
        };
        for pack in &list.sealed {
            let opened = self.shared.packs.opened(&list, pack);
            let opened = opened.and_then(|opened| pack.indexed(&opened));
            add(Target::Sealed(Arc::clone(pack)), pack.newest_ms(), opened)?;
        }
        for pack in list.open.iter().filter(|pack| open && !pack.is_empty()) {
            let env = &self.shared.env;
            let opened = Opened::of_open(env, pack.media(), pack.salt(), &pack.line());
            match opened.map(Arc::new) {
                Ok(opened) => {
                    let target = Target::Open(Arc::clone(pack), Arc::clone(&opened));
                    add(target, env.clock.now_ms(), Ok(opened))?;
                }
                Err(error) => return Err(SweepError::of(error)),
            }
        }
        Ok((marker, unread))
    }

    /// Adds a name, and compares the collected names with the packs when there are many.
    pub(crate) fn name(&self, marker: &mut Marker, hash: &BlobHash) -> Result<(), SweepError> {
        if marker.name(hash) { self.take_names(marker) } else { Ok(()) }
    }

    /// Compares the collected names with the packs.
    pub(crate) fn take_names(&self, marker: &mut Marker) -> Result<(), SweepError> {
        self.check_stop()?;
        marker.take(self.shared, true)
    }

    /// Marks blobs as unwanted, before names are added.
    pub(crate) fn condemn(
        &self,
        marker: &mut Marker,
        hashes: &BTreeSet<BlobHash>,
    ) -> Result<(), SweepError> {
        for hash in hashes {
            marker.name(hash);
        }
        marker.take(self.shared, false)
    }

    /// Replaces a group by its new generation, unless one of its condemned blobs is wanted by now.
    /// The caller holds the writer's lock and has added all published names.
    pub(crate) fn switch(
        &self,
        marker: &mut Marker,
        group: &Group,
        new: &Rewritten,
        condemned: &Condemned,
    ) -> Result<Option<Switched>, SweepError> {
        self.take_names(marker)?;
        let shared = self.shared;
        let mut writing = shared.writing.lock();
        shared.usable(writing.closed)?;
        let now_ms = shared.env.clock.now_ms();
        let packs: Vec<&Marked> =
            group.numbers.iter().filter_map(|number| marker.packs.get(number)).collect();
        let mut old = Vec::with_capacity(packs.len());
        for marked in packs {
            let Target::Sealed(pack) = &marked.target else { return Ok(None) };
            let touched = pack.newest_ms() != marked.newest_ms;
            let spared = touched && condemned.spares(pack.newest_ms(), now_ms);
            if marked.is_wanted_again() || spared {
                return Ok(None);
            }
            old.push(Arc::clone(pack));
        }
        let newest = old.iter().map(|pack| pack.newest_ms()).max().unwrap_or(0);
        let new = new.0.as_ref().map(|built| {
            let line = FileEntry { newest_ms: newest, ..built.line };
            Arc::new(SealedPack::new(Arc::clone(&shared.env), line))
        });
        shared.packs.change(|list| {
            list.sealed.retain(|pack| !old.iter().any(|old| Arc::ptr_eq(old, pack)));
            list.sealed.extend(new.clone());
        });
        writing.forget();
        Ok(Some(Switched { old, new }))
    }

    /// Makes a switch durable and releases the old files. If that fails, the old packs count again.
    pub(crate) fn confirm(
        &self,
        marker: &mut Marker,
        switched: Switched,
    ) -> Result<(), SweepError> {
        let gone: BTreeSet<_> = switched.old.iter().map(|pack| pack.line().base).collect();
        let before = switched.old.iter().map(|pack| pack.line().length).sum::<u64>();
        let after = switched.new.as_ref().map_or(0, |pack| pack.line().length);
        self.tell(switched)?;
        self.shared.sweeps.freed.fetch_add(before.saturating_sub(after), Ordering::Relaxed);
        gone.iter().for_each(|number| drop(marker.packs.remove(number)));
        Ok(())
    }

    fn tell(&self, switched: Switched) -> Result<(), SweepError> {
        let Switched { old, new } = switched;
        let shared = self.shared;
        if is_planted(Bug::UnlinkBeforeConfirm) {
            let lines = old.iter().map(|pack| pack.line());
            lines.for_each(|line| drop(remove_dropped(&shared.env, line)));
        }
        let updated = shared.env.manifest.update(|state| {
            let kept = new.as_ref().map(|new| new.line().base);
            let is_old = |file: &FileEntry| old.iter().any(|pack| pack.line().key() == file.key());
            state.files.retain(|file| !(is_old(file) && Some(file.base) == kept));
            for file in state.files.iter_mut().filter(|file| is_old(file)) {
                file.state = FileState::Dropped;
            }
            state.files.extend(
                new.as_ref().map(|new| FileEntry { newest_ms: new.newest_ms(), ..*new.line() }),
            );
        });
        if let Err(error) = updated {
            shared.packs.change(|list| {
                list.sealed.retain(|pack| !new.as_ref().is_some_and(|new| Arc::ptr_eq(new, pack)));
                list.sealed.extend(old.iter().cloned());
            });
            if let Some(new) = &new {
                // After the list changed back, or a later put could still find its blob in the new
                // pack.
                old.iter().for_each(|pack| pack.touched_in(new));
            }
            // A thread that holds the lock notices the change by the list's version, and may be
            // waiting for this very thread.
            if let Some(mut writing) = shared.writing.try_lock() {
                writing.forget();
            }
            if let Some(shortage) = Shortage::of(&error) {
                if let Some(new) = new {
                    new.abandon();
                }
                return Err(SweepError::Full(shortage));
            }
            shared.fail(&error);
            return Err(SweepError::Failed(error));
        }
        let mut leaving = shared.sweeps.leaving.lock();
        for pack in old {
            pack.retire();
            let line = *pack.line();
            let pack: Arc<dyn Debug + Send + Sync> = pack;
            leaving.push((Arc::downgrade(&pack), line));
        }
        Ok(())
    }

    /// Removes packs from the manifest whose files are deleted. With `wait`, that is all of them:
    /// it waits for lookups in them. The file of a blob that is being streamed is unlinked, and its
    /// bytes are freed when the stream ends.
    pub(crate) fn tidy(&self, wait: bool) -> Result<(), SweepError> {
        let shared = self.shared;
        let leaving = &shared.sweeps.leaving;
        // Polled without holding the lock: dropping a pack may one day need it.
        while wait && leaving.lock().iter().any(|(pack, _)| pack.strong_count() > 0) {
            self.check_stop()?;
            std::thread::sleep(Duration::from_millis(1));
        }
        let is_gone = |(pack, _): &mut Leaving| pack.strong_count() == 0;
        let gone: Vec<_> = leaving.lock().extract_if(.., is_gone).collect();
        if gone.is_empty() {
            return Ok(());
        }
        let failed = |error: io::Error| {
            let dir = shared.env.blob_dir();
            SweepError::of(BlobError::io(&dir, error))
        };
        // The last user may be about to delete them too. What cannot be deleted is tried again.
        let (mut deleted, mut refused) = (Vec::new(), None);
        for (pack, line) in gone {
            match remove_dropped(&shared.env, &line) {
                Ok(()) => deleted.push((pack, line)),
                Err(error) => {
                    leaving.lock().push((pack, line));
                    refused.get_or_insert(error);
                }
            }
        }
        let gone = deleted;
        if let Err(error) = shared.env.files.sync_dir(&shared.env.blob_dir()) {
            leaving.lock().extend(gone);
            return Err(failed(refused.unwrap_or(error)));
        }
        self.forget(gone)?;
        refused.map_or(Ok(()), |error| Err(failed(error)))
    }

    /// Removes deleted packs from the manifest.
    fn forget(&self, gone: Vec<Leaving>) -> Result<(), SweepError> {
        let shared = self.shared;
        let same = |file: &FileEntry| {
            file.state == FileState::Dropped
                && gone.iter().any(|(_, line)| line.key() == file.key())
        };
        if !shared.env.manifest.state().files.iter().any(same) {
            return Ok(());
        }
        match shared.env.manifest.update(|state| state.files.retain(|file| !same(file))) {
            Ok(()) => Ok(()),
            // Tried again, if not by the next open.
            Err(error) if is_full(&error) => {
                shared.sweeps.leaving.lock().extend(gone);
                Ok(())
            }
            Err(error) => {
                shared.fail(&error);
                Err(SweepError::Failed(error))
            }
        }
    }

    /// Pretends that there is a pack with these blobs.
    #[cfg(test)]
    pub(crate) fn pretend_pack(
        &self,
        marker: &mut Marker,
        contents: &crate::format::pack_index::Contents,
    ) {
        let pack = super::open_pack::OpenPack::create(&self.shared.env, 1 << 40, false).unwrap();
        let opened = Opened::pretend(&self.shared.env, &pack, contents);
        let target = Target::Open(Arc::new(pack), Arc::new(opened));
        let Target::Open(_, opened) = &target else { return };
        let opened = Arc::clone(opened);
        marker.add(target, 0, &opened, false);
    }

    /// Number of unwanted blobs.
    #[cfg(test)]
    pub(crate) fn dead(&self, marker: &Marker) -> usize {
        marker.packs.values().map(Marked::dead).sum()
    }

    /// Fails if the sweep must stop.
    pub(crate) fn check_stop(&self) -> Result<(), SweepError> {
        match self.shared.sweeps.stop.load(Ordering::Acquire) {
            true => Err(SweepError::Stopped),
            false => Ok(()),
        }
    }

    /// Whether it is asked to hurry.
    pub(crate) fn is_hurried(&self) -> bool {
        self.hurry.is_some_and(|Hurry(asked)| asked())
    }

    /// Accounts for bytes read, and sleeps when they exceed the rate.
    pub(crate) fn pass(&self, bytes: u64) -> Result<(), SweepError> {
        self.check_stop()?;
        let passed = self.passed.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let Some(rate) = self.bytes_per_second else { return Ok(()) };
        let due = Duration::from_secs_f64(passed as f64 / rate as f64);
        while let Some(early) = due.checked_sub(self.began.elapsed()).filter(|e| !e.is_zero())
            && !self.is_hurried()
        {
            std::thread::sleep(early.min(NAP));
            self.check_stop()?;
        }
        Ok(())
    }
}
