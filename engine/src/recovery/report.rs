//! What opening a store found and did.

use std::path::PathBuf;

use crate::error::Corruption;

/// What opening a store found and did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// The store had been closed in order, or was new: nothing had to be recovered.
    pub clean: bool,
    /// Groups that the journal held; those that had not reached their place are there now.
    pub journal_groups: u64,
    /// Batches that were whole and not known to be durable; they were kept and are durable now.
    pub batches_kept: u64,
    /// Where the log was cut: what follows was never acknowledged as durable.
    pub cut: Option<Cut>,
    /// Where packs that were not closed in order had something that does not verify, and that was
    /// left out: blobs that were torn and never acknowledged as durable, or that are damaged and
    /// lost. At most 4,096 of each pack.
    pub blobs_dropped: Vec<Corruption>,
}

/// Where a log was cut.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cut {
    /// The file.
    pub path: PathBuf,
    /// Where in the file, in bytes.
    pub position: u64,
    /// Offset of the first frame that could be lost.
    pub offset: u64,
    /// Bytes of the files from there on, most of which were never written.
    pub bytes_max: u64,
    /// What is wrong there.
    pub why: String,
}
