//! How connections come in, and what that lets them do.

use std::net::IpAddr;
use std::sync::Arc;

use super::door::DoorSlot;
use crate::auth::TokenGuard;
use crate::message::Role;

/// What lets the connections of a listener in.
#[derive(Debug, Clone)]
pub enum Admission {
    /// Whoever can open the socket has the role.
    Role(Role),
    /// It is the host of the processor of this name alone: of what begins with `xs.` it writes only
    /// what is that one's.
    Alone(Arc<str>),
    /// A token of the guard's.
    Token {
        /// Whom to ask.
        guard: Arc<TokenGuard>,
        /// The role of those who come without one, while the store has no file of tokens.
        or: Option<Role>,
    },
}

impl From<Role> for Admission {
    fn from(role: Role) -> Self {
        Self::Role(role)
    }
}

/// A connection that has come in.
pub(super) struct Visitor {
    pub(super) admission: Admission,
    /// Its address, over TCP.
    pub(super) peer: Option<IpAddr>,
    /// Where it waits until it has said HELLO.
    pub(super) slot: Option<DoorSlot>,
}

impl Visitor {
    pub(super) const fn new(admission: Admission, peer: Option<IpAddr>) -> Self {
        Self { admission, peer, slot: None }
    }
}
