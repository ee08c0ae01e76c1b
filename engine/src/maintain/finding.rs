//! The findings of a check of a store.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::limits::FINDINGS_MAX;
use crate::value::{BlobHash, FrameId};

/// The impact of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Bytes that hold nothing: what a crash left behind, or an unneeded file.
    Unused,
    /// The damaged data also exists elsewhere: nothing is lost.
    Derived,
    /// Frames, cursors or blobs that were stored cannot be read.
    Lost,
}

/// The kind of problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Problem {
    /// A copy of the manifest does not verify.
    Manifest,
    /// A file that the manifest names does not exist.
    Missing,
    /// A file does not have the length that the manifest says.
    Length,
    /// The header of a file does not verify, or belongs to another file.
    Header,
    /// The file was written by another version of the format.
    Version,
    /// The CRC of the whole file differs from the manifest's, though all its parts verify.
    FileCrc,
    /// A batch of the log does not verify.
    Batch,
    /// A record of the log does not verify.
    Record,
    /// Ids do not increase with the offset.
    Order,
    /// The end of a log that was not closed cleanly: the next open cuts it.
    TornTail,
    /// An entry of a pack does not verify, or its bytes do not match their hash.
    Blob,
    /// The disk cannot read a place of a file, or a whole file. What is missing because of it is
    /// reported separately.
    Unreadable,
    /// A blob that a frame or a cursor names does not exist.
    MissingBlob,
    /// Bytes after the end of a file that should be zero are not.
    Trailing,
    /// A derived file does not verify.
    Index,
    /// A derived file is sound but contradicts the log or the pack.
    IndexContent,
    /// A file that does not belong to the store, or a temporary one.
    Stranger,
}

/// A problem found in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// Its impact.
    pub severity: Severity,
    /// The kind of problem.
    pub problem: Problem,
    /// The file.
    pub path: PathBuf,
    /// Position in the file, in bytes.
    pub position: u64,
    /// The offset of the first affected frame, if known.
    pub offset: Option<u64>,
    /// The offset after the last affected frame, if known.
    pub offset_end: Option<u64>,
    /// The id of the first affected frame, if known.
    pub id: Option<FrameId>,
    /// The affected blob, if known.
    pub blob: Option<BlobHash>,
    /// What is wrong there.
    pub what: Arc<str>,
}

impl Finding {
    pub(crate) fn new(
        severity: Severity,
        problem: Problem,
        path: &Path,
        position: u64,
        what: impl fmt::Display,
    ) -> Self {
        Self {
            severity,
            problem,
            path: path.to_owned(),
            position,
            offset: None,
            offset_end: None,
            id: None,
            blob: None,
            what: what.to_string().into(),
        }
    }

    /// A place that cannot be read.
    pub(crate) fn unreadable(path: &Path, place: &Range<u64>, why: impl fmt::Display) -> Self {
        let what = format!("{} bytes cannot be read: {why}", place.end - place.start);
        Self::new(Severity::Lost, Problem::Unreadable, path, place.start, what)
    }

    pub(crate) fn frames(mut self, offset: u64, end: Option<u64>, id: Option<FrameId>) -> Self {
        (self.offset, self.offset_end, self.id) = (Some(offset), end, id);
        self
    }

    pub(crate) fn blob(mut self, hash: Option<BlobHash>) -> Self {
        self.blob = hash;
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cost = match self.severity {
            Severity::Unused => "unused",
            Severity::Derived => "derived",
            Severity::Lost => "lost",
        };
        write!(f, "{cost}: {} at byte {}", self.path.display(), self.position)?;
        match (self.offset, self.offset_end) {
            (Some(offset), Some(end)) if end > offset + 1 => {
                write!(f, " (frames {offset} to {})", end - 1)?;
            }
            (Some(offset), _) => write!(f, " (frame {offset})")?,
            (None, _) => {}
        }
        if let Some(id) = self.id {
            write!(f, " {id}")?;
        }
        if let Some(blob) = self.blob {
            write!(f, " {blob}")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// The progress of a long operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// The current file.
    pub path: &'a Path,
    /// Bytes done.
    pub bytes: u64,
    /// Total bytes, as far as known.
    pub bytes_total: u64,
}

/// The result of checking a whole store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Findings in the order they were found; the first [`FINDINGS_MAX`].
    pub findings: Vec<Finding>,
    /// Number of findings.
    pub findings_total: u64,
    /// The highest severity among them.
    pub worst: Option<Severity>,
    /// Files that were read.
    pub files: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Sound frames.
    pub frames: u64,
    /// Sound blobs, counting every copy.
    pub blobs: u64,
}

impl VerifyReport {
    /// Whether nothing was found.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.findings_total == 0
    }

    pub(crate) fn add(&mut self, finding: Finding) {
        self.findings_total += 1;
        self.worst = self.worst.max(Some(finding.severity));
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }
}
