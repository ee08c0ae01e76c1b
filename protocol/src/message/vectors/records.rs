//! Frames of every kind, and a check of what docs/wire.md says about records against a frame with
//! every field.

use std::collections::HashMap;
use std::num::NonZeroU64;

use bytes::Bytes;
use xs_engine::format::record::{FrameFields, RecordPrefix, encode_frame};
use xs_engine::{BlobHash, Frame, Meta, NewFrame, Origin, Ttl};

use super::{id, topic};

const WIRE_MD: &str = include_str!("../../../../docs/wire.md");

/// A frame that is kept for a minute.
pub(super) fn fleeting() -> Frame {
    let new = NewFrame { ttl: Ttl::TimeMs(60_000), ..NewFrame::new(topic("a.b")) };
    Frame::assemble(&new, id(4), Some(10), None).unwrap()
}

/// A frame with a ttl that keeps two older frames of its topic.
pub(super) fn superseding() -> Frame {
    let ttl = Ttl::Last(NonZeroU64::new(3).unwrap());
    Frame::assemble(&NewFrame { ttl, ..NewFrame::new(topic("a.b")) }, id(5), Some(11), None)
        .unwrap()
}

/// A frame that had another id in its former store.
pub(super) fn imported() -> Frame {
    of(&FrameFields { old_id: Some(id(2)), ..FrameFields::of(&plain(), id(6), 0, None) }, 12)
}

/// A frame with every field.
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

/// The CRC that the page names, computed by its definition.
pub(super) fn crc(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
    !bytes.iter().fold(u32::MAX, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}

/// The parts of a record, by the tables of the page alone.
fn by_the_page(record: &[u8]) -> HashMap<&'static str, Vec<&[u8]>> {
    let section = WIRE_MD.split("\n### FRAME record\n").nth(1).unwrap();
    let section = section.split("\n#").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| "));
    let mut parts = HashMap::new();
    let mut rest = record;
    let flags = record[9];
    for row in rows {
        let mut cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        // The first table gives the position of each field: after the previous one.
        if cells.len() == 4 {
            if cells[0] == "at" {
                continue;
            }
            assert_eq!(cells.remove(0).parse(), Ok(record.len() - rest.len()), "{row}");
            cells[2] = "always";
        }
        let [sizes, field, present] = cells[..] else { panic!("{row}") };
        let is_there = match present {
            "present" => continue,
            "always" => true,
            "ttl 2 or 3" => record[11] >= 2,
            "BODY" => flags & 1 != 0,
            "ORIGIN" => flags & 2 != 0,
            "OLD_ID" => flags & 4 != 0,
            other => panic!("{other}"),
        };
        let name = field.split([':', ';']).next().unwrap();
        let mut values = Vec::new();
        for size in sizes.split(" + ").filter(|_| is_there) {
            let size = match size {
                "topic length" => usize::from(record[10]),
                "the rest" => rest.len(),
                number => number.parse().unwrap(),
            };
            let value;
            (value, rest) = rest.split_at(size);
            values.push(value);
        }
        parts.insert(name, values);
    }
    assert!(rest.is_empty(), "{rest:?}");
    parts
}

#[test]
fn a_frame_is_read_by_the_page_alone() {
    assert_eq!(crc(b"123456789"), 0xcbf4_3926, "as the page says");
    assert!(WIRE_MD.contains("`cbf43926`"));
    let frame = full();
    let record = &frame.record()[..];
    let parts = by_the_page(record);
    let part = |name: &str| parts[name].concat();
    let word = |name: &str| u32::from_le_bytes(part(name).try_into().unwrap());
    assert_eq!(word("crc"), crc(&record[4..]));
    assert_eq!(word("len"), record.len() as u32);
    let small = ["kind", "flags", "topic length", "ttl"].map(part);
    assert_eq!(small.concat(), [1, 7, 3, 3]);
    assert_eq!((word("offset delta"), frame.offset()), (2, Some(42)));
    assert_eq!(part("id"), id(7).as_bytes());
    assert_eq!(part("ttl value"), 3u64.to_le_bytes());
    assert_eq!(parts["body"], [&5u64.to_le_bytes()[..], BlobHash::of(b"hello").as_bytes()]);
    let (create, input) = (id(1), id(2));
    let made =
        [create.as_bytes(), &input.as_bytes()[..], &9u64.to_le_bytes(), &[2, 0, 0, 0], &[0; 4]];
    assert_eq!(parts["origin"], made);
    assert_eq!(part("old id"), id(3).as_bytes());
    assert_eq!((part("topic"), part("meta")), (b"a.b".to_vec(), br#"{"n":1}"#.to_vec()));
    for frame in [fleeting(), superseding(), imported()] {
        let parts = by_the_page(frame.record());
        assert_eq!(parts["old id"].len(), usize::from(frame.old_id().is_some()));
        assert_eq!(parts["ttl value"].len(), usize::from(frame.ttl() != Ttl::Forever));
        assert_eq!(parts["topic"].concat(), b"a.b");
    }
}
