//! The newest visible frame of topics, for the writer: what `last` would answer, at a cost that
//! depends on the topics and not on the log. Expired and removed frames are skipped once and
//! remembered: a frame stays invisible as long as the clock does not go backwards.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::scan::{FIRST_BATCH, is_before, segment_of, walk_to};
use super::walk::{WINDOW_POINT, WINDOW_SCAN, Walk, Window};
use crate::error::ReadError;
use crate::format::postings::Chunk;
use crate::format::record::peek_topic;
use crate::index::{Runs, SegmentIndex};
use crate::limits::{CONDITION_FRAMES_MAX, CONDITION_TOPICS_MAX};
use crate::store::Inner;
use crate::value::{Frame, TopicPattern, TopicPatterns};

/// Maximum topics whose skipped frames are remembered.
const TOPICS_MAX: usize = CONDITION_TOPICS_MAX;

/// For each topic a range of offsets in which it had no visible frame, and when that was known.
#[derive(Debug, Default)]
pub(crate) struct Gone(Mutex<HashMap<Arc<str>, Passed>>);

/// Offsets, and the time in ms since 1970.
type Passed = (Range<u64>, u64);

impl Gone {
    fn of(&self, topic: &str, now_ms: u64) -> Range<u64> {
        match self.0.lock().get(topic) {
            Some((range, at_ms)) if *at_ms <= now_ms => range.clone(),
            _ => 0..0,
        }
    }

    fn set(&self, topic: &Arc<str>, range: Range<u64>, now_ms: u64) {
        let mut topics = self.0.lock();
        if topics.len() >= TOPICS_MAX && !topics.contains_key(topic) {
            topics.clear();
        }
        topics.insert(Arc::clone(topic), (range, now_ms));
    }
}

/// The work done for the conditions of a group.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    /// Topics that the batch may still examine.
    left: usize,
    /// The visible frames at the end of the log, newest first, and the head they lie below; read
    /// once a condition needs them.
    near: Option<(u64, Near)>,
}

/// Offsets and topics.
type Near = Vec<(u64, Box<str>)>;

impl Looks {
    /// Resets the budget for another batch.
    pub(crate) const fn renew(&mut self) {
        self.left = CONDITION_TOPICS_MAX;
    }
}

/// Why the newest frame is unknown.
#[derive(Debug)]
pub(crate) enum NotFound {
    /// The budget of topics is exhausted.
    TooWide,
    Read(ReadError),
}

impl From<ReadError> for NotFound {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl Inner {
    /// The offset of the newest visible frame of the topics, if it is at least `from`. For very
    /// many topics it may be another visible frame at or above `from`.
    ///
    /// # Errors
    /// [`NotFound`] when a frame that matters cannot be read, or there are too many topics.
    pub(crate) fn newest_visible(
        &self,
        topics: &TopicPatterns,
        from: u64,
        looks: &mut Looks,
    ) -> Result<Option<u64>, NotFound> {
        let head = self.log.head();
        if head <= from {
            // There are no such frames, so the topics need not be counted.
            return Ok(None);
        }
        let near = from.max(head.saturating_sub(CONDITION_FRAMES_MAX));
        let is_wide = topics.as_slice().iter().any(|of| !matches!(of, TopicPattern::Exact(_)));
        if is_wide && near == from {
            return Ok(self.newest_near(topics, near..head, looks)?);
        }
        let mut recent: Vec<(u64, Arc<str>)> = Vec::new();
        let is_whole = self.index.each(topics, |name, totals| {
            if looks.left == 0 {
                return false;
            }
            looks.left -= 1;
            if totals.last_offset >= from {
                recent.push((totals.last_offset, name));
            }
            true
        });
        if !is_whole && let Some(found) = self.newest_near(topics, near..head, looks)? {
            return Ok(Some(found));
        }
        let segments = self.index.segments();
        self.check_whole(&segments, from)?;
        // Topics in order of their newest frame: usually the first one decides.
        recent.sort_unstable_by_key(|(last, _)| Reverse(*last));
        let (mut from, mut newest) = (from, None);
        for (last, name) in recent {
            if last < from {
                break;
            }
            let runs = self.index.runs(&name);
            if let Some(found) = self.newest_of(&segments, &name, &runs, from)? {
                (from, newest) = (found + 1, Some(found));
            }
        }
        if newest.is_none() && !is_whole { Err(NotFound::TooWide) } else { Ok(newest) }
    }

