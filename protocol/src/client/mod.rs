//! The client: one connection, any number of requests and streams on it.

mod blob;
mod core;
mod dial;
mod export;
mod follow;
mod inlet;
mod place;
mod relay;
mod reply;
mod requests;
mod retry;
mod streams;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

pub use blob::BlobStream;
pub use export::Export;
pub use follow::{Follow, FollowEvent, FollowOptions};
pub use relay::{Relay, RelayEnd};
pub use reply::Reply;
pub use retry::Retry;
pub use streams::{CallStream, FrameStream, Subscription};

use self::core::Handle;
use self::dial::{Dialled, dial};
use crate::address::Address;
use crate::auth::Secret;
use crate::error::{ClientError, ProtocolError};
use crate::limits::CREDIT_DEFAULT;
use crate::message::{GoAway, HelloReply, OpRange, PeerLimits, Response, Resume, Role};
use crate::tls::ClientTls;
use xs_engine::StoreUuid;

/// How to connect.
#[derive(Clone)]
pub struct ClientOptions {
    /// The name of this client in the server's log; at most 255 bytes.
    pub name: String,
    /// A token, where the server asks for one.
    pub token: Option<Secret>,
    /// Which servers to trust over TLS; without it none.
    pub tls: Option<ClientTls>,
    /// Time until the connection is made and HELLO answered.
    pub timeout: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            name: concat!("xs-rust/", env!("CARGO_PKG_VERSION")).to_owned(),
            token: None,
            tls: None,
            timeout: Duration::from_secs(10),
        }
    }
}

impl fmt::Debug for ClientOptions {
    /// Options may end up in logs: a token shows only that it is set.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientOptions")
            .field("name", &self.name)
            .field("token", &self.token)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// What the server said in HELLO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerInfo {
    /// The store's uuid.
    pub uuid: StoreUuid,
    /// The store's epoch.
    pub epoch: u64,
    /// The offset of the next frame at the time of HELLO.
    pub head: u64,
    /// The server's name and version.
    pub name: String,
    /// The protocol version in use.
    pub version: u16,
    /// The role of this connection.
    pub role: Role,
    /// The server's limits.
    pub limits: PeerLimits,
    /// The ops the server serves.
    pub ops: Vec<OpRange>,
}

impl ServerInfo {
    /// The store and epoch in which offsets of this connection hold. A later subscription that
    /// starts at one of them passes it on.
    #[must_use]
    pub const fn resume(&self) -> Resume {
        Resume { store: self.uuid, epoch: self.epoch }
    }
}

impl From<HelloReply> for ServerInfo {
    fn from(hello: HelloReply) -> Self {
        Self {
            uuid: hello.store.uuid,
            epoch: hello.store.epoch,
            head: hello.store.head,
            name: hello.name,
            version: hello.version,
            role: hello.role,
            limits: hello.limits,
            ops: hello.ops,
        }
    }
}

/// A connection to a server. Clones share it; it closes when the last clone and the last stream are
/// dropped. Requests may be made from any number of tasks.
#[derive(Clone)]
pub struct Client {
    handle: Arc<Handle>,
    server: Arc<ServerInfo>,
    /// Credit of calls and downloads, in bytes.
    credit: u32,
}

impl Client {
    /// Connects to a server. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`ClientError`] when nothing listens there or HELLO fails.
    pub async fn connect(address: &Address, options: ClientOptions) -> Result<Self, ClientError> {
        let timeout = options.timeout;
        let connect = async {
            match dial(address, &options).await? {
                Dialled::Unix(stream) => {
                    let (reader, writer) = stream.into_split();
                    Self::hello(reader, writer, options).await
                }
                Dialled::Tcp(stream) => {
                    let (reader, writer) = stream.into_split();
                    Self::hello(reader, writer, options).await
                }
                Dialled::Tls(stream) => {
                    let (reader, writer) = tokio::io::split(stream);
                    Self::hello(reader, writer, options).await
                }
            }
        };
        tokio::time::timeout(timeout, connect).await.map_err(|_| dial::late(address))?
    }

    /// Uses a stream that is connected already, for example one end of a socket pair. Must be
    /// called within a tokio runtime.
    ///
    /// # Errors
    /// [`ClientError`] when HELLO fails.
    pub async fn over<S>(stream: S, options: ClientOptions) -> Result<Self, ClientError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (reader, writer) = tokio::io::split(stream);
        let timeout = options.timeout;
        let late = |_| ClientError::Disconnected("HELLO was not answered in time".into());
        tokio::time::timeout(timeout, Self::hello(reader, writer, options)).await.map_err(late)?
    }

    async fn hello<R, W>(reader: R, writer: W, options: ClientOptions) -> Result<Self, ClientError>
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + 'static,
    {
        let token = options.token.map(Secret::into_text).unwrap_or_default();
        let (handle, answer) = self::core::start(reader, writer, options.name, token)?;
        match answer.await.unwrap_or_else(|_| Err(self::core::gone()))? {
            Response::Hello(hello) => {
                handle.set_server_limits(hello.limits, &hello.ops);
                Ok(Self { handle, server: Arc::new(hello.into()), credit: CREDIT_DEFAULT })
            }
            _ => Err(ProtocolError::Unexpected("another answer than HELLO").into()),
        }
    }

    /// This connection with `credit` bytes of credit for each call and each download made through
    /// this handle: how far the server may send ahead of the reader. A subscription has its own, in
    /// [`SubscribeOptions`](crate::SubscribeOptions).
    #[must_use]
    pub const fn with_credit(mut self, credit: u32) -> Self {
        self.credit = credit;
        self
    }

    /// What the server said in HELLO.
    #[must_use]
    pub fn server(&self) -> &ServerInfo {
        &self.server
    }

    /// Waits until the connection is closed and returns the reason. Pending requests, and later
    /// ones, fail with [`ClientError::Disconnected`], whatever the reason.
    pub async fn closed(&self) -> ClientError {
        self.handle.closed().await
    }

    /// The server's GOAWAY, sent when it begins to stop; `None` before.
    #[must_use]
    pub fn going_away(&self) -> Option<GoAway> {
        self.handle.going_away()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("server", &self.server).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_do_not_print_their_token() {
        let token = Some(Secret::from("xst_hunter2".to_owned()));
        let printed = format!("{:?}", ClientOptions { token, ..ClientOptions::default() });
        assert!(printed.contains("token") && !printed.contains("hunter2"), "{printed}");
    }
}
