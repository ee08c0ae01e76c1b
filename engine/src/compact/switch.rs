//! Replaces segments by the new one: on disk, then for readers.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::MutexGuard;

use super::survey::Survey;
use super::write::Written;
use super::{CompactReport, Stop, Stopped};
use crate::commit::Writer;
use crate::format::super_file::{FileEntry, FileKind, FileState};
use crate::index::{Rewritten, Uncovered};
use crate::log::{Segment, WriteError, unmarked};
use crate::names::{SEGMENT, unfinished};
use crate::planted::{Bug, is_planted};
use crate::store::Inner;

/// Switches over. Readers of an old segment continue: its file stays open until they are done.
pub(super) fn switch(
    inner: &Inner,
    survey: &Survey,
    written: Option<Written>,
    purged_seq: u64,
) -> Stopped<CompactReport> {
    let old: Vec<_> = survey.inputs.iter().map(|input| input.segment.clone()).collect();
    let report = CompactReport {
        rewritten: old.len() as u64,
        written: u64::from(written.is_some()),
        frames: survey.dropped,
        bytes_before: survey.input_len(),
        bytes_after: written.as_ref().map_or(0, |written| written.length),
        ..CompactReport::default()
    };
    let new = {
        let place = written.as_ref().map(|written| place_of(inner, written));
        let (writer, uncovered) = match ready(inner, survey) {
            Ok(ready) => ready,
            Err(error) => {
                discard(inner, place.as_ref());
                return Err(Stop::Failed(WriteError::when_preparing(error)));
            }
        };
        if writer.closed || inner.is_poisoned() {
            discard(inner, place.as_ref());
            return Err(Stop::Closing);
        }
        // A tombstone appended since then matches nothing if its frame was dropped for another
        // reason. Neither the index nor the next open could tell, so the frame is examined again.
        let marks = inner.index.marks(survey.offsets.clone());
        if marks.iter(survey.offsets.clone()).any(|offset| survey.has_left_out(offset)) {
            discard(inner, place.as_ref());
            return Err(Stop::Overtaken);
        }
        on_disk(inner, survey, &old, written.as_ref(), purged_seq)?;
        let new = written.map(|Written { key, length, index, .. }| {
            let span = survey.offsets.end - survey.offsets.start;
            (inner.sealed_segment(key, length, span), index)
        });
        let segment = new.as_ref().map(|(segment, _)| Arc::clone(segment));
        let rewritten = Rewritten {
            replaced: survey.replaced(),
            new,
            gone: &survey.gone,
            floors: survey.spent.clone(),
            marks: &survey.marks,
            offsets: survey.offsets.clone(),
        };
        inner.index.rewrite(rewritten, uncovered);
        inner.log.compacted(&old, segment.clone());
        drop(writer);
        segment
    };
    inner.space.compacted(report.freed(), inner.env.clock.now_ms());
    clear(inner, &old);
    if let Some(segment) = new {
        // Derived files: retried if they cannot be written now.
        let _ = inner.index.seal(&segment);
        let _ = inner.keys.make(&inner.env, &segment);
    }
    // Without the table, each segment it covered has a file open.
    if inner.index.merge_is_due() {
        inner.upkeep.wake();
    }
    Ok(report)
}

/// The writer's lock, under which nothing is appended or removed, and what the index needs for the
/// switch. Preparing that may take long, so it is done without the lock.
fn ready<'a>(inner: &'a Inner, survey: &Survey) -> io::Result<(MutexGuard<'a, Writer>, Uncovered)> {
    loop {
        let uncovered = inner.index.uncover(&survey.replaced())?;
        let writer = inner.writer.lock();
        if inner.index.is_current(&uncovered) {
            return Ok((writer, uncovered));
        }
    }
}

fn place_of(inner: &Inner, written: &Written) -> PathBuf {
    inner.env.log_path(written.key.base, written.key.generation, SEGMENT)
}

/// Removes the new file. If it remains, the next open removes it.
fn discard(inner: &Inner, place: Option<&PathBuf>) {
    let _ = place.map(|place| inner.env.files.remove(&unfinished(place)));
}

/// Changes the manifest. Old files are first renamed to temporary names: whatever happens then, the
/// manifest identifies the valid files.
fn on_disk(
    inner: &Inner,
    survey: &Survey,
    old: &[Arc<Segment>],
    written: Option<&Written>,
    purged_seq: u64,
) -> Stopped<()> {
    let env = &inner.env;
    let dir = env.log_dir();
    let place = written.map(|written| place_of(inner, written));
    let mut aside: Vec<&Segment> = Vec::new();
    let prepared = old.iter().try_for_each(|segment| {
        segment.pin()?;
        env.files.rename(segment.path(), &unfinished(segment.path()))?;
        aside.push(segment);
        Ok(())
    });
    let prepared = prepared.and_then(|()| env.files.sync_dir(&dir));
    let changed = prepared.is_ok();
    if is_planted(Bug::UnlinkBeforeSwitch) {
        clear(inner, old);
    }
    let changes = prepared.and_then(|()| {
        env.manifest.update(|state| {
            let is_old = |file: &FileEntry| old.iter().any(|old| old.file_key() == file.key());
            state.files.retain(|file| !is_old(file));
            state.files.extend(written.map(|written| entry(survey, written, purged_seq)));
        })
    });
    if let Err(error) = changes {
        let failure = WriteError::when_preparing(error);
        if let (true, WriteError::Failed(error)) = (changed, &failure) {
            // It is unknown which manifest the next open finds; with the files as they are now,
            // either works.
            inner.poison(error);
            return Err(Stop::Failed(failure));
        }
        let back = aside
            .iter()
            .try_for_each(|segment| env.files.rename(&unfinished(segment.path()), segment.path()));
        match back {
            Ok(()) => discard(inner, place.as_ref()),
            Err(error) => {
                inner.poison(&error);
            }
        }
        return Err(Stop::Failed(failure));
    }
    let named = || -> io::Result<()> {
        if let Some(place) = &place {
            env.files.rename(&unfinished(place), place)?;
            env.files.sync_dir(&dir)?;
        }
        Ok(())
    };
    named().map_err(|error| {
        inner.poison(&error);
        Stop::Failed(WriteError::Failed(error))
    })
}

/// The manifest's entry of a compacted segment.
fn entry(survey: &Survey, written: &Written, purged_seq: u64) -> FileEntry {
    let span = survey.offsets.end - survey.offsets.start;
    FileEntry {
        state: FileState::Sealed,
        length: written.length,
        crc: written.crc,
        count: written.frames,
        gone: (span - written.frames) as u32,
        purged_seq,
        ..unmarked(&written.key)
    }
}

/// Removes files that the manifest no longer names. What remains is removed by the next compaction
/// or open.
fn clear(inner: &Inner, old: &[Arc<Segment>]) {
    let remove = |path: PathBuf| {
        if inner.env.files.remove(&path).is_err() {
            inner.space.leave(path);
        }
    };
    for segment in old {
        remove(unfinished(segment.path()));
        for end in FileKind::Segment.derived() {
            remove(inner.env.log_path(segment.base(), segment.generation(), end));
        }
    }
}
