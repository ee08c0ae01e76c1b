//! Splits a stream of bytes into messages: preface, header, body. Checks lengths and flags, and
//! allocates memory only for bytes that were received. What a body means is left to `message`.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_util::codec::Decoder;

use crate::error::ProtocolError;

/// The first bytes of a connection, each way: magic, major version, reserved.
pub const PREFACE: [u8; 8] = [b'X', b'S', b'P', 0, MAJOR, 0, 0, 0];
/// The major version of the protocol.
pub const MAJOR: u8 = 1;
/// Bytes of a header.
pub const HEADER_LEN: usize = 16;
/// Bytes of the length field, which are not included in the length.
pub const LEN_FIELD: usize = 4;

/// The message answers a request.
pub const FLAG_RESPONSE: u8 = 1;
/// The message is a push: it answers no single request.
pub const FLAG_PUSH: u8 = 1 << 1;
/// Another message of the same reply or blob follows.
pub const FLAG_MORE: u8 = 1 << 2;
const FLAGS_KNOWN: u8 = FLAG_RESPONSE | FLAG_PUSH | FLAG_MORE;

/// Capacity of a new read buffer; idle connections hold no more.
const READ_MIN: usize = 4 * 1024;
/// Maximum capacity reserved beyond the bytes received.
const READ_AHEAD_MAX: usize = 256 * 1024;

/// The fixed part of a message, without its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// Which op.
    pub op: u8,
    /// `FLAG_*`.
    pub flags: u8,
    /// Request: version of the op. Response and push: 0, or the code of a refusal.
    pub code: u16,
    /// The number of the request, chosen by the sender of the request; 0 on a push.
    pub corr: u32,
    /// The stream's number, chosen by the client; otherwise 0.
    pub sub: u32,
}

impl Header {
    /// Writes the header with a length of 0.
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        out.put_u32_le(0);
        out.put_u8(self.op);
        out.put_u8(self.flags);
        out.put_u16_le(self.code);
        out.put_u32_le(self.corr);
        out.put_u32_le(self.sub);
    }

    /// Whether it answers a request.
    #[must_use]
    pub const fn is_response(&self) -> bool {
        self.flags & FLAG_RESPONSE != 0
    }

    /// Whether the next message belongs to it.
    #[must_use]
    pub const fn has_more(&self) -> bool {
        self.flags & FLAG_MORE != 0
    }
}

/// A message whose body is not decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Its header.
    pub header: Header,
    /// Its body, a part of the read buffer.
    pub body: Bytes,
}

/// An error of a [`Codec`].
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The transport failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The peer sent bytes that are not a message.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

/// Splits a stream into messages of at most a given length.
#[derive(Debug)]
pub struct Codec {
    max: u32,
    preface: bool,
}

impl Codec {
    /// A codec at the beginning of a connection.
    #[must_use]
    pub const fn new(max: u32) -> Self {
        Self { max, preface: false }
    }

    /// Sets the maximum length of a message, header included.
    pub const fn set_max(&mut self, max: u32) {
        self.max = max;
    }

    /// Whether the peer's preface was received.
    #[must_use]
    pub const fn has_preface(&self) -> bool {
        self.preface
    }

    /// The next message, if it is complete; otherwise reserves room in `buf` for more of it.
    ///
    /// # Errors
    /// [`ProtocolError`] for bytes that cannot become a message.
    pub fn next(&mut self, buf: &mut BytesMut) -> Result<Option<Envelope>, ProtocolError> {
        if !self.preface {
            let Some(preface) = buf.first_chunk::<8>().copied() else {
                return check_preface(buf).map(|()| None);
            };
            check_preface(&preface)?;
            buf.advance(preface.len());
            self.preface = true;
        }
        let Some(&[a, b, c, d]) = buf.first_chunk::<LEN_FIELD>() else { return Ok(None) };
        let len = u32::from_le_bytes([a, b, c, d]);
        if (len as usize) < HEADER_LEN - LEN_FIELD {
            return Err(ProtocolError::TooShort(len));
        }
        let size = u64::from(len) + LEN_FIELD as u64;
        if size > u64::from(self.max) {
            return Err(ProtocolError::TooLarge { size, max: u64::from(self.max) });
        }
        let size = size as usize;
        // The flags are checked as soon as the header is there, not after megabytes of body.
        let Some(header) = buf.first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let header = parse_header(header)?;
        if buf.len() < size {
            let missing = size - buf.len();
            buf.reserve(missing.min(buf.len().max(READ_AHEAD_MAX)));
            return Ok(None);
        }
        let mut message = buf.split_to(size).freeze();
        message.advance(HEADER_LEN);
        Ok(Some(Envelope { header, body: message }))
    }
}

