//! Directories for stores, and how a bench opens stores.

use std::path::Path;

use anyhow::{Context as _, bail};
use xs_engine::{Store, StoreOptions, SyncPolicy};

/// Returns the options of a store with this policy.
pub fn options(sync: SyncPolicy) -> StoreOptions {
    StoreOptions { sync, ..StoreOptions::default() }
}

/// Refuses a directory that is in memory, where a sync costs nothing and guarantees nothing.
///
/// # Errors
/// If the directory is in memory or its filesystem cannot be found.
pub fn check_durable(dir: &Path) -> anyhow::Result<()> {
    let found = rustix::fs::statfs(dir);
    let found = found.with_context(|| format!("find the filesystem of {}", dir.display()))?;
    // The type of this field depends on the platform; all magic numbers have 32 bits.
    match in_memory(found.f_type as u32) {
        None => Ok(()),
        Some(name) => bail!(
            "{} is on a {name}, where a sync costs nothing, so rows of durable appends would say \
             nothing: name a directory on a disk with --dir or TMPDIR",
            dir.display()
        ),
    }
}

/// Returns the name of an in-memory filesystem, by its magic number.
const fn in_memory(magic: u32) -> Option<&'static str> {
    match magic {
        0x0102_1994 => Some("tmpfs"),
        0x8584_58f6 => Some("ramfs"),
        _ => None,
    }
}

/// Opens a store; errors name the directory.
///
/// # Errors
/// If the store cannot be opened.
pub fn open(dir: &Path, options: StoreOptions) -> anyhow::Result<Store> {
    Store::open(dir, options)
        .map_err(|error| anyhow::anyhow!("open a store in {}: {error}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_no_place_for_durable_rows() {
        // If `/dev/shm` is missing or is not a tmpfs, there is nothing to refuse.
        let dir = Path::new("/dev/shm");
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
        if mounts.lines().any(|line| line.contains(" /dev/shm tmpfs ")) {
            let error = check_durable(dir).unwrap_err().to_string();
            assert!(error.contains("tmpfs") && error.contains("TMPDIR"), "{error}");
        }
        assert!(check_durable(Path::new(env!("CARGO_MANIFEST_DIR"))).is_ok());
        assert!(check_durable(Path::new("/nowhere")).is_err());
    }
}
