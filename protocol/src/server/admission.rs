//! How connections are admitted, and what they may do.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::desk::Desk;
use super::door::DoorSlot;
use super::mailbox::Mail;
use crate::auth::{AuthDecision, Secret, TokenGuard};
use crate::limits::TOKENS_WAIT;
use crate::message::{HostClaim, Role};
use crate::session::Ticket;

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

impl Desk {
    /// Admits a client that shows a token, or none, once changed tokens are read.
    pub(super) fn admit(
        &mut self,
        ticket: Ticket,
        token: Secret,
        host: Option<HostClaim>,
        now: Instant,
    ) {
        let Admission::Token { guard, .. } = &self.visitor.admission else { return };
        if !guard.is_stale() {
            return self.admit_now(ticket, &token, host, now);
        }
        let (guard, mailbox) = (Arc::clone(guard), Arc::clone(&self.mailbox));
        tokio::spawn(async move {
            let _ = tokio::time::timeout(TOKENS_WAIT, guard.refresh_aside()).await;
            mailbox.post(Mail::Admit { ticket, token, host });
        });
    }

    /// Admits such a client by the tokens read last.
    pub(super) fn admit_now(
        &mut self,
        ticket: Ticket,
        token: &Secret,
        host: Option<HostClaim>,
        now: Instant,
    ) {
        let Admission::Token { guard, or } = &self.visitor.admission else { return };
        if self.session.is_closing() {
            return;
        }
        match guard.admit(token.reveal(), *or, self.visitor.peer, now) {
            AuthDecision::Granted(access) => {
                self.session.let_in(access);
                self.welcome(ticket, host, now);
            }
            AuthDecision::Refused(refusal, at) => self.session.refuse_hello_at(ticket, refusal, at),
        }
    }
}
