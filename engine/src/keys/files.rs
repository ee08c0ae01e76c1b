//! The `.key` files of sealed segments: written to a temporary file and renamed, read through maps,
//! used only if they were made from the very segment they belong to, and rebuilt otherwise.

use std::io;

use bytes::Bytes;

use super::SegmentKeys;
use crate::env::Env;
use crate::format::file::{FileHeader, Magic};
use crate::format::key_index::{self, KeyFile};
use crate::log::Segment;
use crate::names::KEYS;
use crate::recovery;

/// The key index of a sealed segment.
///
/// # Errors
/// The I/O error, when the index is lost and the segment cannot be read either.
pub(super) fn load(env: &Env, segment: &Segment) -> io::Result<KeyFile> {
    if let Some(file) = read(env, segment) {
        return Ok(file);
    }
    let (held, whole) = recovery::keys_of(segment)?;
    let bytes = encode(env, segment, held.first_ms.unwrap_or(u64::MAX), &held);
    if whole {
        // If there is no room for the file, the next lookup rebuilds it.
        let _made_again = write(env, segment, &bytes);
    }
    let (_, file) = KeyFile::read(Bytes::from(bytes)).map_err(io::Error::other)?;
    Ok(file)
}

fn read(env: &Env, segment: &Segment) -> Option<KeyFile> {
    let path = env.log_path(segment.base(), segment.generation(), KEYS);
    let media = env.files.open_sealed(&path).ok()?;
    let (header, file) = KeyFile::read(media.view(0..media.published()).ok()?).ok()?;
    segment.owns(&header).then_some(file)
}

/// Encodes the file.
pub(super) fn encode(env: &Env, segment: &Segment, first_ms: u64, held: &SegmentKeys) -> Vec<u8> {
    key_index::encode(&header_of(env, segment), first_ms, &held.keys, held.old_ids.iter())
}

/// Writes the file of a segment.
pub(super) fn write(env: &Env, segment: &Segment, bytes: &[u8]) -> io::Result<()> {
    let path = env.log_path(segment.base(), segment.generation(), KEYS);
    env.write_whole(&env.log_dir(), [(path, bytes)])
}

fn header_of(env: &Env, segment: &Segment) -> FileHeader {
    FileHeader {
        magic: Magic::Key,
        salt: 0,
        store: env.manifest.state().store,
        file: segment.uuid(),
        base: segment.base(),
        generation: segment.generation(),
    }
}