    /// The newest visible frame of the topics in a range of at most [`CONDITION_FRAMES_MAX`]
    /// offsets that ends at the head. All frames near the head are read, once for all conditions of
    /// a group.
    fn newest_near(
        &self,
        topics: &TopicPatterns,
        range: Range<u64>,
        looks: &mut Looks,
    ) -> Result<Option<u64>, ReadError> {
        let head = range.end;
        if looks.near.as_ref().is_none_or(|(of, _)| *of != head) {
            let mut near = Near::new();
            let read = self.each_newest(
                head.saturating_sub(CONDITION_FRAMES_MAX)..head,
                &|_| true,
                |frame| {
                    near.extend(frame.offset().map(|offset| (offset, Box::from(frame.topic()))));
                    false
                },
            );
            looks.near = read.is_ok().then_some((head, near));
        }
        let Some((_, near)) = &looks.near else {
            // There is damage near the head, perhaps below the requested range.
            let mut newest = None;
            let wanted = |topic: &str| topics.matches(topic);
            self.each_newest(range, &wanted, |frame| {
                newest = frame.offset();
                true
            })?;
            return Ok(newest);
        };
        let mut near = near.iter().take_while(|(offset, _)| *offset >= range.start);
        Ok(near.find(|(_, topic)| topics.matches(topic)).map(|(offset, _)| *offset))
    }

    /// Reads all frames in a range of offsets and passes on the visible ones of the wanted topics,
    /// newest first, until `is_enough` returns true.
    fn each_newest(
        &self,
        range: Range<u64>,
        wanted: &dyn Fn(&str) -> bool,
        mut is_enough: impl FnMut(&Frame) -> bool,
    ) -> Result<(), ReadError> {
        let segments = self.index.segments();
        for (number, of) in segments.iter().enumerate().rev() {
            let base = of.segment().base();
            if segments.get(number + 1).is_some_and(|next| next.segment().base() <= range.start) {
                break;
            }
            if base >= range.end {
                continue;
            }
            let mut selected = Vec::new();
            let mut walk = walk_to(&self.index, of, range.start.max(base), WINDOW_POINT)?;
            while let Some(found) = walk.next() {
                let found = match found {
                    Ok(found) if found.offset < range.end => found,
                    Ok(_) => break,
                    Err(error) if is_before(&error, walk.next_offset(), range.start) => continue,
                    Err(error) => return Err(error),
                };
                let topic = peek_topic(walk.peek(&found), &found.prefix);
                let topic = topic.and_then(|topic| std::str::from_utf8(topic).ok());
                if found.offset < range.start {
                    continue;
                }
                match topic.is_some_and(wanted) {
                    true => selected.push(walk.frame(&found)?),
                    // A damaged topic must not hide a frame.
                    false => walk.pass(&found)?,
                }
            }
            let visible = |frame: &&Frame| self.is_visible(frame, range.end);
            if selected.iter().rev().filter(visible).any(&mut is_enough) {
                break;
            }
        }
        Ok(())
    }

    /// The offset of the newest visible frame of one topic, if it is at least `from`.
    fn newest_of(
        &self,
        segments: &[Arc<SegmentIndex>],
        topic: &Arc<str>,
        runs: &Runs,
        from: u64,
    ) -> Result<Option<u64>, ReadError> {
        let (head, clock) = (self.log.head(), &self.env.clock);
        let gone = self.gone.of(topic, clock.now_ms());
        let (found, passed) = self.walk_down(segments, topic, runs, from..head, &gone)?;
        if passed {
            let low = found.map_or(from, |found| found + 1);
            let low = if gone.contains(&low) { gone.start } else { low };
            self.gone.set(topic, low..head, clock.now_ms());
        }
        Ok(found)
    }

