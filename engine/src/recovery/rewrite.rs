//! Makes a log that was not closed cleanly writable: what is whole is kept and made durable, the
//! rest is removed.
//!
//! Batches that may not be durable are not trusted in place: after a failed sync the disk may have
//! less than the page cache shows, and no later sync would write it. So they are written again, the
//! same bytes to the same places, with zeros over what is after them, and then synced. A crash at
//! any point leaves the same content, or the same with less that does not count. Old files to be
//! dropped are renamed to a name that ends in `.tmp` first, so the manifest identifies the valid
//! files at every moment.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::files::path_of;
use super::opening::Opening;
use super::replay::{has_blobs, replay_on};
use super::report::Cut;
use super::scan::{ScanPosition, Scanned};
use super::{Examined, Recovered};
use crate::blob::Blobs;
use crate::env::Env;
use crate::format::file::FILE_HEADER_LEN;
use crate::format::super_file::{FileEntry, FileState};
use crate::log::{Active, OpenFiles, Segment, unmarked};
use crate::media::Media;
use crate::names::unfinished;
use crate::planted::{Bug, is_planted};

/// Bytes read or written at a time.
const PIECE_LEN: u64 = 1024 * 1024;

/// The decision about an unmarked segment.
#[derive(Debug)]
enum Fate {
    /// Append to it again, through the medium that mended it, if it was mended.
    GoOn(Option<Arc<dyn Media>>),
    /// Truncate it after its last batch and seal it.
    Seal { crc: u32 },
    /// Drop it: nothing in it counts.
    Drop,
}

/// What to do with the unmarked segments. It is done when the store is opened, or, if the disk is
/// too full for that, before the first append that finds room.
#[derive(Debug)]
pub(crate) struct Plan {
    examined: Vec<Examined>,
    /// The last segment to keep, which becomes the active one. Those after it are dropped.
    last: Option<usize>,
    durable_upto: u64,
    next_seq: u64,
    next_offset: u64,
}

/// Decides about the unmarked segments; changes nothing on disk. `before` is the seq and offset
/// they begin with, where their content does not say so.
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
        // The blobs that kept frames refer to become durable with them.
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

    /// The log as it can be read before the plan is carried out.
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

/// Determines how many of the segments, from the first on, belong to the log, and cuts the last of
/// them where the log ends. Changes nothing on disk.
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

/// Cuts a segment before the first batch that names a missing blob, and before an incomplete
/// checkpoint. Returns whether everything whole in it is kept.
fn trim(opening: &mut Opening, one: &mut Examined, durable_upto: u64) -> io::Result<bool> {
    let mut doubtful = 0;
    let walk = one.scanned.doubtful(&one.media, &one.key, durable_upto)?;
    let mut unreadable = None;
    let reached = replay_on(walk, |batch| match has_blobs(batch, &opening.blobs) {
        Ok(false) if !is_planted(Bug::KeepWithoutBlob) => ControlFlow::Break(()),
        Ok(_) => {
            doubtful += 1;
            ControlFlow::Continue(())
        }
        Err(error) => {
            unreadable = Some(error);
            ControlFlow::Break(())
        }
    })?;
    if let Some(error) = unreadable {
        return Err(error);
    }
    let scanned = &mut one.scanned;
    let whole = reached.position == scanned.end;
    if !whole {
        scanned.cut(reached);
    }
    if scanned.first_seq.is_some() && scanned.complete_at.is_none_or(|at| at > scanned.end) {
        let (position, seq) = (FILE_HEADER_LEN as u64, scanned.first_seq.take());
        scanned.cut(ScanPosition { position, seq, prev_crc: 0, offset: one.key.base });
        return Ok(false);
    }
    opening.report.batches_kept += doubtful;
    Ok(whole)
}

