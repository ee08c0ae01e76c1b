//! Writes the next generation of a group of packs without the unwanted blobs. Nothing counts before
//! the switch: any failure here leaves the packs unchanged.

use super::super::build::{Builder, Built};
use super::super::entry::Entry;
use super::super::error::BlobError;
use super::super::seal::finish;
use super::super::sealed::Opened;
use super::marks::Marked;
use super::plan::{BlobAt, split};
use super::{Condemned, Group, Marker, Sweep, SweepError};
use crate::error::Corruption;
use crate::format::file::{FILE_HEADER_LEN, FormatError};
use crate::format::pack::{EntryKind, slot_of};
use crate::value::BlobHash;

/// The pack that replaces a group, written but in no manifest; `None` when nothing is left.
#[derive(Debug)]
pub(crate) struct Rewritten(pub(super) Option<Built>);

/// Why a group was not rewritten.
#[derive(Debug)]
enum NotRewritten {
    /// The pack with this number is damaged.
    Damaged(u64, Corruption),
    Other(SweepError),
}

impl Condemned {
    /// Whether a blob is condemned, given that its hash prefix is.
    fn means(&self, hash: &BlobHash) -> bool {
        match self {
            Self::Unnamed { .. } => true,
            Self::These(hashes) => hashes.contains(hash),
        }
    }
}

impl Sweep<'_> {
    /// Writes what is kept of a group. If a pack turns out to be damaged it is skipped, and the
    /// group is split in two: the damage and the two groups are returned.
    pub(crate) fn rewrite(
        &self,
        marker: &Marker,
        group: &Group,
        condemned: &Condemned,
    ) -> Result<Result<Rewritten, (Corruption, [Group; 2])>, SweepError> {
        match self.write(marker, group, condemned) {
            Ok(built) => Ok(Ok(Rewritten(built))),
            Err(NotRewritten::Damaged(number, corruption)) => {
                let (before, after): (Vec<_>, Vec<_>) = group
                    .numbers
                    .iter()
                    .filter(|other| **other != number)
                    .partition(|other| **other < number);
                let part = |numbers| Group { numbers, room: group.room };
                Ok(Err((corruption, [part(before), part(after)])))
            }
            Err(NotRewritten::Other(error)) => Err(error),
        }
    }

    fn write(
        &self,
        marker: &Marker,
        group: &Group,
        condemned: &Condemned,
    ) -> Result<Option<Built>, NotRewritten> {
        let other = |error| NotRewritten::Other(SweepError::of(error));
        let packs = || group.numbers.iter().filter_map(|number| marker.packs.get(number));
        let Some(first) = packs().next().filter(|_| group.room > 0) else { return Ok(None) };
        let env = &self.shared.env;
        let (number, generation) = (first.line().base, first.next_generation());
        let room = FILE_HEADER_LEN as u64 + group.room;
        let dir = env.blob_dir();
        let mut builder = Builder::create(env, (number, generation), room)
            .map_err(|error| other(BlobError::io(&dir, error)))?;
        for marked in packs() {
            if let Err(error) = self.copy(marked, condemned, &mut builder) {
                builder.abandon();
                return Err(error);
            }
        }
        let built = finish(env, builder).map_err(other)?;
        built.write_index(env);
        Ok(Some(built))
    }

    /// Adds what is kept of a pack to `builder`.
    fn copy(
        &self,
        marked: &Marked,
        condemned: &Condemned,
        builder: &mut Builder,
    ) -> Result<(), NotRewritten> {
        let number = marked.line().base;
        let fault = |error| match error {
            BlobError::Corrupt(corruption) => NotRewritten::Damaged(number, corruption),
            other => NotRewritten::Other(SweepError::of(other)),
        };
        let opened = marked.opened(self.shared).map_err(fault)?;
        let dead = marked.dead_blobs(&opened);
        let mut rest = &dead[..];
        let mut walk = opened.walk();
        while let Some(entry) = walk.next().map_err(fault)? {
            self.pass(entry.header().stride()).map_err(NotRewritten::Other)?;
            let (here, later) = split(rest, entry.at());
            rest = later;
            self.keep(entry, here, (&opened, condemned), builder).map_err(fault)?;
        }
        let hole = walk.hole().or_else(|| rest.first().map(|(slot, _)| u64::from(*slot) * 8));
        match hole {
            Some(at) => Err(fault(opened.corrupt(at, FormatError::Crc))),
            None => Ok(()),
        }
    }

    /// Adds what is kept of an entry; `dead` are the blobs in it that were chosen.
    fn keep(
        &self,
        entry: Entry,
        dead: &[BlobAt],
        (opened, condemned): (&Opened, &Condemned),
        builder: &mut Builder,
    ) -> Result<(), BlobError> {
        let header = entry.header();
        if header.kind != EntryKind::Block {
            let goes = !dead.is_empty() && condemned.means(&header.hash);
            return if goes { Ok(()) } else { builder.add(entry) };
        }
        let chosen = |number: u32| dead.binary_search_by_key(&number, |(_, n)| *n).is_ok();
        builder.add_block(&entry, |number, hash| {
            // A BLOCK does not store its hashes: the index confirms that they are unchanged.
            match opened.lists(hash, slot_of(entry.at()), number) {
                true => Ok(!(chosen(number) && condemned.means(hash))),
                false => Err(entry.corrupt(FormatError::Field("SHA-256"))),
            }
        })
    }

    /// Removes what was written for a group that is left unchanged.
    pub(crate) fn abandon(&self, rewritten: Rewritten) {
        if let Some(built) = rewritten.0 {
            // If it remains, the next open removes it.
            let _ = super::remove_dropped(&self.shared.env, &built.line);
        }
    }
}
