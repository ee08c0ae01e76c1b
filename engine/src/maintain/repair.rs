//! Saves what is left of a store into a new one. It trusts only what verifies on its own: if
//! neither copy of the manifest does, the files' own headers and names identify them, and if a
//! header does not verify, the batches and entries after it do.
//!
//! Frames keep their ids and offsets; lost frames leave a gap in the new log.

use std::cell::OnceCell;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::backup::{check_apart, check_empty, jump, lock, lock_to_read, target_files};
use super::candidates::Candidate;
use super::copy::Watch;
use super::error::MaintainError;
use super::finding::{Finding, Problem, Progress, Severity};
use super::read_only::{ReadOnlyFiles, Unreadable};
use super::repair_log::Rotten;
use super::save_log::{Chain, last_segment};
use super::visible::Visible;
use crate::blob::{PackView, save_pack};
use crate::entropy::Random;
use crate::entropy::SystemEntropy;
use crate::env::Env;
use crate::error::OpenError;
use crate::format::super_file::{EpochStart, FileEntry, FileKind, FileState, SuperState};
use crate::limits::FINDINGS_MAX;
use crate::manifest::Manifest;
use crate::media::{Disk, Files, is_lost};
use crate::names::{BLOB_DIR, LOG_DIR};
use crate::options::{MediaChoice, StoreOptions};
use crate::value::{CursorName, StoreUuid};

/// The result of a repair.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RepairReport {
    /// Uuid of the new store.
    pub uuid: StoreUuid,
    /// Uuid of the old store, unless no file has it.
    pub source: Option<StoreUuid>,
    /// Neither copy of the manifest verified: it was rebuilt from the files.
    pub manifest_rebuilt: bool,
    /// Offset of the next frame: that of the old store as far as known, even if the last frames
    /// before it are lost.
    pub head: u64,
    /// Frames that were saved, with their ids and offsets.
    pub frames: u64,
    /// Cursors that were saved.
    pub cursors: u64,
    /// Those of them above the head: no frame of the old store can have come that far, so they were
    /// set that way. A reader that starts there gets nothing until the head has come as far, and
    /// one that names the epoch of the cursor is refused with
    /// [`CursorAhead`](crate::ReadError::CursorAhead). The first [`FINDINGS_MAX`].
    pub cursors_ahead: Vec<CursorName>,
    /// Blobs that were saved, counting every copy.
    pub blobs: u64,
    /// Frames that are lost, as far as known.
    pub frames_lost: u64,
    /// What is lost, by file; the first [`FINDINGS_MAX`].
    pub lost: Vec<Finding>,
    /// Number of losses.
    pub lost_total: u64,
}

impl RepairReport {
    /// The report of a repair that has saved nothing yet.
    const fn begun(uuid: StoreUuid, source: Option<StoreUuid>, manifest_rebuilt: bool) -> Self {
        Self {
            uuid,
            source,
            manifest_rebuilt,
            head: 0,
            frames: 0,
            cursors: 0,
            cursors_ahead: Vec::new(),
            blobs: 0,
            frames_lost: 0,
            lost: Vec::new(),
            lost_total: 0,
        }
    }
}

/// A repair in progress.
pub(super) struct Rescue<'a> {
    pub(super) from: &'a Path,
    pub(super) from_files: Arc<dyn Files>,
    unreadable: Unreadable,
    /// The new store.
    pub(super) env: Arc<Env>,
    /// The old manifest, if one copy verifies.
    pub(super) known: Option<SuperState>,
    pub(super) report: RepairReport,
    pub(super) epochs: Vec<EpochStart>,
    pub(super) rotten: Rotten,
    /// What readers of the old store would see, computed on first use.
    pub(super) visible: OnceCell<Option<Visible>>,
    watch: Watch<'a>,
    bytes: u64,
    pub(super) bytes_total: u64,
}

/// Saves what is left of the store in `dir`, which must not be open, into a new store in `into`,
/// which is empty or does not exist. `watch` is called as the work proceeds and can stop it by
/// breaking. The old store is not changed.
///
/// # Errors
/// [`MaintainError`]; there is then no store in `into`. A store of a newer format version is
/// refused; damage never is.
pub fn repair(
    dir: impl AsRef<Path>,
    into: impl AsRef<Path>,
    watch: &mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>,
) -> Result<RepairReport, MaintainError> {
    let (dir, into) = (dir.as_ref(), into.as_ref());
    let from_files: Arc<dyn Files> = Arc::new(Disk::new(MediaChoice::Positioned, dir));
    check_apart(dir, into)?;
    let _lock = lock_to_read(dir)?;
    let to_files = target_files(into)?;
    let _into_lock = lock(into)?;
    repair_files(dir, from_files, into, to_files, watch)
}

