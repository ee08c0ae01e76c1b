//! A bounded read: turns options into a range of offsets and a strategy to read it.

use std::collections::HashMap;
use std::fmt;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use super::postings::{ByPostings, Lane};
use super::scan::{self, Backward, Forward};
use crate::error::ReadError;
use crate::index::{SegmentIndex, TopicTotals};
use crate::store::Inner;
use crate::value::{
    Bound, Frame, FrameId, FrameRef, ReadOptions, Start, Topic, TopicPattern, TopicPatterns,
};

/// Maximum topics whose floors one read caches; above it, merging postings costs more than a scan.
const TOPICS_MAX: usize = 4096;
/// A scan is cheaper than postings once more than one in this many of all frames is selected.
const SCAN_SHARE: u64 = 6;
/// Maximum attempts to take head and segments of one moment; a rewrite invalidates an attempt.
const TRIES: usize = 8;
/// Up to this many frames, looking up topics in the index gains nothing.
const SCAN_FRAMES: u64 = 64;

/// The frames a read selects, oldest first or, with `reverse`, newest first. A damaged place is an
/// error that names it; the next call continues after it.
#[must_use = "nothing is read before it is asked"]
pub struct Reader {
    inner: Arc<Inner>,
    way: Way,
    as_of: AsOf,
    left: u64,
    /// Remaining offsets; with `reverse` the range shrinks from its end.
    rest: Range<u64>,
    reverse: bool,
    /// Cached floors of topics.
    floors: HashMap<Arc<str>, u64>,
}

enum Way {
    Forward(Forward),
    Backward(Backward),
    Postings(ByPostings),
    /// The log could not be read, and reading cannot continue.
    Ended,
}

/// Bounds of a read besides its range.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) as_of: AsOf,
    /// Maximum number of frames to yield.
    pub(super) left: u64,
}

/// The snapshot that a reader sees: the log below a head, as it was when the reader began.
#[derive(Debug, Clone)]
pub(super) struct AsOf {
    pub(super) head: u64,
    /// Number of compactions that had removed frames by then.
    pub(super) rewrites: u64,
    /// The segments at that time; they keep their frames, whatever is compacted since.
    pub(super) segments: Arc<[Arc<SegmentIndex>]>,
}

impl Reader {
    pub(super) fn new(inner: &Arc<Inner>, options: &ReadOptions) -> Result<Self, ReadError> {
        let as_of = inner.as_of_now();
        let mut range = inner.range(options, as_of.head)?;
        let mut left = options.limit.unwrap_or(u64::MAX);
        if let Start::Last(n) = options.start {
            if options.reverse {
                left = left.min(n);
            } else {
                // With the same snapshot: a frame that supersedes the first of them meanwhile lies
                // above this head, so with a newer snapshot neither would be seen.
                range.start = inner.start_of_last(&options.topics, range.clone(), &as_of, n)?;
            }
        }
        Ok(Self::over(inner, &options.topics, range, options.reverse, Limits { as_of, left }))
    }

    /// A read of a range of offsets.
    pub(super) fn over(
        inner: &Arc<Inner>,
        topics: &TopicPatterns,
        range: Range<u64>,
        reverse: bool,
        limits: Limits,
    ) -> Self {
        let found = inner.selected(topics, &range, &limits.as_of);
        let scans = found.as_ref().is_none_or(|found| {
            let stored: u64 = found.iter().map(|(_, totals)| totals.stored).sum();
            let looks = stored.min(limits.left);
            takes_all(topics) || looks.saturating_mul(SCAN_SHARE) > inner.index.frames()
        });
        let floors = found.into_iter().flatten().map(|(name, totals)| (name, totals.floor));
        let floors = floors.collect();
        Self::with_floors(inner, (topics, floors), range, reverse, limits, scans)
    }

