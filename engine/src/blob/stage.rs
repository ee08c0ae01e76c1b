//! Stores blobs: existing ones are not written again, the others are appended to the active pack,
//! with one write for everything staged. Long blobs get a pack of their own.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use parking_lot::MutexGuard;

use super::Shared;
use super::build::Builder;
use super::error::StageError;
use super::found::FoundBlob;
use super::keeper::Halted;
use super::open_pack::OpenPack;
use super::packs::Packs;
use super::prepared::Prepared;
use super::sealed::{Opened, SealedPack};
use super::slots::Slots;
use super::sweep::SweepError;
use crate::error::Shortage;
use crate::format::file::FILE_HEADER_LEN;
use crate::format::pack::{CHUNK_LEN, EntryHeader};
use crate::format::super_file::FileEntry;
use crate::planted::{Bug, is_planted};
use crate::value::BlobHash;

/// Maximum tries to store blobs with packs of their own when sweeps remove them before the check.
const TURNS_MAX: u32 = 8;
/// Bytes collected before they are written to the pack.
const BUFFER_LEN: usize = 256 * 1024;
/// A shorter blob is looked up in the newest sealed packs only: a copy in an older one costs its
/// own bytes again, but looking into every pack of a large store would cost more.
const SHORT_LEN: usize = 4096;
/// Number of those packs.
const RECENT_MAX: usize = 4;

/// State of the staging thread, under the lock.
#[derive(Debug, Default)]
pub(super) struct Writing {
    pub(super) active: Option<Arc<OpenPack>>,
    /// The table of its blobs.
    slots: Option<Arc<Slots>>,
    /// Where the next entry begins.
    pub(super) end: u64,
    /// Entries up to `end` that are not written yet.
    buffer: Vec<u8>,
    /// The other packs in which short blobs are looked up.
    others: Others,
    /// A spare pack to follow the active one was requested.
    asked: bool,
    pub(super) closed: bool,
}

/// What is looked up for each short blob, cached while the list of packs is unchanged.
#[derive(Debug, Default)]
struct Others {
    version: u64,
    /// Tables of the unsealed packs other than the active one.
    unsealed: Vec<Arc<Slots>>,
    /// The newest sealed packs.
    sealed: Vec<(Arc<SealedPack>, Arc<Opened>)>,
}

impl Writing {
    /// Makes this the active pack, with table room for about `blobs` more. Returns the previous
    /// one.
    pub(super) fn go_on_in(&mut self, pack: Arc<OpenPack>, blobs: usize) -> Option<Arc<OpenPack>> {
        self.slots = Some(pack.make_room(blobs));
        self.end = pack.media().published();
        // The previous one is among the others now, whether or not the list of packs changed.
        self.forget();
        self.active.replace(pack)
    }

    fn written(&self) -> u64 {
        self.end - self.buffer.len() as u64
    }

    /// Whether an entry of `stride` bytes fits into the active pack.
    fn has_room(&self, stride: u64) -> bool {
        self.active.as_ref().is_some_and(|active| self.end + stride <= active.media().len())
    }

    /// Drops the cached packs.
    pub(super) fn forget(&mut self) {
        self.others = Others::default();
    }

    /// Refreshes the cached packs.
    fn refresh(&mut self, packs: &Packs) {
        if packs.version() == self.others.version {
            return;
        }
        let list = packs.list();
        let opened =
            |pack: &Arc<SealedPack>| Some((Arc::clone(pack), packs.opened(&list, pack).ok()?));
        let is_active = |pack: &&Arc<OpenPack>| {
            self.active.as_ref().is_some_and(|active| Arc::ptr_eq(active, pack))
        };
        let unsealed = list.open.iter().filter(|pack| !is_active(pack));
        self.others = Others {
            version: list.version,
            unsealed: unsealed.map(|pack| pack.slots()).collect(),
            sealed: list.sealed.iter().take(RECENT_MAX).filter_map(opened).collect(),
        };
    }

    /// Adds the entry at `at` of the active pack to its table.
    fn add(&mut self, active: &OpenPack, hash: &BlobHash, at: u64) {
        let slots = self.slots.take().filter(|slots| slots.room() > 0);
        let slots = slots.unwrap_or_else(|| active.make_room(1));
        slots.add(hash.prefix(), at);
        self.slots = Some(slots);
    }

    /// Whether the unwritten entry at `at` holds this blob.
    fn is_buffered(&self, at: u64, hash: &BlobHash) -> bool {
        let from = (at - self.written()) as usize;
        let entry = self.buffer.get(from..).unwrap_or_default();
        EntryHeader::read(entry).is_ok_and(|header| header.hash == *hash)
    }
}