/// Repairs a store through the given files, without locks.
pub(super) fn repair_files(
    dir: &Path,
    from_files: Arc<dyn Files>,
    into: &Path,
    to_files: Arc<dyn Files>,
    watch: Watch<'_>,
) -> Result<RepairReport, MaintainError> {
    let known = match Manifest::load(dir, Arc::clone(&from_files)) {
        Ok(manifest) => manifest.map(|manifest| SuperState::clone(&manifest.state())),
        Err(OpenError::Corrupt(_)) => None,
        Err(OpenError::Io { error, .. }) if is_lost(&error) => None,
        Err(error) => return Err(error.into()),
    };
    check_empty(into, &to_files)?;
    let from_files = ReadOnlyFiles::of_closed(dir, from_files, known.as_ref())?;
    let (finding, unreadable) = (from_files.finding(dir), from_files.unreadable());
    let from_files: Arc<dyn Files> = Arc::new(from_files);
    let options = StoreOptions::default();
    let random = Random::new(&SystemEntropy);
    let random = random.map_err(|error| MaintainError::io("seed ids for", into, error))?;
    let source = known.as_ref().map(|known| StoreUuid::from_bytes(known.store));
    let uuid = StoreUuid::from_bytes(random.bytes());
    let state = SuperState { store: *uuid.as_bytes(), ..SuperState::default() };
    let env = Arc::new(Env {
        dir: into.to_owned(),
        manifest: Manifest::unwritten(into, Arc::clone(&to_files), state),
        files: to_files,
        clock: Arc::clone(&options.clock),
        options,
        random,
        holds: crate::holds::Holds::default(),
    });
    let manifest_rebuilt = known.is_none();
    let report = RepairReport::begun(uuid, source, manifest_rebuilt);
    let mut rescue = Rescue {
        from: dir,
        from_files,
        unreadable,
        env,
        known,
        report,
        epochs: Vec::new(),
        rotten: Rotten::default(),
        visible: OnceCell::new(),
        watch,
        bytes: 0,
        bytes_total: 0,
    };
    finding.into_iter().for_each(|finding| rescue.lose(finding));
    rescue.run()
}

