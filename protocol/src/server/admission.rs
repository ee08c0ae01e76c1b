//! How connections are admitted, and what they may do.

use std::net::IpAddr;
use std::sync::Arc;

use super::door::DoorSlot;
use crate::auth::TokenGuard;
use crate::message::Role;

/// The rule by which a listener admits connections.
#[derive(Debug, Clone)]
pub enum Admission {
    /// Any process that can open the socket has this role.
    Role(Role),
    /// The peer is the host of the processor with this name only: of topics that begin with `xs.`
    /// it may write only those of that processor.
    Alone(Arc<str>),
    /// A token that the guard accepts.
    Token {
        /// The guard that checks tokens.
        guard: Arc<TokenGuard>,
        /// The role of peers without a token, while the store has no token file.
        or: Option<Role>,
    },
}

impl From<Role> for Admission {
    fn from(role: Role) -> Self {
        Self::Role(role)
    }
}

/// An accepted connection.
pub(super) struct Visitor {
    pub(super) admission: Admission,
    /// Its address, over TCP.
    pub(super) peer: Option<IpAddr>,
    /// Its place at the door until it has said HELLO.
    pub(super) slot: Option<DoorSlot>,
}

impl Visitor {
    pub(super) const fn new(admission: Admission, peer: Option<IpAddr>) -> Self {
        Self { admission, peer, slot: None }
    }
}
