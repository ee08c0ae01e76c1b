//! How much of a connection is served before others have their turn.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use xs_protocol::codec::PREFACE;
use xs_protocol::{Op, Role};

use crate::raw::{header, hello_body, message};
use crate::rig::{Rig, soon};

/// Bytes that one read brings.
const PIECE: usize = 8 * 1024;

/// A client that has said all at once, and takes whatever it is told.
struct Said {
    bytes: Vec<u8>,
    read: Arc<AtomicUsize>,
}

impl AsyncRead for Said {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = &self.bytes[self.read.load(Ordering::Relaxed)..];
        let count = left.len().min(buf.remaining()).min(PIECE);
        buf.put_slice(&left[..count]);
        self.read.fetch_add(count, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Said {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Who floods a server with requests does not keep it from others for long: a byte that is read
/// counts for four that are written, 256 KiB of which are a turn.
#[tokio::test]
async fn a_turn_ends_after_64_kib_that_were_read() {
    let rig = Rig::unix(Role::Admin).await;
    let mut bytes = [&PREFACE[..], &message(header(Op::Hello, 1, 0), &hello_body())].concat();
    for corr in 2..40_000 {
        bytes.extend_from_slice(&message(header(Op::Ping, corr, 0), &[7; 16]));
    }
    let all = bytes.len();
    let read = Arc::new(AtomicUsize::new(0));
    let task = rig.server.adopt(Said { bytes, read: Arc::clone(&read) }, Role::Admin);
    // On the one thread of this test: the connection has a turn each time that this task gives way.
    let (mut before, mut most) = (0, 0);
    soon(async {
        while !task.is_finished() {
            tokio::task::yield_now().await;
            let now = read.load(Ordering::Relaxed);
            most = most.max(now - before);
            before = now;
        }
    })
    .await;
    assert_eq!(before, all);
    assert!(most <= 64 * 1024, "{most} bytes in one turn");
    assert!(most >= 2 * PIECE, "{most} bytes in one turn");
}
