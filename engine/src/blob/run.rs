//! The bodies of frames that are read one behind another. In a pack that is not compressed yet they
//! lie as the frames do in the log, so each is looked for in the entry behind the last one, in
//! bytes that are at hand already. A guess only: the header says whose bytes they are, and one
//! that is wrong costs no more than looking at it.

use std::sync::Arc;

use bytes::{Buf as _, Bytes};

use super::ahead::{Guesses, Wanted};
use super::entry::{Entry, NEAR_LEN};
use super::error::BlobError;
use super::found::FoundBlob;
use super::packs::Packs;
use super::trail;
use crate::format::pack::{ENTRY_HEADER_LEN, EntryHeader, kin_of};
use crate::media::Media;
use crate::value::BlobHash;

/// Bytes that are taken at a time by whoever reads many: of a map they cost nothing.
const AHEAD: u64 = 64 * 1024;
/// Blobs that are looked for together at least: below, it takes longer than it saves.
const TOGETHER_MIN: usize = 4;

/// Entries of a pack, from one that is read next.
#[derive(Debug)]
pub(super) struct Run {
    media: Arc<dyn Media>,
    salt: u32,
    at: u64,
    /// From `at` on, as far as it was taken.
    bytes: Bytes,
}

impl Run {
    pub(super) const fn new(media: Arc<dyn Media>, salt: u32, at: u64) -> Self {
        Self { media, salt, at, bytes: Bytes::new() }
    }

    pub(super) const fn media(&self) -> &Arc<dyn Media> {
        &self.media
    }

    pub(super) const fn salt(&self) -> u32 {
        self.salt
    }

    pub(super) const fn at(&self) -> u64 {
        self.at
    }

    /// The body in the next entry, if it is the one of the hash, has no more than `max` bytes and
    /// is sound. `ahead` bytes are taken when those at hand do not do.
    pub(super) fn next(&mut self, hash: &BlobHash, max: u64, ahead: u64) -> Option<Bytes> {
        self.take(ENTRY_HEADER_LEN as u64, ahead)?;
        let header = header_of(&self.bytes, self.salt, hash, max)?;
        let stride = header.stride();
        if !header.is_raw_and_short() {
            let entry = Entry::read(&self.media, self.at, self.salt).ok()?;
            let body = FoundBlob::Entry(entry).body(max).ok()?;
            self.at += stride;
            self.bytes = Bytes::new();
            return Some(body);
        }
        self.take(stride, ahead)?;
        let end = ENTRY_HEADER_LEN + header.stored_len as usize;
        header.check_stored(&self.bytes[ENTRY_HEADER_LEN..end]).ok()?;
        let body = self.bytes.slice(ENTRY_HEADER_LEN..end);
        self.bytes.advance(stride as usize);
        self.at += stride;
        Some(body)
    }

    /// Sees to it that `len` bytes are at hand.
    fn take(&mut self, len: u64, ahead: u64) -> Option<()> {
        if (self.bytes.len() as u64) < len {
            let published = self.media.published();
            let end = self.at.checked_add(len).filter(|end| *end <= published)?;
            let end = self.at.saturating_add(ahead).min(published).max(end);
            self.bytes = self.media.view(self.at..end).ok()?;
        }
        Some(())
    }
}

/// The header of an entry, if it is the one of the hash and its blob has no more than `max` bytes.
pub(super) fn header_of(bytes: &[u8], salt: u32, hash: &BlobHash, max: u64) -> Option<EntryHeader> {
    let header = EntryHeader::read(bytes).ok()?;
    (header.salt == salt && header.hash == *hash && header.raw_len <= max).then_some(header)
}

/// Reads bodies of frames: faster those that lie one behind another, and those that it was told of
/// beforehand. It keeps packs readable, also those that are replaced meanwhile, so it does not
/// outlive a few bodies.
#[derive(Debug)]
pub(crate) struct Bodies<'a> {
    packs: &'a Packs,
    run: Option<Run>,
    ahead: u64,
    guesses: Guesses,
}

impl<'a> Bodies<'a> {
    pub(super) fn many(packs: &'a Packs) -> Self {
        Self { packs, run: None, ahead: AHEAD, guesses: Guesses::default() }
    }

    pub(super) fn one(packs: &'a Packs) -> Self {
        let ahead = ENTRY_HEADER_LEN as u64 + NEAR_LEN;
        Self { packs, run: None, ahead, guesses: Guesses::default() }
    }

    /// Tells which blobs [`next`](Self::next) is asked for next, in their order, the first by a
    /// frame of a topic.
    pub(crate) fn expect(&mut self, topic: &str, wanted: &[Wanted]) {
        self.run = self.run.take().or_else(|| self.guesses.run()).or_else(trail::take_run);
        // In a run and in a BLOCK the next one is at hand.
        let alone = self.run.is_none() && trail::guess(kin_of(topic)).is_none();
        self.guesses = match alone && wanted.len() >= TOGETHER_MIN {
            true => Guesses::of(self.packs, wanted),
            false => Guesses::default(),
        };
    }

    /// The blob of a frame, whole; `topic` tells that of the frame.
    ///
    /// # Errors
    /// [`BlobError`] when it is damaged in every place it is in, or has more than `max` bytes.
    #[inline]
    pub(crate) fn next<'t>(
        &mut self,
        topic: impl FnOnce() -> &'t str,
        hash: &BlobHash,
        max: u64,
    ) -> Result<Option<Bytes>, BlobError> {
        let body = match self.guesses.is_done() {
            true => self.next_in_run(hash, max),
            false => self.guesses.next(|bytes, salt| header_of(bytes, salt, hash, max)),
        };
        match body {
            Some(bytes) => Ok(Some(bytes)),
            None => self.find(kin_of(topic()), hash, max),
        }
    }

    fn find(&self, kin: u32, hash: &BlobHash, max: u64) -> Result<Option<Bytes>, BlobError> {
        let row = self.packs.next_of(kin, hash);
        if let Some(bytes) = row.filter(|bytes| bytes.len() as u64 <= max) {
            return Ok(Some(bytes));
        }
        // Again where it was, if that could not be read: then it is told why.
        self.packs.find(hash, |found| {
            found.note(kin);
            found.body(max)
        })
    }

    fn next_in_run(&mut self, hash: &BlobHash, max: u64) -> Option<Bytes> {
        let mut run = self.run.take().or_else(trail::take_run)?;
        let body = run.next(hash, max, self.ahead)?;
        self.run = Some(run);
        Some(body)
    }
}

impl Drop for Bodies<'_> {
    fn drop(&mut self) {
        if let Some(run) = self.run.take().or_else(|| self.guesses.run()) {
            trail::leave_run(&run);
        }
    }
}
