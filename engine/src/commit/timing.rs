//! How long commits take, stage by stage. A measurement costs one clock reading and three atomic
//! additions. Every group that syncs is measured; of the others, which take a microsecond, one in
//! sixteen.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Buckets of a histogram: powers of two from a microsecond to more than half an hour.
const BUCKETS: usize = 32;
/// Of the groups that do not sync, one in this many is measured.
const SAMPLE: u64 = 16;

/// A part of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// From the first queued append to the leader that takes it.
    Queue,
    /// Laying out batches and handing them to the operating system, blobs included.
    Write,
    /// Until log and packs are durable.
    Sync,
    /// Updating the index and waking readers.
    Publish,
}

/// The histograms of a store.
#[derive(Debug, Default)]
pub(crate) struct Timing {
    stages: [Buckets; 4],
    groups: AtomicU64,
}

#[derive(Debug, Default)]
struct Buckets {
    counts: [AtomicU64; BUCKETS],
    total_ns: AtomicU64,
    max_ns: AtomicU64,
}

/// Durations, as a histogram.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Histogram {
    /// Number of durations below 1 us, from 1 us to below 2 us, from 2 us to below 4 us, and so on.
    pub counts: [u64; BUCKETS],
    /// Total nanoseconds.
    pub total_ns: u64,
    /// Maximum in nanoseconds.
    pub max_ns: u64,
}

/// How long the stages of commits took since the store was opened. Every group that syncs is
/// measured, of the others one in sixteen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CommitTimes {
    /// Groups committed, measured or not.
    pub groups: u64,
    /// From the first queued append to the leader that takes it; groups that did not wait are not
    /// counted.
    pub queue: Histogram,
    /// Laying out batches and handing them to the operating system, blobs included.
    pub write: Histogram,
    /// Until log and packs are durable.
    pub sync: Histogram,
    /// Updating the index and waking readers.
    pub publish: Histogram,
}

impl Histogram {
    /// Returns the number of measurements.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Returns an upper bound in microseconds for this share of the durations, in thousandths: 990
    /// asks for p99. A power of two; 0 when nothing was measured.
    #[must_use]
    pub fn below_us(&self, permille: u64) -> u64 {
        let wanted = (u128::from(self.count()) * u128::from(permille.min(1000))).div_ceil(1000);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += u128::from(*count);
            if seen > 0 && seen >= wanted {
                return 1 << bucket;
            }
        }
        0
    }
}

impl Timing {
    /// Starts measuring a group, if it is to be measured.
    pub(crate) fn begin(&self, syncs: bool) -> Option<Instant> {
        let number = self.groups.fetch_add(1, Ordering::Relaxed);
        (syncs || number.is_multiple_of(SAMPLE)).then(Instant::now)
    }

    /// Ends a stage that began at `since` and starts the next.
    pub(crate) fn end(&self, stage: Stage, since: &mut Option<Instant>) {
        if let Some(began) = since {
            let now = Instant::now();
            self.add(stage, now - *began);
            *began = now;
        }
    }

    /// Counts one duration.
    pub(crate) fn add(&self, stage: Stage, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let buckets = &self.stages[stage as usize];
        let bucket = (u64::BITS - (ns / 1000).leading_zeros()) as usize;
        buckets.counts[bucket.min(BUCKETS - 1)].fetch_add(1, Ordering::Relaxed);
        buckets.total_ns.fetch_add(ns, Ordering::Relaxed);
        buckets.max_ns.fetch_max(ns, Ordering::Relaxed);
    }

    /// Returns what was measured so far.
    pub(crate) fn snapshot(&self) -> CommitTimes {
        let of = |stage: Stage| {
            let buckets = &self.stages[stage as usize];
            let mut counts = [0; BUCKETS];
            for (out, count) in counts.iter_mut().zip(&buckets.counts) {
                *out = count.load(Ordering::Relaxed);
            }
            Histogram {
                counts,
                total_ns: buckets.total_ns.load(Ordering::Relaxed),
                max_ns: buckets.max_ns.load(Ordering::Relaxed),
            }
        };
        CommitTimes {
            groups: self.groups.load(Ordering::Relaxed),
            queue: of(Stage::Queue),
            write: of(Stage::Write),
            sync: of(Stage::Sync),
            publish: of(Stage::Publish),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fall_into_powers_of_two() {
        let timing = Timing::default();
        for us in [0, 1, 2, 3, 900] {
            timing.add(Stage::Sync, Duration::from_micros(us));
        }
        timing.add(Stage::Sync, Duration::from_secs(1 << 40));
        let sync = timing.snapshot().sync;
        assert_eq!((sync.counts[..4].to_vec(), sync.counts[10]), (vec![1, 1, 2, 0], 1));
        assert_eq!((sync.counts[BUCKETS - 1], sync.count()), (1, 6));
        assert_eq!((sync.below_us(0), sync.below_us(500), sync.below_us(830)), (1, 4, 1024));
        assert_eq!(timing.snapshot().write.below_us(500), 0);
    }

    #[test]
    fn groups_that_sync_are_all_measured() {
        let timing = Timing::default();
        let measured = |syncs| (0..160).filter(|_| timing.begin(syncs).is_some()).count();
        assert_eq!((measured(true), measured(false)), (160, 10));
        assert_eq!(timing.snapshot().groups, 320);
    }
}
