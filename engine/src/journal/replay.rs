//! Reads the journal of a store that was not closed cleanly, and applies its entries to log and
//! packs. Repeating that, even after an interruption, gives the same result: the bytes at a
//! position never change, and the journal holds what was written there.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::env::Env;
use crate::format::file::{FILE_HEADER_LEN, FileHeader, FormatError, Magic};
use crate::format::journal::{ENTRY_ALIGN, Entry, HALVES_AT, PieceAt};
use crate::format::super_file::{FileEntry, FileKey, FileKind, FileState, SuperState};
use crate::limits::JOURNAL_HALF_BYTES_MAX;
use crate::media::Files;
use crate::names::{JOURNAL, file_name};
use crate::planted::{Bug, is_planted};

/// Bytes of a file that a sync of the journal made durable, by position.
pub(crate) type Pieces = Vec<(u64, Bytes)>;

/// What is wrong with a journal that acknowledged groups need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It is not what it was; the text says how.
    Lost(&'static str),
    /// It was written by a program with another version of the format.
    Version(u32),
}

/// The content of the journal.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// The file exists.
    pub(crate) there: bool,
    /// The fault of the file, because of which acknowledged groups may be missing.
    pub(crate) trouble: Option<Trouble>,
    /// Number of groups.
    pub(crate) groups: u64,
    /// Pieces by file, in the order in which they were written.
    pub(crate) files: BTreeMap<PathBuf, Pieces>,
}

/// Reads the journal of the store in `dir`, as the disk has it. Entries that do not verify were
/// torn and never acknowledged, or are damaged, which the log then reveals. Entries of sealed or
/// removed files, and of earlier openings, are ignored. Without a manifest the files identify
/// themselves, and entries of all openings count.
pub(crate) fn read(files: &dyn Files, dir: &Path, state: Option<&SuperState>) -> io::Result<Kept> {
    let path = dir.join(JOURNAL);
    let named = state.map_or(0, |state| state.journal);
    let len = match files.len_of(&path) {
        Ok(len) => len,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let trouble = (named != 0).then_some(Trouble::Lost("is missing"));
            return Ok(Kept { trouble, ..Kept::default() });
        }
        Err(error) => return Err(error),
    };
    let mut kept = Kept { there: true, ..Kept::default() };
    let media = files.open_scan(&path)?;
    let bytes = media.view(0..len.min(HALVES_AT + 2 * JOURNAL_HALF_BYTES_MAX))?;
    let lines = state.map_or(&[][..], |state| &state.files);
    let target = |place: &PieceAt| target(files, dir, lines, place);
    let header = bytes.get(..FILE_HEADER_LEN).unwrap_or_default();
    let salt = match FileHeader::decode(header, Magic::Journal) {
        Ok(header) => {
            let is_ours = state.is_none_or(|state| state.store == header.store);
            if named != 0 && !(is_ours && header.salt == named) {
                kept.trouble = Some(Trouble::Lost("is not the file the manifest names"));
            } else if named != 0 && len < HALVES_AT.saturating_add(header.base.saturating_mul(2)) {
                kept.trouble = Some(Trouble::Lost("is shorter than it was made"));
            }
            is_ours.then_some(header.salt)
        }
        Err(FormatError::Version { found }) => {
            // One that the manifest does not name holds nothing that was acknowledged.
            kept.trouble = (named != 0).then_some(Trouble::Version(found));
            None
        }
        // If the header is damaged, the manifest has the salt, or an entry of this store.
        Err(_) if named != 0 => Some(named),
        Err(_) => find_salt(&bytes, |place| target(place).is_some()),
    };
    let Some(salt) = salt else { return Ok(kept) };
    let epoch = state.and_then(|state| state.epochs.last()).map_or(0, |last| last.epoch);
    let mut entries =
        entries(&bytes, Some(salt)).filter(|entry| entry.stamp.epoch >= epoch).collect::<Vec<_>>();
    entries.sort_by_key(|entry| (entry.stamp.epoch, entry.stamp.number));
    kept.groups = entries.len() as u64;
    for (place, piece) in entries.iter().flat_map(|entry| &entry.pieces) {
        if let Some(path) = target(place) {
            kept.files.entry(path).or_default().push((place.position, bytes.slice_ref(piece)));
        }
    }
    Ok(kept)
}

/// The entries that verify, with this salt if it is known.
fn entries(bytes: &[u8], salt: Option<u32>) -> impl Iterator<Item = Entry<'_>> {
    let mut at = HALVES_AT as usize;
    std::iter::from_fn(move || {
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let entry = Entry::read(rest, salt).ok();
            at += entry.as_ref().map_or(1, |entry| entry.length).next_multiple_of(ENTRY_ALIGN);
            if entry.is_some() {
                return entry;
            }
        }
        None
    })
}

/// The salt of the first entry that names a file of the store: the uuids of its files are secret,
/// so no body of a frame can pass for an entry.
fn find_salt(bytes: &[u8], is_ours: impl Fn(&PieceAt) -> bool) -> Option<u32> {
    let mut entries = entries(bytes, None);
    let first = entries.find(|entry| entry.pieces.iter().any(|(place, _)| is_ours(place)));
    first.map(|entry| entry.stamp.salt)
}

/// The file that a piece belongs to, if it exists and may still change.
fn target(files: &dyn Files, dir: &Path, lines: &[FileEntry], place: &PieceAt) -> Option<PathBuf> {
    let PieceAt { kind, file, base, generation, .. } = *place;
    let path = dir.join(kind.dir()).join(file_name(base, generation, kind.end()));
    let key = FileKey { kind, base, generation };
    match lines.iter().find(|line| line.key() == key) {
        Some(line) => {
            let is_it = line.state == FileState::Unmarked && line.uuid == file;
            (is_it && files.len_of(&path).is_ok()).then_some(path)
        }
        // The manifest lost its newest copy: the file's own header decides.
        None => {
            let magic = match kind {
                FileKind::Segment => Magic::Segment,
                FileKind::Pack => Magic::Pack,
            };
            let media = files.open_unmapped(&path).ok()?;
            let header = media.view(0..FILE_HEADER_LEN as u64).ok()?;
            let header = FileHeader::decode(&header, magic).ok()?;
            (header.file == file).then_some(path)
        }
    }
}

/// Applies the journal to log and packs, durably. Returns what it held.
pub(crate) fn replay(env: &Env) -> io::Result<Kept> {
    let kept = read(&*env.files, &env.dir, Some(&env.manifest.state()))?;
    if is_planted(Bug::SkipReplay) {
        return Ok(kept);
    }
    for (path, pieces) in &kept.files {
        // After a failed sync a page may be clean in the cache, and would not be written again;
        // this drops clean pages and keeps dirty ones.
        env.files.forget(path, 0..u64::MAX)?;
        let media = env.files.open_append(path)?;
        for (at, piece) in pieces {
            // A file that is too short was truncated by someone else; the log reveals that.
            if at.checked_add(piece.len() as u64).is_some_and(|end| end <= media.len()) {
                media.write_at(*at, piece)?;
            }
        }
        media.sync()?;
    }
    Ok(kept)
}
