//! Batches: iterating over a segment's bytes terminates, stays in bounds, and accepts only
//! consistent batches. CRCs of headers and records are corrected first.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xs_engine::format::batch::{BATCH_HEADER_LEN, BATCH_MAGIC, BatchHeader, Records, RecordsCrc};
use xs_engine::format::record::RecordPrefix;

fuzz_target!(|bytes: &[u8]| {
    let mut segment = bytes.to_vec();
    let mut at = 0;
    while let Some(batch) = segment.get_mut(at..).filter(|rest| rest.len() >= BATCH_HEADER_LEN) {
        put_right(batch);
        let Ok(header) = BatchHeader::read(batch) else {
            at += 8;
            continue;
        };
        let mut copy = header;
        assert_eq!(copy.encode()[..], batch[..BATCH_HEADER_LEN]);
        let len = usize::try_from(header.batch_len()).expect("a batch fits into memory");
        let Some(records) = batch.get(BATCH_HEADER_LEN..len) else { return };
        let mut end = 0;
        for record in Records::new(records) {
            let Ok((position, prefix)) = record else { break };
            assert_eq!(position, end);
            end += prefix.stride();
            assert!(end <= records.len());
        }
        let _ = header.check_records(records);
        at += len;
    }
});

/// Corrects the CRCs of the records and then of the header, as far as they can be found.
fn put_right(batch: &mut [u8]) {
    batch[..4].copy_from_slice(&BATCH_MAGIC);
    let (header, records) = batch.split_at_mut(BATCH_HEADER_LEN);
    let length = u32::from_le_bytes(header[8..12].try_into().expect("four bytes")) as usize;
    if let Some(records) = records.get_mut(..length) {
        let mut crcs = RecordsCrc::default();
        let mut at = 0;
        while let Ok(prefix) = RecordPrefix::read(&records[at..]) {
            let end = at + prefix.len as usize;
            if at + prefix.stride() > records.len() {
                break;
            }
            let crc = crc32fast::hash(&records[at + 4..end]);
            records[at..at + 4].copy_from_slice(&crc.to_le_bytes());
            crcs.add(crc);
            at += prefix.stride();
        }
        header[44..48].copy_from_slice(&crcs.value().to_le_bytes());
    }
    let crc = crc32fast::hash(&header[8..]).to_le_bytes();
    header[4..8].copy_from_slice(&crc);
}
