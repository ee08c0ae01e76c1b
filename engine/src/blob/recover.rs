//! Opens the packs. A pack that was not closed cleanly is mended in place. If that is not possible
//! it is salvaged: what the disk has of it, checked entry by entry with CRC and SHA-256, becomes
//! its next, sealed generation, and the old file is removed. Repeating this, even after an
//! interruption, gives the same result.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::build::Builder;
use super::error::BlobError;
use super::mend::mend;
use super::open_pack::{OpenPack, find_header};
use super::packs::PackList;
use super::save::first_salt;
use super::seal::{finish, replace_line};
use super::sealed::SealedPack;
use super::walk::PackWalk;
use crate::env::Env;
use crate::error::{Corruption, ReadOnlyReason};
use crate::format::file::{FILE_HEADER_LEN, FileHeader, FormatError, Magic};
use crate::format::super_file::{FileEntry, FileKey, FileKind, FileState};
use crate::limits::FINDINGS_MAX;
use crate::manifest::{NOT_NAMED, is_meant};
use crate::media::{Media, is_full};
use crate::names::{self, PACK, PACK_INDEX};

/// The result of opening the packs.
#[derive(Default)]
pub(super) struct Opened {
    pub(super) list: PackList,
    /// The highest number of any pack.
    pub(super) number: u64,
    /// Why nothing more should be written, if so.
    pub(super) trouble: Option<ReadOnlyReason>,
    /// Places where packs that were not closed cleanly lost something.
    pub(super) dropped: Vec<Corruption>,
}

/// Opens all packs; `clean` means that the store was closed cleanly.
pub(super) fn open(env: &Arc<Env>, clean: bool) -> Result<Opened, BlobError> {
    let dir = env.blob_dir();
    env.files.create_dir(&dir).map_err(|error| BlobError::io(&dir, error))?;
    let mut lines: Vec<FileEntry> =
        env.manifest.state().files.iter().filter(|l| l.kind == FileKind::Pack).copied().collect();
    let number = lines.iter().map(|line| line.base).max().unwrap_or(0);
    let Inventory { packs: mut there, newer } = inventory(env)?;
    for line in lines.extract_if(.., |line| line.state == FileState::Dropped) {
        there.remove(&line.key());
        remove_dropped(env, &line).map_err(|error| BlobError::io(&dir, error))?;
    }
    forget_dropped(env).map_err(|error| BlobError::io(&dir, error))?;
    let named = keys(&lines);
    let replaced: Vec<_> = there
        .keys()
        .filter(|key| !named.contains(key))
        .filter(|key| lines.iter().any(|l| l.base == key.base && has(&there, l)))
        .copied()
        .collect();
    for key in replaced {
        there.remove(&key);
        remove(env, key.base, key.generation);
    }
    let number = there.keys().map(|key| key.base).max().unwrap_or(0).max(number);
    let mut opened = Opened { trouble: newer, number, ..Opened::default() };
    for line in &lines {
        if !has(&there, line) {
            let path = env.blob_path(line.base, line.generation, PACK);
            let missing = ReadOnlyReason::Files { path, what: "is missing" };
            opened.trouble.get_or_insert(missing);
        } else if line.state == FileState::Sealed {
            opened.list.sealed.push(Arc::new(SealedPack::new(Arc::clone(env), *line)));
        } else if let Err(error) = opened.unmarked(env, line, clean) {
            opened.note(error)?;
        }
    }
    there.retain(|place, _| !named.contains(place));
    opened.strangers(env, &there)?;
    Ok(opened)
}

/// Removes the files of a dropped pack; they may be removed already.
pub(super) fn remove_dropped(env: &Env, line: &FileEntry) -> io::Result<()> {
    let remove = |kind| env.files.remove(&env.blob_path(line.base, line.generation, kind));
    remove(PACK_INDEX).and_then(|()| remove(PACK))
}

