//! Frames of every kind.

use std::num::NonZeroU64;

use bytes::Bytes;
use xs_engine::format::record::{FrameFields, RecordPrefix, encode_frame};
use xs_engine::{BlobHash, Frame, Meta, NewFrame, Origin, Ttl};

use super::{id, topic};

/// One that is kept for a minute.
pub(super) fn fleeting() -> Frame {
    let new = NewFrame { ttl: Ttl::TimeMs(60_000), ..NewFrame::new(topic("a.b")) };
    Frame::assemble(&new, id(4), Some(10), None).unwrap()
}

/// One that leaves two before it.
pub(super) fn superseding() -> Frame {
    let ttl = Ttl::Last(NonZeroU64::new(3).unwrap());
    Frame::assemble(&NewFrame { ttl, ..NewFrame::new(topic("a.b")) }, id(5), Some(11), None)
        .unwrap()
}

/// One that had another id.
pub(super) fn imported() -> Frame {
    of(&FrameFields { old_id: Some(id(2)), ..FrameFields::of(&plain(), id(6), 0, None) }, 12)
}

/// One with all that a frame may have.
pub(super) fn full() -> Frame {
    let new = NewFrame {
        meta: Meta::parse(r#"{"n":1}"#).unwrap(),
        ttl: Ttl::Last(NonZeroU64::new(3).unwrap()),
        origin: Some(Origin {
            processor: id(1),
            input: Some(id(2)),
            input_offset: Some(9),
            hops: 2,
        }),
        ..plain()
    };
    let body = Some((5, BlobHash::of(b"hello")));
    of(&FrameFields { old_id: Some(id(3)), ..FrameFields::of(&new, id(7), 2, body) }, 40)
}

fn plain() -> NewFrame {
    NewFrame::new(topic("a.b"))
}

fn of(fields: &FrameFields<'_>, base: u64) -> Frame {
    let mut record = Vec::new();
    encode_frame(&mut record, fields).unwrap();
    record.truncate(RecordPrefix::read(&record).unwrap().len as usize);
    Frame::from_record(Bytes::from(record), Some(base)).unwrap()
}

/// The CRC of a record, by its definition.
pub(super) fn crc(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
    !bytes.iter().fold(u32::MAX, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}
