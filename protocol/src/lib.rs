//! XSP, the binary protocol of xs: messages, codec, a session without sockets, and on top of it a
//! client and a server generic over a [`Service`]. The specification is docs/wire.md.
#![forbid(unsafe_code)]

mod access;
mod address;
mod auth;
mod certificate;
pub mod client;
pub mod codec;
mod error;
mod gather;
pub mod lifecycle;
pub mod limits;
mod message;
pub mod server;
mod service;
mod session;
mod socket;
mod stamp;
mod tcp;
mod tls;

pub use address::{Address, AddressError, SOCKET_NAME};
pub use auth::{Guard, NewToken, Scope, Secret, TOKENS_NAME, Token, TokenError, TokenFile};
pub use client::{
    BlobStream, CallStream, Client, ClientOptions, Export, FrameStream, Passage, PassageEnd, Reply,
    ServerInfo, Subscription,
};
pub use error::{Class, ClientError, Code, Detail, ProtocolError, Refusal};
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
    StoreIdentity, TopicsPage, Wake,
};
pub use tls::{ClientTls, ServerTls, TlsError};
