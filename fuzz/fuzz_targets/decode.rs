//! The wire format: a stream gives the same messages wherever it is split, and always or never ends
//! in an error.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use xs_protocol::codec::{Codec, Envelope, PREFACE};

const MAX: u32 = 64 * 1024;

fuzz_target!(|input: &[u8]| {
    let Some((&step, rest)) = input.split_first() else { return };
    // Every second stream begins with a valid preface; otherwise few would get any further.
    let mut stream = if step & 1 == 0 { PREFACE.to_vec() } else { Vec::new() };
    stream.extend_from_slice(rest);
    assert_eq!(decode(&stream, stream.len().max(1)), decode(&stream, usize::from(step) + 1));
});

/// Returns the messages of a stream that arrives `step` bytes at a time, and whether it ended in an
/// error. The text of the error may differ, since it can only mention bytes that have arrived.
fn decode(stream: &[u8], step: usize) -> (Vec<Envelope>, bool) {
    let mut codec = Codec::new(MAX);
    let mut buf = BytesMut::new();
    let mut messages = Vec::new();
    for part in stream.chunks(step) {
        buf.extend_from_slice(part);
        loop {
            match codec.next(&mut buf) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(_) => return (messages, true),
            }
        }
        assert!(
            buf.capacity() <= 2 * (MAX as usize + stream.len()),
            "memory for what did not come"
        );
    }
    (messages, false)
}
