//! All topics of the store: totals, the segments that hold each, and what `last:n` has removed.
//! Kept in memory, rebuilt at open from the dictionaries of the sealed segments.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use super::Noted;
use super::recent::Recent;
use super::rewrite::TopicChange;
use crate::format::topic_index::TopicEntry;
use crate::value::{FrameId, TopicPattern, TopicPatterns};

/// The topics by number and by name.
#[derive(Debug, Default)]
pub(crate) struct TopicTable {
    numbers: HashMap<Arc<str>, u32>,
    sorted: BTreeMap<Arc<str>, u32>,
    topics: Vec<TopicTotals>,
    frames: u64,
}

/// What the store holds of one topic.
#[derive(Debug)]
pub(crate) struct TopicTotals {
    pub(crate) name: Arc<str>,
    /// Frames stored, removed ones included.
    stored: u64,
    /// Frames of these that were removed, by `last:n` or one by one; while the newest ones are
    /// known, these count instead.
    hidden: u64,
    /// Bytes of records and bodies, removed ones included.
    pub(crate) bytes: u64,
    pub(crate) first: FrameId,
    /// Offset of the first frame stored; nothing when that was compacted away.
    pub(crate) first_offset: Option<u64>,
    pub(crate) last: FrameId,
    pub(crate) last_offset: u64,
    /// Position of the last frame's record, divided by 8, in the last segment that holds the topic.
    pub(crate) last_slot: u32,
    /// Every frame with a lower offset is removed.
    floor: u64,
    /// Offset of the frame that did it.
    floor_by: u64,
    /// The floor before the group of that frame.
    floor_before: u64,
    /// Ordinals of the segments that hold the topic.
    pub(crate) segments: Runs,
    /// Offsets of all live frames, kept while `last:n` is in use.
    recent: Option<Recent>,
}

impl TopicTotals {
    /// Frames that a reader can see; expired ones may be counted.
    pub(crate) fn live(&self) -> u64 {
        match &self.recent {
            Some(recent) => recent.live(),
            None => self.stored.saturating_sub(self.hidden),
        }
    }

    /// Whether `last:n` must first learn the newest offsets, and how many at most.
    pub(super) fn wants_recent(&self, n: u64) -> Option<u64> {
        (self.recent.is_none() && n > 1).then(|| self.stored.min(n))
    }

    /// Gives what [`Self::wants_recent`] asked for: the newest live frames.
    pub(super) fn set_recent(&mut self, recent: Recent) {
        self.recent = Some(recent);
    }

    /// The first offset that is not removed, for a reader that sees frames below `head`: a removal
    /// counts from the moment the frame that causes it is visible.
    pub(crate) const fn floor(&self, head: u64) -> u64 {
        if self.floor_by < head { self.floor } else { self.floor_before }
    }

    /// Takes up a frame; returns the new floor when `keep` (the n of `last:n`) moved it.
    /// `group` is the offset of the first frame of the group.
    pub(super) fn note(
        &mut self,
        noted: &Noted<'_>,
        place: (u32, u64),
        keep: Option<u64>,
    ) -> Option<u64> {
        let (ordinal, group) = place;
        self.stored += 1;
        self.bytes += u64::from(noted.record_len) + noted.body_len;
        self.last = noted.id;
        self.last_offset = noted.offset;
        self.last_slot = noted.record / 8;
        self.segments.add(ordinal);
        let expires_ms = noted.expires_ms();
        if keep == Some(1) {
            self.recent = Some(Recent::default());
        }
        let recent = self.recent.as_mut()?;
        recent.push(noted.offset, expires_ms);
        let Some(keep) = keep else {
            if recent.is_long() {
                self.hidden = self.stored - recent.live();
                self.recent = None;
            }
            return None;
        };
        // By the id's time, not the clock's: read again later, the log must say the same.
        recent.expire(noted.id.time_ms());
        recent.keep(keep);
        let first = recent.first().unwrap_or(noted.offset + 1);
        let floor = Some(first).filter(|_| self.stored > recent.live())?;
        (floor > self.floor).then(|| {
            if self.floor_by < group {
                self.floor_before = self.floor;
            }
            self.floor = floor;
            self.floor_by = noted.offset;
            floor
        })
    }

    /// A frame that was there is removed.
    pub(super) fn remove(&mut self, offset: u64) {
        match &mut self.recent {
            Some(recent) => recent.remove(offset),
            None if offset >= self.floor => self.hidden += 1,
            None => {}
        }
    }

    /// Takes over what a FLOOR record says.
    pub(super) fn raise_floor(&mut self, floor: u64) {
        if floor > self.floor {
            (self.floor, self.floor_by, self.floor_before) = (floor, floor, floor);
            if let Some(recent) = &mut self.recent {
                recent.keep_from(floor);
            }
        }
    }

