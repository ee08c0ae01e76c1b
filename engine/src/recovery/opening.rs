//! A store being opened: from the files found to a usable store.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};

use super::files::{self, LogFiles};
use super::replay::{Tables, note, replay_on, replay_sealed};
use super::scan::{Scan, scan};
use super::{Examined, Recovered, RecoveryReport, keys, rewrite};
use crate::blob::Blobs;
use crate::commit::{Commits, Timing, Writer};
use crate::compact::Compaction;
use crate::env::Env;
use crate::error::{Corruption, OpenError, ReadOnlyReason};
use crate::format::batch::BatchError;
use crate::format::super_file::FileEntry;
use crate::ids::IdSource;
use crate::index::Index;
use crate::journal::Journal;
use crate::keys::{KeyIndex, SegmentKeys};
use crate::log::{Appender, Log, OpenFiles, Sealing, Segment};
use crate::maintain::Scrub;
use crate::media::{StoreLock, is_full};
use crate::planted::{Bug, is_planted};
use crate::read::Gone;
use crate::space::Space;
use crate::store::Inner;
use crate::tail::Tail;
use crate::upkeep::Upkeep;
use crate::value::FrameId;

/// A store being opened.
pub(super) struct Opening {
    pub(super) env: Arc<Env>,
    pub(super) blobs: Blobs,
    pub(super) open_files: Arc<OpenFiles>,
    pub(super) clean: bool,
    /// The journal file exists.
    pub(super) journal: bool,
    pub(super) report: RecoveryReport,
}

impl Opening {
    /// Turns the files found into a usable store.
    pub(super) fn finish(
        mut self,
        found: LogFiles,
        trouble: Option<ReadOnlyReason>,
        lock: StoreLock,
    ) -> Result<Inner, OpenError> {
        let LogFiles { sealed, unmarked, trouble: missing } = found;
        let mut trouble = missing.or(trouble);
        let (examined, bad) = self.examine(&unmarked)?;
        let epoch = examined.iter().map(|one| one.scanned.epoch).max().unwrap_or_default();
        trouble = trouble.or(bad);
        let mut tables = Tables::default();
        let before = self.tables_before(&sealed, &examined, &mut tables, &mut trouble)?;
        let tail = match trouble {
            None => match self.damage(&examined, before) {
                Some(corruption) => {
                    trouble = Some(ReadOnlyReason::Corrupt(corruption));
                    self.as_found(examined)
                }
                None if self.clean => self.go_on(examined, before)?,
                None => self.recover(examined, before)?,
            },
            Some(_) => self.as_found(examined),
        };
        // The index itself reads a damaged segment, as it continues after the damage.
        let (indexed, noted) = match trouble {
            Some(_) => (sealed.iter().chain(&tail.segments).cloned().collect(), false),
            None => (sealed.clone(), true),
        };
        let index = Index::open(Arc::clone(&self.env), &indexed, trouble.is_none())?;
        // No writes to a store in which removed frames may have reappeared.
        trouble = trouble.or_else(|| index.doubt().cloned().map(ReadOnlyReason::Corrupt));
        let mut held = BTreeMap::new();
        for segment in &tail.segments {
            let keys = held.entry(segment.base()).or_default();
            self.take_up(segment, &mut tables, keys, noted.then_some(&index))?;
        }
        let keys = KeyIndex::new(held, tables.has_old_ids);
        if trouble.is_none() {
            let loaded = keys.load_window(&self.env, &sealed, self.env.clock.now_ms());
            loaded.map_err(|error| OpenError::io("read keys in", &self.env.log_dir(), error))?;
        }
        for segment in &tail.sealed_now {
            // Derived files: what cannot be written now is retried.
            let _ = index.seal(segment);
            let _ = keys.seal(&self.env, &index, segment);
        }
        Ok(self.build(sealed, (tail, epoch), tables, (index, keys), trouble, lock))
    }

