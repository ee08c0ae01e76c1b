//! Walks a pack from entry to entry. Where no entry begins, the walk searches for the next one:
//! after a power cut, whole entries can lie after a hole, and each is valid by itself.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::entry::{Entry, NEAR_LEN};
use super::error::BlobError;
use crate::format::file::FILE_HEADER_LEN;
use crate::format::pack::{ENTRY_HEADER_LEN, ENTRY_MAGIC};
use crate::media::Media;

/// Bytes read at a time, and scanned for the next entry; a multiple of 8.
const WINDOW_LEN: u64 = 256 * 1024;
/// With fewer bytes than this left in the window, more are read.
const LEFT_MIN: u64 = ENTRY_HEADER_LEN as u64 + NEAR_LEN;

/// The entries of a pack up to its published length, their headers checked.
#[derive(Debug)]
pub(super) struct PackWalk {
    media: Arc<dyn Media>,
    salt: u32,
    at: u64,
    upto: u64,
    hole: Option<u64>,
    /// The bytes read last, and their position: most entries are much shorter.
    window: (u64, Bytes),
}

impl PackWalk {
    pub(super) fn new(media: &Arc<dyn Media>, salt: u32) -> Self {
        Self::part(media, salt, FILE_HEADER_LEN as u64..u64::MAX)
    }

    /// The entries that begin in a part of the pack; the part begins with an entry.
    pub(super) fn part(media: &Arc<dyn Media>, salt: u32, part: Range<u64>) -> Self {
        let (media, window) = (Arc::clone(media), (0, Bytes::new()));
        Self { media, salt, at: part.start, upto: part.end, hole: None, window }
    }

    /// The first place where an entry was expected and not found. Zeros up to the end of the file
    /// are no hole: nothing was ever written there.
    pub(super) const fn hole(&self) -> Option<u64> {
        self.hole
    }

    /// The next entry, or `None` at the end.
    ///
    /// # Errors
    /// [`BlobError::Io`] when the file cannot be read.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, BlobError> {
        let end = self.media.published().min(self.upto);
        while self.at < end {
            match self.here() {
                Ok(entry) => {
                    self.at = entry.end();
                    return Ok(Some(entry));
                }
                Err(error) if error.is_corrupt() => self.skip(end)?,
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// The entry that begins at the current position.
    fn here(&mut self) -> Result<Entry, BlobError> {
        let published = self.media.published();
        let (from, bytes) = &self.window;
        let end = from + bytes.len() as u64;
        if self.at < *from || self.at >= end || (end - self.at < LEFT_MIN && end < published) {
            match self.media.view(self.at..self.at.saturating_add(WINDOW_LEN).min(published)) {
                Ok(bytes) => self.window = (self.at, bytes),
                // The disk may refuse one place of a window; what lies before it is readable.
                Err(_) => return Entry::read(&self.media, self.at, self.salt),
            }
        }
        let (from, bytes) = &self.window;
        let near = bytes.slice((self.at - from) as usize..);
        Entry::at_hand(&self.media, (self.at, near), self.salt)
    }

    /// Moves to the next position that begins like an entry.
    fn skip(&mut self, end: u64) -> Result<(), BlobError> {
        let from = self.at;
        let mut blank = true;
        while self.at < end {
            let to = (self.at + WINDOW_LEN).min(end);
            let failed = |source| BlobError::io(self.media.path(), source);
            let window = self.media.view(self.at..to).map_err(failed)?;
            let here = usize::from(self.at == from);
            let mut words = window.chunks(8).enumerate();
            let found = words.find(|(n, word)| *n >= here && word.starts_with(&ENTRY_MAGIC));
            let passed = found.map_or(window.len(), |(n, _)| n * 8);
            blank = blank && window[..passed].iter().all(|&byte| byte == 0);
            self.at += passed as u64;
            if found.is_some() {
                blank = false;
                break;
            }
        }
        if !blank {
            self.hole = self.hole.or(Some(from));
        }
        Ok(())
    }
}
