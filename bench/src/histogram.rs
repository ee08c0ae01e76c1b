//! A histogram of durations. The width of buckets grows with the duration, so that any quantile is
//! within 3 % and recording is a shift and an add. Meant only for times.

use std::time::Duration;

/// Buckets for each power of two, as a power of two.
const SHARE_BITS: u32 = 5;
const SHARE: usize = 1 << SHARE_BITS;
/// Longer times (more than half an hour) count as this.
const NANOS_MAX: u64 = (1 << 41) - 1;
const BUCKETS: usize = bucket(NANOS_MAX) + 1;

/// How often each duration was recorded.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    longest: u64,
}

const fn bucket(nanos: u64) -> usize {
    let bits = u64::BITS - nanos.leading_zeros();
    if bits <= SHARE_BITS + 1 {
        return nanos as usize;
    }
    let shift = bits - SHARE_BITS - 1;
    shift as usize * SHARE + (nanos >> shift) as usize
}

/// Returns the longest duration of a bucket.
const fn upper(bucket: usize) -> u64 {
    if bucket < 2 * SHARE {
        return bucket as u64;
    }
    let shift = bucket / SHARE - 1;
    let first = (bucket - shift * SHARE) as u64;
    ((first + 1) << shift) - 1
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, longest: 0 }
    }
}

impl Histogram {
    /// Records one duration.
    pub fn record(&mut self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).min(NANOS_MAX);
        self.counts[bucket(nanos)] += 1;
        self.total += 1;
        self.longest = self.longest.max(nanos);
    }

    /// Returns the number of recorded durations.
    pub const fn count(&self) -> u64 {
        self.total
    }

    /// Adds the counts of another histogram.
    pub fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(sum, count)| *sum += count);
        self.total += other.total;
        self.longest = self.longest.max(other.longest);
    }

    /// Returns the duration that a share (0 to 1) of all do not exceed; zero if there are none.
    pub fn quantile(&self, share: f64) -> Duration {
        let rank = ((self.total as f64 * share).ceil() as u64).clamp(1, self.total.max(1));
        let mut seen = 0;
        let found = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        Duration::from_nanos(found.map_or(0, upper).min(self.longest))
    }

    /// Like [`Self::quantile`], in microseconds.
    pub fn micros(&self, share: f64) -> f64 {
        self.quantile(share).as_nanos() as f64 / 1e3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_falls_into_a_bucket_close_to_it() {
        let mut before = 0;
        for nanos in (0..1000).chain((10..41).flat_map(|bit| [(1 << bit) - 1, 1 << bit])) {
            let upper = upper(bucket(nanos));
            assert!(upper >= nanos && upper - nanos <= nanos / SHARE as u64, "{nanos}: {upper}");
            assert!(bucket(nanos) >= before);
            before = bucket(nanos);
        }
    }

    #[test]
    fn quantiles_are_those_of_what_was_recorded() {
        let (mut all, mut odd) = (Histogram::default(), Histogram::default());
        for micros in 1..=1000 {
            let half = if micros % 2 == 0 { &mut all } else { &mut odd };
            half.record(Duration::from_micros(micros));
        }
        all.merge(&odd);
        assert_eq!(all.count(), 1000);
        for (share, micros) in [(0.5, 500.0), (0.99, 990.0), (0.999, 999.0), (1.0, 1000.0)] {
            let found = all.quantile(share).as_nanos() as f64 / 1000.0;
            assert!((micros..=micros * 1.04).contains(&found), "{share}: {found}");
        }
        all.record(Duration::MAX);
        assert_eq!(all.quantile(1.0).as_nanos() as u64, NANOS_MAX);
        assert_eq!(Histogram::default().quantile(0.5), Duration::ZERO);
    }
}
