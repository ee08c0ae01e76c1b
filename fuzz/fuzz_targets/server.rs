//! A server that is sent anything after a good HELLO: it answers or closes, takes no more memory
//! than its limits allow, and ends when the client has gone.
#![no_main]

mod shared;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&mode, messages)) = input.split_first() else { return };
    shared::converse(mode, messages);
});
