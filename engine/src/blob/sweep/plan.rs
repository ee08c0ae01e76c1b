//! Plans a sweep: which packs lose blobs, and which are merged. Reads headers and tables of packs
//! that have dead blobs; changes nothing.

use super::super::error::BlobError;
use super::super::sealed::{Opened, TOUCH_MS};
use super::marks::Marked;
use super::{Condemned, Marker, Sweep, SweepError};
use crate::error::Corruption;
use crate::format::file::{FILE_HEADER_LEN, FormatError};
use crate::format::pack::{BlockTable, ENTRY_HEADER_LEN, EntryKind};
use crate::format::pack_index::COUNT_MAX;
use crate::planted::{Bug, is_planted};

/// A pack smaller than a full one by this factor is merged with its neighbours.
const SMALL_FACTOR: u64 = 4;
/// This many small neighbours are worth a rewrite that frees nothing.
const SMALL_COUNT: usize = 4;

/// Packs that are replaced by one, or by none when none of their blobs is wanted.
#[derive(Debug)]
pub(crate) struct Group {
    /// Their numbers, in order.
    pub(super) numbers: Vec<u64>,
    /// Upper bound of the bytes of the pack that replaces them; 0 when there is none.
    pub(super) room: u64,
}

impl Group {
    /// Whether it has no packs.
    pub(crate) fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }
}

/// The result of planning.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) groups: Vec<Group>,
    pub(crate) tally: Tally,
}

/// Counts of the blobs and packs examined.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) packs: u64,
    pub(crate) blobs: u64,
    /// Unnamed, but in packs that are too young.
    pub(crate) young: u64,
    /// Bytes of those in their files, by their share in the number of blobs.
    pub(crate) young_bytes: u64,
    pub(crate) dead: u64,
    pub(crate) dead_bytes: u64,
    /// Those of the dead that are removed.
    pub(crate) swept: u64,
    pub(crate) swept_bytes: u64,
    pub(crate) dropped: u64,
    pub(crate) rewritten: u64,
    pub(crate) damaged: Vec<Corruption>,
}

/// The effect of a sweep on a pack.
#[derive(Debug, Clone, Copy, Default)]
struct Weight {
    dead: u64,
    dead_bytes: u64,
    bytes: u64,
    /// Upper bound of the bytes of the entries that stay.
    room: u64,
    live: u64,
}

impl Condemned {
    /// Whether a pack is skipped because a blob was put into it recently.
    pub(super) fn spares(&self, newest_ms: u64, now_ms: u64) -> bool {
        match self {
            _ if is_planted(Bug::IgnoreGrace) => false,
            Self::Unnamed { grace_ms: 0, .. } | Self::These(_) => false,
            Self::Unnamed { grace_ms, .. } => {
                now_ms.saturating_sub(newest_ms) < grace_ms.saturating_add(TOUCH_MS)
            }
        }
    }

    /// Whether small packs are merged along the way.
    const fn merges(&self) -> bool {
        matches!(self, Self::Unnamed { .. })
    }

    const fn is_worth_it(&self, weight: &Weight) -> bool {
        match self {
            Self::These(_) => true,
            Self::Unnamed { dead_percent, .. } => {
                weight.dead_bytes as u128 * 100 >= *dead_percent as u128 * weight.bytes as u128
            }
        }
    }
}

