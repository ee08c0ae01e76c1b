//! Saves what is left of a store into a new one. It trusts nothing but what verifies by itself:
//! when neither copy of the manifest does, the files' own headers and names tell what they are, and
//! when a header does not verify, the batches and entries behind it do.
//!
//! Frames keep their ids and offsets; where frames are lost the new log has a hole.

use std::cell::OnceCell;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::Arc;

use super::backup::{check_apart, check_empty, jump, lock, lock_to_read, target_files};
use super::candidates::Candidate;
use super::check_log::missing;
use super::copy::{Watch, place, suffix};
use super::error::MaintainError;
use super::finding::{Finding, Problem, Progress, Severity};
use super::read_only::ReadOnlyFiles;
use super::save_log::{Chain, SegmentWriter, last_segment};
use super::survey::{Stretch, Survey};
use super::verify::looked_at;
use super::visible::Visible;
use crate::blob::{PackView, save_pack};
use crate::entropy::SystemEntropy;
use crate::env::{Env, Random};
use crate::error::OpenError;
use crate::format::record::RecordKind;
use crate::format::super_file::{EpochStart, FileEntry, FileKind, FileState, SuperState};
use crate::limits::FINDINGS_MAX;
use crate::manifest::Manifest;
use crate::media::{Disk, Files};
use crate::options::{MediaChoice, StoreOptions};
use crate::recovery::scan::scan;
use crate::value::Frame;

/// Segments at the end of the log that can know how far it was durable.
const TAIL_SEGMENTS: usize = 3;

/// What was saved, and what was not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RepairReport {
    /// Uuid of the new store.
    pub uuid: [u8; 16],
    /// Uuid of the old one, or zero when no file tells it.
    pub source: [u8; 16],
    /// Neither copy of the manifest verified: it was made anew from the files.
    pub manifest_rebuilt: bool,
    /// Offset of the next frame, which is that of the old store as far as it could be told.
    pub head: u64,
    /// Frames that were saved. They kept their ids and offsets.
    pub frames: u64,
    /// Cursors that were saved.
    pub cursors: u64,
    /// Blobs that were saved, copies counted each.
    pub blobs: u64,
    /// Frames that are lost, as far as that can be told.
    pub frames_lost: u64,
    /// What is lost, by file; the first [`FINDINGS_MAX`].
    pub lost: Vec<Finding>,
    /// How many things are lost.
    pub lost_total: u64,
}

/// A saving under way.
pub(super) struct Rescue<'a> {
    pub(super) from: &'a Path,
    pub(super) from_files: Arc<dyn Files>,
    /// The new store.
    env: Arc<Env>,
    /// What the old manifest says, if one copy verifies.
    pub(super) known: Option<SuperState>,
    pub(super) report: RepairReport,
    epochs: Vec<EpochStart>,
    /// What readers of the old store would see, once it was asked.
    visible: OnceCell<Option<Visible>>,
    watch: Watch<'a>,
    bytes: u64,
    pub(super) bytes_total: u64,
}

/// Saves what is left of the store in `dir`, which nobody has open, into a new store in `into`,
/// which is empty or does not exist. `watch` is called as the work proceeds and stops it by
/// breaking. The old store is not changed.
///
/// # Errors
/// [`MaintainError`]; there is no store in `into` then. A store of a newer format version is
/// refused, damage of any kind is not.
pub fn repair(
    dir: &Path,
    into: &Path,
    watch: &mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>,
) -> Result<RepairReport, MaintainError> {
    let from_files: Arc<dyn Files> = Arc::new(Disk::new(MediaChoice::Positioned, dir));
    check_apart(dir, into)?;
    let _lock = lock_to_read(dir)?;
    let to_files = target_files(into)?;
    let _into_lock = lock(into)?;
    repair_files(dir, from_files, into, to_files, watch)
}

