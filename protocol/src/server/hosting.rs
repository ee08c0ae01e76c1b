//! A connection that claims to run the modules of the store: whether it may, and its end when the
//! same Host reconnects. The service knows which Hosts exist.

use std::sync::Arc;
use std::time::Instant;

use super::desk::Desk;
use super::mailbox::Mail;
use crate::error::{Code, Refusal};
use crate::message::HostClaim;
use crate::service::HostGuard;
use crate::session::Ticket;

impl Desk {
    /// Answers HELLO, which may claim that the client runs modules.
    pub(super) fn welcome(&mut self, ticket: Ticket, host: Option<HostClaim>, now: Instant) {
        if let Some(claim) = host {
            let alone = claim.alone.clone();
            match self.host_comes(claim) {
                Ok(guard) => self.host = Some(guard),
                Err(refusal) => return self.session.refuse_hello(ticket, &refusal, now),
            }
            self.session.let_host(alone.as_ref());
        }
        self.session.welcome(ticket, self.service.identity());
        self.visitor.slot = None;
    }

    fn host_comes(&self, claim: HostClaim) -> Result<HostGuard, Refusal> {
        let access = self.session.access();
        if !access.may_host() {
            let text = format!(
                "modules are run with a token of the role host, and this one's is {}: xs token \
                 create STORE NAME --role host makes one",
                access.role
            );
            return Err(Refusal::new(Code::Denied, text));
        }
        let mailbox = Arc::downgrade(&self.mailbox);
        let end = move || {
            if let Some(mailbox) = mailbox.upgrade() {
                mailbox.post(Mail::Replaced);
            }
        };
        self.service.host_comes(claim, Arc::new(end))
    }

    /// The same Host has reconnected, so this connection is obsolete.
    pub(super) fn replaced(&mut self, now: Instant) {
        let text = "the Host has connected anew";
        self.close(&Refusal::new(Code::OtherHost, text), now);
    }
}
