//! Lookups of single frames, and of what the index alone knows of topics.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::reader::{Limits, Reader};
use super::scan::{is_before, segment_of, walk_to};
use super::walk::{WINDOW_POINT, WINDOW_VISIT, Walk, Window};
use crate::error::ReadError;
use crate::index::{Newest, SegmentIndex, TopicTotals};
use crate::store::Inner;
use crate::value::{Frame, FrameId, Topic, TopicPattern, TopicPatterns, TopicSummary};

/// Maximum attempts of a lookup that races with appended `last:n` frames.
const TRIES: usize = 8;
/// Topics requested from the index at a time.
const PAGE: usize = 1024;

/// The id of the first frame of the batch at `position`, when it can be read.
fn first_id(of: &SegmentIndex, position: u64) -> Option<FrameId> {
    let mut walk = Walk::new(of.segment().clone(), position, 0, WINDOW_POINT);
    let found = walk.next()?.ok()?;
    walk.frame(&found).ok().map(|frame| frame.id())
}

/// The lowest offset at which frames missing from the index would change the result for a page of
/// topics with names after `after` and up to `to`. With a pattern that is 0: a missing frame may be
/// the only one of its topic.
fn known_from(
    topics: &TopicPatterns,
    frames: &[Frame],
    after: Option<&str>,
    to: Option<&str>,
) -> u64 {
    let found: HashMap<_, _> = frames.iter().map(|of| (of.topic(), of.offset())).collect();
    let from = topics.as_slice().iter().filter_map(|of| match of {
        TopicPattern::Exact(topic) => {
            let name = topic.as_str();
            let is_of_page =
                after.is_none_or(|after| name > after) && to.is_none_or(|to| name <= to);
            is_of_page.then(|| found.get(name).copied().flatten().unwrap_or(0))
        }
        _ => Some(0),
    });
    from.min().unwrap_or(u64::MAX)
}

impl Inner {
    pub(crate) fn get_at(&self, offset: u64) -> Result<Option<Frame>, ReadError> {
        let head = self.log.head();
        if offset >= head {
            return Ok(None);
        }
        // While these are held, the index still knows which of their frames were removed.
        let segments = self.index.segments();
        let found = self.stored_in(&segments, offset)?;
        Ok(found.filter(|frame| self.is_visible(frame, head)))
    }

    /// The frame with an offset below the head, visible or not.
    pub(crate) fn stored_at(&self, offset: u64) -> Result<Option<Frame>, ReadError> {
        self.stored_in(&self.index.segments(), offset)
    }

