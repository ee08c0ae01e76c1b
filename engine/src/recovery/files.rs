//! Compares the files of the log with the manifest, and removes what a crash left. Every step is
//! idempotent: a crash between any two leads to the same end.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::scan::{Scanned, scan};
use crate::env::Env;
use crate::error::{Corruption, OpenError, ReadOnlyReason};
use crate::format::batch::{BATCH_MAGIC, BatchHeader};
use crate::format::file::{FILE_HEADER_LEN, FileHeader, FormatError, Magic};
use crate::format::super_file::{FileEntry, FileKey, FileKind, FileState};
use crate::log::{OpenFiles, Segment, SegmentKey};
use crate::maintain::find_salt;
use crate::manifest::{NOT_NAMED, is_meant};
use crate::media::{Media, find_first};
use crate::names::{self, SEGMENT};

/// The segments the manifest names, in the order of their offsets.
#[derive(Debug, Default)]
pub(super) struct LogFiles {
    pub(super) sealed: Vec<Arc<Segment>>,
    pub(super) unmarked: Vec<FileEntry>,
    /// A file is missing or superfluous: nothing may be written.
    pub(super) trouble: Option<ReadOnlyReason>,
}

/// Examines the directory of the log.
pub(super) fn look(env: &Env, open_files: &Arc<OpenFiles>) -> Result<LogFiles, OpenError> {
    let dir = env.log_dir();
    let state = env.manifest.state();
    let is_segment = |file: &&FileEntry| file.kind == FileKind::Segment;
    let mut listed: Vec<FileEntry> = state.files.iter().filter(is_segment).copied().collect();
    listed.sort_unstable_by_key(FileEntry::key);
    let is_listed = |key| listed.iter().any(|file| file.key() == key);
    // It is left from before the last run of the backup. The next run removes it.
    let is_left = |base| state.backup && listed.last().is_some_and(|last| base < last.base);
    let mut found = LogFiles::default();
    let listing = env.files.list(&dir).map_err(|error| OpenError::io("list", &dir, error))?;
    finish_renames(env, &listed, &listing).map_err(|error| OpenError::io("tidy", &dir, error))?;
    for name in &listing {
        let derived = names::parse(name, FileKind::Segment.derived());
        let Some((base, generation)) = derived else { continue };
        if !is_listed(FileKey::segment(base, generation)) {
            // Of a segment that was rewritten. If it remains, it does no harm.
            let _ = env.files.remove(&dir.join(name));
        }
    }
    for name in &listing {
        let Some((base, generation)) = names::parse(name, &[SEGMENT]) else { continue };
        if is_listed(FileKey::segment(base, generation)) {
            continue;
        }
        let superseded =
            listed.iter().any(|file| file.base == base && file.generation > generation);
        let path = dir.join(name);
        let stray = match superseded {
            true => Stray::Unused,
            false if is_left(base) => continue,
            false => stray(env, &path).map_err(|error| OpenError::io("read", &path, error))?,
        };
        let reason = match stray {
            Stray::Unused => {
                env.files.remove(&path).map_err(|error| OpenError::io("remove", &path, error))?;
                continue;
            }
            Stray::Used => ReadOnlyReason::Files { path, what: NOT_NAMED },
            Stray::Newer(found) => ReadOnlyReason::Version { path, found },
        };
        found.trouble.get_or_insert(reason);
    }
    for file in listed {
        match file.state {
            FileState::Unmarked => found.unmarked.push(file),
            // Only packs are dropped.
            FileState::Dropped => {}
            FileState::Sealed => match sealed(env, &file, open_files)? {
                Ok((segment, trouble)) => {
                    found.sealed.push(segment);
                    found.trouble = found.trouble.or(trouble);
                }
                Err(reason) => {
                    found.trouble.get_or_insert(reason);
                }
            },
        }
    }
    Ok(found)
}

/// Renames temporary files that the manifest names, where a crash came before the rename; other
/// temporary files are removed.
fn finish_renames(env: &Env, listed: &[FileEntry], found: &[String]) -> io::Result<()> {
    let dir = env.log_dir();
    let mut changed = false;
    for name in found {
        let Some(place) = names::finished(name) else { continue };
        let named = names::parse_key(place, FileKind::Segment)
            .and_then(|key| listed.iter().find(|file| file.key() == key));
        if named.is_some_and(|file| is_meant(env.files.as_ref(), &dir, (name, place), file)) {
            env.files.rename(&dir.join(name), &dir.join(place))?;
        } else {
            env.files.remove(&dir.join(name))?;
        }
        changed = true;
    }
    if changed { env.files.sync_dir(&dir) } else { Ok(()) }
}

/// What a segment is that the manifest does not name.
enum Stray {
    /// It was created and never used.
    Unused,
    /// It was used, and the manifest entry was lost.
    Used,
    /// It has this newer version of the format.
    Newer(u32),
}

