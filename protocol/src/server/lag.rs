//! Policies for subscriptions that take frames more slowly than they are appended. The default, to
//! wait, needs none of this.

use std::sync::Arc;

use xs_engine::{ReadOptions, Start};

use super::long_work::Long;
use super::mailbox::Mail;
use super::making::bytes_of_gap;
use crate::error::{Code, Refusal};
use crate::message::Slow;
use crate::service::{Feed, Service, Wake};

/// The policy of a subscription, and the state it depends on.
pub(crate) struct Lag {
    policy: Slow,
    /// Its options, to continue after a gap.
    options: ReadOptions,
    /// The wake for the feed after a gap.
    wake: Wake,
    /// Everything stored when it began is delivered.
    caught_up: bool,
    /// It had no credit, or the connection's queue was full, since frames were last sent.
    stalled: bool,
    /// A blocking thread looks up the newest frames.
    looking: bool,
}

/// What to do about a lag.
pub(crate) enum LagAction {
    /// Continue.
    Go,
    /// Nothing can be sent now.
    Wait,
    /// End it.
    Drop(Refusal),
    /// Skip what lies between its position and the head.
    Conflate,
}

/// The continuation after a gap.
pub(crate) struct Leap {
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// Offset of the newest frame of each topic within the gap.
    pub(crate) newest: Vec<u64>,
    /// The frames after it.
    pub(crate) feed: Box<dyn Feed>,
}

impl Lag {
    pub(crate) fn new(policy: Slow, options: &ReadOptions, wake: Wake) -> Self {
        let options = options.clone();
        Self { policy, options, wake, caught_up: false, stalled: false, looking: false }
    }

    /// Notes that everything stored is delivered; returns whether that is news.
    pub(crate) fn catch_up(&mut self) -> bool {
        !std::mem::replace(&mut self.caught_up, true)
    }

    /// Notes that no more could be sent.
    pub(crate) const fn stall(&mut self) {
        self.stalled = true;
    }

    /// Notes that frames were sent.
    pub(crate) const fn sent(&mut self) {
        self.stalled = false;
    }

    /// Whether a wake must be handled even if nothing can be sent.
    pub(crate) const fn is_watched(&self) -> bool {
        matches!(self.policy, Slow::Drop { .. }) && self.caught_up
    }

    /// Decides at `position`.
    pub(crate) fn judge(&self, position: u64, service: &dyn Service) -> LagAction {
        if self.looking {
            return LagAction::Wait;
        }
        let (Slow::Latest { behind } | Slow::Drop { behind }) = self.policy else {
            return LagAction::Go;
        };
        if !self.caught_up || !self.stalled {
            return LagAction::Go;
        }
        let lag = service.head().saturating_sub(position);
        if lag <= behind {
            return LagAction::Go;
        }
        if matches!(self.policy, Slow::Latest { .. }) {
            return LagAction::Conflate;
        }
        let text = format!(
            "the subscription is {lag} frames behind, more than the {behind} it allows; go on from \
             the offset"
        );
        LagAction::Drop(Refusal::new(Code::TooSlow, text))
    }

    /// Starts the lookup of the newest frames from `from` on, and opens a feed after them.
    pub(crate) fn look(
        &mut self,
        sub: u32,
        from: u64,
        service: &Arc<dyn Service>,
        long: &mut Long,
    ) {
        self.looking = true;
        let options = ReadOptions { start: Start::New, ..self.options.clone() };
        let service = Arc::clone(service);
        let wake = Arc::clone(&self.wake);
        long.add(sub, bytes_of_gap(), move |turn| {
            let look = || {
                // The feed first: it covers what is appended during the lookup, including ephemeral
                // frames.
                let feed = service.follow(&options, wake)?;
                let to = feed.scanned_to();
                let newest = service.newest(&options.topics, from..to)?;
                Ok(Leap { from, to, newest, feed })
            };
            Mail::Newest { sub, result: look(), turn }
        });
    }

    /// Notes that the newest frames were found.
    pub(crate) const fn found(&mut self) {
        (self.looking, self.stalled) = (false, false);
    }
}
