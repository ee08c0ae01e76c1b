//! Checks the segments of the log: every batch, every record, what they name, and that ids and
//! offsets increase from the first segment to the last.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::derived;
use super::error::MaintainError;
use super::finding::{Finding, Problem, Severity};
use super::survey::{SoundRecord, Stretch, Survey, find_salt};
use super::verify::Checker;
use crate::format::batch::{BatchError, BatchHeader};
use crate::format::control::{self, Control, CursorRecord};
use crate::format::file::{FILE_HEADER_LEN, Magic};
use crate::format::record::RecordKind;
use crate::format::super_file::{FileEntry, FileState};
use crate::index::{MemoryIndex, Noted};
use crate::limits::CURSORS_MAX;
use crate::log::{SegmentKey, position_of};
use crate::media::Media;
use crate::recovery::scan::scan;
use crate::value::{BlobHash, Frame, FrameId};

/// State of the log up to the current position of the check.
#[derive(Debug)]
pub(super) struct LogState {
    last_id: FrameId,
    /// In a store that was not closed cleanly: every batch with a lower seq was durable.
    durable_upto: u64,
    /// The end of the log was passed.
    torn: bool,
    /// Where the previous unmarked segment ends, if known.
    ended: Option<Ended>,
    /// Cursors whose latest state so far is missing: a superseded state may have been removed.
    stateless: BTreeMap<String, Finding>,
}

/// Where an unmarked segment ends, after which its file is zero.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) path: PathBuf,
    pub(super) position: u64,
    /// Seq of the batch that follows it; `None` when it holds no batch.
    pub(super) seq: Option<u64>,
    /// The offset that follows it.
    pub(super) offset: u64,
}

impl Ended {
    /// Whether what is missing between it and the next batch was durable; `None` when nothing is
    /// missing.
    pub(super) fn lacks(&self, header: &BatchHeader, durable_upto: u64) -> Option<bool> {
        let (follows, was_durable) = match self.seq {
            Some(seq) => (header.seq <= seq, seq < durable_upto),
            None => (header.base_offset <= self.offset, header.seq <= durable_upto),
        };
        (!follows).then_some(was_durable)
    }
}

/// A segment being checked.
struct Segment {
    file: FileEntry,
    path: PathBuf,
    survey: Survey,
    /// The offset after its last frame, as far as the manifest tells.
    limit: Option<u64>,
    index: MemoryIndex,
    damaged: bool,
    /// A damaged stretch, reported once it is known where the next one begins.
    pending: Option<Stretch>,
}

impl Segment {
    /// Where it ends, unless something is wrong there.
    fn ended(&self, position: u64) -> Option<Ended> {
        let (seq, offset) = (self.survey.next_seq(), self.survey.next_offset);
        let ended = Ended { path: self.path.clone(), position, seq, offset };
        self.pending.is_none().then_some(ended)
    }
}