    fn stored_in(
        &self,
        segments: &[Arc<SegmentIndex>],
        offset: u64,
    ) -> Result<Option<Frame>, ReadError> {
        let Some(of) = segment_of(segments, offset).and_then(|at| segments.get(at)) else {
            return Ok(None);
        };
        let mut walk = walk_to(&self.index, of, offset, WINDOW_POINT)?;
        while let Some(found) = walk.next() {
            match found {
                Ok(found) if found.offset < offset => {}
                Ok(found) if found.offset > offset => break,
                Ok(found) => return walk.frame(&found).map(Some),
                Err(error) if is_before(&error, walk.next_offset(), offset) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    pub(crate) fn get(&self, id: FrameId) -> Result<Option<Frame>, ReadError> {
        let head = self.log.head();
        // While these are held, the index still knows which of their frames were removed.
        let segments = self.index.segments();
        let (found, damage) = self.seek(&segments, id, head)?;
        match (found, damage) {
            (Some(frame), _) if frame.id() == id => match self.is_visible(&frame, head) {
                true => Ok(Some(frame)),
                false => self.get_by_old(id, head),
            },
            // The frame may have been in the damaged place before the one that was found.
            (_, Some(error)) => Err(error),
            _ => self.get_by_old(id, head),
        }
    }

    /// The newest visible frame that had this id before it was imported.
    fn get_by_old(&self, id: FrameId, head: u64) -> Result<Option<Frame>, ReadError> {
        let mut below = head;
        while let Some(offset) = self.old_offset(id, below)? {
            match self.get_at(offset)? {
                Some(frame) => return Ok(Some(frame)),
                None => below = offset,
            }
        }
        Ok(None)
    }

    fn old_offset(&self, id: FrameId, head: u64) -> Result<Option<u64>, ReadError> {
        let segments = || self.log.view().segments;
        let found = self.keys.find_old(&self.env, segments, id, head);
        found.map_err(|error| ReadError::io(&self.env.log_dir(), &error))
    }

    /// The offsets of the frames in the log that have this id, or had it before an import, visible
    /// or not.
    pub(crate) fn stored_offsets(&self, id: FrameId) -> Result<Vec<u64>, ReadError> {
        let head = self.log.head();
        let (found, damage) = self.seek(&self.index.segments(), id, head)?;
        let found = found.filter(|frame| frame.id() == id).and_then(|frame| frame.offset());
        if let (None, Some(error)) = (found, damage) {
            return Err(error);
        }
        let mut offsets = Vec::from_iter(found);
        let mut below = head;
        while let Some(offset) = self.old_offset(id, below)? {
            offsets.push(offset);
            below = offset;
        }
        Ok(offsets)
    }

    /// The offset of the first frame with this id or a higher one; `head` when there is none.
    /// Damage counts as such a frame.
    pub(super) fn offset_of(&self, id: FrameId, head: u64) -> Result<u64, ReadError> {
        let (found, damage) = self.seek(&self.index.segments(), id, head)?;
        let lost = match damage {
            Some(ReadError::Corrupt(corruption)) => corruption.offset,
            _ => None,
        };
        let found = found.and_then(|frame| frame.offset()).unwrap_or(head);
        Ok(lost.unwrap_or(found).min(found).min(head))
    }

    /// The offset of the first readable frame with this id or a higher one; `head` when there is
    /// none. As the end of a range it includes the damage before that frame.
    pub(super) fn offset_found(&self, id: FrameId, head: u64) -> Result<u64, ReadError> {
        let (found, _) = self.seek(&self.index.segments(), id, head)?;
        Ok(found.and_then(|frame| frame.offset()).unwrap_or(head).min(head))
    }

    /// The first frame below `head` with this id or a higher one, and the damage just before it.
    fn seek(
        &self,
        segments: &[Arc<SegmentIndex>],
        id: FrameId,
        head: u64,
    ) -> Result<(Option<Frame>, Option<ReadError>), ReadError> {
        if id == FrameId::MAX {
            return Ok((None, None));
        }
        let mut damage = None;
        let first = self.segment_of_id(segments, id)?;
        for of in segments.get(first..).unwrap_or_default() {
            let base = of.segment().base();
            if base >= head {
                break;
            }
            // Ids of one millisecond mostly share their prefix; between steps with the same prefix
            // the frames themselves decide.
            let step = self.index.step(of, |entry| match entry.id_prefix.cmp(&id.prefix()) {
                Ordering::Equal => {
                    first_id(of, u64::from(entry.position)).is_some_and(|at| at < id)
                }
                order => order == Ordering::Less,
            })?;
            let (position, next) = step.map_or((super::scan::FIRST_BATCH, base), |entry| {
                (u64::from(entry.position), base + u64::from(entry.offset_delta))
            });
            let mut walk = Walk::new(of.segment().clone(), position, next, WINDOW_POINT);
            while let Some(found) = walk.next() {
                let frame = match found {
                    Ok(found) if found.offset >= head => return Ok((None, damage)),
                    Ok(found) => walk.frame(&found),
                    Err(error) => Err(error),
                };
                match frame {
                    Ok(frame) if frame.id() >= id => return Ok((Some(frame), damage)),
                    Ok(_) => damage = None,
                    Err(error @ ReadError::Corrupt(_)) => damage = damage.or(Some(error)),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok((None, damage))
    }

    /// The last segment that begins before an id, or the first one.
    fn segment_of_id(
        &self,
        segments: &[Arc<SegmentIndex>],
        id: FrameId,
    ) -> Result<usize, ReadError> {
        let (mut low, mut high) = (0, segments.len());
        while low < high {
            let middle = low.midpoint(high);
            // A segment without frames has no id to compare; the next one with frames stands in for
            // it.
            let mut at = middle;
            let mut first = None;
            while at < high && first.is_none() {
                first = self.index.first_step(&segments[at])?;
                at += 1;
            }
            if first.is_some_and(|entry| entry.id_prefix < id.prefix()) {
                low = at;
            } else {
                high = middle;
            }
        }
        Ok(low.saturating_sub(1))
    }

    pub(super) fn last(
        self: &Arc<Self>,
        topics: &TopicPatterns,
        n: u64,
    ) -> Result<Vec<Frame>, ReadError> {
        if let ([TopicPattern::Exact(topic)], 1) = (topics.as_slice(), n) {
            return Ok(self.newest_now(topic.as_str())?.into_iter().collect());
        }
        self.unmoved(|| {
            let as_of = self.as_of_now();
            let head = as_of.head;
            let reader = Reader::over(self, topics, 0..head, true, Limits { as_of, left: n });
            let mut frames = reader.collect::<Result<Vec<_>, _>>()?;
            frames.reverse();
            Ok((frames.len() as u64 == n, head, frames))
        })
    }

    /// The newest visible frame of a topic.
    fn newest_now(self: &Arc<Self>, topic: &str) -> Result<Option<Frame>, ReadError> {
        self.unmoved(|| {
            let (head, newest) = self.index.newest_as_of(topic, || self.log.head());
            let mut frame = None;
            if let Some((newest, floor)) = newest {
                let mut window = None;
                let window = (&mut window, WINDOW_POINT);
                frame = self.newest_frame(topic, &newest, floor..head, window)?;
            }
            // Damage may have kept a newer frame out of the index.
            let from = frame.as_ref().and_then(Frame::offset).unwrap_or_default();
            self.check_whole(&self.index.segments(), from)?;
            Ok((frame.is_some() || newest.is_none(), head, frame))
        })
    }

    pub(super) fn last_per_topic(
        self: &Arc<Self>,
        topics: &TopicPatterns,
    ) -> Result<Vec<Frame>, ReadError> {
        let (mut frames, mut after) = (Vec::new(), None);
        loop {
            let (mut page, next) = self.last_per_topic_page(topics, after.as_ref(), PAGE)?;
            frames.append(&mut page);
            match next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        frames.sort_unstable_by_key(Frame::offset);
        Ok(frames)
    }

    pub(super) fn last_per_topic_page(
        self: &Arc<Self>,
        topics: &TopicPatterns,
        after: Option<&Topic>,
        limit: usize,
    ) -> Result<(Vec<Frame>, Option<Topic>), ReadError> {
        let after = after.map(Topic::as_str);
        let (head, mut page) = self.index.page_as_of(topics, after, limit, || self.log.head());
        let last = page.last().filter(|_| page.len() >= limit);
        let next = last.and_then(|(name, _)| Topic::parse(name).ok());
        // In log order, so that one window serves many frames.
        page.sort_unstable_by_key(|(_, totals)| totals.last_offset);
        let (mut window, mut frames) = (None, Vec::with_capacity(page.len()));
        for (name, totals) in &page {
            let newest = Newest::of(totals);
            let window = (&mut window, WINDOW_VISIT);
            let mut found = self.newest_frame(name, &newest, totals.floor..head, window)?;
            // What `last:n` has removed since may be compacted away.
            let is_newest = |now: Newest| now.offset == newest.offset;
            if found.is_none() && !self.index.newest(name).is_some_and(is_newest) {
                found = self.newest_now(name)?;
            }
            frames.extend(found);
        }
        // Damage may have kept newer frames out of the index.
        if self.index.is_partial() {
            let from = known_from(topics, &frames, after, next.as_ref().map(Topic::as_str));
            self.check_whole(&self.index.segments(), from)?;
        }
        frames.sort_unstable_by_key(Frame::offset);
        Ok((frames, next))
    }

    /// The newest visible frame of a topic in a range that begins at the topic's floor: usually the
    /// one that the index names. The window is kept for the next lookup, which may be in the same
    /// segment.
    fn newest_frame(
        self: &Arc<Self>,
        topic: &str,
        newest: &Newest,
        range: Range<u64>,
        (window, size): (&mut Option<(u64, Window)>, u64),
    ) -> Result<Option<Frame>, ReadError> {
        let segments = self.index.segments();
        let of = segment_of(&segments, newest.offset).and_then(|at| segments.get(at));
        if let Some(of) = of.filter(|_| range.contains(&newest.offset)) {
            let base = of.segment().base();
            if window.as_ref().is_none_or(|(kept, _)| *kept != base) {
                *window = Some((base, Window::new(of.segment().clone(), size)));
            }
            if let Some((_, window)) = window {
                let frame = window.frame_at(newest.position, newest.offset)?;
                // If the segment was rewritten meanwhile or is damaged, another frame or none is
                // there.
                let frame = frame.filter(|frame| frame.id() == newest.id);
                let removed = self.index.is_removed_for(newest.offset, range.end);
                let frame = frame.filter(|frame| !removed && !self.is_expired(frame));
                if frame.is_some() {
                    return Ok(frame);
                }
            }
        }
        let Ok(topic) = Topic::parse(topic) else { return Ok(None) };
        Reader::newest(self, &topic, range).next().transpose()
    }

    /// Retries an incomplete lookup while the head moves: a `last:n` frame published meanwhile may
    /// have let compaction remove what it hides, and is itself beyond the old head.
    fn unmoved<T>(
        &self,
        mut look: impl FnMut() -> Result<(bool, u64, T), ReadError>,
    ) -> Result<T, ReadError> {
        let mut tries = TRIES;
        loop {
            let (complete, head, found) = look()?;
            tries -= 1;
            if complete || tries == 0 || self.log.head() == head {
                return Ok(found);
            }
        }
    }

    pub(super) fn topics(self: &Arc<Self>, topics: &TopicPatterns) -> Vec<TopicSummary> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let (mut page, next) = self.topics_page(topics, after.as_ref(), PAGE);
            all.append(&mut page);
            match next {
                Some(next) => after = Some(next),
                None => return all,
            }
        }
    }

    pub(super) fn topics_page(
        self: &Arc<Self>,
        topics: &TopicPatterns,
        after: Option<&Topic>,
        limit: usize,
    ) -> (Vec<TopicSummary>, Option<Topic>) {
        let page = self.index.page_counted(topics, after.map(Topic::as_str), limit);
        let last = page.last().filter(|_| page.len() >= limit);
        let next = last.and_then(|(name, _)| Topic::parse(name).ok());
        let live = page.iter().filter(|(_, totals)| totals.left > 0);
        let summaries = live.filter_map(|(name, totals)| self.summary(name, totals));
        (summaries.collect(), next)
    }

    fn summary(self: &Arc<Self>, name: &str, totals: &TopicTotals) -> Option<TopicSummary> {
        let summary = TopicSummary {
            topic: Topic::parse(name).ok()?,
            count: totals.left,
            bytes: totals.bytes,
            first: totals.first,
            last: totals.last,
            last_offset: totals.last_offset,
        };
        let at = totals.first_offset;
        let first_is_there = at >= totals.floor && !self.index.is_removed(at);
        self.with_ends(summary, totals.floor, first_is_there)
    }

    /// Corrects the first and the last frame of a topic where those in the table were removed.
    /// `None` when there are none: everything left has expired.
    fn with_ends(
        self: &Arc<Self>,
        summary: TopicSummary,
        floor: u64,
        is_first: bool,
    ) -> Option<TopicSummary> {
        let mut summary = summary;
        if !is_first {
            let as_of = self.as_of_now();
            let topics = summary.topic.clone().into();
            let range = floor..as_of.head;
            let mut reader = Reader::over(self, &topics, range, false, Limits { as_of, left: 1 });
            // A frame that cannot be read still exists.
            if let Ok(frame) = reader.next()? {
                summary.first = frame.id();
            }
        }
        if self.index.is_removed(summary.last_offset)
            && let Ok(newest) = self.newest_now(summary.topic.as_str())
        {
            let frame = newest?;
            summary.last = frame.id();
            summary.last_offset = frame.offset().unwrap_or(summary.last_offset);
        }
        Some(summary)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::sync::atomic::{AtomicBool, Ordering};

    use crate::options::SyncPolicy;
    use crate::store::Store;
    use crate::testing::{fast_dir, frame, open};
    use crate::value::{Frame, NewFrame, ReadOptions, TopicPatterns, Ttl};

    fn append_newest(store: &Store, topic: &str, n: u64) {
        let ttl = Ttl::Last(NonZeroU64::MIN);
        store.append(NewFrame { ttl, ..frame(topic, n) }.into()).unwrap();
    }

    fn patterns(text: &str) -> TopicPatterns {
        TopicPatterns::parse(text).unwrap()
    }

    #[test]
    fn a_topic_that_is_written_to_all_the_time_is_never_missing() {
        const TOPICS: usize = 2000;
        let dir = fast_dir();
        let store = open(dir.path(), SyncPolicy::None);
        (0..TOPICS).for_each(|n| append_newest(&store, &format!("t.n{n}"), 0));
        (0..8).for_each(|n| append_newest(&store, &format!("few.n{n}"), 0));
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut n = 0;
                while !done.load(Ordering::Relaxed) {
                    n += 1;
                    append_newest(&store, "t.n7", n);
                    append_newest(&store, "few.n1", n);
                }
                n
            });
            let all = || {
                (0..50).all(|_| {
                    let each = store.last_per_topic(&patterns("*")).unwrap();
                    let few = store.last(&patterns("few.*"), 8).unwrap();
                    let one = store.last(&patterns("t.n7"), 1).unwrap();
                    (each.len(), few.len(), one.len()) == (TOPICS + 8, 8, 1)
                })
            };
            let found = all();
            done.store(true, Ordering::Relaxed);
            assert!(writer.join().unwrap() > 100);
            assert!(found, "a topic is missing");
        });
    }

    #[test]
    fn who_reads_for_long_sees_what_was_there_when_it_began() {
        sees_what_was_there(5000, 0);
        // With so few frames, floors are not looked up in advance; then with many topics.
        sees_what_was_there(100, 0);
        sees_what_was_there(5000, 5000);
    }

    fn sees_what_was_there(frames: u64, others: u64) {
        let dir = fast_dir();
        let store = open(dir.path(), SyncPolicy::None);
        let mut n = 0;
        let mut status = |count| {
            for _ in 0..count {
                n += 1;
                append_newest(&store, "status", n);
            }
        };
        (0..frames).for_each(|n| drop(store.append(frame("often", n).into()).unwrap()));
        (0..others).for_each(|n| append_newest(&store, &format!("others.{n}"), n));
        status(3);
        for topics in ["status", "status, others.*", "status, often", "*"] {
            for reverse in [false, true] {
                let topics = patterns(topics);
                let options = ReadOptions { topics, reverse, ..ReadOptions::default() };
                let before = store.last(&patterns("status"), 1).unwrap();
                let reader = store.read(&options).unwrap();
                status(5);
                let found: Vec<Frame> = reader.map(Result::unwrap).collect();
                let found: Vec<_> =
                    found.iter().filter(|frame| frame.topic() == "status").collect();
                assert_eq!(found, before.iter().collect::<Vec<_>>(), "{options:?}");
            }
        }
    }
}
