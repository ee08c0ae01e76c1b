//! A read-only view of a file, overlaid with pieces that belong in it and are not written yet.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::Media;

#[derive(Debug)]
struct Patched {
    media: Arc<dyn Media>,
    /// Keyed by position; they do not overlap.
    pieces: BTreeMap<u64, Bytes>,
}

/// The file overlaid with the pieces, given by position.
pub(crate) fn patched(media: Arc<dyn Media>, pieces: &[(u64, Bytes)]) -> Arc<dyn Media> {
    Arc::new(Patched { media, pieces: pieces.iter().cloned().collect() })
}

impl Media for Patched {
    fn write_at(&self, _at: u64, _bytes: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::InvalidInput.into())
    }

    fn sync(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn publish(&self, upto: u64) {
        self.media.publish(upto);
    }

    fn published(&self) -> u64 {
        self.media.published()
    }

    fn view(&self, range: Range<u64>) -> io::Result<Bytes> {
        let bytes = self.media.view(range.clone())?;
        let end = |(at, piece): &(&u64, &Bytes)| *at + piece.len() as u64;
        let over = self.pieces.range(..range.end).rev();
        let mut over = over.take_while(|piece| end(piece) > range.start).peekable();
        if over.peek().is_none() {
            return Ok(bytes);
        }
        let mut bytes = bytes.to_vec();
        for (at, piece) in over {
            let from = (*at).max(range.start);
            let upto = (at + piece.len() as u64).min(range.end);
            let part = &piece[(from - at) as usize..(upto - at) as usize];
            bytes[(from - range.start) as usize..(upto - range.start) as usize]
                .copy_from_slice(part);
        }
        Ok(bytes.into())
    }

    fn len(&self) -> u64 {
        self.media.len()
    }

    fn zero_from(&self) -> u64 {
        let last = self.pieces.iter().next_back();
        let end = last.map_or(0, |(at, piece)| at + piece.len() as u64);
        self.media.zero_from().max(end.min(self.len()))
    }

    fn path(&self) -> &Path {
        self.media.path()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::Files as _;
    use crate::media::memory::MemoryDisk;
    use crate::media::sim::Image;

    #[test]
    fn pieces_are_seen_where_they_belong() {
        let (disk, path) = (MemoryDisk::new(&Image::new(), Path::new("/")), Path::new("/file"));
        let media = disk.create(path, 64, true).unwrap();
        media.write_at(0, &[1; 64]).unwrap();
        media.publish(64);
        let pieces = [(8, Bytes::from_static(&[2; 8])), (24, Bytes::from_static(&[3; 4]))];
        let patched = patched(media, &pieces);
        let want: Vec<u8> = [vec![1; 8], vec![2; 8], vec![1; 8], vec![3; 4], vec![1; 36]].concat();
        for from in 0..64 {
            for upto in from..=64 {
                let seen = patched.view(from..upto).unwrap();
                assert_eq!(seen[..], want[from as usize..upto as usize], "{from}..{upto}");
            }
        }
        assert!(patched.view(0..65).is_err() && patched.write_at(0, &[1]).is_err());
    }
}
