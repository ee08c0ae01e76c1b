//! A server that receives arbitrary bytes after a valid HELLO: it answers or closes, takes no more
//! memory than its limits allow, and ends after the client has disconnected.
#![no_main]

mod shared;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&mode, messages)) = input.split_first() else { return };
    shared::converse(mode, messages);
});
