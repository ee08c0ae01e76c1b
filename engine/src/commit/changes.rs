//! Changes of cursors between their batch and publication. A batch sees the changes that earlier
//! batches of its group made.

use std::collections::HashMap;

use crate::append::Pending;
use crate::cursors::{CursorRoom, Cursors, HeldCursor, checkpoint_len, record_len};
use crate::error::AppendError;
use crate::store::Inner;
use crate::value::{CursorName, ExpectRevision};

/// A cursor's new value; `None` if it is removed.
pub(super) type Change = (CursorName, Option<HeldCursor>);

/// The changes of the group that is being laid out.
#[derive(Debug)]
pub(super) struct Changes {
    changed: HashMap<CursorName, Option<HeldCursor>>,
    /// Bytes and number of cursors of the table restated with these changes.
    bytes: usize,
    count: usize,
}

impl Changes {
    /// No changes yet.
    pub(super) fn new(table: &Cursors) -> Self {
        Self { changed: HashMap::new(), bytes: table.restated_bytes(), count: table.len() }
    }

    fn held<'a>(&'a self, table: &'a Cursors, name: &CursorName) -> Option<&'a HeldCursor> {
        match self.changed.get(name) {
            Some(changed) => changed.as_ref(),
            None => table.get(name),
        }
    }

    /// Checks a batch's conditions on its cursors and returns the revisions they get.
    pub(super) fn check(&self, inner: &Inner, pending: &Pending) -> Result<Vec<u64>, AppendError> {
        let changes = &pending.batch.cursors;
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let table = inner.cursors.read();
        let (mut bytes, mut count) = (self.bytes, self.count);
        let mut revisions = Vec::with_capacity(changes.len());
        for (change, state) in changes.iter().zip(&pending.states) {
            let held = self.held(&table, &change.name);
            let actual = held.map_or(0, |held| held.revision);
            if let ExpectRevision::Is(expected) = change.expect
                && expected != actual
            {
                let name = change.name.clone();
                return Err(AppendError::CursorConflict { name, expected, actual });
            }
            bytes -= held.map_or(0, |held| held.record_len(&change.name));
            count -= usize::from(held.is_some());
            if state.is_some() {
                bytes += record_len(&change.name, state.as_ref());
                count += 1;
            }
            revisions.push(if state.is_some() { actual + 1 } else { 0 });
        }
        // A table that is already full may still be changed and shrunk.
        let grows = bytes > self.bytes || count > self.count;
        let room = CursorRoom::new(inner.env.options.segment_bytes);
        if grows && !room.fits(count, bytes) {
            return Err(AppendError::TooManyCursors);
        }
        Ok(revisions)
    }

    /// Records the changes of a batch that was laid out.
    pub(super) fn take(&mut self, inner: &Inner, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        let table = inner.cursors.read();
        for (name, held) in changes {
            let len = |held: &HeldCursor| held.record_len(&name);
            let old = self.held(&table, &name).map(len);
            self.bytes -= old.unwrap_or(0);
            self.count -= usize::from(old.is_some());
            self.bytes += held.as_ref().map_or(0, len);
            self.count += usize::from(held.is_some());
            self.changed.insert(name, held);
        }
    }

    /// The table with these changes, as a checkpoint restates it.
    pub(super) fn restated<'a>(
        &'a self,
        table: &'a Cursors,
    ) -> Vec<(&'a CursorName, &'a HeldCursor)> {
        let unchanged = table.iter().filter(|(name, _)| !self.changed.contains_key(*name));
        let changed = self.changed.iter();
        unchanged.chain(changed.filter_map(|(name, held)| Some((name, held.as_ref()?)))).collect()
    }

    /// Upper bound of the bytes of such a checkpoint.
    pub(super) const fn checkpoint_len(&self) -> usize {
        checkpoint_len(self.count, self.bytes)
    }

    /// Makes the changes visible to readers.
    pub(super) fn publish(&mut self, inner: &Inner) {
        if self.changed.is_empty() {
            return;
        }
        let mut table = inner.cursors.write();
        self.changed.drain().for_each(|(name, held)| table.set(name, held));
    }
}