    /// The newest frame of one topic in a range that begins at its floor.
    pub(super) fn newest(inner: &Arc<Inner>, topic: &Topic, range: Range<u64>) -> Self {
        let floors = HashMap::from([(Arc::from(topic.as_str()), range.start)]);
        let limits = Limits { as_of: AsOf { head: range.end, ..inner.as_of_now() }, left: 1 };
        Self::with_floors(inner, (&topic.clone().into(), floors), range, true, limits, false)
    }

    /// Creates a reader with the floors of its snapshot. Unless it scans, `floors` names all its
    /// topics.
    fn with_floors(
        inner: &Arc<Inner>,
        (topics, floors): (&TopicPatterns, HashMap<Arc<str>, u64>),
        range: Range<u64>,
        reverse: bool,
        Limits { as_of, left }: Limits,
        scans: bool,
    ) -> Self {
        let rest = range.clone();
        let lane = |(topic, &floor): (&Arc<str>, &u64)| {
            let runs = inner.runs_as_of(topic, &as_of);
            Lane { topic: topic.clone(), runs, floor }
        };
        let lanes = if scans { Vec::new() } else { floors.iter().map(lane).collect() };
        // The segments are newer than the head, so they cover the range. A lane may name an even
        // newer one, which begins after the range.
        let segments = Arc::clone(&as_of.segments);
        let way = if scans || !inner.is_whole(&segments) {
            let range = scan::Range {
                store: inner.clone(),
                segments,
                topics: topics.clone(),
                takes_all: takes_all(topics),
                start: range.start,
                end: range.end,
            };
            match reverse {
                true => Way::Backward(Backward::new(range)),
                false => Way::Forward(Forward::new(range)),
            }
        } else {
            Way::Postings(ByPostings::new(inner.clone(), segments, lanes, range, reverse))
        };
        Self { inner: inner.clone(), way, as_of, left, rest, reverse, floors }
    }

    /// Returns the offset to resume from: after the frames yielded and the damage reported, or the
    /// end of the requested range once there is no more. With `reverse`, the lowest offset
    /// examined.
    #[must_use]
    pub const fn next_offset(&self) -> u64 {
        if self.reverse { self.rest.end } else { self.rest.start }
    }

    /// Marks everything up to `offset` as examined.
    const fn pass(&mut self, offset: u64) {
        match self.reverse {
            true => self.rest.end = offset,
            false => self.rest.start = offset + 1,
        }
    }

    /// Continues after damage; any other error ends the read.
    fn pass_by(&mut self, error: &ReadError) {
        let ReadError::Corrupt(corruption) = error else {
            self.way = Way::Ended;
            return;
        };
        let Range { start, end } = &mut self.rest;
        match (&self.way, corruption.offset) {
            (Way::Forward(way), _) => *start = (*start).max(way.position()).min(*end),
            (_, Some(offset)) if self.reverse => *end = (*end).min(offset).max(*start),
            (_, Some(offset)) => *start = (*start).max(offset.saturating_add(1)).min(*end),
            (_, None) => {}
        }
    }

