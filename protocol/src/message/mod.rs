//! The messages: one file for each family of ops, values on one side and bytes on the other.
//! Values are valid once they are decoded; nothing here waits, or knows what a store is.

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

pub use append::{AppendRequest, Appended, Stamp};
pub use call::CallRequest;
pub use control::GoAway;
pub use cursor::CursorSummary;
pub use hello::{HostClaim, OpRange, PeerLimits, RECORD_VERSION, Role, UnknownRole, VERSION};
pub use import::{ImportIds, ImportOutcome, ImportRequest, Imported};
pub use maintain::MaintainRequest;
pub use op::{Op, Ways};
pub use read::{LastRequest, TopicSummary};
pub use remove::RemoveRequest;
pub use subscribe::{Delivered, Gap, Resume, Slow, SubEvent, SubscribeOptions};

pub(crate) use blob::{BlobGetRequest, put_stored};
pub(crate) use coding::DecodeError;
pub(crate) use control::put_refusal;
pub(crate) use cursor::put_cursor;
pub(crate) use frames::{FrameList, put_frames};
pub(crate) use hello::{HelloReply, HelloRequest};
pub(crate) use incoming::{Incoming, Response};
pub(crate) use read::{FetchRequest, Page, after_page, put_page};
pub(crate) use request::{ONE_WAY, Request, is_one_way};
pub(crate) use subscribe::{StreamEvent, SubscribeRequest};
