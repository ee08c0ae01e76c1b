//! The two parts of `crypto` that modules get, straight from the system's generator.

use deno_core::{JsBuffer, op2};
use deno_error::JsErrorBox;

/// Bytes `crypto.getRandomValues` fills at most, as the standard says.
const RANDOM_BYTES_MAX: usize = 65_536;

fn fill(bytes: &mut [u8]) -> Result<(), JsErrorBox> {
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        // SAFETY: `rest` is valid for writes of its length.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        filled += usize::try_from(got)
            .map_err(|_| JsErrorBox::generic("the system gives no random numbers"))?;
    }
    Ok(())
}

/// Fills a buffer.
#[op2]
pub(super) fn op_xs_random(#[buffer] mut buffer: JsBuffer) -> Result<(), JsErrorBox> {
    if buffer.len() > RANDOM_BYTES_MAX {
        return Err(JsErrorBox::new(
            "DOMExceptionQuotaExceededError",
            format!("at most {RANDOM_BYTES_MAX} random bytes at once"),
        ));
    }
    fill(&mut buffer)
}

/// A version 4 UUID.
#[op2]
#[string]
pub(super) fn op_xs_uuid() -> Result<String, JsErrorBox> {
    let mut bytes = [0_u8; 16];
    fill(&mut bytes)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = |part: &[u8]| part.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let [a, b, c, d, e] = [&bytes[..4], &bytes[4..6], &bytes[6..8], &bytes[8..10], &bytes[10..]];
    Ok([hex(a), hex(b), hex(c), hex(d), hex(e)].join("-"))
}
