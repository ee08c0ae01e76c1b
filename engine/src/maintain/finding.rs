//! What a check of a store finds.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::limits::FINDINGS_MAX;
use crate::value::{BlobHash, FrameId};

/// What a finding costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Bytes that hold nothing: what a crash left behind, or a file nobody needs.
    Unused,
    /// What is damaged is held elsewhere too: nothing is lost.
    Derived,
    /// Frames, cursors or blobs that were stored cannot be read.
    Lost,
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Problem {
    /// A copy of the manifest does not verify.
    Manifest,
    /// A file that the manifest names is not there.
    Missing,
    /// A file does not have the length the manifest names.
    Length,
    /// The header of a file does not verify, or is that of another file.
    Header,
    /// The file was written by another version of the format.
    Version,
    /// The CRC of the whole file is not that of the manifest, though all parts of it verify.
    FileCrc,
    /// A batch of the log does not verify.
    Batch,
    /// A record of the log does not verify.
    Record,
    /// Ids do not increase with the offset.
    Order,
    /// The end of a log that was not closed in order: the next open cuts it.
    TornTail,
    /// An entry of a pack does not verify, or its bytes are not those of their hash.
    Blob,
    /// The disk does not give a place of a file, or a file. What is missing for it is told besides.
    Unreadable,
    /// A blob that a frame or a cursor names is nowhere.
    MissingBlob,
    /// Bytes behind the end of a file that should be zero are not.
    Trailing,
    /// A derived file does not verify.
    Index,
    /// A derived file is sound and does not say what the log or the pack says.
    IndexContent,
    /// A file that does not belong to the store, or an unfinished one.
    Stranger,
}

/// Something that is wrong with a store.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// What it costs.
    pub severity: Severity,
    /// What is wrong.
    pub problem: Problem,
    /// The file.
    pub path: PathBuf,
    /// Where in the file, in bytes.
    pub position: u64,
    /// The offset of the first frame that is hit, as far as that is known.
    pub offset: Option<u64>,
    /// The offset after the last frame that is hit, as far as that is known.
    pub offset_end: Option<u64>,
    /// The id of the first frame that is hit, as far as that is known.
    pub id: Option<FrameId>,
    /// The blob that is hit, as far as that is known.
    pub blob: Option<BlobHash>,
    /// What does not fit there.
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

/// How far a long piece of work is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// The file it is at.
    pub path: &'a Path,
    /// Bytes done.
    pub bytes: u64,
    /// Bytes there are to do, as far as known.
    pub bytes_total: u64,
}

/// What a check of a whole store found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct VerifyReport {
    /// What is wrong, in the order it was found; the first [`FINDINGS_MAX`].
    pub findings: Vec<Finding>,
    /// How many things are wrong.
    pub findings_total: u64,
    /// The highest severity among them.
    pub worst: Option<Severity>,
    /// Files that were read.
    pub files: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Sound frames.
    pub frames: u64,
    /// Sound blobs, copies counted each.
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
