//! A server over a store in memory, on a real socket, and its clients.

use std::future::Future;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tempfile::TempDir;
use xs_engine::{NewFrame, Topic};
use xs_protocol::{
    Address, Admission, AppendRequest, Client, ClientOptions, Listener, Role, Server,
    ServerOptions, limits,
};

use crate::memory::Memory;

/// Time after which a waiting test has failed.
const PATIENCE: Duration = Duration::from_secs(120);
/// Time that a stopping server gives its connections: only those that stay use it.
pub(crate) const DRAIN: Duration = Duration::from_secs(20);

pub(crate) struct Rig {
    pub(crate) memory: Memory,
    pub(crate) server: Server,
    pub(crate) address: Address,
    _dir: TempDir,
}

impl Rig {
    /// A server on a Unix socket, all of whose connections have the role.
    pub(crate) async fn unix(role: Role) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = Address::of_path(dir.path());
        Self::on(address, role, dir).await
    }

    /// A server on a loopback port.
    pub(crate) async fn tcp() -> Self {
        let address = Address::parse("127.0.0.1:0").unwrap();
        Self::on(address, Role::Admin, tempfile::tempdir().unwrap()).await
    }

    async fn on(address: Address, role: Role, dir: TempDir) -> Self {
        let memory = Memory::default();
        let options = ServerOptions { drain: DRAIN, ..ServerOptions::default() };
        let server = Server::new(Arc::new(memory.clone()), options);
        let listener = Listener::bind(&address).await.unwrap();
        let address = listener.address().clone();
        server.listen(listener, role);
        Self { memory, server, address, _dir: dir }
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(&self.address, ClientOptions::default()).await.unwrap()
    }

    /// A client over an in-memory stream that the server has adopted.
    pub(crate) async fn connect_as(&self, admission: impl Into<Admission>) -> Client {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        self.server.adopt(theirs, admission);
        Client::over(ours, ClientOptions::default()).await.unwrap()
    }
}

/// Fails a test that waits in vain.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it did not happen in time")
}

/// Waits for a state that other tasks bring about.
pub(crate) async fn until(is: impl Fn() -> bool) {
    soon(async {
        while !is() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// A clock that stands still, however long the machine takes, but for [`pass`](Self::pass).
pub(crate) struct Clock(#[expect(dead_code, reason = "dropped with it")] mpsc::Sender<()>);

impl Clock {
    pub(crate) fn stopped() -> Self {
        tokio::time::pause();
        // A paused clock goes on when all tasks wait, but not while blocking work runs. A test that
        // waits in vain gets it back, so that it fails.
        let (sender, dropped) = mpsc::channel();
        tokio::task::spawn_blocking(move || dropped.recv_timeout(PATIENCE));
        Self(sender)
    }

    /// Lets time pass until the connections that wait for HELLO have had theirs.
    pub(crate) async fn pass(&self) {
        tokio::time::advance(limits::WAITING_TIME).await;
    }
}

/// A batch of one frame.
pub(crate) fn one(topic: &str) -> AppendRequest {
    AppendRequest::frames(vec![NewFrame::new(Topic::parse(topic).unwrap())])
}
