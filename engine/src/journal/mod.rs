//! The journal: a file of fixed size that makes a small group durable with one sync, where log and
//! packs would need one each. The same bytes are written to log and packs first, and reach the disk
//! there later; after a crash they are restored from here (`replay`). See
//! docs/adr/0026-small-groups-are-synced-once.md.
//!
//! It has two halves. Once one is full the other is written, and the full one is settled: log and
//! packs are synced, and only then is it overwritten. Refuses long groups, and groups after one
//! that is not durable.

mod replay;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::env::Env;
use crate::format::file::{FILE_HEADER_LEN, FileHeader, Magic};
use crate::format::journal::{ENTRY_ALIGN, ENTRY_BYTES_MAX, EntryStamp, HALVES_AT};
use crate::limits::JOURNAL_GROUP_BYTES_MAX;
use crate::log::WriteError;
use crate::media::{Media, is_full};
use crate::names;
use crate::planted::{Bug, is_planted};
use crate::store::Inner;

pub(crate) use replay::{Kept, Trouble, read, replay};

const _: () = assert!(JOURNAL_GROUP_BYTES_MAX as usize <= ENTRY_BYTES_MAX / 2);
/// Divisor: one group may take at most this fraction of a half.
const GROUP_PART: u64 = 4;
/// Bytes written at a time when it is wiped.
const PIECE_LEN: usize = 64 * 1024;

/// The journal of an open store.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    inside: Mutex<Inside>,
    /// Held while the file is created or removed.
    making: Mutex<()>,
}

#[derive(Debug, Default)]
struct Inside {
    file: Option<OpenJournal>,
    /// The file may exist, even if it is not open.
    there: bool,
    /// Groups that could have used it while it was not open.
    groups: u32,
    /// The housekeeping thread was asked to open it.
    asked: bool,
    /// Entries so far, including those of an abandoned file, so that no two halves become full at
    /// the same number.
    entries: u64,
}

#[derive(Debug)]
struct OpenJournal {
    media: Arc<dyn Media>,
    salt: u32,
    /// Bytes of a half.
    half_bytes: u64,
    /// The half that is written.
    half: usize,
    /// Position in the half of the next entry.
    at: u64,
    /// For each half the entry number at which it became full, until it is settled.
    full: [Option<u64>; 2],
}

/// The place of an entry in the file.
#[derive(Debug)]
pub(crate) struct JournalSlot {
    pub(crate) media: Arc<dyn Media>,
    pub(crate) at: u64,
    pub(crate) stamp: EntryStamp,
    /// A half has become full: [`settle`] is due.
    pub(crate) turned: bool,
}

/// The halves that wait to be settled.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Awaited([Option<u64>; 2]);

/// The reply to a group that needs a slot.
#[derive(Debug)]
pub(crate) enum Offer {
    /// A slot.
    Slot(JournalSlot),
    /// No slot is free until what was written is settled.
    Full,
    /// There is no journal.
    None,
}

impl Journal {
    /// Creates a closed journal; `there` says that the file may exist in the store.
    pub(crate) fn new(there: bool) -> Self {
        Self { inside: Mutex::new(Inside { there, ..Inside::default() }), making: Mutex::default() }
    }

    /// Maximum bytes of the pieces of a group.
    pub(crate) fn group_max(env: &Env) -> u64 {
        JOURNAL_GROUP_BYTES_MAX.min(env.options.journal.half_bytes / GROUP_PART)
    }

    /// Whether a qualifying group can use the journal. If there is no journal yet the group is
    /// counted, and one is created once that is worthwhile. After an error the manifest is in
    /// doubt.
    pub(crate) fn is_ready(&self, inner: &Inner) -> io::Result<bool> {
        let options = inner.env.options.journal;
        let mut inside = self.inside.lock();
        if inside.file.is_some() || options.half_bytes == 0 {
            return Ok(inside.file.is_some());
        }
        inside.groups = inside.groups.saturating_add(1);
        if inside.asked || inside.groups <= options.after_groups {
            return Ok(false);
        }
        if options.after_groups > 0 {
            inside.asked = true;
            drop(inside);
            inner.upkeep.wake();
            return Ok(false);
        }
        inside.there = true;
        inside.file = make(&inner.env)?;
        Ok(inside.file.is_some())
    }

