//! What becomes of a subscription that takes frames more slowly than they come. The default, to
//! wait for it, needs nothing of this.

use std::sync::Arc;

use xs_engine::{ReadOptions, Start};

use super::long_work::Long;
use super::mailbox::Mail;
use super::making::bytes_of_gap;
use crate::error::{Code, Refusal};
use crate::message::Slow;
use crate::service::{Feed, Service, Wake};

/// The policy of a subscription, and what is known of how it does.
pub(crate) struct Lag {
    policy: Slow,
    /// What it asked for, to go on with after a gap.
    options: ReadOptions,
    /// For the feed behind a gap.
    wake: Wake,
    /// All that was stored when it began is delivered.
    caught_up: bool,
    /// It had no credit, or the connection's queue was full, since frames were sent last.
    stalled: bool,
    /// A blocking thread looks for the newest frames.
    looking: bool,
}

/// What is to be done about a lag.
pub(crate) enum Verdict {
    /// Nothing: go on.
    Go,
    /// Nothing can be sent now.
    Wait,
    /// End it.
    Drop(Refusal),
    /// Leave out what lies between its place and the head.
    Conflate,
}

/// What goes on after a gap.
pub(crate) struct Leap {
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// Offset of the newest frame of each topic that lies between.
    pub(crate) newest: Vec<u64>,
    /// What comes behind it.
    pub(crate) feed: Box<dyn Feed>,
}

impl Lag {
    pub(crate) fn new(policy: Slow, options: &ReadOptions, wake: Wake) -> Self {
        let options = options.clone();
        Self { policy, options, wake, caught_up: false, stalled: false, looking: false }
    }

    /// All that was stored is delivered; whether that is news.
    pub(crate) fn catch_up(&mut self) -> bool {
        !std::mem::replace(&mut self.caught_up, true)
    }

    /// Notes that it could not be sent more.
    pub(crate) const fn stall(&mut self) {
        self.stalled = true;
    }

    /// Frames were sent.
    pub(crate) const fn sent(&mut self) {
        self.stalled = false;
    }

    /// Whether its wake must be heeded although nothing can be sent.
    pub(crate) const fn is_watched(&self) -> bool {
        matches!(self.policy, Slow::Drop { .. }) && self.caught_up
    }

    /// Judges it at `position`.
    pub(crate) fn judge(&self, position: u64, service: &dyn Service) -> Verdict {
        if self.looking {
            return Verdict::Wait;
        }
        let (Slow::Latest { behind } | Slow::Drop { behind }) = self.policy else {
            return Verdict::Go;
        };
        if !self.caught_up || !self.stalled {
            return Verdict::Go;
        }
        let lag = service.head().saturating_sub(position);
        if lag <= behind {
            return Verdict::Go;
        }
        if matches!(self.policy, Slow::Latest { .. }) {
            return Verdict::Conflate;
        }
        let text = format!(
            "the subscription is {lag} frames behind, more than the {behind} it allows; go on from \
             the offset"
        );
        Verdict::Drop(Refusal::new(Code::TooSlow, text))
    }

    /// Has the newest frames looked for from `from` on, and a feed opened behind them.
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
        let makers = long.makers();
        long.add(sub, move || {
            let making = makers.room(bytes_of_gap());
            let look = || {
                // First: what comes while it is looked, ephemeral frames too, follows by itself.
                let feed = service.follow(&options, wake)?;
                let to = feed.scanned_to();
                let newest = service.newest(&options.topics, from..to)?;
                Ok(Leap { from, to, newest, feed })
            };
            Mail::Newest { sub, result: look(), making }
        });
    }

    /// The newest frames were found.
    pub(crate) const fn found(&mut self) {
        (self.looking, self.stalled) = (false, false);
    }
}
