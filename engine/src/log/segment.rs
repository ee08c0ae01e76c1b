//! One segment as readers see it: a place in the order of offsets, and bytes that are final.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::open_files::OpenFiles;
use crate::error::ReadError;
use crate::format::file::{FILE_HEADER_LEN, FileHeader, Magic};
use crate::media::Media;

/// Identity of a segment, from its file header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentKey {
    pub(crate) base: u64,
    pub(crate) generation: u32,
    pub(crate) uuid: [u8; 16],
    pub(crate) salt: u32,
}

impl SegmentKey {
    /// The header of the segment's file.
    pub(crate) fn header(&self, store: [u8; 16]) -> [u8; FILE_HEADER_LEN] {
        let header = FileHeader {
            magic: Magic::Segment,
            salt: self.salt,
            store,
            file: self.uuid,
            base: self.base,
            generation: self.generation,
        };
        header.encode()
    }
}

/// A segment. An active one that is sealed gets a new value; readers of the old one keep it.
#[derive(Debug)]
pub(crate) struct Segment {
    key: SegmentKey,
    path: PathBuf,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// Written to, or left by a writer: its medium says what is final.
    Open(Arc<dyn Media>),
    /// Of exact length, opened when it is read.
    Sealed { length: u64, frames: u64, open: Arc<OpenFiles> },
}

impl Segment {
    /// A segment whose medium stays open: the active one.
    pub(crate) fn open(key: SegmentKey, path: PathBuf, media: Arc<dyn Media>) -> Self {
        Self { key, path, source: Source::Open(media) }
    }

    /// A sealed segment.
    pub(crate) fn sealed_file(
        key: SegmentKey,
        path: PathBuf,
        length: u64,
        frames: u64,
        open: Arc<OpenFiles>,
    ) -> Self {
        Self { key, path, source: Source::Sealed { length, frames, open } }
    }

    /// Offset of the first frame in it, or of the next if it holds none.
    pub(crate) const fn base(&self) -> u64 {
        self.key.base
    }

    /// How often it was rewritten.
    pub(crate) const fn generation(&self) -> u32 {
        self.key.generation
    }

    /// Uuid of the file.
    pub(crate) const fn uuid(&self) -> [u8; 16] {
        self.key.uuid
    }

    /// What every batch header in it carries.
    pub(crate) const fn salt(&self) -> u32 {
        self.key.salt
    }

    pub(crate) const fn key(&self) -> SegmentKey {
        self.key
    }

    /// Its file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that are final; batches begin after the file header.
    pub(crate) fn published_len(&self) -> u64 {
        match &self.source {
            Source::Open(media) => media.published(),
            Source::Sealed { length, .. } => *length,
        }
    }

    /// Whether its file has its exact length and is opened only to be read.
    pub(crate) const fn is_sealed(&self) -> bool {
        matches!(self.source, Source::Sealed { .. })
    }

    /// Frames in it, of those below `head`.
    pub(crate) fn frames(&self, head: u64) -> u64 {
        match &self.source {
            Source::Open(_) => head.saturating_sub(self.key.base),
            Source::Sealed { frames, .. } => (*frames).min(head.saturating_sub(self.key.base)),
        }
    }

    /// Published bytes. Takes an allocation at least: ask for much and slice.
    ///
    /// # Errors
    /// [`ReadError::Io`] when the file cannot be opened or read, or is shorter than it was.
    pub(crate) fn bytes(&self, range: Range<u64>) -> Result<Bytes, ReadError> {
        let viewed = match &self.source {
            Source::Open(media) => media.view(range),
            Source::Sealed { open, .. } => open.get(self).and_then(|media| media.view(range)),
        };
        viewed.map_err(|error| ReadError::io(&self.path, &error))
    }
}