impl Shared {
    /// Stages the blobs of records that are about to be written.
    pub(super) fn stage(&self, blobs: &[Prepared]) -> Result<(), StageError> {
        self.take(blobs).map(drop)
    }

    /// Stores a blob that nothing names yet. Its grace period starts now, even if it was stored
    /// before.
    pub(super) fn put(&self, blob: &Prepared) -> Result<(), StageError> {
        let open = self.open.read();
        self.usable(!*open)?;
        let mut writing = self.take(std::slice::from_ref(blob))?;
        self.flush(&mut writing).map_err(StageError::Failed)?;
        #[cfg(xs_planted)]
        if is_planted(Bug::SkipHitSync) {
            self.packs.list().open.iter().for_each(|pack| pack.pretend_synced());
        }
        // Under the lock: a running sweep then sees that the pack was touched.
        let touched = self.touch(&blob.hash());
        drop(writing);
        touched.map_or(Ok(()), |pack| self.tell_touched(&pack))
    }

    /// Stores blobs, and returns the lock. Those that get a pack of their own are written without
    /// it, and again if a sweep has removed them meanwhile.
    fn take(&self, blobs: &[Prepared]) -> Result<MutexGuard<'_, Writing>, StageError> {
        let alone = |blob: &&Prepared| self.is_alone(blob);
        let mut turns = 0;
        let mut writing = loop {
            for blob in blobs.iter().filter(alone).filter(|blob| !self.has_copy(blob)) {
                self.usable(false)?;
                self.own_pack(blob)?;
            }
            let writing = self.writing.lock();
            self.usable(writing.closed)?;
            // What was found without the lock may have been swept since.
            let here = |blob: &Prepared| blob.is_rotten() || self.has_copy(blob);
            if blobs.iter().filter(alone).all(here) {
                break writing;
            }
            turns += 1;
            if turns >= TURNS_MAX {
                // A copy written now would not last either.
                return Err(StageError::Gone);
            }
        };
        let rest = |blob: &&Prepared| !self.is_alone(blob);
        // Blobs stored before a harmless error stay: they are whole.
        blobs.iter().filter(rest).try_for_each(|blob| self.one(&mut writing, blob))?;
        Ok(writing)
    }

    /// Prefetches what looking up these blobs will access first.
    pub(super) fn prefetch<'a>(&self, blobs: impl Iterator<Item = &'a Prepared> + Clone) {
        let mut writing = self.writing.lock();
        writing.refresh(&self.packs);
        let prefixes = blobs.map(|blob| blob.hash().prefix());
        for slots in writing.slots.iter().chain(&writing.others.unsealed) {
            slots.fetch(prefixes.clone());
        }
        for (_, opened) in &writing.others.sealed {
            opened.index().fetch(prefixes.clone());
        }
    }

    /// Writes what was staged. Without staged entries it does not wait for other staging threads.
    pub(super) fn flush_staged(&self) -> io::Result<()> {
        if !self.staged.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut writing = self.writing.lock();
        self.check_failed()?;
        self.flush(&mut writing)
    }

    /// Notes that a blob was put. In an open pack it is young anyway, as the pack is sealed later.
    fn touch(&self, hash: &BlobHash) -> Option<Arc<SealedPack>> {
        if is_planted(Bug::ForgetTouch) {
            return None;
        }
        let list = self.packs.list();
        if list.open.iter().any(|pack| pack.find(hash).is_ok_and(|found| found.is_some())) {
            return None;
        }
        let now_ms = self.env.clock.now_ms();
        let holds = |pack: &&Arc<SealedPack>| {
            let found = || self.packs.find_sealed(&list, pack, hash);
            pack.may_hold(hash) && found().is_ok_and(|found| found.is_some())
        };
        list.sealed.iter().find(holds).filter(|pack| pack.touch(now_ms)).cloned()
    }

    /// Records durably that a pack was touched.
    fn tell_touched(&self, pack: &SealedPack) -> Result<(), StageError> {
        let line = pack.line();
        let told = self.env.manifest.update(|state| {
            if let Some(file) = state.files.iter_mut().find(|file| file.key() == line.key()) {
                file.newest_ms = pack.newest_ms();
            }
        });
        told.map(|()| pack.told()).map_err(|error| self.not_told(error))
    }

    fn not_told(&self, error: io::Error) -> StageError {
        match Shortage::of(&error) {
            Some(shortage) => StageError::Full(shortage),
            None => {
                self.fail(&error);
                StageError::Failed(error)
            }
        }
    }

    /// Ends the active pack and waits until everything full is sealed.
    pub(super) fn seal_all(&self) -> Result<(), SweepError> {
        {
            let mut writing = self.writing.lock();
            self.usable(writing.closed)?;
            self.flush(&mut writing).map_err(SweepError::Failed)?;
            if let Some(active) = writing.active.take() {
                (writing.slots, writing.asked) = (None, false);
                // It is among the others now.
                writing.forget();
                active.set_full();
                self.keeper.wake();
            }
        }
        let sealed = self.keeper.wait_sealed(&self.packs);
        // The thread ends after a failed write, too.
        self.usable(false)?;
        sealed.map_err(|halted| match halted {
            Halted::Stuck(shortage) => SweepError::Full(shortage),
            Halted::Ended => SweepError::Stopped,
        })
    }

    fn is_alone(&self, blob: &Prepared) -> bool {
        let room = self.env.options.pack_bytes - FILE_HEADER_LEN as u64;
        !blob.is_known() && blob.header(0).stride() > room / 4
    }

    fn one(&self, writing: &mut Writing, blob: &Prepared) -> Result<(), StageError> {
        if self.has(writing, blob) {
            return Ok(());
        }
        if blob.is_known() {
            let blob = blob.again().ok_or(StageError::Gone)?.map_err(StageError::harmless)?;
            return match self.is_alone(&blob) {
                true => self.own_pack(&blob),
                false => self.one(writing, &blob),
            };
        }
        let stride = blob.header(0).stride();
        if !writing.has_room(stride) {
            self.roll(writing)?;
        }
        if !writing.has_room(stride) {
            // The spare was made by an opening with smaller packs.
            self.roll_to(writing, self.add_pack(self.env.options.zero_ahead)?);
        }
        let Some(active) = writing.active.clone() else {
            return Err(StageError::Refused(io::ErrorKind::NotFound.into()));
        };
        let at = writing.end;
        active.media().reserve(at + stride).map_err(StageError::harmless)?;
        if blob.stored_len() < CHUNK_LEN as u64 {
            let (before, buffer) = (writing.buffer.len(), &mut writing.buffer);
            let taken = blob.entry(active.salt_and_durable(), &mut |piece| {
                buffer.extend_from_slice(piece);
                Ok(())
            });
            if let Err(error) = taken {
                writing.buffer.truncate(before);
                return Err(StageError::Refused(error));
            }
            writing.end += stride;
            self.staged.store(true, Ordering::Release);
        } else {
            self.flush(writing).map_err(StageError::Failed)?;
            let mut place = at;
            let written = blob.entry(active.salt_and_durable(), &mut |piece| {
                active.media().write_at(place, piece)?;
                place += piece.len() as u64;
                Ok(())
            });
            written.inspect_err(|error| self.fail(error)).map_err(StageError::Failed)?;
            writing.end += stride;
            active.media().publish(writing.end);
            self.keeper.took(stride);
        }
        writing.add(&active, &blob.hash(), at);
        if writing.buffer.len() >= BUFFER_LEN {
            self.flush(writing).map_err(StageError::Failed)?;
        }
        if !writing.asked && writing.end > active.media().len() / 2 {
            writing.asked = true;
            self.keeper.want_spare();
        }
        Ok(())
    }

    /// Whether a sound copy of the blob exists. A damaged one does not count: another is written.
    fn has(&self, writing: &mut Writing, blob: &Prepared) -> bool {
        let (hash, written) = (blob.hash(), writing.written());
        let (mut is_buffered, mut may_be_written) = (false, false);
        if let Some(slots) = &writing.slots {
            for at in slots.positions(hash.prefix()) {
                is_buffered |= at >= written && writing.is_buffered(at, &hash);
                may_be_written |= at < written;
            }
        }
        if is_buffered {
            return true;
        }
        let Some(bytes) = blob.raw().filter(|bytes| bytes.len() < SHORT_LEN) else {
            return self.has_copy(blob);
        };
        writing.refresh(&self.packs);
        let others = &writing.others;
        may_be_written |= others.unsealed.iter().any(|slots| slots.may_hold(hash.prefix()));
        (may_be_written && self.has_open(&hash, bytes)) || self.has_recent(others, &hash, bytes)
    }

    /// Whether an unsealed pack has these bytes.
    fn has_open(&self, hash: &BlobHash, bytes: &Bytes) -> bool {
        self.packs.list().open.iter().any(|pack| {
            pack.find(hash).ok().flatten().is_some_and(|entry| FoundBlob::Entry(entry).is(bytes))
        })
    }

    /// Whether one of the newest sealed packs has these bytes.
    fn has_recent(&self, others: &Others, hash: &BlobHash, bytes: &Bytes) -> bool {
        others.sealed.iter().filter(|(_, opened)| opened.may_hold(hash)).any(|pack| {
            self.packs.find_in(pack, hash).ok().flatten().is_some_and(|found| found.is(bytes))
        })
    }

    /// Whether a pack has a sound copy, as far as a lookup is worthwhile. A long blob was verified
    /// when it was prepared.
    fn has_copy(&self, blob: &Prepared) -> bool {
        let short = blob.raw().filter(|bytes| bytes.len() < CHUNK_LEN);
        let sound = |found: FoundBlob| {
            let is_sound = short.map_or(found.len() == blob.len(), |bytes| found.is(bytes));
            Ok(is_sound.then_some(()))
        };
        let copy = || self.packs.find_copy(&blob.hash(), sound);
        !blob.is_rotten() && copy().is_ok_and(|copy| copy.is_some())
    }

    /// Writes the collected entries and publishes them.
    fn flush(&self, writing: &mut Writing) -> io::Result<()> {
        if writing.buffer.is_empty() {
            return Ok(());
        }
        let Some(active) = &writing.active else { return Ok(()) };
        let written = active.media().write_at(writing.written(), &writing.buffer);
        written.inspect_err(|error| self.fail(error))?;
        active.media().publish(writing.end);
        self.keeper.took(writing.buffer.len() as u64);
        writing.buffer.clear();
        self.staged.store(false, Ordering::Release);
        Ok(())
    }

    /// Rolls to the spare pack, or to a new one.
    fn roll(&self, writing: &mut Writing) -> Result<(), StageError> {
        self.flush(writing).map_err(StageError::Failed)?;
        let next = match self.keeper.next_pack(&self.packs) {
            Ok(Some(spare)) => spare,
            Ok(None) => self.add_pack(self.env.options.zero_ahead)?,
            Err(halted) => {
                // The thread ends after a failed write, too.
                self.usable(writing.closed)?;
                return Err(match halted {
                    Halted::Stuck(shortage) => StageError::Full(shortage),
                    Halted::Ended => StageError::Closed,
                });
            }
        };
        self.roll_to(writing, next);
        Ok(())
    }

    fn roll_to(&self, writing: &mut Writing, next: Arc<OpenPack>) {
        writing.asked = false;
        // As many blobs as the previous pack had, if they are of similar size.
        let blobs = writing.slots.as_ref().map_or(0, |slots| slots.len());
        if let Some(full) = writing.go_on_in(next, blobs) {
            full.set_full();
            self.keeper.wake();
        }
    }

    /// Creates a pack and enters it in the manifest; without room for the entry it is removed.
    pub(super) fn add_pack(&self, zero: bool) -> Result<Arc<OpenPack>, StageError> {
        let number = self.next_number();
        let pack = OpenPack::create(&self.env, number, zero).map_err(StageError::harmless)?;
        let pack = Arc::new(pack);
        // Unnamed, its space would be lost until the next open.
        self.enter(pack.line()).inspect_err(|error| {
            if matches!(error, StageError::Full(_)) {
                pack.retire();
            }
        })?;
        self.packs.change(|list| list.open.push(Arc::clone(&pack)));
        Ok(pack)
    }

    fn enter(&self, line: FileEntry) -> Result<(), StageError> {
        let entered = self.env.manifest.update(|state| state.files.push(line));
        entered.map_err(|error| self.not_told(error))
    }

    /// Writes a pack with one long blob, durable on return. Without room for its manifest entry it
    /// is removed.
    fn own_pack(&self, blob: &Prepared) -> Result<(), StageError> {
        let len = FILE_HEADER_LEN as u64 + blob.header(0).stride();
        let place = (self.next_number(), 0);
        let mut builder = Builder::create(&self.env, place, len).map_err(StageError::harmless)?;
        if let Err(error) = builder.prepared(blob) {
            builder.abandon();
            return Err(StageError::harmless(error));
        }
        let built = builder.finish().map_err(StageError::harmless)?;
        built.write_index(&self.env);
        self.enter(built.line).inspect_err(|error| {
            if matches!(error, StageError::Full(_)) {
                built.abandon(&self.env);
            }
        })?;
        let pack = Arc::new(SealedPack::new(Arc::clone(&self.env), built.line));
        self.packs.change(|list| list.sealed.push(pack));
        Ok(())
    }
}
