//! The golden vectors: `protocol/vectors/*.json` against this implementation, in both directions.
//! Clients in other languages check themselves against the same files. `XS_BLESS=1` rewrites them,
//! which is right only together with a change of docs/wire.md.

mod clients;
mod damaged;
mod malformed;
mod records;
mod servers;

use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use xs_engine::{FrameId, Topic};

pub(super) use self::clients::requests;
use self::damaged::damaged;
use self::malformed::malformed;
use self::servers::replies;
use super::*;
use crate::codec::{Codec, Header, PREFACE};
use crate::error::Code;
use crate::limits::MESSAGE_BYTES_MAX;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// Sets the length in the header of a message to its actual length.
fn sized(mut bytes: Vec<u8>) -> Vec<u8> {
    let len = (bytes.len() - 4) as u32;
    bytes[..4].copy_from_slice(&len.to_le_bytes());
    bytes
}

fn topic(text: &str) -> Topic {
    Topic::parse(text).unwrap()
}

fn id(n: u64) -> FrameId {
    FrameId::first_of_ms(1_700_000_000_000 + n)
}

/// Compares a file with what it should hold, or writes it.
fn check_file(name: &str, messages: Vec<Value>) -> Vec<Value> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors").join(name);
    let expected = json!({ "protocol": VERSION, "messages": messages });
    if std::env::var_os("XS_BLESS").is_some() {
        std::fs::write(&path, format!("{expected:#}\n")).unwrap();
    }
    let found = std::fs::read(&path).unwrap();
    let found: Value = serde_json::from_slice(&found).unwrap();
    assert!(found == expected, "{} differs from the code; see docs/wire.md", path.display());
    found["messages"].as_array().unwrap().clone()
}

fn codec() -> Codec {
    let mut codec = Codec::new(MESSAGE_BYTES_MAX);
    assert_eq!(codec.next(&mut BytesMut::from(&PREFACE[..])).unwrap(), None);
    codec
}

#[test]
fn messages_of_clients() {
    let all = requests();
    let entry = |sent: &clients::Sent| {
        let (name, _, _, request) = sent;
        json!({ "name": name, "op": request.op().name(), "value": format!("{request:?}"),
            "hex": hex(&clients::bytes_of(sent)) })
    };
    let found = check_file("client.json", all.iter().map(entry).collect());
    for (entry, (name, corr, sub, request)) in found.iter().zip(all) {
        let mut bytes = BytesMut::from(&unhex(entry["hex"].as_str().unwrap())[..]);
        let envelope = codec().next(&mut bytes).unwrap().unwrap();
        assert_eq!((envelope.header.corr, envelope.header.sub), (corr, sub), "{name}");
        assert_eq!(Request::read(envelope, Op::RANGES).unwrap(), request, "{name}");
    }
}

#[test]
fn messages_of_servers() {
    let decode = |bytes: &[u8]| {
        let envelope = codec().next(&mut BytesMut::from(bytes)).unwrap().unwrap();
        Incoming::read(envelope).unwrap()
    };
    let all: Vec<_> =
        replies().into_iter().map(|sent| (sent.0, sent.1, servers::bytes_of(&sent))).collect();
    let entry = |(name, header, bytes): &(&str, Header, Bytes)| {
        let op = Op::from_byte(header.op).unwrap().name();
        json!({ "name": name, "op": op, "value": format!("{:?}", decode(bytes)),
            "hex": hex(bytes) })
    };
    // The values are part of the file: what is decoded is compared with it as text.
    check_file("server.json", all.iter().map(entry).collect());
}

#[test]
fn malformed_messages_of_clients() {
    let code_of = |bytes: &[u8]| {
        let mut bytes = BytesMut::from(bytes);
        let envelope = match codec().next(&mut bytes) {
            Ok(envelope) => envelope.expect("a whole message"),
            Err(error) => return error.code(),
        };
        match Request::read(envelope, Op::RANGES).unwrap_err() {
            DecodeError::Protocol(error) => error.code(),
            DecodeError::Refused(refusal) => refusal.code,
        }
    };
    let all = malformed();
    let entry = |(name, bytes, code): &(&str, Vec<u8>, Code)| {
        json!({ "name": name, "hex": hex(bytes), "code": code.number(),
            "closes": code.number() < 200 })
    };
    let found = check_file("malformed.json", all.iter().map(entry).collect());
    for (entry, (name, _, code)) in found.iter().zip(all) {
        assert_eq!(code_of(&unhex(entry["hex"].as_str().unwrap())), code, "{name}");
    }
}

#[test]
fn malformed_messages_of_servers() {
    let all = damaged();
    let entry = |(name, bytes): &(&str, Vec<u8>)| json!({ "name": name, "hex": hex(bytes) });
    let found = check_file("malformed-server.json", all.iter().map(entry).collect());
    for entry in found {
        let bytes = unhex(entry["hex"].as_str().unwrap());
        let envelope = codec().next(&mut BytesMut::from(&bytes[..]));
        let read = envelope.map(|envelope| Incoming::read(envelope.expect("a whole message")));
        assert!(!matches!(read, Ok(Ok(_))), "{}: {read:?}", entry["name"]);
    }
}

/// Every valid message, randomly damaged, is decoded or refused: it never causes a panic, and never
/// takes more memory than it has bytes.
#[test]
fn bent_messages_are_survived() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let of_clients = requests().into_iter().map(|sent| clients::bytes_of(&sent));
    let of_servers = replies().into_iter().map(|sent| servers::bytes_of(&sent));
    let all: Vec<Bytes> = of_clients.chain(of_servers).collect();
    let (mut read, mut refused) = (0, 0);
    for round in 0..100_000 {
        let mut bytes = BytesMut::from(&all[round % all.len()][..]);
        for _ in 0..=random(3) {
            let at = random(bytes.len());
            match random(4) {
                0 => bytes.truncate(at.max(4)),
                1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random(5)],
                2 => bytes[at] ^= 1 << random(8),
                _ => bytes.extend_from_slice(&[0xff; 9][..random(9)]),
            }
        }
        // The length is mostly corrected afterwards, or few messages would get past its check.
        if random(8) > 0 && bytes.len() >= 16 {
            let len = (bytes.len() - 4) as u32;
            bytes[..4].copy_from_slice(&len.to_le_bytes());
        }
        let Ok(Some(envelope)) = codec().next(&mut bytes) else {
            refused += 1;
            continue;
        };
        let request = Request::read(envelope.clone(), Op::RANGES).is_ok();
        if request || Incoming::read(envelope).is_ok() { read += 1 } else { refused += 1 }
    }
    assert!(read > 5_000 && refused > 5_000, "{read} were read, {refused} refused");
}