impl Sweep<'_> {
    /// Decides what to do. Packs that cannot be read are reported and skipped.
    pub(crate) fn plan(
        &self,
        marker: &mut Marker,
        condemned: &Condemned,
    ) -> Result<Plan, SweepError> {
        let mut plan = Plan::default();
        let now_ms = self.shared.env.clock.now_ms();
        let mut together = Together::new(self.shared.env.options.pack_bytes);
        for (&number, marked) in &mut marker.packs {
            self.check_stop()?;
            plan.tally.packs += 1;
            plan.tally.blobs += marked.count as u64;
            let dead = marked.dead() as u64;
            let young = condemned.spares(marked.newest_ms, now_ms);
            if young {
                plan.tally.young += dead;
                let (length, of) = (marked.line().length, marked.count.max(1));
                plan.tally.young_bytes +=
                    (u128::from(length) * u128::from(dead) / of as u128) as u64;
                together.end(&mut plan);
                continue;
            }
            let weight = match self.weigh(marked) {
                Ok(weight) => weight,
                Err(BlobError::Corrupt(corruption)) => {
                    plan.tally.damaged.push(corruption);
                    together.end(&mut plan);
                    continue;
                }
                Err(error) => return Err(SweepError::Read(error)),
            };
            plan.tally.dead += weight.dead;
            plan.tally.dead_bytes += weight.dead_bytes;
            let goes = weight.dead > 0 && condemned.is_worth_it(&weight);
            if goes {
                marked.choose();
                plan.tally.swept += weight.dead;
                plan.tally.swept_bytes += weight.dead_bytes;
            }
            match goes {
                true if weight.live == 0 => {
                    plan.tally.dropped += 1;
                    plan.groups.push(Group { numbers: vec![number], room: 0 });
                }
                true => {
                    plan.tally.rewritten += 1;
                    together.add(number, &weight, &mut plan);
                }
                false if condemned.merges() && weight.dead == 0 && together.is_small(&weight) => {
                    together.add(number, &weight, &mut plan);
                }
                false => together.end(&mut plan),
            }
        }
        together.end(&mut plan);
        // Groups that free space without using any come first.
        plan.groups.sort_by_key(|group| group.room > 0);
        Ok(plan)
    }

    fn weigh(&self, marked: &Marked) -> Result<Weight, BlobError> {
        let opened = marked.opened(self.shared)?;
        let mut weight = Weight { live: marked.count as u64, ..Weight::default() };
        if marked.dead() == 0 {
            weight.room = marked.line().length.saturating_sub(FILE_HEADER_LEN as u64);
            return Ok(weight);
        }
        if let Some(at) = opened.damage() {
            return Err(opened.corrupt(at, FormatError::Crc));
        }
        weigh_entries(marked, &opened, &mut weight)?;
        Ok(weight)
    }
}

fn weigh_entries(marked: &Marked, opened: &Opened, weight: &mut Weight) -> Result<(), BlobError> {
    let dead = marked.dead_blobs(opened);
    let mut rest = &dead[..];
    let mut walk = opened.walk();
    while let Some(entry) = walk.next()? {
        let header = entry.header();
        let (here, later) = split(rest, entry.at());
        rest = later;
        weight.bytes += header.raw_len;
        weight.dead += here.len() as u64;
        let alone = |len: u64| ENTRY_HEADER_LEN as u64 + len.next_multiple_of(8);
        if here.is_empty() {
            weight.room += header.stride().max(alone(header.raw_len.min(header.stored_len)));
        } else if header.kind == EntryKind::Block {
            let stored = entry.stored()?;
            let table = BlockTable::read(header, &stored).map_err(|what| entry.corrupt(what))?;
            let mut dead = here.iter().map(|(_, number)| *number).peekable();
            for (len, number) in table.lengths().zip(0..) {
                match dead.next_if_eq(&number) {
                    Some(_) => weight.dead_bytes += len,
                    None => weight.room += alone(len),
                }
            }
        } else {
            weight.dead_bytes += header.raw_len;
        }
    }
    // An entry that is in the index and not found by the walk counts as damage too.
    let hole = walk.hole().or_else(|| rest.first().map(|(slot, _)| u64::from(*slot) * 8));
    if let Some(at) = hole {
        return Err(opened.corrupt(at, FormatError::Crc));
    }
    weight.live -= weight.dead;
    Ok(())
}

/// The location of a blob: position of its entry divided by 8, and its number in the entry.
pub(super) type BlobAt = (u32, u32);

/// The blobs in the entry at a position, and those after it.
pub(super) fn split(blobs: &[BlobAt], at: u64) -> (&[BlobAt], &[BlobAt]) {
    // A blob before this entry is in none that was found; it stays in front and is reported as
    // damage.
    let here = blobs.iter().take_while(|(slot, _)| u64::from(*slot) * 8 == at).count();
    blobs.split_at(here)
}

/// Neighbours that may be merged.
struct Together {
    pack_bytes: u64,
    group: Group,
    count: u64,
    frees: bool,
}

impl Together {
    const fn new(pack_bytes: u64) -> Self {
        let group = Group { numbers: Vec::new(), room: 0 };
        Self { pack_bytes, group, count: 0, frees: false }
    }

    const fn is_small(&self, weight: &Weight) -> bool {
        weight.room <= self.pack_bytes / SMALL_FACTOR
    }

    fn add(&mut self, number: u64, weight: &Weight, plan: &mut Plan) {
        let full =
            self.group.room + weight.room > self.pack_bytes || self.count + weight.live > COUNT_MAX;
        if full {
            self.end(plan);
        }
        self.group.numbers.push(number);
        self.group.room += weight.room;
        self.count += weight.live;
        self.frees |= weight.dead > 0;
    }

    fn end(&mut self, plan: &mut Plan) {
        let next = Self::new(self.pack_bytes);
        let ended = std::mem::replace(self, next);
        if ended.frees || ended.group.numbers.len() >= SMALL_COUNT {
            plan.groups.push(ended.group);
        }
    }
}
