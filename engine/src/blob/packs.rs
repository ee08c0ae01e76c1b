//! The list of packs, and lookups in it. The list is replaced, never changed, so a lookup sees one
//! state of the store while packs are being sealed.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use hashbrown::HashSet;
use parking_lot::{Mutex, RwLock};

use super::ahead::{Guesses, Wanted};
use super::blocks::Blocks;
use super::error::BlobError;
use super::found::FoundBlob;
use super::open_pack::OpenPack;
use super::sealed::{Opened, SealedPack};
use super::trail;
use crate::limits::{OPEN_PACKS_MAX, PACK_FILTERS_BYTES_MAX};
use crate::value::BlobHash;

thread_local! {
    /// Number of the sealed pack in which this thread found its last blob: the next one is probably
    /// there too.
    static LAST: Cell<u64> = const { Cell::new(0) };
}

/// All packs of a store.
#[derive(Debug, Default)]
pub(super) struct Packs {
    list: RwLock<Arc<PackList>>,
    /// Version of the list, to detect changes.
    version: AtomicU64,
    blocks: Blocks,
    /// Sealed packs that are open.
    open: Mutex<Vec<Weak<SealedPack>>>,
    /// Counts lookups, to know which pack was used last.
    clock: AtomicU64,
}

/// A snapshot of the packs, each list newest first.
#[derive(Debug, Default, Clone)]
pub(super) struct PackList {
    pub(super) version: u64,
    pub(super) open: Vec<Arc<OpenPack>>,
    pub(super) sealed: Vec<Arc<SealedPack>>,
}

impl PackList {
    /// The sealed pack with a number.
    fn place_of(&self, number: u64) -> Option<&Arc<SealedPack>> {
        let at = self.sealed.partition_point(|pack| pack.line().base > number);
        self.sealed.get(at).filter(|pack| pack.line().base == number)
    }

    /// The sealed packs in lookup order: the one in which this thread found its last blob, then
    /// from the newest to the oldest.
    fn sealed_in_turn(&self) -> impl Iterator<Item = &Arc<SealedPack>> {
        let last = self.place_of(LAST.get());
        let others =
            self.sealed.iter().filter(move |pack| last.is_none_or(|l| !Arc::ptr_eq(l, pack)));
        last.into_iter().chain(others)
    }
}

impl Packs {
    /// A snapshot of the list.
    pub(super) fn list(&self) -> Arc<PackList> {
        Arc::clone(&self.list.read())
    }

    /// The version of the list. A thread that holds the writer's lock sees all changes made under
    /// it.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Replaces the list by a changed one.
    pub(super) fn change(&self, change: impl FnOnce(&mut PackList)) {
        let mut list = self.list.write();
        let mut next = PackList::clone(&list);
        change(&mut next);
        next.version += 1;
        next.open.sort_by_key(|pack| std::cmp::Reverse(pack.number()));
        next.sealed.sort_by_key(|pack| std::cmp::Reverse(pack.line().base));
        self.version.store(next.version, Ordering::Release);
        let packs: HashSet<_> = next.sealed.iter().map(|pack| pack.line().uuid).collect();
        *list = Arc::new(next);
        drop(list);
        // The other packs can no longer be looked up.
        self.blocks.keep_only(&packs);
    }

    /// Tries `take` on each copy of a blob until one is sound; unsealed packs first, newest first.
    /// A damaged copy is an error only when there is no sound one.
    pub(super) fn find<T>(
        &self,
        hash: &BlobHash,
        mut take: impl FnMut(FoundBlob) -> Result<T, BlobError>,
    ) -> Result<Option<T>, BlobError> {
        self.find_among(|_| true, hash, |found| take(found).map(Some))
    }

    /// Tries `take` on copies of a blob, to avoid storing it again, until `take` returns a value.
    /// Skips packs whose filters are not in memory, as opening them each time would cost more.
    pub(super) fn find_copy<T>(
        &self,
        hash: &BlobHash,
        take: impl FnMut(FoundBlob) -> Result<Option<T>, BlobError>,
    ) -> Result<Option<T>, BlobError> {
        self.find_among(|pack| !pack.is_costly(), hash, take)
    }

