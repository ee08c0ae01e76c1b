//! XSP, the binary protocol of xs: messages, codec, a session without sockets, and on top of it a
//! client and a server generic over a [`Service`]. The specification is docs/wire.md.
//!
//! ```no_run
//! use xs_protocol::{
//!     Address, AppendRequest, CallRequest, Class, Client, ClientError, ClientOptions, Code,
//!     Condition, Follow, FollowEvent, FollowOptions, IdempotencyKey, NewFrame, ReadOptions, Topic,
//!     TopicPatterns,
//! };
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // A store directory, its socket, host:port, or xss://host:port with `tls` and `token`.
//! let address = Address::parse("./store")?;
//! let xs = Client::connect(&address, ClientOptions::default()).await?;
//!
//! // Some frames, all of them or none. With the key it may be sent again after a lost answer.
//! let frame = NewFrame::new(Topic::parse("orders.1")?);
//! let mut batch = AppendRequest::frames(vec![frame]);
//! batch.key = Some(IdempotencyKey::parse("order-1")?);
//! batch.conditions = vec![Condition::Empty(TopicPatterns::parse("orders.1")?)];
//! match xs.append(&batch).await {
//!     Ok(appended) => assert!(appended.head > 0),
//!     Err(ClientError::Refused(refusal)) => match refusal.code.class() {
//!         Class::Condition => println!("it was there: {refusal}"),
//!         Class::Busy => println!("nothing was done, and later it will be: {refusal}"),
//!         _ => return Err(refusal.into()),
//!     },
//!     // The connection was lost before the answer: it may or may not have been stored.
//!     Err(error) if error.class() == Class::Unknown => println!("look, or send it again: {error}"),
//!     Err(error) => return Err(error.into()),
//! }
//!
//! // What is stored.
//! let topics = TopicPatterns::parse("orders.*")?;
//! let read = ReadOptions { topics, ..ReadOptions::default() };
//! let mut stored = xs.fetch(&read);
//! while let Some(frame) = stored.next().await {
//!     println!("{}", frame?.topic());
//! }
//!
//! // The results of a command.
//! match xs.call(&CallRequest::new(Topic::parse("report")?)).await {
//!     Ok(mut results) => {
//!         while let Some(result) = results.next().await {
//!             println!("{}", result?.frame.topic());
//!         }
//!     }
//!     Err(error) if error.code() == Some(Code::UnknownCommand) => println!("{error}"),
//!     Err(error) => return Err(error.into()),
//! }
//!
//! // The same as is stored, then what comes, over as many connections as that takes.
//! let mut follow = Follow::open(&address, FollowOptions { read, ..Default::default() }).await?;
//! while let Some(event) = follow.next().await {
//!     match event? {
//!         FollowEvent::Frame(one) => println!("{:?} {}", one.frame.offset(), one.frame.topic()),
//!         FollowEvent::Gap(gap) => println!("missing: {gap:?}"),
//!         FollowEvent::Resumed { lost, .. } => println!("connected again after: {lost}"),
//!         _ => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # A consumer with a durable cursor
//!
//! The consumer keeps its position in the store, under a name, and handles each frame at least
//! once, even if it or the server is killed: `examples/consume.rs`.
//!
//! ```no_run
#![doc = include_str!("../examples/consume.rs")]
//! ```
//!
//! # The types to know
//!
//! - [`Client`]: one connection, shared by clones; many concurrent requests and streams. It does
//!   not reconnect: requests in flight when it is lost get [`ClientError::Disconnected`].
//! - Three ways to read: [`Client::fetch`] ends with the stored frames and leaves bodies to be
//!   requested; a [`Subscription`] may follow and include bodies, over one connection; [`Follow`]
//!   is a subscription that reconnects and continues where it was.
//! - [`ClientError::class`] tells what a caller may do about an error: [`Class`].
//! - [`Server`] with a [`Service`] is the other side.
#![forbid(unsafe_code)]

mod access;
mod address;
mod auth;
mod certificate;
mod client;
// For tests, fuzzing and benches, which send what no client sends; no one else needs bytes.
#[doc(hidden)]
pub mod codec;
mod error;
mod file_version;
mod gather;
pub mod lifecycle;
pub mod limits;
mod message;
mod server;
mod service;
mod session;
mod socket;
mod tcp;
mod tls;

pub use address::{Address, AddressError, SOCKET_NAME};
pub use auth::{
    Grant, NewToken, Scope, Secret, TOKENS_NAME, Token, TokenError, TokenFile, TokenGuard,
};
pub use client::{
    BlobStream, CallStream, Client, ClientOptions, Export, Follow, FollowEvent, FollowOptions,
    FrameStream, Relay, RelayEnd, Reply, Retry, ServerInfo, Subscription,
};
pub use error::{Class, ClientError, Code, Detail, DisconnectReason, ProtocolError, Refusal};
// Needed with `codec`.
#[doc(hidden)]
pub use gather::Gather;
pub use message::{
    AppendRequest, CallRequest, Delivered, Gap, GoAway, HostClaim, ImportCounts, ImportIds,
    ImportOutcome, ImportRequest, Imported, LastRequest, MaintainRequest, Op, OpRange, PeerLimits,
    RECORD_VERSION, RemoveRequest, Resume, Role, Slow, SubEvent, SubscribeOptions, UnknownRole,
    VERSION, Ways,
};
pub use server::{Admission, Listener, Server, ServerOptions, ServerStats};
pub use service::{
    BlobSink, BlobSource, Called, Done, DoneImport, Feed, HostGuard, Pulled, Service,
    StoreIdentity, TopicsPage, Wake,
};
pub use tls::{ClientTls, ServerTls, TlsError};
// The store's values in requests and replies, so that a client needs no other crate.
pub use xs_engine::{
    Appended, BlobHash, Body, Bound, Condition, Cursor, CursorChange, CursorName, CursorSummary,
    CursorValue, ExpectRevision, Frame, FrameId, IdempotencyKey, Meta, NewFrame, Origin,
    ReadOptions, RecordError, Removal, ResumePoint, Stamp, Start, StoreUuid, Topic, TopicPattern,
    TopicPatterns, TopicSummary, Ttl, ValueError,
};
