//! What readers would see of a store that is not open: frames that were removed or have expired may
//! have lost their blobs, and that is not damage.

use std::sync::Arc;

use crate::env::Env;
use crate::index::Index;
use crate::recovery::segments_to_read;
use crate::value::Frame;

/// Distinguishes visible frames from removed and expired ones.
#[derive(Debug)]
pub(super) struct Visible {
    now_ms: u64,
    /// `None` when the segments cannot be read: then everything counts.
    index: Option<Index>,
}

impl Visible {
    /// Reads which frames of a store are dead.
    pub(super) fn of(env: &Arc<Env>) -> Self {
        let index = Index::open(Arc::clone(env), &segments_to_read(env), false).ok();
        Self { now_ms: env.clock.now_ms(), index }
    }

    /// Whether readers would see a frame.
    pub(super) fn sees(&self, frame: &Frame) -> bool {
        let expired = frame.expires_ms().is_some_and(|at| at <= self.now_ms);
        let hidden = self.index.as_ref().zip(frame.offset());
        let hidden =
            hidden.is_some_and(|(index, offset)| index.is_hidden(frame.topic(), offset, u64::MAX));
        !expired && !hidden
    }
}
