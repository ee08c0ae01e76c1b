//! Writing the next generation of a group of packs without the blobs that are not wanted. Nothing
//! counts before the switch: whatever goes wrong here leaves the packs as they are.

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

/// The pack that takes the place of a group, written and in no manifest; none when nothing is left.
#[derive(Debug)]
pub(crate) struct Rewritten(pub(super) Option<Built>);

/// Why a group was not rewritten.
#[derive(Debug)]
enum NotRewritten {
    /// This pack of it is damaged.
    Damaged(u64, Corruption),
    Other(SweepError),
}

impl Condemned {
    /// Whether a blob in a place that was chosen by the beginning of its hash is meant.
    fn means(&self, hash: &BlobHash) -> bool {
        match self {
            Self::Unnamed { .. } => true,
            Self::These(hashes) => hashes.contains(hash),
        }
    }
}

impl Sweep<'_> {
    /// Writes what stays of a group. A pack that turns out to be damaged is told of and left, and
    /// the group falls in two: what is returned then is the damage and the two groups.
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

    /// Adds to `builder` what stays of a pack.
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

    /// Adds what stays of an entry; `dead` are the blobs in it that were chosen.
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
            // Its hashes are not stored: that they are those it had, the index tells.
            match opened.lists(hash, slot_of(entry.at()), number) {
                true => Ok(!(chosen(number) && condemned.means(hash))),
                false => Err(entry.corrupt(FormatError::Field("SHA-256"))),
            }
        })
    }

    /// Removes what was written for a group that stays as it is.
    pub(crate) fn abandon(&self, rewritten: Rewritten) {
        if let Some(built) = rewritten.0 {
            // What stays is removed at the next open.
            let _ = super::remove_dropped(&self.shared.env, &built.line);
        }
    }
}