    /// Searches for the newest visible frame of a topic in a range of offsets, skipping `gone`.
    /// Also returns whether it passed over invisible frames.
    fn walk_down(
        &self,
        segments: &[Arc<SegmentIndex>],
        topic: &str,
        runs: &Runs,
        range: Range<u64>,
        gone: &Range<u64>,
    ) -> Result<(Option<u64>, bool), ReadError> {
        let Range { start: from, end: head } = range;
        let mut passed = false;
        let mut below = runs.at_or_before(u64::MAX);
        while let Some(number) = below.and_then(|offset| segment_of(segments, offset)) {
            let of = &segments[number];
            let base = of.segment().base();
            let end = segments.get(number + 1).map_or(head, |next| next.segment().base());
            if end <= from {
                break;
            }
            below = base.checked_sub(1).and_then(|below| runs.at_or_before(below));
            if gone.start <= base && end <= gone.end {
                continue;
            }
            let chunks = self.index.postings(of, topic)?;
            let mut window = Window::new(of.segment().clone(), WINDOW_POINT);
            for posting in chunks.into_iter().rev().flat_map(Chunk::backward) {
                let offset = base + u64::from(posting.delta);
                if offset < from {
                    return Ok((None, passed));
                }
                if gone.contains(&offset) {
                    match gone.start <= base.max(from) {
                        true => break,
                        false => continue,
                    }
                }
                match window.frame_at(posting.position(), offset)? {
                    Some(frame) if frame.topic() == topic => {
                        if self.is_visible(&frame, head) {
                            return Ok((Some(offset), passed));
                        }
                        passed = true;
                    }
                    _ => return Err(window.damaged(posting.position(), offset)),
                }
            }
        }
        Ok((None, passed))
    }

