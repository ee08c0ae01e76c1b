//! Blobs: content-addressed bytes in pack files. A blob is staged, can be found after the next
//! [`Blobs::flush`] and is durable after the next [`Blobs::sync`]. Knows nothing of frames; a
//! caller that refers to a blob stages it first.
//!
//! A pack goes through three stages: open (entries are appended, a table in memory finds them),
//! full (waiting), sealed (found through `.pidx`). It is sealed as a new generation, compressed and
//! verified; or, while many blobs arrive, as written, and compressed later.

mod ahead;
mod beside;
mod blocks;
mod build;
mod check;
mod entry;
mod error;
mod found;
mod headers;
mod incoming;
mod keeper;
mod mend;
mod open_pack;
mod packs;
mod prepared;
mod rate;
mod reader;
mod recover;
mod run;
mod save;
mod seal;
mod sealed;
mod slots;
mod stage;
mod sweep;
#[cfg(test)]
mod tests;
mod trail;
mod undurable;
mod walk;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

pub(crate) use ahead::Wanted;
pub(crate) use check::{BadEntry, LookedAt, PackView, check_pack_file, pack_entries};
use error::Unusable;
pub(crate) use error::{BlobError, StageError};
pub(crate) use incoming::Incoming;
pub(crate) use prepared::Prepared;
pub use reader::BlobReader;
pub(crate) use run::Bodies;
pub(crate) use save::{find_pack_salt, save_pack};
pub(crate) use sealed::TOUCH_MS;

use crate::env::Env;
use crate::error::{Corruption, ReadOnlyReason};
use crate::format::pack::CHUNK_LEN;
use crate::format::super_file::FileKey;
use crate::io_error::IoError;
use crate::planted::{Bug, is_planted};
use crate::value::BlobHash;
use crate::worker::Worker;
use beside::{Asked, Beside};
use found::FoundBlob;
use keeper::Keeper;
use open_pack::OpenPack;
use packs::Packs;
use stage::Writing;
use sweep::Sweeps;
pub(crate) use sweep::{Condemned, Group, Hurry, Marker, Sweep, SweepError, Tally};
pub(crate) use undurable::Undurable;

/// The blobs of a store. Dropped without [`close`](Self::close) it leaves the files as after a
/// crash.
#[derive(Debug)]
pub(crate) struct Blobs {
    shared: Arc<Shared>,
    thread: Worker,
    trouble: Option<ReadOnlyReason>,
    dropped: Vec<Corruption>,
}

#[derive(Debug)]
struct Shared {
    env: Arc<Env>,
    packs: Packs,
    writing: Mutex<Writing>,
    keeper: Keeper,
    /// Whether blobs may be put. A put holds it shared, as no put may write anything once the store
    /// is closed.
    open: RwLock<bool>,
    beside: Beside,
    number: AtomicU64,
    /// Collected entries are not written yet. Changed only under `writing`.
    staged: AtomicBool,
    /// Why nothing more is stored, once a write or sync has failed.
    failed: OnceLock<IoError>,
    sweeps: Sweeps,
}

impl Blobs {
    /// Opens the packs of a store. `clean` means that it was closed cleanly; otherwise unsealed
    /// packs are recovered first.
    ///
    /// # Errors
    /// [`BlobError::Io`] when a system call fails. Damage is not an error here;
    /// [`trouble`](Self::trouble) reports it.
    pub(crate) fn open(env: Arc<Env>, clean: bool) -> Result<Self, BlobError> {
        let opened = recover::open(&env, clean)?;
        let packs = Packs::default();
        packs.change(|list| *list = opened.list);
        let shared = Arc::new(Shared {
            env,
            packs,
            writing: Mutex::default(),
            keeper: Keeper::default(),
            open: RwLock::new(true),
            beside: Beside::default(),
            number: AtomicU64::new(opened.number),
            staged: AtomicBool::new(false),
            failed: OnceLock::new(),
            sweeps: Sweeps::default(),
        });
        shared.choose_active();
        if opened.trouble.is_some() {
            // Sealing a damaged pack again would hide the damage.
            shared.keeper.stop();
        }
        let (run, failed) = (Arc::clone(&shared), Arc::clone(&shared));
        let on_panic = move || {
            failed.fail(&io::Error::other("the thread xs-packs has panicked"));
            failed.keeper.stop();
        };
        let thread = Worker::default();
        let started = thread.start("xs-packs", move || keeper::run(&run), on_panic);
        started.map_err(|error| BlobError::io(&shared.env.blob_dir(), error))?;
        Ok(Self { shared, thread, trouble: opened.trouble, dropped: opened.dropped })
    }

    /// The fault found on open that should keep the store read-only.
    pub(crate) const fn trouble(&self) -> Option<&ReadOnlyReason> {
        self.trouble.as_ref()
    }

    /// Places in packs that were not closed cleanly where something did not verify, torn or
    /// damaged, and was left out.
    pub(crate) fn dropped(&self) -> &[Corruption] {
        &self.dropped
    }

