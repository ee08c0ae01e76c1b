//! Scans every frame of a range of offsets, forward or backward, and selects those of some topics.
//! Also checks the CRC of frames it skips: a damaged topic must not hide a frame.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::walk::{FoundRecord, WINDOW_SCAN, Walk, Window};
use crate::error::{Corruption, ReadError};
use crate::format::file::FILE_HEADER_LEN;
use crate::format::record::{RecordKind, peek_topic};
use crate::index::{Index, SegmentIndex};
use crate::store::Inner;
use crate::value::{Frame, FrameRef, TopicPatterns};

pub(super) const FIRST_BATCH: u64 = FILE_HEADER_LEN as u64;

/// The index in `segments` of the one that covers `offset`, if any.
pub(super) fn segment_of(segments: &[Arc<SegmentIndex>], offset: u64) -> Option<usize> {
    segments.partition_point(|of| of.segment().base() <= offset).checked_sub(1)
}

/// A walk positioned at or before the frame at `offset`.
pub(super) fn walk_to(
    index: &Index,
    of: &SegmentIndex,
    offset: u64,
    window: u64,
) -> Result<Walk, ReadError> {
    let base = of.segment().base();
    let step = index.step(of, |entry| base + u64::from(entry.offset_delta) <= offset)?;
    let (position, next) = step.map_or((FIRST_BATCH, base), |entry| {
        (u64::from(entry.position), base + u64::from(entry.offset_delta))
    });
    let mut walk = Walk::new(of.segment().clone(), position, next, window);
    walk.skip_to(offset)?;
    Ok(walk)
}

/// State common to both directions.
pub(super) struct Range {
    pub(super) store: Arc<Inner>,
    pub(super) segments: Arc<[Arc<SegmentIndex>]>,
    pub(super) topics: TopicPatterns,
    /// `*` is among the topics.
    pub(super) takes_all: bool,
    /// The first offset wanted.
    pub(super) start: u64,
    /// The offset after the last one wanted.
    pub(super) end: u64,
}

impl Range {
    #[inline]
    fn takes(&self, topic: &[u8]) -> bool {
        // Most reads take everything that is not reserved, and need not decode the topic as text.
        (self.takes_all && !topic.starts_with(b"xs"))
            || std::str::from_utf8(topic).is_ok_and(|topic| self.topics.matches(topic))
    }
}

/// The forward scan.
pub(super) struct Forward {
    range: Range,
    at: usize,
    walk: Option<Walk>,
}

impl Forward {
    pub(super) fn new(range: Range) -> Self {
        let at = segment_of(&range.segments, range.start).unwrap_or(0);
        Self { range, at, walk: None }
    }

    /// The next frame, or an error for a damaged place; the next call continues after it. Each
    /// skipped record takes one from `looks`; at 0 it returns `None`, and the next call continues.
    #[inline]
    pub(super) fn next(&mut self, looks: &mut usize) -> Option<Result<Frame, ReadError>> {
        while self.range.start < self.range.end {
            let walk = match &mut self.walk {
                Some(walk) => walk,
                none => {
                    let of = self.range.segments.get(self.at)?;
                    match walk_to(&self.range.store.index, of, self.range.start, WINDOW_SCAN) {
                        // Records that are not frames are skipped here, where they are counted.
                        Ok(walk) => none.insert(walk.with_controls()),
                        Err(error) => return Some(Err(error)),
                    }
                }
            };
            let taken = match walk.next() {
                Some(Ok(found)) if found.offset >= self.range.end => return None,
                Some(Ok(found)) => take(walk, &found, &self.range),
                Some(Err(error)) if is_behind(&error, self.range.end) => return None,
                Some(Err(error)) => Err(error),
                None => {
                    self.walk = None;
                    self.at += 1;
                    continue;
                }
            };
            match taken {
                Ok(None) => {
                    *looks = looks.saturating_sub(1);
                    if *looks == 0 {
                        self.range.start = self.range.start.max(walk.next_offset());
                        return None;
                    }
                }
                Ok(Some(frame)) => {
                    self.range.start = frame.offset().map_or(self.range.end, |offset| offset + 1);
                    return Some(Ok(frame));
                }
                Err(error) if is_before(&error, walk.next_offset(), self.range.start) => {}
                Err(error) => {
                    self.pass_by(&error);
                    return Some(Err(error));
                }
            }
        }
        None
    }

