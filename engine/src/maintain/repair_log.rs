//! Saves the segments of a damaged store: which of their batches count, where the log ends, and
//! what is missing. A file that is shorter than the manifest says, or whose end is blank, has lost
//! data; only what was never known to be durable ends a log.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::candidates::Candidate;
use super::check_log::{Ended, missing};
use super::error::MaintainError;
use super::finding::{Finding, Problem, Severity};
use super::read_only::ReadOnlyFiles;
use super::repair::Rescue;
use super::save_log::{Chain, SegmentWriter};
use super::survey::{Stretch, Survey};
use super::verify::looked_at;
use super::visible::Visible;
use crate::blob::PackView;
use crate::format::batch::BatchError;
use crate::format::record::RecordKind;
use crate::format::super_file::{EpochStart, FileEntry, FileKind, FileState};
use crate::limits::FINDINGS_MAX;
use crate::recovery::scan::scan;
use crate::value::{BlobHash, Frame};

/// Segments at the end of the log that may know how far it was durable.
const TAIL_SEGMENTS: usize = 3;

/// Blobs that are not in the saved packs, though an open would not miss them.
#[derive(Debug, Default)]
pub(super) struct Rotten {
    blobs: HashSet<BlobHash>,
    /// It is unknown which they are.
    any: bool,
}

impl Rotten {
    /// Adds a damaged blob; `None` when it is unknown which one.
    pub(super) fn note(&mut self, hash: Option<BlobHash>) {
        self.any |= hash.is_none() || self.blobs.len() >= FINDINGS_MAX;
        self.blobs.extend(hash.filter(|_| !self.any));
    }

    /// Whether a blob that is not found may be one of them.
    pub(super) fn may_hold(&self, hash: &BlobHash) -> bool {
        self.any || self.blobs.contains(hash)
    }
}

/// Where a segment ends, as far as the manifest tells.
struct End {
    /// It was neither sealed nor closed cleanly: what was never durable ends the log.
    is_open: bool,
    /// An open would append to it.
    is_unmarked: bool,
    /// Where its last batch ends, if known.
    length: Option<u64>,
    /// The offset after its last frame, or the base of the next segment.
    limit: Option<u64>,
    /// Frames in it, if known.
    frames: Option<u64>,
}

/// State of the walk through the log.
struct Log<'a> {
    /// Every batch with a lower seq was durable at some point: damage after that hit nothing
    /// acknowledged, and ends the log.
    durable_upto: u64,
    view: &'a PackView,
    chain: &'a mut Chain,
    files: &'a mut Vec<FileEntry>,
    /// Where the previous unmarked segment ends.
    ended: Option<Ended>,
}

