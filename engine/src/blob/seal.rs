//! Sealing: a full pack becomes its next generation, smaller and indexed, which replaces it in the
//! manifest. Until then the old one counts, so a crash at any point loses nothing.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::build::{Builder, Built};
use super::error::BlobError;
use super::open_pack::OpenPack;
use super::packs::Packs;
use super::reader::GoOn;
use super::sealed::{SealedPack, scan};
use super::walk::PackWalk;
use crate::env::Env;
use crate::error::Shortage;
use crate::format::file::FormatError;
use crate::format::super_file::{FileEntry, FileState};
use crate::names::PACK;

/// Bytes of a pack read at a time for its CRC.
const PART_LEN: u64 = 1024 * 1024;

/// Why a pack was not sealed.
#[derive(Debug)]
pub(super) enum NotSealed {
    /// The store is being closed.
    Stopped,
    /// No disk space or no descriptor is left; sealing is retried.
    Full(Shortage),
    /// A sync failed: the content of the packs is unknown.
    Failed(io::Error),
}

/// Why the next generation of a pack was not written.
#[derive(Debug)]
pub(super) enum NotRewritten {
    /// It was told to stop.
    Stopped,
    /// There is no space, or something is damaged.
    Failed(BlobError),
}

impl From<BlobError> for NotRewritten {
    fn from(error: BlobError) -> Self {
        Self::Failed(error)
    }
}

/// Seals a full pack. `hurry` keeps the entries as they are, which is much less work.
pub(super) fn seal(
    env: &Arc<Env>,
    packs: &Packs,
    pack: &Arc<OpenPack>,
    hurry: bool,
    stop: &AtomicBool,
) -> Result<(), NotSealed> {
    let (line, stop) = (pack.line(), || stop.load(Ordering::Relaxed));
    let rewritten = match hurry {
        true => None,
        false => match rewrite(env, &line, line.generation + 1, pack.walk(), &stop) {
            Ok(built) => Some(built),
            Err(NotRewritten::Stopped) => return Err(NotSealed::Stopped),
            // There is no space for another, or an entry is damaged, which a read of it will
            // report.
            Err(NotRewritten::Failed(_)) => None,
        },
    };
    let (line, kept) = match rewritten {
        Some(built) => match name(env, pack, &built) {
            Ok(()) => (built.line, false),
            Err(NotSealed::Full(_)) => {
                // It may have taken the last space on the disk.
                built.abandon(env);
                (name_in_place(env, pack)?, true)
            }
            Err(failed) => return Err(failed),
        },
        None => (name_in_place(env, pack)?, true),
    };
    let sealed = Arc::new(SealedPack::new(Arc::clone(env), line));
    packs.change(|list| {
        list.open.retain(|other| !Arc::ptr_eq(other, pack));
        list.sealed.push(sealed);
    });
    if !kept {
        pack.retire();
    }
    Ok(())
}

/// Enters the sealed pack in the manifest.
fn name(env: &Env, pack: &OpenPack, built: &Built) -> Result<(), NotSealed> {
    built.write_index(env);
    replace_line(env, &pack.line(), Some(built.line)).map_err(|error| match Shortage::of(&error) {
        Some(shortage) => NotSealed::Full(shortage),
        None => NotSealed::Failed(error),
    })
}

/// Seals the file as it is, and enters it in the manifest.
fn name_in_place(env: &Env, pack: &Arc<OpenPack>) -> Result<FileEntry, NotSealed> {
    let built = in_place(pack)?;
    name(env, pack, &built).map(|()| built.line)
}

/// Replaces the manifest entry of a pack, or removes it.
pub(super) fn replace_line(env: &Env, old: &FileEntry, new: Option<FileEntry>) -> io::Result<()> {
    env.manifest.update(|state| {
        state.files.retain(|file| file.key() != old.key());
        state.files.extend(new);
    })
}

/// Writes generation `next` of a pack, with everything in it, compressed.
pub(super) fn rewrite(
    env: &Arc<Env>,
    line: &FileEntry,
    next: u32,
    mut walk: PackWalk,
    stop: &dyn Fn() -> bool,
) -> Result<Built, NotRewritten> {
    let path = env.blob_path(line.base, line.generation, PACK);
    let created = Builder::create(env, (line.base, next), line.length);
    let mut builder = created.map_err(|error| BlobError::io(&path, error))?;
    let copied = loop {
        if stop() {
            break Err(NotRewritten::Stopped);
        }
        match walk.next() {
            Ok(Some(entry)) => {
                if let Err(error) = builder.take(entry) {
                    break Err(error.into());
                }
            }
            Ok(None) => {
                let hole = walk.hole().map(|at| BlobError::corrupt(&path, at, FormatError::Crc));
                break hole.map_or(Ok(()), |hole| Err(hole.into()));
            }
            Err(error) => break Err(error.into()),
        }
    };
    if let Err(error) = copied {
        builder.abandon();
        return Err(error);
    }
    Ok(finish(env, builder)?)
}

/// Finishes a generation and verifies it by reading it back from the disk.
pub(super) fn finish(env: &Env, builder: Builder) -> Result<Built, BlobError> {
    let built = builder.finish()?;
    match built.verify(env, &mut |_| ControlFlow::Continue(())) {
        Ok(_) => Ok(built),
        Err(error) => {
            built.discard(env);
            Err(error)
        }
    }
}

/// Like [`finish`], and asks meanwhile whether to go on. If not, nothing is left of the generation.
pub(super) fn finish_while(
    env: &Env,
    builder: Builder,
    go_on: GoOn<'_>,
) -> Result<ControlFlow<(), Built>, BlobError> {
    let built = builder.finish()?;
    let verified = built.verify(env, go_on);
    match verified {
        Ok(ControlFlow::Continue(())) => return Ok(ControlFlow::Continue(built)),
        Ok(ControlFlow::Break(())) | Err(_) => built.discard(env),
    }
    verified.map(|_| ControlFlow::Break(()))
}

/// Seals the file as it is.
fn in_place(pack: &Arc<OpenPack>) -> Result<Built, NotSealed> {
    let failed = |error: BlobError| NotSealed::Failed(error.into());
    let media = pack.media();
    pack.settle().map_err(NotSealed::Failed)?;
    // Nothing more is added: the zeros up to the end of the file are final too.
    media.publish(media.len());
    let (mut crc, mut at) = (crc32fast::Hasher::new(), 0);
    while at < media.len() {
        let to = (at + PART_LEN).min(media.len());
        let part = media.view(at..to).map_err(|error| failed(BlobError::io(media.path(), error)));
        crc.update(&part?);
        at = to;
    }
    let (contents, _) = scan(media, pack.salt()).map_err(failed)?;
    let state = FileState::Sealed;
    let count = contents.count() as u64;
    let (length, crc, newest_ms) = (media.len(), crc.finalize(), pack.now_ms());
    let line = FileEntry { state, length, crc, count, newest_ms, ..pack.line() };
    // Nothing was rewritten, so these are never compared.
    Ok(Built { line, contents, hashes: [0; 32] })
}
