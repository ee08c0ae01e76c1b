//! Makes a log that was not closed in order fit to be written: what is whole is kept and made
//! durable, the rest is gone for good.
//!
//! Batches that may not be durable are not trusted where they lie: after a failed sync the disk may
//! have less than the page cache shows. Their segment is written anew as the next generation,
//! synced, and named in the manifest in one step with everything else that changes; only then does
//! the old file go. New files wait under a name that ends in `.tmp` and old ones to be dropped are
//! renamed to such a name first, so at every moment the manifest tells which files are meant.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::copy::{Copied, copy, crc_of, unfinished};
use super::files::path_of;
use super::opening::Opening;
use super::replay::{Tables, has_blobs, replay};
use super::report::Cut;
use super::scan::Walk;
use super::{Examined, Recovered};
use crate::blob::Blobs;
use crate::env::Env;
use crate::format::file::FILE_HEADER_LEN;
use crate::format::super_file::{FileEntry, FileKind, FileState};
use crate::log::{Active, OpenFiles, Segment, SegmentKey, unmarked};
use crate::planted::{Bug, is_planted};

/// What becomes of an unmarked segment.
#[derive(Debug)]
enum Fate {
    /// It is written to again as it is.
    GoOn,
    /// It ends where its last batch does, and is sealed.
    Seal { crc: u32 },
    /// It is written anew.
    Copy(Copied),
    /// Nothing in it counts.
    Drop,
}

/// What is to be done about the unmarked segments. It is done when the store is opened, or, if the
/// disk is too full for that, before the first append that finds room.
#[derive(Debug)]
pub(crate) struct Plan {
    examined: Vec<Examined>,
    /// The last segment that is kept: it goes on being written to. Those after it are dropped.
    last: Option<usize>,
    durable_upto: u64,
    next_seq: u64,
    next_offset: u64,
}

/// Decides about the unmarked segments; nothing is changed on disk. `before` is the seq and offset
/// they begin with, when what is in them does not say so.
pub(super) fn plan(
    opening: &mut Opening,
    mut examined: Vec<Examined>,
    before: Option<(u64, u64)>,
) -> io::Result<Plan> {
    let durable_upto =
        examined.iter().map(|one| one.scanned.durable_upto).max().unwrap_or_default();
    let kept = keep(opening, &mut examined, before, durable_upto)?;
    let last = examined[..kept].iter().rposition(|one| one.scanned.first_seq.is_some());
    let last = last.or_else(|| kept.checked_sub(1));
    let (mut next_seq, mut next_offset) = before.unwrap_or_default();
    for one in last.map_or(&[][..], |last| &examined[..=last]) {
        next_seq = one.scanned.next_seq.unwrap_or(next_seq);
        next_offset = one.scanned.next_offset;
    }
    Ok(Plan { examined, last, durable_upto, next_seq, next_offset })
}

impl Plan {
    /// Carries the plan out. After an error it may be carried out again.
    pub(crate) fn carry_out(
        &self,
        env: &Env,
        blobs: &Blobs,
        open_files: &Arc<OpenFiles>,
    ) -> io::Result<Recovered> {
        // What frames that are kept refer to becomes durable with them.
        blobs.sync()?;
        let mut fates = Vec::new();
        for (index, one) in self.examined.iter().enumerate() {
            fates.push(match self.last {
                Some(last) if index <= last => decide(env, one, index == last, self.durable_upto)?,
                _ => Fate::Drop,
            });
        }
        apply(env, &self.examined, &fates)?;
        let mut recovered = Recovered::default();
        for (one, fate) in self.examined.iter().zip(fates) {
            settle(env, open_files, &mut recovered, one, fate)?;
        }
        let (next_seq, next_offset) = (self.next_seq, self.next_offset);
        Ok(Recovered { next_seq, next_offset, durable_upto: next_seq, ..recovered })
    }

    /// The log as it can be read before the plan was carried out.
    pub(super) fn deferred(self, env: &Env, open_files: &Arc<OpenFiles>) -> Recovered {
        let kept = self.last.map_or(&[][..], |last| &self.examined[..=last]);
        let segment = |one: &Examined| {
            let frames = one.scanned.next_offset - one.key.base;
            let path = path_of(env, &one.file);
            let open = Arc::clone(open_files);
            Arc::new(Segment::sealed_file(one.key, path, one.scanned.end, frames, open))
        };
        Recovered {
            segments: kept.iter().map(segment).collect(),
            next_seq: self.next_seq,
            next_offset: self.next_offset,
            durable_upto: self.durable_upto,
            deferred: Some(self),
            ..Recovered::default()
        }
    }
}

