//! The server: listeners and connections over a [`Service`]. It listens on Unix sockets and on
//! loopback TCP and on nothing else.

mod census;
mod connection;
mod desk;
mod feed;
mod lag;
mod listener;
mod listing;
mod mailbox;
mod news;
mod transfer;
mod work;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use listener::Listener;

use self::census::Connections;
use self::connection::Connection;
use self::listener::Accepted;
use self::mailbox::{Mail, Mailbox};
use crate::limits::CONNECTIONS_MAX;
use crate::message::Role;
use crate::service::Service;

/// How long accepting rests after an error such as "too many open files".
const ACCEPT_REST: Duration = Duration::from_millis(50);
/// Time beyond the drain for connections to say their last word.
const STOP_GRACE: Duration = Duration::from_secs(2);

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

/// Serves a store. Clones share it.
#[derive(Clone)]
pub struct Server(Arc<Shared>);

struct Shared {
    service: Arc<dyn Service>,
    options: ServerOptions,
    /// Cancelled when the server stops accepting.
    stopping: CancellationToken,
    tasks: TaskTracker,
    /// Permits for connections.
    room: Arc<Semaphore>,
    connections: Arc<Connections>,
    next_connection: AtomicU64,
}

impl Server {
    /// A server without listeners.
    pub fn new(service: Arc<dyn Service>, options: ServerOptions) -> Self {
        Self(Arc::new(Shared {
            service,
            options,
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
            room: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            connections: Arc::default(),
            next_connection: AtomicU64::new(0),
        }))
    }

    /// Accepts connections with a role in a task of its own, until the server stops.
    pub fn listen(&self, listener: Listener, role: Role) {
        let server = self.clone();
        self.0.tasks.spawn(async move {
            let stopping = server.0.stopping.clone();
            stopping.run_until_cancelled(server.accept(&listener, role)).await;
        });
    }

    async fn accept(&self, listener: &Listener, role: Role) {
        loop {
            // At the limit, connections wait in the backlog rather than be refused.
            let Ok(permit) = Arc::clone(&self.0.room).acquire_owned().await else { return };
            match listener.accept().await {
                Ok(Accepted::Unix(stream)) => drop(self.serve(stream, role, permit)),
                Ok(Accepted::Tcp(stream)) => drop(self.serve(stream, role, permit)),
                Err(error) => {
                    tracing::warn!(%error, address = %listener.address(), "cannot accept");
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            }
        }
    }

    /// Serves a stream that is connected already, in a task of its own, which ends with it.
    pub fn adopt<S>(&self, stream: S, role: Role) -> JoinHandle<()>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        self.serve(stream, role, ())
    }

    fn serve<S, P>(&self, stream: S, role: Role, permit: P) -> JoinHandle<()>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
        P: Send + 'static,
    {
        let shared = Arc::clone(&self.0);
        let mailbox = Arc::new(Mailbox::among(&shared.connections));
        let number = shared.next_connection.fetch_add(1, Ordering::Relaxed);
        shared.connections.lock().insert(number, Arc::clone(&mailbox));
        if shared.stopping.is_cancelled() {
            mailbox.post(Mail::Drain(shared.options.drain));
        }
        let service = Arc::clone(&shared.service);
        let connection =
            Connection::new(stream, role, &shared.options.name, service, Arc::clone(&mailbox));
        self.0.tasks.spawn(async move {
            let registered = Registered { shared, number };
            if let Err(error) = connection.run().await {
                tracing::debug!(%error, connection = number, "connection ended");
            }
            drop((registered, permit));
        })
    }

    /// Connections at present.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.0.connections.lock().len()
    }

    /// Stops: no new connections, GOAWAY to all, and returns when the last has ended or the drain
    /// time has passed.
    pub async fn stop(&self) {
        let shared = &self.0;
        shared.stopping.cancel();
        for mailbox in shared.connections.lock().values() {
            mailbox.post(Mail::Drain(shared.options.drain));
        }
        shared.tasks.close();
        let limit = shared.options.drain + STOP_GRACE;
        if tokio::time::timeout(limit, shared.tasks.wait()).await.is_err() {
            tracing::warn!(left = self.connections(), "connections did not end in time");
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("connections", &self.connections()).finish_non_exhaustive()
    }
}

/// Takes a connection off the list when its task ends, also by a panic of the service.
struct Registered {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.shared.connections.lock().remove(&self.number);
    }
}