/// Reports where the log was cut, if anything was after that.
fn report(opening: &mut Opening, examined: &[Examined], kept: usize) {
    let Some(last) = kept.checked_sub(1).map(|index| &examined[index]) else { return };
    let dropped = &examined[kept..];
    let used =
        |one: &Examined| one.scanned.end > FILE_HEADER_LEN as u64 || !one.scanned.rest_is_zero();
    if last.scanned.rest_is_zero() && !dropped.iter().any(used) {
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

/// Decides about one segment, and mends it if necessary.
fn decide(env: &Env, one: &Examined, is_last: bool, durable_upto: u64) -> io::Result<Fate> {
    let scanned = &one.scanned;
    if !is_last && scanned.next_offset == one.key.base && !scanned.tombstones {
        // Its tables are restated in the segment after it.
        return Ok(Fate::Drop);
    }
    let durable =
        scanned.next_seq.is_none_or(|next| next <= durable_upto) || is_planted(Bug::TrustCache);
    if is_last {
        let mended = match durable && scanned.rest_is_zero() {
            true => None,
            false => Some(mend(env, one, durable_upto, scanned.zero_from)?),
        };
        return Ok(Fate::GoOn(mended));
    }
    if !durable {
        // Sealing cuts what is after its end.
        mend(env, one, durable_upto, scanned.end)?;
    }
    Ok(Fate::Seal { crc: crc_of(one)?.finalize() })
}

/// Makes all whole batches durable, and zeroes what is after them, up to `upto`.
fn mend(env: &Env, one: &Examined, durable_upto: u64, upto: u64) -> io::Result<Arc<dyn Media>> {
    let media = env.files.open_append(&path_of(env, &one.file))?;
    let mut at = one.scanned.doubtful(&one.media, &one.key, durable_upto)?.at.position;
    while at < one.scanned.end {
        let piece = one.media.view(at..(at + PIECE_LEN).min(one.scanned.end))?;
        media.write_at(at, &piece)?;
        at += piece.len() as u64;
    }
    let zeros = vec![0; upto.saturating_sub(at).min(PIECE_LEN) as usize];
    while at < upto {
        let piece = &zeros[..(upto - at).min(PIECE_LEN) as usize];
        media.write_at(at, piece)?;
        at += piece.len() as u64;
    }
    media.sync()?;
    Ok(media)
}

/// CRC of the file up to the end of its last batch.
fn crc_of(one: &Examined) -> io::Result<crc32fast::Hasher> {
    if let Some(crc) = &one.scanned.crc {
        return Ok(crc.clone());
    }
    let mut crc = crc32fast::Hasher::new();
    let mut at = 0;
    while at < one.scanned.end {
        let piece = one.media.view(at..(at + PIECE_LEN).min(one.scanned.end))?;
        crc.update(&piece);
        at += piece.len() as u64;
    }
    Ok(crc)
}

/// Carries the decisions out. The manifest changes at most once, in the middle.
fn apply(env: &Env, examined: &[Examined], fates: &[Fate]) -> io::Result<()> {
    if fates.iter().all(|fate| matches!(fate, Fate::GoOn(_))) {
        return Ok(());
    }
    let mut entries = Vec::new();
    for (one, fate) in examined.iter().zip(fates) {
        let path = path_of(env, &one.file);
        match fate {
            Fate::GoOn(_) => entries.push(one.file),
            Fate::Seal { crc } => {
                env.files.cut(&path, one.scanned.end)?;
                entries.push(sealed(one, *crc));
            }
            Fate::Drop => match env.files.rename(&path, &unfinished(&path)) {
                // Renamed by an earlier attempt, which failed on a full disk.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            },
        }
    }
    env.files.sync_dir(&env.log_dir())?;
    env.manifest.update(|state| {
        // By key: in a retry the entry may be the one of the first attempt.
        let gone = |file: &FileEntry| examined.iter().any(|one| one.file.key() == file.key());
        state.files.retain(|file| !gone(file));
        state.files.append(&mut entries);
    })?;
    let dropped = examined.iter().zip(fates).filter(|(_, fate)| matches!(fate, Fate::Drop));
    for (one, _) in dropped {
        // What remains is removed by the next open.
        let _ = env.files.remove(&unfinished(&path_of(env, &one.file)));
    }
    Ok(())
}

fn sealed(one: &Examined, crc: u32) -> FileEntry {
    let count = one.scanned.next_offset - one.key.base;
    let length = one.scanned.end;
    FileEntry { state: FileState::Sealed, length, crc, count, ..unmarked(&one.key) }
}

/// Opens a segment according to the decision.
fn settle(
    env: &Env,
    open_files: &Arc<OpenFiles>,
    recovered: &mut Recovered,
    one: &Examined,
    fate: Fate,
) -> io::Result<()> {
    match fate {
        Fate::Drop => {}
        Fate::GoOn(media) => recovered.push_active(reopen(env, one, media)?),
        Fate::Seal { .. } => {
            let frames = one.scanned.next_offset - one.key.base;
            let (path, open) = (path_of(env, &one.file), Arc::clone(open_files));
            let segment = Segment::sealed_file(one.key, path, one.scanned.end, frames, open);
            let segment = Arc::new(segment);
            recovered.sealed_now.push(Arc::clone(&segment));
            recovered.segments.push(segment);
        }
    }
    Ok(())
}

/// Opens a segment to append after its last batch, unless it is open already.
pub(super) fn reopen(
    env: &Env,
    one: &Examined,
    media: Option<Arc<dyn Media>>,
) -> io::Result<Active> {
    let Scanned { end, prev_crc, next_offset, first_seq, tombstones, .. } = one.scanned;
    let path = path_of(env, &one.file);
    let media = media.map_or_else(|| env.files.open_append(&path), Ok)?;
    media.publish(end);
    let segment = Arc::new(Segment::active(one.key, path, Arc::clone(&media)));
    Ok(Active {
        segment,
        media,
        flushed: end,
        prev_crc,
        crc: crc_of(one)?,
        frames: next_offset - one.key.base,
        tombstones,
        bare: first_seq.is_none(),
    })
}
