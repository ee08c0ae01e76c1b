//! Makes a pack that was not closed in order fit to be written on, where it lies. What was durable
//! once, as later entries tell, is found by its headers alone. What may not be durable is read from
//! the disk itself, checked by CRC and SHA-256, written once more (the same bytes to the same
//! places) and synced. What is torn behind it is overwritten with zeros. This may be cut off
//! anywhere or done twice: the result is the same. A pack that is damaged in the middle is refused:
//! what is whole in it has to be written to a new one.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::error::BlobError;
use super::headers::Headers;
use super::open_pack::{OpenPack, find_header};
use super::reader::BlobReader;
use super::walk::PackWalk;
use crate::env::Env;
use crate::error::Corruption;
use crate::format::file::FILE_HEADER_LEN;
use crate::format::pack::{EntryKind, slot_of};
use crate::format::super_file::FileEntry;
use crate::media::Media;
use crate::names::PACK;
use crate::planted::{Bug, is_planted};

/// Bytes read or written at a time.
const PIECE_LEN: u64 = 1024 * 1024;

/// A pack that can be written on, and what was torn at its end.
pub(super) type Mended = (OpenPack, Option<Corruption>);

/// The end of a pack as the disk has it.
#[derive(Debug)]
struct Tail {
    media: Arc<dyn Media>,
    /// Where what may not be durable begins.
    from: u64,
    /// Where its last whole entry ends.
    end: u64,
    /// From there on the file is zero.
    zero_from: u64,
    slots: Vec<(u64, u32)>,
    torn: Option<Corruption>,
}

/// Mends a pack; nothing when it is damaged before its end.
///
/// # Errors
/// [`BlobError`]; what is on disk then is what was there, or the same with zeros for what is torn.
pub(super) fn mend(env: &Arc<Env>, line: &FileEntry) -> Result<Option<Mended>, BlobError> {
    let path = env.blob_path(line.base, line.generation, PACK);
    let failed = |error| BlobError::io(&path, error);
    // Its map goes before the cache is dropped: pages that are mapped stay.
    let (header, mut held, len) = {
        let media = env.files.open_sealed(&path).map_err(failed)?;
        let header = find_header(env, &media, line)?;
        let held = Headers::read(&media, header.salt, FILE_HEADER_LEN as u64, media.len())?;
        (header, held, media.len())
    };
    let from = held.durable_upto.max(FILE_HEADER_LEN as u64);
    if !held.is_edge(from) {
        return Ok(None);
    }
    if !is_planted(Bug::TrustCache) {
        env.files.forget(&path, from..len).map_err(failed)?;
    }
    let Some(tail) = look(env, &path, header.salt, from)? else { return Ok(None) };
    let media = env.files.open_append(&path).map_err(failed)?;
    if from < tail.end || tail.torn.is_some() {
        tail.write(media.as_ref()).map_err(failed)?;
    }
    media.publish(tail.end);
    held.slots.retain(|(_, slot)| u64::from(*slot) * 8 < from);
    held.slots.extend(&tail.slots);
    let pack = OpenPack::taken_up(env, &header, media, tail.end, &held.slots);
    Ok(Some((pack, tail.torn)))
}

/// Reads what may not be durable. Nothing when something whole, or something that was durable, lies
/// behind a damaged place.
fn look(env: &Env, path: &Path, salt: u32, from: u64) -> Result<Option<Tail>, BlobError> {
    let failed = |error| BlobError::io(path, error);
    let media = env.files.open_unmapped(path).map_err(failed)?;
    let zero_from = media.zero_from().clamp(from, media.len());
    let upto = zero_from.next_multiple_of(8).min(media.len());
    // Through a map, for there may be many entries; it goes before anything is written.
    let map = env.files.open_sealed(path).map_err(failed)?;
    let mut walk = PackWalk::part(&map, salt, from..upto);
    let (mut slots, mut end, mut torn, mut durable_upto) = (Vec::new(), from, None, 0);
    while let Some(entry) = walk.next()? {
        let (at, next, header) = (entry.at(), entry.end(), *entry.header());
        durable_upto = header.durable_upto.max(durable_upto);
        match BlobReader::open(entry).and_then(BlobReader::check) {
            Ok(()) if at != end || header.kind == EntryKind::Block => return Ok(None),
            Ok(()) => {
                slots.push((header.hash.prefix(), slot_of(at)));
                end = next;
            }
            Err(BlobError::Corrupt(corruption)) => {
                torn.get_or_insert(corruption);
            }
            Err(error) => return Err(error),
        }
    }
    if durable_upto > end {
        return Ok(None);
    }
    let hole = walk.hole().map(|at| Corruption::new(path, at, "no entry begins here"));
    Ok(Some(Tail { media, from, end, zero_from: upto, slots, torn: torn.or(hole) }))
}

impl Tail {
    /// Writes it once more, and zeros over what is torn.
    fn write(&self, media: &dyn Media) -> io::Result<()> {
        let mut at = if is_planted(Bug::TrustCache) { self.end } else { self.from };
        while at < self.end {
            let piece = self.media.view(at..(at + PIECE_LEN).min(self.end))?;
            media.write_at(at, &piece)?;
            at += piece.len() as u64;
        }
        if self.torn.is_some() {
            let zeros = vec![0; self.zero_from.saturating_sub(at).min(PIECE_LEN) as usize];
            while at < self.zero_from {
                let piece = &zeros[..(self.zero_from - at).min(PIECE_LEN) as usize];
                media.write_at(at, piece)?;
                at += piece.len() as u64;
            }
        }
        media.sync()
    }
}