/// Removes dropped packs from the manifest, once their files are removed. Without room for that
/// they stay in it until the next open.
fn forget_dropped(env: &Env) -> io::Result<()> {
    let dropped = |file: &FileEntry| file.state == FileState::Dropped;
    if !env.manifest.state().files.iter().any(dropped) {
        return Ok(());
    }
    // Sync the names first: a file that reappeared after a crash would no longer be known as
    // dropped.
    env.files.sync_dir(&env.blob_dir())?;
    match env.manifest.update(|state| state.files.retain(|file| !dropped(file))) {
        Err(error) if is_full(&error) => Ok(()),
        updated => updated,
    }
}

/// Removes a pack from the manifest, if it is there.
fn forget(env: &Env, line: &FileEntry) -> io::Result<()> {
    match env.manifest.state().file(line.key()) {
        Some(_) => replace_line(env, line, None),
        None => Ok(()),
    }
}

/// What the header of a pack says.
#[derive(Debug, Clone, Copy)]
enum Head {
    /// It matches the file's name and the store.
    Ours(FileHeader),
    /// It is of another store, or does not match the name.
    Foreign,
    /// It does not verify.
    Damaged,
}

/// The packs in the directory.
type There = BTreeMap<FileKey, Head>;

/// The content of the directory of the packs.
struct Inventory {
    packs: There,
    /// Set if a pack has a newer format version.
    newer: Option<ReadOnlyReason>,
}

fn keys<'a>(lines: impl IntoIterator<Item = &'a FileEntry>) -> BTreeSet<FileKey> {
    lines.into_iter().map(FileEntry::key).collect()
}

fn has(there: &There, line: &FileEntry) -> bool {
    there.contains_key(&line.key())
}

/// The packs in the directory. Removes temporary files and indexes without a pack.
fn inventory(env: &Env) -> Result<Inventory, BlobError> {
    let dir = env.blob_dir();
    let names = env.files.list(&dir).map_err(|error| BlobError::io(&dir, error))?;
    let state = env.manifest.state();
    let named = keys(state.files.iter().filter(|file| file.kind == FileKind::Pack));
    let (mut packs, mut newer) = (BTreeMap::new(), None);
    for name in finish_renames(env, &names)? {
        let Some(key) = names::parse_key(name, FileKind::Pack) else { continue };
        let path = dir.join(name);
        let head = match read_head(env, &path) {
            Ok(Err(FormatError::Version { found })) => {
                newer = newer.or(Some(ReadOnlyReason::Version { path, found }));
                // If the manifest does not name it, this program must not remove it either.
                if !named.contains(&key) {
                    continue;
                }
                Head::Damaged
            }
            Ok(Err(_)) => Head::Damaged,
            Ok(Ok(header)) => {
                let tells = FileKey::pack(header.base, header.generation);
                match (header.store, tells) == (state.store, key) {
                    true => Head::Ours(header),
                    false => Head::Foreign,
                }
            }
            // A dangling link.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            // An unreadable file may be any pack.
            Err(error) => return Err(BlobError::io(&path, error)),
        };
        packs.insert(key, head);
    }
    for name in &names {
        let of = names::parse(name, &[PACK_INDEX]).map(|(base, of)| FileKey::pack(base, of));
        if of.is_some_and(|key| !packs.contains_key(&key)) {
            let _ = env.files.remove(&dir.join(name));
        }
    }
    Ok(Inventory { packs, newer })
}

/// Renames temporary files that the manifest names, where a crash came before the rename; removes
/// other temporary files. Returns the names after that.
fn finish_renames<'a>(env: &Env, names: &'a [String]) -> Result<Vec<&'a str>, BlobError> {
    let (dir, state) = (env.blob_dir(), env.manifest.state());
    let mut found = Vec::new();
    for name in names {
        let Some(place) = names::finished(name) else {
            found.push(name.as_str());
            continue;
        };
        let named = names::parse_key(place, FileKind::Pack).and_then(|key| state.file(key));
        let meant = |file: &FileEntry| is_meant(env.files.as_ref(), &dir, (name, place), file);
        if named.is_some_and(meant) {
            let failed = |error| BlobError::io(&dir.join(name), error);
            env.files.rename(&dir.join(name), &dir.join(place)).map_err(failed)?;
            env.files.sync_dir(&dir).map_err(failed)?;
            found.push(place);
        } else {
            // If it remains, it does no harm.
            let _ = env.files.remove(&dir.join(name));
        }
    }
    Ok(found)
}

