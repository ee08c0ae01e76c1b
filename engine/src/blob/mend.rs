//! Makes a pack that was not closed cleanly writable again, in place. What later entries prove to
//! have been durable is located by its headers alone. What may not be durable is read from the disk
//! itself, checked by CRC and SHA-256, rewritten (the same bytes to the same places) and synced. A
//! torn end is overwritten with zeros. This may be interrupted anywhere or repeated: the result is
//! the same. A pack that is damaged in the middle is refused: its whole entries must be written to
//! a new pack.

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

/// A pack that can be written to again, and what was torn at its end.
pub(super) type Mended = (OpenPack, Option<Corruption>);

/// The end of a pack as the disk has it.
#[derive(Debug)]
struct Tail {
    media: Arc<dyn Media>,
    /// Start of what may not be durable.
    from: u64,
    /// End of its last whole entry.
    end: u64,
    /// From here on the file is zero.
    zero_from: u64,
    slots: Vec<(u64, u32)>,
    torn: Option<Corruption>,
}

/// Mends a pack; `None` when it is damaged before its end.
///
/// # Errors
/// [`BlobError`]; the disk then has what it had, or the same with zeros over a torn end.
pub(super) fn mend(env: &Arc<Env>, line: &FileEntry) -> Result<Option<Mended>, BlobError> {
    let path = env.blob_path(line.base, line.generation, PACK);
    let failed = |error| BlobError::io(&path, error);
    // Unmapped before the cache is dropped: mapped pages would stay cached.
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

/// Reads what may not be durable. `None` when something whole, or something that was durable, lies
/// after damage.
fn look(env: &Env, path: &Path, salt: u32, from: u64) -> Result<Option<Tail>, BlobError> {
    let failed = |error| BlobError::io(path, error);
    let media = env.files.open_unmapped(path).map_err(failed)?;
    let zero_from = media.zero_from().clamp(from, media.len());
    let upto = zero_from.next_multiple_of(8).min(media.len());
    // Through a map, because there may be many entries; it is unmapped before anything is written.
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
    /// Rewrites the tail, and zeroes what is torn.
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