    /// Scans the unmarked segments. In a store that was not closed cleanly, what may not be durable
    /// is scanned again with the page cache dropped: after a failed sync the cache holds what the
    /// disk never got.
    fn examine(
        &self,
        unmarked: &[FileEntry],
    ) -> Result<(Vec<Examined>, Option<ReadOnlyReason>), OpenError> {
        let mut examined = Vec::new();
        let mut trouble = None;
        for file in unmarked {
            let path = files::path_of(&self.env, file);
            let opened = match self.clean {
                true => self.env.files.open_sealed(&path),
                false => self.env.files.open_unmapped(&path),
            };
            let media = match opened {
                Ok(media) => media,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    trouble.get_or_insert(ReadOnlyReason::Files { path, what: "is missing" });
                    continue;
                }
                Err(error) => return Err(OpenError::io("open", &path, error)),
            };
            let key = match files::key_of(&self.env, file, &media) {
                Ok((key, damaged)) => {
                    trouble = trouble.or(damaged);
                    key
                }
                Err(reason) => {
                    trouble.get_or_insert(reason);
                    continue;
                }
            };
            if self.clean && media.len() < file.length {
                let (path, what) = (path.clone(), "is shorter than when the store was closed");
                trouble.get_or_insert(ReadOnlyReason::Files { path, what });
            }
            let len = if self.clean { file.length.min(media.len()) } else { media.len() };
            let scanned =
                scan(&media, &key, len).map_err(|error| OpenError::io("read", &path, error))?;
            examined.push(Examined { file: *file, key, media, scanned });
        }
        if !self.clean && !is_planted(Bug::TrustCache) {
            self.look_behind_the_cache(&mut examined)?;
        }
        Ok((examined, trouble))
    }

    /// Scans again what may not be durable. A claim that the log was durable up to a point is true
    /// wherever it is read; whether a batch exists, only the disk tells.
    fn look_behind_the_cache(&self, examined: &mut [Examined]) -> Result<(), OpenError> {
        let durable_upto = examined.iter().map(|one| one.scanned.durable_upto).max();
        let durable_upto = durable_upto.unwrap_or_default();
        for one in examined {
            let Some(part) = one.scanned.disbelieved(durable_upto) else { continue };
            let path = files::path_of(&self.env, &one.file);
            let again = self.env.files.forget(&path, part);
            let again = again.and_then(|()| one.scanned.again(&one.media, &one.key, durable_upto));
            again.map_err(|error| OpenError::io("read", &path, error))?;
        }
        Ok(())
    }

    /// The tables before the first unmarked segment, read from the last sealed one unless the first
    /// unmarked one restates them completely. Returns the seq and offset that follow, when known.
    fn tables_before(
        &self,
        sealed: &[Arc<Segment>],
        examined: &[Examined],
        tables: &mut Tables,
        trouble: &mut Option<ReadOnlyReason>,
    ) -> Result<Option<(u64, u64)>, OpenError> {
        if examined.first().is_some_and(|first| first.scanned.complete_at.is_some()) {
            return Ok(None);
        }
        let Some(last) = sealed.last() else { return Ok(Some((0, 0))) };
        let path = last.path();
        let failed = |error| OpenError::io("read", path, error);
        let media = self.env.files.open_sealed(path).map_err(failed)?;
        let reached = replay_sealed(&media, last, |batch| tables.take(batch)).map_err(failed)?;
        if reached.position < last.published_len() {
            // The tables are as of the damage, and so is the seq of the next batch.
            let walk = Scan::new(media, &last.key(), last.published_len()).sealed();
            let why = walk.from(reached).next().map_err(failed)?.err();
            let why = why.unwrap_or(BatchError::Absent);
            let corrupt = Corruption::new(path, reached.position, why).at_offset(reached.offset);
            trouble.get_or_insert(ReadOnlyReason::Corrupt(corrupt));
        }
        Ok(reached.seq.map(|seq| (seq, reached.offset)))
    }

    /// The damage to acknowledged data, if any.
    fn damage(&self, examined: &[Examined], before: Option<(u64, u64)>) -> Option<Corruption> {
        let durable_upto = examined.iter().map(|one| one.scanned.durable_upto).max()?;
        let (mut seq, mut offset) = match before {
            Some(known) => known,
            None => (examined[0].scanned.first_seq?, examined[0].key.base),
        };
        let mut at = &examined[0];
        for one in examined {
            if one.scanned.first_seq.is_some_and(|first| first != seq) || at.key.base > one.key.base
            {
                break;
            }
            at = one;
            seq = one.scanned.next_seq.unwrap_or(seq);
            offset = one.scanned.next_offset;
        }
        let path = files::path_of(&self.env, &at.file);
        let corrupt = Corruption::new(path, at.scanned.end, at.scanned.why).at_offset(offset);
        if self.clean {
            let whole = examined.iter().all(|one| one.scanned.end == one.file.length);
            return (!whole).then_some(corrupt);
        }
        (seq < durable_upto && !is_planted(Bug::CutAtDamage)).then_some(corrupt)
    }

    /// Recovers a log that was not closed cleanly. On a full disk it is opened as it is; making it
    /// writable is deferred to the first append that finds room.
    fn recover(
        &mut self,
        examined: Vec<Examined>,
        before: Option<(u64, u64)>,
    ) -> Result<Recovered, OpenError> {
        let env = Arc::clone(&self.env);
        let failed = |error| OpenError::io("recover", &env.log_dir(), error);
        let plan = rewrite::plan(self, examined, before).map_err(failed)?;
        match plan.carry_out(&env, &self.blobs, &self.open_files) {
            Err(error) if is_full(&error) => Ok(plan.deferred(&env, &self.open_files)),
            recovered => recovered.map_err(failed),
        }
    }

    /// Resumes writing in the segment that a clean close left.
    fn go_on(
        &self,
        examined: Vec<Examined>,
        before: Option<(u64, u64)>,
    ) -> Result<Recovered, OpenError> {
        let (mut next_seq, mut next_offset) = before.unwrap_or_default();
        let mut recovered = Recovered::default();
        for one in examined {
            next_seq = one.scanned.next_seq.unwrap_or(next_seq);
            next_offset = one.scanned.next_offset;
            let opened = rewrite::reopen(&self.env, &one, None);
            recovered.push_active(opened.map_err(|error| self.cannot_read(&one.file, error))?);
        }
        Ok(Recovered { next_seq, next_offset, durable_upto: next_seq, ..recovered })
    }

    /// The unmarked segments as they are, read-only: everything whole in them, including batches
    /// after damage.
    fn as_found(&self, examined: Vec<Examined>) -> Recovered {
        let (mut next_seq, mut next_offset) = (0, 0);
        let mut segments = Vec::new();
        for one in examined {
            next_seq = one.scanned.next_seq.unwrap_or(next_seq);
            next_offset = one.scanned.reach().1;
            let path = files::path_of(&self.env, &one.file);
            segments.push(files::as_found(one.key, path, &one.scanned, &self.open_files));
        }
        Recovered { segments, next_seq, next_offset, ..Recovered::default() }
    }

    /// Reads a segment into the tables and the index.
    fn take_up(
        &self,
        segment: &Arc<Segment>,
        tables: &mut Tables,
        held: &mut SegmentKeys,
        index: Option<&Index>,
    ) -> Result<(), OpenError> {
        let failed = |error| OpenError::io("read", segment.path(), error);
        tables.begin_segment();
        let media = self.env.files.open_sealed(segment.path()).map_err(failed)?;
        let walk = Scan::new(media, &segment.key(), segment.published_len());
        // What goes into the index was scanned; a segment in trouble may hold anything.
        let walk = if index.is_some() { walk.trusting() } else { walk };
        let read = replay_on(walk, |batch| {
            tables.take(batch);
            keys::take(held, batch);
            if let Some(index) = index {
                note(index, segment, batch);
            }
            ControlFlow::Continue(())
        });
        read.map(drop).map_err(failed)
    }

    fn cannot_read(&self, file: &FileEntry, error: io::Error) -> OpenError {
        OpenError::io("read", &files::path_of(&self.env, file), error)
    }

    /// Assembles the store. `written` is the highest epoch found at the end of the log.
    fn build(
        self,
        sealed: Vec<Arc<Segment>>,
        (tail, written): (Recovered, u64),
        tables: Tables,
        (index, keys): (Index, KeyIndex),
        read_only: Option<ReadOnlyReason>,
        lock: StoreLock,
    ) -> Inner {
        // The newest copy of the manifest may be lost, and with it the last epoch.
        let last = self.env.manifest.state().epochs.last().map_or(0, |last| last.epoch);
        let is_new = last == 0 || !is_planted(Bug::ReuseEpoch);
        let epoch = last.max(written).saturating_add(u64::from(is_new));
        let last_id = tables.last_id.unwrap_or(FrameId::ZERO);
        let seed = u64::from_le_bytes(self.env.random.bytes());
        let Recovered { segments, active, deferred, next_seq, next_offset, durable_upto, .. } =
            tail;
        let head = match segments.last() {
            Some(_) => next_offset,
            None => sealed.last().map_or(next_offset, |last| last.end()),
        };
        let appender = Appender::new(active, next_seq, head, epoch);
        let ids = IdSource::new(last_id, seed);
        let writer = Writer::new(appender, ids, &tables.cursors, deferred);
        Inner {
            log: Log::new(sealed.into_iter().chain(segments).collect(), head),
            index,
            keys,
            gone: Gone::default(),
            tail: Arc::new(Tail::new()),
            blobs: self.blobs,
            cursors: RwLock::new(tables.cursors),
            commits: Commits::default(),
            writer: Mutex::new(writer),
            sealing: Sealing::default(),
            journal: Journal::new(self.journal),
            upkeep: Upkeep::default(),
            scrub: Scrub::default(),
            timing: Timing::default(),
            compaction: Compaction::default(),
            space: Space::default(),
            open_files: self.open_files,
            durable_upto: AtomicU64::new(durable_upto),
            epoch,
            read_only,
            report: self.report,
            failure: OnceLock::new(),
            closed: AtomicBool::new(false),
            outcome: OnceLock::new(),
            lock: Mutex::new(Some(lock)),
            env: self.env,
        }
    }
}
