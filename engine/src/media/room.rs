//! The allocated space of a file that is written to. It is allocated a step ahead of use, so that a
//! full disk is an error before anything is written, and a small store takes little space.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::sys::{self, FOLIO_MAX};

/// Bounds of an allocation step: as much as is already allocated, within these bounds, in multiples
/// of the first. The kernel may keep this many bytes as one folio, and a store into it through a
/// map needs space for all of them; without it the process is killed.
const STEP_MIN: u64 = FOLIO_MAX;
const STEP_MAX: u64 = 4 * FOLIO_MAX;

/// How much space a new file gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Take {
    /// The first step.
    Step,
    /// All of its space.
    All,
    /// All of its space, filled with zeros.
    Zeros,
}

/// How much of a file is allocated.
#[derive(Debug)]
pub(super) struct Room {
    len: u64,
    taken: AtomicU64,
}

impl Room {
    /// A file of `len` bytes whose first `taken` are allocated.
    pub(super) const fn new(len: u64, taken: u64) -> Self {
        Self { len, taken: AtomicU64::new(taken) }
    }

    /// Sets the length of the file and allocates its first part, with zeros if requested.
    pub(super) fn begin(file: &File, len: u64, take: Take) -> io::Result<Self> {
        file.set_len(len)?;
        let taken = if take == Take::Step { STEP_MIN.min(len) } else { len };
        match take {
            Take::Zeros => sys::allocate_zeros(file, 0..taken)?,
            Take::Step | Take::All => sys::allocate(file, 0..taken)?,
        }
        Ok(Self::new(len, taken))
    }

    /// Length of the file.
    pub(super) const fn len(&self) -> u64 {
        self.len
    }

    /// Makes sure that the first `upto` bytes have space. One thread at a time.
    ///
    /// # Errors
    /// That of the system; `InvalidInput` beyond the end of the file, which never grows.
    pub(super) fn reserve(&self, file: &File, upto: u64) -> io::Result<()> {
        if upto > self.len {
            let text = format!("{upto} bytes do not fit into a file of {}", self.len);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let taken = self.taken.load(Ordering::Relaxed);
        if upto <= taken {
            return Ok(());
        }
        let end = |upto: u64| upto.next_multiple_of(STEP_MIN).min(self.len);
        let (needed, step) = (end(upto), taken.clamp(STEP_MIN, STEP_MAX));
        let ahead = needed.max(end(taken + step));
        let reached = match sys::allocate(file, taken..ahead) {
            // The remaining space may be enough for the current need.
            Err(_) if needed < ahead => sys::allocate(file, taken..needed).map(|()| needed)?,
            allocated => allocated.map(|()| ahead)?,
        };
        self.taken.store(reached, Ordering::Relaxed);
        Ok(())
    }
}
