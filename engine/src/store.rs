//! The store: opening and closing, appending, and what its parts share. `read`, `store_blobs`,
//! `remove`, `compact`, `gc` and `maintain` each add their methods to [`Store`].

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};

use crate::append::{Batch, Checks, HashedKey, Pending};
use crate::blob::Blobs;
use crate::commit::{AppendHandle, Commits, Timing, Writer};
use crate::compact::Compaction;
use crate::cursors::{Cursors, HeldCursor, HeldState};
use crate::env::Env;
use crate::error::{AppendError, CloseError, OpenError, ReadError, ReadOnlyReason, Unwritable};
use crate::format::super_file::{EpochStart, FileState};
use crate::index::Index;
use crate::io_error::IoError;
use crate::journal::Journal;
use crate::keys::KeyIndex;
use crate::limits::{CURSOR_STATE_BYTES_MAX, EPOCHS_MAX};
use crate::log::{Log, OpenFiles, Sealing, Segment, SegmentKey, WriteError};
use crate::maintain::Scrub;
use crate::media::{Media, StoreLock};
use crate::names::SEGMENT;
use crate::options::{StoreOptions, SyncPolicy};
use crate::planted::{Bug, is_planted};
use crate::read::Gone;
use crate::recovery::RecoveryReport;
use crate::space::Space;
use crate::tail::Tail;
use crate::upkeep::Upkeep;
use crate::value::{Appended, Cursor, CursorName, CursorSummary, StoreUuid};

/// An open store. Dropping it closes it in order.
#[derive(Debug)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

/// State shared by the parts of an open store. Readers may keep it alive after the store is closed.
///
/// The locks with which others are taken, by the paths of their fields. A thread that holds one
/// takes none above it, and no other of its line but in the order that the line gives:
///
/// 1. `compaction.running`
/// 2. `blobs.shared.sweeps.one`
/// 3. `writer`
/// 4. `sealing.running`
/// 5. `sealing.indexing`, `sealing.spare`
/// 6. `blobs.shared.open`
/// 7. `blobs.shared.writing`
/// 8. `blobs.shared.keeper.chores`, `blobs.shared.packs.open`
/// 9. `keys.open`, before `keys.window` and `keys.sealed`
/// 10. `journal.making`, before `journal.inside`
/// 11. `index.merging`
/// 12. `index.topics`
/// 13. `index.loaded`, `index.leaving.left`, and the `kind` of each segment of the index
/// 14. `env.manifest.writing`
/// 15. `blobs.shared.beside.turn`, before `blobs.shared.beside.thread`
///
/// With the others, the leaves, none of these is taken: `cursors`, `compaction.{state, looked,
/// owed}`, `sealing.{job, unindexed, without_keys}`, `log.segments`, `index.{segments, refused,
/// removed.state}`, `surveyed` and `sorted` of a segment of the index,
/// `blobs.shared.{packs.list, packs.blocks.kept, sweeps.leaving}`, `opened` and `slots` of a pack,
/// `env.{manifest.state, holds.state}`, `tail.{ring, sleep, hooks}`, `gone`, `upkeep.state`,
/// `space.{state, files_left, uploads.state}`, `scrub.state`, `lock`, the handle of a `Worker`, and
/// what `open_files` and `media` hold while they open or sync a file.
///
/// `commits.queue` is held together with the `inside` of a slot only, which is taken second. While
/// `outcome` is set the store takes any of these to close, so who holds one does not close it.
///
/// A thread that writes to packs may wait for the thread that seals them, so the sealing thread
/// never waits for one that writes to packs.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) env: Arc<Env>,
    pub(crate) log: Log,
    pub(crate) index: Index,
    pub(crate) keys: KeyIndex,
    pub(crate) gone: Gone,
    pub(crate) tail: Arc<Tail>,
    pub(crate) blobs: Blobs,
    /// The cursors as readers see them.
    pub(crate) cursors: RwLock<Cursors>,
    pub(crate) commits: Commits,
    pub(crate) writer: Mutex<Writer>,
    pub(crate) sealing: Sealing,
    pub(crate) journal: Journal,
    pub(crate) upkeep: Upkeep,
    pub(crate) scrub: Scrub,
    pub(crate) timing: Timing,
    pub(crate) compaction: Compaction,
    pub(crate) space: Space,
    pub(crate) open_files: Arc<OpenFiles>,
    /// Every batch with a lower seq is durable. Raised only after the syncs that made it so, and
    /// read for each header that is written; see `format::batch`.
    pub(crate) durable_upto: AtomicU64,
    pub(crate) epoch: u64,
    pub(crate) read_only: Option<ReadOnlyReason>,
    pub(crate) report: RecoveryReport,
    /// Why the store accepts no more writes, if so.
    pub(crate) failure: OnceLock<IoError>,
    pub(crate) closed: AtomicBool,
    /// The result of closing the store.
    pub(crate) outcome: OnceLock<Result<(), CloseError>>,
    pub(crate) lock: Mutex<Option<StoreLock>>,
}

