//! Records: reading arbitrary bytes gives a value or an error, and a value that was read can be
//! encoded and read again as an equal value. The CRC is corrected first; otherwise few inputs would
//! get any further.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use xs_engine::Frame;
use xs_engine::format::control::{self, Control, StateRecord};
use xs_engine::format::record::{FrameFields, RecordKind, RecordPrefix, encode_frame};

fuzz_target!(|bytes: &[u8]| {
    let mut record = bytes.to_vec();
    if record.len() < 8 {
        assert!(RecordPrefix::check(&record).is_err());
        return;
    }
    let len = (record.len() as u32).to_le_bytes();
    record[4..8].copy_from_slice(&len);
    let crc = crc32fast::hash(&record[4..]).to_le_bytes();
    record[..4].copy_from_slice(&crc);
    let Ok(prefix) = RecordPrefix::check(&record) else { return };
    if prefix.kind == RecordKind::Frame {
        frame(&record);
        return;
    }
    let Ok(control) = control::decode(&record, &prefix) else { return };
    if let Control::Cursor(cursor) = &control {
        assert!(!cursor.name.is_empty());
        if let StateRecord::Inline(state) = cursor.state {
            assert!(state.len() < record.len());
        }
    }
});

fn frame(record: &[u8]) {
    let Ok(frame) = Frame::from_record(Bytes::copy_from_slice(record), Some(0)) else { return };
    let fields = FrameFields {
        id: frame.id(),
        offset_delta: frame.offset_delta(),
        ttl: frame.ttl(),
        body: frame.hash().map(|hash| (frame.body_len(), hash)),
        origin: frame.origin(),
        old_id: frame.old_id(),
        topic: frame.topic(),
        meta: frame.meta(),
    };
    let mut again = Vec::new();
    encode_frame(&mut again, &fields).expect("what was read can be written");
    let again = Frame::from_record(Bytes::from(again[..record.len()].to_vec()), Some(0));
    assert_eq!(again.expect("what was written can be read"), frame);
}
