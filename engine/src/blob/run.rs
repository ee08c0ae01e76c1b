//! Reads the bodies of consecutive frames. In a pack that is not compressed yet, bodies lie in the
//! order of the frames in the log, so each is expected in the entry after the last one, in bytes
//! that were read already. A guess only: the header tells whose bytes they are, and a wrong guess
//! costs only reading the header.

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

/// Bytes read ahead by readers of many bodies: over a map they cost nothing.
const AHEAD: u64 = 64 * 1024;
/// Minimum number of blobs to look up together: below, it costs more than it saves.
const TOGETHER_MIN: usize = 4;

/// A cursor over consecutive entries of a pack.
#[derive(Debug)]
pub(super) struct Run {
    media: Arc<dyn Media>,
    salt: u32,
    at: u64,
    /// The bytes read from `at` on.
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

    /// The body in the next entry, if it has this hash, is at most `max` bytes long and is sound.
    /// Reads `ahead` bytes if the buffer is too short.
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

    /// Makes sure that `len` bytes are in the buffer.
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

/// The header of an entry, if it has this hash and its blob is at most `max` bytes long.
pub(super) fn header_of(bytes: &[u8], salt: u32, hash: &BlobHash, max: u64) -> Option<EntryHeader> {
    let header = EntryHeader::read(bytes).ok()?;
    (header.salt == salt && header.hash == *hash && header.raw_len <= max).then_some(header)
}

/// Reads bodies of frames, faster for consecutive ones and those announced in advance. It keeps
/// packs readable, even ones that are replaced meanwhile, so it should be used for a few bodies
/// only.
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

    /// Announces the blobs that [`next`](Self::next) will be called for, in order; `topic` is that
    /// of the first one's frame.
    pub(crate) fn expect(&mut self, topic: &str, wanted: &[Wanted]) {
        self.run = self.run.take().or_else(|| self.guesses.run()).or_else(trail::take_run);
        // In a run and in a BLOCK the next one is loaded already.
        let alone = self.run.is_none() && trail::guess(kin_of(topic)).is_none();
        self.guesses = match alone && wanted.len() >= TOGETHER_MIN {
            true => Guesses::of(self.packs, wanted),
            false => Guesses::default(),
        };
    }

    /// The whole blob of a frame; `topic` returns the frame's topic.
    ///
    /// # Errors
    /// [`BlobError`] when every copy of it is damaged, or it has more than `max` bytes.
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
        // Looks again where a guess failed, so that damage there is reported.
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
