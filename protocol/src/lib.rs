//! XSP, the binary protocol of xs: messages, codec, a session without sockets, and on top of it a
//! client and a server generic over a [`Service`]. The specification is docs/wire.md.
#![forbid(unsafe_code)]

mod access;
mod address;
mod auth;
mod certificate;
mod client;
// For tests, fuzzing and benches, which say what no client says; nobody else needs bytes.
#[doc(hidden)]
pub mod codec;
mod error;
mod gather;
pub mod lifecycle;
pub mod limits;
mod message;
mod server;
mod service;
mod session;
mod socket;
mod stamp;
mod tcp;
mod tls;

pub use address::{Address, AddressError, SOCKET_NAME};
pub use auth::{Guard, NewToken, Scope, Secret, TOKENS_NAME, Token, TokenError, TokenFile};
pub use client::{
    BlobStream, CallStream, Client, ClientOptions, Export, Follow, FollowEvent, FollowOptions,
    FrameStream, Passage, PassageEnd, Reply, Retry, ServerInfo, Subscription,
};
pub use error::{Class, ClientError, Code, Detail, ProtocolError, Refusal};
// Goes with `codec`.
#[doc(hidden)]
pub use gather::Gather;
pub use message::{
    AppendRequest, Appended, CallRequest, CursorSummary, Delivered, Gap, GoAway, HostClaim,
    ImportIds, ImportOutcome, ImportRequest, Imported, LastRequest, MaintainRequest, Op, OpRange,
    PeerLimits, RECORD_VERSION, RemoveRequest, Resume, Role, Slow, Stamp, SubEvent,
    SubscribeOptions, TopicSummary, UnknownRole, VERSION, Ways,
};
pub use server::{Entry, Listener, Server, ServerOptions, ServerStats};
pub use service::{
    BlobSink, BlobSource, Called, Done, DoneImport, Feed, HostGuard, Pulled, Service,
    StoreIdentity, Wake,
};
pub use tls::{ClientTls, ServerTls, TlsError};
// The values of the store that requests and answers are made of: a client needs no other crate.
pub use xs_engine::{
    BlobHash, Body, Bound, Condition, Cursor, CursorChange, CursorName, ExpectRevision, Frame,
    FrameId, IdempotencyKey, Meta, NewFrame, Origin, ReadOptions, RecordError, ResumePoint, Start,
    Topic, TopicPattern, TopicPatterns, Ttl, ValueError,
};
