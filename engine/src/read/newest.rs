//! The newest visible frame of topics, for the writer: what `last` would answer, at a cost that
//! follows the topics and not the log.

use std::cmp::Reverse;
use std::sync::Arc;

use super::scan::{FIRST_BATCH, segment_of};
use super::walk::{WINDOW_POINT, WINDOW_SCAN, Walk, Window};
use crate::error::ReadError;
use crate::format::postings::Chunk;
use crate::index::{Runs, SegmentIndex};
use crate::store::Inner;
use crate::value::TopicPatterns;

impl Inner {
    /// The offset of the newest visible frame of the topics, if it is at least `from`.
    ///
    /// # Errors
    /// [`ReadError`] when a frame that matters cannot be read.
    pub(crate) fn newest_visible(
        &self,
        topics: &TopicPatterns,
        from: u64,
    ) -> Result<Option<u64>, ReadError> {
        let mut lanes: Vec<(u64, Arc<str>, Runs)> = {
            let table = self.index.table();
            let selected = table.select(topics).into_iter().map(|number| table.get(number));
            let recent = selected.filter(|totals| totals.last_offset >= from);
            recent
                .map(|totals| (totals.last_offset, totals.name.clone(), totals.segments.clone()))
                .collect()
        };
        let segments = self.index.segments();
        self.check_whole(&segments, from)?;
        // From the topic with the newest frame on: mostly the first one decides.
        lanes.sort_unstable_by_key(|&(last, ..)| Reverse(last));
        let (mut from, mut newest) = (from, None);
        for (last, name, runs) in lanes {
            if last < from {
                break;
            }
            if let Some(found) = self.newest_of(&segments, &name, &runs, from)? {
                (from, newest) = (found + 1, Some(found));
            }
        }
        Ok(newest)
    }

    /// The same for one topic.
    fn newest_of(
        &self,
        segments: &[Arc<SegmentIndex>],
        topic: &str,
        runs: &Runs,
        from: u64,
    ) -> Result<Option<u64>, ReadError> {
        let head = self.log.head();
        let lowest = segment_of(segments, from).unwrap_or(0) as u32;
        let mut ordinal = runs.at_or_before(u32::MAX);
        while let Some(number) = ordinal.filter(|&number| number >= lowest) {
            let Some(of) = segments.get(number as usize) else { break };
            let base = of.segment().base();
            let chunks = self.index.postings(of, topic)?;
            let mut window = Window::new(of.segment().clone(), WINDOW_POINT);
            for posting in chunks.into_iter().rev().flat_map(Chunk::backward) {
                let offset = base + u64::from(posting.delta);
                if offset < from {
                    return Ok(None);
                }
                match window.frame_at(posting.position(), offset)? {
                    Some(frame) if frame.topic() == topic => {
                        if self.is_visible(&frame, head) {
                            return Ok(Some(offset));
                        }
                    }
                    _ => return Err(window.damaged(posting.position(), offset)),
                }
            }
            ordinal = number.checked_sub(1).and_then(|below| runs.at_or_before(below));
        }
        Ok(None)
    }

    /// Damage that kept frames with an offset of `from` or more out of the postings is an error: it
    /// could be any topic's.
    fn check_whole(&self, segments: &[Arc<SegmentIndex>], from: u64) -> Result<(), ReadError> {
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
                found.and_then(|found| walk.frame(&found))?;
            }
        }
        Ok(())
    }
}
