//! A sealed pack: it never changes, is opened on first use, and finds blobs through its `.pidx`,
//! which is rebuilt from the pack when it is missing or damaged.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::RwLock;

use super::ahead::Wanted;
use super::blocks::{BlockAt, Blocks};
use super::entry::Entry;
use super::error::BlobError;
use super::found::FoundBlob;
use super::open_pack::find_header;
use super::recover::remove_dropped;
use super::trail::Row;
use super::walk::PackWalk;
use crate::env::Env;
use crate::format::file::{FileHeader, FormatError, Magic};
use crate::format::pack::{EntryKind, slot_of};
use crate::format::pack_index::{self, Contents, PackFilter, PackIndex};
use crate::format::super_file::FileEntry;
use crate::media::Media;
use crate::names::{PACK, PACK_INDEX};
use crate::value::BlobHash;

/// How stale `newest_ms` may be: a put that finds its blob in a pack writes the manifest at most
/// this often.
pub(crate) const TOUCH_MS: u64 = 60_000;

/// A sealed pack.
#[derive(Debug)]
pub(super) struct SealedPack {
    env: Arc<Env>,
    line: FileEntry,
    opened: RwLock<Option<Arc<Opened>>>,
    /// The filter, kept in memory once the files were closed; `None` when there was no room for it.
    filter: OnceLock<Option<PackFilter>>,
    used: AtomicU64,
    newest_ms: AtomicU64,
    /// The same as the manifest has it.
    told_ms: AtomicU64,
    /// Its entries are as they were written, and may be compressed.
    plain: AtomicBool,
    retired: AtomicBool,
    unnamed: AtomicBool,
    /// The highest generation that was started to replace it, or its own.
    tried: AtomicU32,
}

/// The open files of a sealed pack.
#[derive(Debug)]
pub(super) struct Opened {
    media: Arc<dyn Media>,
    salt: u32,
    index: PackIndex<Bytes>,
    /// Whether the entries of the index pass their CRC, once checked.
    entries: OnceLock<bool>,
    /// Where the pack is damaged, if that was found while rebuilding the index. A blob that is not
    /// in such an index may have been there.
    damage: Option<u64>,
}

impl Opened {
    /// False when no blob of the pack has the prefix of this hash.
    pub(super) fn may_hold(&self, hash: &BlobHash) -> bool {
        self.index.may_hold(hash.prefix())
    }

    /// An unsealed pack, with an index of its present content.
    pub(super) fn of_open(
        env: &Env,
        media: &Arc<dyn Media>,
        salt: u32,
        line: &FileEntry,
    ) -> Result<Self, BlobError> {
        let (entries, damage) = scan(media, salt)?;
        let index = PackIndex::open(Bytes::from(encode_index(env, line, &entries)));
        let index = index.map_err(|what| BlobError::corrupt(media.path(), 0, what))?;
        Ok(Self { media: Arc::clone(media), salt, index, entries: OnceLock::from(true), damage })
    }

    #[cfg(test)]
    pub(super) fn pretend(
        env: &Env,
        pack: &super::open_pack::OpenPack,
        contents: &Contents,
    ) -> Self {
        let index = encode_index(env, &pack.line(), contents);
        let index = PackIndex::open(Bytes::from(index)).unwrap();
        let (media, entries) = (Arc::clone(pack.media()), OnceLock::from(true));
        Self { media, salt: pack.salt(), index, entries, damage: None }
    }

    /// The index, whose entries were checked.
    pub(super) const fn index(&self) -> &PackIndex<Bytes> {
        &self.index
    }

    /// Whether the index lists a blob at this place: number `number` in the entry at `slot` times
    /// 8.
    pub(super) fn lists(&self, hash: &BlobHash, slot: u32, number: u32) -> bool {
        let mut same = self.index.find(hash.prefix());
        same.any(|entry| (entry.slot, entry.number) == (slot, number))
    }

    /// Where the pack is damaged, if that is known.
    pub(super) const fn damage(&self) -> Option<u64> {
        self.damage
    }

    pub(super) fn corrupt(&self, at: u64, what: FormatError) -> BlobError {
        BlobError::corrupt(self.media.path(), at, what)
    }