/// Finds out how many of the segments, from the first on, belong to the log, and cuts the last of
/// them where the log ends. Nothing is changed on disk.
fn keep(
    opening: &mut Opening,
    examined: &mut [Examined],
    before: Option<(u64, u64)>,
    durable_upto: u64,
) -> io::Result<usize> {
    let mut expected = before.map(|(seq, _)| seq);
    let mut kept = 0;
    for one in &mut *examined {
        let connected = match (one.scanned.first_seq, expected) {
            (Some(first), Some(expected)) => first == expected,
            _ => true,
        };
        if !connected {
            break;
        }
        kept += 1;
        let whole = trim(opening, one, durable_upto)?;
        expected = one.scanned.next_seq.or(expected);
        if !whole {
            break;
        }
    }
    report(opening, examined, kept);
    Ok(kept)
}

/// Cuts a segment before the first batch that names a missing blob, and before a checkpoint that is
/// not complete. Says whether all that was whole in it stays.
fn trim(opening: &mut Opening, one: &mut Examined, durable_upto: u64) -> io::Result<bool> {
    let mut tables = Tables::default();
    let mut doubtful = 0;
    let walk = replay(&one.media, &one.key, one.scanned.end, |batch| {
        if batch.header.seq >= durable_upto {
            if !has_blobs(batch, &opening.blobs) && !is_planted(Bug::KeepWithoutBlob) {
                return ControlFlow::Break(());
            }
            doubtful += 1;
        }
        tables.take(batch);
        ControlFlow::Continue(())
    })?;
    let scanned = &mut one.scanned;
    let whole = walk.position == scanned.end;
    if !whole {
        let Walk { position, prev_crc, seq, offset, .. } = walk;
        (scanned.end, scanned.prev_crc, scanned.next_offset) = (position, prev_crc, offset);
        scanned.next_seq = seq;
        scanned.rest_is_zero = false;
    }
    if scanned.first_seq.is_some() && !tables.complete {
        scanned.next_seq = scanned.first_seq.take();
        (scanned.end, scanned.prev_crc) = (FILE_HEADER_LEN as u64, 0);
        scanned.next_offset = one.key.base;
        scanned.rest_is_zero = false;
        return Ok(false);
    }
    opening.report.batches_kept += doubtful;
    Ok(whole)
}

/// Notes where the log was cut, if anything was behind that.
fn report(opening: &mut Opening, examined: &[Examined], kept: usize) {
    let Some(last) = kept.checked_sub(1).map(|index| &examined[index]) else { return };
    let dropped = &examined[kept..];
    let used =
        |one: &Examined| one.scanned.end > FILE_HEADER_LEN as u64 || !one.scanned.rest_is_zero;
    if last.scanned.rest_is_zero && !dropped.iter().any(used) {
        return;
    }
    let behind = |one: &Examined, from: u64| one.media.len().saturating_sub(from);
    let bytes = dropped.iter().map(|one| behind(one, FILE_HEADER_LEN as u64)).sum::<u64>();
    opening.report.cut = Some(Cut {
        path: path_of(&opening.env, &last.file),
        position: last.scanned.end,
        offset: last.scanned.next_offset,
        bytes_max: bytes + behind(last, last.scanned.end),
        why: last.scanned.why.to_string(),
    });
}

/// Decides about one segment, and writes it anew if it must be.
fn decide(env: &Env, one: &Examined, is_last: bool, durable_upto: u64) -> io::Result<Fate> {
    let scanned = &one.scanned;
    let durable =
        scanned.next_seq.is_none_or(|next| next <= durable_upto) || is_planted(Bug::TrustCache);
    if is_last {
        return match durable && scanned.rest_is_zero {
            true => Ok(Fate::GoOn),
            false => {
                let len = env.options.segment_bytes.max(one.media.len());
                copy(env, one, len, true).map(Fate::Copy)
            }
        };
    }
    if scanned.next_offset == one.key.base && !scanned.tombstones {
        // Its tables are restated in the segment after it.
        return Ok(Fate::Drop);
    }
    if durable {
        return Ok(Fate::Seal { crc: crc_of(&one.media, scanned.end)?.finalize() });
    }
    copy(env, one, scanned.end, false).map(Fate::Copy)
}

