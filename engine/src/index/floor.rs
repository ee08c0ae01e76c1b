//! What `last:n` removed: the floor of a topic is the first offset that is left. Kept exact as
//! frames arrive, at O(1) amortised for each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::recent::Recent;
use super::{Index, Noted, SegmentIndex, State};
use crate::error::ReadError;
use crate::format::postings::{Chunk, Posting};
use crate::read::walk::{WINDOW_VISIT, Window};
use crate::value::Ttl;

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
    pub(super) fn prepare_floor(&self, state: &mut State, noted: &Noted<'_>, n: u64) -> bool {
        let Some(number) = state.table.number_of(noted.topic) else { return true };
        let Some(want) = state.table.get(number).wants_recent(n) else { return true };
        match self.newest(state, noted, want) {
            Ok(recent) => state.table.get_mut(number).set_recent(recent),
            Err(_) => return false,
        }
        true
    }

    /// The newest frames of a topic that are there when a frame is appended, at least `n` if there
    /// are so many.
    fn newest(&self, state: &State, noted: &Noted<'_>, n: u64) -> Result<Recent, ReadError> {
        let now_ms = noted.id.time_ms();
        let mut newest: Vec<(u64, Option<u64>)> = Vec::new();
        let Some(totals) = state.table.find(noted.topic) else { return Ok(Recent::default()) };
        let floor = totals.floor(u64::MAX);
        let mut ordinal = totals.segments.at_or_before(u32::MAX);
        while let Some(number) = ordinal.filter(|_| (newest.len() as u64) < n) {
            let Some(of) = self.segment(number) else { break };
            let active = state.active.as_ref().filter(|(active, _)| *active == number);
            let chunks = match active {
                Some((_, memory)) => memory.postings(noted.topic),
                None => self.complete_postings(&of, noted.topic)?,
            };
            let mut expiries = match active {
                Some((_, memory)) => Expiries::Memory(memory),
                None => Expiries::of(&of),
            };
            let base = of.segment.base();
            for posting in chunks.into_iter().rev().flat_map(Chunk::backward) {
                let offset = base + u64::from(posting.delta);
                if offset < floor || newest.len() as u64 == n {
                    break;
                }
                if self.removed.contains(offset, u64::MAX) {
                    continue;
                }
                let expires_ms = expiries.of_frame(noted.topic, offset, posting)?;
                if expires_ms.is_none_or(|at| at > now_ms) {
                    newest.push((offset, expires_ms));
                }
            }
            ordinal = number.checked_sub(1).and_then(|below| totals.segments.at_or_before(below));
        }
        let mut recent = Recent::default();
        newest.iter().rev().for_each(|&(offset, expires_ms)| recent.push(offset, expires_ms));
        Ok(recent)
    }

    /// Sets how many frames of each topic are removed, after all was read from files.
    pub(super) fn count_hidden(&self) {
        let numbers = self.state.write().table.begin_hidden();
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
        let mut state = self.state.write();
        for (number, offset) in state.opening.take().unwrap_or_default() {
            state.table.get_mut(number).remove(offset);
        }
    }
}

/// Tells when frames of a segment expire.
enum Expiries<'a> {
    Memory(&'a super::memory::MemoryIndex),
    Frozen(Arc<super::memory::MemoryIndex>),
    /// No frame of it does.
    Never,
    /// The frames themselves say.
    Records(Window),
}

impl Expiries<'_> {
    fn of(of: &SegmentIndex) -> Self {
        match of.frozen() {
            Some(frozen) => Self::Frozen(frozen),
            None if of.decay.never_expires() => Self::Never,
            None => Self::Records(Window::new(of.segment.clone(), WINDOW_VISIT)),
        }
    }

    fn of_frame(
        &mut self,
        topic: &str,
        offset: u64,
        posting: Posting,
    ) -> Result<Option<u64>, ReadError> {
        Ok(match self {
            Self::Memory(memory) => memory.expires(topic, offset),
            Self::Frozen(memory) => memory.expires(topic, offset),
            Self::Never => None,
            Self::Records(window) => match window.frame_at(posting.position(), offset)? {
                Some(frame) => match frame.ttl() {
                    Ttl::TimeMs(ms) => Some(frame.id().time_ms().saturating_add(ms)),
                    _ => None,
                },
                None => return Err(window.damaged(posting.position(), offset)),
            },
        })
    }
}
