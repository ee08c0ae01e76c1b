//! Pack indexes: a lookup in a damaged one may find too much or too little, but it terminates and
//! stays in bounds; one built from entries finds them all. CRCs are corrected first.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xs_engine::format::file::{FILE_HEADER_LEN, FileHeader, Magic};
use xs_engine::format::pack_index::{Contents, HEAD_LEN, IndexEntry, PackIndex, encode};

fuzz_target!(|bytes: &[u8]| {
    let header = FileHeader {
        magic: Magic::PackIndex,
        salt: 0,
        store: [1; 16],
        file: [2; 16],
        base: 3,
        generation: 4,
    };
    let mut file = header.encode().to_vec();
    file.extend_from_slice(bytes);
    if file.len() >= HEAD_LEN {
        let crc = crc32fast::hash(&file[FILE_HEADER_LEN..HEAD_LEN - 4]).to_le_bytes();
        file[HEAD_LEN - 4..HEAD_LEN].copy_from_slice(&crc);
    }
    if let Ok(index) = PackIndex::open(&file) {
        let _ = (index.check_filter(), index.check_entries());
        for prefix in [0, 1, u64::MAX / 3, u64::MAX] {
            let _ = index.may_hold(prefix);
            assert!(index.find(prefix).count() <= index.count());
        }
    }
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    let mut contents = Contents::default();
    let entries: Vec<&[u8]> = bytes.chunks(8 * 3).collect();
    for (slot, entry) in (0..).zip(&entries) {
        contents.push(slot, entry.chunks_exact(8).map(word));
    }
    let index = PackIndex::open(encode(&header, &contents)).expect("what was encoded opens");
    for (slot, entry) in (0..).zip(&entries) {
        for (number, prefix) in (0..).zip(entry.chunks_exact(8).map(word)) {
            assert!(index.may_hold(prefix));
            let same = |found: IndexEntry| (found.slot, found.number) == (slot, number);
            assert!(index.find(prefix).any(same));
        }
    }
});
