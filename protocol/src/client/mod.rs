//! The client: one connection, any number of requests and streams on it.

mod blob;
mod core;
mod streams;

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use xs_engine::limits::BATCH_RECORDS_MAX;
use xs_engine::{
    BlobHash, Bound, Cursor, CursorChange, CursorName, Frame, ReadOptions, TopicPatterns,
};

pub use blob::BlobStream;
pub use streams::{CallStream, FrameStream, Subscription};

use self::core::{Answered, Awaited, Handle};
use self::streams::Line;
use crate::address::Address;
use crate::error::{ClientError, ProtocolError};
use crate::limits::CREDIT_DEFAULT;
use crate::message::{
    AppendRequest, Appended, CallRequest, CursorSummary, GoAway, HelloReply, LastRequest, OpRange,
    PeerLimits, Request, Response, Role, SubscribeOptions, SubscribeRequest, TopicSummary,
};
use crate::socket::SocketPath;

/// How to connect.
#[derive(Clone)]
pub struct ClientOptions {
    /// What the server's log calls this client; at most 255 bytes.
    pub name: String,
    /// A token, where the server asks for one.
    pub token: Option<String>,
    /// Time until the connection is made and HELLO answered.
    pub timeout: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            name: concat!("xs-rust/", env!("CARGO_PKG_VERSION")).to_owned(),
            token: None,
            timeout: Duration::from_secs(10),
        }
    }
}

impl fmt::Debug for ClientOptions {
    /// Without the token: options end up in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientOptions")
            .field("name", &self.name)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// What the server said in HELLO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerInfo {
    /// The store's uuid.
    pub uuid: [u8; 16],
    /// The store's epoch.
    pub epoch: u64,
    /// The offset the next frame had at HELLO.
    pub head: u64,
    /// The server's name and version.
    pub name: String,
    /// The protocol version in use.
    pub version: u16,
    /// What this connection may do.
    pub role: Role,
    /// What the server accepts.
    pub limits: PeerLimits,
    /// The ops it knows.
    pub ops: Vec<OpRange>,
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

/// A connection to a server. Clones share it; it closes when the last clone and the last stream
/// are gone. Requests may be made from any number of tasks.
#[derive(Clone)]
pub struct Client {
    handle: Arc<Handle>,
    server: Arc<ServerInfo>,
}

impl Client {
    /// Connects to a server. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`ClientError`] when nobody listens there or HELLO fails.
    pub async fn connect(address: &Address, options: ClientOptions) -> Result<Self, ClientError> {
        let failed = |error: io::Error| ClientError::Connect {
            address: address.to_string(),
            kind: error.kind(),
            reason: error.to_string(),
        };
        let timeout = options.timeout;
        let connect = async {
            match address {
                Address::Unix(path) => {
                    let path = SocketPath::of(path).map_err(failed)?;
                    let stream = UnixStream::connect(path.as_path()).await.map_err(failed)?;
                    let (reader, writer) = stream.into_split();
                    Self::hello(reader, writer, options).await
                }
                Address::Tcp(socket) => {
                    let stream = TcpStream::connect(socket).await.map_err(failed)?;
                    stream.set_nodelay(true).map_err(failed)?;
                    let (reader, writer) = stream.into_split();
                    Self::hello(reader, writer, options).await
                }
            }
        };
        let late = |_| failed(io::ErrorKind::TimedOut.into());
        tokio::time::timeout(timeout, connect).await.map_err(late)?
    }

    /// Speaks over a stream that is connected already, for example one end of a socket pair. Must
    /// be called within a tokio runtime.
    ///
    /// # Errors
    /// [`ClientError`] when HELLO fails.
    pub async fn over<S>(stream: S, options: ClientOptions) -> Result<Self, ClientError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (reader, writer) = tokio::io::split(stream);
        let timeout = options.timeout;
        let late = |_| ClientError::Disconnected("HELLO was not answered in time".to_owned());
        tokio::time::timeout(timeout, Self::hello(reader, writer, options)).await.map_err(late)?
    }

