//! Removing single frames. A removal is a tombstone in the log, written like anything else that is
//! appended; the frame's bytes stay until its segment is compacted.

use crate::append::{Batch, LookedUp, Target};
use crate::error::AppendError;
use crate::store::{Inner, Store};
use crate::value::{Appended, FrameId, Removal};

impl Store {
    /// Removes a frame: when this returns it is gone on every path. Removing one that is not there
    /// is no error.
    ///
    /// # Errors
    /// [`AppendError`]; but for [`AppendError::Indeterminate`] nothing was removed.
    pub fn remove(&self, id: FrameId) -> Result<Removal, AppendError> {
        let batch = Batch { removes: vec![id], ..Batch::default() };
        let Appended { removed, .. } = self.append(batch)?;
        Ok(removed.first().copied().unwrap_or(Removal::Absent))
    }
}

impl Inner {
    /// When frames are looked up: asked before, so that they are as of then or later.
    pub(crate) fn looked_up(&self) -> LookedUp {
        LookedUp { rewrites: self.index.rewrites(), head: self.log.head() }
    }

    /// The frame with an id, when a reader could see it.
    pub(crate) fn target(&self, id: FrameId) -> Result<Option<Target>, AppendError> {
        let found = self.get(id).map_err(AppendError::Unreadable)?;
        Ok(found.and_then(|frame| {
            let (offset, len) = (frame.offset()?, frame.record().len() as u32);
            // It may have been found by the id it had before it was imported.
            let (id, topic) = (frame.id(), frame.topic().into());
            Some(Target { id, offset, len, topic })
        }))
    }
}
