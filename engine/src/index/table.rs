//! All topics of the store: totals, the segments that hold each, and what `last:n` has removed.
//! Kept in memory, rebuilt at open from the dictionaries of the sealed segments.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use super::Noted;
use crate::format::topic_index::TopicEntry;
use crate::value::{FrameId, TopicPattern, TopicPatterns};

/// Live frames of a topic remembered for `last:n` beyond what n asks for.
const RECENT_SPARE: usize = 65_536;

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
    /// Frames removed by `last:n`.
    hidden: u64,
    /// Bytes of records and bodies, removed ones included.
    pub(crate) bytes: u64,
    pub(crate) first: FrameId,
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
    recent: Option<VecDeque<u64>>,
}

impl TopicTotals {
    /// Frames that a reader can see, expired ones included.
    pub(crate) const fn live(&self) -> u64 {
        self.stored - self.hidden
    }

    /// Whether `last:n` must first learn the newest offsets, and how many.
    pub(super) fn wants_recent(&self, n: u64) -> Option<u64> {
        (self.recent.is_none() && n > 1).then(|| self.live().min(n))
    }

    /// Gives what [`Self::wants_recent`] asked for: the newest live offsets, ascending.
    pub(super) fn set_recent(&mut self, offsets: VecDeque<u64>) {
        self.hidden = self.stored - offsets.len() as u64;
        self.recent = Some(offsets);
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
        if keep == Some(1) {
            let recent = self.recent.get_or_insert_default();
            recent.clear();
            recent.push_back(noted.offset);
        } else {
            let recent = self.recent.as_mut()?;
            recent.push_back(noted.offset);
            let keep = keep.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
            let excess = recent.len().saturating_sub(keep);
            recent.drain(..excess);
            if keep == usize::MAX {
                if recent.len() > RECENT_SPARE {
                    self.recent = None;
                }
                return None;
            }
        }
        let recent = self.recent.as_ref()?;
        self.hidden = self.stored - recent.len() as u64;
        let floor = recent.front().copied().filter(|_| self.hidden > 0)?;
        (floor > self.floor).then(|| {
            if self.floor_by < group {
                self.floor_before = self.floor;
            }
            self.floor = floor;
            self.floor_by = noted.offset;
            floor
        })
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
    pub(super) fn intern(&mut self, topic: &str, first: FrameId) -> u32 {
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

    /// Takes up what a sealed segment holds of a topic.
    pub(super) fn add(&mut self, topic: &str, entry: &TopicEntry, ordinal: u32) {
        let number = self.intern(topic, entry.first_id);
        self.frames += u64::from(entry.count);
        let totals = self.get_mut(number);
        totals.stored += u64::from(entry.count);
        totals.bytes += entry.bytes;
        totals.last = entry.last_id;
        totals.last_offset = entry.last_offset;
        totals.last_slot = entry.last_slot;
        totals.floor = totals.floor.max(entry.floor);
        totals.floor_by = totals.floor;
        totals.segments.add(ordinal);
    }

    /// The numbers of topics of which `last:n` removed something.
    pub(super) fn with_floor(&self) -> Vec<u32> {
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
    fn last_n_moves_the_floor() {
        let mut table = TopicTable::default();
        let number = table.intern("a", FrameId::ZERO);
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
                totals.set_recent((offset - want..offset).collect());
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
