//! Randomness as an injected dependency, so that tests can repeat a run.

use std::fmt::Debug;
use std::io;

use crate::sys;

/// A source of random bytes.
pub trait Entropy: Send + Sync + Debug {
    /// 32 random bytes, from which one opening derives its uuids, salts and the random part of its
    /// ids. They must differ between openings: the salt distinguishes stale bytes in a reused file.
    ///
    /// # Errors
    /// The system's error; the store is then not opened.
    fn seed(&self) -> io::Result<[u8; 32]>;
}

/// The kernel's random number generator.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn seed(&self) -> io::Result<[u8; 32]> {
        sys::random_bytes()
    }
}
