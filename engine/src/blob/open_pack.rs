//! An unsealed pack: blobs are appended to it and found through a table in memory. Once full it
//! only waits to be sealed.

use std::cmp::Reverse;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::{io, mem};

use parking_lot::RwLock;

use super::ahead::Wanted;
use super::entry::Entry;
use super::error::BlobError;
use super::headers::Headers;
use super::reader::BlobReader;
use super::save::find_pack_salt;
use super::slots::Slots;
use super::walk::PackWalk;
use crate::env::Env;
use crate::format::file::{FILE_HEADER_LEN, FileHeader, FormatError, Magic};
use crate::format::super_file::{FileEntry, FileKind, FileState};
use crate::media::{Media, Syncs};
use crate::names::PACK;
use crate::planted::{Bug, is_planted};
use crate::value::BlobHash;

/// An unsealed pack.
#[derive(Debug)]
pub(super) struct OpenPack {
    env: Arc<Env>,
    number: u64,
    generation: u32,
    uuid: [u8; 16],
    salt: u32,
    media: Arc<dyn Media>,
    /// Replaced by a larger one when it is full. Only the staging thread adds to it.
    slots: RwLock<Arc<Slots>>,
    /// Everything before it is durable, here or in the journal.
    durable: AtomicU64,
    /// Everything before it is durable here.
    settled: AtomicU64,
    syncs: Syncs,
    full: AtomicBool,
    retired: AtomicBool,
}

impl OpenPack {
    /// Creates the file of a pack; it is in no manifest yet.
    pub(super) fn create(env: &Arc<Env>, number: u64, zero: bool) -> io::Result<Self> {
        let header = FileHeader {
            magic: Magic::Pack,
            salt: env.random.salt(),
            store: env.manifest.state().store,
            file: env.random.bytes(),
            base: number,
            generation: 0,
        };
        let path = env.blob_path(number, 0, PACK);
        let media = env.files.create(&path, env.options.pack_bytes, zero)?;
        media.write_at(0, &header.encode())?;
        media.publish(FILE_HEADER_LEN as u64);
        media.sync()?;
        env.files.sync_dir(&env.blob_dir())?;
        Ok(Self::new(env, &header, media, FILE_HEADER_LEN as u64))
    }

    /// Opens a pack that was closed cleanly, with its entries up to `length`, or up to the end of a
    /// shorter file.
    pub(super) fn reopen(env: &Arc<Env>, file: &FileEntry) -> Result<Self, BlobError> {
        let path = env.blob_path(file.base, file.generation, PACK);
        let media = env.files.open_append(&path).map_err(|error| BlobError::io(&path, error))?;
        let end = file.length.min(media.len());
        media.publish(end);
        let header = find_header(env, &media, file)?;
        let pack = Self::new(env, &header, Arc::clone(&media), end);
        let held = Headers::read(&media, header.salt, FILE_HEADER_LEN as u64, end)?;
        pack.fill(&held.slots);
        // Entries after a damaged header are still found.
        let mut walk = PackWalk::part(&media, header.salt, held.end..end);
        while let Some(entry) = walk.next()? {
            pack.insert(&entry.header().hash, entry.at());
        }
        Ok(pack)
    }

    /// Opens a pack whose entries are known; everything published is durable.
    pub(super) fn taken_up(
        env: &Arc<Env>,
        header: &FileHeader,
        media: Arc<dyn Media>,
        durable_upto: u64,
        slots: &[(u64, u32)],
    ) -> Self {
        let pack = Self::new(env, header, media, durable_upto);
        pack.fill(slots);
        pack
    }