    /// The entry at a position.
    pub(super) fn entry(&self, at: u64) -> Result<Entry, BlobError> {
        Entry::read(&self.media, at, self.salt)
    }

    pub(super) fn walk(&self) -> PackWalk {
        PackWalk::new(&self.media, self.salt)
    }

    pub(super) const fn media(&self) -> &Arc<dyn Media> {
        &self.media
    }

    pub(super) const fn salt(&self) -> u32 {
        self.salt
    }

    /// Passes the likely places of requested blobs to `note`, and removes those blobs from `left`.
    pub(super) fn guess(
        &self,
        wanted: &[Wanted],
        left: &mut Vec<usize>,
        mut note: impl FnMut(usize, u64),
    ) {
        let prefix = |blob: usize| wanted[blob].hash.prefix();
        self.index.fetch(left.iter().map(|&blob| prefix(blob)));
        let maybe = left.extract_if(.., |&mut blob| self.index.may_hold(prefix(blob)));
        let maybe: Vec<_> = maybe.collect();
        self.index.fetch_entries(maybe.iter().map(|&blob| prefix(blob)));
        for blob in maybe {
            match self.index.find(prefix(blob)).next() {
                Some(entry) => note(blob, u64::from(entry.slot) * 8),
                None => left.push(blob),
            }
        }
    }

    fn miss(&self) -> Result<Option<FoundBlob>, BlobError> {
        match self.damage {
            None => Ok(None),
            Some(at) => Err(BlobError::corrupt(self.media.path(), at, FormatError::Crc)),
        }
    }
}

impl Drop for SealedPack {
    fn drop(&mut self) {
        // What remains is dropped in the manifest or not in it, and the next open removes it.
        if *self.unnamed.get_mut() {
            let _ = remove_dropped(&self.env, &self.line);
        } else if *self.retired.get_mut() {
            for kind in [PACK_INDEX, PACK] {
                let path = self.env.blob_path(self.line.base, self.line.generation, kind);
                let _ = self.env.retire(&path);
            }
        }
    }
}

impl SealedPack {
    pub(super) const fn new(env: Arc<Env>, line: FileEntry) -> Self {
        Self {
            env,
            line,
            opened: RwLock::new(None),
            filter: OnceLock::new(),
            used: AtomicU64::new(0),
            newest_ms: AtomicU64::new(line.newest_ms),
            told_ms: AtomicU64::new(line.newest_ms),
            plain: AtomicBool::new(line.is_plain_pack()),
            retired: AtomicBool::new(false),
            unnamed: AtomicBool::new(false),
            tried: AtomicU32::new(line.generation),
        }
    }

    /// The pack's manifest entry.
    pub(super) const fn line(&self) -> &FileEntry {
        &self.line
    }

    /// When a blob was last put into it or found in it by a put, within [`TOUCH_MS`].
    pub(super) fn newest_ms(&self) -> u64 {
        self.newest_ms.load(Ordering::Acquire)
    }

    /// Notes that a put found its blob here; returns whether the manifest must be updated.
    pub(super) fn touch(&self, now_ms: u64) -> bool {
        // What a full disk kept out of the manifest counts as not noted.
        let stale = now_ms >= self.told_ms.load(Ordering::Acquire).saturating_add(TOUCH_MS);
        if stale {
            self.newest_ms.fetch_max(now_ms, Ordering::AcqRel);
        }
        stale
    }

    /// Notes that the manifest has [`Self::newest_ms`].
    pub(super) fn told(&self) {
        self.told_ms.fetch_max(self.newest_ms(), Ordering::AcqRel);
    }

    /// Notes that a put found its blob in the generation that was to replace this one.
    pub(super) fn touched_in(&self, other: &Self) {
        self.newest_ms.fetch_max(other.newest_ms(), Ordering::AcqRel);
    }

    /// Whether it was sealed as written, and may be compressed.
    pub(super) fn is_plain(&self) -> bool {
        self.plain.load(Ordering::Relaxed)
    }

    /// Excludes it from compression, because it is damaged.
    pub(super) fn leave(&self) {
        self.plain.store(false, Ordering::Relaxed);
    }

    /// Deletes the files when the last user of the pack drops it, and no copy needs them.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    /// Deletes the files when the last user drops it; the manifest never named them, so no copy
    /// needs them.
    pub(super) fn abandon(&self) {
        self.unnamed.store(true, Ordering::Release);
    }

