//! Frame ids, strictly increasing whatever the clock does.

use crate::value::FrameId;

/// Maximum time in an id: 48 bits of milliseconds.
const TIME_MS_MAX: u64 = (1 << 48) - 1;

/// Whether enough ids follow this one for a store to continue: it is not in the last millisecond.
pub(crate) fn is_usable(id: FrameId) -> bool {
    id.time_ms() < TIME_MS_MAX
}

/// Generates the ids of one store.
#[derive(Debug)]
pub(crate) struct IdSource {
    last: u128,
    entropy: u64,
}

impl IdSource {
    /// Continues after `last`, the newest id of the store or [`FrameId::ZERO`]. `seed` is random.
    pub(crate) fn new(last: FrameId, seed: u64) -> Self {
        let last = scru128::Id::from_bytes(*last.as_bytes()).to_u128();
        Self { last, entropy: seed | 1 }
    }

    /// The newest id generated or adopted.
    pub(crate) fn last(&self) -> FrameId {
        FrameId::from_bytes(scru128::Id::from_u128(self.last).to_bytes())
    }

    /// Continues after an id generated elsewhere, which is above all ids generated here.
    pub(crate) fn adopt(&mut self, id: FrameId) {
        self.last = self.last.max(scru128::Id::from_bytes(*id.as_bytes()).to_u128());
    }

    /// The next id. In a new millisecond the counters restart at random, the upper one below half
    /// of its range; otherwise, and when the clock is behind the ids, they count on, and an
    /// overflow carries into the time.
    pub(crate) fn next(&mut self, now_ms: u64) -> FrameId {
        const COUNTERS: u32 = 80;
        const ENTROPY: u32 = 32;
        let random = self.random();
        let now = u128::from(now_ms.min(TIME_MS_MAX));
        self.last = if now > self.last >> COUNTERS {
            let counters = u128::from(random >> 17);
            now << COUNTERS | counters << ENTROPY | u128::from(random as u32)
        } else {
            let counted = (self.last >> ENTROPY) + 1;
            // After 2^96 ids past the year 10889 no higher id exists; ids then repeat the largest,
            // which no real clock and no real number of frames reaches.
            counted.checked_shl(ENTROPY).filter(|_| counted >> 96 == 0).unwrap_or(u128::MAX)
                | u128::from(random as u32)
        };
        self.last()
    }

    /// xorshift64*: fast, and good enough for bits that only make ids of different stores distinct.
    fn random(&mut self) -> u64 {
        self.entropy ^= self.entropy >> 12;
        self.entropy ^= self.entropy << 25;
        self.entropy ^= self.entropy >> 27;
        self.entropy.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_increase_whatever_the_clock_does() {
        const YEAR_MS: u64 = 365 * 86_400_000;
        let start = 1_700_000_000_000;
        let mut clock = vec![start; 100_000];
        clock.extend([start - 3_600_000, start - 10 * YEAR_MS, 0, start + 100 * YEAR_MS]);
        clock.extend((0..1000).map(|ms| start + ms));
        clock.extend([TIME_MS_MAX, 5, TIME_MS_MAX]);
        let mut ids = IdSource::new(FrameId::ZERO, 7);
        let mut last = FrameId::ZERO;
        for (index, now) in clock.into_iter().enumerate() {
            let id = ids.next(now);
            assert!(id > last, "{index}: {id} after {last}");
            if now >= last.time_ms() {
                assert_eq!(id.time_ms(), now);
            }
            last = id;
            if index % 1000 == 0 {
                ids = IdSource::new(last, index as u64);
            }
        }
    }

    #[test]
    fn counters_carry_into_the_time() {
        let full =
            FrameId::from_bytes([0, 0, 0, 0, 0, 9, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0]);
        let next = IdSource::new(full, 1).next(9);
        assert_eq!(next.time_ms(), 10);
    }
}