    async fn hello<R, W>(reader: R, writer: W, options: ClientOptions) -> Result<Self, ClientError>
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + 'static,
    {
        let token = options.token.unwrap_or_default();
        let (handle, answer) = self::core::start(reader, writer, options.name, token)?;
        match answer.await.unwrap_or_else(|_| Err(self::core::gone()))? {
            Response::Hello(hello) => {
                handle.set_limits(hello.limits);
                Ok(Self { handle, server: Arc::new(hello.into()) })
            }
            _ => Err(ProtocolError::Unexpected("another answer than HELLO").into()),
        }
    }

    /// What the server said in HELLO.
    #[must_use]
    pub fn server(&self) -> &ServerInfo {
        &self.server
    }

    /// Appends a batch. The request is on its way when this returns, so batches are appended in the
    /// order of these calls, whenever their replies are awaited. The server stops reading at
    /// [`PeerLimits::requests`] without an answer; what is queued beyond that is held here. When
    /// the connection is lost before the answer, a batch with a key can be sent again as it is; one
    /// without may then be stored twice.
    pub fn append(&self, batch: &AppendRequest) -> Reply<Appended> {
        let records = batch.frames.len() + batch.cursors.len() + usize::from(batch.key.is_some());
        let max = self.server.limits.batch_records.min(BATCH_RECORDS_MAX as u32);
        if records > max as usize {
            return Reply::failed(
                &self.handle,
                ClientError::OverLimit {
                    what: "a batch",
                    size: records as u64,
                    max: u64::from(max),
                    advice: "append it in several batches",
                },
            );
        }
        Reply::of(&self.handle, self.handle.append(batch), |response| match response {
            Response::Appended(appended) => Some(appended),
            _ => None,
        })
    }

    /// Reads what is stored, page by page. `options.follow` is not looked at.
    #[must_use]
    pub fn fetch(&self, options: &ReadOptions) -> FrameStream {
        FrameStream::new(&self.handle, options)
    }

    /// Reads what is stored and, with `options.follow`, what is appended later.
    ///
    /// # Errors
    /// [`ClientError`] when the server refuses.
    pub async fn subscribe(
        &self,
        options: &ReadOptions,
        how: SubscribeOptions,
    ) -> Result<Subscription, ClientError> {
        let mut line = Line::open(&self.handle, how.credit);
        let request = Request::Subscribe(SubscribeRequest { options: options.clone(), how });
        let reply = Reply::ask_on(&self.handle, &request, line.sub, |response| match response {
            Response::Accepted => Some(()),
            _ => None,
        });
        match reply.await {
            Ok(()) => Ok(Subscription::new(line)),
            Err(error) => {
                line.refused();
                Err(error)
            }
        }
    }

    /// The frame at an id or an offset.
    pub fn get(&self, at: Bound) -> Reply<Option<Frame>> {
        Reply::ask(&self.handle, &Request::Get(at), |response| match response {
            Response::Frames(frames) => Some(frames.into_iter().next()),
            _ => None,
        })
    }

    /// The newest frames, in log order.
    pub fn last(&self, request: &LastRequest) -> Reply<Vec<Frame>> {
        let request = Request::Last(request.clone());
        Reply::ask(&self.handle, &request, |response| match response {
            Response::Frames(frames) => Some(frames),
            _ => None,
        })
    }

    /// The topics in use.
    pub fn topics(&self, topics: &TopicPatterns) -> Reply<Vec<TopicSummary>> {
        let request = Request::Topics(topics.clone());
        Reply::ask(&self.handle, &request, |response| match response {
            Response::Topics(topics) => Some(topics),
            _ => None,
        })
    }

    /// Puts a blob, reading `source` as the server takes it; its hash and length.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Source`] when `source` fails.
    pub async fn blob_put<R>(&self, source: R) -> Result<(BlobHash, u64), ClientError>
    where
        R: AsyncRead + Send,
    {
        blob::put(&self.handle, &self.server.limits, source).await
    }

    /// Puts a blob whose bytes are in memory.
    ///
    /// # Errors
    /// [`ClientError`] when the server refuses.
    pub async fn blob_put_bytes(&self, bytes: Bytes) -> Result<BlobHash, ClientError> {
        let (hash, _) = blob::put_bytes(&self.handle, &self.server.limits, bytes).await?;
        Ok(hash)
    }

    /// Opens a blob; `None` when the store does not have it.
    ///
    /// # Errors
    /// [`ClientError`] when the server refuses.
    pub async fn blob_get(&self, hash: &BlobHash) -> Result<Option<BlobStream>, ClientError> {
        blob::get(&self.handle, hash).await
    }

