//! An independent reader, written from docs/format.md, lists the frames of the golden store as the
//! engine does: the page is sufficient to read a store.

use std::fmt::Write as _;
use std::num::NonZeroU64;
use std::path::Path;
use std::process::Command;

use xs_engine::{
    Batch, BlobHash, CompactOptions, Frame, FrameId, IdempotencyKey, Import, Meta, NewFrame, Store,
    Ttl,
};

use crate::support::{
    MEDIA, copy_store, everything, frames, lacks, numbered, open, options, scratch, skip, tell,
};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn line(frame: &Frame) -> String {
    let body = frame.hash().map(|hash| format!("{}:{}", frame.body_len(), hex(hash.as_bytes())));
    let origin = frame.origin().map(|origin| {
        let input = origin.input.unwrap_or(FrameId::ZERO);
        let offset = origin.input_offset.unwrap_or(u64::MAX);
        let (made, input) = (hex(origin.processor.as_bytes()), hex(input.as_bytes()));
        format!("{made},{input},{offset},{}", origin.hops)
    });
    let none = || "-".to_owned();
    [
        frame.offset().unwrap().to_string(),
        hex(frame.id().as_bytes()),
        frame.topic().to_owned(),
        frame.ttl().to_string(),
        hex(BlobHash::of(frame.meta()).as_bytes()),
        body.unwrap_or_else(none),
        origin.unwrap_or_else(none),
        frame.old_id().map_or_else(none, |id| hex(id.as_bytes())),
    ]
    .join("\t")
}

fn listed(dir: &Path) -> Vec<String> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reader.py");
    let output = Command::new("python3").arg(program).arg(dir).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

fn lines(store: &Store) -> Vec<String> {
    frames(store.read(&everything())).iter().map(line).collect()
}

#[test]
fn a_reader_written_from_the_page_sees_the_same_frames() {
    if let Some(reason) = lacks(&["python3"], false) {
        return skip("reader", &reason);
    }
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1/store");
    let mut found = listed(&fixture);
    let blobs = found.pop().unwrap();
    let copy = scratch();
    copy_store(&fixture, copy.path());
    let store = open(copy.path(), &options(MEDIA[0]));
    let expected = lines(&store);
    assert_eq!(found, expected);
    assert!(found.len() > 50 && blobs.ends_with("1 read"), "{} frames, {blobs}", found.len());
    // The same for a newly written store, so that the page is true of the present code.
    for n in 0..200 {
        store.append(numbered("reader", n).into()).unwrap();
    }
    let import = Some(Import::NewIds(vec![FrameId::first_of_ms(5)]));
    store.append(Batch { import, ..numbered("reader", 200).into() }).unwrap();
    let key = Some(IdempotencyKey::parse("key").unwrap());
    store.append(Batch { key, ..numbered("reader", 201).into() }).unwrap();
    let filler = "f".repeat(2000);
    for n in 0..200 {
        let meta = Meta::parse(format!("[{n},\"{filler}\"]")).unwrap();
        let ttl = if n % 9 == 0 { Ttl::Last(NonZeroU64::new(3).unwrap()) } else { Ttl::Forever };
        let name = ["reader", "kept"][n as usize % 2];
        let appended = store.append(NewFrame { meta, ttl, ..numbered(name, n) }.into()).unwrap();
        if n % 7 == 0 {
            store.remove(appended.frames[0].id).unwrap();
        }
    }
    let everything = CompactOptions { dead_percent: 1, bytes_per_second: None };
    let compacted = store.compact(everything).unwrap();
    assert!(compacted.rewritten > 2 && compacted.frames > 20, "{compacted:?}");
    let expected = lines(&store);
    store.close().unwrap();
    let mut found = listed(copy.path());
    found.pop();
    assert_eq!(found, expected);
    tell(&format!("{} frames read by reader.py, {blobs}", found.len()));
}