    /// Frames of it were compacted away.
    pub(super) fn rewritten(&mut self, change: &TopicChange<'_>) {
        let gone = |offset: &&u64| **offset < self.floor || (change.was_removed)(**offset);
        let hidden = change.hidden + change.expired.iter().filter(gone).count() as u64;
        self.stored = self.stored.saturating_sub(change.hidden + change.expired.len() as u64);
        self.hidden = self.hidden.saturating_sub(hidden);
        self.bytes = self.bytes.saturating_sub(change.bytes);
        if let Some(recent) = &mut self.recent {
            change.expired.iter().for_each(|&offset| recent.remove(offset));
        }
        let (first, last) = (self.segments.at_or_after(0), self.segments.at_or_before(u32::MAX));
        let is_old = |ordinal: Option<u32>| ordinal.is_some_and(|n| change.replaced.contains(&n));
        let (replaces_first, replaces_last) = (is_old(first), is_old(last));
        self.segments.replace(change.replaced.clone(), change.entry.map(|_| change.ordinal));
        if replaces_first {
            self.first_offset = change.entry.map(|entry| entry.first_offset);
            self.first = change.entry.map_or(self.first, |entry| entry.first_id);
        }
        if replaces_last && let Some(entry) = change.entry.or(change.before) {
            self.last = entry.last_id;
            self.last_offset = entry.last_offset;
            self.last_slot = entry.last_slot;
        }
    }
}

/// Numbers added in ascending order, kept as runs: a topic that is in every segment costs one pair.
#[derive(Debug, Clone, Default)]
pub(crate) struct Runs(Vec<(u32, u32)>);

impl Runs {
    fn add(&mut self, number: u32) {
        match self.0.last_mut() {
            Some((_, last)) if *last == number => {}
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => self.0.push((number, number)),
        }
    }

    /// Takes numbers out and puts one of them, or none, in their place.
    pub(super) fn replace(&mut self, old: std::ops::RangeInclusive<u32>, new: Option<u32>) {
        let (low, high) = old.into_inner();
        let mut runs = Vec::with_capacity(self.0.len() + 1);
        let below = self.0.iter().filter(|(first, _)| *first < low);
        runs.extend(below.map(|&(first, last)| (first, last.min(low.saturating_sub(1)))));
        let above = self.0.iter().filter(|(_, last)| *last > high);
        let above = above.map(|&(first, last)| (first.max(high.saturating_add(1)), last));
        let mut replaced = Self(runs);
        new.into_iter().for_each(|number| replaced.add(number));
        for (first, last) in above {
            replaced.add(first);
            if let Some(run) = replaced.0.last_mut() {
                run.1 = last;
            }
        }
        *self = replaced;
    }

    /// The smallest number at or after `number`.
    pub(crate) fn at_or_after(&self, number: u32) -> Option<u32> {
        let run = self.0.partition_point(|&(_, last)| last < number);
        self.0.get(run).map(|&(first, _)| first.max(number))
    }

    /// The greatest number at or before `number`.
    pub(crate) fn at_or_before(&self, number: u32) -> Option<u32> {
        let run = self.0.partition_point(|&(first, _)| first <= number).checked_sub(1)?;
        self.0.get(run).map(|&(_, last)| last.min(number))
    }
}

impl TopicTable {
    /// Frames of all topics.
    pub(crate) const fn frames(&self) -> u64 {
        self.frames
    }

    pub(crate) fn get(&self, number: u32) -> &TopicTotals {
        &self.topics[number as usize]
    }

    pub(super) fn get_mut(&mut self, number: u32) -> &mut TopicTotals {
        &mut self.topics[number as usize]
    }

    pub(crate) fn find(&self, topic: &str) -> Option<&TopicTotals> {
        self.numbers.get(topic).map(|&number| self.get(number))
    }

    pub(super) fn number_of(&self, topic: &str) -> Option<u32> {
        self.numbers.get(topic).copied()
    }

    /// The number of a topic, which is made when it is new.
    pub(super) fn intern(&mut self, topic: &str, first_offset: u64, first: FrameId) -> u32 {
        if let Some(&number) = self.numbers.get(topic) {
            return number;
        }
        let (name, number): (Arc<str>, _) = (Arc::from(topic), self.topics.len() as u32);
        self.numbers.insert(name.clone(), number);
        self.sorted.insert(name.clone(), number);
        self.topics.push(TopicTotals {
            name,
            stored: 0,
            hidden: 0,
            bytes: 0,
            first,
            first_offset: Some(first_offset),
            last: first,
            last_offset: 0,
            last_slot: 0,
            floor: 0,
            floor_by: 0,
            floor_before: 0,
            segments: Runs::default(),
            recent: None,
        });
        number
    }

    pub(super) fn count_frame(&mut self) {
        self.frames += 1;
    }

    pub(super) fn uncount_frames(&mut self, frames: u64) {
        self.frames = self.frames.saturating_sub(frames);
    }