/// Statistics and state that a store reports.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreInfo {
    /// Its uuid.
    pub uuid: StoreUuid,
    /// Uuid of the store it was copied from, if it was.
    pub parent: Option<StoreUuid>,
    /// Number of the current opening.
    pub epoch: u64,
    /// Offset of the next frame that readers will see.
    pub head: u64,
    /// When appends are made durable.
    pub sync: SyncPolicy,
    /// Whether it accepts writes.
    pub health: Health,
    /// What opening it found and did.
    pub recovery: RecoveryReport,
    /// Segments of the log.
    pub segments: usize,
    /// Bytes of the log that readers see.
    pub log_bytes: u64,
    /// Cursors.
    pub cursors: usize,
}

/// Whether a store accepts writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Writable,
    /// It is read-only.
    ReadOnly(ReadOnlyReason),
    /// Poisoned: a write failed, for this reason. It stays readable, but takes no writes until it
    /// is reopened.
    Poisoned(IoError),
}

impl Store {
    /// Opens the store in `dir`, or creates one there.
    ///
    /// # Errors
    /// [`OpenError::Locked`] when another process has it open; the other variants name their cause.
    /// A store with damage in acknowledged data opens read-only: see [`StoreInfo::health`].
    pub fn open(dir: impl AsRef<Path>, options: StoreOptions) -> Result<Self, OpenError> {
        let dir = dir.as_ref();
        // A `Store` from here on: if a thread cannot be started, dropping it closes the store,
        // which stops the threads already started and releases the lock.
        let store = Self { inner: Arc::new(crate::recovery::open(dir, options)?) };
        let inner = &store.inner;
        if inner.read_only.is_none() {
            let started = inner.upkeep.start(inner);
            let started = started.and_then(|()| inner.compaction.start(inner));
            started.map_err(|error| OpenError::io("start a thread for", dir, error))?;
        }
        let started = inner.scrub.start(inner);
        started.map_err(|error| OpenError::io("start a thread for", dir, error))?;
        Ok(store)
    }

    /// Closes the store: commits what was submitted, syncs everything appended, and marks the store
    /// clean, so that the next open has nothing to recover. Existing readers keep reading what they
    /// hold. Closing twice is not an error.
    ///
    /// # Errors
    /// [`CloseError`] when that was not possible; the next open then recovers the store.
    pub fn close(&self) -> Result<(), CloseError> {
        self.inner.close()
    }

    /// Returns the store's uuid.
    #[must_use]
    pub fn uuid(&self) -> StoreUuid {
        StoreUuid::from_bytes(self.inner.env.manifest.state().store)
    }

