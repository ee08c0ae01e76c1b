//! A relay to a server that can be cut and closed, like a network or a killed process.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::BytesMut;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional, split,
};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};
use xs_protocol::codec::{Codec, Envelope, PREFACE};
use xs_protocol::{Address, Op};

use crate::raw::message;

pub(crate) struct Relay {
    path: PathBuf,
    to: PathBuf,
    listening: Option<JoinHandle<()>>,
    lines: Arc<Mutex<Vec<AbortHandle>>>,
    /// Number of connections still to be cut after the answer to their SUBSCRIBE.
    cuts: Arc<AtomicUsize>,
    /// Whether the answer to the next CURSOR_SET is still to be lost.
    loses: Arc<AtomicBool>,
    /// Whether connections are let through at once.
    gate: watch::Sender<bool>,
    _dir: TempDir,
}

impl Relay {
    /// A relay to a server that listens on a Unix socket.
    pub(crate) fn before(server: &Address) -> Self {
        let Address::Unix(to) = server.clone() else { panic!("{server} is no Unix socket") };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("xs.sock");
        let (lines, cuts, loses) = (Arc::default(), Arc::default(), Arc::default());
        let gate = watch::Sender::new(true);
        let mut relay = Self { path, to, listening: None, lines, cuts, loses, gate, _dir: dir };
        relay.open();
        relay
    }

    pub(crate) fn address(&self) -> Address {
        Address::Unix(self.path.clone())
    }

    /// Lets connections through.
    pub(crate) fn open(&mut self) {
        let listener = UnixListener::bind(&self.path).unwrap();
        let (to, lines) = (self.to.clone(), Arc::clone(&self.lines));
        let (cuts, loses) = (Arc::clone(&self.cuts), Arc::clone(&self.loses));
        let gate = self.gate.clone();
        self.listening = Some(tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let to = to.clone();
                let less = |left: usize| left.checked_sub(1);
                let cut = cuts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok();
                let (loses, gate) = (Arc::clone(&loses), gate.clone());
                let line = tokio::spawn(async move {
                    let _ = gate.subscribe().wait_for(|open| *open).await;
                    // When the server is down, the connection ends at once.
                    let Ok(mut far) = UnixStream::connect(to).await else { return };
                    let _ = match cut {
                        true => {
                            up_to(near, far, true, |envelope| {
                                envelope.header.op == Op::Subscribe as u8
                                    && envelope.header.is_response()
                            })
                            .await
                        }
                        false if loses.load(Ordering::Relaxed) => {
                            up_to(near, far, false, |envelope| {
                                let is_it = envelope.header.op == Op::CursorSet as u8
                                    && loses.swap(false, Ordering::Relaxed);
                                is_it && gate.send_replace(false)
                            })
                            .await
                        }
                        false => copy_bidirectional(&mut near, &mut far).await.map(drop),
                    };
                });
                lines.lock().push(line.abort_handle());
            }
        }));
    }

    /// Cuts all connections; the next ones are let through.
    pub(crate) fn cut(&self) {
        self.lines.lock().drain(..).for_each(|line| line.abort());
    }

    /// Cuts the next `connections` connections right after the answer to their SUBSCRIBE.
    pub(crate) fn cut_behind_subscribe(&self, connections: usize) {
        self.cuts.store(connections, Ordering::Relaxed);
    }

    /// Whether all of these cuts are done.
    pub(crate) fn has_cut(&self) -> bool {
        self.cuts.load(Ordering::Relaxed) == 0
    }

    /// Cuts the connection right before the answer to the next CURSOR_SET. Later ones wait until
    /// [`go_on`](Self::go_on).
    pub(crate) fn lose_cursor_set(&self) {
        self.loses.store(true, Ordering::Relaxed);
    }

    /// Waits until that answer is lost.
    pub(crate) async fn lost(&self) {
        self.gate.subscribe().wait_for(|open| !open).await.unwrap();
    }

    /// Lets connections through again.
    pub(crate) fn go_on(&self) {
        self.gate.send_replace(true);
    }

    /// Accepts no more connections.
    pub(crate) async fn close(&mut self) {
        if let Some(listening) = self.listening.take() {
            listening.abort();
            let _ = listening.await;
            std::fs::remove_file(&self.path).unwrap();
        }
        self.cut();
    }
}

/// Relays everything up to a certain message of the server, including it or not.
pub(crate) async fn up_to(
    near: impl AsyncRead + AsyncWrite,
    far: impl AsyncRead + AsyncWrite,
    with_it: bool,
    is_last: impl Fn(&Envelope) -> bool,
) -> io::Result<()> {
    let ((mut asks, mut answered), (mut answers, mut asked)) = (split(near), split(far));
    let asking = tokio::io::copy(&mut asks, &mut asked);
    let answering = async {
        let (mut codec, mut inbox) = (Codec::new(u32::MAX), BytesMut::new());
        answered.write_all(&PREFACE).await?;
        while answers.read_buf(&mut inbox).await? > 0 {
            while let Ok(Some(envelope)) = codec.next(&mut inbox) {
                let is_last = is_last(&envelope);
                if with_it || !is_last {
                    answered.write_all(&message(envelope.header, &envelope.body)).await?;
                }
                if is_last {
                    return Ok(());
                }
            }
        }
        Ok(())
    };
    tokio::select! {
        ended = asking => ended.map(drop),
        ended = answering => ended,
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(listening) = &self.listening {
            listening.abort();
        }
        self.cut();
    }
}