    /// The next offset to examine.
    pub(super) const fn position(&self) -> u64 {
        self.range.start
    }

    /// Continues after damage: at the next frames, or at the next segment.
    fn pass_by(&mut self, error: &ReadError) {
        let ReadError::Corrupt(_) = error else { return };
        let behind = self.walk.as_mut().and_then(Walk::resumes);
        let behind = behind.unwrap_or_else(|| {
            let next = self.range.segments.get(self.at + 1);
            next.map_or(self.range.end, |next| next.segment().base())
        });
        self.range.start = self.range.start.max(behind.min(self.range.end));
    }
}

impl Forward {
    /// Passes the next frames of this segment to `visit`, until it breaks. Remaining frames, and
    /// anything that is not a sound frame, are left to [`Self::next`].
    #[inline]
    pub(super) fn visit(
        &mut self,
        mut visit: impl FnMut(&FrameRef<'_>) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let Some(walk) = &mut self.walk else { return Ok(()) };
        loop {
            let range = &self.range;
            let flow = walk.visit(range.end, |offset, prefix, record| {
                let topic = peek_topic(record, prefix);
                if offset < range.start || !topic.is_some_and(|topic| range.takes(topic)) {
                    return Ok(ControlFlow::Continue(()));
                }
                Ok(visit(&FrameRef::of_checked(record, prefix, offset)?))
            })?;
            self.range.start = self.range.start.max(walk.next_offset());
            if flow.is_break() || self.range.start >= self.range.end {
                return Ok(());
            }
            match walk.enter() {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) if is_before(&error, walk.next_offset(), self.range.start) => {}
                Err(error) if is_behind(&error, self.range.end) => {
                    self.range.start = self.range.end;
                    return Ok(());
                }
                Err(error) => {
                    self.pass_by(&error);
                    return Err(error);
                }
            }
        }
    }
}

/// Whether damage that ends before `next` affects only frames before `start`.
pub(super) fn is_before(error: &ReadError, next: u64, start: u64) -> bool {
    begin(error).is_some_and(|from| from < next && next <= start)
}

/// The offset at which damage begins.
const fn begin(error: &ReadError) -> Option<u64> {
    match error {
        ReadError::Corrupt(corruption) => corruption.offset,
        _ => None,
    }
}

/// Extends damage up to an offset: the walk has found the next record there, and nothing in
/// between.
fn reaching(error: ReadError, until: u64) -> ReadError {
    match error {
        ReadError::Corrupt(corruption) => {
            ReadError::Corrupt(Corruption { until: Some(until), ..corruption })
        }
        other => other,
    }
}

/// Whether damage affects only frames from `end` on.
fn is_behind(error: &ReadError, end: u64) -> bool {
    begin(error).is_some_and(|at| at >= end)
}

#[inline]
fn take(walk: &mut Walk, found: &FoundRecord, range: &Range) -> Result<Option<Frame>, ReadError> {
    if found.offset < range.start || found.prefix.kind != RecordKind::Frame {
        return Ok(None);
    }
    match peek_topic(walk.peek(found), &found.prefix) {
        Some(topic) if range.takes(topic) => walk.frame(found).map(Some),
        _ => walk.pass(found).map(|()| None),
    }
}

/// The backward scan: walks a step of the sparse index forward and yields it from its end.
pub(super) struct Backward {
    range: Range,
    /// The lowest offset examined: everything from there on was yielded, skipped or reported.
    lowest: u64,
    pending: Vec<Result<FoundRecord, ReadError>>,
    window: Option<Window>,
    /// Base of the segment of the last step, and where the step begins in its file.
    step: Option<(u64, u64)>,
}