    /// Returns the number of the current opening.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.inner.epoch
    }

    /// Returns the offset of the next frame that readers will see.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.inner.log.head()
    }

    /// Returns when appends are made durable.
    #[must_use]
    pub fn sync_policy(&self) -> SyncPolicy {
        self.inner.env.options.sync
    }

    /// Returns whether the store accepts writes.
    #[must_use]
    pub fn health(&self) -> Health {
        match (&self.inner.read_only, self.inner.failure.get()) {
            (Some(reason), _) => Health::ReadOnly(reason.clone()),
            (None, Some(why)) => Health::Poisoned(why.clone()),
            (None, None) => Health::Writable,
        }
    }

    /// Returns what the store reports about itself, as a snapshot.
    #[must_use]
    pub fn info(&self) -> StoreInfo {
        let inner = &self.inner;
        let manifest = inner.env.manifest.state();
        let view = inner.log.view();
        StoreInfo {
            uuid: StoreUuid::from_bytes(manifest.store),
            parent: StoreUuid::known(manifest.parent),
            epoch: inner.epoch,
            head: view.head,
            sync: self.sync_policy(),
            health: self.health(),
            recovery: inner.report.clone(),
            segments: view.segments.len(),
            log_bytes: view.segments.iter().map(|segment| segment.published_len()).sum(),
            cursors: inner.cursors.read().len(),
        }
    }

    /// Submits a batch. It is committed when this handle or any other one is waited for, when any
    /// thread appends, or when the store is closed.
    pub fn submit(&self, batch: Batch) -> AppendHandle {
        match self.inner.prepare(batch) {
            Ok(pending) => {
                let slot = self.inner.commits.enqueue_slot(pending);
                AppendHandle::queued(Arc::clone(&self.inner), slot)
            }
            Err(error) => AppendHandle::refused(error),
        }
    }

    /// Submits a batch. `done` is called with the result on the thread that commits it, and must
    /// not wait for another append. This is for servers, which may not block where they submit:
    /// nothing is committed before some thread calls [`lead`](Self::lead) or
    /// [`lead_once`](Self::lead_once), appends, or closes the store.
    pub fn submit_with(
        &self,
        batch: Batch,
        done: impl FnOnce(Result<Appended, AppendError>) + Send + 'static,
    ) {
        match self.inner.prepare(batch) {
            Ok(pending) => self.inner.commits.enqueue(pending, done),
            Err(error) => done(Err(error)),
        }
    }

    /// Commits what was submitted, unless another thread is already the leader; returns whether
    /// this call led. It returns when nothing is left to commit, and blocks while it syncs.
    pub fn lead(&self) -> bool {
        self.inner.commits.lead(&self.inner)
    }

    /// Whether one batch is queued, there is no leader, and no other batch is expected: its
    /// submitter then loses least by committing it at once, with [`lead_once`](Self::lead_once).
    #[must_use]
    pub fn waits_alone(&self) -> bool {
        self.inner.commits.waits_alone()
    }

    /// Commits one group of what was submitted, unless another thread is already the leader.
    /// Returns whether nothing is left; if something is, the caller must get some thread to
    /// [`lead`](Self::lead), as nothing else commits it.
    #[must_use = "what is left is committed by nobody who is not told to"]
    pub fn lead_once(&self) -> bool {
        self.inner.commits.lead_once(&self.inner)
    }

    /// Appends a batch and waits for the acknowledgement that the store's policy, or the batch,
    /// asks for.
    ///
    /// # Errors
    /// [`AppendError`]; except for [`AppendError::Indeterminate`], nothing was appended.
    pub fn append(&self, batch: Batch) -> Result<Appended, AppendError> {
        let pending = self.inner.prepare(batch)?;
        self.inner.commits.append(&self.inner, pending)
    }

    /// Returns a cursor with its state.
    ///
    /// # Errors
    /// [`ReadError`] when its state is a blob that cannot be read.
    pub fn cursor(&self, name: &CursorName) -> Result<Option<Cursor>, ReadError> {
        let held = || self.inner.cursors.read().get(name).cloned();
        let Some(mut found) = held() else { return Ok(None) };
        let state = loop {
            let hash = match &found.state {
                HeldState::Inline(bytes) => break bytes.clone(),
                HeldState::Blob(_, hash) => *hash,
            };
            if let Some(blob) = self.inner.blobs.get(&hash)? {
                break blob.bytes(CURSOR_STATE_BYTES_MAX as u64)?;
            }
            // A state that was replaced meanwhile may have been collected.
            match held() {
                Some(newer) if newer.revision != found.revision => found = newer,
                Some(_) => return Err(ReadError::MissingBlob(hash)),
                None => return Ok(None),
            }
        };
        let HeldCursor { revision, epoch, offset, time_ms, .. } = found;
        Ok(Some(Cursor { revision, epoch, offset, time_ms, state }))
    }

    /// Returns every cursor, sorted by name.
    #[must_use]
    pub fn cursors(&self) -> Vec<CursorSummary> {
        let table = self.inner.cursors.read();
        let mut all: Vec<_> = table.iter().map(|(name, held)| held.summary(name)).collect();
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        all
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Callers that want the result call `close`; the next open recovers what is left.
        let _ = self.inner.close();
    }
}