impl Checker<'_> {
    /// Checks all segments, given in order.
    pub(super) fn log(&mut self, files: &[FileEntry]) -> Result<(), MaintainError> {
        let unclean = !self.env.manifest.state().clean;
        let mut state = LogState {
            last_id: FrameId::ZERO,
            durable_upto: 0,
            torn: false,
            ended: None,
            stateless: BTreeMap::new(),
        };
        if unclean {
            for file in files.iter().filter(|file| file.state == FileState::Unmarked) {
                state.durable_upto = state.durable_upto.max(self.durable_upto(file));
            }
        }
        for (at, file) in files.iter().enumerate() {
            let limit = files.get(at + 1).map(|next| next.base);
            self.segment(file, limit, unclean, &mut state)?;
        }
        state.stateless.into_values().for_each(|finding| self.report.add(finding));
        Ok(())
    }

    /// The highest `durable_upto` in an unmarked segment.
    fn durable_upto(&self, file: &FileEntry) -> u64 {
        let path = file.path_in(&self.env.dir);
        let Ok(media) = self.env.files.open_scan(&path) else { return 0 };
        let header = self.header_of(&media, Magic::Segment);
        let salt = header.map_or_else(|_| find_salt(&*media), |header| Some(header.salt));
        let Some(salt) = salt else { return 0 };
        let &FileEntry { base, generation, uuid, .. } = file;
        let key = SegmentKey { base, generation, uuid, salt };
        scan(&media, &key, media.len()).map_or(0, |scanned| scanned.durable_upto)
    }

    fn segment(
        &mut self,
        file: &FileEntry,
        limit: Option<u64>,
        unclean: bool,
        state: &mut LogState,
    ) -> Result<(), MaintainError> {
        let path = file.path_in(&self.env.dir);
        let before = self.report.findings_total;
        let Some((media, salt)) = self.open(file, &path, Magic::Segment)? else { return Ok(()) };
        let open_end = file.state == FileState::Unmarked && unclean;
        let leaps = file.state == FileState::Sealed;
        let end = if open_end { media.len() } else { file.length.min(media.len()) };
        let mut segment = Segment {
            survey: Survey::new(Arc::clone(&media), (salt, file.base), (end, !open_end), leaps),
            limit,
            index: MemoryIndex::new(file.base),
            damaged: false,
            pending: None,
            file: *file,
            path,
        };
        loop {
            let from = segment.survey.position;
            let next = segment.survey.next();
            let next = next.map_err(|error| MaintainError::io("read", &segment.path, error))?;
            let Some(stretch) = next else {
                state.ended = segment.ended(from).filter(|_| open_end && !self.live);
                break;
            };
            self.tell(&mut segment, Some(stretch.base));
            self.gap(&stretch, state);
            let is_torn = open_end && stretch.is_torn(state.durable_upto);
            if is_torn || state.torn {
                self.torn(&segment, &stretch, state);
                break;
            }
            if open_end && self.report_cut(&segment.path, &stretch, state) {
                break;
            }
            self.stretch(&mut segment, &stretch, state)?;
            if stretch.bad.is_some() {
                segment.damaged = true;
                segment.pending = Some(stretch);
            }
            self.advance(&segment.path, segment.survey.position - from)?;
        }
        let limit = segment.limit;
        self.tell(&mut segment, limit);
        let held = if open_end { u64::MAX } else { end };
        segment.damaged |= self.holes(media.path(), held);
        let sound = self.report.findings_total == before;
        if !open_end {
            self.trailing(file, &segment.path, &media, end)?;
        }
        if self.is_exact(file) {
            if sound {
                self.file_crc(file, &segment.path, &media)?;
            }
            derived::sound(self, file);
            if !segment.damaged {
                derived::segment(self, file, &segment.index);
            }
        }
        Ok(())
    }

    /// Reports what is missing between the end of an unmarked segment and the first batch of the
    /// next one. Zeros at an end alone are not damage.
    fn gap(&mut self, stretch: &Stretch, state: &mut LogState) {
        let Some(ended) = state.ended.take() else { return };
        let Some(header) = stretch.header else { return };
        let Some(was_durable) = ended.lacks(&header, state.durable_upto) else { return };
        let (severity, problem) = match was_durable {
            true => (Severity::Lost, Problem::Batch),
            false => (Severity::Unused, Problem::TornTail),
        };
        state.torn |= !was_durable;
        let (what, upto) = (BatchError::Absent, Some(header.base_offset));
        let finding = Finding::new(severity, problem, &ended.path, ended.position, what);
        self.report.add(finding.frames(ended.offset, upto.filter(|_| was_durable), None));
    }

    /// Reports the end of a log that was not closed cleanly, once.
    fn torn(&mut self, segment: &Segment, stretch: &Stretch, state: &mut LogState) {
        if !std::mem::replace(&mut state.torn, true)
            && let Some((position, why)) = &stretch.bad
        {
            let found = (Severity::Unused, Problem::TornTail);
            let finding = Finding::new(found.0, found.1, &segment.path, *position, why);
            self.report.add(finding.frames(stretch.base, None, None));
        }
    }

    /// Reports where the next open will cut the log before a whole batch, and returns whether it
    /// will: the batch is not known to be durable, and it names a missing blob.
    fn report_cut(&mut self, path: &Path, stretch: &Stretch, state: &mut LogState) -> bool {
        if !stretch.is_doubtful(state.durable_upto) {
            return false;
        }
        let is_gone = |hash: &BlobHash| !self.has_blob(hash) && !self.rotten.may_hold(hash);
        let Some((position, hash)) = stretch.blobs().find(|(_, hash)| is_gone(hash)) else {
            return false;
        };
        let (severity, problem) = (Severity::Unused, Problem::TornTail);
        let what = "a blob it names was never stored";
        let finding = Finding::new(severity, problem, path, position, what).blob(Some(hash));
        self.report.add(finding.frames(stretch.base, None, None));
        state.torn = true;
        true
    }

    /// Checks the records of a stretch.
    fn stretch(
        &mut self,
        segment: &mut Segment,
        stretch: &Stretch,
        state: &mut LogState,
    ) -> Result<(), MaintainError> {
        for record in &stretch.records {
            match record.prefix.kind {
                RecordKind::Frame => {
                    self.frame(segment, stretch, record, state);
                }
                _ => self.control(segment, record, state),
            }
        }
        Ok(())
    }

    fn frame(
        &mut self,
        segment: &mut Segment,
        stretch: &Stretch,
        record: &SoundRecord,
        state: &mut LogState,
    ) {
        let offset = stretch.base.saturating_add(u64::from(record.prefix.offset_delta));
        let frame = match Frame::from_record(record.bytes.clone(), Some(stretch.base)) {
            Ok(frame) => frame,
            Err(error) => {
                let (severity, problem) = (Severity::Lost, Problem::Record);
                let finding =
                    Finding::new(severity, problem, &segment.path, record.position, error);
                self.report.add(finding.frames(offset, None, None));
                return;
            }
        };
        self.report.frames += 1;
        if frame.id() <= state.last_id {
            let what = format!("the id is not above {}", state.last_id);
            let (severity, problem) = (Severity::Lost, Problem::Order);
            let finding = Finding::new(severity, problem, &segment.path, record.position, what);
            self.report.add(finding.frames(offset, None, Some(frame.id())));
        }
        state.last_id = state.last_id.max(frame.id());
        if let Some(hash) = frame.hash()
            && !self.has_blob(&hash)
            && self.is_visible(&frame)
            && !self.is_left(segment)
        {
            let finding = missing_blob(&segment.path, record, hash);
            self.report.add(finding.frames(offset, None, Some(frame.id())));
        }
        segment.index.note(&Noted {
            offset,
            id: frame.id(),
            topic: frame.topic(),
            batch: position_of(stretch.range.start),
            record: position_of(record.position),
            record_len: record.prefix.len,
            body_len: frame.body_len(),
            ttl: frame.ttl(),
        });
    }

    fn control(&mut self, segment: &Segment, record: &SoundRecord, state: &mut LogState) {
        match control::decode(&record.bytes, &record.prefix) {
            Ok(Control::Cursor(CursorRecord { name, .. })) => {
                state.stateless.remove(name);
                if let Some(hash) = control::named_blob(&record.bytes, &record.prefix)
                    && !self.has_blob(&hash)
                    && !self.is_left(segment)
                {
                    let finding = missing_blob(&segment.path, record, hash);
                    match state.stateless.len() < CURSORS_MAX {
                        true => drop(state.stateless.insert(name.to_owned(), finding)),
                        false => self.report.add(finding),
                    }
                }
            }
            Ok(_) => {}
            Err(error) => self.report.add(Finding::new(
                Severity::Lost,
                Problem::Record,
                &segment.path,
                record.position,
                error,
            )),
        }
    }

    /// Whether a segment was replaced since the check began. Must be checked last: when frames are
    /// compacted away, the store forgets that they were removed, but only after their file is
    /// replaced.
    fn is_left(&self, segment: &Segment) -> bool {
        self.is_replaced(&segment.file)
    }

    /// Reports the stretch that waits, now that it is known where the next one begins.
    fn tell(&mut self, segment: &mut Segment, next: Option<u64>) {
        let Some(stretch) = segment.pending.take() else { return };
        let Some((position, why)) = &stretch.bad else { return };
        let problem = match why {
            BatchError::Record(_) => Problem::Record,
            _ => Problem::Batch,
        };
        let lost = missing(&stretch, next, false);
        let all = stretch.header.is_some_and(|h| h.count as usize == stretch.records.len());
        let severity = match lost {
            None if all => Severity::Unused,
            _ => Severity::Lost,
        };
        let mut finding = Finding::new(severity, problem, &segment.path, *position, why);
        if let Some(lost) = lost {
            let id = self.peek_id(segment, &stretch, *position);
            finding = finding.frames(lost.start, Some(lost.end), id);
        }
        self.report.add(finding);
    }

    /// The id of a damaged frame, if the bytes there can be one.
    fn peek_id(&self, segment: &mut Segment, stretch: &Stretch, at: u64) -> Option<FrameId> {
        const ID: Range<u64> = 16..32;
        if at == stretch.range.start {
            return None;
        }
        let bytes = segment.survey.peek(at + ID.start..at + ID.end).ok()?;
        let id = FrameId::from_bytes(bytes.as_ref().try_into().ok()?);
        let near = stretch.records.iter().filter(|r| r.prefix.kind == RecordKind::Frame);
        let ids = near.filter_map(|r| {
            let frame = Frame::from_record(r.bytes.clone(), Some(stretch.base)).ok()?;
            Some((r.position < at, frame.id()))
        });
        let fits = ids.into_iter().all(|(before, other)| (other < id) == before);
        (fits && id > FrameId::ZERO).then_some(id)
    }

    /// Checks the bytes after the last batch.
    fn trailing(
        &mut self,
        file: &FileEntry,
        path: &Path,
        media: &Arc<dyn Media>,
        end: u64,
    ) -> Result<(), MaintainError> {
        if self.live || file.state == FileState::Sealed || media.len() <= end {
            return Ok(());
        }
        let mut at = end.max(FILE_HEADER_LEN as u64);
        while at < media.len() {
            let upto = (at + super::verify::PIECE_LEN).min(media.len());
            let bytes = media.view(at..upto);
            let bytes = bytes.map_err(|error| MaintainError::io("read", path, error))?;
            if let Some(place) = bytes.iter().position(|&byte| byte != 0) {
                let what = "the bytes behind the end of the log are not zero";
                let (severity, problem) = (Severity::Unused, Problem::Trailing);
                let finding = Finding::new(severity, problem, path, at + place as u64, what);
                self.report.add(finding);
                return Ok(());
            }
            at = upto;
        }
        Ok(())
    }
}

