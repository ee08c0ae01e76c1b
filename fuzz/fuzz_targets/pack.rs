//! Pack entries: headers, and BLOCKs with their compressed bytes. A wrong length never takes more
//! memory than the limits allow. CRCs are corrected first.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xs_engine::format::pack::{
    BLOCK_BYTES_MAX, Block, CHUNK_LEN, ENTRY_HEADER_LEN, ENTRY_MAGIC, EntryHeader, EntryKind,
    unzstd,
};

fuzz_target!(|bytes: &[u8]| {
    let Some((head, stored)) = bytes.split_at_checked(ENTRY_HEADER_LEN) else { return };
    let mut head = head.to_vec();
    head[..4].copy_from_slice(&ENTRY_MAGIC);
    head[16..24].copy_from_slice(&(stored.len() as u64).to_le_bytes());
    head[64..68].copy_from_slice(&crc32fast::hash(stored).to_le_bytes());
    let crc = crc32fast::hash(&head[8..]).to_le_bytes();
    head[4..8].copy_from_slice(&crc);
    let Ok(header) = EntryHeader::read(&head) else { return };
    assert_eq!(header.encode()[..], head[..]);
    assert!(header.stride() >= header.stored_len);
    match header.kind {
        EntryKind::Block => block(&header, stored),
        EntryKind::Zstd if header.raw_len <= CHUNK_LEN as u64 => {
            if let Ok(raw) = unzstd(stored, header.raw_len as usize) {
                assert_eq!(raw.len() as u64, header.raw_len);
            }
        }
        EntryKind::Zstd | EntryKind::Raw => {}
    }
});

fn block(header: &EntryHeader, stored: &[u8]) {
    let Ok(block) = Block::decode(header, stored) else { return };
    assert_eq!(block.blobs().count(), header.count as usize);
    let total: usize = block.blobs().map(|bytes| bytes.len()).sum();
    assert!(total as u64 == header.raw_len && total <= BLOCK_BYTES_MAX);
    assert!(block.blob(header.count).is_none());
}
