//! The totals of each topic, in layers, oldest first, that are added up on demand. The lowest is
//! the mapped table, then come the dictionaries of the sealed segments it does not cover, then the
//! segments in memory. Nothing else is kept per topic, so a frame of a known topic loads nothing,
//! and opening a store does no work per topic.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use fst::Streamer;
use fst::map::{IndexedValue, OpBuilder};
use parking_lot::MutexGuard;

use super::memory::MemoryIndex;
use super::recent::Handed;
use super::runs::Runs;
use crate::format::topic_index::{TopicEntry, TopicFile};
use crate::format::topic_table::{Covered, TableFile, TopicTotals};
use crate::value::{FrameId, TopicPattern, TopicPatterns};

/// The layers.
#[derive(Debug, Default)]
pub(super) struct Topics {
    pub(super) table: Option<Arc<TableFile>>,
    /// Complete segments that the table does not cover, oldest first.
    pub(super) layers: Vec<Layer>,
    /// The active segment, with its ordinal.
    pub(super) active: Option<(u32, MemoryIndex)>,
    /// A stale table, whose counts no longer match the segments. Floors only rise, so its floors
    /// still hold.
    pub(super) outdated: Option<Arc<TableFile>>,
    /// Offsets of frames that were removed individually and are still in the log.
    removed: HashMap<Box<str>, BTreeSet<u64>>,
    /// The newest frames of topics that are not in the active segment yet.
    pub(super) handed: Handed,
}

/// A complete segment.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) of: Covered,
    pub(super) source: Source,
}

#[derive(Debug, Clone)]
pub(super) enum Source {
    File(Arc<TopicFile>),
    Memory(Arc<MemoryIndex>),
}

/// The location of the newest frame of a topic.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Newest {
    pub(crate) offset: u64,
    /// The position of its record, unless its segment was rewritten since; the id tells.
    pub(crate) position: u64,
    pub(crate) id: FrameId,
}

impl Newest {
    pub(crate) fn of(totals: &TopicTotals) -> Self {
        let position = u64::from(totals.last_slot) * 8;
        Self { offset: totals.last_offset, position, id: totals.last }
    }
}

impl Layer {
    fn find(&self, topic: &str) -> Option<TopicEntry> {
        match &self.source {
            Source::File(file) => file.find(topic),
            Source::Memory(index) => index.find(topic),
        }
    }

    /// Its dictionary, once written.
    pub(super) fn file(&self) -> Option<&TopicFile> {
        match &self.source {
            Source::File(file) => Some(file),
            Source::Memory(_) => None,
        }
    }

    /// Whether it is this in-memory index.
    pub(super) fn is_of(&self, index: &Arc<MemoryIndex>) -> bool {
        matches!(&self.source, Source::Memory(mine) if Arc::ptr_eq(mine, index))
    }

    /// Whether both are the same layer.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let same = match (&self.source, &other.source) {
            (Source::File(a), Source::File(b)) => Arc::ptr_eq(a, b),
            (Source::Memory(a), Source::Memory(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        same && self.of == other.of
    }
}

impl Topics {
    /// How many layers can be merged into the table: the oldest ones, up to the first that is not
    /// written.
    pub(super) fn mergeable(&self) -> usize {
        self.layers.iter().take_while(|layer| layer.file().is_some()).count()
    }

    /// Layers of sealed segments that are not in files.
    #[cfg(test)]
    pub(super) fn in_memory(&self) -> usize {
        self.layers.iter().filter(|layer| layer.file().is_none()).count()
    }

    fn memory(&self) -> Option<&MemoryIndex> {
        self.active.as_ref().map(|(_, memory)| memory)
    }

    /// Whether the store holds a frame of a topic.
    pub(super) fn holds(&self, topic: &str) -> bool {
        self.newest(topic).is_some()
    }