    /// A new generation number for an attempt to replace this pack. Each attempt has its own: the
    /// files of an abandoned one may be deleted long after, and must not be another's.
    pub(super) fn next_generation(&self) -> u32 {
        self.tried.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// When the pack was last used, by the clock of [`opened`](Self::opened).
    pub(super) fn last_used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether its files are open.
    pub(super) fn is_open(&self) -> bool {
        self.opened.read().is_some()
    }

    /// Closes the files; readers that use them keep them. The filter stays in memory if `room`
    /// accepts that many bytes, and then most lookups no longer need the files.
    pub(super) fn close(&self, room: impl FnOnce(usize) -> bool) {
        let Some(opened) = self.opened.write().take() else { return };
        self.filter.get_or_init(|| {
            // A blob that is not in the index of a damaged pack may have been there.
            let sure = opened.damage.is_none() && room(opened.index.filter_len());
            sure.then(|| opened.index.filter_copy())
        });
    }

    /// Bytes of the filter kept in memory.
    pub(super) fn filter_len(&self) -> usize {
        self.filter.get().and_then(Option::as_ref).map_or(0, PackFilter::byte_count)
    }

    /// False when it is known, without opening the files, that the pack does not hold this blob.
    pub(super) fn may_hold(&self, hash: &BlobHash) -> bool {
        match self.filter.get() {
            Some(Some(filter)) => filter.may_hold(hash.prefix()),
            _ => self
                .opened
                .read()
                .as_ref()
                .is_none_or(|opened| opened.damage.is_some() || opened.may_hold(hash)),
        }
    }

    /// Whether every lookup must open its files.
    pub(super) fn is_costly(&self) -> bool {
        matches!(self.filter.get(), Some(None)) && !self.is_open()
    }

    /// The files, if they are open.
    pub(super) fn opened_already(&self) -> Option<Arc<Opened>> {
        self.opened.read().clone()
    }

    /// Notes a use; `now` comes from a counter.
    pub(super) fn note_use(&self, now: u64) {
        self.used.store(now, Ordering::Relaxed);
    }

    /// The open files, and whether this call opened them; `now` comes from a counter.
    pub(super) fn opened(&self, now: u64) -> Result<(Arc<Opened>, bool), BlobError> {
        self.note_use(now);
        if let Some(opened) = &*self.opened.read() {
            return Ok((Arc::clone(opened), false));
        }
        let mut slot = self.opened.write();
        if let Some(opened) = &*slot {
            return Ok((Arc::clone(opened), false));
        }
        let path = self.env.blob_path(self.line.base, self.line.generation, PACK);
        let media =
            self.env.files.open_sealed(&path).map_err(|error| BlobError::io(&path, error))?;
        if media.len() != self.line.length {
            return Err(BlobError::corrupt(&path, media.len(), FormatError::Short));
        }
        let salt = find_header(&self.env, &media, &self.line)?.salt;
        let (index, damage) = match self.load_index() {
            Some(index) if index.check_filter().is_ok() => (index, None),
            _ => self.make_index(&media, salt)?,
        };
        let opened = Arc::new(Opened { media, salt, index, entries: OnceLock::new(), damage });
        *slot = Some(Arc::clone(&opened));
        Ok((opened, true))
    }

    /// The index file, if it belongs to this pack.
    fn load_index(&self) -> Option<PackIndex<Bytes>> {
        let path = self.env.blob_path(self.line.base, self.line.generation, PACK_INDEX);
        let media = self.env.files.open_sealed(&path).ok()?;
        let index = PackIndex::open(media.view(0..media.len()).ok()?).ok()?;
        let is_whole = index.count() as u64 == self.line.count;
        (self.line.owns(index.header()) && is_whole).then_some(index)
    }

    /// Rebuilds the index from the pack. If it cannot be written it stays in memory.
    fn make_index(
        &self,
        media: &Arc<dyn Media>,
        salt: u32,
    ) -> Result<(PackIndex<Bytes>, Option<u64>), BlobError> {
        let (entries, damage) = scan(media, salt)?;
        let bytes = encode_index(&self.env, &self.line, &entries);
        if damage.is_none() {
            // The pack is readable without the file; the next open tries again.
            let _ = write_index(&self.env, &self.line, &bytes);
        }
        let index = PackIndex::open(Bytes::from(bytes));
        Ok((index.map_err(|what| BlobError::corrupt(media.path(), 0, what))?, damage))
    }

    /// Reopens the pack with a rebuilt index.
    fn reindex(&self, opened: &Arc<Opened>) -> Result<Arc<Opened>, BlobError> {
        let (media, salt) = (Arc::clone(&opened.media), opened.salt);
        let (index, damage) = self.make_index(&media, salt)?;
        let entries = OnceLock::from(true);
        let opened = Arc::new(Opened { media, salt, index, entries, damage });
        // If it was closed meanwhile it stays closed: it is not counted among the open packs.
        if let Some(slot) = &mut *self.opened.write() {
            *slot = Arc::clone(&opened);
        }
        Ok(opened)
    }

    /// The open files with an index whose entries passed their CRC.
    pub(super) fn indexed(&self, opened: &Arc<Opened>) -> Result<Arc<Opened>, BlobError> {
        match *opened.entries.get_or_init(|| opened.index.check_entries().is_ok()) {
            true => Ok(Arc::clone(opened)),
            false => self.reindex(opened),
        }
    }

    /// Looks up a blob in the open files.
    pub(super) fn find(
        &self,
        opened: &Arc<Opened>,
        hash: &BlobHash,
        blocks: &Blocks,
    ) -> Result<Option<FoundBlob>, BlobError> {
        if !opened.may_hold(hash) {
            return opened.miss();
        }
        let opened = self.indexed(opened)?;
        for candidate in opened.index.find(hash.prefix()) {
            let at = u64::from(candidate.slot) * 8;
            let block_at = BlockAt { pack: self.line.uuid, position: at };
            let block = match blocks.get(&block_at) {
                Some(block) => block,
                None => {
                    let entry = opened.entry(at)?;
                    if entry.header().kind != EntryKind::Block {
                        if entry.header().hash == *hash {
                            return Ok(Some(FoundBlob::Entry(entry)));
                        }
                        continue;
                    }
                    let block = Arc::new(entry.block()?);
                    blocks.put(block_at, &block);
                    block
                }
            };
            let bytes = block.blob(candidate.number);
            if let Some(bytes) = bytes.filter(|bytes| BlobHash::of(bytes) == *hash) {
                let row = Row { block: block_at, number: candidate.number };
                let opened = Arc::clone(&opened);
                return Ok(Some(FoundBlob::Row { bytes, hash: *hash, opened, row }));
            }
        }
        opened.miss()
    }
}

/// The location of every blob of a pack, and the first damaged place.
pub(super) fn scan(
    media: &Arc<dyn Media>,
    salt: u32,
) -> Result<(Contents, Option<u64>), BlobError> {
    let mut found = Contents::default();
    let mut damage = None;
    let mut walk = PackWalk::new(media, salt);
    while let Some(entry) = walk.next()? {
        let slot = slot_of(entry.at());
        if entry.header().kind != EntryKind::Block {
            found.push(slot, [entry.header().hash.prefix()]);
            continue;
        }
        match entry.block() {
            Ok(block) => found.push(slot, block.slices().map(|bytes| BlobHash::of(bytes).prefix())),
            Err(error) if error.is_corrupt() => damage = damage.or_else(|| Some(entry.at())),
            Err(error) => return Err(error),
        }
    }
    Ok((found, damage.or_else(|| walk.hole())))
}

/// Encodes the index of a pack.
pub(super) fn encode_index(env: &Env, line: &FileEntry, contents: &Contents) -> Vec<u8> {
    let header = FileHeader {
        magic: Magic::PackIndex,
        salt: 0,
        store: env.manifest.state().store,
        file: line.uuid,
        base: line.base,
        generation: line.generation,
    };
    pack_index::encode(&header, contents)
}

/// Writes the index file of a pack.
pub(super) fn write_index(env: &Env, line: &FileEntry, bytes: &[u8]) -> io::Result<()> {
    let path = env.blob_path(line.base, line.generation, PACK_INDEX);
    env.write_whole(&env.blob_dir(), [(path, bytes)])
}
