//! Opening the packs. One that was not closed in order is mended where it lies. Where that cannot
//! be done it is not believed: what the disk has of it, entry by entry with CRC and SHA-256,
//! becomes its next, sealed generation, and the old file goes. Doing this twice, or half of it and
//! then all, ends in the same.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use super::build::Builder;
use super::error::BlobError;
use super::mend::mend;
use super::open_pack::{OpenPack, find_header};
use super::packs::PackList;
use super::seal::{finish, replace_line};
use super::sealed::{SealedPack, encode_index, write_index};
use super::walk::Walk;
use crate::env::Env;
use crate::error::{Corruption, ReadOnlyReason};
use crate::format::file::{FileHeader, FormatError, Magic};
use crate::format::super_file::{FileEntry, FileKind, FileState};
use crate::limits::FINDINGS_MAX;
use crate::media::{Media, is_full};
use crate::recovery::is_meant;

/// What opening found.
#[derive(Default)]
pub(super) struct Opened {
    pub(super) list: PackList,
    /// The highest number any pack has.
    pub(super) number: u64,
    /// Why nothing more should be written, if so.
    pub(super) trouble: Option<ReadOnlyReason>,
    /// Where packs that were not closed in order lost something.
    pub(super) dropped: Vec<Corruption>,
}

/// Opens all packs; `clean` says that the store was closed in order.
pub(super) fn open(env: &Arc<Env>, clean: bool) -> Result<Opened, BlobError> {
    let dir = env.blob_dir();
    env.files.create_dir(&dir).map_err(|error| BlobError::io(&dir, error))?;
    let mut lines: Vec<FileEntry> =
        env.manifest.state().files.iter().filter(|l| l.kind == FileKind::Pack).copied().collect();
    let number = lines.iter().map(|line| line.base).max().unwrap_or(0);
    let Inventory { packs: mut there, newer } = inventory(env)?;
    for line in lines.extract_if(.., |line| line.state == FileState::Dropped) {
        there.remove(&(line.base, line.generation));
        remove_dropped(env, &line).map_err(|error| BlobError::io(&dir, error))?;
    }
    forget_dropped(env).map_err(|error| BlobError::io(&dir, error))?;
    let named: BTreeSet<_> = lines.iter().map(|line| (line.base, line.generation)).collect();
    let replaced: Vec<_> = there
        .keys()
        .filter(|place| !named.contains(place))
        .filter(|(number, _)| lines.iter().any(|l| l.base == *number && has(&there, l)))
        .copied()
        .collect();
    for (number, generation) in replaced {
        there.remove(&(number, generation));
        remove(env, number, generation);
    }
    let number = there.keys().map(|place| place.0).max().unwrap_or(0).max(number);
    let mut opened = Opened { trouble: newer, number, ..Opened::default() };
    for line in &lines {
        if !has(&there, line) {
            let path = env.blob_path(line.base, line.generation, "pack");
            let missing = ReadOnlyReason::Files { path, what: "is missing" };
            opened.trouble.get_or_insert(missing);
        } else if line.state == FileState::Sealed {
            opened.list.sealed.push(Arc::new(SealedPack::new(Arc::clone(env), *line)));
        } else if let Err(error) = opened.unmarked(env, line, clean) {
            opened.note(error)?;
        }
    }
    for (&(number, generation), header) in there.iter().filter(|(place, _)| !named.contains(place))
    {
        match header {
            Some(header) => opened.stranger(env, header)?,
            None => remove(env, number, generation),
        }
    }
    Ok(opened)
}

/// Removes the files of a pack that was dropped; they may be gone already.
pub(super) fn remove_dropped(env: &Env, line: &FileEntry) -> io::Result<()> {
    let remove = |kind| env.files.remove(&env.blob_path(line.base, line.generation, kind));
    remove("pidx").and_then(|()| remove("pack"))
}

/// Takes the packs that were dropped, and whose files are gone, out of the manifest. Without room
/// for it they stay there until the next open.
fn forget_dropped(env: &Env) -> io::Result<()> {
    let dropped = |file: &FileEntry| file.state == FileState::Dropped;
    if !env.manifest.state().files.iter().any(dropped) {
        return Ok(());
    }
    // First the names: a file that came back after a crash would not be known as dropped.
    env.files.sync_dir(&env.blob_dir())?;
    match env.manifest.update(|state| state.files.retain(|file| !dropped(file))) {
        Err(error) if is_full(&error) => Ok(()),
        updated => updated,
    }
}

type There = BTreeMap<(u64, u32), Option<FileHeader>>;

/// What lies in the directory of the packs.
struct Inventory {
    /// The packs, with their headers if these are of this store.
    packs: There,
    /// A pack of a newer format version, if there is one.
    newer: Option<ReadOnlyReason>,
}

fn has(there: &There, line: &FileEntry) -> bool {
    there.contains_key(&(line.base, line.generation))
}

