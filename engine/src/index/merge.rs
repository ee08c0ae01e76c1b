//! The mapped table of all topics: found at open, merged from the previous table and the topic
//! indexes of the segments sealed since. A merge takes time proportional to the number of topics,
//! so it waits until several segments are sealed, and runs in the background.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fst::Streamer as _;
use fst::map::{IndexedValue, OpBuilder};

use super::topics::Layer;
use super::{Index, Runs};
use crate::env::Env;
use crate::format::file::{FileHeader, Magic};
use crate::format::topic_index::TopicFile;
use crate::format::topic_table::{
    Covered, NumberRuns, TableFile, TableWriter, TopicTotals, push_number,
};
use crate::log::Segment;
use crate::names::{TABLE, finished, unfinished};

/// Sealed segments outside the table at which it is merged. A merge visits every topic, and with a
/// million of them writes 100 MB, once per this many segments; each segment outside the table costs
/// a topic one more lookup, and an open the check of its dictionary.
pub(super) const MERGE_AT: usize = 8;
/// The same threshold while opening a store that has lost its table.
pub(super) const MERGE_AT_OPEN: usize = 256;
/// Topics between two checks of the stop flag.
const STOP_EVERY: u32 = 4096;

/// Generations of the table's file.
#[derive(Debug, Default)]
pub(super) struct Generations {
    /// The highest generation of any table file, so that no file is overwritten.
    newest: u32,
    /// Of the file in use.
    current: Option<u32>,
}

pub(super) fn covered(segment: &Segment) -> Covered {
    let (base, generation, uuid) = (segment.base(), segment.generation(), segment.uuid());
    Covered { base, generation, uuid }
}

fn generation_of(name: &str) -> Option<u32> {
    let generation = name.strip_prefix(TABLE)?;
    let generation = finished(generation).unwrap_or(generation);
    generation.bytes().all(|byte| byte.is_ascii_digit()).then(|| generation.parse().ok())?
}

/// The newest table that covers a prefix of the sealed segments in their present state. With
/// `tidy`, all other table files are removed.
pub(super) fn find(
    env: &Env,
    sealed: &[Arc<Segment>],
    tidy: bool,
) -> (Option<Arc<TableFile>>, Generations) {
    let names = env.files.list(&env.dir).unwrap_or_default();
    let mut generations: Vec<(u32, &String)> =
        names.iter().filter_map(|name| Some((generation_of(name)?, name))).collect();
    generations.sort_unstable_by(|a, b| b.cmp(a));
    let mut known = Generations {
        newest: generations.first().map_or(0, |&(generation, _)| generation),
        current: None,
    };
    let mut table = None;
    for (generation, name) in generations {
        let path = env.dir.join(name);
        let is_whole = table.is_none() && finished(name).is_none();
        let loaded = is_whole.then(|| load(env, &path)).flatten();
        let matching = loaded.filter(|file| {
            let segments = sealed.iter().map(|segment| covered(segment));
            file.segments().len() <= sealed.len()
                && segments.zip(file.segments()).all(|(a, b)| a == *b)
        });
        match matching {
            Some(file) => {
                table = Some(Arc::new(file));
                known.current = Some(generation);
            }
            // If it remains, the next open rejects it again.
            None if tidy => drop(env.files.remove(&path)),
            None => {}
        }
    }
    (table, known)
}

fn load(env: &Env, path: &std::path::Path) -> Option<TableFile> {
    let media = env.files.open_sealed(path).ok()?;
    let bytes = media.view(0..media.published()).ok()?;
    TableFile::read(bytes).ok().map(|(_, file)| file)
}

impl Index {
    /// Whether enough segments were sealed since the last merge for another one.
    pub(crate) fn merge_is_due(&self) -> bool {
        self.topics.read().mergeable() >= MERGE_AT
    }

    /// Merges the table, unless `stop` is set meanwhile.
    ///
    /// # Errors
    /// The I/O error; the table is then unchanged.
    pub(crate) fn merge(&self, stop: &AtomicBool) -> io::Result<()> {
        let mut generations = self.merging.lock();
        let from = {
            let topics = self.topics.read();
            let layers = topics.layers[..topics.mergeable()].to_vec();
            From { table: topics.table.clone(), outdated: topics.outdated.clone(), layers }
        };
        let Some(newest) = from.layers.last().map(|layer| layer.of) else { return Ok(()) };
        let before = from.table.iter().flat_map(|table| table.segments().iter().copied());
        let segments: Vec<Covered> =
            before.chain(from.layers.iter().map(|layer| layer.of)).collect();
        let next = generations.newest.saturating_add(1);
        let path = self.env.dir.join(format!("{TABLE}{next}"));
        let unfinished = unfinished(&path);
        let header = FileHeader {
            magic: Magic::Table,
            salt: 0,
            store: self.env.manifest.state().store,
            file: newest.uuid,
            base: newest.base,
            generation: next,
        };
        let files = &self.env.files;
        let written = files.write_stream(&unfinished, &mut |out| {
            let writer = TableWriter::new(out, &header, &segments)?;
            self.merge_into(writer, &from, &segments, stop)
        });
        if let Err(error) = written {
            // If left behind, the next open removes it.
            let _ = files.remove(&unfinished);
            return Err(error);
        }
        generations.newest = next;
        files.rename(&unfinished, &path)?;
        files.sync_dir(&self.env.dir)?;
        let merged = load(&self.env, &path).ok_or(io::ErrorKind::InvalidData)?;
        self.install(Arc::new(merged), &from);
        if let Some(old) = generations.current.replace(next) {
            // If it remains, the next open removes it.
            let _ = files.remove(&self.env.dir.join(format!("{TABLE}{old}")));
        }
        Ok(())
    }