impl Inner {
    /// Checks and prepares a batch, without the writer's lock.
    fn prepare(&self, batch: Batch) -> Result<Pending, AppendError> {
        self.check_writable()?;
        let cursor_bytes = match batch.cursors.is_empty() {
            true => 0,
            false => self.cursors.read().restated_bytes(),
        };
        let segment_bytes = self.env.options.segment_bytes;
        let find = |id| self.target(id);
        let blobs = &self.blobs;
        let looked_up = self.looked_up();
        let is_used = |key: &HashedKey| self.keys.is_used(key, self.env.clock.now_ms());
        let (find, is_used) = (&find, &is_used);
        let checks = Checks { blobs, segment_bytes, cursor_bytes, looked_up, find, is_used };
        Pending::prepare(batch, &checks)
    }

    fn check_writable(&self) -> Result<(), Unwritable> {
        self.check_healthy()?;
        match self.closed.load(Ordering::Acquire) {
            true => Err(Unwritable::Closed),
            false => Ok(()),
        }
    }

    /// Fails if the store is read-only or poisoned.
    pub(crate) fn check_healthy(&self) -> Result<(), Unwritable> {
        match (&self.read_only, self.failure.get()) {
            (Some(reason), _) => Err(Unwritable::ReadOnly(reason.clone())),
            (None, Some(why)) => Err(Unwritable::Poisoned(why.clone())),
            (None, None) => Ok(()),
        }
    }

    /// Prepares for changes of files outside the log: the store is writable and sealing has caught
    /// up.
    pub(crate) fn begin_changing(&self) -> Result<(), Unwritable> {
        self.check_writable()?;
        let mut writer = self.writer.lock();
        if writer.closed {
            return Err(Unwritable::Closed);
        }
        writer.catch_up(self).map_err(|error| self.refuse(error))
    }

    /// Marks the store as in use before anything is written, blobs included.
    pub(crate) fn begin_writing(&self) -> Result<(), Unwritable> {
        self.check_writable()?;
        self.begin_writing_with(&mut self.writer.lock())
    }

    /// Marks the store as in use before anything is written, for a caller that holds the writer's
    /// lock.
    pub(crate) fn begin_writing_with(&self, writer: &mut Writer) -> Result<(), Unwritable> {
        if writer.begun && !writer.closed && !self.is_poisoned() {
            return Ok(());
        }
        // A store that is being closed commits what was submitted before.
        self.check_healthy()?;
        if writer.closed {
            return Err(Unwritable::Closed);
        }
        writer.catch_up(self).map_err(|error| self.refuse(error))?;
        let start = EpochStart {
            epoch: self.epoch,
            first_offset: writer.appender().next_offset(),
            first_seq: writer.appender().next_seq(),
        };
        // Durable before the first byte: from here on an open recovers from a crash, and offsets of
        // this epoch are distinguished from those another one lost.
        let begun = self.env.manifest.update(|state| {
            state.clean = false;
            // What an earlier journal held is already applied.
            state.journal = 0;
            state.epochs.push(start);
            let over = state.epochs.len().saturating_sub(EPOCHS_MAX);
            state.epochs.drain(..over);
        });
        begun.map_err(|error| self.refuse(WriteError::when_preparing(error)))?;
        writer.begun = true;
        Ok(())
    }

    /// The error for a caller whose preparation step failed.
    fn refuse(&self, error: WriteError) -> Unwritable {
        match error {
            WriteError::Full(shortage) => Unwritable::StorageFull(shortage),
            WriteError::Failed(error) => Unwritable::Poisoned(self.poison(&error)),
        }
    }

    /// Syncs files of the log and, concurrently, the packs.
    pub(crate) fn sync_files(&self, media: &[&Arc<dyn Media>]) -> io::Result<()> {
        self.blobs.sync_beside(|| media.iter().try_for_each(|media| sync(&***media)))
    }

