//! The server: listeners and connections over a [`Service`]. It listens on Unix sockets, on
//! loopback TCP, and with TLS on any address.

mod admission;
mod census;
mod connection;
mod desk;
mod door;
mod feed;
mod hosting;
mod lag;
mod last_few;
mod listener;
mod listing;
mod long_work;
mod mailbox;
mod making;
mod meter;
mod news;
mod room;
mod shelf;
mod transfer;
mod work;

use std::fmt;
use std::future::{Future, ready};
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use admission::Admission;
pub use listener::Listener;
pub(crate) use meter::CLASSES;
pub use meter::ServerStats;

use self::admission::Visitor;
use self::census::{Census, Connections};
use self::connection::Connection;
use self::door::{Door, DoorSlot, Shortage};
use self::listener::Accepted;
use self::mailbox::{Mail, Mailbox};
use self::meter::Meter;
use self::room::Room;
use crate::auth::TokenGuard;
use crate::limits::{CONNECTIONS_MAX, HELLO_WAIT, WATCH_EVERY};
use crate::service::Service;
use crate::tls::ServerTls;

/// Pause of accepting after an error such as "too many open files".
const ACCEPT_REST: Duration = Duration::from_millis(50);
/// Time to wait for a free connection before another one must give way.
const ROOM_REST: Duration = Duration::from_millis(50);
/// Time beyond the drain for connections to send their last message.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// Options of a server.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// The server's name in HELLO; at most 255 bytes.
    pub name: String,
    /// Time for connections to end when the server stops.
    pub drain: Duration,
    /// Maximum concurrent connections, at most [`CONNECTIONS_MAX`]; further ones wait until one
    /// ends. From 2 on, a sixteenth of them, at least 1 and at most
    /// [`LOCAL_CONNECTIONS_MAX`](crate::limits::LOCAL_CONNECTIONS_MAX), are for Unix sockets alone.
    pub connections: usize,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            name: concat!("xs/", env!("CARGO_PKG_VERSION")).to_owned(),
            drain: Duration::from_secs(5),
            connections: CONNECTIONS_MAX,
        }
    }
}

/// A server of a store. Clones share it. It lives on in its listeners and connections: dropping
/// every clone stops nothing, only [`stop`](Self::stop) does.
#[derive(Clone)]
pub struct Server(Arc<Shared>);

struct Shared {
    service: Arc<dyn Service>,
    options: ServerOptions,
    /// Cancelled when the server stops accepting.
    stopping: CancellationToken,
    tasks: TaskTracker,
    room: Room,
    door: Arc<Door>,
    connections: Arc<Connections>,
    next_connection: AtomicU64,
    meter: Arc<Meter>,
    /// Notified to check files of tokens and certificates at once.
    look: Notify,
}

impl Server {
    /// A server without listeners.
    pub fn new(service: Arc<dyn Service>, options: ServerOptions) -> Self {
        let room = Room::of(options.connections);
        Self(Arc::new(Shared {
            service,
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
            door: Door::of(room.places()),
            room,
            options,
            connections: Arc::default(),
            next_connection: AtomicU64::new(0),
            meter: Arc::default(),
            look: Notify::new(),
        }))
    }

    /// Accepts connections in a task of its own, until the server stops. They are admitted by a
    /// role or by tokens; the files of tokens and certificates are checked every second, and
    /// reloaded when they change.
    pub fn listen(&self, listener: Listener, admission: impl Into<Admission>) {
        let (server, admission) = (self.clone(), admission.into());
        self.0.tasks.spawn(async move {
            let stopping = server.0.stopping.clone();
            let watch = server.watch(&listener, &admission);
            let accept = server.accept(&listener, &admission);
            stopping.run_until_cancelled(async { tokio::join!(watch, accept) }).await;
        });
    }

    /// Checks the files of tokens and certificates at once.
    pub fn look_at_files(&self) {
        self.0.look.notify_waiters();
    }

    async fn watch(&self, listener: &Listener, admission: &Admission) {
        let guard = match admission {
            Admission::Token { guard, .. } => Some(guard),
            Admission::Role(_) | Admission::Alone(_) => None,
        };
        // Each at its own pace: files that cannot be read in time hold up no others.
        tokio::join!(
            async {
                if let Some(guard) = guard {
                    self.watch_tokens(guard).await;
                }
            },
            async {
                if let Some(tls) = listener.tls() {
                    self.watch_certificate(tls).await;
                }
            },
        );
    }

    async fn watch_tokens(&self, guard: &Arc<TokenGuard>) {
        let mut version = guard.refresh_aside().await;
        loop {
            self.next_look().await;
            let found = guard.refresh_aside().await;
            if std::mem::replace(&mut version, found) != found {
                for mailbox in self.0.connections.lock().values() {
                    mailbox.post(Mail::Recheck);
                }
            }
        }
    }

    async fn watch_certificate(&self, tls: &ServerTls) {
        loop {
            self.next_look().await;
            let tls = tls.clone();
            // It fails only by a panic, which was printed.
            match tokio::task::spawn_blocking(move || tls.refresh()).await.unwrap_or(Ok(false)) {
                Ok(false) => {}
                Ok(true) => tracing::info!("the certificate has changed"),
                Err(error) => {
                    tracing::error!(%error, "the changed certificate is not taken; the last one holds");
                }
            }
        }
    }