/// The same through given files, without locks.
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
        Err(error) => return Err(error.into()),
    };
    check_empty(into, &to_files)?;
    let from_files = ReadOnlyFiles::of_closed(dir, from_files, known.as_ref())?;
    let finding = from_files.finding(dir);
    let from_files: Arc<dyn Files> = Arc::new(from_files);
    let options = StoreOptions::default();
    let random = Random::new(&SystemEntropy);
    let random = random.map_err(|error| MaintainError::io("seed ids for", into, error))?;
    let source = known.as_ref().map_or([0; 16], |known| known.store);
    let state = SuperState { store: random.bytes(), parent: source, ..SuperState::default() };
    let uuid = state.store;
    let env = Arc::new(Env {
        dir: into.to_owned(),
        manifest: Manifest::unwritten(into, Arc::clone(&to_files), state),
        files: to_files,
        clock: Arc::clone(&options.clock),
        options,
        random,
        holds: super::Holds::default(),
    });
    let manifest_rebuilt = known.is_none();
    let report = RepairReport { uuid, source, manifest_rebuilt, ..RepairReport::default() };
    let mut rescue = Rescue {
        from: dir,
        from_files,
        env,
        known,
        report,
        epochs: Vec::new(),
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
        let segments = self.candidates(FileKind::Segment)?;
        let packs = self.candidates(FileKind::Pack)?;
        if segments.is_empty() && packs.is_empty() && self.known.is_none() {
            return Err(MaintainError::NoStore { dir: self.from.to_owned() });
        }
        self.lose_missing(&segments, &packs);
        for sub in ["log", "blobs"] {
            let dir = self.env.dir.join(sub);
            let made = self.env.files.create_dir(&dir);
            made.map_err(|error| MaintainError::io("make", &dir, error))?;
        }
        let mut files = self.packs(&packs)?;
        let view = PackView::new(&self.env, &files, &[]);
        let mut chain = Chain::default();
        self.segments(&segments, &view, &mut chain, &mut files)?;
        let last = last_segment(&self.env, &chain);
        files.push(last.map_err(|error| MaintainError::io("write", &self.env.dir, error))?);
        self.report.head = chain.next_offset;
        self.report.cursors = chain.tables.cursors.len() as u64;
        for sub in ["log", "blobs"] {
            let dir = self.env.dir.join(sub);
            let synced = self.env.files.sync_dir(&dir);
            synced.map_err(|error| MaintainError::io("sync", &dir, error))?;
        }
        let mut state = SuperState {
            store: self.report.uuid,
            parent: self.report.source,
            clean: true,
            epochs: match &self.known {
                Some(known) => known.epochs.clone(),
                None => std::mem::take(&mut self.epochs),
            },
            files,
            ..SuperState::default()
        };
        jump(&mut state, chain.next_offset, &self.env.random);
        let written = self.env.manifest.update(|all| *all = state);
        written
            .map_err(|error| MaintainError::io("write the manifest in", &self.env.dir, error))?;
        Ok(self.report)
    }

    /// Lists the files that the manifest names and that are not there.
    fn lose_missing(&mut self, segments: &[Candidate], packs: &[Candidate]) {
        let Some(known) = self.known.clone() else { return };
        for file in &known.files {
            let there = if file.kind == FileKind::Segment { segments } else { packs };
            let same = |one: &Candidate| (one.base, one.generation) == (file.base, file.generation);
            if there.iter().any(same) || file.state == FileState::Dropped {
                continue;
            }
            let path = place(self.from, file, suffix(file.kind));
            let (severity, problem) = (Severity::Lost, Problem::Missing);
            let mut finding = Finding::new(severity, problem, &path, 0, "the file is missing");
            if file.kind == FileKind::Segment && file.state == FileState::Sealed {
                finding = finding.frames(file.base, Some(file.end()), None);
                self.report.frames_lost += file.count;
            }
            self.lose(finding);
        }
    }

    pub(super) fn lose(&mut self, finding: Finding) {
        self.report.lost_total += 1;
        if self.report.lost.len() < FINDINGS_MAX {
            self.report.lost.push(finding);
        }
    }

    fn step(&mut self, path: &Path, bytes: u64) -> Result<(), MaintainError> {
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
            let Some((media, salt)) = self.open(FileKind::Pack, one, true)? else { continue };
            let path = media.path().to_owned();
            let mut lost = Vec::new();
            let saved = save_pack(&self.env, one.base, &media, salt, &mut |at, hash, bad| {
                let finding = Finding::new(Severity::Lost, Problem::Blob, &path, at, bad);
                lost.push(finding.blob(hash));
            });
            lost.into_iter().for_each(|finding| self.lose(finding));
            let saved = saved.map_err(|error| MaintainError::io("save", &path, error.into()))?;
            self.report.blobs += saved.map_or(0, |line| line.count);
            files.extend(saved);
            self.step(&path, media.len())?;
        }
        Ok(files)
    }

    /// Every batch with a lower seq was durable once: what is damaged behind that was never
    /// acknowledged, and ends the log.
    fn durable_upto(&mut self, segments: &[Candidate]) -> Result<u64, MaintainError> {
        let mut durable_upto = 0;
        for one in segments.iter().rev().take(TAIL_SEGMENTS) {
            let Some((media, salt)) = self.open(FileKind::Segment, one, false)? else { continue };
            let scanned = scan(&media, &one.key(salt), media.len());
            let scanned =
                scanned.map_err(|error| MaintainError::io("read", media.path(), error))?;
            durable_upto = durable_upto.max(scanned.durable_upto);
        }
        Ok(durable_upto)
    }

    fn segments(
        &mut self,
        segments: &[Candidate],
        view: &PackView,
        chain: &mut Chain,
        files: &mut Vec<FileEntry>,
    ) -> Result<(), MaintainError> {
        let durable_upto = self.durable_upto(segments)?;
        for (at, one) in segments.iter().enumerate() {
            let next = segments.get(at + 1).map(|next| next.base);
            let Some((media, salt)) = self.open(FileKind::Segment, one, true)? else { continue };
            let path = media.path().to_owned();
            let failed = |error| MaintainError::io("save", &path, error);
            let leaps = self.may_leap(one);
            let mut survey =
                Survey::new(Arc::clone(&media), (salt, one.base), (media.len(), false), leaps);
            let base = one.base.max(chain.next_offset);
            let mut writer = SegmentWriter::create(&self.env, base, media.len()).map_err(failed)?;
            chain.tables.begin_segment();
            let mut pending: Option<Stretch> = None;
            let mut is_end = false;
            loop {
                let from = survey.position;
                let Some(stretch) = survey.next().map_err(failed)? else { break };
                self.lose_stretch(&path, pending.take(), Some(stretch.base));
                if stretch.is_torn(durable_upto) {
                    is_end = true;
                    break;
                }
                self.report.frames += writer.add(&stretch, chain).map_err(failed)?;
                self.note(&path, &stretch, view);
                if stretch.bad.is_some() {
                    pending = Some(stretch);
                }
                self.step(&path, survey.position - from)?;
            }
            self.lose_stretch(&path, pending.take(), next);
            files.extend(writer.finish(chain).map_err(failed)?);
            if is_end {
                break;
            }
        }
        Ok(())
    }

    /// Whether a segment may have been compacted: only one that was not sealed may not.
    fn may_leap(&self, one: &Candidate) -> bool {
        let unmarked = |file: &FileEntry| {
            file.kind == FileKind::Segment
                && file.state == FileState::Unmarked
                && (file.base, file.generation) == (one.base, one.generation)
        };
        !self.known.as_ref().is_some_and(|known| known.files.iter().any(unmarked))
    }

    /// Remembers epochs, and looks for the blobs of a stretch.
    fn note(&mut self, path: &Path, stretch: &Stretch, view: &PackView) {
        if let Some(header) = &stretch.header
            && self.epochs.last().is_none_or(|last| last.epoch < header.epoch)
        {
            self.epochs.push(EpochStart {
                epoch: header.epoch,
                first_offset: header.base_offset,
                first_seq: header.seq,
            });
        }
        for record in &stretch.records {
            if record.prefix.kind == RecordKind::Frame
                && let Ok(frame) = Frame::from_record(record.bytes.clone(), Some(stretch.base))
                && let Some(hash) = frame.hash().filter(|hash| !view.contains(hash))
                && self.is_visible(&frame)
            {
                let what = "the blob it names is lost";
                let (severity, problem) = (Severity::Lost, Problem::MissingBlob);
                let finding = Finding::new(severity, problem, path, record.position, what);
                let offset = frame.offset().unwrap_or(stretch.base);
                self.lose(finding.frames(offset, None, Some(frame.id())).blob(Some(hash)));
            }
        }
    }

    /// Whether readers of the old store would see a frame: what is gone may have lost its blob.
    /// With no manifest nobody can tell, and everything counts.
    fn is_visible(&self, frame: &Frame) -> bool {
        let visible = self.visible.get_or_init(|| {
            let files = ReadOnlyFiles::of_open(Arc::clone(&self.from_files));
            let env = looked_at(self.from, files, self.known.clone()?);
            Some(Visible::of(&Arc::new(env.ok()?)))
        });
        visible.as_ref().is_none_or(|visible| visible.sees(frame))
    }

    /// Lists what a damaged stretch has lost, now that it is known where the next one begins.
    fn lose_stretch(&mut self, path: &Path, stretch: Option<Stretch>, next: Option<u64>) {
        let Some(stretch) = stretch else { return };
        let Some((position, why)) = &stretch.bad else { return };
        let is_whole = stretch.header.is_some_and(|h| h.count as usize == stretch.records.len());
        let finding = Finding::new(Severity::Lost, Problem::Batch, path, *position, why);
        match missing(&stretch, next, true) {
            Some(lost) => {
                self.report.frames_lost += lost.end - lost.start - sound_in(&stretch, &lost);
                self.lose(finding.frames(lost.start, Some(lost.end), None));
            }
            None if is_whole || stretch.header.is_none() && !stretch.records.is_empty() => {}
            // A cursor, a key, or nothing.
            None => self.lose(finding),
        }
    }
}

/// Sound frames of a stretch with an offset in a range.
fn sound_in(stretch: &Stretch, range: &Range<u64>) -> u64 {
    let offset = |delta: u32| stretch.base.saturating_add(u64::from(delta));
    let frames = stretch.records.iter().filter(|r| r.prefix.kind == RecordKind::Frame);
    frames.filter(|r| range.contains(&offset(r.prefix.offset_delta))).count() as u64
}
