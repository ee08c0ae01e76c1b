//! Which blobs of the packs are wanted: one bit for each, set by the names read from the log. Names
//! are collected, sorted and compared with each pack's index in one pass. Memory: the bits, 125 kB
//! for a million blobs and twice that while they are swept, and at most [`NAMES_MAX`] names of 8
//! bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::Shared;
use super::super::error::BlobError;
use super::super::open_pack::OpenPack;
use super::super::sealed::{Opened, SealedPack};
use super::SweepError;
use super::plan::BlobAt;
use crate::format::super_file::FileEntry;
use crate::value::BlobHash;

/// Names collected before they are compared with the packs: 32 MiB.
const NAMES_MAX: usize = 4 * 1024 * 1024;
/// An index this many times longer than the list of names is searched instead of read through.
const SEARCH_FACTOR: usize = 16;

/// A bit for each blob of a pack, in the order of its index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    fn new(count: usize, set: bool) -> Self {
        let mut bits = Self(vec![if set { u64::MAX } else { 0 }; count.div_ceil(64)]);
        // Padding bits are never set.
        if let Some(last) = bits.0.last_mut().filter(|_| !count.is_multiple_of(64)) {
            *last &= (1 << (count % 64)) - 1;
        }
        bits
    }

    pub(super) fn get(&self, n: usize) -> bool {
        self.0.get(n / 64).is_some_and(|word| word & 1 << (n % 64) != 0)
    }

    fn put(&mut self, n: usize, set: bool) {
        if let Some(word) = self.0.get_mut(n / 64) {
            let bit = 1 << (n % 64);
            *word = if set { *word | bit } else { *word & !bit };
        }
    }

    pub(super) fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether a bit is set here that is not set in `other`.
    fn exceeds(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).any(|(ours, theirs)| ours & !theirs != 0)
    }

    #[cfg(test)]
    const fn bytes(&self) -> usize {
        self.0.len() * size_of::<u64>()
    }
}

/// A pack under examination.
#[derive(Debug)]
pub(super) enum Target {
    Sealed(Arc<SealedPack>),
    /// Examined in dry runs only; others wait until it is sealed.
    Open(Arc<OpenPack>, Arc<Opened>),
}

/// A pack and which of its blobs are wanted.
#[derive(Debug)]
pub(super) struct Marked {
    pub(super) target: Target,
    /// When a blob was last put into it, as known at the first examination.
    pub(super) newest_ms: u64,
    pub(super) count: usize,
    wanted: Bits,
    /// What was wanted when the pack was chosen to be swept.
    chosen: Option<Bits>,
}

impl Marked {
    pub(super) fn line(&self) -> FileEntry {
        match &self.target {
            Target::Sealed(pack) => *pack.line(),
            Target::Open(pack, _) => pack.line(),
        }
    }

    /// A generation number for an attempt to rewrite it.
    pub(super) fn next_generation(&self) -> u32 {
        match &self.target {
            Target::Sealed(pack) => pack.next_generation(),
            Target::Open(pack, _) => pack.line().generation + 1,
        }
    }

    pub(super) fn opened(&self, shared: &Shared) -> Result<Arc<Opened>, BlobError> {
        match &self.target {
            Target::Sealed(pack) => {
                let opened = shared.packs.opened(&shared.packs.list(), pack)?;
                pack.indexed(&opened)
            }
            Target::Open(_, opened) => Ok(Arc::clone(opened)),
        }
    }

    /// Number of unwanted blobs.
    pub(super) fn dead(&self) -> usize {
        self.count - self.wanted.count()
    }

    /// The locations of the unwanted blobs, in order.
    pub(super) fn dead_blobs(&self, opened: &Opened) -> Vec<BlobAt> {
        let wanted = self.chosen.as_ref().unwrap_or(&self.wanted);
        let dead = (0..self.count).filter(|&n| !wanted.get(n));
        let mut dead: Vec<_> = dead
            .filter_map(|n| opened.index().entry(n))
            .map(|entry| (entry.slot, entry.number))
            .collect();
        dead.sort_unstable();
        dead
    }

    pub(super) fn choose(&mut self) {
        self.chosen = Some(self.wanted.clone());
    }

    /// Whether a condemned blob is wanted by now.
    pub(super) fn is_wanted_again(&self) -> bool {
        self.chosen.as_ref().is_some_and(|chosen| self.wanted.exceeds(chosen))
    }

    /// Sets the bits of names, which are sorted.
    fn mark(&mut self, opened: &Opened, names: &[u64], wanted: bool) {
        let index = opened.index();
        if names.len() * SEARCH_FACTOR < self.count {
            for &name in names.iter().filter(|name| index.may_hold(**name)) {
                index.numbers(name).for_each(|n| self.wanted.put(n, wanted));
            }
            return;
        }
        let mut names = names.iter().copied().peekable();
        for n in 0..self.count {
            let Some(prefix) = index.prefix(n) else { break };
            while names.next_if(|&name| name < prefix).is_some() {}
            match names.peek() {
                None => break,
                Some(&name) if name == prefix => self.wanted.put(n, wanted),
                Some(_) => {}
            }
        }
    }
}

/// The packs of a store, and the names not compared with them yet.
#[derive(Debug)]
pub(crate) struct Marker {
    pub(super) packs: BTreeMap<u64, Marked>,
    names: Vec<u64>,
    names_max: usize,
}

impl Marker {
    pub(super) const fn new() -> Self {
        Self { packs: BTreeMap::new(), names: Vec::new(), names_max: NAMES_MAX }
    }

    pub(super) fn add(&mut self, target: Target, newest_ms: u64, opened: &Opened, wanted: bool) {
        let count = opened.index().count();
        let wanted = Bits::new(count, wanted);
        let marked = Marked { target, newest_ms, count, wanted, chosen: None };
        self.packs.insert(marked.line().base, marked);
    }

    /// Adds the name of a blob; returns whether it is time to [`take`](Self::take) the names.
    pub(crate) fn name(&mut self, hash: &BlobHash) -> bool {
        self.names.push(hash.prefix());
        self.names.len() >= self.names_max
    }

    /// Compares the names with the packs.
    pub(super) fn take(&mut self, shared: &Shared, wanted: bool) -> Result<(), SweepError> {
        self.names.sort_unstable();
        self.names.dedup();
        if !self.names.is_empty() {
            for marked in self.packs.values_mut() {
                let opened = marked.opened(shared).map_err(SweepError::Read)?;
                marked.mark(&opened, &self.names, wanted);
            }
        }
        self.names.clear();
        Ok(())
    }

    /// Bytes of memory in use.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        let bits =
            |marked: &Marked| marked.wanted.bytes() + marked.chosen.as_ref().map_or(0, Bits::bytes);
        self.names.capacity() * size_of::<u64>() + self.packs.values().map(bits).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_beyond_the_count_are_never_set() {
        for count in [0, 1, 63, 64, 65, 200] {
            let (mut none, all) = (Bits::new(count, false), Bits::new(count, true));
            assert_eq!((none.count(), all.count()), (0, count));
            assert_eq!(all.exceeds(&none), count > 0);
            (0..count).for_each(|n| none.put(n, true));
            assert_eq!(none, all);
            assert!(!all.get(count) && !all.exceeds(&none));
        }
    }
}
