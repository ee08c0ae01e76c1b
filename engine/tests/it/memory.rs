//! Long blobs stream in and out in memory that does not grow with them, measured in a separate
//! process, as other tests run concurrently; and a cursor does not keep the message that it came in
//! alive.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use xs_engine::{
    Batch, CursorChange, CursorName, CursorValue, ExpectRevision, Store, StoreOptions,
};

use crate::support::{MEDIA, open, options, scratch};

const DIR: &str = "XS_IT_MEMORY_DIR";
/// Bytes of a blob, passed to the child.
const LEN: &str = "XS_IT_MEMORY_LEN";
/// Set to run with blobs of 10 GiB, on a disk.
const LONG: &str = "XS_TEST_LONG";
/// Maximum memory of a stream: windows and buffers of both directions.
const ANON_MAX: u64 = 24 << 20;

/// Memory of this process that no file backs, in bytes.
fn anon() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Bytes that do not compress, and do not repeat within any window.
fn noise() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..9 << 20).map(|_| next()).collect()
}

/// Not a test: streams a blob in and out and measures its memory.
#[test]
fn child() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let len: u64 = std::env::var(LEN).unwrap().parse().unwrap();
    let text = b"{\"time\":\"2026-01-01T00:00:00Z\",\"level\":\"info\"}\n".repeat(200_000);
    for part in [text, noise()] {
        let options = StoreOptions { pack_bytes: 1 << 20, ..options(MEDIA[0]) };
        let store = Store::open(Path::new(&dir), options).unwrap();
        let before = anon();
        let mut most = before;
        let mut writer = store.blob_writer().unwrap();
        let mut left = len;
        while left > 0 {
            for piece in part.chunks(100_000) {
                let count = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                writer.write_all(&piece[..count]).unwrap();
                left -= count as u64;
            }
            most = most.max(anon());
        }
        let (hash, stored) = writer.finish().unwrap();
        assert_eq!(stored, len);
        most = most.max(anon());
        let mut reader = store.blob(&hash).unwrap().unwrap();
        let mut buffer = vec![0; 1 << 20];
        let mut total = 0;
        loop {
            match reader.read(&mut buffer).unwrap() {
                0 => break,
                count => total += count as u64,
            }
            most = most.max(anon());
        }
        assert_eq!(total, len);
        assert!(most - before < ANON_MAX, "{} bytes more for a blob of {len}", most - before);
        store.close().unwrap();
    }
    println!("streamed");
}

#[test]
fn a_long_blob_streams_both_ways_with_flat_memory() {
    let long = std::env::var_os(LONG).is_some();
    // 10 GiB do not fit where tests keep their stores.
    let dir = if long { tempfile::tempdir().unwrap() } else { scratch() };
    let len: u64 = if long { 10 << 30 } else { 256 << 20 };
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "memory::child", "--nocapture", "--test-threads=1"])
        .env(DIR, dir.path())
        .env(LEN, len.to_string())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("streamed"), "{told}{failed}");
}

#[test]
fn a_cursor_does_not_hold_the_message_it_came_in() {
    struct Message(Arc<Vec<u8>>);
    impl AsRef<[u8]> for Message {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    let dir = scratch();
    let store = open(dir.path(), &options(MEDIA[0]));
    let message = Arc::new(vec![b'm'; 1 << 20]);
    let state = Bytes::from_owner(Message(Arc::clone(&message))).slice(..50);
    let name = CursorName::parse("c").unwrap();
    let change = CursorChange {
        name: name.clone(),
        expect: ExpectRevision::Any,
        set: Some(CursorValue { offset: 0, state }),
    };
    store.append(Batch { cursors: vec![change], ..Batch::default() }).unwrap();
    assert_eq!(store.cursor(&name).unwrap().unwrap().state, message[..50]);
    assert_eq!(Arc::strong_count(&message), 1);
}