impl Decoder for Codec {
    type Item = Envelope;
    type Error = CodecError;

    fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<Envelope>, CodecError> {
        Ok(self.next(buf)?)
    }
}

fn parse_header(bytes: &[u8; HEADER_LEN]) -> Result<Header, ProtocolError> {
    let mut rest = &bytes[LEN_FIELD..];
    let header = Header {
        op: rest.get_u8(),
        flags: rest.get_u8(),
        code: rest.get_u16_le(),
        corr: rest.get_u32_le(),
        sub: rest.get_u32_le(),
    };
    let both = FLAG_RESPONSE | FLAG_PUSH;
    if header.flags & !FLAGS_KNOWN != 0 || header.flags & both == both {
        return Err(ProtocolError::Malformed { op: "header", what: "flags" });
    }
    Ok(header)
}

/// Checks as much of a preface as was received, so that another protocol is detected at once.
fn check_preface(bytes: &[u8]) -> Result<(), ProtocolError> {
    let magic = bytes.len().min(4);
    if bytes[..magic] != PREFACE[..magic] {
        let mut seen = [0; 8];
        seen.iter_mut().zip(bytes).for_each(|(to, &from)| *to = from);
        return Err(ProtocolError::Preface(seen));
    }
    match bytes.get(4) {
        Some(&theirs) if theirs != MAJOR => Err(ProtocolError::Version { theirs, ours: MAJOR }),
        _ => Ok(()),
    }
}

/// Reserves room to read into: little on an idle connection, more under load.
pub(crate) fn make_room(buf: &mut BytesMut, last_read: usize) {
    let want = (last_read * 2).clamp(READ_MIN, READ_AHEAD_MAX);
    if buf.capacity() - buf.len() < want / 2 {
        buf.reserve(want);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gather::Gather;

    fn message(body: usize) -> Vec<u8> {
        let mut out = Gather::default();
        out.put_raw(&PREFACE);
        out.begin(Header { op: 3, flags: FLAG_RESPONSE, code: 9, corr: 7, sub: 5 });
        out.put_slice(&vec![1; body]);
        out.finish();
        out.take_all().to_vec()
    }

    #[test]
    fn messages_come_whole_however_the_bytes_come() {
        let bytes = message(40);
        for step in 1..bytes.len() {
            let (mut codec, mut buf, mut got) = (Codec::new(1024), BytesMut::new(), Vec::new());
            for piece in bytes.chunks(step) {
                buf.extend_from_slice(piece);
                got.extend(codec.decode(&mut buf).unwrap());
            }
            assert_eq!(got.len(), 1, "{step}");
            let Header { op, flags, code, corr, sub } = got[0].header;
            assert_eq!((op, flags, code, corr, sub), (3, FLAG_RESPONSE, 9, 7, 5));
            assert_eq!(got[0].body.len(), 40);
        }
    }

    #[test]
    fn the_limit_is_exact_and_announced_bytes_take_no_memory() {
        for (body, fits) in [(47, true), (48, true), (49, false)] {
            let mut buf = BytesMut::from(&message(body)[..]);
            assert_eq!(Codec::new(64).next(&mut buf).is_ok(), fits, "{body}");
        }
        let mut buf = BytesMut::from(&message(0)[..]);
        buf[8..12].copy_from_slice(&(16u32 << 20).to_le_bytes());
        assert_eq!(Codec::new(u32::MAX).next(&mut buf).unwrap(), None);
        assert!(buf.capacity() <= 2 * READ_AHEAD_MAX);
        for len in [0u32, 1, 11, u32::MAX, u32::MAX - 3, 1 << 31] {
            buf[..4].copy_from_slice(&len.to_le_bytes());
            let mut codec = Codec { max: 64, preface: true };
            assert!(codec.next(&mut buf).is_err(), "{len}");
        }
    }

    #[test]
    fn other_protocols_and_flags_are_refused_early() {
        for bad in [&b"G"[..], b"XSQ", b"XSP\x00\x02", b"\x16\x03\x01"] {
            assert!(Codec::new(64).next(&mut BytesMut::from(bad)).is_err(), "{bad:?}");
        }
        for flags in [8, 0x80, FLAG_PUSH | FLAG_RESPONSE] {
            let mut bytes = message(0);
            bytes[8 + 5] = flags;
            assert!(Codec::new(64).next(&mut BytesMut::from(&bytes[..])).is_err(), "{flags}");
        }
    }
}