fn read_head(env: &Env, path: &Path) -> io::Result<Result<FileHeader, FormatError>> {
    let media = env.files.open_unmapped(path)?;
    let head = media.view(0..media.len().min(FILE_HEADER_LEN as u64))?;
    Ok(FileHeader::decode(&head, Magic::Pack))
}

fn remove(env: &Env, number: u64, generation: u32) {
    for kind in [PACK_INDEX, PACK] {
        // What remains is removed by the next open.
        let _ = env.files.remove(&env.blob_path(number, generation, kind));
    }
}

impl Opened {
    /// Damage leaves the store readable; any other error fails the open.
    fn note(&mut self, error: BlobError) -> Result<(), BlobError> {
        match error {
            BlobError::Corrupt(corruption) => {
                self.trouble.get_or_insert(ReadOnlyReason::Corrupt(corruption));
                Ok(())
            }
            other => Err(other),
        }
    }

    fn unmarked(&mut self, env: &Arc<Env>, line: &FileEntry, clean: bool) -> Result<(), BlobError> {
        if clean {
            let path = env.blob_path(line.base, line.generation, PACK);
            let len = env.files.len_of(&path).map_err(|error| BlobError::io(&path, error))?;
            if len < line.length {
                let what = "is shorter than when the store was closed";
                self.trouble.get_or_insert(ReadOnlyReason::Files { path, what });
            }
            self.list.open.push(Arc::new(OpenPack::reopen(env, line)?));
            return Ok(());
        }
        match mend(env, line) {
            // One spare is enough.
            Ok(Some((pack, _))) if pack.is_empty() && self.has_spare() => {}
            Ok(Some((pack, torn))) => {
                self.list.open.push(Arc::new(pack));
                self.dropped.extend(torn);
                return Ok(());
            }
            Ok(None) => {}
            Err(BlobError::Io { error, .. }) if is_full(&error) => {}
            Err(error) => return Err(error),
        }
        let path = env.blob_path(line.base, line.generation, PACK);
        let media = env.files.open_scan(&path).map_err(|error| BlobError::io(&path, error))?;
        let salt = find_header(env, &media, line)?.salt;
        self.salvage(env, line, salt, &media).map(drop)
    }

    /// Whether an opened pack is still empty.
    fn has_spare(&self) -> bool {
        self.list.open.iter().any(|pack| pack.is_empty())
    }

    /// Handles packs that the manifest does not name and that are not another generation of one
    /// that it names and that exists: a crash came before the manifest was written, or the manifest
    /// lost its newest copy.
    fn strangers(&mut self, env: &Arc<Env>, strangers: &There) -> Result<(), BlobError> {
        if env.manifest.state().backup {
            // A backup names all packs that its frames need; the next run that adds to it removes
            // these.
            return Ok(());
        }
        let mut taken = None;
        for (&key, &head) in strangers {
            // The oldest generation has everything that the others were made of, and one of the
            // others may be its salvaged form.
            if let Some(became) = taken.filter(|taken: &FileKey| taken.base == key.base) {
                if became != key {
                    remove(env, key.base, key.generation);
                }
                continue;
            }
            taken = self.stranger(env, key, head)?.or(taken);
        }
        Ok(())
    }

