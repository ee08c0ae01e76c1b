//! A read-only view of a file with unreadable sectors, for callers that want the rest of it.
//! Unreadable places read as zeros and are recorded. Only for inspection: anything written from
//! such bytes must say so.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::io::Errno;

use super::Media;

/// Granularity of unreadable places.
const PIECE_LEN: u64 = 4096;

/// Whether an error says that the disk has lost the data, so that a retry is useless.
pub(crate) fn is_lost(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    errno.is_some_and(|errno| [Errno::IO, Errno::BADMSG, Errno::UCLEAN].contains(&errno))
}

/// The unreadable places of a file, as far as it was read.
#[derive(Debug, Default)]
pub(crate) struct Holes {
    /// Start of each, with its end and the system's error; they do not touch.
    found: Mutex<BTreeMap<u64, (u64, String)>>,
}

impl Holes {
    /// All unreadable places, with the system's error for each.
    pub(crate) fn all(&self) -> Vec<(Range<u64>, String)> {
        let found = self.found.lock();
        found.iter().map(|(&from, (upto, what))| (from..*upto, what.clone())).collect()
    }

    fn touch(&self, range: &Range<u64>) -> bool {
        let found = self.found.lock();
        found.range(..range.end).next_back().is_some_and(|(_, (upto, _))| range.start < *upto)
    }

    /// Notes an unreadable place that overlaps no other one.
    fn note(&self, range: Range<u64>, error: &io::Error) {
        let mut found = self.found.lock();
        let mut upto = range.end;
        if let Some((next, _)) = found.remove(&range.end) {
            upto = next;
        }
        match found.range_mut(..range.start).next_back() {
            Some((_, (end, _))) if *end == range.start => *end = upto,
            _ => drop(found.insert(range.start, (upto, error.to_string()))),
        }
    }
}

#[derive(Debug)]
struct Tolerant {
    media: Arc<dyn Media>,
    holes: Arc<Holes>,
}

/// The file, with zeros where it cannot be read; each such place is recorded in `holes`.
pub(crate) fn tolerant(media: Arc<dyn Media>, holes: &Arc<Holes>) -> Arc<dyn Media> {
    Arc::new(Tolerant { media, holes: Arc::clone(holes) })
}

impl Tolerant {
    /// Reads piece by piece, in pieces aligned in the file independently of the range.
    fn pieces(&self, range: Range<u64>) -> io::Result<Bytes> {
        let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
        let mut at = range.start;
        while at < range.end {
            let first = at - at % PIECE_LEN;
            let upto = (first + PIECE_LEN).min(range.end);
            let len = bytes.len() + (upto - at) as usize;
            // Known holes are skipped: a disk takes long to report an unreadable sector.
            if !self.holes.touch(&(at..upto)) {
                match self.media.view(at..upto) {
                    Ok(piece) => bytes.extend_from_slice(&piece),
                    Err(error) if is_lost(&error) => {
                        let end = (first + PIECE_LEN).min(self.media.published()).max(upto);
                        self.holes.note(first..end, &error);
                    }
                    Err(error) => return Err(error),
                }
            }
            bytes.resize(len, 0);
            at = upto;
        }
        Ok(bytes.into())
    }
}

impl Media for Tolerant {
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
        if range.start > range.end || range.end > self.published() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if self.holes.touch(&range) {
            return self.pieces(range);
        }
        match self.media.view(range.clone()) {
            Err(error) if is_lost(&error) => self.pieces(range),
            viewed => viewed,
        }
    }

    fn len(&self) -> u64 {
        self.media.len()
    }

    fn zero_from(&self) -> u64 {
        self.media.zero_from()
    }

    fn path(&self) -> &Path {
        self.media.path()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Files as _;
    use super::super::faulty::{Faults, FaultyFiles};
    use super::super::memory::MemoryDisk;
    use super::super::sim::Image;
    use super::*;

    #[test]
    fn what_is_lost_is_zero_and_told_once() {
        let (path, faults) = (Path::new("/file"), Faults::none());
        let files = FaultyFiles::new(MemoryDisk::new(&Image::new(), Path::new("/")), &faults);
        let media = files.create(path, 20_000, true).unwrap();
        media.write_at(0, &[7; 20_000]).unwrap();
        media.publish(20_000);
        for place in [5000..5001, 9000..9001, 19_999..20_000] {
            faults.lose(path, place);
        }
        let holes = Arc::new(Holes::default());
        let tolerant = tolerant(media, &holes);
        let mut want = vec![7; 20_000];
        want[4096..12_288].fill(0);
        want[16_384..].fill(0);
        assert_eq!(tolerant.view(0..4096).unwrap()[..], want[..4096]);
        assert!(holes.all().is_empty());
        // A place within a piece, and then everything from any position.
        assert_eq!(tolerant.view(8990..9010).unwrap()[..], want[8990..9010]);
        for from in (0..20_000).step_by(777) {
            for upto in (from..=20_000).step_by(555) {
                let seen = tolerant.view(from as u64..upto as u64).unwrap();
                let sound = seen.iter().zip(&want[from..upto]).all(|(a, b)| a == b || *a == 7);
                assert!(sound && seen.len() == upto - from, "{from}..{upto}");
            }
        }
        assert_eq!(tolerant.view(0..20_000).unwrap()[..], want);
        let told: Vec<_> = holes.all().into_iter().map(|(place, _)| place).collect();
        assert_eq!(told, [4096..12_288, 16_384..20_000]);
        // A range outside the file is an error, not a hole.
        assert!(tolerant.view(0..20_001).is_err() && tolerant.write_at(0, &[1]).is_err());
    }
}
