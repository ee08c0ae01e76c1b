//! Helpers shared by the tests of the messages.

use bytes::Bytes;

use crate::codec::{HEADER_LEN, Header};
use crate::gather::Gather;

/// The body that `put` writes.
pub(crate) fn body_of(put: impl FnOnce(&mut Gather)) -> Bytes {
    let mut out = Gather::default();
    out.begin(Header::default());
    put(&mut out);
    out.finish();
    out.take_all().slice(HEADER_LEN..)
}

/// Asserts that no shorter part of `body` is accepted.
pub(crate) fn each_cut_fails<T, E>(body: &Bytes, read: impl Fn(Bytes) -> Result<T, E>) {
    for at in 0..body.len() {
        assert!(read(body.slice(..at)).is_err(), "a cut at {at} of {} was accepted", body.len());
    }
}