    /// The totals of a topic.
    pub(super) fn totals(&self, topic: &str) -> Option<TopicTotals> {
        let mut totals = TopicTotals::with_floor(self.floor(topic, u64::MAX));
        let table = self.table.as_ref().and_then(|table| table.find(topic));
        table.iter().for_each(|table| totals.add(table));
        let layers = self.layers.iter().filter_map(|layer| layer.find(topic));
        let active = self.memory().and_then(|active| active.find(topic));
        layers.chain(active).for_each(|entry| totals.add(&TopicTotals::from(&entry)));
        (totals.stored > 0).then_some(totals)
    }

    /// Upper bound of the frames of a topic that `last:n` left.
    pub(super) fn at_most(&self, topic: &str) -> u64 {
        let totals = self.totals(topic);
        totals.map_or(0, |totals| if totals.is_exact { totals.left } else { totals.stored })
    }

    /// The location of the newest frame of a topic. Looks up as few layers as possible.
    pub(super) fn newest(&self, topic: &str) -> Option<Newest> {
        let active = self.memory().and_then(|active| active.find(topic));
        let layers = self.layers.iter().rev().filter_map(|layer| layer.find(topic));
        let found = active.into_iter().chain(layers).find(|entry| entry.count > 0);
        let found = found.map(|entry| TopicTotals::from(&entry));
        let found = found.or_else(|| self.table.as_ref()?.find(topic));
        found.as_ref().map(Newest::of)
    }

    /// The floor of a topic for a reader with this head: the first offset that `last:n` did not
    /// remove.
    pub(super) fn floor(&self, topic: &str, head: u64) -> u64 {
        let active = self.memory().map(|active| active.floor(topic, head));
        let layers = self.layers.iter().map(|layer| match &layer.source {
            Source::File(file) => file.find(topic).map_or(0, |entry| entry.floor),
            Source::Memory(index) => index.floor(topic, head),
        });
        let tables = self.table.iter().chain(&self.outdated);
        let tables = tables.map(|table| table.find(topic).map_or(0, |totals| totals.floor));
        active.into_iter().chain(layers).chain(tables).max().unwrap_or(0)
    }

    /// The floor of a topic for a reader with this head, if it is known: for topics with newer
    /// frames only the segments in memory know it, and only across one move of the floor.
    pub(super) fn known_floor(&self, topic: &str, head: u64) -> Option<u64> {
        let is_known = |floor: u64, last_offset: u64| floor == 0 || last_offset < head;
        let all_known = self.layers.iter().all(|layer| match &layer.source {
            Source::File(file) => {
                file.find(topic).is_none_or(|entry| is_known(entry.floor, entry.last_offset))
            }
            Source::Memory(index) => index.is_floor_known(topic, head),
        }) && self.table.iter().chain(&self.outdated).all(|table| {
            table.find(topic).is_none_or(|totals| is_known(totals.floor, totals.last_offset))
        }) && self.memory().is_none_or(|active| active.is_floor_known(topic, head));
        all_known.then(|| self.floor(topic, head))
    }

    /// Number of frames of a topic from an offset on that were removed individually and are in the
    /// log.
    pub(super) fn removed_from(&self, topic: &str, offset: u64) -> u64 {
        let removed = self.removed.get(topic);
        removed.map_or(0, |removed| removed.range(offset..).count() as u64)
    }

    /// Removes a frame of a topic.
    pub(super) fn remove(&mut self, topic: &str, offset: u64) {
        if let Some((_, active)) = &mut self.active {
            active.remove_recent(topic, offset);
        }
        if let Some(recent) = self.handed.get_mut(topic) {
            recent.remove(offset);
        }
        if let Some(removed) = self.removed.get_mut(topic) {
            removed.insert(offset);
        } else {
            self.removed.insert(Box::from(topic), BTreeSet::from([offset]));
        }
    }

    /// Forgets removed frames of a topic that are compacted away.
    pub(super) fn forget_removed(&mut self, topic: &str, is_gone: impl Fn(u64) -> bool) {
        if let Some(removed) = self.removed.get_mut(topic) {
            removed.retain(|&offset| !is_gone(offset));
            if removed.is_empty() {
                self.removed.remove(topic);
            }
        }
    }

