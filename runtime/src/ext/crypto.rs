//! The primitives of `crypto`: the system's random numbers, digests and HMAC. Keys are bytes that
//! JavaScript holds; nothing is stored here.

use aws_lc_rs::{digest, hmac};
use deno_core::convert::Uint8Array;
use deno_core::{JsBuffer, op2};
use deno_error::JsErrorBox;

/// The most bytes that `crypto.getRandomValues` fills, per the standard.
const RANDOM_BYTES_MAX: usize = 65_536;

fn fill(bytes: &mut [u8]) -> Result<(), JsErrorBox> {
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        // SAFETY: `rest` is valid for writes of its length.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        filled += usize::try_from(got)
            .map_err(|_| JsErrorBox::generic("the system provides no random numbers"))?;
    }
    Ok(())
}

/// Fills a buffer with random bytes.
#[op2]
pub(super) fn op_xs_random(#[buffer] mut buffer: JsBuffer) -> Result<(), JsErrorBox> {
    if buffer.len() > RANDOM_BYTES_MAX {
        return Err(JsErrorBox::new(
            "DOMExceptionQuotaExceededError",
            format!("at most {RANDOM_BYTES_MAX} random bytes can be requested at a time"),
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

fn unknown(hash: &str) -> JsErrorBox {
    JsErrorBox::new("DOMExceptionNotSupportedError", format!("unknown hash {hash:?}"))
}

fn hmac_key(hash: &str, key: &[u8]) -> Result<hmac::Key, JsErrorBox> {
    let algorithm = match hash {
        "SHA-1" => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
        "SHA-256" => hmac::HMAC_SHA256,
        "SHA-384" => hmac::HMAC_SHA384,
        "SHA-512" => hmac::HMAC_SHA512,
        other => return Err(unknown(other)),
    };
    Ok(hmac::Key::new(algorithm, key))
}

/// The digest of bytes.
#[op2]
pub(super) fn op_xs_digest(
    #[string] hash: &str,
    #[buffer] data: &[u8],
) -> Result<Uint8Array, JsErrorBox> {
    let algorithm = match hash {
        "SHA-1" => &digest::SHA1_FOR_LEGACY_USE_ONLY,
        "SHA-256" => &digest::SHA256,
        "SHA-384" => &digest::SHA384,
        "SHA-512" => &digest::SHA512,
        other => return Err(unknown(other)),
    };
    Ok(digest::digest(algorithm, data).as_ref().to_vec().into())
}

/// The HMAC of bytes under a key.
#[op2]
pub(super) fn op_xs_hmac(
    #[string] hash: &str,
    #[buffer] key: &[u8],
    #[buffer] data: &[u8],
) -> Result<Uint8Array, JsErrorBox> {
    Ok(hmac::sign(&hmac_key(hash, key)?, data).as_ref().to_vec().into())
}

/// Whether a signature is the HMAC of bytes, checked in constant time.
#[op2(fast)]
pub(super) fn op_xs_hmac_verify(
    #[string] hash: &str,
    #[buffer] key: &[u8],
    #[buffer] signature: &[u8],
    #[buffer] data: &[u8],
) -> Result<bool, JsErrorBox> {
    Ok(hmac::verify(&hmac_key(hash, key)?, data, signature).is_ok())
}
