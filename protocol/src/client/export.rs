//! An export: a subscription that ends with what is stored, in pieces that an import takes as they
//! are. It has no op of its own.

use std::collections::VecDeque;
use std::fmt;

use xs_engine::ReadOptions;

use super::{Client, Subscription};
use crate::error::ClientError;
use crate::limits::BODY_WITH_FRAME_MAX;
use crate::message::{Delivered, Gap, Resume, SubEvent, SubscribeOptions};

/// Frames on their way to another store. Dropping it ends it.
pub struct Export {
    subscription: Subscription,
    gaps: VecDeque<Gap>,
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export")
            .field("subscription", &self.subscription)
            .field("gaps", &self.gaps)
            .finish_non_exhaustive()
    }
}

impl Export {
    pub(super) async fn begin(
        client: &Client,
        options: &ReadOptions,
        resume: Option<Resume>,
    ) -> Result<Self, ClientError> {
        let options = ReadOptions { follow: false, ..options.clone() };
        let how = SubscribeOptions {
            bodies_up_to: BODY_WITH_FRAME_MAX,
            resume,
            ..SubscribeOptions::default()
        };
        let subscription = client.subscribe(&options, how).await?;
        Ok(Self { subscription, gaps: VecDeque::new() })
    }

    /// The next frames, never none; `None` at the end. One whose body is longer than
    /// [`BODY_WITH_FRAME_MAX`], or cannot be read, comes without it: the blob is moved on its own.
    pub async fn next(&mut self) -> Option<Result<Vec<Delivered>, ClientError>> {
        loop {
            return Some(match self.subscription.next().await? {
                Ok(SubEvent::Frames { frames, .. }) if frames.is_empty() => continue,
                Ok(SubEvent::Frames { frames, .. }) => Ok(frames),
                Ok(SubEvent::Gap(gap)) => {
                    self.note(gap);
                    continue;
                }
                Ok(SubEvent::CaughtUp { .. } | SubEvent::Pulse) => continue,
                Ok(SubEvent::Dropped { refusal, .. }) => Err(refusal.into()),
                Err(error) => Err(error),
            });
        }
    }

    /// Keeps a gap; neighbours become one, so that a damaged stretch is a single one.
    fn note(&mut self, gap: Gap) {
        match (self.gaps.back_mut(), gap) {
            (Some(Gap::Corrupt { to: end, .. }), Gap::Corrupt { from, to }) if *end == from => {
                *end = to;
            }
            _ => self.gaps.push_back(gap),
        }
    }

    /// What could not be read among the frames that came so far; each is told once.
    pub fn gap(&mut self) -> Option<Gap> {
        self.gaps.pop_front()
    }

    /// The offset to go on from after the frames that came so far.
    #[must_use]
    pub const fn position(&self) -> Option<u64> {
        self.subscription.position()
    }
}