    /// Takes up what a sealed segment holds of a topic.
    pub(super) fn add(&mut self, topic: &str, entry: &TopicEntry, ordinal: u32) {
        if entry.count == 0 {
            // What its floor hides lies before it: a topic that was not met yet hides nothing.
            if let Some(number) = self.number_of(topic) {
                self.get_mut(number).raise_floor(entry.floor);
            }
            return;
        }
        let number = self.intern(topic, entry.first_offset, entry.first_id);
        self.frames += u64::from(entry.count);
        let totals = self.get_mut(number);
        totals.stored += u64::from(entry.count);
        totals.bytes += entry.bytes;
        totals.last = entry.last_id;
        totals.last_offset = entry.last_offset;
        totals.last_slot = entry.last_slot;
        totals.raise_floor(entry.floor);
        totals.segments.add(ordinal);
        // From the dictionaries alone the newest frames are not known.
        totals.recent = None;
    }

    /// Forgets how many frames are hidden, and says of which topics `last:n` removed something.
    pub(super) fn begin_hidden(&mut self) -> Vec<u32> {
        self.topics.iter_mut().for_each(|totals| totals.hidden = 0);
        let numbered = self.topics.iter().zip(0u32..);
        numbered.filter(|(totals, _)| totals.floor > 0).map(|(_, number)| number).collect()
    }

    pub(super) fn set_hidden(&mut self, number: u32, hidden: u64) {
        let totals = self.get_mut(number);
        totals.hidden = hidden.min(totals.stored);
    }

    /// The topics that any of the patterns selects, each once, in byte order.
    pub(crate) fn select(&self, patterns: &TopicPatterns) -> Vec<u32> {
        let mut found: BTreeMap<&str, u32> = BTreeMap::new();
        for pattern in patterns.as_slice() {
            match pattern {
                TopicPattern::Exact(topic) => {
                    found.extend(
                        self.numbers.get_key_value(topic.as_str()).map(|(k, &n)| (&**k, n)),
                    );
                }
                TopicPattern::Below(prefix) => {
                    let from = format!("{prefix}.");
                    let range = self
                        .sorted
                        .range::<str, _>((Bound::Included(from.as_str()), Bound::Unbounded));
                    let below = range.take_while(|(name, _)| name.starts_with(&from));
                    found.extend(
                        below
                            .map(|(name, &n)| (&**name, n))
                            .filter(|(name, _)| pattern.matches(name)),
                    );
                }
                TopicPattern::All => {
                    let all = self.sorted.iter().filter(|(name, _)| pattern.matches(name));
                    found.extend(all.map(|(name, &n)| (&**name, n)));
                }
            }
        }
        found.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_find_neighbours() {
        let mut runs = Runs::default();
        [1, 1, 2, 3, 7, 9, 10].into_iter().for_each(|n| runs.add(n));
        assert_eq!(runs.0, [(1, 3), (7, 7), (9, 10)]);
        let after = |n| runs.at_or_after(n);
        let before = |n| runs.at_or_before(n);
        assert_eq!([after(0), after(2), after(4), after(11)], [Some(1), Some(2), Some(7), None]);
        assert_eq!(
            [before(0), before(2), before(8), before(99)],
            [None, Some(2), Some(7), Some(10)]
        );
    }

    #[test]
    fn runs_are_replaced() {
        for (old, new, expected) in [
            (2..=3, Some(3), vec![(1, 1), (3, 3), (7, 7), (9, 10)]),
            (3..=7, Some(7), vec![(1, 2), (7, 7), (9, 10)]),
            (3..=8, Some(8), vec![(1, 2), (8, 10)]),
            (1..=3, None, vec![(7, 7), (9, 10)]),
            (0..=20, None, vec![]),
            (0..=20, Some(20), vec![(20, 20)]),
            (2..=2, None, vec![(1, 1), (3, 3), (7, 7), (9, 10)]),
            (4..=6, Some(6), vec![(1, 3), (6, 7), (9, 10)]),
        ] {
            let mut runs = Runs(vec![(1, 3), (7, 7), (9, 10)]);
            runs.replace(old, new);
            assert_eq!(runs.0, expected);
        }
    }

    #[test]
    fn last_n_moves_the_floor() {
        let mut table = TopicTable::default();
        let number = table.intern("a", 0, FrameId::ZERO);
        let mut note = |offset: u64, keep: Option<u64>| {
            let noted = Noted {
                offset,
                id: FrameId::first_of_ms(offset),
                topic: "a",
                batch: 64,
                record: 128,
                record_len: 40,
                body_len: 0,
                ttl: crate::value::Ttl::Forever,
            };
            let totals = table.get_mut(number);
            if let Some(want) = keep.and_then(|n| totals.wants_recent(n)) {
                let mut recent = Recent::default();
                (offset - want..offset).for_each(|offset| recent.push(offset, None));
                totals.set_recent(recent);
            }
            let floor = totals.note(&noted, (0, offset), keep);
            (floor, totals.live())
        };
        assert_eq!(
            (note(0, None), note(1, None), note(2, None)),
            ((None, 1), (None, 2), (None, 3))
        );
        assert_eq!(note(3, Some(2)), (Some(2), 2));
        assert_eq!(note(4, None), (None, 3));
        assert_eq!(note(5, Some(3)), (Some(3), 3));
        assert_eq!(note(6, Some(100)), (None, 4));
        assert_eq!(note(7, Some(1)), (Some(7), 1));
    }
}
