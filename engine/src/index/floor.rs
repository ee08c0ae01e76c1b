//! What `last:n` removed: the floor of a topic is the first offset that is left. Kept exact as
//! frames arrive, at O(1) amortised for each.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{Index, State};
use crate::error::ReadError;
use crate::format::postings::Chunk;

const WORDS: usize = 16;

/// Tells most topics without a floor apart at the cost of a load, so that reading them never takes
/// a lock.
#[derive(Debug, Default)]
pub(super) struct FloorFilter {
    any: AtomicBool,
    bits: [AtomicU64; WORDS],
}

impl FloorFilter {
    pub(super) fn add(&self, topic: &str) {
        let (word, bit) = place(topic);
        self.bits[word].fetch_or(bit, Ordering::Release);
        self.any.store(true, Ordering::Release);
    }

    /// Whether any topic has a floor.
    pub(super) fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    pub(super) fn may_have(&self, topic: &str) -> bool {
        let (word, bit) = place(topic);
        self.bits[word].load(Ordering::Acquire) & bit != 0
    }
}

/// A bit for the name's length and last bytes, where names that share a prefix differ.
fn place(topic: &str) -> (usize, u64) {
    let name = topic.as_bytes();
    let last = name.last_chunk().map_or_else(
        || name.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte)),
        |last| u64::from_le_bytes(*last),
    );
    let mixed = (last ^ name.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed >> 60) as usize % WORDS, 1 << (mixed >> 54 & 63))
}

impl Index {
    /// Makes sure that the table knows the newest offsets of a topic before `last:n` is applied to
    /// it. False when they could not be read: then nothing is removed.
    pub(super) fn prepare_floor(&self, state: &mut State, topic: &str, n: u64) -> bool {
        let Some(number) = state.table.number_of(topic) else { return true };
        let Some(want) = state.table.get(number).wants_recent(n) else { return true };
        match self.newest(state, topic, want as usize) {
            Ok(recent) => state.table.get_mut(number).set_recent(recent),
            Err(_) => return false,
        }
        true
    }

    /// The newest offsets of a topic, ascending.
    fn newest(&self, state: &State, topic: &str, n: usize) -> Result<VecDeque<u64>, ReadError> {
        let mut newest = VecDeque::with_capacity(n);
        let Some(totals) = state.table.find(topic) else { return Ok(newest) };
        let floor = totals.floor(u64::MAX);
        let mut ordinal = totals.segments.at_or_before(u32::MAX);
        while let Some(number) = ordinal.filter(|_| newest.len() < n) {
            let Some(of) = self.segment(number) else { break };
            let chunks = match &state.active {
                Some((active, memory)) if *active == number => memory.postings(topic),
                _ => self.complete_postings(&of, topic)?,
            };
            let base = of.segment.base();
            let places = chunks.into_iter().rev().flat_map(Chunk::backward);
            let offsets = places.map(|posting| base + u64::from(posting.delta));
            for offset in offsets.take_while(|&offset| offset >= floor).take(n - newest.len()) {
                newest.push_front(offset);
            }
            ordinal = number.checked_sub(1).and_then(|below| totals.segments.at_or_before(below));
        }
        Ok(newest)
    }

    /// Sets how many frames of each topic are removed, after the floors were read from files.
    pub(super) fn count_hidden(&self) {
        let numbers = self.state.read().table.with_floor();
        for number in numbers {
            let (name, floor, runs) = {
                let state = self.state.read();
                let totals = state.table.get(number);
                (totals.name.clone(), totals.floor(u64::MAX), totals.segments.clone())
            };
            let (mut hidden, mut next) = (0u64, runs.at_or_after(0));
            while let Some(of) = next.and_then(|ordinal| self.segment(ordinal)) {
                let base = of.segment.base();
                if base >= floor {
                    break;
                }
                // A segment that cannot be read shows its frames or errors; counts may be off then.
                let chunks = self.postings(&of, &name).unwrap_or_default();
                let deltas = chunks.into_iter().flat_map(Chunk::forward);
                let below = deltas.take_while(|posting| base + u64::from(posting.delta) < floor);
                hidden += below.count() as u64;
                next = runs.at_or_after(of.ordinal + 1);
            }
            self.state.write().table.set_hidden(number, hidden);
        }
    }
}
