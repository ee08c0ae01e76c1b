//! Writes a pack that is sealed from the start: the next generation of other packs, or a pack for
//! one long blob. Nothing of it counts before the manifest names it, so any failure only leaves a
//! file that the next open removes.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use zstd::bulk;

use super::blocks::KEPT_BYTES_MAX;
use super::entry::Entry;
use super::error::BlobError;
use super::prepared::{Prepared, padding};
use super::reader::{BlobReader, GoOn};
use super::sealed::{encode_index, write_index};
use super::walk::PackWalk;
use crate::env::Env;
use crate::format::file::{FileHeader, FormatError, Magic};
use crate::format::pack::{
    BLOCK_BLOBS_MAX, BLOCK_BYTES_MAX, Block, CHUNK_LEN, ENTRY_HEADER_LEN, EntryHeader, EntryKind,
    ZSTD_LEVEL, encode_block, slot_of, worth_it,
};
use crate::format::pack_index::Contents;
use crate::format::super_file::{FileEntry, FileKind, FileState};
use crate::media::Media;
use crate::names::{PACK, PACK_INDEX};
use crate::planted::{Bug, is_planted};
use crate::value::BlobHash;

/// Bytes collected before they are written.
const BUFFER_LEN: usize = 1024 * 1024;
/// A longer blob would leave a BLOCK little room for others.
const GROUPED_BYTES_MAX: usize = BLOCK_BYTES_MAX / 2;
/// Bytes of small blobs that are sorted by kin before they are grouped. If one frame in a hundred
/// is of a topic, most of its bodies in a stretch then share one or two BLOCKs; a reader of the
/// whole log needs the BLOCKs of one stretch at a time, and the cache holds several stretches.
const STRETCH_BYTES: usize = 2 * 1024 * 1024;
/// Maximum blobs of one stretch.
const STRETCH_BLOBS_MAX: usize = 64 * 1024;
const _: () = assert!(STRETCH_BYTES * 4 <= KEPT_BYTES_MAX);

/// A pack being written.
pub(super) struct Builder {
    env: Arc<Env>,
    header: FileHeader,
    media: Arc<dyn Media>,
    buffer: Vec<u8>,
    written: u64,
    crc: crc32fast::Hasher,
    stretch: Vec<Small>,
    stretch_len: usize,
    zstd: bulk::Compressor<'static>,
    contents: Contents,
    hashes: Sha256,
}

/// A blob that may share a BLOCK.
struct Small {
    kin: u32,
    hash: BlobHash,
    bytes: Bytes,
}

impl AsRef<[u8]> for Small {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A pack that was written and is in no manifest yet.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) line: FileEntry,
    pub(super) contents: Contents,
    /// SHA-256 of the hashes of all its blobs, in order.
    pub(super) hashes: [u8; 32],
}

impl Builder {
    /// Creates the file of a pack of at most `len_max` bytes.
    pub(super) fn create(
        env: &Arc<Env>,
        (number, generation): (u64, u32),
        len_max: u64,
    ) -> io::Result<Self> {
        let header = FileHeader {
            magic: Magic::Pack,
            salt: env.random.salt(),
            store: env.manifest.state().store,
            file: env.random.bytes(),
            base: number,
            generation,
        };
        let path = env.blob_path(number, generation, PACK);
        let media = env.files.create(&path, len_max, false)?;
        Ok(Self {
            env: Arc::clone(env),
            header,
            media,
            buffer: header.encode().to_vec(),
            written: 0,
            crc: crc32fast::Hasher::new(),
            stretch: Vec::new(),
            stretch_len: 0,
            zstd: bulk::Compressor::new(ZSTD_LEVEL)?,
            contents: Contents::default(),
            hashes: Sha256::new(),
        })
    }

    /// Adds the blobs of an entry of another pack, each checked against its hash: small ones share
    /// BLOCKs, compressed ones are copied.
    pub(super) fn add(&mut self, entry: Entry) -> Result<(), BlobError> {
        self.add_while(entry, &mut |_| ControlFlow::Continue(())).map(drop)
    }

