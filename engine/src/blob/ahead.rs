//! Guesses where the blobs of several frames are. A lookup of one blob after another waits for
//! memory in each step of each search: the table or the filter, the index, the header, the bytes.
//! Here each step is done for all blobs, so that their cache misses overlap. Results are guesses,
//! only for packs that are mapped and open: the caller that takes the bytes compares the header
//! with the hash.

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;

use super::packs::Packs;
use super::run::Run;
use crate::format::pack::{ENTRY_HEADER_LEN, EntryHeader};
use crate::media::Media;
use crate::value::BlobHash;

/// Bytes of a cache line.
const LINE_LEN: usize = 64;
/// Maximum bytes of a blob to prefetch; the hardware prefetcher continues from there.
const ASK_MAX: u64 = 512;

/// A requested blob.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) hash: BlobHash,
    /// Its length, according to its frame.
    pub(crate) len: u64,
}

/// A pack that may hold requested blobs.
#[derive(Debug)]
struct Mapped {
    media: Arc<dyn Media>,
    salt: u32,
    /// All of it.
    bytes: Bytes,
}

/// The guessed places of some blobs, in the order requested.
#[derive(Debug, Default)]
pub(super) struct Guesses {
    packs: Vec<Mapped>,
    places: Vec<Option<PackPosition>>,
    next: usize,
    /// End of the last entry taken.
    end: Option<PackPosition>,
    /// The entries taken are not contiguous.
    scattered: bool,
}

/// The index of a pack in `packs`, and a position in it.
type PackPosition = (usize, usize);

impl Guesses {
    /// Looks up blobs, and prefetches the memory they are in.
    pub(super) fn of(packs: &Packs, wanted: &[Wanted]) -> Self {
        let mut guesses = Self { places: vec![None; wanted.len()], ..Self::default() };
        packs.guess(wanted, &mut guesses);
        guesses.ask(wanted);
        guesses
    }

    /// Adds a pack, if it is mapped.
    pub(super) fn pack(&mut self, media: &Arc<dyn Media>, salt: u32) -> Option<usize> {
        let bytes = media.mapped()?;
        self.packs.push(Mapped { media: Arc::clone(media), salt, bytes });
        Some(self.packs.len() - 1)
    }

    /// Adds the guessed place of a requested blob.
    pub(super) fn note(&mut self, number: usize, pack: usize, at: u64) {
        self.places[number] = Some((pack, at as usize));
    }

    /// Whether all blobs were requested.
    pub(super) const fn is_done(&self) -> bool {
        self.next >= self.places.len()
    }

    /// The next blob, if it is where it was guessed to be: `header` reads the header there and
    /// returns it if it is the right one.
    pub(super) fn next(
        &mut self,
        header: impl FnOnce(&[u8], u32) -> Option<EntryHeader>,
    ) -> Option<Bytes> {
        let place = self.places.get(self.next).copied().flatten();
        self.next += 1;
        let taken = place.and_then(|place| self.take(place, header));
        self.scattered |= taken.is_none();
        taken
    }

    fn take(
        &mut self,
        (number, at): PackPosition,
        header: impl FnOnce(&[u8], u32) -> Option<EntryHeader>,
    ) -> Option<Bytes> {
        let pack = self.packs.get(number)?;
        let header = header(pack.bytes.get(at..)?, pack.salt)?;
        if !header.is_raw_and_short() {
            return None;
        }
        let (begin, end) = (at + ENTRY_HEADER_LEN, at + header.stride() as usize);
        let stored = begin..begin + header.stored_len as usize;
        header.check_stored(pack.bytes.get(stored.clone())?).ok()?;
        self.scattered |= self.end.is_some_and(|end| end != (number, at));
        self.end = Some((number, end));
        Some(pack.bytes.slice(stored))
    }

    /// The run after the blobs, if all were taken and are contiguous.
    pub(super) fn run(&self) -> Option<Run> {
        let (number, at) = self.end.filter(|_| self.is_done() && !self.scattered)?;
        let pack = self.packs.get(number)?;
        Some(Run::new(Arc::clone(&pack.media), pack.salt, at as u64))
    }

    fn ask(&self, wanted: &[Wanted]) {
        let mut all = 0;
        for (wanted, place) in wanted.iter().zip(&self.places) {
            let Some((pack, at)) = *place else { continue };
            let Some(entry) = self.packs[pack].bytes.get(at..) else { continue };
            let len = wanted.len.min(ASK_MAX) as usize + ENTRY_HEADER_LEN;
            let lines = entry.iter().take(len).step_by(LINE_LEN);
            all = lines.fold(all, |all, byte| all ^ byte);
        }
        black_box(all);
    }
}
