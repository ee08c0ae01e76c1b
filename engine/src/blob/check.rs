//! Checks packs without the store being open: every entry of a file, and whether any of several
//! packs has a blob.

use std::io;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use super::error::BlobError;
use super::open_pack::OpenPack;
use super::packs::Packs;
use super::reader::BlobReader;
use super::sealed::{SealedPack, scan};
use super::walk::PackWalk;
use crate::env::Env;
use crate::format::file::FILE_HEADER_LEN;
use crate::format::pack::EntryKind;
use crate::format::pack_index::IndexEntry;
use crate::format::super_file::FileEntry;
use crate::media::Media;
use crate::value::BlobHash;

/// Bytes scanned at a time.
const WINDOW_LEN: u64 = 256 * 1024;

/// Called with each place that does not verify, and the blob that should be there, if known; and
/// with [`BadEntry::None`] for each piece that was read, and for each part of a long one.
pub(crate) type Tell<'a> = &'a mut dyn FnMut(u64, Option<BlobHash>, &BadEntry) -> ControlFlow<()>;

/// A fault of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BadEntry {
    /// An entry that does not hold what was stored.
    Entry(Arc<str>),
    /// Bytes between entries that are not an entry.
    Hole,
    /// No fault.
    None,
}

impl std::fmt::Display for BadEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Entry(what) => f.write_str(what),
            Self::Hole => f.write_str("no blob entry begins here"),
            Self::None => Ok(()),
        }
    }
}

/// Reads every entry of a pack, up to its published length, and compares every blob that has an
/// entry of its own with its hash. Returns how many were sound.
pub(crate) fn check_pack_file(
    media: &Arc<dyn Media>,
    salt: u32,
    tell: Tell<'_>,
) -> io::Result<u64> {
    let mut walk = PackWalk::new(media, salt);
    let (mut sound, mut end) = (0, FILE_HEADER_LEN as u64);
    while let Some(entry) = walk.next().map_err(io::Error::from)? {
        let (at, hash) = (entry.at(), entry.header().hash);
        if end < at && !is_blank(media, end..at)? && tell(end, None, &BadEntry::Hole).is_break() {
            return Ok(sound);
        }
        end = entry.end();
        let count = u64::from(entry.header().count);
        let is_block = entry.header().kind == EntryKind::Block;
        let checked = if is_block {
            // Its hashes are not stored; the index, which has them, is compared with it elsewhere.
            entry.block().map(|_| ControlFlow::Continue(()))
        } else {
            let go_on = &mut |read| tell(at + read, None, &BadEntry::None);
            BlobReader::open(entry.clone()).and_then(|reader| reader.check_while(go_on))
        };
        let (hash, bad) = match checked {
            Ok(ControlFlow::Break(())) => return Ok(sound),
            Ok(ControlFlow::Continue(())) => (None, BadEntry::None),
            Err(BlobError::Io { error, .. }) => return Err(error),
            Err(BlobError::Corrupt(corruption)) => {
                ((!is_block).then_some(hash), BadEntry::Entry(corruption.what))
            }
            Err(error) => ((!is_block).then_some(hash), BadEntry::Entry(error.to_string().into())),
        };
        sound += if bad == BadEntry::None { count } else { 0 };
        if tell(at, hash, &bad).is_break() {
            return Ok(sound);
        }
    }
    let upto = media.published();
    if end < upto && !is_blank(media, end..upto)? {
        // The scan is over: whether the caller wants to stop does not matter.
        let _ = tell(end, None, &BadEntry::Hole);
    }
    Ok(sound)
}

/// The location of every blob of a sound pack.
pub(crate) fn pack_entries(media: &Arc<dyn Media>, salt: u32) -> io::Result<Vec<IndexEntry>> {
    Ok(scan(media, salt)?.0.entries().collect())
}

fn is_blank(media: &Arc<dyn Media>, range: Range<u64>) -> io::Result<bool> {
    let mut at = range.start;
    while at < range.end {
        let upto = (at + WINDOW_LEN).min(range.end);
        if media.view(at..upto)?.iter().any(|&byte| byte != 0) {
            return Ok(false);
        }
        at = upto;
    }
    Ok(true)
}

/// A checked unsealed pack, with its file and salt.
pub(crate) type LookedAt = (FileEntry, Arc<dyn Media>, u32);

/// Packs opened only for lookups. In unsealed ones only entries that verify count.
#[derive(Debug)]
pub(crate) struct PackView {
    packs: Packs,
}

impl PackView {
    /// Opens sealed and unsealed packs for lookups; those that cannot be opened are left out.
    pub(crate) fn new(env: &Arc<Env>, sealed: &[FileEntry], open: &[LookedAt]) -> Self {
        let packs = Packs::default();
        packs.change(|list| {
            let new = |line: &FileEntry| Arc::new(SealedPack::new(Arc::clone(env), *line));
            list.sealed.extend(sealed.iter().map(new));
            let adopt = |(line, media, salt): &LookedAt| {
                OpenPack::adopt(env, line, *salt, media).ok().map(Arc::new)
            };
            list.open.extend(open.iter().filter_map(adopt));
        });
        Self { packs }
    }

    /// Whether a blob exists, judging by its header. One that may lie in a damaged place does not.
    pub(crate) fn contains(&self, hash: &BlobHash) -> bool {
        self.packs.find(hash, |found| Ok(found.len())).is_ok_and(|len| len.is_some())
    }

    /// Whether a sound copy of a blob exists; reads all of it.
    pub(crate) fn contains_sound(&self, hash: &BlobHash) -> bool {
        let read = self.packs.find(hash, |found| found.reader()?.check());
        read.is_ok_and(|found| found.is_some())
    }
}