    /// Like [`add`](Self::add), and asks meanwhile whether to go on. If not, this pack can only be
    /// abandoned.
    pub(super) fn add_while(
        &mut self,
        entry: Entry,
        go_on: GoOn<'_>,
    ) -> Result<ControlFlow<()>, BlobError> {
        let header = *entry.header();
        match header.kind {
            EntryKind::Block => self.add_block(&entry, |_, _| Ok(true))?,
            _ if header.raw_len < CHUNK_LEN as u64 => {
                let bytes = BlobReader::open(entry)?.all(CHUNK_LEN as u64)?;
                self.small(Small { kin: header.kin, hash: header.hash, bytes })?;
            }
            _ => {
                return match BlobReader::open(entry.clone())?.check_while(go_on)? {
                    ControlFlow::Continue(()) => self.copy(entry, go_on),
                    stopped => Ok(stopped),
                };
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Adds the blobs of an entry under the hashes in its header, checking only CRCs: for callers
    /// that use [`Built::verify`] to compare what was written with those hashes.
    pub(super) fn take(&mut self, entry: Entry) -> Result<(), BlobError> {
        let header = *entry.header();
        match header.kind {
            EntryKind::Raw if header.raw_len < CHUNK_LEN as u64 => {
                let bytes = entry.stored()?;
                self.small(Small { kin: header.kin, hash: header.hash, bytes })
            }
            EntryKind::Raw | EntryKind::Zstd => {
                self.copy(entry, &mut |_| ControlFlow::Continue(())).map(drop)
            }
            EntryKind::Block => self.add(entry),
        }
    }

    /// Adds the blobs of a BLOCK that `keep` accepts, by number and hash; copies the BLOCK if that
    /// is all of them.
    pub(super) fn add_block(
        &mut self,
        entry: &Entry,
        keep: impl Fn(u32, &BlobHash) -> Result<bool, BlobError>,
    ) -> Result<(), BlobError> {
        let stored = entry.stored()?;
        let block = Block::decode(entry.header(), &stored).map_err(|what| entry.corrupt(what))?;
        let hashes: Vec<_> = block.blobs().map(|bytes| BlobHash::of(&bytes)).collect();
        let kept = (0..).zip(&hashes).map(|(number, hash)| keep(number, hash));
        let kept = kept.collect::<Result<Vec<bool>, _>>()?;
        if kept.iter().all(|&kept| kept) {
            return self.push(entry.header(), &stored, hashes);
        }
        for ((bytes, hash), kept) in block.blobs().zip(hashes).zip(kept) {
            if kept {
                self.small(Small { kin: 0, hash, bytes })?;
            }
        }
        Ok(())
    }

    /// Whether nothing was added.
    pub(super) fn is_empty(&self) -> bool {
        self.contents.count() == 0 && self.stretch.is_empty()
    }

    /// Adds a small blob.
    fn small(&mut self, blob: Small) -> Result<(), BlobError> {
        if blob.bytes.len() > GROUPED_BYTES_MAX {
            return self.single(&blob);
        }
        self.stretch_len += blob.bytes.len();
        self.stretch.push(blob);
        match self.stretch_len >= STRETCH_BYTES || self.stretch.len() == STRETCH_BLOBS_MAX {
            true => self.end_stretch(),
            false => Ok(()),
        }
    }

    /// Writes the collected blobs, placing those of the same kin side by side.
    fn end_stretch(&mut self) -> Result<(), BlobError> {
        self.stretch_len = 0;
        let mut stretch = std::mem::take(&mut self.stretch);
        stretch.sort_by_key(|blob| blob.kin);
        let mut rest = &stretch[..];
        while !rest.is_empty() {
            let mut len = 0;
            let fits = |blob: &&Small| {
                len += blob.bytes.len();
                len <= BLOCK_BYTES_MAX
            };
            let count = rest.iter().take(BLOCK_BLOBS_MAX).take_while(fits).count();
            let (group, later) = rest.split_at(count);
            self.group(group)?;
            rest = later;
        }
        stretch.clear();
        self.stretch = stretch;
        Ok(())
    }

    /// Writes blobs as one BLOCK, or each alone if that is shorter.
    fn group(&mut self, group: &[Small]) -> Result<(), BlobError> {
        let alone = |blob: &Small| ENTRY_HEADER_LEN + blob.bytes.len().next_multiple_of(8);
        if group.len() > 1 {
            let (stored, raw_len) = encode_block(group, &mut self.zstd)
                .map_err(|what| BlobError::corrupt(self.media.path(), self.at(), what))?;
            let header = EntryHeader {
                kind: EntryKind::Block,
                kin: 0,
                salt: self.header.salt,
                stored_len: stored.len() as u64,
                raw_len,
                hash: BlobHash::from_bytes([0; 32]),
                stored_crc: crc32fast::hash(&stored),
                count: group.len() as u32,
                durable_upto: 0,
            };
            if header.stride() <= group.iter().map(alone).sum::<usize>() as u64 {
                return self.push(&header, &stored, group.iter().map(|blob| blob.hash));
            }
        }
        group.iter().try_for_each(|blob| self.single(blob))
    }

    fn single(&mut self, blob: &Small) -> Result<(), BlobError> {
        let (hash, bytes) = (blob.hash, &blob.bytes[..]);
        let frame = self.zstd.compress(bytes).map_err(|error| self.failed(error))?;
        let raw_len = bytes.len() as u64;
        let (kind, stored) = match worth_it(frame.len() as u64, raw_len) {
            true => (EntryKind::Zstd, &frame[..]),
            false => (EntryKind::Raw, bytes),
        };
        let header = EntryHeader {
            kind,
            kin: blob.kin,
            salt: self.header.salt,
            stored_len: stored.len() as u64,
            raw_len,
            hash,
            stored_crc: crc32fast::hash(stored),
            count: 1,
            durable_upto: 0,
        };
        self.push(&header, stored, [hash])
    }

    /// Adapts the header of another pack's entry to this pack.
    const fn header_of(&self, header: &EntryHeader) -> EntryHeader {
        EntryHeader { salt: self.header.salt, durable_upto: 0, ..*header }
    }

    /// Copies a long entry, and checks its CRCs on the way.
    fn copy(&mut self, entry: Entry, go_on: GoOn<'_>) -> Result<ControlFlow<()>, BlobError> {
        let header = self.header_of(entry.header());
        self.note([header.hash]);
        self.write(&header.encode())?;
        let mut chunks = entry.chunks()?;
        let list = chunks.crc_list();
        loop {
            let chunk = chunks.next_chunk()?;
            if chunk.is_empty() {
                break;
            }
            let written = self.written;
            self.write(&chunk)?;
            if self.written > written && go_on(chunks.read_so_far()).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        self.write(padding(header.stored_len))?;
        if header.crc_list_len() > 0 {
            self.write(&list)?;
            self.write(padding(header.crc_list_len()))?;
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Adds a whole entry of one chunk, under this pack's salt.
    fn push(
        &mut self,
        header: &EntryHeader,
        stored: &[u8],
        hashes: impl IntoIterator<Item = BlobHash>,
    ) -> Result<(), BlobError> {
        self.note(hashes);
        self.write(&self.header_of(header).encode())?;
        self.write(stored)?;
        self.write(padding(header.stored_len))
    }

    /// Adds a prepared blob.
    pub(super) fn prepared(&mut self, blob: &Prepared) -> io::Result<()> {
        self.note([blob.hash()]);
        let salt = self.header.salt;
        blob.entry((salt, 0), &mut |piece| Ok(self.write(piece)?))
    }

    fn at(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    fn note(&mut self, hashes: impl IntoIterator<Item = BlobHash>) {
        let slot = slot_of(self.at());
        let hashes = hashes.into_iter().inspect(|hash| self.hashes.update(hash.as_bytes()));
        self.contents.push(slot, hashes.map(|hash| hash.prefix()));
    }

    fn failed(&self, error: io::Error) -> BlobError {
        BlobError::io(self.media.path(), error)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER_LEN { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), BlobError> {
        self.crc.update(&self.buffer);
        self.media.write_at(self.written, &self.buffer).map_err(|error| self.failed(error))?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Truncates the file after its last entry and makes it durable.
    pub(super) fn finish(mut self) -> Result<Built, BlobError> {
        self.end_stretch()?;
        self.flush()?;
        let (len, path) = (self.written, self.media.path().to_owned());
        let failed = |error| BlobError::io(&path, error);
        if !is_planted(Bug::SkipBuildSync) {
            self.media.sync().map_err(failed)?;
        }
        let Self { env, header, media, crc, contents, hashes, .. } = self;
        // The file is unmapped before it is truncated.
        let cut = media.len() > len;
        drop(media);
        if cut {
            env.files.cut(&path, len).map_err(failed)?;
        }
        env.files.sync_dir(&env.blob_dir()).map_err(failed)?;
        let line = FileEntry {
            kind: FileKind::Pack,
            state: FileState::Sealed,
            generation: header.generation,
            base: header.base,
            uuid: header.file,
            length: len,
            crc: crc.finalize(),
            count: contents.count() as u64,
            newest_ms: env.clock.now_ms(),
            gone: 0,
            purged_seq: 0,
        };
        Ok(Built { line, contents, hashes: hashes.finalize().into() })
    }

    /// Removes an unfinished pack.
    pub(super) fn abandon(self) {
        let path = self.media.path().to_owned();
        // If it remains, the next open removes it.
        let _ = self.env.files.remove(&path);
    }
}

impl Built {
    /// Writes the index of the pack. If that fails, it is rebuilt when first needed.
    pub(super) fn write_index(&self, env: &Env) {
        let index = encode_index(env, &self.line, &self.contents);
        let _ = write_index(env, &self.line, &index);
    }

    /// Removes the pack of a generation that the manifest does not name and that has no index yet.
    pub(super) fn discard(&self, env: &Env) {
        // If it remains, the next open removes it.
        let _ = env.files.remove(&env.blob_path(self.line.base, self.line.generation, PACK));
    }

    /// Removes the files of a generation that the manifest does not name.
    pub(super) fn abandon(&self, env: &Env) {
        for kind in [PACK_INDEX, PACK] {
            // If it remains, the next open removes it.
            let _ = env.files.remove(&env.blob_path(self.line.base, self.line.generation, kind));
        }
    }

    /// Reads the whole pack back from the disk and compares every blob with its hash. Asks
    /// meanwhile whether to go on.
    pub(super) fn verify(&self, env: &Env, go_on: GoOn<'_>) -> Result<ControlFlow<()>, BlobError> {
        let path = env.blob_path(self.line.base, self.line.generation, PACK);
        let media = env.files.open_scan(&path).map_err(|error| BlobError::io(&path, error))?;
        let salt = super::open_pack::read_header(&media, &self.line)?.salt;
        let mut walk = PackWalk::new(&media, salt);
        let mut hashes = Sha256::new();
        while let Some(entry) = walk.next()? {
            match entry.header().kind {
                EntryKind::Block => {
                    let block = entry.block()?;
                    block.slices().for_each(|bytes| hashes.update(BlobHash::of(bytes).as_bytes()));
                }
                _ => {
                    hashes.update(entry.header().hash.as_bytes());
                    if BlobReader::open(entry)?.check_while(go_on)?.is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
            }
        }
        let same = <[u8; 32]>::from(hashes.finalize()) == self.hashes;
        match (same, walk.hole()) {
            (true, None) => Ok(ControlFlow::Continue(())),
            (_, at) => {
                let what = FormatError::Field("SHA-256");
                Err(BlobError::corrupt(&path, at.unwrap_or(0), what))
            }
        }
    }
}