impl Backward {
    pub(super) const fn new(range: Range) -> Self {
        let lowest = range.end;
        Self { range, lowest, pending: Vec::new(), window: None, step: None }
    }

    /// The lowest offset examined.
    pub(super) const fn position(&self) -> u64 {
        self.lowest
    }

    /// The next lower frame, or an error for a damaged place; the next call continues below it. A
    /// skipped frame takes one from `looks`, as in [`Forward::next`].
    pub(super) fn next(&mut self, looks: &mut usize) -> Option<Result<Frame, ReadError>> {
        loop {
            let above = self.lowest;
            match (self.pending.pop(), &mut self.window) {
                (Some(Ok(found)), Some(window)) => {
                    self.lowest = found.offset.min(above);
                    match window.frame_at(found.position, found.offset) {
                        Ok(Some(frame)) if self.range.topics.matches(frame.topic()) => {
                            return Some(Ok(frame));
                        }
                        Ok(Some(_)) => {
                            *looks = looks.saturating_sub(1);
                            if *looks == 0 {
                                return None;
                            }
                        }
                        Ok(None) => {
                            let error = window.damaged(found.position, found.offset);
                            return Some(Err(reaching(error, above)));
                        }
                        Err(error) => return Some(Err(error)),
                    }
                }
                (Some(Err(error)), _) => {
                    self.lowest = begin(&error).map_or(above, |offset| offset.min(above));
                    return Some(Err(reaching(error, above)));
                }
                _ => match self.step() {
                    Ok(true) => {}
                    Ok(false) => return None,
                    Err(error) => return Some(Err(error)),
                },
            }
        }
    }

    fn step(&mut self) -> Result<bool, ReadError> {
        let Range { store, segments, start, end, .. } = &self.range;
        let Some(newest) = end.checked_sub(1).filter(|newest| newest >= start) else {
            return Ok(false);
        };
        let Some(of) = segment_of(segments, newest).and_then(|at| segments.get(at)) else {
            return Ok(false);
        };
        let base = of.segment().base();
        let step = store.index.step(of, |entry| base + u64::from(entry.offset_delta) < *end)?;
        let (position, lowest) = step.map_or((FIRST_BATCH, base), |entry| {
            (u64::from(entry.position), base + u64::from(entry.offset_delta))
        });
        let mut walk = Walk::new(of.segment().clone(), position, lowest, WINDOW_SCAN);
        let wanted = *start..*end;
        // The step above begins there. A damaged record of it may pass for one of this step: where
        // frames before it were compacted away, a lower offset is expected.
        let above = self.step.filter(|(other, _)| *other == base).map(|(_, position)| position);
        let is_above = |position: u64| above.is_some_and(|above| position >= above);
        while let Some(found) = walk.next() {
            match found {
                Err(ReadError::Corrupt(error)) if is_above(error.position) => break,
                Ok(found) if found.offset >= wanted.end => break,
                Ok(found) if found.offset >= wanted.start => self.pending.push(Ok(found)),
                Err(error) if is_behind(&error, wanted.end) => break,
                Err(error) if !is_before(&error, walk.next_offset(), wanted.start) => {
                    self.pending.push(Err(error));
                }
                Ok(_) | Err(_) => {}
            }
        }
        // One window over the whole step, so that reading it backward needs no further read.
        let mut window = Window::new(of.segment().clone(), WINDOW_SCAN);
        let found = || self.pending.iter().filter_map(|entry| entry.as_ref().ok());
        if let (Some(first), Some(last)) = (found().next(), found().next_back()) {
            let end = last.position + u64::from(last.prefix.len);
            window.get(first.position, end - first.position)?;
        }
        self.window = Some(window);
        // Everything above it was examined or compacted away.
        self.lowest = self.lowest.min(self.range.end);
        self.range.end = lowest;
        self.step = Some((base, position));
        Ok(true)
    }
}
