//! Reading the frames of selected topics by their postings: one access per matching frame, whatever
//! the length of the log. The topics are merged in order of offset.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hint::black_box;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::vec;

use super::walk::{WINDOW_MAPPED, WINDOW_VISIT, Window};
use crate::error::ReadError;
use crate::format::postings::{Backward, Chunk, Forward, Posting};
use crate::index::{Runs, SegmentIndex};
use crate::store::Inner;
use crate::value::{Frame, FrameRef};

/// A topic and the segments that hold it.
pub(super) struct Lane {
    pub(super) topic: Arc<str>,
    pub(super) runs: Runs,
    /// The floor of the topic, for this reader.
    pub(super) floor: u64,
}

/// Postings fetched at a time. Their records lie far apart, so their cache misses overlap instead
/// of following one another.
const AHEAD: usize = 32;
/// Bytes of a cache line.
const LINE_LEN: u64 = 64;
/// Cache lines prefetched at the beginning of a record.
const LINES: u64 = 3;

/// The postings of a topic in a segment, bounded by offset deltas.
struct Places {
    chunks: vec::IntoIter<Chunk>,
    run: Run,
    bounds: Range<u64>,
}

/// Iterates over a chunk.
enum Run {
    None,
    Up(Forward),
    Down(Backward),
}

/// The frames of some topics, found by their postings.
pub(super) struct ByPostings {
    store: Arc<Inner>,
    segments: Arc<[Arc<SegmentIndex>]>,
    lanes: Vec<Lane>,
    start: u64,
    end: u64,
    reverse: bool,
    /// An offset from which to look for the next segment, in reading order.
    at: Option<u64>,
    open: Option<Visited>,
}

/// The segment being visited.
struct Visited {
    base: u64,
    window: Window,
    /// Remaining postings of each topic in it.
    places: Vec<(Arc<str>, Places)>,
    /// The next posting of each topic, when there are several. The key orders the heap by lowest
    /// offset, or by highest when reading backward.
    heap: BinaryHeap<(Reverse<u32>, u32, Posting)>,
    /// Prefetched postings, each with the number of its topic, and how many of them are consumed.
    ahead: Vec<(u32, Posting)>,
    done: usize,
}

impl ByPostings {
    pub(super) fn new(
        store: Arc<Inner>,
        segments: Arc<[Arc<SegmentIndex>]>,
        mut lanes: Vec<Lane>,
        range: Range<u64>,
        reverse: bool,
    ) -> Self {
        for lane in lanes.iter_mut().filter(|lane| lane.floor > 0) {
            let first = super::scan::segment_of(&segments, lane.floor);
            let base = first.and_then(|first| segments.get(first)).map(|of| of.segment().base());
            lane.runs = std::mem::take(&mut lane.runs).starting_at(base.unwrap_or(0));
        }
        let edge = if reverse { range.end.saturating_sub(1) } else { range.start };
        let first = super::scan::segment_of(&segments, edge).and_then(|first| segments.get(first));
        let at = if reverse { edge } else { first.map_or(0, |of| of.segment().base()) };
        Self {
            store,
            segments,
            lanes,
            start: range.start,
            end: range.end,
            reverse,
            at: Some(at),
            open: None,
        }
    }

    /// The next frame, or an error for a damaged one; the next call continues after it.
    pub(super) fn next(&mut self) -> Option<Result<Frame, ReadError>> {
        loop {
            let Some(open) = &mut self.open else {
                match self.open_next() {
                    Ok(true) => continue,
                    Ok(false) => return None,
                    Err(error) => return Some(Err(error)),
                }
            };
            let Some((lane, posting)) = open.next(self.reverse) else {
                self.open = None;
                continue;
            };
            open.done += 1;
            let offset = open.base + u64::from(posting.delta);
            let position = posting.position();
            return Some(match open.window.frame_at(position, offset) {
                Ok(Some(frame)) if open.is_of(lane, frame.topic()) => Ok(frame),
                Ok(_) => Err(open.window.damaged(position, offset)),
                Err(error) => Err(error),
            });
        }
    }

