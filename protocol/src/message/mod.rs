//! The messages: one file for each family of ops, values on one side and bytes on the other.

mod append;
mod blob;
mod call;
mod cursor;
mod hello;
mod read;
mod subscribe;

pub use append::{AppendRequest, Appended, Stamp};
pub use call::CallRequest;
pub use cursor::CursorSummary;
pub use hello::{OpRange, PeerLimits, Role, UnknownRole};
pub use read::{LastRequest, TopicSummary};
pub use subscribe::{Delivered, Gap, SubEvent, SubscribeOptions};
