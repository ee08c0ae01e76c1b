//! A whole session of messages with correct lengths and ops, so that their contents are reached:
//! streams that are opened, fed, ended and named again, in any order.
#![no_main]

mod shared;

use libfuzzer_sys::fuzz_target;
use xs_protocol::codec::Header;
use xs_protocol::{Gather, Op};

/// Maximum number of messages in one session.
const MESSAGES_MAX: usize = 64;

fuzz_target!(|input: &[u8]| {
    let Some((&mode, mut rest)) = input.split_first() else { return };
    let mut out = Gather::default();
    for _ in 0..MESSAGES_MAX {
        let [op, flags, code, corr, sub, len, tail @ ..] = rest else { break };
        let op = Op::ALL[usize::from(*op) % Op::ALL.len()];
        // Usually a request of the current version.
        let flags = if *flags < 0xe0 { 0 } else { *flags & 7 };
        let code = if *code < 0xf0 { 1 } else { u16::from(*code & 3) };
        let (corr, sub) = (u32::from(*corr), u32::from(*sub));
        let (body, next) = tail.split_at(usize::from(*len).min(tail.len()));
        out.begin(Header { op: op as u8, flags, code, corr, sub });
        out.put_slice(body);
        out.finish();
        rest = next;
    }
    shared::converse(mode, &out.take_all());
});
