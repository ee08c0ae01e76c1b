//! The client: one connection, any number of requests and streams on it.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite};
use xs_engine::{
    BlobHash, Bound, Cursor, CursorChange, CursorName, Frame, FrameId, ReadOptions, TopicPatterns,
};

use crate::address::Address;
use crate::error::ClientError;
use crate::message::{
    AppendRequest, Appended, CallRequest, CursorSummary, Delivered, LastRequest, OpRange,
    PeerLimits, Role, SubEvent, SubscribeOptions, TopicSummary,
};

/// How to connect.
#[derive(Debug, Clone)]
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

/// A connection to a server. Clones share it; it closes when the last clone and the last stream
/// are gone. Requests may be made from any number of tasks.
#[derive(Clone)]
pub struct Client {}

impl Client {
    /// Connects to a server.
    ///
    /// # Errors
    /// [`ClientError`] when nobody listens there or HELLO fails.
    pub async fn connect(address: &Address, options: ClientOptions) -> Result<Self, ClientError> {
        let _ = (address, options);
        todo!()
    }

    /// Speaks over a stream that is connected already, for example one end of a socket pair.
    ///
    /// # Errors
    /// [`ClientError`] when HELLO fails.
    pub async fn over<S>(stream: S, options: ClientOptions) -> Result<Self, ClientError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let _ = (stream, options);
        todo!()
    }

    /// What the server said in HELLO.
    #[must_use]
    pub fn server(&self) -> &ServerInfo {
        todo!()
    }

    /// Appends a batch. The request is on its way when this returns, so batches are appended in the
    /// order of these calls, whenever their replies are awaited.
    pub fn append(&self, batch: &AppendRequest) -> Reply<Appended> {
        let _ = batch;
        todo!()
    }

    /// Reads what is stored, page by page. `options.follow` is not looked at.
    pub fn fetch(&self, options: &ReadOptions) -> FrameStream {
        let _ = options;
        todo!()
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
        let _ = (options, how);
        todo!()
    }

    /// The frame at an id or an offset.
    pub fn get(&self, at: Bound) -> Reply<Option<Frame>> {
        let _ = at;
        todo!()
    }

    /// The newest frames, in log order.
    pub fn last(&self, request: &LastRequest) -> Reply<Vec<Frame>> {
        let _ = request;
        todo!()
    }

    /// The topics in use.
    pub fn topics(&self, topics: &TopicPatterns) -> Reply<Vec<TopicSummary>> {
        let _ = topics;
        todo!()
    }

    /// Puts a blob, reading `source` as the server takes it.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Source`] when `source` fails.
    pub async fn blob_put<R>(&self, source: R) -> Result<(BlobHash, u64), ClientError>
    where
        R: AsyncRead + Send,
    {
        let _ = source;
        todo!()
    }

    /// Puts a blob whose bytes are in memory.
    ///
    /// # Errors
    /// [`ClientError`] when the server refuses.
    pub async fn blob_put_bytes(&self, bytes: Bytes) -> Result<BlobHash, ClientError> {
        let _ = bytes;
        todo!()
    }

    /// Opens a blob; `None` when the store does not have it.
    ///
    /// # Errors
    /// [`ClientError`] when the server refuses.
    pub async fn blob_get(&self, hash: &BlobHash) -> Result<Option<BlobStream>, ClientError> {
        let _ = hash;
        todo!()
    }

    /// Whether the store has a blob.
    pub fn blob_has(&self, hash: &BlobHash) -> Reply<bool> {
        let _ = hash;
        todo!()
    }

    /// A cursor with its state.
    pub fn cursor_get(&self, name: &CursorName) -> Reply<Option<Cursor>> {
        let _ = name;
        todo!()
    }

    /// Changes one cursor; its new revision, 0 when it was removed.
    pub fn cursor_set(&self, change: CursorChange) -> Reply<u64> {
        let _ = change;
        todo!()
    }

    /// All cursors, without their states.
    pub fn cursor_list(&self) -> Reply<Vec<CursorSummary>> {
        todo!()
    }

    /// Calls a command. Dropping the stream before its end cancels the call.
    ///
    /// # Errors
    /// [`ClientError`]; [`Code::UnknownCommand`](crate::Code::UnknownCommand) when there is none.
    pub async fn call(&self, request: &CallRequest) -> Result<CallStream, ClientError> {
        let _ = request;
        todo!()
    }

    /// Asks for a sign of life.
    pub fn ping(&self) -> Reply<()> {
        todo!()
    }

    /// Waits until the connection is closed and says why.
    pub async fn closed(&self) -> ClientError {
        todo!()
    }

    /// Whether the server said that it is stopping.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        todo!()
    }
}

/// The answer to a request that is on its way. Dropping it does not take the request back.
#[must_use = "a request that is not awaited may have failed unseen"]
pub struct Reply<T> {
    result: PhantomData<fn() -> T>,
}

impl<T> Future for Reply<T> {
    type Output = Result<T, ClientError>;

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Self::Output> {
        todo!()
    }
}

/// A bounded read. The next page is asked for while this one is taken.
pub struct FrameStream {}

impl FrameStream {
    /// The next frame; `None` at the end.
    pub async fn next(&mut self) -> Option<Result<Frame, ClientError>> {
        todo!()
    }
}

impl Stream for FrameStream {
    type Item = Result<Frame, ClientError>;

    fn poll_next(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        todo!()
    }
}

/// A subscription. Dropping it ends it.
pub struct Subscription {}

impl Subscription {
    /// What happens next; `None` after the end: the limit was reached, or it does not follow and
    /// all was delivered. After an error nothing more comes.
    pub async fn next(&mut self) -> Option<Result<SubEvent, ClientError>> {
        todo!()
    }

    /// The offset to go on from after what was taken so far.
    #[must_use]
    pub fn position(&self) -> Option<u64> {
        todo!()
    }
}

impl Stream for Subscription {
    type Item = Result<SubEvent, ClientError>;

    fn poll_next(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        todo!()
    }
}

/// The results of a call, ending with `<name>.complete` or `<name>.error`.
pub struct CallStream {}

impl CallStream {
    /// Id of the frame `<name>.call`.
    #[must_use]
    pub fn id(&self) -> FrameId {
        todo!()
    }

    /// The next result; `None` after the last.
    pub async fn next(&mut self) -> Option<Result<Delivered, ClientError>> {
        todo!()
    }
}

impl Stream for CallStream {
    type Item = Result<Delivered, ClientError>;

    fn poll_next(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        todo!()
    }
}

/// A blob being fetched. Dropping it ends the download.
pub struct BlobStream {}

impl BlobStream {
    /// Bytes of the whole blob.
    #[must_use]
    pub fn len(&self) -> u64 {
        todo!()
    }

    /// Whether the blob has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next bytes; `None` after the last.
    pub async fn chunk(&mut self) -> Option<Result<Bytes, ClientError>> {
        todo!()
    }

    /// All of it.
    ///
    /// # Errors
    /// [`ClientError::OverLimit`] when it has more than `max` bytes.
    pub async fn bytes(self, max: usize) -> Result<Bytes, ClientError> {
        let _ = max;
        todo!()
    }
}

impl Stream for BlobStream {
    type Item = Result<Bytes, ClientError>;

    fn poll_next(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        todo!()
    }
}