    /// Passes the next frames of this segment to `visit`, until it breaks. Remaining frames, and
    /// anything that is not a sound frame, are left to [`Self::next`].
    pub(super) fn visit(
        &mut self,
        mut visit: impl FnMut(&FrameRef<'_>) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let Some(open) = &mut self.open else { return Ok(()) };
        while let Some((lane, posting)) = open.next(self.reverse) {
            let offset = open.base + u64::from(posting.delta);
            let Visited { window, places, done, .. } = open;
            let Some((prefix, record)) = window.record_at(posting.position())? else {
                return Ok(());
            };
            let Ok(frame) = FrameRef::of_checked(record, &prefix, offset) else { return Ok(()) };
            let topic = places.get(lane as usize).map(|(topic, _)| &**topic);
            if topic != Some(frame.topic()) {
                return Ok(());
            }
            *done += 1;
            if visit(&frame).is_break() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn open_next(&mut self) -> Result<bool, ReadError> {
        let Some(from) = self.at.take() else { return Ok(false) };
        let holders = self.lanes.iter();
        let offset = if self.reverse {
            holders.filter_map(|lane| lane.runs.at_or_before(from)).max()
        } else {
            holders.filter_map(|lane| lane.runs.at_or_after(from)).min()
        };
        let number = offset.and_then(|offset| super::scan::segment_of(&self.segments, offset));
        let Some((number, of)) = number.and_then(|at| Some((at, self.segments.get(at)?))) else {
            return Ok(false);
        };
        let base = of.segment().base();
        let next = self.segments.get(number + 1).map(|next| next.segment().base());
        let is_past = match self.reverse {
            true => next.is_some_and(|next| next <= self.start),
            false => base >= self.end,
        };
        if is_past {
            return Ok(false);
        }
        self.at = if self.reverse { base.checked_sub(1) } else { next };
        let high = self.end.saturating_sub(base);
        let mut places: Vec<(Arc<str>, Places)> = Vec::new();
        for Lane { topic, runs, floor } in &self.lanes {
            let low = self.start.max(*floor).saturating_sub(base);
            if runs.at_or_after(base).is_some_and(|offset| next.is_none_or(|next| offset < next)) {
                let chunks = self.store.index.postings(of, topic)?;
                places.push((topic.clone(), Places::new(chunks, low..high, self.reverse)));
            }
        }
        // Over a map a wide window costs no more than a narrow one.
        let size = if of.segment().is_mapped() { WINDOW_MAPPED } else { WINDOW_VISIT };
        let window = Window::new(of.segment().clone(), size);
        let heap = BinaryHeap::new();
        let mut open = Visited { base, window, places, heap, ahead: Vec::new(), done: 0 };
        if open.places.len() > 1 {
            (0..open.places.len() as u32).for_each(|lane| open.refill(lane, self.reverse));
        }
        self.open = Some(open);
        Ok(true)
    }
}

impl Places {
    fn new(chunks: Vec<Chunk>, bounds: Range<u64>, reverse: bool) -> Self {
        let within = |chunk: &Chunk| {
            u64::from(chunk.last.delta) >= bounds.start
                && u64::from(chunk.before.delta) <= bounds.end
        };
        let mut chunks: Vec<_> = chunks.into_iter().filter(within).collect();
        if reverse {
            chunks.reverse();
        }
        Self { chunks: chunks.into_iter(), run: Run::None, bounds }
    }

    /// The next posting within the bounds.
    fn next(&mut self, reverse: bool) -> Option<Posting> {
        loop {
            let next = match &mut self.run {
                Run::Up(run) => run.next(),
                Run::Down(run) => run.next(),
                Run::None => None,
            };
            match next {
                Some(posting) if self.bounds.contains(&u64::from(posting.delta)) => return next,
                Some(posting) => {
                    let (delta, Range { start, end }) = (u64::from(posting.delta), &self.bounds);
                    if if reverse { delta < *start } else { delta >= *end } {
                        (self.chunks, self.run) = (Vec::new().into_iter(), Run::None);
                    }
                }
                None => {
                    let chunk = self.chunks.next()?;
                    self.run = match reverse {
                        true => Run::Down(chunk.backward()),
                        false => Run::Up(chunk.forward()),
                    };
                }
            }
        }
    }
}

impl Visited {
    fn refill(&mut self, lane: u32, reverse: bool) {
        if let Some((_, places)) = self.places.get_mut(lane as usize)
            && let Some(posting) = places.next(reverse)
        {
            self.heap.push((Reverse(key(posting, reverse)), lane, posting));
        }
    }

    fn pop(&mut self, reverse: bool) -> Option<(u32, Posting)> {
        if let [(_, places)] = &mut self.places[..] {
            return Some((0, places.next(reverse)?));
        }
        let (_, lane, posting) = self.heap.pop()?;
        self.refill(lane, reverse);
        Some((lane, posting))
    }

    /// The next posting and the number of its topic. It stays the next one until it is consumed.
    #[inline]
    fn next(&mut self, reverse: bool) -> Option<(u32, Posting)> {
        if self.done == self.ahead.len() {
            self.look_ahead(reverse);
        }
        self.ahead.get(self.done).copied()
    }

    /// Fetches the next postings, and prefetches the bytes they point to.
    fn look_ahead(&mut self, reverse: bool) {
        self.ahead.clear();
        self.done = 0;
        while self.ahead.len() < AHEAD
            && let Some(next) = self.pop(reverse)
        {
            self.ahead.push(next);
        }
        for (_, posting) in &self.ahead {
            for line in 0..LINES {
                black_box(self.window.peek(posting.position() + line * LINE_LEN));
            }
        }
    }

    fn is_of(&self, lane: u32, topic: &str) -> bool {
        self.places.get(lane as usize).is_some_and(|(name, _)| **name == *topic)
    }
}

const fn key(posting: Posting, reverse: bool) -> u32 {
    if reverse { !posting.delta } else { posting.delta }
}