impl Rescue<'_> {
    /// See [`Log::durable_upto`].
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

    /// Saves all segments, given in order.
    pub(super) fn segments(
        &mut self,
        segments: &[Candidate],
        view: &PackView,
        chain: &mut Chain,
        files: &mut Vec<FileEntry>,
    ) -> Result<(), MaintainError> {
        let durable_upto = self.durable_upto(segments)?;
        let mut log = Log { durable_upto, view, chain, files, ended: None };
        for (at, one) in segments.iter().enumerate() {
            let next = segments.get(at + 1).map(|next| next.base);
            if !self.segment(one, next, &mut log)? {
                break;
            }
        }
        Ok(())
    }

    /// Saves a segment. Returns whether the log continues after it.
    fn segment(
        &mut self,
        one: &Candidate,
        next: Option<u64>,
        log: &mut Log<'_>,
    ) -> Result<bool, MaintainError> {
        let Some((media, salt)) = self.open(FileKind::Segment, one, true)? else { return Ok(true) };
        let path = media.path().to_owned();
        let failed = |error| MaintainError::io("save", &path, error);
        let (end, lost_before) = (self.end_of(one, next), self.report.frames_lost);
        // Including sound batches after the end that the manifest gives: this copy of the manifest
        // may be stale.
        let bounds = (media.len(), false);
        let mut survey =
            Survey::new(Arc::clone(&media), (salt, one.base), bounds, !end.is_unmarked);
        let base = one.base.max(log.chain.next_offset);
        let mut writer = SegmentWriter::create(&self.env, base, media.len()).map_err(failed)?;
        log.chain.tables.begin_segment();
        let (mut pending, mut kept): (Option<Stretch>, u64) = (None, 0);
        let (reached, bound, is_end) = loop {
            let from = survey.position;
            let Some(stretch) = survey.next().map_err(failed)? else { break (from, None, false) };
            let is_behind = end.length.is_some_and(|length| from >= length);
            if is_behind && !end.is_open && stretch.bad.is_some() {
                break (from, None, false);
            }
            let is_connected = self.connects(&stretch, log);
            if !is_connected || end.is_open && self.ends(&stretch, &end, log) {
                break (from, stretch.header.map(|header| header.base_offset), true);
            }
            self.lose_stretch(&path, pending.take(), Some(stretch.base), log.chain);
            let added = writer.add(&stretch, log.chain).map_err(failed)?;
            (self.report.frames, kept) = (self.report.frames + added, kept + added);
            self.note(&path, &stretch, log.view);
            if stretch.bad.is_some() {
                pending = Some(stretch);
            }
            self.step(&path, survey.position - from)?;
        };
        let covered = match &pending {
            None => Some(survey.next_offset),
            Some(Stretch { header: Some(header), base, .. }) => {
                Some(survey.next_offset.max(base.saturating_add(u64::from(header.count))))
            }
            Some(_) => None,
        };
        let is_told = pending.is_some();
        self.lose_stretch(&path, pending, bound.or(end.limit), log.chain);
        if end.length.is_some_and(|length| reached < length)
            && let Some(from) = covered
        {
            let known = kept + (self.report.frames_lost - lost_before);
            self.lose_end(&path, reached, (from, is_told), &end, known);
        }
        let (seq, offset) = (survey.next_seq(), survey.next_offset);
        let ended = Ended { path: path.clone(), position: reached, seq, offset };
        log.ended = (end.is_unmarked && end.is_open && !is_told && !is_end).then_some(ended);
        log.files.extend(writer.finish(log.chain).map_err(failed)?);
        Ok(!is_end)
    }

    /// Where a segment ends, and how.
    fn end_of(&self, one: &Candidate, next: Option<u64>) -> End {
        let key = one.file(FileKind::Segment);
        let entry = self.known.as_ref().and_then(|known| known.file(key));
        let clean = self.known.as_ref().is_some_and(|known| known.clean);
        let is_sealed = entry.is_some_and(|file| file.state == FileState::Sealed);
        let sealed = entry.filter(|_| is_sealed);
        End {
            is_open: !clean && !is_sealed,
            is_unmarked: entry.is_some() && !is_sealed,
            length: entry.filter(|_| clean || is_sealed).map(|file| file.length),
            limit: sealed.map(FileEntry::end).or(next),
            frames: sealed.map(|file| file.count),
        }
    }

    /// Whether the first stretch of a segment continues where the previous unmarked one ends. What
    /// is missing in between is lost if it was durable; otherwise it ends the log.
    fn connects(&mut self, stretch: &Stretch, log: &mut Log<'_>) -> bool {
        let Some(ended) = log.ended.take() else { return true };
        let Some(header) = stretch.header else { return true };
        let Some(was_durable) = ended.lacks(&header, log.durable_upto) else { return true };
        if was_durable {
            let (from, upto) = (ended.offset, header.base_offset);
            let (severity, problem, what) = (Severity::Lost, Problem::Batch, BatchError::Absent);
            let finding = Finding::new(severity, problem, &ended.path, ended.position, what);
            self.report.frames_lost += upto.saturating_sub(from);
            self.lose(finding.frames(from, Some(upto), None));
        }
        was_durable
    }

    /// Whether the log ends before a stretch, by the rules of an open: the stretch is damaged and
    /// was never known to be durable, or its durability is unknown and it names a missing blob.
    fn ends(&self, stretch: &Stretch, end: &End, log: &Log<'_>) -> bool {
        let is_missing = |hash: BlobHash| !log.view.contains(&hash) && !self.rotten.may_hold(&hash);
        stretch.is_torn(log.durable_upto)
            || end.is_unmarked
                && stretch.is_doubtful(log.durable_upto)
                && stretch.blobs().any(|(_, hash)| is_missing(hash))
    }

    /// Records epochs, and checks the blobs of a stretch.
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

    /// Whether readers of the old store would see a frame: a removed frame may have lost its blob.
    /// Without a manifest this is unknown, and everything counts.
    fn is_visible(&self, frame: &Frame) -> bool {
        let visible = self.visible.get_or_init(|| {
            let files = ReadOnlyFiles::of_open(Arc::clone(&self.from_files));
            let env = looked_at(self.from, files, self.known.clone()?);
            Some(Visible::of(&Arc::new(env.ok()?)))
        });
        visible.as_ref().is_none_or(|visible| visible.sees(frame))
    }

    /// Reports what a damaged stretch has lost, now that it is known where the next one begins.
    fn lose_stretch(
        &mut self,
        path: &Path,
        stretch: Option<Stretch>,
        next: Option<u64>,
        chain: &mut Chain,
    ) {
        let Some(stretch) = stretch else { return };
        let Some((position, why)) = &stretch.bad else { return };
        let is_whole = stretch.header.is_some_and(|h| h.count as usize == stretch.records.len());
        let finding = Finding::new(Severity::Lost, Problem::Batch, path, *position, why);
        match missing(&stretch, next, true) {
            Some(lost) => {
                chain.reach(lost.end);
                self.report.frames_lost += lost.end - lost.start - sound_in(&stretch, &lost);
                self.lose(finding.frames(lost.start, Some(lost.end), None));
            }
            None if is_whole || stretch.header.is_none() && !stretch.records.is_empty() => {}
            // A cursor, a key, or nothing.
            None => self.lose(finding),
        }
    }

    /// Reports what is missing at the end of a segment of known length, from the frame `from` on;
    /// with `is_told`, damage before it was already reported. `known` of its frames are accounted
    /// for.
    fn lose_end(
        &mut self,
        path: &Path,
        reached: u64,
        (from, is_told): (u64, bool),
        end: &End,
        known: u64,
    ) {
        let upto = end.limit.filter(|&limit| limit > from);
        if upto.is_none() && is_told {
            return;
        }
        let what = format!("ends here, not at byte {}", end.length.unwrap_or_default());
        let mut finding = Finding::new(Severity::Lost, Problem::Length, path, reached, what);
        if let Some(upto) = upto {
            let left = end.frames.map_or(u64::MAX, |frames| frames.saturating_sub(known));
            self.report.frames_lost += left.min(upto - from);
        }
        // Before the known end of a sealed one, only cursors and keys can be missing.
        if upto.is_some() || end.limit.is_none() {
            finding = finding.frames(from, upto, None);
        }
        self.lose(finding);
    }
}

/// Number of sound frames of a stretch with an offset in a range.
fn sound_in(stretch: &Stretch, range: &Range<u64>) -> u64 {
    let offset = |delta: u32| stretch.base.saturating_add(u64::from(delta));
    let frames = stretch.records.iter().filter(|r| r.prefix.kind == RecordKind::Frame);
    frames.filter(|r| range.contains(&offset(r.prefix.offset_delta))).count() as u64
}
