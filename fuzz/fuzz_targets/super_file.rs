//! The manifest: a state that can be read is encoded and read as the same state again. CRCs are
//! corrected first.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xs_engine::format::file::FILE_HEADER_LEN;
use xs_engine::format::super_file::SuperState;

fuzz_target!(|bytes: &[u8]| {
    let mut file = bytes.to_vec();
    if file.len() >= FILE_HEADER_LEN + 8 {
        file[..8].copy_from_slice(b"XSSUPER1");
        let crc = crc32fast::hash(&file[..FILE_HEADER_LEN - 4]).to_le_bytes();
        file[FILE_HEADER_LEN - 4..FILE_HEADER_LEN].copy_from_slice(&crc);
        let end = file.len() - 8;
        let crc = crc32fast::hash(&file[FILE_HEADER_LEN..end]).to_le_bytes();
        file[end..end + 4].copy_from_slice(&crc);
    }
    if let Ok((sequence, state)) = SuperState::decode(&file) {
        let again = SuperState::decode(&state.encode(sequence));
        assert_eq!(again, Ok((sequence, state)));
    }
});
