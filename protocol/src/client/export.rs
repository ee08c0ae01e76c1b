//! An export: a subscription that ends at the end of the stored frames and yields batches that an
//! import accepts as they are. It has no op of its own.

use std::collections::VecDeque;
use std::fmt;

use xs_engine::ReadOptions;

use super::{Client, Subscription};
use crate::error::ClientError;
use crate::limits::BODY_WITH_FRAME_MAX;
use crate::message::{Delivered, Gap, Resume, SubEvent, SubscribeOptions};

/// A stream of frames for another store. Dropping it cancels the export.
#[must_use = "dropping an export cancels it"]
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

    /// The next batch of frames, never empty; `None` at the end. A frame whose body is longer than
    /// [`BODY_WITH_FRAME_MAX`], or cannot be read, is returned without it: the blob is transferred
    /// separately.
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

    /// Records a gap; adjacent corrupt gaps are merged, so that a damaged stretch is reported once.
    fn note(&mut self, gap: Gap) {
        match (self.gaps.back_mut(), gap) {
            (Some(Gap::Corrupt { to: end, .. }), Gap::Corrupt { from, to }) if *end == from => {
                *end = to;
            }
            _ => self.gaps.push_back(gap),
        }
    }

    /// The next gap among the frames received so far; each is reported once.
    pub fn gap(&mut self) -> Option<Gap> {
        self.gaps.pop_front()
    }

    /// The offset to resume from after the frames received so far.
    #[must_use]
    pub const fn position(&self) -> Option<u64> {
        self.subscription.position()
    }
}