    fn find_among<T>(
        &self,
        among: impl Fn(&SealedPack) -> bool,
        hash: &BlobHash,
        mut take: impl FnMut(FoundBlob) -> Result<Option<T>, BlobError>,
    ) -> Result<Option<T>, BlobError> {
        let list = self.list();
        let mut damage = None;
        let mut try_take = |found: Result<Option<FoundBlob>, BlobError>| match found
            .and_then(|found| found.map_or(Ok(None), &mut take))
        {
            Ok(taken) => taken,
            Err(error) => {
                damage.get_or_insert(error);
                None
            }
        };
        for pack in &list.open {
            if let Some(taken) = try_take(pack.find(hash).map(|found| found.map(FoundBlob::Entry)))
            {
                return Ok(Some(taken));
            }
        }
        let asked = |pack: &&Arc<SealedPack>| pack.may_hold(hash) && among(pack);
        for pack in list.sealed_in_turn().filter(asked) {
            if let Some(taken) = try_take(self.find_sealed(&list, pack, hash)) {
                LAST.set(pack.line().base);
                return Ok(Some(taken));
            }
        }
        damage.map_or(Ok(None), Err)
    }

    /// Adds a guess for each requested blob: the pack in which a lookup would find it, if that is
    /// mapped and open.
    pub(super) fn guess(&self, wanted: &[Wanted], guesses: &mut Guesses) {
        let list = self.list();
        let mut left: Vec<usize> = (0..wanted.len()).collect();
        for pack in &list.open {
            let Some(number) = guesses.pack(pack.media(), pack.salt()) else { return };
            pack.guess(wanted, &mut left, |blob, at| guesses.note(blob, number, at));
        }
        for pack in list.sealed_in_turn() {
            if left.is_empty() {
                return;
            }
            let Some(opened) = pack.opened_already() else {
                left.retain(|&blob| !pack.may_hold(&wanted[blob].hash));
                continue;
            };
            let mut number = None;
            opened.guess(wanted, &mut left, |blob, at| {
                number = number.or_else(|| guesses.pack(opened.media(), opened.salt()));
                number.into_iter().for_each(|number| guesses.note(blob, number, at));
            });
            if number.is_some() {
                pack.note_use(self.clock.fetch_add(1, Ordering::Relaxed));
            }
        }
    }

    /// The next blob of a kin, if it lies after the last one that this thread found.
    pub(super) fn next_of(&self, kin: u32, hash: &BlobHash) -> Option<Bytes> {
        let row = trail::guess(kin)?;
        let bytes = self.blocks.get(&row.block).and_then(|block| block.blob(row.number));
        match bytes.filter(|bytes| BlobHash::of(bytes) == *hash) {
            Some(bytes) => {
                trail::note(kin, row);
                Some(bytes)
            }
            None => {
                trail::lost(kin);
                None
            }
        }
    }

    /// Looks up a blob in one opened sealed pack.
    pub(super) fn find_in(
        &self,
        (pack, opened): &(Arc<SealedPack>, Arc<Opened>),
        hash: &BlobHash,
    ) -> Result<Option<FoundBlob>, BlobError> {
        pack.find(opened, hash, &self.blocks)
    }

    /// Looks up a blob in one sealed pack, opening it if necessary.
    pub(super) fn find_sealed(
        &self,
        list: &PackList,
        pack: &Arc<SealedPack>,
        hash: &BlobHash,
    ) -> Result<Option<FoundBlob>, BlobError> {
        pack.find(&self.opened(list, pack)?, hash, &self.blocks)
    }

    /// Opens a sealed pack, and closes another when there are too many.
    pub(super) fn opened(
        &self,
        list: &PackList,
        pack: &Arc<SealedPack>,
    ) -> Result<Arc<Opened>, BlobError> {
        let (opened, anew) = pack.opened(self.clock.fetch_add(1, Ordering::Relaxed))?;
        if anew {
            self.make_room(list, pack);
        }
        Ok(opened)
    }

    /// Registers a newly opened pack, and closes the least recently used one when there are too
    /// many.
    fn make_room(&self, list: &PackList, pack: &Arc<SealedPack>) {
        let mut open = self.open.lock();
        let here = |other: Arc<SealedPack>| other.is_open() && !Arc::ptr_eq(&other, pack);
        open.retain(|other| other.upgrade().is_some_and(here));
        open.push(Arc::downgrade(pack));
        if open.len() > OPEN_PACKS_MAX
            && let Some(oldest) =
                open.iter().filter_map(Weak::upgrade).min_by_key(|other| other.last_used())
        {
            oldest.close(|len| {
                let kept: usize = list.sealed.iter().map(|other| other.filter_len()).sum();
                kept + len <= PACK_FILTERS_BYTES_MAX
            });
        }
    }
}
