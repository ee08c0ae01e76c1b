//! Log maintenance off the append path: sealing the segment before the active one, and allocating
//! the one after it. The housekeeping thread does it; a writer that needs the result does the work
//! itself or waits for that thread.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::Segment;
use crate::cursors::segment_len;
use crate::error::Shortage;
use crate::format::super_file::FileState;
use crate::media::Media;
use crate::planted::{Bug, is_planted};
use crate::store::Inner;

/// Maximum sealed segments whose index is kept in memory until its files are written. Beyond it
/// writers wait, to bound memory.
const UNINDEXED_MAX: usize = 2;

/// Why something was not written: nothing was changed, or it is unknown what was.
#[derive(Debug)]
pub(crate) enum WriteError {
    /// There is no space, or no descriptor, and nothing was changed.
    Full(Shortage),
    /// The state on disk is unknown.
    Failed(io::Error),
}

impl WriteError {
    /// Converts an error of a preparing step: a full disk there leaves everything unchanged.
    pub(crate) fn when_preparing(error: io::Error) -> Self {
        match Shortage::of(&error) {
            Some(shortage) => Self::Full(shortage),
            None => Self::Failed(error),
        }
    }
}

/// A segment that is complete and not yet sealed.
#[derive(Debug, Clone)]
pub(crate) struct SealJob {
    pub(crate) segment: Arc<Segment>,
    pub(crate) media: Arc<dyn Media>,
    /// The file of the segment after it.
    pub(crate) next: Arc<dyn Media>,
    /// Where its last batch ends.
    pub(crate) length: u64,
    /// CRC of the file up to there.
    pub(crate) crc: u32,
    pub(crate) frames: u64,
    pub(crate) tombstones: bool,
    /// Every batch with a lower seq is in this segment or an older one.
    pub(crate) upto_seq: u64,
}

/// Work that passes between the writer and the housekeeping thread.
#[derive(Debug, Default)]
pub(crate) struct Sealing {
    /// Held while a segment is sealed, so that there is one at a time.
    running: Mutex<()>,
    job: Mutex<Option<SealJob>>,
    spare: Mutex<Option<Arc<dyn Media>>>,
    /// Number of spares made, for their names.
    spares: AtomicU64,
    /// Sealed segments whose derived files are not written yet.
    unindexed: Mutex<VecDeque<Arc<Segment>>>,
    /// Those whose key files could not be written. No writer waits for them.
    without_keys: Mutex<Vec<Arc<Segment>>>,
    /// Held while the files of one segment are written.
    indexing: Mutex<()>,
}

impl Sealing {
    /// Queues a segment to be sealed. The previous one is sealed already.
    pub(crate) fn hand_over(&self, job: SealJob) {
        *self.job.lock() = Some(job);
    }

    /// The file of the segment that waits to be sealed.
    pub(crate) fn waiting(&self) -> Option<Arc<dyn Media>> {
        self.job.lock().as_ref().map(|job| Arc::clone(&job.media))
    }

    /// Seals the waiting segment, if there is one. Afterwards the active segment is the only
    /// unmarked one.
    pub(crate) fn seal_now(&self, inner: &Inner) -> Result<(), WriteError> {
        let _running = self.running.lock();
        let Some(job) = self.job.lock().clone() else { return Ok(()) };
        // In this order: the bytes, the length, and only then the statement that both are final.
        // Blobs are synced too, as no durable frame may name one that is not durable.
        if !is_planted(Bug::SealBeforeSync) {
            inner.sync_files(&[&job.media]).map_err(WriteError::Failed)?;
        }
        let files = &inner.env.files;
        let path = job.segment.path();
        let sealed = job.segment.file_key();
        if job.frames == 0 && !job.tombstones {
            // Its tables are restated in the next segment, which was not published without them,
            // but may not be durable yet.
            job.next.sync().map_err(WriteError::Failed)?;
            let dropped = inner.env.manifest.update(|state| {
                state.files.retain(|file| file.key() != sealed);
            });
            dropped.map_err(WriteError::when_preparing)?;
            inner.log.replace(&job.segment, None);
            inner.env.retire(path).map_err(WriteError::when_preparing)?;
        } else {
            // Readers hold bytes below this length only, so no mapped page in use is truncated.
            files.cut(path, job.length).map_err(WriteError::when_preparing)?;
            let marked = inner.env.manifest.update(|state| {
                for file in &mut state.files {
                    if file.key() == sealed {
                        file.state = FileState::Sealed;
                        file.length = job.length;
                        file.crc = job.crc;
                        file.count = job.frames;
                    }
                }
            });
            marked.map_err(WriteError::when_preparing)?;
            let sealed = inner.sealed_segment(job.segment.key(), job.length, job.frames);
            inner.log.replace(&job.segment, Some(Arc::clone(&sealed)));
            self.unindexed.lock().push_back(sealed);
        }
        // Only a raise: what was written since is not covered.
        inner.durable_upto.fetch_max(job.upto_seq, Ordering::AcqRel);
        *self.job.lock() = None;
        Ok(())
    }