    /// Hashes a blob, and compresses it if it is long: the expensive part of storing it, which
    /// needs no lock.
    ///
    /// # Errors
    /// [`BlobError::Io`] when a pack cannot be read to check whether it has the blob.
    pub(crate) fn prepare(&self, bytes: &Bytes) -> Result<Prepared, BlobError> {
        let hash = BlobHash::of(bytes);
        if bytes.len() < CHUNK_LEN {
            return Ok(Prepared::small(hash, bytes.clone()));
        }
        let there = self.shared.look_through(&hash)?;
        if there == Some(true) {
            return Ok(Prepared::known(hash, bytes.len() as u64, Some(bytes.clone())));
        }
        let failed = |error| BlobError::io(&self.shared.env.blob_dir(), error);
        Ok(Prepared::long(hash, bytes.clone()).map_err(failed)?.rotten(there == Some(false)))
    }

    /// Stages blobs of records that are about to be written: they can be found after the next
    /// [`flush`](Self::flush) and are durable after the next sync. Blobs taken before a failure
    /// stay staged.
    ///
    /// # Errors
    /// [`StageError`]; only [`StageError::Failed`] leaves anything in doubt.
    pub(crate) fn stage(&self, blobs: &[Prepared]) -> Result<(), StageError> {
        if blobs.is_empty() { Ok(()) } else { self.shared.stage(blobs) }
    }

    /// Writes what was staged.
    ///
    /// # Errors
    /// The system's error; the content of the packs is then in doubt.
    pub(crate) fn flush(&self) -> io::Result<()> {
        self.shared.flush_staged()
    }

    /// Prefetches the memory that staging these blobs will access.
    pub(crate) fn prefetch<'a>(&self, blobs: impl Iterator<Item = &'a Prepared> + Clone) {
        self.shared.prefetch(blobs);
    }

    /// Stores a blob that no record names yet: it can be found when this returns, and is durable
    /// after the next sync.
    ///
    /// # Errors
    /// [`StageError`].
    pub(crate) fn put(&self, blob: &Prepared) -> Result<(), StageError> {
        self.shared.put(blob)
    }

    /// Starts a blob whose bytes are still to arrive.
    pub(crate) fn incoming(&self) -> Incoming {
        Incoming::new(Arc::clone(&self.shared))
    }

    /// Length of a blob, if it exists.
    ///
    /// # Errors
    /// [`BlobError`] when that cannot be determined.
    pub(crate) fn len_of(&self, hash: &BlobHash) -> Result<Option<u64>, BlobError> {
        self.shared.packs.find(hash, |found| Ok(found.len()))
    }

    /// Whether a blob exists.
    pub(crate) fn contains(&self, hash: &BlobHash) -> bool {
        self.len_of(hash).is_ok_and(|len| len.is_some())
    }

    /// Whether a sound copy of a blob exists; reads all of it.
    pub(crate) fn contains_sound(&self, hash: &BlobHash) -> bool {
        self.shared.packs.find(hash, |found| found.reader()?.check()).is_ok_and(|one| one.is_some())
    }

    /// A reader of a blob, if it exists.
    ///
    /// # Errors
    /// [`BlobError`] when no copy of it can be read intact.
    pub(crate) fn get(&self, hash: &BlobHash) -> Result<Option<BlobReader>, BlobError> {
        self.shared.packs.find(hash, FoundBlob::reader)
    }

    /// The whole blob of a frame of a topic: as [`get`](Self::get), but faster for sequential reads
    /// of the log or of the topic.
    ///
    /// # Errors
    /// As for [`get`](Self::get), and [`BlobError::TooLong`] beyond `max` bytes.
    pub(crate) fn body(
        &self,
        topic: &str,
        hash: &BlobHash,
        max: u64,
    ) -> Result<Option<Bytes>, BlobError> {
        Bodies::one(&self.shared.packs).next(|| topic, hash, max)
    }

    /// A reader of the blobs of many frames, as [`body`](Self::body) for each.
    pub(crate) fn bodies(&self) -> Bodies<'_> {
        Bodies::many(&self.shared.packs)
    }

    /// Ends the active pack and waits until all are sealed.
    #[cfg(test)]
    pub(crate) fn seal_all(&self) {
        self.shared.seal_all().unwrap();
    }

    /// Waits until all packs but the active one are sealed.
    #[cfg(test)]
    pub(crate) fn wait_sealed(&self) {
        self.shared.keeper.wait_sealed(&self.shared.packs).unwrap();
    }

    /// The key and the published length of each unsealed pack.
    pub(crate) fn open_packs(&self) -> Vec<(FileKey, u64)> {
        let line = |pack: &Arc<open_pack::OpenPack>| {
            let line = pack.line();
            (line.key(), line.length)
        };
        self.shared.packs.list().open.iter().map(line).collect()
    }

    /// Bytes of blobs stored so far.
    pub(crate) fn taken(&self) -> u64 {
        self.shared.keeper.taken()
    }

    /// Whether anything written is not durable.
    pub(crate) fn needs_sync(&self) -> bool {
        self.shared.packs.list().open.iter().any(|pack| pack.needs_sync())
    }

    /// Makes everything written durable.
    ///
    /// # Errors
    /// The system's error; nothing more is stored then.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.shared.sync()
    }

    /// Makes everything written durable in the packs, including what so far only the journal made
    /// durable.
    ///
    /// # Errors
    /// As for [`sync`](Self::sync).
    pub(crate) fn settle(&self) -> io::Result<()> {
        self.shared.settle()
    }

    /// The part of the packs that is not durable, if it is at most `max` bytes and can be read.
    pub(crate) fn undurable(&self, max: u64) -> Option<Undurable> {
        Undurable::of(&self.shared.packs.list().open, max)
    }

    /// Runs `work`, which syncs other files, while another thread syncs the packs, if they need it.
    ///
    /// # Errors
    /// That of `work` or of the packs.
    pub(crate) fn sync_beside(&self, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        if !self.needs_sync() {
            return work();
        }
        let asked = self.shared.beside.ask(&self.shared);
        let done = work();
        let packs = asked.map_or_else(|| self.sync(), Asked::wait);
        packs.and(done)
    }

    /// Ends background work, makes everything durable and records in the manifest where each
    /// unsealed pack ends. Nothing is stored any more.
    ///
    /// # Errors
    /// The system's error, or that an earlier write failed.
    pub(crate) fn close(&self) -> io::Result<()> {
        self.stop();
        let mut writing = self.shared.writing.lock();
        writing.closed = true;
        self.shared.check_failed()?;
        // The last group wrote what it had staged; what a panicking group staged belongs to no
        // record.
        self.settle()?;
        let list = self.shared.packs.list();
        self.shared.env.manifest.update(|state| {
            // The log is synced already. The copy of the manifest that is written here is the older
            // one after the close, and must not miss the journal that is deleted then.
            state.journal = 0;
            for pack in &list.open {
                let line = pack.line();
                if let Some(file) = state.files.iter_mut().find(|file| file.key() == line.key()) {
                    *file = line;
                }
            }
        })
    }

    /// Waits for blobs that are being put and ends background work: from now on only staging
    /// changes anything.
    pub(crate) fn stop(&self) {
        *self.shared.open.write() = false;
        self.shared.keeper.stop();
        self.shared.beside.stop();
        self.thread.join();
    }
}

