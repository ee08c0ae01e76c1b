//! Bodies of messages and blobs: JSON lines, all different.

use std::time::{Duration, Instant};

use bytes::Bytes;
use xs_bench::workload::{Frames, Random, Shape};

/// Bytes that bodies are cut from.
const POOL: usize = 256 * 1024;
/// A body begins with the time when it was due and with its number.
const STAMP: usize = 16;

/// Makes bodies.
#[derive(Debug)]
pub(crate) struct Bodies {
    frames: Frames,
    pool: Vec<u8>,
    random: Random,
    made: u64,
    begun: Instant,
}

impl Default for Bodies {
    fn default() -> Self {
        let mut frames = Frames::common(Shape::Body256);
        let pool = lines(&mut frames, POOL);
        Self { frames, pool, random: Random::default(), made: 0, begun: Instant::now() }
    }
}

fn lines(frames: &mut Frames, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 256);
    while bytes.len() < len {
        bytes.extend_from_slice(&frames.body());
    }
    bytes.truncate(len);
    bytes
}

impl Bodies {
    /// Returns how many bodies were made.
    pub(crate) const fn made(&self) -> u64 {
        self.made
    }

    /// Returns a body of `len` bytes. It is cheap to make, and shares parts with others.
    pub(crate) fn next(&mut self, len: usize) -> Bytes {
        self.due(len, Instant::now())
    }

    /// Like [`Self::next`], for a body that was due at a given time.
    pub(crate) fn due(&mut self, len: usize, due: Instant) -> Bytes {
        let at = self.random.next() as usize % (POOL - len);
        let mut body = self.pool[at..at + len].to_vec();
        let nanos = due.saturating_duration_since(self.begun).as_nanos() as u64;
        body[..8].copy_from_slice(&nanos.to_le_bytes());
        body[8..STAMP].copy_from_slice(&self.made.to_le_bytes());
        self.made += 1;
        Bytes::from(body)
    }

    /// Returns how long ago the body was due.
    pub(crate) fn age(&self, body: &[u8]) -> Duration {
        let nanos = body.first_chunk().map_or(0, |nanos| u64::from_le_bytes(*nanos));
        self.begun.elapsed().saturating_sub(Duration::from_nanos(nanos))
    }

    /// Returns a body of 256 bytes that compresses like real ones.
    pub(crate) fn unlike(&mut self) -> Bytes {
        self.made += 1;
        self.frames.body()
    }

    /// Returns a blob of `len` bytes.
    pub(crate) fn blob(&mut self, len: usize) -> Bytes {
        let mut blob = lines(&mut self.frames, len);
        blob[..8].copy_from_slice(&self.made.to_le_bytes());
        self.made += 1;
        Bytes::from(blob)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_differ_and_tell_their_age() {
        let mut bodies = Bodies::default();
        let due = Instant::now();
        let (one, other) = (bodies.due(256, due), bodies.due(256, due));
        assert_ne!(one, other);
        assert_eq!((one.len(), bodies.made()), (256, 2));
        assert!(bodies.age(&one) <= due.elapsed());
        assert_eq!(bodies.blob(1000).len(), 1000);
    }
}