    /// Writes the derived files of sealed segments, including those that failed before; returns
    /// whether any were written.
    ///
    /// # Errors
    /// Of the first that could not be written. That does no harm: the index in memory serves until
    /// the next call or the next open retries.
    pub(crate) fn index_sealed(&self, inner: &Inner) -> io::Result<bool> {
        let (again, keys) = (inner.index.seal_refused(), self.keys_again(inner));
        let any = self.index_until(inner, 0);
        Ok(again? | keys? | any?)
    }

    /// Writes the key files that could not be written before.
    fn keys_again(&self, inner: &Inner) -> io::Result<bool> {
        let (mut any, mut first) = (false, Ok(()));
        let _one = self.indexing.lock();
        let again = std::mem::take(&mut *self.without_keys.lock());
        for segment in again {
            // Compaction may have removed it since.
            if inner.log.has(&segment) {
                let written = self.write_keys(inner, &segment);
                any |= written.is_ok();
                first = first.and(written);
            }
        }
        first.map(|()| any)
    }

    /// Writes derived files, or waits for the thread that does, until few enough are left.
    pub(super) fn index_excess(&self, inner: &Inner) {
        if self.unindexed.lock().len() > UNINDEXED_MAX {
            // What cannot be written is kept for later.
            let _ = self.index_until(inner, UNINDEXED_MAX);
        }
    }

    fn index_until(&self, inner: &Inner, left: usize) -> io::Result<bool> {
        let (mut any, mut first) = (false, Ok(()));
        loop {
            let _one = self.indexing.lock();
            let next = {
                let mut unindexed = self.unindexed.lock();
                if unindexed.len() > left { unindexed.pop_front() } else { None }
            };
            let Some(segment) = next else { return first.map(|()| any) };
            let (index, keys) = (inner.index.seal(&segment), self.write_keys(inner, &segment));
            let written = index.and(keys);
            any |= written.is_ok();
            first = first.and(written);
        }
    }

    fn write_keys(&self, inner: &Inner, segment: &Arc<Segment>) -> io::Result<()> {
        let written = inner.keys.seal(&inner.env, &inner.index, segment);
        written.inspect_err(|_| self.without_keys.lock().push(segment.clone()))
    }

    /// Allocates the next segment ahead of its use, if there is none yet.
    pub(crate) fn prepare_spare(&self, inner: &Inner) -> io::Result<()> {
        let checkpoint = inner.cursors.read().checkpoint_len();
        let mut spare = self.spare.lock();
        if spare.is_none() {
            *spare = Some(self.create_spare(inner, checkpoint)?);
        }
        Ok(())
    }

    /// Frees the space of the next segment: the store is closing.
    pub(crate) fn drop_spare(&self, inner: &Inner) {
        if let Some(spare) = self.spare.lock().take() {
            // If left behind, the next open removes it.
            let _ = inner.env.files.remove(spare.path());
        }
    }

    /// The next segment's file with space for its first `upto` bytes, of which a checkpoint takes
    /// `checkpoint`. It is created now if there is no spare that is long enough.
    pub(super) fn take_spare(
        &self,
        inner: &Inner,
        checkpoint: usize,
        upto: u64,
    ) -> Result<Arc<dyn Media>, WriteError> {
        let mut spare = self.spare.lock();
        let len = segment_len(inner.env.options.segment_bytes, checkpoint);
        let is_short = |media: &mut Arc<dyn Media>| media.len() < len;
        if let Some(short) = spare.take_if(is_short) {
            // The table has grown since. If it is left behind, the next open removes it.
            let _ = inner.env.files.remove(short.path());
        }
        let media = match spare.take() {
            Some(media) => media,
            None => self.create_spare(inner, checkpoint).map_err(WriteError::when_preparing)?,
        };
        match media.reserve(upto) {
            Ok(()) => Ok(media),
            Err(error) => {
                *spare = Some(media);
                Err(WriteError::when_preparing(error))
            }
        }
    }
}

impl Sealing {
    /// A file for a segment that begins with a checkpoint of this length.
    fn create_spare(&self, inner: &Inner, checkpoint: usize) -> io::Result<Arc<dyn Media>> {
        // A unique name: the previous spare may be in use without having been renamed yet.
        let number = self.spares.fetch_add(1, Ordering::Relaxed);
        let env = &inner.env;
        let path = env.log_dir().join(format!("spare.{number}.tmp"));
        let len = segment_len(env.options.segment_bytes, checkpoint);
        env.files.create(&path, len, env.options.zero_ahead)
    }
}