    /// Whether the store has a blob.
    pub fn blob_has(&self, hash: &BlobHash) -> Reply<bool> {
        Reply::ask(&self.handle, &Request::BlobHas(*hash), |response| match response {
            Response::Has(has) => Some(has),
            _ => None,
        })
    }

    /// A cursor with its state.
    pub fn cursor_get(&self, name: &CursorName) -> Reply<Option<Cursor>> {
        let request = Request::CursorGet(name.clone());
        Reply::ask(&self.handle, &request, |response| match response {
            Response::Cursor(cursor) => Some(cursor),
            _ => None,
        })
    }

    /// Changes one cursor; its new revision, 0 when it was removed.
    pub fn cursor_set(&self, change: CursorChange) -> Reply<u64> {
        Reply::ask(&self.handle, &Request::CursorSet(change), |response| match response {
            Response::Number(revision) => Some(revision),
            _ => None,
        })
    }

    /// All cursors, without their states.
    pub fn cursor_list(&self) -> Reply<Vec<CursorSummary>> {
        Reply::ask(&self.handle, &Request::CursorList, |response| match response {
            Response::Cursors(cursors) => Some(cursors),
            _ => None,
        })
    }

    /// Calls a command. Dropping the stream before its end cancels the call.
    ///
    /// # Errors
    /// [`ClientError`]; [`Code::UnknownCommand`](crate::Code::UnknownCommand) when there is none.
    pub async fn call(&self, request: &CallRequest) -> Result<CallStream, ClientError> {
        let mut line = Line::open(&self.handle, CREDIT_DEFAULT);
        let request = Request::Call { credit: CREDIT_DEFAULT, call: request.clone() };
        let reply = Reply::ask_on(&self.handle, &request, line.sub, |response| match response {
            Response::Called(id) => Some(id),
            _ => None,
        });
        match reply.await {
            Ok(id) => Ok(CallStream::new(line, id)),
            Err(error) => {
                line.refused();
                Err(error)
            }
        }
    }

    /// Asks for a sign of life.
    pub fn ping(&self) -> Reply<()> {
        let request = Request::Ping(Bytes::new());
        Reply::ask(&self.handle, &request, |response| match response {
            Response::Pong => Some(()),
            _ => None,
        })
    }

    /// Waits until the connection is closed and says why.
    pub async fn closed(&self) -> ClientError {
        self.handle.closed().await
    }

    /// What the server said when it began to stop; `None` while it has not.
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

/// The answer to a request that is on its way. Dropping it does not take the request back.
#[must_use = "a request that is not awaited may have failed unseen"]
pub struct Reply<T> {
    awaited: Awaited,
    convert: fn(Response) -> Option<T>,
    /// The connection stays while an answer is awaited.
    _handle: Arc<Handle>,
}

impl<T> Reply<T> {
    fn ask(handle: &Arc<Handle>, request: &Request, convert: fn(Response) -> Option<T>) -> Self {
        Self::ask_on(handle, request, 0, convert)
    }

    fn ask_on(
        handle: &Arc<Handle>,
        request: &Request,
        sub: u32,
        convert: fn(Response) -> Option<T>,
    ) -> Self {
        Self::of(handle, handle.request(request, sub), convert)
    }

    fn failed(handle: &Arc<Handle>, error: ClientError) -> Self {
        Self::of(handle, Err(error), |_| None)
    }

    fn of(
        handle: &Arc<Handle>,
        asked: Result<Answered, ClientError>,
        convert: fn(Response) -> Option<T>,
    ) -> Self {
        let awaited = match asked {
            Ok(answer) => Awaited::Waiting(answer),
            Err(error) => Awaited::Failed(Some(error)),
        };
        Self { awaited, convert, _handle: Arc::clone(handle) }
    }

    fn poll_reply(&mut self, cx: &mut Context<'_>) -> Poll<Result<T, ClientError>> {
        let response = ready!(self.awaited.poll(cx))?;
        let other = || ProtocolError::Unexpected("the answer to another request").into();
        Poll::Ready((self.convert)(response).ok_or_else(other))
    }
}

impl<T> Future for Reply<T> {
    type Output = Result<T, ClientError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_reply(cx)
    }
}