    /// The segments that hold a topic.
    pub(super) fn runs(&self, topic: &str) -> Runs {
        let mut runs = Runs::default();
        if let Some(table) = &self.table
            && let Some(place) = table.names().get(topic)
        {
            let base = |number: u32| table.segments().get(number as usize).map(|of| of.base);
            for (first, last) in table.runs(place) {
                if let (Some(first), Some(last)) = (base(first), base(last)) {
                    runs.push(first, last);
                }
            }
        }
        let holds = |entry: Option<TopicEntry>| entry.is_some_and(|entry| entry.count > 0);
        let layers = self.layers.iter().filter(|layer| holds(layer.find(topic)));
        layers.for_each(|layer| runs.push(layer.of.base, layer.of.base));
        let active = self.memory().filter(|active| holds(active.find(topic)));
        active.iter().for_each(|active| runs.push(active.base(), active.base()));
        runs
    }

    /// Up to `limit` topics that any of the patterns selects, with names after `after`, in byte
    /// order.
    pub(super) fn page(
        &self,
        patterns: &TopicPatterns,
        after: Option<&str>,
        limit: usize,
    ) -> Vec<(Arc<str>, TopicTotals)> {
        if let [TopicPattern::Exact(topic)] = patterns.as_slice() {
            let wanted = limit > 0 && after.is_none_or(|after| after < topic.as_str());
            let totals = wanted.then(|| self.totals(topic.as_str())).flatten();
            return totals.map(|totals| (Arc::from(topic.as_str()), totals)).into_iter().collect();
        }
        let mut found = Vec::new();
        for (mut low, high) in ranges(patterns) {
            if let Some(after) = after {
                low = low.max([after.as_bytes(), &[0]].concat());
            }
            if found.len() >= limit || high.as_ref().is_some_and(|high| *high <= low) {
                continue;
            }
            self.walk(&low, high.as_deref(), |name, totals| {
                if let Ok(name) = std::str::from_utf8(name)
                    && patterns.matches(name)
                {
                    found.push((Arc::from(name), totals));
                }
                found.len() < limit
            });
        }
        found
    }

    /// Adds up the layers for every topic from `low` up to `high`, in byte order of the names,
    /// until `visit` returns false.
    fn walk(
        &self,
        low: &[u8],
        high: Option<&[u8]>,
        mut visit: impl FnMut(&[u8], TopicTotals) -> bool,
    ) {
        let views = self.views();
        let mut all = OpBuilder::new();
        for view in &views {
            match view {
                View::Table(table) => all.push(between(table.names(), low, high)),
                View::File(file) => all.push(between(file.names(), low, high)),
                View::Memory(index, sorted) => all.push(Sorted::new(index, sorted, low, high)),
            }
        }
        let mut union = all.union();
        let mut values: Vec<IndexedValue> = Vec::new();
        let mut parts: Vec<TopicTotals> = Vec::new();
        while let Some((name, found)) = union.next() {
            values.clear();
            values.extend_from_slice(found);
            values.sort_unstable_by_key(|value| value.index);
            parts.clear();
            parts.extend(values.iter().filter_map(|value| views[value.index].part(value.value)));
            let mut floor = parts.iter().map(|part| part.floor).max().unwrap_or(0);
            if let Some(outdated) = &self.outdated {
                let place = outdated.names().get(name);
                let before = place.and_then(|place| outdated.entry(place));
                floor = floor.max(before.map_or(0, |totals| totals.floor));
            }
            let mut totals = TopicTotals::with_floor(floor);
            parts.iter().for_each(|part| totals.add(part));
            if totals.stored > 0 && !visit(name, totals) {
                return;
            }
        }
    }

    /// The layers, oldest first.
    fn views(&self) -> Vec<View<'_>> {
        let table = self.table.iter().map(|table| View::Table(table));
        let layers = self.layers.iter().map(|layer| match &layer.source {
            Source::File(file) => View::File(file),
            Source::Memory(index) => View::Memory(index, index.sorted()),
        });
        let active = self.memory().map(|active| View::Memory(active, active.sorted()));
        table.chain(layers).chain(active).collect()
    }
}

