//! BLOCKs that were decompressed lately and are kept, as their other blobs tend to be read next: by
//! who reads on in the log, or reads on in a topic. Bounded by bytes; knows no files.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;

use crate::format::pack::Block;

/// Memory that kept BLOCKs take.
pub(super) const KEPT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Where a BLOCK lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct BlockAt {
    /// Uuid of the pack, which changes with each generation.
    pub(super) pack: [u8; 16],
    /// Position of the entry in it.
    pub(super) position: u64,
}

/// The BLOCKs by where they lie.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    blocks: HashMap<BlockAt, Slot>,
    /// Those in the order in which they will go, but for those used again meanwhile.
    order: VecDeque<BlockAt>,
    bytes: usize,
}

#[derive(Debug)]
struct Slot {
    block: Arc<Block>,
    /// Since it was put in, or since its turn to go came.
    used: bool,
}

impl Blocks {
    /// A BLOCK that is kept.
    pub(super) fn get(&self, at: &BlockAt) -> Option<Arc<Block>> {
        let mut kept = self.kept.lock();
        let slot = kept.blocks.get_mut(at)?;
        slot.used = true;
        Some(Arc::clone(&slot.block))
    }

    /// Keeps a BLOCK.
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

    /// Forgets the BLOCKs of all other packs than these.
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
    /// Lets the next one go, or gives it another turn.
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
        // The same one twice is one.
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
