//! Removes single frames. A removal is a tombstone in the log, appended like anything else; the
//! frame's bytes stay until its segment is compacted.

use crate::append::{Batch, LookedUp, Target};
use crate::error::AppendError;
use crate::store::{Inner, Store};
use crate::value::{Appended, FrameId, Removal};

impl Store {
    /// Removes a frame: on return it is invisible to every way of reading. Removing a frame that
    /// does not exist is not an error.
    ///
    /// # Errors
    /// [`AppendError`]; except for [`AppendError::Indeterminate`], nothing was removed.
    pub fn remove(&self, id: FrameId) -> Result<Removal, AppendError> {
        let batch = Batch { removes: vec![id], ..Batch::default() };
        let Appended { removed, .. } = self.append(batch)?;
        Ok(removed.first().copied().unwrap_or(Removal::Absent))
    }
}

impl Inner {
    /// The state of the log to note before frames are looked up: lookups are as of then or later.
    pub(crate) fn looked_up(&self) -> LookedUp {
        LookedUp { rewrites: self.index.rewrites(), head: self.log.head() }
    }

    /// The frame with an id, if it is visible.
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