    /// Opens the journal if that was requested. Without room for it groups are synced in place.
    /// After an error the manifest is in doubt.
    pub(crate) fn open_if_asked(&self, env: &Env) -> io::Result<()> {
        let _making = self.making.lock();
        if !self.inside.lock().asked {
            return Ok(());
        }
        let made = make(env);
        let mut inside = self.inside.lock();
        inside.asked = false;
        inside.groups = 0;
        inside.there = true;
        inside.file = made?;
        Ok(())
    }

    /// A slot for an entry of `len` bytes.
    pub(crate) fn place(&self, len: usize, epoch: u64) -> Offer {
        let mut inside = self.inside.lock();
        let number = inside.entries + 1;
        let Some(file) = &mut inside.file else { return Offer::None };
        let len = len.next_multiple_of(ENTRY_ALIGN) as u64;
        let turned = file.at + len > file.half_bytes;
        if turned {
            let other = 1 - file.half;
            if file.full[other].is_some() && !is_planted(Bug::ReuseHalf) {
                return Offer::Full;
            }
            file.full[file.half] = Some(number);
            (file.half, file.at) = (other, 0);
        }
        let stamp = EntryStamp { salt: file.salt, epoch, number };
        let at = HALVES_AT + file.half as u64 * file.half_bytes + file.at;
        let slot = JournalSlot { media: Arc::clone(&file.media), at, stamp, turned };
        file.at += len;
        inside.entries = number;
        Offer::Slot(slot)
    }

    /// The halves whose content must be settled, if there are any.
    fn awaited(&self) -> Option<Awaited> {
        let full = self.inside.lock().file.as_ref()?.full;
        full.iter().any(Option::is_some).then_some(Awaited(full))
    }

    /// Notes that the content of these halves is durable in place.
    fn settled(&self, Awaited(awaited): Awaited) {
        if let Some(file) = &mut self.inside.lock().file {
            for (full, awaited) in file.full.iter_mut().zip(awaited) {
                // If it became full again since, it holds entries that may not be settled.
                if *full == awaited {
                    *full = None;
                }
            }
        }
    }

    /// Notes that everything ever written to it is durable in place.
    pub(crate) fn all_settled(&self) {
        if let Some(file) = &mut self.inside.lock().file {
            file.full = [None; 2];
        }
    }

    /// Closes the journal because there is no room for its entries; it is opened again after as
    /// many groups as at first.
    pub(crate) fn give_up(&self) {
        let mut inside = self.inside.lock();
        inside.file = None;
        inside.groups = 0;
    }

    /// Whether the file may exist with bytes of groups.
    pub(crate) fn is_there(&self) -> bool {
        self.inside.lock().there
    }

    /// Erases all its entries. The caller blocks writers and has settled everything.
    pub(crate) fn wipe(&self, env: &Env) -> io::Result<()> {
        let _making = self.making.lock();
        let mut inside = self.inside.lock();
        let Some(file) = &mut inside.file else {
            return if inside.there { remove(env) } else { Ok(()) };
        };
        let zeros = vec![0; PIECE_LEN];
        let mut at = HALVES_AT;
        while at < file.media.len() {
            let piece = &zeros[..(file.media.len() - at).min(PIECE_LEN as u64) as usize];
            file.media.write_at(at, piece)?;
            at += piece.len() as u64;
        }
        file.at = 0;
        file.media.sync()
    }

    /// Removes the journal after a clean close: it is no longer needed.
    pub(crate) fn close(&self, env: &Env) {
        let mut inside = self.inside.lock();
        inside.file = None;
        if inside.there {
            // If it remains, a later open ignores its entries: they have another epoch.
            let _ = env.files.remove(&env.journal_path());
        }
    }
}

/// Removes the file for good. Its entries are in place already.
fn remove(env: &Env) -> io::Result<()> {
    record_in_manifest(env, 0)?;
    env.files.remove(&env.journal_path())?;
    env.files.sync_dir(&env.dir)
}