    /// Passes the frames to `visit` as they lie in the log, until there are no more or it breaks;
    /// returns which. For callers that inspect each frame and keep none: it costs a fraction of
    /// taking them.
    ///
    /// # Errors
    /// [`ReadError`] for a damaged place; the next call continues after it.
    pub fn visit(
        &mut self,
        mut visit: impl FnMut(&FrameRef<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, ReadError> {
        loop {
            // Frames that may be hidden are checked individually, below. A removal published from
            // here on is irrelevant: this read began before it.
            if self.left > 0 && !self.inner.index.hides_any() {
                let (clock, left) = (&self.inner.env.clock, &mut self.left);
                let (mut flow, mut seen) = (ControlFlow::Continue(()), None);
                let take = |frame: &FrameRef<'_>| {
                    if frame.expires_ms().is_some_and(|at| at <= clock.now_ms()) {
                        return ControlFlow::Continue(());
                    }
                    *left -= 1;
                    seen = frame.offset();
                    flow = visit(frame);
                    if *left == 0 { ControlFlow::Break(()) } else { flow }
                };
                let visited = match &mut self.way {
                    Way::Forward(way) => way.visit(take),
                    Way::Postings(way) => way.visit(take),
                    Way::Backward(_) | Way::Ended => Ok(()),
                };
                seen.into_iter().for_each(|offset| self.pass(offset));
                visited.inspect_err(|error| self.pass_by(error))?;
                if flow.is_break() {
                    return Ok(flow);
                }
            }
            match self.next().transpose()? {
                Some(frame) if visit(&frame.borrow()).is_break() => {
                    return Ok(ControlFlow::Break(()));
                }
                Some(_) => {}
                None => return Ok(ControlFlow::Continue(())),
            }
        }
    }

    /// Returns the next frame, with a bounded amount of work: each frame examined, selected or not,
    /// takes one from `looks`. At 0 it returns `None` although there may be more;
    /// [`Self::next_offset`] tells how far it came.
    #[inline]
    pub fn next_within(&mut self, looks: &mut usize) -> Option<Result<Frame, ReadError>> {
        while self.left > 0 && *looks > 0 {
            let next = match &mut self.way {
                Way::Forward(way) => way.next(looks),
                Way::Backward(way) => way.next(looks),
                Way::Postings(way) => way.next(),
                Way::Ended => return None,
            };
            match next {
                Some(Ok(frame)) => {
                    *looks = looks.saturating_sub(1);
                    if let Some(offset) = frame.offset() {
                        self.pass(offset);
                    }
                    if self.is_visible(&frame) {
                        self.left -= 1;
                        return Some(Ok(frame));
                    }
                }
                Some(Err(error)) => {
                    self.pass_by(&error);
                    return Some(Err(error));
                }
                None if *looks == 0 => match &self.way {
                    Way::Forward(way) => self.rest.start = way.position(),
                    Way::Backward(way) => self.rest.end = way.position(),
                    Way::Postings(_) | Way::Ended => {}
                },
                None => {
                    let Range { start, end } = self.rest;
                    self.rest = if self.reverse { start..start } else { end..end };
                    return None;
                }
            }
        }
        None
    }

    #[inline]
    fn is_visible(&mut self, frame: &Frame) -> bool {
        // In most stores nothing is hidden, so there is no lookup.
        !(self.inner.is_expired(frame) || self.inner.index.hides_any() && self.is_hidden(frame))
    }

    fn is_hidden(&mut self, frame: &Frame) -> bool {
        let (index, topic) = (&self.inner.index, frame.topic());
        let Some(offset) = frame.offset() else { return false };
        if index.is_removed_for(offset, self.as_of.head) {
            return true;
        }
        // A read by postings begins at the floors.
        if matches!(self.way, Way::Postings(_)) || !index.may_have_floor(topic) {
            return false;
        }
        let floor = match self.floors.get(topic) {
            Some(&floor) => floor,
            None => {
                let floor = self.inner.floor_for(topic, &self.as_of);
                if self.floors.len() >= TOPICS_MAX {
                    self.floors.clear();
                }
                self.floors.insert(topic.into(), floor);
                floor
            }
        };
        offset < floor
    }
}

impl Iterator for Reader {
    type Item = Result<Frame, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_within(&mut { usize::MAX })
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = match self.way {
            Way::Forward(_) => "forward",
            Way::Backward(_) => "backward",
            Way::Postings(_) => "postings",
            Way::Ended => "ended",
        };
        f.debug_struct("Reader")
            .field("way", &way)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

impl Inner {
    /// Takes the snapshot for a reader that begins now.
    pub(super) fn as_of_now(&self) -> AsOf {
        let mut tries = TRIES;
        loop {
            let rewrites = self.index.rewrites();
            let head = self.log.head();
            let segments = self.index.segments();
            tries -= 1;
            if tries == 0 || self.index.rewrites() == rewrites {
                return AsOf { head, rewrites, segments };
            }
        }
    }