impl Drop for Blobs {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    /// Chooses the active pack: the newest one that has blobs; a prepared one stays the spare.
    fn choose_active(&self) {
        let list = self.packs.list();
        let (mut writing, mut spare) = (self.writing.lock(), None);
        for pack in list.open.iter().filter(|pack| !pack.is_full()) {
            if pack.is_empty() {
                spare = Some(pack);
            } else if writing.active.is_none() {
                writing.go_on_in(Arc::clone(pack), 0);
            } else {
                pack.set_full();
            }
        }
        if let Some(spare) = spare {
            self.keeper.put_spare(Arc::clone(spare));
        }
    }

    /// Makes everything written durable.
    fn sync(&self) -> io::Result<()> {
        self.settle_those(OpenPack::needs_sync)
    }

    /// Makes everything written durable in the packs.
    fn settle(&self) -> io::Result<()> {
        self.settle_those(OpenPack::is_unsettled)
    }

    fn settle_those(&self, which: impl Fn(&OpenPack) -> bool) -> io::Result<()> {
        for pack in self.packs.list().open.iter().filter(|pack| which(pack)) {
            pack.settle().inspect_err(|error| self.fail(error))?;
        }
        Ok(())
    }

    fn next_number(&self) -> u64 {
        self.number.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Whether a blob exists, as far as the search is worthwhile, and if so whether it can be read
    /// to its end.
    fn look_through(&self, hash: &BlobHash) -> Result<Option<bool>, BlobError> {
        match self.packs.find_copy(hash, |found| found.reader()?.check().map(Some)) {
            Ok(found) => Ok(found.map(|()| true)),
            Err(error) if error.is_corrupt() => Ok(Some(is_planted(Bug::BelieveRotten))),
            Err(error) => Err(error),
        }
    }

    /// Records that a write failed; the first failure is kept.
    fn fail(&self, error: &io::Error) {
        self.failed.get_or_init(|| error.into());
    }

    /// Fails with the first failure of a write or sync.
    fn check_failed(&self) -> io::Result<()> {
        self.failed.get().map_or(Ok(()), |why| Err(why.clone().into()))
    }

    fn usable(&self, closed: bool) -> Result<(), Unusable> {
        match (self.failed.get(), closed) {
            (Some(why), _) => Err(Unusable::Failed(why.clone())),
            (None, true) => Err(Unusable::Closed),
            (None, false) => Ok(()),
        }
    }
}
