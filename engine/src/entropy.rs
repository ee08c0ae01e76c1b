//! Randomness as an injected dependency, so that tests can repeat a run.

use std::fmt::Debug;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest as _, Sha256};

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

/// A source of random bytes that cannot fail: a seed, stretched with SHA-256.
#[derive(Debug)]
pub(crate) struct Random {
    seed: [u8; 32],
    count: AtomicU64,
}

impl Random {
    /// Takes a seed.
    pub(crate) fn new(entropy: &dyn Entropy) -> io::Result<Self> {
        Ok(Self { seed: entropy.seed()?, count: AtomicU64::new(0) })
    }

    /// `N` random bytes; `N` is at most 32.
    pub(crate) fn bytes<const N: usize>(&self) -> [u8; N] {
        const { assert!(N <= 32) };
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let digest = Sha256::new().chain_update(self.seed).chain_update(count.to_le_bytes());
        let digest: [u8; 32] = digest.finalize().into();
        let mut bytes = [0; N];
        bytes.copy_from_slice(&digest[..N]);
        bytes
    }

    /// A random number that is not 0, so that it differs from what zeros would read as.
    pub(crate) fn salt(&self) -> u32 {
        u32::from_le_bytes(self.bytes()).max(1)
    }
}
