//! The beginning of a file whose end another thread still writes.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::Media;

#[derive(Debug)]
struct Prefix {
    media: Arc<dyn Media>,
    len: u64,
}

/// A read-only view of the first `len` published bytes of a file.
pub(crate) fn prefix(media: Arc<dyn Media>, len: u64) -> Arc<dyn Media> {
    let len = len.min(media.published());
    Arc::new(Prefix { media, len })
}

impl Media for Prefix {
    fn write_at(&self, _at: u64, _bytes: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::InvalidInput.into())
    }

    fn sync(&self) -> io::Result<()> {
        self.media.sync()
    }

    fn publish(&self, _upto: u64) {}

    fn published(&self) -> u64 {
        self.len
    }

    fn view(&self, range: Range<u64>) -> io::Result<Bytes> {
        if range.start > range.end || range.end > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.media.view(range)
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn path(&self) -> &Path {
        self.media.path()
    }
}
