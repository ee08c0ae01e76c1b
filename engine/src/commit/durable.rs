//! Making what the writer has written durable: a small group by one sync of the journal, the rest
//! where it lies.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::writer::Writer;
use crate::blob::Undurable;
use crate::format::journal::{PieceAt, encode, entry_len};
use crate::format::super_file::FileKind;
use crate::journal::{Journal, Offer, Spot};
use crate::media::{Media, is_full};
use crate::planted::{Bug, is_planted};
use crate::store::Inner;

/// A group that goes through the journal, or would but for want of a place.
pub(super) struct Entered {
    bodies: Undurable,
    spot: Option<Spot>,
}

impl Writer {
    /// Takes a place in the journal for the group, if it is one for the journal: all before it is
    /// durable, it is in one segment, and not long.
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
            Offer::Spot(spot) => {
                encode(&mut self.entry, spot.stamp, &pieces);
                Some(Entered { bodies, spot: Some(spot) })
            }
            Offer::Full => Some(Entered { bodies, spot: None }),
            Offer::None => None,
        })
    }

    /// Makes the group, which was written, durable in the journal; in its place if a half of the
    /// journal is full and nobody has settled the other one.
    pub(super) fn journal(
        &self,
        inner: &Inner,
        Entered { bodies, spot }: &Entered,
    ) -> io::Result<()> {
        let Some(spot) = spot else { return self.settle(inner) };
        match spot.media.write_at(spot.at, &self.entry) {
            // A filesystem that never writes in place may have no room for what has its space.
            Err(error) if is_full(&error) => {
                inner.journal.give_up();
                return self.settle(inner);
            }
            written => written?,
        }
        if !is_planted(Bug::SkipJournalSync) {
            spot.media.sync()?;
        }
        bodies.note_durable();
        inner.durable_upto.fetch_max(self.appender.next_seq(), Ordering::AcqRel);
        if spot.turned {
            inner.upkeep.wake();
        }
        Ok(())
    }

    /// Makes everything written durable, log and packs at once.
    pub(crate) fn sync(&self, inner: &Inner) -> io::Result<()> {
        self.sync_through(inner, |media| inner.sync_files(media))
    }

    /// Makes everything written durable in its place, also what the journal made durable.
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
        // After the syncs: the next header may say that all before it is durable.
        inner.durable_upto.fetch_max(self.appender.next_seq(), Ordering::AcqRel);
        Ok(())
    }
}
