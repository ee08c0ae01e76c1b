//! Parked inputs that are handled again: a frame `xs.handler.<name>.unpark` is an input, in place
//! of which the handler receives the parked frame. So that is handled once, in order with all
//! others, and parked again if it fails again.

use serde_json::Value;
use xs_engine::{Frame, FrameId};
use xs_protocol::Delivered;

use super::inputs::Offered;
use super::offer::{Unparked, unpark_topic, unparked};
use super::{Handler, Step, lost_or_again};
use crate::isolate::LogLevel;

/// Last part of the topic of parked inputs, after the handler's name.
pub const PARKED: &str = "parked";

/// The frame that an `unpark`, a `discard` or a record of a parked input is about.
#[must_use]
pub fn about(frame: &Frame, field: &str) -> Option<FrameId> {
    let meta: Value = serde_json::from_slice(frame.meta()).ok()?;
    FrameId::parse(meta.get(field)?.as_str()?).ok()
}

impl Handler {
    /// Replaces each `unpark` frame by the parked input it names. Inputs parked before a reset are
    /// left out, since the reset offers them again anyway.
    pub(super) async fn with_unparked(&self, frames: Vec<Delivered>) -> Step<Vec<Offered>> {
        let key = &self.version.key;
        let topic = unpark_topic(key);
        let client = &self.version.shared().client;
        let mut offered = Vec::with_capacity(frames.len());
        for delivered in frames {
            let at = delivered.frame.offset();
            if delivered.frame.topic() != topic.as_str() {
                offered.push(Offered { delivered, at });
                continue;
            }
            let unparked = unparked(client, key, self.saved.began, &delivered.frame).await;
            match unparked.map_err(lost_or_again)? {
                Unparked::Input(frame) => {
                    offered.push(Offered { delivered: Delivered { frame, body: None }, at });
                }
                Unparked::Before => {}
                Unparked::Nothing => {
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
}
