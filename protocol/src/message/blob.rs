//! BLOB_PUT, BLOB_GET, BLOB_HAS, BLOB_CHUNK: blobs in pieces, in both directions.

use xs_engine::BlobHash;

use super::coding::{Body, DecodeError};
use crate::error::ProtocolError;
use crate::gather::Gather;

/// The request of a download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlobGetRequest {
    pub(crate) hash: BlobHash,
    /// Bytes the server may send before more is granted.
    pub(crate) credit: u32,
}

impl BlobGetRequest {
    pub(crate) fn put(&self, out: &mut Gather) {
        out.put_slice(self.hash.as_bytes());
        out.put_u32(self.credit);
    }

    pub(crate) fn read(mut body: Body) -> Result<Self, DecodeError> {
        let (hash, credit) = (body.hash("hash")?, body.u32("credit")?);
        body.extensions()?;
        Ok(Self { hash, credit })
    }
}

/// Reads the request of BLOB_HAS.
pub(crate) fn read_has(mut body: Body) -> Result<BlobHash, DecodeError> {
    let hash = body.hash("hash")?;
    body.extensions()?;
    Ok(hash)
}

/// Writes the reply to BLOB_PUT.
pub(crate) fn put_stored(out: &mut Gather, hash: &BlobHash, len: u64) {
    out.put_slice(hash.as_bytes());
    out.put_u64(len);
}

/// Reads the reply to BLOB_PUT.
pub(crate) fn read_stored(mut body: Body) -> Result<(BlobHash, u64), ProtocolError> {
    let stored = (body.hash("hash")?, body.u64("length")?);
    body.end()?;
    Ok(stored)
}

/// Reads a reply that is one byte, 0 or 1.
pub(crate) fn read_flag(mut body: Body) -> Result<bool, ProtocolError> {
    let flag = match body.u8("flag")? {
        0 => false,
        1 => true,
        _ => return Err(body.wrong("flag")),
    };
    body.end()?;
    Ok(flag)
}

/// Reads a reply that is one number.
pub(crate) fn read_number(mut body: Body) -> Result<u64, ProtocolError> {
    let number = body.u64("number")?;
    body.end()?;
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::testing::{body_of, each_cut_fails};

    #[test]
    fn parts_round_trip() {
        let hash = BlobHash::of(b"x");
        let get = BlobGetRequest { hash, credit: 5 };
        let body = body_of(|out| get.put(out));
        let read = |bytes| BlobGetRequest::read(Body::new("BLOB_GET", bytes));
        assert_eq!(read(body.clone()).unwrap(), get);
        each_cut_fails(&body, read);
        let body = body_of(|out| put_stored(out, &hash, 6));
        let read = |bytes| read_stored(Body::new("BLOB_PUT", bytes));
        assert_eq!(read(body.clone()).unwrap(), (hash, 6));
        each_cut_fails(&body, read);
        let body = body_of(|out| out.put_slice(hash.as_bytes()));
        each_cut_fails(&body, |bytes| read_has(Body::new("BLOB_HAS", bytes)));
        for (byte, expected) in [(0, Some(false)), (1, Some(true)), (2, None)] {
            let body = body_of(|out| out.put_u8(byte));
            assert_eq!(read_flag(Body::new("BLOB_HAS", body)).ok(), expected);
        }
        each_cut_fails(&body_of(|out| out.put_u64(1)), |bytes| read_number(Body::new("N", bytes)));
    }
}
