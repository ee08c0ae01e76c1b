//! Writes what can be read of a damaged pack as a new one.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::build::Builder;
use super::check::BadEntry;
use super::entry::Entry;
use super::error::BlobError;
use super::reader::GoOn;
use super::seal::finish_while;
use super::walk::PackWalk;
use crate::env::Env;
use crate::format::file::FILE_HEADER_LEN;
use crate::format::pack::{ENTRY_MAGIC, EntryHeader, EntryKind};
use crate::format::super_file::FileEntry;
use crate::media::{Media, find_first};
use crate::value::BlobHash;

/// Called with each lost place of the old pack, and the blob there, if known.
pub(crate) type Lost<'a> = &'a mut dyn FnMut(u64, Option<BlobHash>, &BadEntry);

/// Bytes of the old pack after which `go_on` is asked.
const ASK_EVERY: u64 = 4 * 1024 * 1024;

/// Writes the sound blobs of a pack as pack `number` of another store, durably and with its index.
/// `None` when none is sound. The new pack is in no manifest yet. When `go_on` breaks, nothing is
/// left of it.
pub(crate) fn save_pack(
    env: &Arc<Env>,
    number: u64,
    media: &Arc<dyn Media>,
    salt: u32,
    lost: Lost<'_>,
    go_on: GoOn<'_>,
) -> Result<ControlFlow<(), Option<FileEntry>>, BlobError> {
    let created = Builder::create(env, (number, 0), media.len());
    let mut builder = created.map_err(|error| BlobError::io(media.path(), error))?;
    let mut walk = PackWalk::new(media, salt);
    let mut end = FILE_HEADER_LEN as u64;
    let mut asked = end;
    while let Some(entry) = walk.next()? {
        if end < entry.at() {
            lost(end, None, &BadEntry::Hole);
        }
        end = entry.end();
        let mut stopped = add(&mut builder, entry, lost, go_on)?;
        if end - asked >= ASK_EVERY && stopped.is_continue() {
            (asked, stopped) = (end, go_on(end));
        }
        if stopped.is_break() {
            builder.abandon();
            return Ok(ControlFlow::Break(()));
        }
    }
    if builder.is_empty() {
        builder.abandon();
        return Ok(ControlFlow::Continue(None));
    }
    let ControlFlow::Continue(built) = finish_while(env, builder, go_on)? else {
        return Ok(ControlFlow::Break(()));
    };
    built.write_index(env);
    Ok(ControlFlow::Continue(Some(built.line)))
}

/// Adds the sound blobs of an entry.
fn add(
    builder: &mut Builder,
    entry: Entry,
    lost: Lost<'_>,
    go_on: GoOn<'_>,
) -> Result<ControlFlow<()>, BlobError> {
    let (at, header) = (entry.at(), *entry.header());
    match builder.add_while(entry, go_on) {
        Err(BlobError::Corrupt(corruption)) => {
            let hash = (header.kind != EntryKind::Block).then_some(header.hash);
            lost(at, hash, &BadEntry::Entry(corruption.what));
            Ok(ControlFlow::Continue(()))
        }
        other => other,
    }
}

/// The salt of a pack whose header is damaged, from the first entry that verifies.
pub(crate) fn find_pack_salt(media: &dyn Media) -> Option<u32> {
    first_salt(media).ok().flatten()
}

/// The salt of a pack from the first entry that verifies; distinguishes that none verifies from an
/// I/O error.
pub(super) fn first_salt(media: &dyn Media) -> io::Result<Option<u32>> {
    let salt = |bytes: &[u8]| EntryHeader::read(bytes).ok().map(|header| header.salt);
    find_first(media, FILE_HEADER_LEN as u64, &ENTRY_MAGIC, salt)
}