impl Rescue<'_> {
    fn run(mut self) -> Result<RepairReport, MaintainError> {
        let state = match self.save() {
            Ok(state) => state,
            Err(error) => {
                self.clear();
                return Err(error);
            }
        };
        // From here on the new store may exist: on any failure its files stay.
        let written = self.env.manifest.update(|all| *all = state);
        written
            .map_err(|error| MaintainError::io("write the manifest in", &self.env.dir, error))?;
        Ok(self.report)
    }

    /// Removes what was written of an unfinished store, so that the next attempt finds the
    /// directory as this one did.
    fn clear(&self) {
        for sub in [LOG_DIR, BLOB_DIR] {
            let dir = self.env.dir.join(sub);
            for name in self.env.files.list(&dir).unwrap_or_default() {
                // If a file remains, the next attempt demands another directory.
                let _ = self.env.files.remove(&dir.join(name));
            }
        }
    }

    /// Writes all files of the new store, durably. Returns the content of its manifest.
    fn save(&mut self) -> Result<SuperState, MaintainError> {
        let segments = self.candidates(FileKind::Segment)?;
        let packs = self.candidates(FileKind::Pack)?;
        if segments.is_empty() && packs.is_empty() && self.known.is_none() {
            return Err(MaintainError::NoStore { dir: self.from.to_owned() });
        }
        self.lose_missing(&segments, &packs);
        for sub in [LOG_DIR, BLOB_DIR] {
            let dir = self.env.dir.join(sub);
            let made = self.env.files.create_dir(&dir);
            made.map_err(|error| MaintainError::io("make", &dir, error))?;
        }
        let mut files = self.packs(&packs)?;
        let view = PackView::new(&self.env, &files, &[]);
        let mut chain = Chain::default();
        self.segments(&segments, &view, &mut chain, &mut files)?;
        self.end(&mut chain);
        let last = last_segment(&self.env, &chain);
        files.push(last.map_err(|error| MaintainError::io("write", &self.env.dir, error))?);
        self.report.head = chain.next_offset;
        self.report.cursors = chain.tables.cursors.len() as u64;
        self.report.cursors_ahead = chain.cursors_ahead();
        for sub in [LOG_DIR, BLOB_DIR] {
            let dir = self.env.dir.join(sub);
            let synced = self.env.files.sync_dir(&dir);
            synced.map_err(|error| MaintainError::io("sync", &dir, error))?;
        }
        let mut state = SuperState {
            store: *self.report.uuid.as_bytes(),
            parent: self.report.source.map_or([0; 16], |source| *source.as_bytes()),
            clean: true,
            epochs: match &self.known {
                Some(known) => known.epochs.clone(),
                None => std::mem::take(&mut self.epochs),
            },
            files,
            ..SuperState::default()
        };
        jump(&mut state, chain.next_offset, &self.env.random);
        self.lose_unreadable();
        Ok(state)
    }

    /// Ends the log where the old one ended, also according to the manifest.
    fn end(&self, chain: &mut Chain) {
        if let Some(known) = &self.known {
            known.epochs.iter().for_each(|epoch| chain.reach(epoch.first_offset));
            let segments = known.files.iter().filter(|file| file.kind == FileKind::Segment);
            segments.for_each(|file| chain.reach(file.end()));
        }
        chain.end();
    }

    /// Reports the files that the manifest names and that do not exist.
    fn lose_missing(&mut self, segments: &[Candidate], packs: &[Candidate]) {
        let Some(known) = self.known.clone() else { return };
        for file in &known.files {
            let there = if file.kind == FileKind::Segment { segments } else { packs };
            if there.iter().any(|one| one.file(file.kind) == file.key())
                || file.state == FileState::Dropped
            {
                continue;
            }
            let path = file.path_in(self.from);
            if file.kind == FileKind::Pack {
                self.rotten.note(None);
            }
            let (severity, problem) = (Severity::Lost, Problem::Missing);
            let mut finding = Finding::new(severity, problem, &path, 0, "the file is missing");
            if file.kind == FileKind::Segment && file.state == FileState::Sealed {
                finding = finding.frames(file.base, Some(file.end()), None);
                self.report.frames_lost += file.count;
            }
            self.lose(finding);
        }
    }

    /// Reports the unreadable places, except those after the end of a segment.
    fn lose_unreadable(&mut self) {
        for finding in self.unreadable.all() {
            let is_behind = self.known.as_ref().is_some_and(|known| {
                known.files.iter().any(|file| {
                    (known.clean && file.length <= finding.position)
                        && file.path_in(self.from) == finding.path
                })
            });
            if !is_behind {
                self.lose(finding);
            }
        }
    }

    pub(super) fn lose(&mut self, finding: Finding) {
        self.report.lost_total += 1;
        if self.report.lost.len() < FINDINGS_MAX {
            self.report.lost.push(finding);
        }
    }

    pub(super) fn step(&mut self, path: &Path, bytes: u64) -> Result<(), MaintainError> {
        self.bytes += bytes;
        let (bytes, bytes_total) = (self.bytes, self.bytes_total.max(self.bytes));
        match (self.watch)(&Progress { path, bytes, bytes_total }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(MaintainError::Stopped),
        }
    }

    fn packs(&mut self, packs: &[Candidate]) -> Result<Vec<FileEntry>, MaintainError> {
        let mut files = Vec::new();
        for one in packs {
            let Some((media, salt)) = self.open(FileKind::Pack, one, true)? else {
                self.rotten.note(None);
                continue;
            };
            let path = media.path().to_owned();
            // What an open leaves out of such a pack is then missing for good.
            let is_mended = self.is_unclean(one);
            let mut lost = Vec::new();
            let note = &mut |at, hash, bad: &_| {
                let finding = Finding::new(Severity::Lost, Problem::Blob, &path, at, bad);
                lost.push(finding.blob(hash));
            };
            let env = Arc::clone(&self.env);
            let go_on = &mut |_| match self.step(&path, 0) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            };
            let saved = save_pack(&env, one.base, &media, salt, note, go_on);
            for finding in lost {
                if !is_mended {
                    self.rotten.note(finding.blob);
                }
                self.lose(finding);
            }
            let saved = saved.map_err(|error| MaintainError::io("save", &path, error.into()))?;
            let ControlFlow::Continue(saved) = saved else { return Err(MaintainError::Stopped) };
            self.report.blobs += saved.map_or(0, |line| line.count);
            files.extend(saved);
            self.step(&path, media.len())?;
        }
        Ok(files)
    }

    /// Whether a pack was neither sealed nor closed cleanly.
    fn is_unclean(&self, one: &Candidate) -> bool {
        let is_open = |file: &FileEntry| file.state == FileState::Unmarked;
        let line = self.known.as_ref().filter(|known| !known.clean);
        line.and_then(|known| known.file(one.file(FileKind::Pack))).is_some_and(is_open)
    }
}