    /// Returns when the files are to be checked again.
    async fn next_look(&self) {
        // Both are a reason.
        let _ = tokio::time::timeout(WATCH_EVERY, self.0.look.notified()).await;
    }

    async fn accept(&self, listener: &Listener, admission: &Admission) {
        let visitor = |peer: Option<IpAddr>| Visitor::new(admission.clone(), peer);
        let mut shortage = Shortage::default();
        loop {
            let accepted = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, address = %listener.address(), "cannot accept");
                    tokio::time::sleep(ACCEPT_REST).await;
                    continue;
                }
            };
            // Room is made only now, when a connection has arrived. At the limit it waits here,
            // with others behind it in the backlog.
            let is_local = matches!(accepted, Accepted::Unix(_));
            let Some(permit) = self.room(is_local, &mut shortage).await else { return };
            let permit = Some(permit);
            match accepted {
                Accepted::Unix(stream) => {
                    drop(self.serve(ready(Ok(stream)), visitor(None), permit));
                }
                Accepted::Tcp(stream, peer) => {
                    drop(self.serve(ready(Ok(stream)), visitor(Some(peer)), permit));
                }
                Accepted::Tls(stream, peer, acceptor) => {
                    let stream = async move {
                        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
                        tokio::time::timeout(HELLO_WAIT, acceptor.accept(stream))
                            .await
                            .map_err(late)?
                    };
                    drop(self.serve(stream, visitor(Some(peer)), permit));
                }
            }
            // Yield to earlier connections: a burst with pending HELLOs must not be accepted faster
            // than it is greeted, or some of it might have to give way.
            tokio::task::yield_now().await;
        }
    }

    /// A permit for one more connection. If there is none, connections waiting before HELLO give
    /// way.
    async fn room(&self, is_local: bool, shortage: &mut Shortage) -> Option<OwnedSemaphorePermit> {
        let Shared { room, door, meter, .. } = &*self.0;
        if let Some(permit) = room.try_take(is_local) {
            return Some(permit);
        }
        if shortage.is_new(Instant::now().into_std()) {
            let connections = room.places();
            tracing::warn!(connections, "no connection is free; more clients wait for one to end");
        }
        let mut free = pin!(room.take(is_local));
        loop {
            let now = Instant::now().into_std();
            meter.gave_way(usize::from(door.make_room(shortage.is_long(now), now)));
            // The connection that was to give way may have said HELLO meanwhile, and others have
            // had their time.
            if let Ok(permit) = tokio::time::timeout(ROOM_REST, &mut free).await {
                return permit;
            }
        }
    }

    /// Serves a stream that is already connected, in a task of its own, which ends with it.
    pub fn adopt<S>(&self, stream: S, admission: impl Into<Admission>) -> JoinHandle<()>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        self.serve(ready(Ok(stream)), Visitor::new(admission.into(), None), None)
    }

    /// Serves the result of `stream`, which may need a handshake. A connection that was accepted
    /// has a permit, and waits at the door until it has said HELLO.
    fn serve<F, S>(
        &self,
        stream: F,
        mut visitor: Visitor,
        permit: Option<OwnedSemaphorePermit>,
    ) -> JoinHandle<()>
    where
        F: Future<Output = io::Result<S>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let shared = Arc::clone(&self.0);
        let mailbox = Arc::new(Mailbox::among(&shared.connections));
        shared.meter.accepted();
        if permit.is_some() {
            let (free, now) = (shared.room.free(), Instant::now().into_std());
            let (slot, gave_way) = shared.door.enter(visitor.peer, &mailbox, free, now);
            visitor.slot = Some(slot);
            shared.meter.gave_way(gave_way);
        }
        let number = shared.next_connection.fetch_add(1, Ordering::Relaxed);
        shared.connections.lock().insert(number, Arc::clone(&mailbox));
        if shared.stopping.is_cancelled() {
            mailbox.post(Mail::Drain(shared.options.drain));
        }
        self.0.tasks.spawn(async move {
            let registered = Registered { shared, number };
            let peer = visitor.peer;
            let run = async {
                let Shared { service, options, meter, stopping, .. } = &*registered.shared;
                let stream = tokio::select! {
                    biased;
                    stream = stream => stream.inspect_err(|_| meter.handshake_failed())?,
                    // Nothing was sent yet: an unfinished handshake is not waited for.
                    () = stopping.cancelled() => return Ok(()),
                    () = DoorSlot::given_way(visitor.slot.as_ref()) => return Ok(()),
                };
                let (service, meter) = (Arc::clone(service), Arc::clone(meter));
                let name = &options.name;
                Connection::new(stream, visitor, name, service, mailbox, meter).run().await
            };
            if let Err(error) = run.await {
                let peer = peer.map(tracing::field::display);
                tracing::debug!(%error, connection = number, peer, "connection ended");
            }
            drop((registered, permit));
        })
    }

    /// Number of current connections.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.0.connections.lock().len()
    }

    /// Statistics so far.
    #[must_use]
    pub fn stats(&self) -> ServerStats {
        let head = self.0.service.identity().head;
        self.0.meter.snapshot(&Census::of(&self.0.connections, head))
    }

    /// Stops: accepts no more connections, sends GOAWAY to all, and returns when the last one has
    /// ended or the drain time has passed.
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

/// Unregisters a connection when its task ends, even by a panic of the service.
struct Registered {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.shared.connections.lock().remove(&self.number);
    }
}