    /// The offsets that options select among those below `head`. Ids ascend with offsets, so bounds
    /// by id and by time are bounds by offset.
    pub(super) fn range(&self, options: &ReadOptions, head: u64) -> Result<Range<u64>, ReadError> {
        let at = |bound| match bound {
            Bound::Offset(offset) => Ok(offset),
            Bound::Id(id) => self.offset_of(id, head),
        };
        let mut start = match options.start {
            Start::First | Start::Last(_) => 0,
            Start::From(bound) => at(bound)?,
            Start::After(Bound::Offset(offset)) => offset.saturating_add(1),
            Start::After(Bound::Id(FrameId::MAX)) | Start::New => head,
            Start::After(Bound::Id(id)) => self.offset_of(id.next(), head)?,
        };
        // Damage before the end is reported.
        let mut end = match options.before {
            None => head,
            Some(Bound::Offset(offset)) => offset.min(head),
            Some(Bound::Id(id)) => self.offset_found(id, head)?,
        };
        if let Some(since) = options.since_ms {
            start = start.max(self.offset_of(first_of(since), head)?);
        }
        if let Some(until) = options.until_ms {
            end = end.min(self.offset_found(first_of(until), head)?);
        }
        Ok(start..end.max(start))
    }

    /// The offset of the oldest of the newest `n` visible frames of the topics.
    pub(super) fn start_of_last(
        self: &Arc<Self>,
        topics: &TopicPatterns,
        range: Range<u64>,
        as_of: &AsOf,
        n: u64,
    ) -> Result<u64, ReadError> {
        let mut start = range.end;
        let limits = Limits { as_of: as_of.clone(), left: n };
        for frame in Reader::over(self, topics, range, true, limits) {
            match frame {
                Ok(frame) => start = frame.offset().unwrap_or(start),
                // The forward read reports the damage when it reaches it.
                Err(ReadError::Corrupt(corruption)) => start = corruption.offset.unwrap_or(start),
                Err(error) => return Err(error),
            }
        }
        Ok(start)
    }

    /// The selected topics, with their floors for readers with this snapshot; `None` when they are
    /// too many, or when the lookup costs more than it saves.
    fn selected(
        &self,
        topics: &TopicPatterns,
        range: &Range<u64>,
        as_of: &AsOf,
    ) -> Option<Vec<(Arc<str>, TopicTotals)>> {
        let frames = range.end.saturating_sub(range.start);
        // A read of all topics scans in any case; only a long one benefits from knowing the floors
        // beforehand.
        let least = match takes_all(topics) {
            true if self.index.has_floors() => TOPICS_MAX as u64,
            true => u64::MAX,
            false => SCAN_FRAMES,
        };
        if frames <= least {
            return None;
        }
        let mut found = self.index.page(topics, None, TOPICS_MAX + 1);
        if found.len() > TOPICS_MAX {
            return None;
        }
        // These are the current floors. For a topic that got frames after the snapshot, the frames
        // that those removed are still visible.
        let is_same = self.index.rewrites() == as_of.rewrites;
        if !is_same && !takes_all(topics) {
            // A topic whose last frame was removed by a rewrite is missing here.
            return None;
        }
        let is_overtaken =
            |totals: &TopicTotals| !is_same || totals.floor > 0 && totals.last_offset >= as_of.head;
        for (name, totals) in found.iter_mut().filter(|(_, totals)| is_overtaken(totals)) {
            totals.floor = self.floor_for(name, as_of);
        }
        Some(found)
    }

    /// Whether postings name all frames. Damage can keep one out of them; a scan reports it.
    fn is_whole(&self, segments: &[Arc<SegmentIndex>]) -> bool {
        !self.index.is_partial() || segments.iter().all(|of| self.index.is_whole(of))
    }
}

fn takes_all(topics: &TopicPatterns) -> bool {
    topics.as_slice().contains(&TopicPattern::All)
}

/// The first id of a millisecond.
fn first_of(time_ms: u64) -> FrameId {
    const ID_MS_MAX: u64 = (1 << 48) - 1;
    if time_ms > ID_MS_MAX { FrameId::MAX } else { FrameId::first_of_ms(time_ms) }
}

#[cfg(test)]
mod tests;
