//! Randomness, as something that is given to the store, so that tests can repeat a run.

use std::fmt::Debug;
use std::io;

use crate::sys;

/// Gives random bytes.
pub trait Entropy: Send + Sync + Debug {
    /// 32 random bytes, from which one opening derives its uuids, salts and the random part of its
    /// ids. They must differ from opening to opening: stale bytes in a file that is used again are
    /// told by its salt.
    ///
    /// # Errors
    /// What the operating system answered; the store is then not opened.
    fn seed(&self) -> io::Result<[u8; 32]>;
}

/// The kernel's random numbers.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn seed(&self) -> io::Result<[u8; 32]> {
        sys::random_bytes()
    }
}
