//! Statistics of compaction and collection, which free space, and when an automatic collection is
//! due. Kept in memory: each open starts from zero.

mod uploads;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::append::Pending;
use crate::blob::TOUCH_MS;
use crate::gc::GcReport;
use crate::options::CollectOptions;
use crate::planted::{Bug, is_planted};
use crate::store::Inner;
use crate::value::BlobHash;
use uploads::Uploads;

/// A collection is due this long after the last one, however little the packs have grown.
const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// The same after a failure, or after the store was opened, when it is unknown what died before.
const HOUR_MS: u64 = 60 * 60 * 1000;
/// Rest after a collection, as a multiple of the time it took; at most a day.
const REST: u32 = 20;
/// Divisor: the packs have grown enough when they have grown by this fraction.
const GROWN_PART: u64 = 4;
/// Maximum files whose deletion is retried; the next open deletes any others.
const FILES_LEFT_MAX: usize = 4096;

/// How much space is dead, and how much was freed since the store was opened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SpaceStats {
    /// Estimated bytes of the log that no reader sees. For sealed segments, as compaction last
    /// found them if it runs automatically.
    pub log_dead_bytes: u64,
    /// Bytes of blobs that nothing names, as of the last look and after what it freed: too young
    /// (estimated), or in packs with too few dead bytes. `None` before the first look.
    pub pack_dead_bytes: Option<u64>,
    /// Bytes by which rewrites made segments shorter.
    pub log_freed_bytes: u64,
    /// Bytes by which collections made packs shorter.
    pub pack_freed_bytes: u64,
    /// When segments were last rewritten, in milliseconds since 1970.
    pub compacted_ms: Option<u64>,
    /// Frames that were to be removed with all of their bytes, and whose bytes remain because there
    /// was no room; this is tried again.
    pub removals_left: u64,
    /// Why the last automatic compaction did not do everything, if so.
    pub compact_failure: Option<Arc<str>>,
    /// Completed collections.
    pub collections: u64,
    /// When the last of them ended, in milliseconds since 1970.
    pub collected_ms: Option<u64>,
    /// Bytes by which it made packs shorter.
    pub collected_bytes: u64,
    /// Why the last collection did not do everything, if so.
    pub collect_failure: Option<Arc<str>>,
}

/// State shared by compaction and collection.
#[derive(Debug, Default)]
pub(crate) struct Space {
    state: Mutex<State>,
    /// Files of replaced segments that could not be deleted.
    files_left: Mutex<Vec<PathBuf>>,
    uploads: Uploads,
    #[cfg(test)]
    changed: parking_lot::Condvar,
}

#[derive(Debug, Default)]
struct State {
    stats: SpaceStats,
    /// Dead bytes of sealed segments when compaction last looked.
    sealed_dead: Option<u64>,
    last: Option<Last>,
}

/// The store after a collection, or when it was opened.
#[derive(Debug, Clone, Copy)]
struct Last {
    at_ms: u64,
    /// How long to rest, however much the packs grow.
    rest_ms: u64,
    /// How long until the next one is due if the packs do not grow.
    idle_ms: u64,
    pack_bytes: u64,
    found: Found,
    /// There is more to collect, even if nothing else dies.
    owes: bool,
    /// The same once this pack is sealed: dead blobs may be in it.
    open: Option<u64>,
}

/// What there was to collect when a collection began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    gone: u64,
    /// Frames that had expired, and blobs that were put, by this time counted as dead.
    expired_by_ms: u64,
}

impl Found {
    pub(crate) fn now(inner: &Inner, grace_ms: u64) -> Self {
        let gone = inner.index.gone() + inner.cursors.read().replaced();
        Self { gone, expired_by_ms: inner.env.clock.now_ms().saturating_sub(grace_ms) }
    }

    /// Whether anything died that was not dead at an earlier time.
    fn is_more_than(&self, earlier: &Self, inner: &Inner) -> bool {
        let (after, by) = (earlier.expired_by_ms, self.expired_by_ms);
        let is_more = self.gone != earlier.gone
            || inner.index.expires_within(after, by)
            || inner.space.uploads.any_within(after, by);
        is_more && !is_planted(Bug::ForgetGone)
    }
}

/// The result of a collection.
pub(crate) struct Collected {
    pub(crate) found: Found,
    pub(crate) took: Duration,
    pub(crate) freed: u64,
    /// What was found and done; otherwise why it failed.
    pub(crate) done: Result<GcReport, Arc<str>>,
    /// It ended early.
    pub(crate) is_cut: bool,
    /// It was requested, with options of its own.
    pub(crate) is_asked: bool,
}

impl Space {
    /// Notes that the store was opened: what died before is unknown.
    pub(crate) fn begin(&self, inner: &Inner) {
        let (at_ms, pack_bytes) = (inner.env.clock.now_ms(), inner.blobs.pack_bytes());
        let (rest_ms, idle_ms, owes) = (0, HOUR_MS, true);
        let found = Found::now(inner, 0);
        let last = Last { at_ms, rest_ms, idle_ms, pack_bytes, found, owes, open: None };
        self.state.lock().last = Some(last);
    }

    /// Notes a rewrite of segments.
    pub(crate) fn compacted(&self, freed: u64, now_ms: u64) {
        let mut state = self.state.lock();
        state.stats.log_freed_bytes += freed;
        state.stats.compacted_ms = Some(now_ms);
    }

    /// Notes the dead bytes of the sealed segments.
    pub(crate) fn looked(&self, dead: u64) {
        self.state.lock().sealed_dead = Some(dead);
    }

