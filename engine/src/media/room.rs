//! The space of a file that is written to: taken from the filesystem a step ahead of use, so that a
//! full disk is an error before anything is written, and a store that holds little takes little.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::sys::{self, FOLIO_MAX};

/// What is taken at once: as much as there is, within these bounds, in multiples of the first. The
/// kernel keeps up to so many bytes as one folio, and a store into it through a map takes space for
/// all of them; without it the process ends.
const STEP_MIN: u64 = FOLIO_MAX;
const STEP_MAX: u64 = 4 * FOLIO_MAX;

/// What a new file gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Take {
    /// The first step.
    Step,
    /// All of its space.
    All,
    /// The same, filled with zeros.
    Zeros,
}

/// How much of a file has space.
#[derive(Debug)]
pub(super) struct Room {
    len: u64,
    taken: AtomicU64,
}

impl Room {
    /// Of a file of `len` bytes the first `taken` have space.
    pub(super) const fn new(len: u64, taken: u64) -> Self {
        Self { len, taken: AtomicU64::new(taken) }
    }

    /// Makes the file as long as it is to be, and takes so much of it, with zeros if it should.
    pub(super) fn begin(file: &File, len: u64, take: Take) -> io::Result<Self> {
        file.set_len(len)?;
        let taken = if take == Take::Step { STEP_MIN.min(len) } else { len };
        match take {
            Take::Zeros => sys::allocate_zeros(file, 0..taken)?,
            Take::Step | Take::All => sys::allocate(file, 0..taken)?,
        }
        Ok(Self::new(len, taken))
    }

    /// Bytes of the file.
    pub(super) const fn len(&self) -> u64 {
        self.len
    }

    /// Makes sure that the first `upto` bytes have space. One thread at a time.
    pub(super) fn reserve(&self, file: &File, upto: u64) -> io::Result<()> {
        let taken = self.taken.load(Ordering::Relaxed);
        if upto <= taken {
            return Ok(());
        }
        let end = |upto: u64| upto.min(self.len).next_multiple_of(STEP_MIN).min(self.len);
        let (needed, step) = (end(upto), taken.clamp(STEP_MIN, STEP_MAX));
        let ahead = needed.max(end(taken + step));
        let reached = match sys::allocate(file, taken..ahead) {
            // What is left may be enough for what is needed now.
            Err(_) if needed < ahead => sys::allocate(file, taken..needed).map(|()| needed)?,
            allocated => allocated.map(|()| ahead)?,
        };
        self.taken.store(reached, Ordering::Relaxed);
        Ok(())
    }
}
