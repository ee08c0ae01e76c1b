//! One segment as readers see it: a range of offsets, and bytes that are final.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::open_files::OpenFiles;
use crate::error::ReadError;
use crate::format::file::{FILE_HEADER_LEN, FileHeader, Magic};
use crate::format::super_file::FileKey;
use crate::limits::SEGMENT_BYTES_MAX;
use crate::media::Media;

/// A position in a segment as indexes keep it, in 4 bytes: every segment is short enough. A
/// position beyond that maps to one where no record lies.
#[inline]
pub(crate) fn position_of(at: u64) -> u32 {
    const { assert!(SEGMENT_BYTES_MAX < u32::MAX as u64) };
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// Identity of a segment, from its file header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentKey {
    pub(crate) base: u64,
    pub(crate) generation: u32,
    pub(crate) uuid: [u8; 16],
    pub(crate) salt: u32,
}

impl SegmentKey {
    /// The segment's key in the manifest.
    pub(crate) const fn file(&self) -> FileKey {
        FileKey::segment(self.base, self.generation)
    }

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

/// A segment. Sealing the active one makes a new value; readers of the old one keep it.
#[derive(Debug)]
pub(crate) struct Segment {
    key: SegmentKey,
    path: PathBuf,
    source: Source,
    /// Its medium, kept open once its file is about to be unlinked: its readers then continue.
    pinned: OnceLock<Arc<dyn Media>>,
}

#[derive(Debug)]
enum Source {
    /// Written to, or left by a writer: its medium knows which bytes are final.
    Open(Arc<dyn Media>),
    /// Of exact length, opened on demand.
    Sealed { length: u64, span: u64, open: Arc<OpenFiles> },
}

impl Segment {
    /// A segment whose medium stays open: the active one.
    pub(crate) fn active(key: SegmentKey, path: PathBuf, media: Arc<dyn Media>) -> Self {
        Self { key, path, source: Source::Open(media), pinned: OnceLock::new() }
    }

    /// A sealed segment that covers `span` offsets.
    pub(crate) fn sealed_file(
        key: SegmentKey,
        path: PathBuf,
        length: u64,
        span: u64,
        open: Arc<OpenFiles>,
    ) -> Self {
        let source = Source::Sealed { length, span, open };
        Self { key, path, source, pinned: OnceLock::new() }
    }

    /// Keeps the file open for its readers, as it is about to be unlinked.
    pub(crate) fn pin(&self) -> io::Result<()> {
        if let Source::Sealed { open, .. } = &self.source {
            let _already = self.pinned.set(open.get(self)?);
            // In this order: a thread that opens it again meanwhile sees that it is pinned.
            open.forget(self);
        }
        Ok(())
    }

    /// The first offset it covers.
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

    /// The salt in every batch header of the segment.
    pub(crate) const fn salt(&self) -> u32 {
        self.key.salt
    }

    pub(crate) const fn key(&self) -> SegmentKey {
        self.key
    }

    /// The segment's key in the manifest.
    pub(crate) const fn file_key(&self) -> FileKey {
        self.key.file()
    }

    /// Whether a header belongs to a file derived from this segment, by this store or an ancestor.
    pub(crate) fn owns(&self, header: &FileHeader) -> bool {
        let named = (header.file, header.base, header.generation);
        named == (self.key.uuid, self.key.base, self.key.generation)
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

    /// Whether reading much of it costs no more than reading little.
    pub(crate) fn is_mapped(&self) -> bool {
        match &self.source {
            Source::Open(media) => media.mapped().is_some(),
            Source::Sealed { .. } => true,
        }
    }

    /// The offset after those a sealed segment covers. The active one has no end yet: this is its
    /// base then.
    pub(crate) fn end(&self) -> u64 {
        match &self.source {
            Source::Open(_) => self.key.base,
            Source::Sealed { span, .. } => self.key.base.saturating_add(*span),
        }
    }

    /// Published bytes. Costs at least an allocation: read a large range and slice it.
    ///
    /// # Errors
    /// [`ReadError::Io`] when the file cannot be opened or read, or is shorter than it was.
    pub(crate) fn bytes(&self, range: Range<u64>) -> Result<Bytes, ReadError> {
        let viewed = match &self.source {
            Source::Open(media) => media.view(range),
            Source::Sealed { open, .. } => self.opened(open).and_then(|media| media.view(range)),
        };
        viewed.map_err(|error| ReadError::io(&self.path, &error))
    }

    /// Its medium, opened if necessary.
    pub(crate) fn media(&self) -> io::Result<Arc<dyn Media>> {
        match &self.source {
            Source::Open(media) => Ok(Arc::clone(media)),
            Source::Sealed { open, .. } => self.opened(open),
        }
    }

    fn opened(&self, open: &OpenFiles) -> io::Result<Arc<dyn Media>> {
        if let Some(media) = self.pinned.get() {
            return Ok(Arc::clone(media));
        }
        // Between the two checks the file may have been pinned and unlinked.
        let media = open.get(self).or_else(|error| self.pinned.get().cloned().ok_or(error))?;
        if self.pinned.get().is_some() {
            open.forget(self);
        }
        Ok(media)
    }
}
