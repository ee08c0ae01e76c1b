//! A peer that sends exactly the bytes a test wants, and reads exactly what arrives.

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use xs_protocol::codec::{Codec, Envelope, Header, PREFACE};
use xs_protocol::{Admission, Gather, Op};

use crate::rig::{Rig, soon};

/// One end of a connection, as bytes.
pub(crate) struct Raw<S = DuplexStream> {
    stream: S,
    codec: Codec,
    inbox: BytesMut,
}

/// A request of version 1.
pub(crate) fn header(op: Op, corr: u32, sub: u32) -> Header {
    Header { op: op as u8, flags: 0, code: 1, corr, sub }
}

/// The bytes of a message.
pub(crate) fn message(header: Header, body: &[u8]) -> Bytes {
    let mut out = Gather::default();
    out.begin(header);
    out.put_slice(body);
    out.finish();
    out.take_all()
}

/// The body of a HELLO.
pub(crate) fn hello_body() -> Vec<u8> {
    let mut body = Vec::new();
    for version in [1u16; 4] {
        body.extend_from_slice(&version.to_le_bytes());
    }
    body.extend_from_slice(&[0; 8]);
    body.extend_from_slice(&(2u32 << 20).to_le_bytes());
    body.extend_from_slice(&[1, 0, b'r', 0, 0]);
    body
}

impl Raw {
    /// A connection on which nothing was sent.
    pub(crate) fn silent(rig: &Rig, admission: impl Into<Admission>) -> Self {
        let (stream, theirs) = tokio::io::duplex(64 * 1024);
        rig.server.adopt(theirs, admission);
        Self::over(stream)
    }

    /// A connection after HELLO.
    pub(crate) async fn open(rig: &Rig, admission: impl Into<Admission>) -> Self {
        let mut raw = Self::silent(rig, admission);
        raw.send(&PREFACE).await;
        raw.greet().await;
        raw
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Raw<S> {
    /// A connection on which nothing was sent.
    pub(crate) fn over(stream: S) -> Self {
        Self { stream, codec: Codec::new(u32::MAX), inbox: BytesMut::new() }
    }

    /// Sends HELLO, after the preface.
    pub(crate) async fn greet(&mut self) {
        self.send(&message(header(Op::Hello, 1, 0), &hello_body())).await;
        let reply = self.receive().await.unwrap();
        assert_eq!((reply.header.op, reply.header.code, reply.header.corr), (1, 0, 1));
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        // A closed server accepts nothing more; the test checks what it sent.
        let _ = soon(self.stream.write_all(bytes)).await;
    }

    pub(crate) async fn ask(&mut self, header: Header, body: &[u8]) -> Envelope {
        self.send(&message(header, body)).await;
        self.receive().await.expect("an answer")
    }

    /// The next message; `None` when the server has closed.
    pub(crate) async fn receive(&mut self) -> Option<Envelope> {
        loop {
            if let Some(envelope) = self.codec.next(&mut self.inbox).unwrap() {
                return Some(envelope);
            }
            if soon(self.stream.read_buf(&mut self.inbox)).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// Reads up to CLOSE and returns its code. Nothing may come after it.
    pub(crate) async fn closed(&mut self) -> u16 {
        while let Some(envelope) = self.receive().await {
            if envelope.header.op == Op::Close as u8 {
                assert!(self.receive().await.is_none());
                return envelope.header.code;
            }
        }
        panic!("closed without a word");
    }
}