    /// Syncs files of the log and the packs themselves, including what is durable only in the
    /// journal so far.
    pub(crate) fn settle_files(&self, media: &[&Arc<dyn Media>]) -> io::Result<()> {
        media.iter().try_for_each(|media| sync(&***media))?;
        if is_planted(Bug::SettleLogOnly) { Ok(()) } else { self.blobs.settle() }
    }

    /// Stops taking appends, because it is unknown what the disk holds. Keeps and returns the first
    /// reason.
    pub(crate) fn poison(&self, why: impl Into<IoError>) -> IoError {
        self.failure.get_or_init(|| why.into()).clone()
    }

    pub(crate) fn is_poisoned(&self) -> bool {
        self.failure.get().is_some()
    }

    /// A sealed segment as readers see it.
    pub(crate) fn sealed_segment(&self, key: SegmentKey, length: u64, frames: u64) -> Arc<Segment> {
        let path = self.env.log_path(key.base, key.generation, SEGMENT);
        let open = Arc::clone(&self.open_files);
        Arc::new(Segment::sealed_file(key, path, length, frames, open))
    }

    fn close(&self) -> Result<(), CloseError> {
        self.closed.store(true, Ordering::Release);
        // Commits what was submitted: later there may be no thread left to do it. Not within
        // `get_or_init`, because a callback of a commit that this waits for may close the store
        // too.
        self.commits.drain(self);
        // A concurrent close waits for the first one and returns its outcome.
        let outcome = self.outcome.get_or_init(|| self.close_once()).clone();
        // Wakes waiting followers, which find the store closed.
        self.tail.publish();
        outcome
    }

    /// Whether the store is closed, so that nothing more is appended.
    pub(crate) fn is_closed(&self) -> bool {
        self.outcome.get().is_some()
    }

    fn close_once(&self) -> Result<(), CloseError> {
        self.scrub.stop();
        self.upkeep.stop();
        // Not under the writer's lock, which a sweep needs in order to end.
        self.blobs.end_sweeps();
        self.compaction.stop();
        let mut writer = self.writer.lock();
        // From now on leaders answer that the store is closed.
        writer.closed = true;
        let closed = self.close_files(&mut writer);
        self.sealing.drop_spare(self);
        // On every path: the packs' thread may write to the manifest, and the store is unlocked
        // next.
        self.blobs.stop();
        *self.lock.lock() = None;
        closed
    }

    fn close_files(&self, writer: &mut Writer) -> Result<(), CloseError> {
        if self.read_only.is_some() || self.env.manifest.state().clean {
            return Ok(());
        }
        if let Some(why) = self.failure.get() {
            return Err(CloseError::Poisoned(why.clone()));
        }
        let told = |error: WriteError| match error {
            WriteError::Full(shortage) => CloseError::Io(shortage.into()),
            WriteError::Failed(error) => CloseError::Io(error.into()),
        };
        writer.catch_up(self).map_err(told)?;
        self.sealing.seal_now(self).map_err(told)?;
        writer.leave_long(self).map_err(told)?;
        match writer.mark_close(self) {
            // The manifest records where the log ends, so without room the mark can be omitted.
            Ok(()) => {}
            Err(WriteError::Full(_)) if !writer.appender().has_rolled() => {}
            Err(error) => return Err(told(error)),
        }
        self.sealing.seal_now(self).map_err(told)?;
        let _indexed = self.sealing.index_sealed(self);
        let io = |error: io::Error| CloseError::Io(error.into());
        self.blobs.close().map_err(io)?;
        let end =
            writer.appender().active().map(|active| (active.segment.file_key(), active.flushed));
        let closed = self.env.manifest.update(|state| {
            (state.clean, state.journal) = (true, 0);
            for file in &mut state.files {
                if let Some((key, length)) = end
                    && file.state == FileState::Unmarked
                    && file.key() == key
                {
                    file.length = length;
                }
            }
        });
        closed.map_err(io)?;
        self.journal.close(&self.env);
        Ok(())
    }
}

/// Makes a file of the log durable.
fn sync(media: &dyn Media) -> io::Result<()> {
    if is_planted(Bug::SkipLogSync) {
        return Ok(());
    }
    match media.sync() {
        Err(_) if is_planted(Bug::RetryFailedSync) => media.sync(),
        synced => synced,
    }
}

#[cfg(test)]
mod tests;
