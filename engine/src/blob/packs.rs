//! Which packs there are, and looking through them. The list is replaced, never changed, so a
//! search goes through one state of the store while packs are sealed beside it.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use hashbrown::HashSet;
use parking_lot::RwLock;

use super::blocks::Blocks;
use super::error::BlobError;
use super::found::Found;
use super::open_pack::OpenPack;
use super::sealed::{Opened, SealedPack};
use super::trail;
use crate::limits::OPEN_PACKS_MAX;
use crate::value::BlobHash;

/// Sealed packs, the newest ones, that every search for a copy looks into. They are fewer than may
/// be open at a time, so that it costs a look at the filter of each.
pub(super) const ASKED_MIN: usize = 64;
/// One more may have to be opened for each so many bytes of a blob, which cost as much to write.
const BYTES_PER_ASKED: u64 = 16 * 1024;
const _: () = assert!(ASKED_MIN < OPEN_PACKS_MAX);

thread_local! {
    /// Number of the sealed pack in which this thread found its last blob: the next one is likely
    /// there too.
    static LAST: Cell<u64> = const { Cell::new(0) };
}

/// All packs of a store.
#[derive(Debug, Default)]
pub(super) struct Packs {
    list: RwLock<Arc<PackList>>,
    blocks: Blocks,
    /// Counts searches, to know which pack was used last.
    clock: AtomicU64,
}

/// One state of the packs, each list newest first.
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
}

impl Packs {
    /// The packs as they are now.
    pub(super) fn list(&self) -> Arc<PackList> {
        Arc::clone(&self.list.read())
    }

    /// Replaces the list by a changed one.
    pub(super) fn change(&self, change: impl FnOnce(&mut PackList)) {
        let mut list = self.list.write();
        let mut next = PackList::clone(&list);
        change(&mut next);
        next.version += 1;
        next.open.sort_by_key(|pack| std::cmp::Reverse(pack.number()));
        next.sealed.sort_by_key(|pack| std::cmp::Reverse(pack.line().base));
        let packs: HashSet<_> = next.sealed.iter().map(|pack| pack.line().uuid).collect();
        *list = Arc::new(next);
        drop(list);
        // Nobody finds a way to the others any more.
        self.blocks.keep_only(&packs);
    }

    /// Tries `take` on each copy of a blob until one is sound, those in unsealed packs first, the
    /// newest of them in front. A damaged copy is an error only when there is no sound one.
    pub(super) fn find<T>(
        &self,
        hash: &BlobHash,
        take: impl FnMut(Found) -> Result<T, BlobError>,
    ) -> Result<Option<T>, BlobError> {
        self.find_among(usize::MAX, hash, take)
    }

    /// The same for who has a blob of `len` bytes and would rather not write it again: with many
    /// packs a shorter one is not looked for in the oldest.
    pub(super) fn find_copy<T>(
        &self,
        (hash, len): (&BlobHash, u64),
        take: impl FnMut(Found) -> Result<T, BlobError>,
    ) -> Result<Option<T>, BlobError> {
        let paid = usize::try_from(len / BYTES_PER_ASKED).unwrap_or(usize::MAX);
        self.find_among(paid.max(ASKED_MIN), hash, take)
    }

    fn find_among<T>(
        &self,
        sealed_max: usize,
        hash: &BlobHash,
        mut take: impl FnMut(Found) -> Result<T, BlobError>,
    ) -> Result<Option<T>, BlobError> {
        let list = self.list();
        let mut damage = None;
        let mut try_take = |found: Result<Option<Found>, BlobError>| match found
            .and_then(|found| found.map(&mut take).transpose())
        {
            Ok(taken) => taken,
            Err(error) => {
                damage.get_or_insert(error);
                None
            }
        };
        for pack in &list.open {
            if let Some(taken) = try_take(pack.find(hash).map(|found| found.map(Found::Entry))) {
                return Ok(Some(taken));
            }
        }
        let last = list.place_of(LAST.get());
        let newest = list.sealed.iter().take(sealed_max);
        let others = newest.filter(|pack| last.is_none_or(|l| !Arc::ptr_eq(l, pack)));
        for pack in last.into_iter().chain(others) {
            let found = self.opened(&list, pack);
            let found = found.and_then(|opened| pack.find(&opened, hash, &self.blocks));
            if let Some(taken) = try_take(found) {
                LAST.set(pack.line().base);
                return Ok(Some(taken));
            }
        }
        damage.map_or(Ok(None), Err)
    }

    /// The next blob of a kin, if it lies behind the last one that this thread found.
    pub(super) fn next_of(&self, kin: u32, hash: &BlobHash) -> Option<Bytes> {
        let row = trail::guess(kin)?;
        let bytes = self.blocks.get(&row.place).and_then(|block| block.blob(row.number));
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

    /// Looks in one sealed pack.
    pub(super) fn find_in(
        &self,
        (pack, opened): &(Arc<SealedPack>, Arc<Opened>),
        hash: &BlobHash,
    ) -> Result<Option<Found>, BlobError> {
        pack.find(opened, hash, &self.blocks)
    }

    /// Opens a sealed pack, and closes another when there are too many.
    pub(super) fn opened(
        &self,
        list: &PackList,
        pack: &Arc<SealedPack>,
    ) -> Result<Arc<Opened>, BlobError> {
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        if pack.is_open() {
            return pack.opened(now);
        }
        let opened = pack.opened(now)?;
        let others = list.sealed.iter().filter(|other| other.is_open());
        if others.clone().count() > OPEN_PACKS_MAX
            && let Some(oldest) = others.min_by_key(|other| other.last_used())
        {
            oldest.close();
        }
        Ok(opened)
    }
}