/// The packs in the directory. Unfinished files and indexes without a pack are removed.
fn inventory(env: &Env) -> Result<Inventory, BlobError> {
    let dir = env.blob_dir();
    let names = env.files.list(&dir).map_err(|error| BlobError::io(&dir, error))?;
    let store = env.manifest.state().store;
    let (mut packs, mut newer) = (BTreeMap::new(), None);
    let state = env.manifest.state();
    let mut found = Vec::new();
    for name in &names {
        let Some(place) = name.strip_suffix(".tmp") else {
            found.push(name.as_str());
            continue;
        };
        let named = parse_name(place, "pack").and_then(|at| {
            let is_it = |file: &&FileEntry| {
                file.kind == FileKind::Pack && at == (file.base, file.generation)
            };
            state.files.iter().find(is_it)
        });
        let meant = |file: &FileEntry| is_meant(env.files.as_ref(), &dir, (name, place), file);
        if named.is_some_and(meant) {
            let failed = |error| BlobError::io(&dir.join(name), error);
            env.files.rename(&dir.join(name), &dir.join(place)).map_err(failed)?;
            env.files.sync_dir(&dir).map_err(failed)?;
            found.push(place);
        } else {
            // What stays is in nobody's way.
            let _ = env.files.remove(&dir.join(name));
        }
    }
    for name in found {
        let Some((number, generation)) = parse_name(name, "pack") else { continue };
        let media = env.files.open_sealed(&dir.join(name));
        let head = media.and_then(|media| media.view(0..media.len().min(64)));
        let header = head.ok().map(|head| FileHeader::decode(&head, Magic::Pack));
        if let Some(Err(FormatError::Version { found })) = header {
            newer = newer.or_else(|| Some(ReadOnlyReason::Version { path: dir.join(name), found }));
            // One that the manifest does not name is not for this program to remove either.
            let named = |file: &FileEntry| {
                file.kind == FileKind::Pack && (file.base, file.generation) == (number, generation)
            };
            if !state.files.iter().any(named) {
                continue;
            }
        }
        let header = header.and_then(Result::ok);
        let named = |header: &FileHeader| {
            (header.store, header.base, header.generation) == (store, number, generation)
        };
        packs.insert((number, generation), header.filter(named));
    }
    for name in &names {
        if parse_name(name, "pidx").is_some_and(|place| !packs.contains_key(&place)) {
            let _ = env.files.remove(&dir.join(name));
        }
    }
    Ok(Inventory { packs, newer })
}

fn parse_name(name: &str, kind: &str) -> Option<(u64, u32)> {
    let (number, generation) = name.strip_suffix(kind)?.strip_suffix('.')?.split_once('.')?;
    Some((number.parse().ok()?, generation.parse().ok()?))
}

fn remove(env: &Env, number: u64, generation: u32) {
    for kind in ["pidx", "pack"] {
        // What stays is removed at the next open.
        let _ = env.files.remove(&env.blob_path(number, generation, kind));
    }
}

impl Opened {
    /// Damage leaves the store readable; any other error does not let it open.
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
            self.list.open.push(Arc::new(OpenPack::reopen(env, line)?));
            return Ok(());
        }
        match mend(env, line) {
            // One made ready is enough.
            Ok(Some((pack, _))) if pack.is_empty() && self.has_spare() => {}
            Ok(Some((pack, torn))) => {
                self.list.open.push(Arc::new(pack));
                self.dropped.extend(torn);
                return Ok(());
            }
            Ok(None) => {}
            Err(BlobError::Io { source, .. }) if is_full(&source) => {}
            Err(error) => return Err(error),
        }
        let path = env.blob_path(line.base, line.generation, "pack");
        let media = env.files.open_scan(&path).map_err(|error| BlobError::io(&path, error))?;
        let salt = find_header(env, &media, line)?.salt;
        self.salvage(env, line, salt, &media)
    }

    /// Whether a pack was taken up that nothing was put into yet.
    fn has_spare(&self) -> bool {
        self.list.open.iter().any(|pack| pack.is_empty())
    }

    /// A pack of this store that the manifest does not name: the crash came before the manifest was
    /// written, or the manifest lost its newest copy. What it holds proves itself.
    fn stranger(&mut self, env: &Arc<Env>, header: &FileHeader) -> Result<(), BlobError> {
        let path = env.blob_path(header.base, header.generation, "pack");
        let media = env.files.open_scan(&path).map_err(|error| BlobError::io(&path, error))?;
        let line = FileEntry {
            kind: FileKind::Pack,
            state: FileState::Unmarked,
            generation: header.generation,
            base: header.base,
            uuid: header.file,
            length: 0,
            crc: 0,
            count: 0,
            newest_ms: 0,
            gone: 0,
            settled: 0,
        };
        self.salvage(env, &line, header.salt, &media)
    }

    /// Seals what can be read of a pack as its next generation.
    fn salvage(
        &mut self,
        env: &Arc<Env>,
        line: &FileEntry,
        salt: u32,
        media: &Arc<dyn Media>,
    ) -> Result<(), BlobError> {
        let failed = |error| BlobError::io(media.path(), error);
        let mut dropped = Vec::new();
        let mut walk = Walk::new(media, salt);
        let Some(first) = walk.next()? else {
            replace_line(env, line, None).map_err(failed)?;
            remove(env, line.base, line.generation);
            return Ok(());
        };
        let rewritten = Builder::create(env, (line.base, line.generation + 1), media.len())
            .map_err(failed)
            .and_then(|mut builder| {
                let mut next = Some(first);
                while let Some(entry) = next {
                    match builder.add(entry) {
                        // Torn, and with that never acknowledged, or damaged, and with that lost.
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
            // With no space for another file the old one serves until there is.
            Err(BlobError::Io { source, .. }) if is_full(&source) => {
                let pack = OpenPack::adopt(env, line, salt, media)?;
                self.list.open.push(Arc::new(pack));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.dropped.extend(dropped.into_iter().take(FINDINGS_MAX));
        let index = encode_index(env, &built.line, &built.contents);
        // Without the file the index is made anew when it is first needed.
        let _ = write_index(env, &built.line, &index);
        replace_line(env, line, Some(built.line)).map_err(failed)?;
        remove(env, line.base, line.generation);
        let sealed = SealedPack::new(Arc::clone(env), built.line);
        self.list.sealed.push(Arc::new(sealed));
        Ok(())
    }
}
