//! A way to a server that can be cut and closed, as a network or a killed process does it.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{AbortHandle, JoinHandle};
use xs_protocol::Address;

pub(crate) struct Relay {
    path: PathBuf,
    to: PathBuf,
    listening: Option<JoinHandle<()>>,
    lines: Arc<Mutex<Vec<AbortHandle>>>,
    _dir: TempDir,
}

impl Relay {
    /// Before a server that listens on a Unix socket.
    pub(crate) fn before(server: &Address) -> Self {
        let Address::Unix(to) = server.clone() else { panic!("{server} is no Unix socket") };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("xs.sock");
        let mut relay = Self { path, to, listening: None, lines: Arc::default(), _dir: dir };
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
        self.listening = Some(tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let to = to.clone();
                let line = tokio::spawn(async move {
                    // A server that is gone ends the connection at once.
                    let Ok(mut far) = UnixStream::connect(to).await else { return };
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
                lines.lock().push(line.abort_handle());
            }
        }));
    }

    /// Cuts all connections; the next ones are let through.
    pub(crate) fn cut(&self) {
        self.lines.lock().drain(..).for_each(|line| line.abort());
    }

    /// Lets nobody through any more.
    pub(crate) async fn close(&mut self) {
        if let Some(listening) = self.listening.take() {
            listening.abort();
            let _ = listening.await;
            std::fs::remove_file(&self.path).unwrap();
        }
        self.cut();
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
