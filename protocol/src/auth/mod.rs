//! Authentication and access: the rights of a connection ([`Access`], [`Scope`]), the tokens of a
//! store and their file, and the guard that checks them. Knows nothing of messages: `access`
//! defines what each request requires.

mod blobs;
mod file;
mod grant;
mod guard;
mod scope;
mod secret;
mod throttle;

use std::sync::Arc;

use crate::message::Role;

pub(crate) use blobs::KnownBlobs;
pub use file::{NewToken, TOKENS_NAME, Token, TokenError, TokenFile};
pub use grant::Grant;
pub(crate) use guard::AuthDecision;
pub use guard::TokenGuard;
pub use scope::Scope;
pub use secret::Secret;
pub(crate) use secret::TokenHash;
pub(crate) use throttle::network;

/// The rights of a connection. They depend on how it connected: no message can raise them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) role: Role,
    /// Topics it may read.
    pub(crate) read: Scope,
    /// Topics it may append to; the role's rules for `xs.*` apply on top.
    pub(crate) append: Scope,
    /// The token it connected with.
    pub(crate) token: Option<TokenHash>,
    /// The only processor that a host runs.
    pub(crate) alone: Option<Arc<str>>,
}

impl Access {
    /// The rights of a role without patterns.
    pub(crate) fn of(role: Role) -> Self {
        let scope = Scope::of(role);
        Self { role, read: scope.clone(), append: scope, token: None, alone: None }
    }

    /// The rights of the host of one processor.
    pub(crate) fn alone(processor: &Arc<str>) -> Self {
        Self { alone: Some(Arc::clone(processor)), ..Self::of(Role::Host) }
    }

    /// Whether it equals `other`, apart from the processor that either may be limited to.
    pub(crate) fn widens(&self, other: &Self) -> bool {
        *self == Self { alone: self.alone.clone(), ..other.clone() }
    }

    /// Whether a client with these rights may be the host. A client that needs no token owns the
    /// store.
    pub(crate) fn may_host(&self) -> bool {
        let owns = self.role == Role::Admin && self.token.is_none();
        (self.role == Role::Host && self.alone.is_none()) || owns
    }
}
