//! Journal entries: an entry that can be read is encoded as the same bytes again. The CRC is
//! corrected first.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xs_engine::format::journal::{ENTRY_HEADER_LEN, Entry, encode};

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    if bytes.len() < ENTRY_HEADER_LEN {
        assert!(Entry::read(&bytes, Some(7)).is_err());
        return;
    }
    bytes[..4].copy_from_slice(b"XSJ1");
    bytes[8..12].copy_from_slice(&7_u32.to_le_bytes());
    let length = (bytes.len() as u32).to_le_bytes();
    bytes[12..16].copy_from_slice(&length);
    let crc = crc32fast::hash(&bytes[8..]).to_le_bytes();
    bytes[4..8].copy_from_slice(&crc);
    let Ok(entry) = Entry::read(&bytes, Some(7)) else { return };
    let mut again = Vec::new();
    encode(&mut again, entry.stamp, &entry.pieces);
    assert_eq!(again, bytes);
});
