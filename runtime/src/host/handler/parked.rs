//! Parked inputs that are handled again: a frame `xs.handler.<name>.unpark` is an input, in place
//! of which the handler receives the parked frame. So that is handled once, in order with all
//! others, and parked again if it fails again.

use serde_json::Value;
use xs_engine::{Bound, Frame, FrameId, Topic, TopicPattern, TopicPatterns};
use xs_protocol::Delivered;

use super::cursor::Began;
use super::inputs::Offered;
use super::{Handler, Step, lost_or_again};
use crate::host::lifecycle::Key;
use crate::isolate::LogLevel;

/// Last part of the topic by which an operator has a parked input handled again.
pub const UNPARK: &str = "unpark";
/// Last part of the topic by which an operator discards a parked input.
pub const DISCARD: &str = "discard";
/// Last part of the topic of parked inputs, after the handler's name.
pub const PARKED: &str = "parked";

/// The frame that an `unpark`, a `discard` or a record of a parked input is about.
#[must_use]
pub fn about(frame: &Frame, field: &str) -> Option<FrameId> {
    let meta: Value = serde_json::from_slice(frame.meta()).ok()?;
    FrameId::parse(meta.get(field)?.as_str()?).ok()
}

fn unpark_topic(key: &Key) -> Topic {
    key.name.event_topic(key.kind, UNPARK)
}

impl Handler {
    /// The topics it reads: its own, and `unpark`.
    pub(super) fn topics(&self) -> TopicPatterns {
        let topics = self.started.definition.topics.clone().unwrap_or_else(TopicPatterns::all);
        let unpark = TopicPattern::Exact(unpark_topic(&self.version.key));
        let both = topics.as_slice().iter().cloned().chain([unpark]).collect();
        TopicPatterns::new(both).unwrap_or(topics)
    }

    /// Replaces each `unpark` frame by the parked input it names. Inputs parked before a reset are
    /// left out, since the reset offers them again anyway.
    pub(super) async fn with_unparked(&self, frames: Vec<Delivered>) -> Step<Vec<Offered>> {
        let topic = unpark_topic(&self.version.key);
        let mut offered = Vec::with_capacity(frames.len());
        for delivered in frames {
            let at = delivered.frame.offset();
            if delivered.frame.topic() != topic.as_str() {
                offered.push(Offered { delivered, at });
                continue;
            }
            let record = self.record(&delivered.frame).await?;
            let is_of_before =
                |began: Began| record.as_ref().is_some_and(|of| !began.has_parked(of));
            if self.saved.began.is_some_and(is_of_before) {
                continue;
            }
            match self.frame_of(record.and_then(|record| about(&record, "frame"))).await? {
                Some(frame) => {
                    offered.push(Offered { delivered: Delivered { frame, body: None }, at });
                }
                None => {
                    let text = format!(
                        "frame {} unparks nothing: it does not name a parked input of this \
                         handler, or the input is no longer in the store",
                        delivered.frame.id()
                    );
                    self.version.backend.log(LogLevel::Warn, text, None);
                }
            }
        }
        Ok(offered)
    }

    /// The record of the parked input that an `unpark` is about.
    async fn record(&self, unpark: &Frame) -> Step<Option<Frame>> {
        let record = self.frame_of(about(unpark, PARKED)).await?;
        let own = self.version.key.name.topic(PARKED);
        Ok(record.filter(|record| record.topic() == own.as_str()))
    }

    async fn frame_of(&self, id: Option<FrameId>) -> Step<Option<Frame>> {
        let Some(id) = id else { return Ok(None) };
        self.version.shared().client.get(Bound::Id(id)).await.map_err(lost_or_again)
    }
}
