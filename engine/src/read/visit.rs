//! Reading the frames of chosen topics by their postings: one access for each frame that matches,
//! however long the log. The topics are merged, so the order is that of the offsets.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;
use std::sync::Arc;

use super::walk::{WINDOW_SEALED, WINDOW_VISIT, Window};
use crate::error::ReadError;
use crate::format::postings::{Chunk, Posting};
use crate::index::{Runs, SegmentIndex};
use crate::store::Inner;
use crate::value::Frame;

/// A topic and the segments that hold it.
pub(super) type Lane = (Arc<str>, Runs);

type Places = Box<dyn Iterator<Item = Posting> + Send>;

/// The visit.
pub(super) struct Visit {
    store: Arc<Inner>,
    segments: Arc<[Arc<SegmentIndex>]>,
    lanes: Vec<Lane>,
    start: u64,
    end: u64,
    reverse: bool,
    /// Where to look for the next segment to open: an offset at or before it in the order.
    at: Option<u64>,
    open: Option<Open>,
}

/// The segment being visited.
struct Open {
    base: u64,
    window: Window,
    /// Postings that are left, for each topic in it.
    places: Vec<(Arc<str>, Places)>,
    /// The next posting of each topic. The key makes the heap give the lowest offset, or the
    /// highest when going down.
    heap: BinaryHeap<(Reverse<u32>, u32, Posting)>,
}

impl Visit {
    pub(super) fn new(
        store: Arc<Inner>,
        segments: Arc<[Arc<SegmentIndex>]>,
        lanes: Vec<Lane>,
        range: Range<u64>,
        reverse: bool,
    ) -> Self {
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

    /// The next frame, or an error for a damaged one; the next call goes on behind it.
    pub(super) fn next(&mut self) -> Option<Result<Frame, ReadError>> {
        loop {
            let Some(open) = &mut self.open else {
                match self.open_next() {
                    Ok(true) => continue,
                    Ok(false) => return None,
                    Err(error) => return Some(Err(error)),
                }
            };
            let Some((topic, posting)) = open.pop(self.reverse) else {
                self.open = None;
                continue;
            };
            let offset = open.base + u64::from(posting.delta);
            let position = posting.position();
            return Some(match open.window.frame_at(position, offset) {
                Ok(Some(frame)) if frame.topic() == &*topic => Ok(frame),
                Ok(_) => Err(open.window.damaged(position, offset)),
                Err(error) => Err(error),
            });
        }
    }

    fn open_next(&mut self) -> Result<bool, ReadError> {
        let Some(from) = self.at.take() else { return Ok(false) };
        let holders = self.lanes.iter();
        let offset = if self.reverse {
            holders.filter_map(|(_, runs)| runs.at_or_before(from)).max()
        } else {
            holders.filter_map(|(_, runs)| runs.at_or_after(from)).min()
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
        let (low, high) = (self.start.saturating_sub(base), self.end.saturating_sub(base));
        let mut places: Vec<(Arc<str>, Places)> = Vec::new();
        for (topic, runs) in &self.lanes {
            if runs.at_or_after(base).is_some_and(|offset| next.is_none_or(|next| offset < next)) {
                let chunks = self.store.index.postings(of, topic)?;
                places.push((topic.clone(), bounded(chunks, low..high, self.reverse)));
            }
        }
        // A sealed segment is mapped: a wide window over it costs no more than a narrow one.
        let size = if of.is_sealed() { WINDOW_SEALED } else { WINDOW_VISIT };
        let window = Window::new(of.segment().clone(), size);
        let mut open = Open { base, window, places, heap: BinaryHeap::new() };
        (0..open.places.len() as u32).for_each(|lane| open.refill(lane, self.reverse));
        self.open = Some(open);
        Ok(true)
    }
}

/// The postings of a topic within bounds that are offset deltas.
fn bounded(chunks: Vec<Chunk>, bounds: Range<u64>, reverse: bool) -> Places {
    let (low, high) = (bounds.start, bounds.end);
    let chunks = chunks.into_iter().filter(move |chunk| {
        u64::from(chunk.last.delta) >= low && u64::from(chunk.before.delta) <= high
    });
    let is_below = move |posting: &Posting, bound: u64| u64::from(posting.delta) < bound;
    if reverse {
        let chunks: Vec<Chunk> = chunks.collect();
        let places = chunks.into_iter().rev().flat_map(Chunk::backward);
        let places = places.skip_while(move |posting| !is_below(posting, high));
        Box::new(places.take_while(move |posting| !is_below(posting, low)))
    } else {
        let places = chunks.flat_map(Chunk::forward);
        let places = places.skip_while(move |posting| is_below(posting, low));
        Box::new(places.take_while(move |posting| is_below(posting, high)))
    }
}

impl Open {
    fn refill(&mut self, lane: u32, reverse: bool) {
        if let Some((_, places)) = self.places.get_mut(lane as usize)
            && let Some(posting) = places.next()
        {
            self.heap.push((Reverse(key(posting, reverse)), lane, posting));
        }
    }

    fn pop(&mut self, reverse: bool) -> Option<(Arc<str>, Posting)> {
        let (_, lane, posting) = self.heap.pop()?;
        self.refill(lane, reverse);
        let (topic, _) = self.places.get(lane as usize)?;
        Some((topic.clone(), posting))
    }
}

const fn key(posting: Posting, reverse: bool) -> u32 {
    if reverse { !posting.delta } else { posting.delta }
}