/// A layer that is being walked.
enum View<'a> {
    Table(&'a TableFile),
    File(&'a TopicFile),
    Memory(&'a MemoryIndex, MutexGuard<'a, Vec<u32>>),
}

impl View<'_> {
    /// The totals that its dictionary stores under `value`.
    fn part(&self, value: u64) -> Option<TopicTotals> {
        match self {
            View::Table(table) => table.entry(value),
            View::File(file) => file.entry(value).as_ref().map(TopicTotals::from),
            View::Memory(index, _) => index.entry(value as u32).as_ref().map(TopicTotals::from),
        }
    }
}

/// The names from `low` up to `high`.
fn between<'a>(
    names: &'a fst::Map<Bytes>,
    low: &[u8],
    high: Option<&[u8]>,
) -> fst::map::StreamBuilder<'a> {
    let from = names.range().ge(low);
    match high {
        Some(high) => from.lt(high),
        None => from,
    }
}

/// Topics of a segment in memory, in byte order of their names.
struct Sorted<'a> {
    index: &'a MemoryIndex,
    numbers: std::slice::Iter<'a, u32>,
}

impl<'a> Sorted<'a> {
    fn new(index: &'a MemoryIndex, sorted: &'a [u32], low: &[u8], high: Option<&[u8]>) -> Self {
        let place = |bound: &[u8]| sorted.partition_point(|&n| index.name(n).as_bytes() < bound);
        let range = place(low)..high.map_or(sorted.len(), place);
        Self { index, numbers: sorted.get(range).unwrap_or_default().iter() }
    }
}

impl<'a> Streamer<'a> for Sorted<'_> {
    type Item = (&'a [u8], u64);

    fn next(&'a mut self) -> Option<Self::Item> {
        let number = *self.numbers.next()?;
        Some((self.index.name(number).as_bytes(), u64::from(number)))
    }
}

type Range = (Vec<u8>, Option<Vec<u8>>);

/// The disjoint ranges of names that patterns can select from, ascending.
fn ranges(patterns: &TopicPatterns) -> Vec<Range> {
    let range = |pattern: &TopicPattern| match pattern {
        TopicPattern::Exact(topic) => {
            let name = topic.as_str().as_bytes();
            (name.to_vec(), Some([name, &[0]].concat()))
        }
        // From the dot up to the byte after it.
        TopicPattern::Below(prefix) => {
            let prefix = prefix.as_str().as_bytes();
            ([prefix, b"."].concat(), Some([prefix, b"/"].concat()))
        }
        TopicPattern::All => (Vec::new(), None),
    };
    let mut all: Vec<Range> = patterns.as_slice().iter().map(range).collect();
    all.sort_unstable();
    let mut apart: Vec<Range> = Vec::with_capacity(all.len());
    for (low, high) in all {
        match apart.last_mut() {
            Some((_, None)) => {}
            Some((_, Some(end))) if *end >= low => match high {
                Some(high) if high <= *end => {}
                Some(high) => *end = high,
                None => apart.last_mut().into_iter().for_each(|(_, end)| *end = None),
            },
            _ => apart.push((low, high)),
        }
    }
    apart
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_apart() {
        let of = |text: &str| {
            let found = ranges(&TopicPatterns::parse(text).unwrap());
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replace('\0', "!");
            found.into_iter().map(|(a, b)| (text(a), b.map(text))).collect::<Vec<_>>()
        };
        let range = |low: &str, high: &str| (low.to_owned(), Some(high.to_owned()));
        assert_eq!(of("b"), [range("b", "b!")]);
        assert_eq!(of("b,a.*"), [range("a.", "a/"), range("b", "b!")]);
        assert_eq!(of("a.b,a.*,a.b.*,a"), [range("a", "a!"), range("a.", "a/")]);
        assert_eq!(of("xs.*,*,a"), [(String::new(), None)]);
    }
}