/// Scans a segment that the manifest does not name for a batch of its own; the first may be
/// damaged. Bytes from an earlier use of the file's space have another salt.
fn stray(env: &Env, path: &Path) -> io::Result<Stray> {
    let media = env.files.open_scan(path)?;
    let head = media.view(0..media.len().min(FILE_HEADER_LEN as u64))?;
    let salt = match FileHeader::decode(&head, Magic::Segment) {
        Ok(header) => Some(header.salt),
        Err(FormatError::Version { found }) => return Ok(Stray::Newer(found)),
        Err(_) => None,
    };
    let batch = |bytes: &[u8]| {
        let header = BatchHeader::read(bytes).ok()?;
        salt.is_none_or(|salt| salt == header.salt).then_some(())
    };
    let found = find_first(&*media, FILE_HEADER_LEN as u64, &BATCH_MAGIC, batch)?;
    Ok(found.map_or(Stray::Unused, |()| Stray::Used))
}

/// The identity of a segment's file, which must be the one the manifest names, and what is wrong
/// with its header. If a header does not verify, the manifest has everything but the salt, and that
/// is in each batch too.
pub(super) fn key_of(
    env: &Env,
    file: &FileEntry,
    media: &Arc<dyn Media>,
) -> Result<(SegmentKey, Option<ReadOnlyReason>), ReadOnlyReason> {
    let path = path_of(env, file);
    let foreign = |what| ReadOnlyReason::Files { path: path.clone(), what };
    let header = media.view(0..media.published().min(FILE_HEADER_LEN as u64)).map_err(|error| {
        ReadOnlyReason::Corrupt(Corruption::new(&path, 0, format_args!("cannot read: {error}")))
    })?;
    let header = match FileHeader::decode(&header, Magic::Segment) {
        Ok(header) => header,
        Err(FormatError::Version { found }) => {
            return Err(ReadOnlyReason::Version { path, found });
        }
        Err(error) => {
            let reason = ReadOnlyReason::Corrupt(Corruption::new(path, 0, error));
            let &FileEntry { base, generation, uuid, .. } = file;
            return match find_salt(&**media) {
                Some(salt) => Ok((SegmentKey { base, generation, uuid, salt }, Some(reason))),
                None => Err(reason),
            };
        }
    };
    if !file.owns(&header) {
        return Err(foreign("is not the file the manifest names"));
    }
    let FileHeader { base, generation, file: uuid, salt, .. } = header;
    Ok((SegmentKey { base, generation, uuid, salt }, None))
}

pub(super) fn path_of(env: &Env, file: &FileEntry) -> PathBuf {
    env.log_path(file.base, file.generation, SEGMENT)
}

/// An unmarked segment, read-only: everything whole in it, including batches after damage.
pub(super) fn as_found(
    key: SegmentKey,
    path: PathBuf,
    scanned: &Scanned,
    open_files: &Arc<OpenFiles>,
) -> Arc<Segment> {
    let (end, offset) = scanned.reach();
    let frames = offset.saturating_sub(key.base);
    Arc::new(Segment::sealed_file(key, path, end, frames, Arc::clone(open_files)))
}

/// The segments that the manifest names, in order and read-only: those that can be identified.
pub(crate) fn segments_to_read(env: &Env) -> Vec<Arc<Segment>> {
    let open_files = Arc::new(OpenFiles::new(Arc::clone(&env.files)));
    let unmarked = |file: &FileEntry| {
        let path = path_of(env, file);
        let media = env.files.open_unmapped(&path).ok()?;
        let (key, _) = key_of(env, file, &media).ok()?;
        let clean = env.manifest.state().clean;
        let len = if clean { file.length.min(media.len()) } else { media.len() };
        let scanned = scan(&media, &key, len).ok()?;
        Some(as_found(key, path, &scanned, &open_files))
    };
    let segment = |file: &FileEntry| match file.state {
        FileState::Unmarked => unmarked(file),
        FileState::Sealed => Some(sealed(env, file, &open_files).ok()?.ok()?.0),
        // Only packs are dropped.
        FileState::Dropped => None,
    };
    let state = env.manifest.state();
    let is_segment = |file: &&FileEntry| file.kind == FileKind::Segment;
    let mut listed: Vec<&FileEntry> = state.files.iter().filter(is_segment).collect();
    listed.sort_unstable_by_key(|file| file.key());
    listed.into_iter().filter_map(segment).collect()
}

/// A sealed segment with the fault of its header, or why it is not the expected file.
type Sealed = Result<(Arc<Segment>, Option<ReadOnlyReason>), ReadOnlyReason>;

/// Examines a sealed segment. A file that the system cannot open does not count as damage: there is
/// nothing to restore, and the next attempt may succeed.
fn sealed(env: &Env, file: &FileEntry, open_files: &Arc<OpenFiles>) -> Result<Sealed, OpenError> {
    let path = path_of(env, file);
    let trouble = |what| Ok(Err(ReadOnlyReason::Files { path: path.clone(), what }));
    let media = match env.files.open_sealed(&path) {
        Ok(media) => media,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return trouble("is missing"),
        Err(error) => return Err(OpenError::io("open", &path, error)),
    };
    let (key, damaged) = match key_of(env, file, &media) {
        Ok(known) => known,
        Err(reason) => return Ok(Err(reason)),
    };
    if media.len() != file.length {
        return trouble("does not have the length it was sealed with");
    }
    let open = Arc::clone(open_files);
    let span = file.end() - file.base;
    Ok(Ok((Arc::new(Segment::sealed_file(key, path, file.length, span, open)), damaged)))
}