    /// Fails if damage kept frames at or above `from` out of the postings: they could belong to any
    /// topic.
    pub(super) fn check_whole(
        &self,
        segments: &[Arc<SegmentIndex>],
        from: u64,
    ) -> Result<(), ReadError> {
        if !self.index.is_partial() {
            return Ok(());
        }
        let first = segment_of(segments, from).unwrap_or(0);
        for of in segments.get(first..).unwrap_or_default() {
            if self.index.is_whole(of) {
                continue;
            }
            let base = of.segment().base();
            let mut walk = Walk::new(of.segment().clone(), FIRST_BATCH, base, WINDOW_SCAN);
            while let Some(found) = walk.next() {
                match found.and_then(|found| walk.frame(&found)) {
                    Err(error) if is_before(&error, walk.next_offset(), from) => {}
                    read => drop(read?),
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::Looks;
    use crate::append::Batch;
    use crate::error::{AppendError, ReadError};
    use crate::format::batch::{BATCH_HEADER_LEN, BatchHeader};
    use crate::limits::CONDITION_FRAMES_MAX;
    use crate::options::SyncPolicy;
    use crate::store::Store;
    use crate::testing::{edit, fast_dir, frame, open, segment_files};
    use crate::value::{Condition, TopicPatterns};

    #[test]
    fn the_end_of_the_log_is_read_once_for_all_conditions_of_a_group() {
        let dir = fast_dir();
        let store = open(dir.path(), SyncPolicy::None);
        for n in 0..2 * CONDITION_FRAMES_MAX {
            store.append(frame(&format!("of{}.n", n % 7), n).into()).unwrap();
        }
        let gone = store.append(frame("of7.n", 0).into()).unwrap().frames[0].id;
        store.remove(gone).unwrap();
        let (mut looks, mut read) = (Looks::default(), None);
        for of in 0..8 {
            looks.renew();
            let topics = TopicPatterns::parse(&format!("of{of}.*")).unwrap();
            let newest = (0..2 * CONDITION_FRAMES_MAX).rev().find(|n| n % 7 == of);
            for from in [2 * CONDITION_FRAMES_MAX - 20, 2 * CONDITION_FRAMES_MAX - 3] {
                let found = store.inner.newest_visible(&topics, from, &mut looks).unwrap();
                assert_eq!(found, newest.filter(|newest| *newest >= from), "{of}, {from}");
            }
            let (_, near) = looks.near.as_ref().unwrap();
            assert_eq!(*read.get_or_insert(near.as_ptr()), near.as_ptr());
        }
        store.append(frame("of7.n", 0).into()).unwrap();
        let topics = TopicPatterns::parse("of7.*").unwrap();
        let found =
            store.inner.newest_visible(&topics, 2 * CONDITION_FRAMES_MAX, &mut looks).unwrap();
        assert_eq!(found, Some(2 * CONDITION_FRAMES_MAX + 1), "another head is looked at anew");
    }

    /// A store with a damaged frame at offset 3, opened after the damage.
    fn damaged() -> (TempDir, Store) {
        let dir = fast_dir();
        let store = open(dir.path(), SyncPolicy::None);
        for (topic, n) in [("first", 0), ("a", 1), ("b", 2), ("a", 3), ("c", 4), ("d.e", 5)] {
            store.append(frame(topic, n).into()).unwrap();
        }
        store.close().unwrap();
        drop(store);
        let file = segment_files(dir.path()).remove(0);
        let places = crate::testing::batches(&file);
        edit(&file, |bytes| {
            let is_it = |at: &usize| BatchHeader::read(&bytes[*at..]).unwrap().base_offset == 3;
            let at = places.into_iter().find(is_it).unwrap();
            bytes[at + BATCH_HEADER_LEN + 20] ^= 1;
        });
        let store = open(dir.path(), SyncPolicy::None);
        (dir, store)
    }

    /// A damaged frame does not let an older one pass for the newest.
    #[test]
    fn a_damaged_frame_is_not_passed_over_by_the_one_before_it() {
        let (_dir, store) = damaged();
        let last = |topic: &str| store.last(&TopicPatterns::parse(topic).unwrap(), 1);
        assert!(matches!(last("a"), Err(ReadError::Corrupt(_))), "{:?}", last("a"));
        assert!(matches!(last("b"), Err(ReadError::Corrupt(_))), "it may have been of b");
        assert_eq!(last("c").unwrap().len(), 1, "this one is behind it");
    }

    /// A damaged frame does not let an older one pass for the newest of several topics, nor does it
    /// hide a topic.
    #[test]
    fn a_damaged_frame_is_not_passed_over_by_the_newest_of_each_topic() {
        let (_dir, store) = damaged();
        let each = |topics: &str| store.last_per_topic(&TopicPatterns::parse(topics).unwrap());
        for topics in ["a", "c, a", "c, b", "c, none", "*", "d.*"] {
            let found = each(topics);
            assert!(matches!(found, Err(ReadError::Corrupt(_))), "{topics}: {found:?}");
        }
        assert_eq!(each("c, d.e").unwrap().len(), 2, "these are behind it");
    }

    /// A frame whose topic is damaged may have been of any topic.
    #[test]
    fn a_damaged_topic_hides_no_frame_from_a_condition() {
        let dir = fast_dir();
        let store = open(dir.path(), SyncPolicy::None);
        for n in 0..900 {
            let topic = if n == 7 { "only.this" } else { "fill" };
            store.append(frame(topic, n).into()).unwrap();
        }
        store.close().unwrap();
        drop(store);
        let files = segment_files(dir.path());
        assert!(files.len() > 1, "the first one is sealed");
        edit(&files[0], |bytes| {
            let is_it = |window: &[u8]| window == b"only.this";
            let at = bytes.windows(9).position(is_it).unwrap();
            bytes[at] = b'f';
        });
        let store = open(dir.path(), SyncPolicy::None);
        for topics in ["only.*", "only.this"] {
            let conditions = vec![Condition::Empty(TopicPatterns::parse(topics).unwrap())];
            let batch = Batch { conditions, ..frame("new", 1).into() };
            let answer = store.append(batch);
            let is_unread = matches!(answer, Err(AppendError::ConditionUnread { .. }));
            assert!(is_unread, "{topics}: {answer:?}");
        }
    }
}