/// Carries the decisions out. The manifest changes once, in the middle.
fn apply(env: &Env, examined: &[Examined], fates: &[Fate]) -> io::Result<()> {
    let dir = env.log_dir();
    let mut entries = Vec::new();
    for (one, fate) in examined.iter().zip(fates) {
        let path = path_of(env, &one.file);
        match fate {
            Fate::GoOn => entries.push(one.file),
            Fate::Seal { crc } => {
                env.files.cut(&path, one.scanned.end)?;
                entries.push(sealed(&one.key, one, one.scanned.end, *crc));
            }
            Fate::Copy(copied) if copied.active => entries.push(unmarked(&copied.key)),
            Fate::Copy(copied) => {
                let crc = copied.crc.clone().finalize();
                entries.push(sealed(&copied.key, one, copied.length, crc));
            }
            Fate::Drop => match env.files.rename(&path, &unfinished(&path)) {
                // Renamed by an earlier attempt, which a full disk ended.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            },
        }
    }
    env.files.sync_dir(&dir)?;
    env.manifest.update(|state| {
        let gone = |file: &FileEntry| examined.iter().any(|one| one.file == *file);
        state.files.retain(|file| file.kind != FileKind::Segment || !gone(file));
        state.files.append(&mut entries);
    })?;
    for (one, fate) in examined.iter().zip(fates) {
        let path = path_of(env, &one.file);
        match fate {
            Fate::Copy(Copied { key, .. }) => {
                let place = env.log_path(key.base, key.generation, "seg");
                env.files.rename(&unfinished(&place), &place)?;
                env.files.sync_dir(&dir)?;
                env.files.remove(&path)?;
            }
            Fate::Drop => env.files.remove(&unfinished(&path))?,
            Fate::GoOn | Fate::Seal { .. } => {}
        }
    }
    Ok(())
}

fn sealed(key: &SegmentKey, one: &Examined, length: u64, crc: u32) -> FileEntry {
    let count = one.scanned.next_offset - key.base;
    FileEntry { state: FileState::Sealed, length, crc, count, ..unmarked(key) }
}

/// Opens what a segment has become.
fn settle(
    env: &Env,
    open_files: &Arc<OpenFiles>,
    recovered: &mut Recovered,
    one: &Examined,
    fate: Fate,
) -> io::Result<()> {
    let frames = one.scanned.next_offset - one.key.base;
    let (key, length) = match fate {
        Fate::Drop => return Ok(()),
        Fate::GoOn => {
            recovered.push_active(reopen(env, one)?);
            return Ok(());
        }
        Fate::Copy(Copied { key, length, prev_crc, crc, active: true }) => {
            let bare = one.scanned.first_seq.is_none();
            let end = (length, prev_crc, crc);
            let held = (frames, one.scanned.tombstones);
            recovered.push_active(open_active(env, key, end, held, bare)?);
            return Ok(());
        }
        Fate::Copy(Copied { key, length, .. }) => (key, length),
        Fate::Seal { .. } => (one.key, one.scanned.end),
    };
    let path = env.log_path(key.base, key.generation, "seg");
    let open = Arc::clone(open_files);
    let segment = Arc::new(Segment::sealed_file(key, path, length, frames, open));
    recovered.sealed_now.push(Arc::clone(&segment));
    recovered.segments.push(segment);
    Ok(())
}

/// Opens a segment to write on behind its last batch.
pub(super) fn reopen(env: &Env, one: &Examined) -> io::Result<Active> {
    let scanned = &one.scanned;
    let crc = crc_of(&one.media, scanned.end)?;
    let frames = scanned.next_offset - one.key.base;
    let bare = scanned.first_seq.is_none();
    let held = (frames, scanned.tombstones);
    open_active(env, one.key, (scanned.end, scanned.prev_crc, crc), held, bare)
}

fn open_active(
    env: &Env,
    key: SegmentKey,
    (flushed, prev_crc, crc): (u64, u32, crc32fast::Hasher),
    (frames, tombstones): (u64, bool),
    bare: bool,
) -> io::Result<Active> {
    let path = env.log_path(key.base, key.generation, "seg");
    let media = env.files.open_append(&path)?;
    media.publish(flushed);
    let segment = Arc::new(Segment::open(key, path, Arc::clone(&media)));
    Ok(Active { segment, media, flushed, prev_crc, crc, frames, tombstones, bare })
}