fn missing_blob(path: &Path, record: &SoundRecord, hash: BlobHash) -> Finding {
    let what = "the blob it names is missing or damaged";
    let (severity, problem) = (Severity::Lost, Problem::MissingBlob);
    Finding::new(severity, problem, path, record.position, what).blob(Some(hash))
}

/// The offsets from the first unreadable frame of a stretch to the one after the last.
pub(super) fn missing(stretch: &Stretch, next: Option<u64>, saved: bool) -> Option<Range<u64>> {
    // Sound records after a damaged header are invisible to readers, but can be saved.
    let there = |offset: u64| {
        (saved || stretch.header.is_some())
            && stretch.records.iter().any(|record| {
                record.prefix.kind == RecordKind::Frame
                    && stretch.base.saturating_add(u64::from(record.prefix.offset_delta)) == offset
            })
    };
    let end = match stretch.header {
        // It has at most as many frames as records, apart from what was compacted away.
        Some(header) => {
            let own = stretch.base.saturating_add(u64::from(header.count));
            own.max(stretch.next_offset()).min(next.unwrap_or(u64::MAX))
        }
        None => next.unwrap_or_else(|| stretch.next_offset()),
    };
    let first = (stretch.base..end).find(|&offset| !there(offset))?;
    let last = (first..end).rev().find(|&offset| !there(offset)).unwrap_or(first);
    Some(first..last + 1)
}
