//! The messages: one file for each family of ops, between values and bytes. Decoded values are
//! valid; nothing here waits, or knows what a store is.

mod append;
mod blob;
mod call;
mod coding;
mod control;
mod cursor;
mod frames;
mod hello;
mod import;
mod incoming;
mod maintain;
mod op;
mod read;
mod remove;
mod request;
mod subscribe;
#[cfg(test)]
mod tables;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod vectors;

pub use append::AppendRequest;
pub use call::CallRequest;
pub use control::GoAway;
pub use hello::{HostClaim, OpRange, PeerLimits, RECORD_VERSION, Role, UnknownRole, VERSION};
pub use import::{ImportCounts, ImportIds, ImportOutcome, ImportRequest, Imported};
pub use maintain::MaintainRequest;
pub use op::{Op, Ways};
pub use read::LastRequest;
pub use remove::RemoveRequest;
pub use subscribe::{Delivered, Gap, Resume, Slow, SubEvent, SubscribeOptions};

pub(crate) use append::put_appended;
pub(crate) use blob::{BlobGetRequest, put_stored};
pub(crate) use coding::DecodeError;
pub(crate) use control::put_refusal;
pub(crate) use cursor::{put_cursor, put_cursor_summary};
pub(crate) use frames::{FrameList, put_frames};
pub(crate) use hello::{HelloReply, HelloRequest};
pub(crate) use incoming::{Incoming, Response};
pub(crate) use read::{FetchRequest, Page, after_page, put_page, put_topic_summary};
pub(crate) use request::{ONE_WAY, Request, is_one_way};
pub(crate) use subscribe::{StreamEvent, SubscribeRequest};
