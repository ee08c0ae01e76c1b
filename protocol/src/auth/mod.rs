//! Who may do what: what a connection is allowed ([`Access`], [`Scope`]), the tokens of a store and
//! their file, and the guard that asks for them. Knows nothing of messages: what each request needs
//! is said in `access`.

mod blobs;
mod file;
mod guard;
mod scope;
mod secret;
mod throttle;

use std::sync::Arc;

use crate::message::Role;

pub(crate) use blobs::KnownBlobs;
pub use file::{NewToken, TOKENS_NAME, Token, TokenError, TokenFile};
pub use guard::TokenGuard;
pub(crate) use guard::Verdict;
pub use scope::Scope;
pub use secret::Secret;
pub(crate) use secret::TokenHash;
pub(crate) use throttle::network;

/// What a connection may do. How it came in decides: nothing in a message can raise it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) role: Role,
    /// Topics it may read.
    pub(crate) read: Scope,
    /// Topics it may append to; what the role adds and forbids among `xs.*` comes on top.
    pub(crate) append: Scope,
    /// The token it came with.
    pub(crate) token: Option<TokenHash>,
    /// The only processor that a host runs.
    pub(crate) alone: Option<Arc<str>>,
}

impl Access {
    /// What a role may do without patterns.
    pub(crate) fn of(role: Role) -> Self {
        let scope = Scope::of(role);
        Self { role, read: scope.clone(), append: scope, token: None, alone: None }
    }

    /// What the host of one processor may do.
    pub(crate) fn alone(processor: &Arc<str>) -> Self {
        Self { alone: Some(Arc::clone(processor)), ..Self::of(Role::Host) }
    }

    /// Whether it is `other`, or what that is once it is not for one processor alone.
    pub(crate) fn widens(&self, other: &Self) -> bool {
        *self == Self { alone: self.alone.clone(), ..other.clone() }
    }

    /// Whether whoever has it may be the host. Whoever needs no token owns the store.
    pub(crate) fn may_host(&self) -> bool {
        let owns = self.role == Role::Admin && self.token.is_none();
        (self.role == Role::Host && self.alone.is_none()) || owns
    }
}
