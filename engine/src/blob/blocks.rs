//! A cache of recently decompressed BLOCKs, because their other blobs tend to be read next, by
//! readers of the log or of a topic. Bounded by bytes; does no I/O.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;

use crate::format::pack::Block;

/// Maximum memory of cached BLOCKs.
pub(super) const KEPT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The location of a BLOCK.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct BlockAt {
    /// Uuid of the pack, which changes with each generation.
    pub(super) pack: [u8; 16],
    /// Position of the entry in it.
    pub(super) position: u64,
}

/// BLOCKs by location.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    blocks: HashMap<BlockAt, Slot>,
    /// Eviction order; blocks used again meanwhile get another turn.
    order: VecDeque<BlockAt>,
    bytes: usize,
}

#[derive(Debug)]
struct Slot {
    block: Arc<Block>,
    /// Used since it was inserted or last considered for eviction.
    used: bool,
}

impl Blocks {
    /// A cached BLOCK.
    pub(super) fn get(&self, at: &BlockAt) -> Option<Arc<Block>> {
        let mut kept = self.kept.lock();
        let slot = kept.blocks.get_mut(at)?;
        slot.used = true;
        Some(Arc::clone(&slot.block))
    }

    /// Caches a BLOCK.
    pub(super) fn put(&self, at: BlockAt, block: &Arc<Block>) {
        let mut kept = self.kept.lock();
        let slot = Slot { block: Arc::clone(block), used: false };
        if kept.blocks.insert(at, slot).is_some() {
            return;
        }
        kept.order.push_back(at);
        kept.bytes += block.memory();
        while kept.bytes > KEPT_BYTES_MAX {
            kept.shrink();
        }
    }

    /// Drops the BLOCKs of all packs except these.
    pub(super) fn keep_only(&self, packs: &HashSet<[u8; 16]>) {
        let mut kept = self.kept.lock();
        let Kept { blocks, order, bytes } = &mut *kept;
        order.retain(|at| {
            let stays = packs.contains(&at.pack);
            if !stays && let Some(slot) = blocks.remove(at) {
                *bytes -= slot.block.memory();
            }
            stays
        });
    }
}

impl Kept {
    /// Evicts the next one, or gives it another turn.
    fn shrink(&mut self) {
        let Some(at) = self.order.pop_front() else { return };
        if let Some(slot) = self.blocks.get_mut(&at)
            && std::mem::take(&mut slot.used)
        {
            self.order.push_back(at);
        } else if let Some(slot) = self.blocks.remove(&at) {
            self.bytes -= slot.block.memory();
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::format::pack::{BLOCK_BYTES_MAX, EntryHeader, EntryKind, ZSTD_LEVEL, encode_block};
    use crate::value::BlobHash;

    fn block() -> Arc<Block> {
        let mut zstd = zstd::bulk::Compressor::new(ZSTD_LEVEL).unwrap();
        let blobs = [Bytes::from(vec![7; BLOCK_BYTES_MAX])];
        let (stored, raw_len) = encode_block(&blobs, &mut zstd).unwrap();
        let header = EntryHeader {
            kind: EntryKind::Block,
            kin: 0,
            salt: 0,
            stored_len: stored.len() as u64,
            raw_len,
            hash: BlobHash::from_bytes([0; 32]),
            stored_crc: crc32fast::hash(&stored),
            count: 1,
            durable_upto: 0,
        };
        Arc::new(Block::decode(&header, &stored).unwrap())
    }

    fn lies(pack: [u8; 16], position: u64) -> BlockAt {
        BlockAt { pack, position }
    }

    #[test]
    fn memory_is_bounded_and_what_is_used_stays() {
        let (blocks, block) = (Blocks::default(), block());
        let fit = (KEPT_BYTES_MAX / block.memory()) as u64;
        for at in 0..fit * 10 {
            blocks.put(lies([1; 16], at), &block);
            assert!(blocks.get(&lies([1; 16], 0)).is_some(), "{at}");
            let kept = blocks.kept.lock();
            assert!(kept.bytes <= KEPT_BYTES_MAX && kept.order.len() == kept.blocks.len());
            assert_eq!(kept.bytes, kept.blocks.len() * block.memory());
        }
        assert!(blocks.get(&lies([1; 16], 1)).is_none());
        // A block that is put twice is counted once.
        let before = blocks.kept.lock().bytes;
        blocks.put(lies([1; 16], 0), &block);
        assert_eq!(blocks.kept.lock().bytes, before);
    }

    #[test]
    fn blocks_go_with_their_packs() {
        let (blocks, block) = (Blocks::default(), block());
        for pack in [[1; 16], [2; 16]] {
            (0..5).for_each(|at| blocks.put(lies(pack, at), &block));
        }
        blocks.keep_only(&HashSet::from([[2; 16]]));
        assert!(blocks.get(&lies([1; 16], 0)).is_none() && blocks.get(&lies([2; 16], 4)).is_some());
        assert_eq!(blocks.kept.lock().bytes, 5 * block.memory());
        blocks.keep_only(&HashSet::new());
        let kept = blocks.kept.lock();
        assert_eq!((kept.bytes, kept.order.len()), (0, 0));
    }
}
