//! Throttles the reads and writes of compaction, and stops it.

use std::time::{Duration, Instant};

use super::{Stop, Stopped};
use crate::store::Inner;

/// Bytes between two checks of the clock.
const CHUNK_BYTES: u64 = 256 * 1024;

/// Keeps to a rate of bytes per second.
#[derive(Debug)]
pub(super) struct Pace<'a> {
    inner: &'a Inner,
    bytes_per_second: Option<u64>,
    began: Instant,
    bytes: u64,
    chunk: u64,
}

impl<'a> Pace<'a> {
    pub(super) fn new(inner: &'a Inner, bytes_per_second: Option<u64>) -> Self {
        Self { inner, bytes_per_second, began: Instant::now(), bytes: 0, chunk: 0 }
    }

    /// Accounts for bytes read or written. Waits if they exceed the rate, and fails when compaction
    /// must stop.
    pub(super) fn pass(&mut self, bytes: usize) -> Stopped<()> {
        self.chunk += bytes as u64;
        if self.chunk < CHUNK_BYTES {
            return Ok(());
        }
        self.bytes += std::mem::take(&mut self.chunk);
        if let Some(rate) = self.bytes_per_second {
            let due = Duration::from_secs_f64(self.bytes as f64 / rate as f64);
            if let Some(early) = due.checked_sub(self.began.elapsed())
                && self.inner.compaction.pause(early)
            {
                return Err(Stop::Closing);
            }
        }
        if self.inner.compaction.is_stopped() { Err(Stop::Closing) } else { Ok(()) }
    }
}