    /// Replaces what a table was merged from by the table, unless that changed meanwhile.
    fn install(&self, table: Arc<TableFile>, from: &From) {
        let mut topics = self.topics.write();
        let count = from.layers.len();
        let same = |(mine, merged): (&Layer, &Layer)| mine.is_same(merged);
        let is_same = topics.layers.len() >= count
            && topics.layers.iter().zip(&from.layers).all(same)
            && is_one(topics.table.as_ref(), from.table.as_ref())
            && is_one(topics.outdated.as_ref(), from.outdated.as_ref());
        if is_same {
            topics.layers.drain(..count);
            topics.table = Some(table);
            topics.outdated = None;
        }
    }

    /// Writes the totals of the old table and the layers.
    fn merge_into(
        &self,
        mut writer: TableWriter<'_>,
        from: &From,
        segments: &[Covered],
        stop: &AtomicBool,
    ) -> io::Result<()> {
        let files: Vec<&TopicFile> = from.layers.iter().filter_map(Layer::file).collect();
        let first = usize::from(from.table.is_some());
        let before = (segments.len() - files.len()) as u32;
        let mut all = OpBuilder::new();
        from.table.iter().for_each(|table| all.push(table.names()));
        files.iter().for_each(|file| all.push(file.names()));
        let mut union = all.union();
        let (mut values, mut parts, mut countdown) = (Vec::new(), Vec::new(), STOP_EVERY);
        while let Some((name, found)) = union.next() {
            values.clear();
            values.extend_from_slice(found);
            values.sort_unstable_by_key(|value: &IndexedValue| value.index);
            parts.clear();
            let mut runs = NumberRuns::new();
            for value in &values {
                match (value.index.checked_sub(first), &from.table) {
                    (None, Some(table)) => {
                        parts.extend(table.entry(value.value));
                        runs = table.runs(value.value);
                    }
                    (Some(number), _) => {
                        let entry = files.get(number).and_then(|file| file.entry(value.value));
                        parts.extend(entry.as_ref().map(TopicTotals::from));
                        if entry.is_some_and(|entry| entry.count > 0) {
                            push_number(&mut runs, before + number as u32);
                        }
                    }
                    (None, None) => {}
                }
            }
            if let Some(totals) = self.add_up(name, &parts, &runs, from, segments) {
                writer.add(name, &totals, &runs)?;
            }
            countdown -= 1;
            if countdown == 0 {
                if stop.load(Ordering::Relaxed) {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                countdown = STOP_EVERY;
            }
        }
        writer.finish()
    }

    /// The totals of a topic over several segments; `None` without a frame.
    fn add_up(
        &self,
        name: &[u8],
        parts: &[TopicTotals],
        runs: &NumberRuns,
        from: &From,
        segments: &[Covered],
    ) -> Option<TopicTotals> {
        let outdated = from.outdated.as_ref();
        let before =
            outdated.and_then(|table| table.names().get(name).and_then(|at| table.entry(at)));
        let floor = parts.iter().chain(&before).map(|part| part.floor).max().unwrap_or(0);
        let mut totals = TopicTotals::with_floor(floor);
        parts.iter().for_each(|part| totals.add(part));
        if !totals.is_exact {
            let base = |number: u32| segments.get(number as usize).map(|segment| segment.base);
            let mut bases = Runs::default();
            for &(first, last) in runs {
                bases.push(base(first)?, base(last)?);
            }
            let topic = std::str::from_utf8(name).ok()?;
            let range = (floor, totals.last_offset + 1);
            totals.left = self.count_between(None, topic, &bases, range);
        }
        (totals.stored > 0).then_some(totals)
    }
}

/// The inputs of a merge.
struct From {
    table: Option<Arc<TableFile>>,
    outdated: Option<Arc<TableFile>>,
    layers: Vec<Layer>,
}

/// Whether both are the same table, or both are none.
pub(super) fn is_one(a: Option<&Arc<TableFile>>, b: Option<&Arc<TableFile>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (a, b) => a.is_none() && b.is_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::generation_of;

    #[test]
    fn names_are_read() {
        assert_eq!(generation_of("topics.7"), Some(7));
        assert_eq!(generation_of("topics.12.tmp"), Some(12));
        for other in
            ["topics.", "topics.x", "topics.-1", "topics.1.bak", "super.a", "topics.99999999999"]
        {
            assert_eq!(generation_of(other), None, "{other}");
        }
    }
}
