//! The server: listeners and connections over a [`Service`].

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::address::Address;
use crate::message::Role;
use crate::service::Service;

/// How a server serves.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// What HELLO calls this server; at most 255 bytes.
    pub name: String,
    /// Time that connections have to end when the server stops.
    pub drain: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            name: concat!("xs/", env!("CARGO_PKG_VERSION")).to_owned(),
            drain: Duration::from_secs(5),
        }
    }
}

/// A socket that accepts connections.
#[derive(Debug)]
pub struct Listener {}

impl Listener {
    /// Binds a Unix socket (mode 0600; a stale file is replaced) or a loopback TCP address.
    ///
    /// # Errors
    /// An error of the system; `InvalidInput` for an address beyond loopback.
    pub async fn bind(address: &Address) -> io::Result<Self> {
        let _ = address;
        todo!()
    }

    /// Where it listens, with the port that was chosen.
    #[must_use]
    pub fn address(&self) -> &Address {
        todo!()
    }
}

/// Serves a store. Clones share it.
#[derive(Clone)]
pub struct Server {}

impl Server {
    /// A server without listeners.
    pub fn new(service: Arc<dyn Service>, options: ServerOptions) -> Self {
        let _ = (service, options);
        todo!()
    }

    /// Accepts connections with a role in a task of its own, until the server stops.
    pub fn listen(&self, listener: Listener, role: Role) {
        let _ = (listener, role);
        todo!()
    }

    /// Serves a stream that is connected already, in a task of its own; `done` of the returned
    /// handle is when it has ended.
    pub fn adopt<S>(&self, stream: S, role: Role) -> tokio::task::JoinHandle<()>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let _ = (stream, role);
        todo!()
    }

    /// Stops: no new connections, GOAWAY to all, and returns when the last has ended or the drain
    /// time has passed.
    pub async fn stop(&self) {
        todo!()
    }
}