/// Records the salt of the journal in the manifest, so that an open can distinguish a lost journal
/// from none; 0 for none.
fn record_in_manifest(env: &Env, salt: u32) -> io::Result<()> {
    match env.manifest.state().journal == salt {
        true => Ok(()),
        false => env.manifest.update(|state| state.journal = salt),
    }
}

/// Records the salt of the journal in the manifest; returns false if there is no room for that.
fn try_record(env: &Env, salt: u32) -> io::Result<bool> {
    match record_in_manifest(env, salt) {
        Err(error) if is_full(&error) => Ok(false),
        named => named.map(|()| true),
    }
}

fn len_of(env: &Env) -> u64 {
    HALVES_AT + 2 * env.options.journal.half_bytes
}

/// Reuses the existing file, or creates one; `None` when that fails, or there is no room. The
/// file's entries were applied when the store was opened, or it was abandoned.
///
/// # Errors
/// Of the manifest alone: it is then unknown which file it names.
fn make(env: &Env) -> io::Result<Option<OpenJournal>> {
    let made = match take_up(env) {
        // Its creator may have died before its name was durable.
        Some(found) => env.files.sync_dir(&env.dir).is_ok().then_some(found),
        // A journal that the manifest names is never replaced: after a crash right then groups
        // would seem lost. An abandoned one may still be named, and be unreadable at the moment.
        None if try_record(env, 0)? => create(env).ok(),
        None => None,
    };
    let Some((media, salt)) = made else { return Ok(None) };
    let half_bytes = env.options.journal.half_bytes;
    let open = OpenJournal { media, salt, half_bytes, half: 0, at: 0, full: [None; 2] };
    Ok(try_record(env, salt)?.then_some(open))
}

/// The temporary path of a file that is being created.
pub(crate) fn unfinished(env: &Env) -> PathBuf {
    names::unfinished(&env.journal_path())
}

/// Creates a file, replacing any existing one.
fn create(env: &Env) -> io::Result<(Arc<dyn Media>, u32)> {
    let header = FileHeader {
        magic: Magic::Journal,
        salt: env.random.salt(),
        store: env.manifest.state().store,
        file: env.random.bytes(),
        base: env.options.journal.half_bytes,
        generation: 0,
    };
    let (path, place) = (unfinished(env), env.journal_path());
    // Filled with zeros: a sync then writes nothing but the entry.
    let media = env.files.create(&path, len_of(env), true)?;
    let made = media.write_at(0, &header.encode()).and_then(|()| media.sync());
    let made = made.and_then(|()| env.files.rename(&path, &place));
    if let Err(error) = made.and_then(|()| env.files.sync_dir(&env.dir)) {
        let _ = env.files.remove(&path);
        return Err(error);
    }
    Ok((media, header.salt))
}

/// Opens the existing file, if it is like the one that would be created.
fn take_up(env: &Env) -> Option<(Arc<dyn Media>, u32)> {
    let path = env.journal_path();
    if env.files.len_of(&path).ok()? != len_of(env) {
        return None;
    }
    let header = env.files.open_unmapped(&path).ok()?.view(0..FILE_HEADER_LEN as u64).ok()?;
    let header = FileHeader::decode(&header, Magic::Journal).ok()?;
    if (header.store, header.base) != (env.manifest.state().store, env.options.journal.half_bytes) {
        return None;
    }
    Some((env.files.open_append(&path).ok()?, header.salt))
}

/// Settles the full halves without blocking the writer.
pub(crate) fn settle(inner: &Inner) -> Result<(), WriteError> {
    let Some(awaited) = inner.journal.awaited() else { return Ok(()) };
    // After that, so the files below have everything that those halves hold.
    let media: Vec<_> = {
        let writer = inner.writer.lock();
        let waiting = inner.sealing.waiting();
        waiting.into_iter().chain(writer.appender().media().cloned()).collect()
    };
    inner.settle_files(&media.iter().collect::<Vec<_>>()).map_err(WriteError::Failed)?;
    inner.journal.settled(awaited);
    Ok(())
}
