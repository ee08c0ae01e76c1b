//! Writes the whole batches of a segment into a new file, which nothing names yet.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Examined;
use super::replay::replay;
use crate::env::Env;
use crate::log::SegmentKey;
use crate::media::Media;

/// Bytes read or written at a time.
const PIECE_LEN: usize = 1024 * 1024;

/// A segment written anew, under a temporary name.
#[derive(Debug)]
pub(super) struct Copied {
    pub(super) key: SegmentKey,
    /// Where its last batch ends.
    pub(super) length: u64,
    /// CRC of the newest batch header.
    pub(super) prev_crc: u32,
    /// CRC of the file up to `length`.
    pub(super) crc: crc32fast::Hasher,
    /// It goes on being written to.
    pub(super) active: bool,
}

/// Name of a segment that is not in its place yet.
pub(super) fn unfinished(path: &Path) -> PathBuf {
    path.with_added_extension("tmp")
}

/// Writes the whole batches of a segment into a new file of `len` bytes, as the next generation.
/// Who opens the store waits for it, so zeros are written ahead only when they always are.
pub(super) fn copy(env: &Env, one: &Examined, len: u64, active: bool) -> io::Result<Copied> {
    let key = SegmentKey {
        generation: one.key.generation + 1,
        uuid: env.random.bytes(),
        salt: env.random.salt(),
        ..one.key
    };
    let path = unfinished(&env.log_path(key.base, key.generation, "seg"));
    let media = env.files.create(&path, len, active && env.options.zeros_always())?;
    let mut out = key.header(env.manifest.state().store).to_vec();
    let mut crc = crc32fast::Hasher::new();
    let (mut at, mut prev_crc) = (0, 0);
    let mut written = Ok(());
    replay(&one.media, &one.key, one.scanned.end, |batch| {
        let mut header = batch.header;
        (header.salt, header.prev_crc) = (key.salt, prev_crc);
        out.extend_from_slice(&header.encode());
        out.extend_from_slice(&batch.records);
        prev_crc = header.header_crc;
        if out.len() < PIECE_LEN {
            return ControlFlow::Continue(());
        }
        written = media.write_at(at, &out);
        crc.update(&out);
        at += out.len() as u64;
        out.clear();
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    written?;
    media.write_at(at, &out)?;
    crc.update(&out);
    media.sync()?;
    Ok(Copied { key, length: at + out.len() as u64, prev_crc, crc, active })
}

/// CRC of the first `end` bytes of a file.
pub(super) fn crc_of(media: &Arc<dyn Media>, end: u64) -> io::Result<crc32fast::Hasher> {
    let mut crc = crc32fast::Hasher::new();
    let mut at = 0;
    while at < end {
        let upto = (at + PIECE_LEN as u64).min(end);
        crc.update(&media.view(at..upto)?);
        at = upto;
    }
    Ok(crc)
}
