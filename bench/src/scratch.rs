//! Directories for stores, and how stores are opened for a bench.

use std::path::Path;

use xs_engine::{Store, StoreOptions, SyncPolicy};

/// Options of a store with a policy.
pub fn options(sync: SyncPolicy) -> StoreOptions {
    StoreOptions { sync, ..StoreOptions::default() }
}

/// Opens a store; errors name the directory.
pub fn open(dir: &Path, options: StoreOptions) -> anyhow::Result<Store> {
    Store::open(dir, options)
        .map_err(|error| anyhow::anyhow!("open a store in {}: {error}", dir.display()))
}
