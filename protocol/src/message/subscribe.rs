//! SUBSCRIBE, DELIVER, CREDIT, UNSUBSCRIBE, SUB_EVENT: frames as they come.

use std::time::Duration;

use bytes::Bytes;
use xs_engine::Frame;

use crate::error::Refusal;
use crate::limits::CREDIT_DEFAULT;

/// How a subscription is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// Bytes the server may send ahead of what was taken.
    pub credit: u32,
    /// A [`SubEvent::Pulse`] so often.
    pub pulse: Option<Duration>,
    /// Bodies up to so many bytes travel with their frames.
    pub bodies_up_to: u32,
}

impl Default for SubscribeOptions {
    fn default() -> Self {
        Self { credit: CREDIT_DEFAULT, pulse: None, bodies_up_to: 0 }
    }
}

/// A frame, and its body when that was asked for and is small enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// The frame.
    pub frame: Frame,
    /// Its body.
    pub body: Option<Bytes>,
}

/// What a subscription tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubEvent {
    /// Frames, in the order of the log.
    Frames {
        /// The frames; may be none when only `scanned_to` moved.
        frames: Vec<Delivered>,
        /// The offset to go on from after these frames.
        scanned_to: u64,
    },
    /// All that was stored at the beginning has been delivered; comes once.
    CaughtUp {
        /// The offset the next frame had then.
        head: u64,
    },
    /// The time asked for has passed.
    Pulse,
    /// Frames are missing here.
    Gap(Gap),
    /// The server ended the subscription; go on from `resume`.
    Dropped {
        /// Why.
        refusal: Refusal,
        /// The offset to go on from.
        resume: u64,
    },
}

/// Frames that were skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gap {
    /// Stored frames that cannot be read: `from..to`.
    Corrupt {
        /// The first.
        from: u64,
        /// The one after the last.
        to: u64,
    },
    /// So many ephemeral frames came faster than they were taken.
    Ephemeral {
        /// How many.
        count: u64,
    },
}
