//! Messages that no client may send.

use xs_engine::{NewFrame, Ttl};

use super::clients::{bytes_of, requests};
use super::records::crc;
use super::{sized, topic};
use crate::error::Code;
use crate::limits::{LAST_MAX, MESSAGE_BYTES_MAX, PING_BYTES_MAX, TOKEN_BYTES_MAX};
use crate::message::{AppendRequest, Request};

/// The position of the first record of the import: after header, flags, list and run.
const IMPORTED_AT: usize = 16 + 8 + 16 + 16;

/// Bytes that a server must reject: what they are, and the code it answers with. Codes of class 1
/// close the connection, others refuse the request.
#[expect(clippy::too_many_lines, reason = "a table")]
pub(super) fn malformed() -> Vec<(&'static str, Vec<u8>, Code)> {
    let good = |name: &str| {
        let all = requests();
        bytes_of(all.iter().find(|(found, ..)| *found == name).unwrap()).to_vec()
    };
    let changed = |name: &str, at: usize, byte: u8| {
        let mut bytes = good(name);
        bytes[at] = byte;
        bytes
    };
    let longer = |name: &str, extra: &[u8]| {
        let mut bytes = good(name);
        bytes.extend_from_slice(extra);
        sized(bytes)
    };
    let shorter = |name: &str| {
        let mut bytes = good(name);
        bytes.pop();
        sized(bytes)
    };
    let extension_of = |tag: u16, value: &[u8]| {
        let mut bytes = tag.to_le_bytes().to_vec();
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(&(value.len() as u32).to_le_bytes());
        bytes.extend_from_slice(value);
        bytes
    };
    let extension = |tag: u16| extension_of(tag, &[0xaa]);
    let heads = |count: u16| {
        let mut value = count.to_le_bytes().to_vec();
        value.extend_from_slice(&[0, 0]);
        (0..count).for_each(|_| value.extend_from_slice(&[3, 0, 0, 0, 0, 0, 0, 0, 0]));
        extension_of(1, &value)
    };
    let host = |name: &[u8]| {
        let len = (name.len() as u16).to_le_bytes();
        extension_of(1, &[&[7; 16], &len[..], name].concat())
    };
    let token = |token: &[u8]| {
        // Replaces the empty token.
        let mut bytes = good("hello");
        bytes.truncate(bytes.len() - 2);
        bytes.extend_from_slice(&(token.len() as u16).to_le_bytes());
        bytes.extend_from_slice(token);
        sized(bytes)
    };
    // The first record of an import, with the CRC that matches the change.
    let record = |at: usize, byte: u8| {
        let mut bytes = changed("import", IMPORTED_AT + at, byte);
        let len = usize::from(bytes[IMPORTED_AT + 4]);
        let crc = crc(&bytes[IMPORTED_AT + 4..IMPORTED_AT + len]);
        bytes[IMPORTED_AT..IMPORTED_AT + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    };
    let append = |frame: NewFrame| {
        let batch = AppendRequest::frames(vec![frame]);
        bytes_of(&("", 3, 0, Request::Append(batch))).to_vec()
    };
    let cursor = |name: &[u8]| {
        let mut bytes = good("cursor-get")[..16].to_vec();
        bytes.extend_from_slice(&(name.len() as u16).to_le_bytes());
        bytes.extend_from_slice(name);
        sized(bytes)
    };
    let last_n = |n: u64| {
        let mut bytes = good("last");
        bytes[16..24].copy_from_slice(&n.to_le_bytes());
        bytes
    };
    let announced = |len: u32| {
        let mut bytes = good("ping");
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        bytes
    };
    let latest_since = {
        let mut bytes = longer("subscribe-resumed", &[0; 8]);
        // Sets the flag, and moves its time to its place after the start.
        bytes[32] |= 8;
        bytes[43..].rotate_right(8);
        bytes
    };
    let mut cases = vec![
        ("length-0", announced(0), Code::Malformed),
        ("length-11", announced(11), Code::Malformed),
        ("length-over", announced(MESSAGE_BYTES_MAX - 3), Code::TooLarge),
        ("length-max", announced(u32::MAX), Code::TooLarge),
        ("flags-unknown", changed("ping", 5, 0x80), Code::Malformed),
        ("flags-response-and-push", changed("ping", 5, 3), Code::Malformed),
        ("flags-more", changed("ping", 5, 4), Code::Malformed),
        ("flags-push", changed("ping", 5, 2), Code::Malformed),
        ("op-unknown", changed("ping", 4, 0x7f), Code::UnknownOp),
        ("op-of-servers", changed("ping", 4, 0x31), Code::Malformed),
        ("op-version", changed("cursor-list", 6, 2), Code::OpVersion),
        ("ping-too-long", longer("ping", &[0; PING_BYTES_MAX]), Code::Malformed),
        ("append-flag", changed("append", 16, 2), Code::Malformed),
        ("append-reserved", changed("append", 17, 1), Code::Malformed),
        ("append-too-many", changed("append", 19, 0x20), Code::BatchTooLarge),
        ("append-frame-flag", changed("append", 24, 8), Code::Malformed),
        ("append-ttl", changed("append", 25, 4), Code::Malformed),
        (
            "append-ttl-time-0",
            append(NewFrame { ttl: Ttl::TimeMs(0), ..NewFrame::new(topic("a.b")) }),
            Code::InvalidValue,
        ),
        ("append-topic-rule", changed("append", 36, b'9'), Code::InvalidValue),
        ("append-topic-utf8", changed("append", 36, 0xff), Code::Malformed),
        ("append-meta-json", changed("append", 39, b'x'), Code::InvalidValue),
        ("append-extension", longer("append", &extension(0x7fff)), Code::UnknownExtension),
        ("append-extension-cut", longer("append", &[1, 0, 0, 0, 9, 0, 0, 0]), Code::Malformed),
        ("append-conditions-cut", longer("append", &extension(1)), Code::Malformed),
        (
            "append-conditions-twice",
            longer("append", &[heads(1), heads(1)].concat()),
            Code::Malformed,
        ),
        (
            "append-condition-kind",
            longer("append", &extension_of(1, &[1, 0, 0, 0, 4])),
            Code::Malformed,
        ),
        ("append-conditions-many", longer("append", &heads(65)), Code::BatchTooLarge),
        (
            "append-condition-topic",
            longer("append", &extension_of(1, &[1, 0, 0, 0, 2, 1, 0, 1, 0, b'9'])),
            Code::InvalidValue,
        ),
        ("append-key-utf8", longer("append", &extension_of(2, &[0xff])), Code::Malformed),
        ("append-key-empty", longer("append", &extension_of(2, &[])), Code::InvalidValue),
        ("append-key-long", longer("append", &extension_of(2, &[b'k'; 256])), Code::InvalidValue),
        ("remove-flag", changed("remove", 16, 4), Code::Malformed),
        ("remove-bound", changed("remove", 20, 2), Code::Malformed),
        ("remove-too-many", changed("remove", 19, 0x20), Code::BatchTooLarge),
        ("import-flag", changed("import", 16, 2), Code::Malformed),
        ("import-ids", changed("import", 17, 3), Code::Malformed),
        ("import-reserved", changed("import", 23, 1), Code::Malformed),
        ("import-crc", changed("import", 57, 0x55), Code::Malformed),
        ("import-record-kind", record(8, 2), Code::Malformed),
        ("import-record-flag", record(9, 0x08), Code::Malformed),
        ("import-record-flag-restated", record(9, 0x80), Code::Malformed),
        ("import-record-ttl", record(11, 4), Code::Malformed),
        ("import-record-topic-empty", record(10, 0), Code::Malformed),
        ("import-record-topic-cut", record(10, 255), Code::Malformed),
        ("import-record-topic-rule", record(32, b'9'), Code::Malformed),
        ("last-too-many", last_n(LAST_MAX + 1), Code::InvalidRead),
        ("subscribe-policy", changed("subscribe-drop", 47, 3), Code::Malformed),
        ("subscribe-resume-cut", longer("subscribe", &extension_of(1, &[7; 23])), Code::Malformed),
        (
            "subscribe-resume-without-offset",
            longer("subscribe", &extension_of(1, &[7; 24])),
            Code::InvalidRead,
        ),
        ("subscribe-latest-since", latest_since, Code::InvalidRead),
        ("fetch-flag", changed("fetch", 20, 0xff), Code::Malformed),
        ("fetch-start", changed("fetch", 21, 5), Code::Malformed),
        ("fetch-follow", changed("fetch", 20, 0x3f), Code::InvalidRead),
        ("get-bound", changed("get-by-offset", 16, 2), Code::Malformed),
        ("credit-extension", longer("credit", &extension(0x8000)), Code::Malformed),
        ("cursor-get-name-empty", cursor(b""), Code::InvalidValue),
        ("cursor-get-name-control", cursor(b"\n"), Code::InvalidValue),
        ("cursor-get-name-utf8", cursor(b"\xff"), Code::Malformed),
        ("blob-chunk-pushed", changed("blob-chunk", 5, 6), Code::Malformed),
        ("maintain-what", changed("maintain-verify", 16, 6), Code::InvalidValue),
        ("maintain-flag", changed("maintain-verify", 17, 4), Code::Malformed),
        ("maintain-link-unused", changed("maintain-verify", 17, 1), Code::InvalidValue),
        ("maintain-dry-run-unused", changed("maintain-backup", 17, 3), Code::InvalidValue),
        ("maintain-reserved", changed("maintain-verify", 19, 1), Code::Malformed),
        ("maintain-percent-unused", changed("maintain-verify", 18, 1), Code::InvalidValue),
        ("maintain-grace-unused", changed("maintain-compact", 20, 1), Code::InvalidValue),
        ("maintain-percent-0", changed("maintain-compact", 18, 0), Code::InvalidValue),
        ("maintain-percent-101", changed("maintain-compact", 18, 101), Code::InvalidValue),
        ("maintain-path-relative", changed("maintain-fork", 30, b'x'), Code::InvalidValue),
        ("maintain-path-nul", changed("maintain-fork", 31, 0), Code::InvalidValue),
        ("hello-token-long", token(&[b'x'; TOKEN_BYTES_MAX + 1]), Code::Malformed),
        ("hello-token-utf8", token(b"\xff"), Code::Malformed),
        ("hello-host-twice", longer("hello-host", &host(b"")), Code::Malformed),
        ("hello-host-cut", longer("hello", &extension_of(1, &[7; 17])), Code::Malformed),
        ("hello-host-name", longer("hello", &host(b"9")), Code::InvalidValue),
        ("hello-name-length", changed("hello", 37, 0xff), Code::Malformed),
    ];
    for name in [
        "hello",
        "hello-token",
        "append",
        "remove",
        "import",
        "fetch",
        "get-by-id",
        "last",
        "topics",
        "subscribe",
        "credit",
        "cursor-get",
        "blob-has",
        "blob-get",
        "call",
        "maintain-fork",
    ] {
        cases.push((name, shorter(name), Code::Malformed));
    }
    cases
}
