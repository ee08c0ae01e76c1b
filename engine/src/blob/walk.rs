//! Walking a pack from entry to entry. Where none begins, the walk looks for the next one: after a
//! power cut whole entries can lie behind a hole, and each stands for itself.

use std::ops::Range;
use std::sync::Arc;

use super::entry::Entry;
use super::error::BlobError;
use crate::format::file::FILE_HEADER_LEN;
use crate::format::pack::ENTRY_MAGIC;
use crate::media::Media;

/// Bytes looked through at a time for the next entry; a multiple of 8.
const WINDOW_LEN: u64 = 256 * 1024;

/// The entries of a pack up to what is published of it, their headers checked.
#[derive(Debug)]
pub(super) struct Walk {
    media: Arc<dyn Media>,
    salt: u32,
    at: u64,
    upto: u64,
    hole: Option<u64>,
}

impl Walk {
    pub(super) fn new(media: &Arc<dyn Media>, salt: u32) -> Self {
        Self::part(media, salt, FILE_HEADER_LEN as u64..u64::MAX)
    }

    /// The entries that begin in a part, which begins with one.
    pub(super) fn part(media: &Arc<dyn Media>, salt: u32, part: Range<u64>) -> Self {
        Self { media: Arc::clone(media), salt, at: part.start, upto: part.end, hole: None }
    }

    /// The first place where an entry should have been and was not. Zeros to the end of the file
    /// are no hole: nothing was ever written there.
    pub(super) const fn hole(&self) -> Option<u64> {
        self.hole
    }

    /// The next entry, or nothing at the end.
    ///
    /// # Errors
    /// [`BlobError::Io`] when the file cannot be read.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, BlobError> {
        let end = self.media.published().min(self.upto);
        while self.at < end {
            match Entry::read(&self.media, self.at, self.salt) {
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

    /// Goes to the next place that begins like an entry.
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