    /// Notes how an automatic compaction ended.
    pub(crate) fn compact_ended(&self, failure: Option<String>) {
        self.state.lock().stats.compact_failure = failure.map(Into::into);
    }

    /// Notes the result of a look for blobs that nothing names.
    pub(crate) fn examined(&self, report: &GcReport) {
        let dead = report.dead_bytes + report.young_bytes;
        self.state.lock().stats.pack_dead_bytes = Some(dead);
    }

    /// Notes a collection.
    pub(crate) fn collected(&self, inner: &Inner, collected: Collected) {
        let Collected { found, took, freed, done, is_cut, is_asked } = collected;
        let (at_ms, pack_bytes) = (inner.env.clock.now_ms(), inner.blobs.pack_bytes());
        let rest = u64::try_from(took.saturating_mul(REST).as_millis()).unwrap_or(u64::MAX);
        let before = self.state.lock().last;
        let is_more = before.is_none_or(|last| last.owes || found.is_more_than(&last.found, inner));
        let open = inner.blobs.newest_open().filter(|_| is_more);
        if done.is_ok() {
            self.uploads.forget(found.expired_by_ms);
        }
        let mut state = self.state.lock();
        let stats = &mut state.stats;
        let (owes, idle_ms) = match done {
            Ok(report) => {
                stats.pack_dead_bytes =
                    Some(report.dead_bytes - report.swept_bytes + report.young_bytes);
                stats.collect_failure =
                    report.damaged.first().map(|corruption| corruption.to_string().into());
                stats.collections += 1;
                (stats.collected_ms, stats.collected_bytes) = (Some(at_ms), freed);
                let spared = is_asked && report.dead > report.swept;
                let is_young = report.young > 0 && !is_planted(Bug::ForgetYoung);
                let owes = is_cut || spared || report.left > 0 || is_young;
                (owes, if is_cut { 0 } else { DAY_MS })
            }
            Err(why) => {
                stats.collect_failure = Some(why);
                (true, HOUR_MS)
            }
        };
        let rest_ms = rest.min(DAY_MS);
        let idle_ms = idle_ms.max(rest_ms);
        state.last = Some(Last { at_ms, rest_ms, idle_ms, pack_bytes, found, owes, open });
        #[cfg(test)]
        self.changed.notify_all();
    }

    /// Notes a blob that was put by itself.
    pub(crate) fn put(&self, hash: BlobHash, now_ms: u64) {
        // Packs are spared that much longer than the grace.
        self.uploads.put(hash, now_ms.saturating_add(TOUCH_MS));
    }

    /// Notes the blobs that these batches name, which are in the log.
    pub(crate) fn named<'a>(&self, batches: impl Iterator<Item = &'a Pending>) {
        if self.uploads.any() {
            self.uploads.name(batches.flat_map(Pending::named));
        }
    }

    /// Whether a collection is due. Cheap: reads counters and the list of packs.
    pub(crate) fn is_due(&self, inner: &Inner, options: &CollectOptions) -> bool {
        let pack_bytes = inner.blobs.pack_bytes();
        let now_ms = inner.env.clock.now_ms();
        let found = Found::now(inner, options.grace_ms());
        let mut state = self.state.lock();
        let Some(last) = &mut state.last else { return false };
        // The clock may be set back.
        last.at_ms = last.at_ms.min(now_ms);
        let last = *last;
        drop(state);
        let age_ms = now_ms - last.at_ms;
        let grown = pack_bytes.saturating_sub(last.pack_bytes);
        let has_grown = grown >= options.grown_bytes.max(last.pack_bytes / GROWN_PART)
            && !is_planted(Bug::IgnoreGrowth);
        let is_time = age_ms >= last.idle_ms || (has_grown && age_ms >= last.rest_ms);
        let is_gone = || {
            let is_sealed = last.open.is_some_and(|pack| !inner.blobs.is_open(pack));
            last.owes || is_sealed || found.is_more_than(&last.found, inner)
        };
        pack_bytes > 0 && is_time && is_gone()
    }

    /// Keeps a file that could not be deleted, to try again.
    pub(crate) fn leave(&self, path: PathBuf) {
        let mut left = self.files_left.lock();
        if left.len() < FILES_LEFT_MAX {
            left.push(path);
        }
    }

    /// Tries again to delete files.
    pub(crate) fn clear_left(&self, inner: &Inner) {
        self.files_left.lock().retain(|path| inner.env.files.remove(path).is_err());
    }

    /// Returns the current statistics.
    pub(crate) fn stats(&self, inner: &Inner) -> SpaceStats {
        let (mut stats, looked) = {
            let state = self.state.lock();
            (state.stats.clone(), state.sealed_dead)
        };
        let now_ms = inner.env.clock.now_ms();
        // Without automatic compaction the last look may be long ago.
        let sealed = looked.filter(|_| inner.env.options.compaction.is_some());
        let sealed = sealed.unwrap_or_else(|| {
            let candidates = inner.index.candidates(now_ms, true);
            candidates.iter().map(|of| of.dead).sum()
        });
        stats.log_dead_bytes = sealed + inner.index.dead_of_active(now_ms);
        stats.pack_freed_bytes = inner.blobs.freed();
        stats.removals_left = inner.compaction.owed.len() as u64;
        stats
    }

    /// Waits until more than `count` collections have ended.
    #[cfg(test)]
    pub(crate) fn wait_collections(&self, count: u64) {
        let mut state = self.state.lock();
        while state.stats.collections <= count && state.stats.collect_failure.is_none() {
            self.changed.wait(&mut state);
        }
    }
}