    /// Opens a pack that was not closed cleanly and cannot be rewritten yet. Only entries that
    /// verify are found; nothing is added.
    pub(super) fn adopt(
        env: &Arc<Env>,
        line: &FileEntry,
        salt: u32,
        media: &Arc<dyn Media>,
    ) -> Result<Self, BlobError> {
        let header = FileHeader {
            magic: Magic::Pack,
            salt,
            store: env.manifest.state().store,
            file: line.uuid,
            base: line.base,
            generation: line.generation,
        };
        let pack = Self::new(env, &header, Arc::clone(media), 0);
        pack.set_full();
        let mut walk = pack.walk();
        while let Some(entry) = walk.next()? {
            let (hash, at) = (entry.header().hash, entry.at());
            match BlobReader::open(entry).and_then(BlobReader::check) {
                Ok(()) => pack.insert(&hash, at),
                Err(error) if error.is_corrupt() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(pack)
    }

    fn new(env: &Arc<Env>, header: &FileHeader, media: Arc<dyn Media>, durable: u64) -> Self {
        let slots = Slots::with_room(u64::from_le_bytes(env.random.bytes()), 0);
        Self {
            env: Arc::clone(env),
            number: header.base,
            generation: header.generation,
            uuid: header.file,
            salt: header.salt,
            media,
            slots: RwLock::new(Arc::new(slots)),
            durable: AtomicU64::new(durable),
            settled: AtomicU64::new(durable),
            syncs: Syncs::default(),
            full: AtomicBool::new(false),
            retired: AtomicBool::new(false),
        }
    }

    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    pub(super) const fn salt(&self) -> u32 {
        self.salt
    }

    /// The salt and the durable position for the header of the next entry.
    pub(super) fn salt_and_durable(&self) -> (u32, u64) {
        (self.salt, self.durable.load(Ordering::Acquire))
    }

    pub(super) fn media(&self) -> &Arc<dyn Media> {
        &self.media
    }

    pub(super) fn walk(&self) -> PackWalk {
        PackWalk::new(&self.media, self.salt)
    }

    /// The pack's line in the manifest.
    pub(super) fn line(&self) -> FileEntry {
        FileEntry {
            kind: FileKind::Pack,
            state: FileState::Unmarked,
            generation: self.generation,
            base: self.number,
            uuid: self.uuid,
            length: self.media.published(),
            crc: 0,
            count: 0,
            newest_ms: 0,
            gone: 0,
            purged_seq: 0,
        }
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.env.clock.now_ms()
    }

    /// Whether it has no entries.
    pub(super) fn is_empty(&self) -> bool {
        self.media.published() <= FILE_HEADER_LEN as u64
    }

    /// The table of its blobs.
    pub(super) fn slots(&self) -> Arc<Slots> {
        Arc::clone(&self.slots.read())
    }

    /// The table, with room for `blobs` more. Only the staging thread calls this.
    pub(super) fn make_room(&self, blobs: usize) -> Arc<Slots> {
        let slots = self.slots();
        if slots.room() >= blobs {
            return slots;
        }
        let grown = Arc::new(slots.grown(slots.len() + blobs));
        *self.slots.write() = Arc::clone(&grown);
        grown
    }

    /// Adds an entry to the table; it is found once its bytes are published.
    fn insert(&self, hash: &BlobHash, at: u64) {
        self.make_room(1).add(hash.prefix(), at);
    }

    /// Adds entries to the table, by hash prefix and position divided by 8.
    fn fill(&self, entries: &[(u64, u32)]) {
        let slots = self.make_room(entries.len());
        entries.iter().for_each(|&(prefix, slot)| slots.add(prefix, u64::from(slot) * 8));
    }

    /// The entry of a blob; the newest sound one if there are several.
    pub(super) fn find(&self, hash: &BlobHash) -> Result<Option<Entry>, BlobError> {
        let mut damage = None;
        let published = self.media.published();
        let slots = self.slots.read();
        let positions = slots.positions(hash.prefix()).filter(|&at| at < published);
        let mut positions: Vec<u64> = positions.collect();
        drop(slots);
        positions.sort_unstable_by_key(|&at| Reverse(at));
        for at in positions {
            match Entry::read(&self.media, at, self.salt) {
                Ok(entry) if entry.header().hash == *hash => return Ok(Some(entry)),
                Ok(_) => {}
                Err(error) => damage = Some(error),
            }
        }
        damage.map_or(Ok(None), Err)
    }

    /// Passes the likely places of requested blobs to `note`, and removes those blobs from `left`.
    pub(super) fn guess(
        &self,
        wanted: &[Wanted],
        left: &mut Vec<usize>,
        mut note: impl FnMut(usize, u64),
    ) {
        let published = self.media.published();
        let slots = self.slots();
        let prefix = |&blob: &usize| wanted[blob].hash.prefix();
        slots.fetch(left.iter().map(prefix));
        left.retain(|blob| {
            let found = slots.positions(prefix(blob)).filter(|&at| at < published).max();
            found.inspect(|&at| note(*blob, at)).is_none()
        });
    }

    /// Whether published bytes are not durable.
    pub(super) fn needs_sync(&self) -> bool {
        self.durable.load(Ordering::Acquire) < self.media.published()
    }

    /// Whether published bytes are not durable here.
    pub(super) fn is_unsettled(&self) -> bool {
        self.settled.load(Ordering::Acquire) < self.media.published()
    }

    /// The range of published bytes that are not durable.
    pub(super) fn undurable(&self) -> Range<u64> {
        let upto = self.media.published();
        self.durable.load(Ordering::Acquire).min(upto)..upto
    }

    /// Notes that everything before `upto` is durable, in the journal.
    pub(super) fn note_durable(&self, upto: u64) {
        self.durable.fetch_max(upto, Ordering::Release);
    }

    /// Claims that everything published is durable: a planted bug.
    #[cfg(xs_planted)]
    pub(super) fn pretend_synced(&self) {
        self.durable.fetch_max(self.media.published(), Ordering::Release);
        self.settled.fetch_max(self.media.published(), Ordering::Release);
    }

    /// Makes everything published durable here.
    pub(super) fn settle(&self) -> io::Result<()> {
        let wanted = self.media.published();
        self.syncs.run(|| {
            // A concurrent sync may have covered this already.
            if self.settled.load(Ordering::Acquire) < wanted {
                let upto = self.media.published();
                if !is_planted(Bug::SkipPackSync) {
                    self.media.sync()?;
                }
                self.settled.fetch_max(upto, Ordering::Release);
                self.durable.fetch_max(upto, Ordering::Release);
            }
            Ok(())
        })
    }

    /// Whether no more entries are added.
    pub(super) fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// Marks it as full: no more entries are added.
    pub(super) fn set_full(&self) {
        self.full.store(true, Ordering::Release);
    }

    /// Deletes the file when the last user of the pack drops it.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }
}

impl Drop for OpenPack {
    fn drop(&mut self) {
        if mem::take(self.retired.get_mut()) {
            // If it remains, it is in no manifest, and the next open removes it.
            let path = self.env.blob_path(self.number, self.generation, PACK);
            let _ = self.env.retire(&path);
        }
    }
}

/// Reads the header of the pack that a manifest entry names, and compares them.
pub(super) fn read_header(
    media: &Arc<dyn Media>,
    file: &FileEntry,
) -> Result<FileHeader, BlobError> {
    decode_header(media, file)?.map_err(|what| BlobError::corrupt(media.path(), 0, what))
}

/// Reads the header of the pack that a manifest entry names, and compares them. If the header does
/// not verify, the entry has everything but the salt, and that is in every pack entry too.
pub(super) fn find_header(
    env: &Env,
    media: &Arc<dyn Media>,
    file: &FileEntry,
) -> Result<FileHeader, BlobError> {
    let what = match decode_header(media, file)? {
        Ok(header) => return Ok(header),
        Err(what) => what,
    };
    let salt = match what {
        FormatError::Version { .. } => None,
        _ => find_pack_salt(&**media),
    };
    Ok(FileHeader {
        magic: Magic::Pack,
        salt: salt.ok_or_else(|| BlobError::corrupt(media.path(), 0, what))?,
        store: env.manifest.state().store,
        file: file.uuid,
        base: file.base,
        generation: file.generation,
    })
}

/// The header of a pack, which must match its manifest entry, or why it does not verify.
fn decode_header(
    media: &Arc<dyn Media>,
    file: &FileEntry,
) -> Result<Result<FileHeader, FormatError>, BlobError> {
    let path = media.path();
    let len = media.published().min(FILE_HEADER_LEN as u64);
    let bytes = media.view(0..len).map_err(|error| BlobError::io(path, error))?;
    let header = match FileHeader::decode(&bytes, Magic::Pack) {
        Ok(header) => header,
        Err(what) => return Ok(Err(what)),
    };
    match file.owns(&header) {
        true => Ok(Ok(header)),
        false => Err(BlobError::corrupt(path, 0, FormatError::Field("uuid"))),
    }
}
