//! Which packs there are, and looking through them. The list is replaced, never changed, so a
//! search goes through one state of the store while packs are sealed beside it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::error::BlobError;
use super::found::{Blocks, Found};
use super::open_pack::OpenPack;
use super::sealed::{Opened, SealedPack};
use crate::limits::OPEN_PACKS_MAX;
use crate::value::BlobHash;

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
        *list = Arc::new(next);
    }

    /// Tries `take` on each copy of a blob, newest first, until one is sound. A damaged copy is an
    /// error only when there is no sound one.
    pub(super) fn find<T>(
        &self,
        hash: &BlobHash,
        mut take: impl FnMut(Found) -> Result<T, BlobError>,
    ) -> Result<Option<T>, BlobError> {
        let list = self.list();
        let mut damage = None;
        let open = list.open.iter().map(|pack| Ok(pack.find(hash)?.map(Found::Entry)));
        let sealed = list.sealed.iter().map(|pack| {
            let opened = self.opened(&list, pack)?;
            pack.find(&opened, hash, &self.blocks)
        });
        for found in open.chain(sealed) {
            match found.and_then(|found| found.map(&mut take).transpose()) {
                Ok(Some(taken)) => return Ok(Some(taken)),
                Ok(None) => {}
                Err(error) => damage = damage.or(Some(error)),
            }
        }
        damage.map_or(Ok(None), Err)
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
