//! The report of opening a store.

use std::path::PathBuf;

use crate::error::Corruption;

/// What opening a store found and did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// The store was closed cleanly, or was new: nothing had to be recovered.
    pub clean: bool,
    /// Groups in the journal; those not applied to the log and packs yet are applied now.
    pub journal_groups: u64,
    /// Batches that were whole and not known to be durable; they were kept and are durable now.
    pub batches_kept: u64,
    /// Where the log was cut: nothing from there on was acknowledged as durable.
    pub cut: Option<Cut>,
    /// Places in packs that were not closed cleanly where something did not verify and was left
    /// out: torn blobs that were never acknowledged as durable, or damaged blobs that are lost. At
    /// most 4,096 for each pack.
    pub blobs_dropped: Vec<Corruption>,
}

/// Where a log was cut.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cut {
    /// The file.
    pub path: PathBuf,
    /// Position in the file, in bytes.
    pub position: u64,
    /// Offset of the first frame that could be lost.
    pub offset: u64,
    /// Bytes of the files from there on, most of which were never written.
    pub bytes_max: u64,
    /// What is wrong there.
    pub why: String,
}
