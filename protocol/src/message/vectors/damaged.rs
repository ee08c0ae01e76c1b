//! Messages that no server may send: a client that reads one closes the connection.

use super::records::{crc, full};
use super::servers::{bytes_of, replies};
use super::sized;

fn good(name: &str) -> Vec<u8> {
    let all = replies();
    bytes_of(all.iter().find(|(found, ..)| *found == name).unwrap()).to_vec()
}

/// The answer to GET with these bytes as its record, and a stated count of records.
fn answer(record: &[u8], count: u32) -> Vec<u8> {
    // The header, the header of the list, which states one run, and the header of that run.
    let mut bytes = good("get-all-fields")[..48].to_vec();
    bytes.extend_from_slice(record);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let len = (bytes.len() - 48) as u32;
    bytes[40..44].copy_from_slice(&len.to_le_bytes());
    bytes[44..48].copy_from_slice(&count.to_le_bytes());
    sized(bytes)
}

/// A record with a wrong value in one place, and a matching CRC.
fn with(at: usize, value: &[u8]) -> Vec<u8> {
    let mut record = full().record().to_vec();
    record[at..at + value.len()].copy_from_slice(value);
    let len = u32::from_le_bytes(record[4..8].try_into().unwrap()) as usize;
    let crc = crc(&record[4..len.clamp(4, record.len())]);
    record[..4].copy_from_slice(&crc.to_le_bytes());
    answer(&record, 1)
}

fn changed(name: &str, at: usize, byte: u8) -> Vec<u8> {
    let mut bytes = good(name);
    bytes[at] = byte;
    bytes
}

fn longer(name: &str, extra: &[u8]) -> Vec<u8> {
    sized([&good(name), extra].concat())
}

/// Bytes that a client must reject, and what they are.
pub(super) fn damaged() -> Vec<(&'static str, Vec<u8>)> {
    let record = full().record().to_vec();
    let len = record.len() as u32;
    let mut turned = record.clone();
    *turned.last_mut().unwrap() ^= 1;
    let padded = [&record[..], &[0; 16]].concat();
    vec![
        ("record-crc", answer(&turned, 1)),
        ("record-kind", with(8, &[2])),
        ("record-flag", with(9, &[0x0f])),
        ("record-flag-restated", with(9, &[0x87])),
        ("record-ttl", with(11, &[4])),
        ("record-ttl-last-0", with(32, &[0; 8])),
        ("record-topic-empty", with(10, &[0])),
        ("record-topic-cut", with(10, &[255])),
        ("record-length-under", with(4, &31u32.to_le_bytes())),
        ("record-length-over", with(4, &(len + 64).to_le_bytes())),
        ("run-empty", answer(&[], 0)),
        ("run-many", answer(&record, 2)),
        ("run-rest", answer(&padded, 1)),
        ("body-of-no-frame", {
            let body = [1, 0, 0, 0, 5, 0, 0, 0, b'h', b'e', b'l', b'l', b'o', 0, 0, 0];
            let mut bytes = longer("get-all-fields", &body);
            bytes[28] = 1;
            bytes
        }),
        ("list-rest", longer("get-none", &[0; 8])),
        ("cursor-cut", sized(good("cursor-get-reply")[..16 + 31].to_vec())),
        ("event-unknown", changed("event-pulse", 16, 6)),
        ("event-rest", longer("event-pulse", &[0])),
        ("event-gap-unknown", changed("event-gap-corrupt", 17, 4)),
        ("flags-unknown", changed("ping", 5, 0x82)),
        ("flags-response-and-push", changed("ping", 5, 3)),
        ("flags-none", changed("ping", 5, 0)),
        ("length-11", changed("ping", 0, 11)),
    ]
}