    /// Salvages what verifies in a pack, even if its header does not: a crash may have kept only
    /// the header from the disk. Returns the pack that now holds it.
    fn stranger(
        &mut self,
        env: &Arc<Env>,
        FileKey { base: number, generation, .. }: FileKey,
        head: Head,
    ) -> Result<Option<FileKey>, BlobError> {
        let path = env.blob_path(number, generation, PACK);
        let failed = |error| BlobError::io(&path, error);
        let media = env.files.open_scan(&path).map_err(failed)?;
        let known = match head {
            Head::Ours(header) => Some((header.salt, header.file)),
            Head::Damaged => first_salt(&*media).map_err(failed)?.map(|salt| (salt, [0; 16])),
            Head::Foreign => {
                let foreign = ReadOnlyReason::Files { path, what: NOT_NAMED };
                self.trouble.get_or_insert(foreign);
                return Ok(None);
            }
        };
        let Some((salt, uuid)) = known else {
            remove(env, number, generation);
            return Ok(None);
        };
        let line = FileEntry {
            kind: FileKind::Pack,
            state: FileState::Unmarked,
            generation,
            base: number,
            uuid,
            length: 0,
            crc: 0,
            count: 0,
            newest_ms: 0,
            gone: 0,
            purged_seq: 0,
        };
        self.salvage(env, &line, salt, &media)
    }

    /// Seals what can be read of a pack as its next generation. Returns the number and generation
    /// that hold it now, if any.
    fn salvage(
        &mut self,
        env: &Arc<Env>,
        line: &FileEntry,
        salt: u32,
        media: &Arc<dyn Media>,
    ) -> Result<Option<FileKey>, BlobError> {
        let failed = |error| BlobError::io(media.path(), error);
        let mut dropped = Vec::new();
        let mut walk = PackWalk::new(media, salt);
        let Some(first) = walk.next()? else {
            return match forget(env, line) {
                Ok(()) => {
                    remove(env, line.base, line.generation);
                    Ok(None)
                }
                Err(error) if is_full(&error) => self.adopt(env, line, salt, media).map(Some),
                Err(error) => Err(failed(error)),
            };
        };
        let rewritten = Builder::create(env, (line.base, line.generation + 1), media.len())
            .map_err(failed)
            .and_then(|mut builder| {
                let mut next = Some(first);
                while let Some(entry) = next {
                    match builder.add(entry) {
                        // Torn, hence never acknowledged; or damaged, hence lost.
                        Err(BlobError::Corrupt(corruption)) => dropped.push(corruption),
                        added => added?,
                    }
                    next = walk.next()?;
                }
                if let Some(at) = walk.hole() {
                    let what = "no entry begins here";
                    dropped.push(Corruption::new(media.path(), at, what));
                }
                finish(env, builder)
            });
        let built = match rewritten {
            Ok(built) => built,
            Err(BlobError::Io { error, .. }) if is_full(&error) => {
                return self.adopt(env, line, salt, media).map(Some);
            }
            Err(error) => return Err(error),
        };
        built.write_index(env);
        match replace_line(env, line, Some(built.line)) {
            Ok(()) => remove(env, line.base, line.generation),
            Err(error) if is_full(&error) => {
                remove(env, built.line.base, built.line.generation);
                return self.adopt(env, line, salt, media).map(Some);
            }
            Err(error) => return Err(failed(error)),
        }
        self.dropped.extend(dropped.into_iter().take(FINDINGS_MAX));
        let sealed = SealedPack::new(Arc::clone(env), built.line);
        self.list.sealed.push(Arc::new(sealed));
        Ok(Some(built.line.key()))
    }

    /// Uses a pack as it is, while there is no space for its next generation or for the changed
    /// manifest.
    fn adopt(
        &mut self,
        env: &Arc<Env>,
        line: &FileEntry,
        salt: u32,
        media: &Arc<dyn Media>,
    ) -> Result<FileKey, BlobError> {
        let pack = OpenPack::adopt(env, line, salt, media)?;
        self.list.open.push(Arc::new(pack));
        Ok(line.key())
    }
}
