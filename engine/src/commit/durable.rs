//! Makes written groups durable: a small one by one sync of the journal, the rest by syncing log
//! and packs.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::writer::Writer;
use crate::blob::Undurable;
use crate::format::journal::{PieceAt, encode, entry_len};
use crate::format::super_file::FileKind;
use crate::journal::{Journal, JournalSlot, Offer};
use crate::media::{Media, is_full};
use crate::planted::{Bug, is_planted};
use crate::store::Inner;

/// A group that goes through the journal, or would if the journal had a slot.
pub(super) struct Entered {
    bodies: Undurable,
    slot: Option<JournalSlot>,
}

impl Writer {
    /// Reserves a slot in the journal for the group, if the group qualifies: everything before it
    /// is durable, it lies in one segment, and it is short.
    pub(super) fn enter(&mut self, inner: &Inner) -> io::Result<Option<Entered>> {
        let Some((segment, position, bytes)) = self.appender.laid_out() else { return Ok(None) };
        let max = Journal::group_max(&inner.env).checked_sub(bytes.len() as u64);
        if self.appender.has_rolled() || max.is_none() || !inner.journal.is_ready(inner)? {
            return Ok(None);
        }
        let bodies = max.and_then(|max| inner.blobs.undurable(max));
        let Some(bodies) = bodies else { return Ok(None) };
        let place = PieceAt {
            kind: FileKind::Segment,
            file: segment.uuid(),
            base: segment.base(),
            generation: segment.generation(),
            position,
        };
        let pieces: Vec<_> = std::iter::once((place, bytes)).chain(bodies.pieces()).collect();
        Ok(match inner.journal.place(entry_len(&pieces), self.appender.epoch()) {
            Offer::Slot(slot) => {
                encode(&mut self.entry, slot.stamp, &pieces);
                Some(Entered { bodies, slot: Some(slot) })
            }
            Offer::Full => Some(Entered { bodies, slot: None }),
            Offer::None => None,
        })
    }

    /// Makes the written group durable in the journal; or in place, if one half of the journal is
    /// full and the other is not settled yet.
    pub(super) fn journal(
        &self,
        inner: &Inner,
        Entered { bodies, slot }: &Entered,
    ) -> io::Result<()> {
        let Some(slot) = slot else { return self.settle(inner) };
        match slot.media.write_at(slot.at, &self.entry) {
            // A copy-on-write filesystem may have no space even to overwrite allocated blocks.
            Err(error) if is_full(&error) => {
                inner.journal.give_up();
                return self.settle(inner);
            }
            written => written?,
        }
        if !is_planted(Bug::SkipJournalSync) {
            slot.media.sync()?;
        }
        bodies.note_durable();
        inner.durable_upto.fetch_max(self.appender.next_seq(), Ordering::AcqRel);
        if slot.turned {
            inner.upkeep.wake();
        }
        Ok(())
    }

    /// Makes everything written durable, log and packs at once.
    pub(crate) fn sync(&self, inner: &Inner) -> io::Result<()> {
        self.sync_through(inner, |media| inner.sync_files(media))
    }

    /// Makes everything written durable in place, including what is durable only in the journal so
    /// far.
    pub(crate) fn settle(&self, inner: &Inner) -> io::Result<()> {
        self.sync_through(inner, |media| inner.settle_files(media))?;
        inner.journal.all_settled();
        Ok(())
    }

    fn sync_through(
        &self,
        inner: &Inner,
        sync: impl FnOnce(&[&Arc<dyn Media>]) -> io::Result<()>,
    ) -> io::Result<()> {
        let waiting = inner.sealing.waiting();
        let media: Vec<_> = waiting.iter().chain(self.appender.media()).collect();
        sync(&media)?;
        // After the syncs: the next header may then claim that everything before it is durable.
        inner.durable_upto.fetch_max(self.appender.next_seq(), Ordering::AcqRel);
        Ok(())
    }
}
