//! The output queue: small pieces are copied together, large ones are queued by reference and
//! written in one vectored write. Knows headers only so far as to fill in a message's length.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::codec::{HEADER_LEN, Header, LEN_FIELD};

/// Pieces of at least this length are queued by reference: below it, a copy costs less than one
/// more entry in the vector that the kernel walks.
const SHARE_MIN: usize = 4 * 1024;
/// Entries of one vectored write.
pub(crate) const SLICES_MAX: usize = 64;
/// A drained buffer larger than this is freed.
const KEEP_MAX: usize = 64 * 1024;

/// A queue of outgoing bytes. Message by message: [`begin`](Gather::begin), any puts,
/// [`finish`](Gather::finish) or [`abandon`](Gather::abandon).
#[derive(Debug, Default)]
pub struct Gather {
    /// Complete pieces, before `tail`.
    chunks: VecDeque<Bytes>,
    chunks_len: usize,
    /// Copied bytes; the unfinished message begins in it at `start`.
    tail: BytesMut,
    start: usize,
    /// Shared pieces of the unfinished message, and where in `tail` each belongs.
    shared: Vec<(usize, Bytes)>,
    shared_len: usize,
}

impl Gather {
    /// Bytes queued.
    #[must_use]
    pub fn len(&self) -> usize {
        self.chunks_len + self.tail.len() + self.shared_len
    }

    /// Whether nothing is queued.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds bytes that belong to no message.
    pub fn put_raw(&mut self, bytes: &[u8]) {
        self.tail.put_slice(bytes);
    }

    /// Begins a message. Its length is filled in at the end.
    pub fn begin(&mut self, header: Header) {
        self.start = self.tail.len();
        header.encode(&mut self.tail);
    }

    /// Ends the message; returns the number of bytes of its body.
    pub fn finish(&mut self) -> usize {
        let total = self.message_len();
        // Bodies are built from parts whose limits add up to far less than 4 GiB.
        let len = (total - LEN_FIELD) as u32;
        let field = self.start..self.start + LEN_FIELD;
        self.tail[field].copy_from_slice(&len.to_le_bytes());
        let mut done = 0;
        for (at, piece) in self.shared.drain(..) {
            if at > done {
                let before = self.tail.split_to(at - done).freeze();
                self.chunks_len += before.len();
                self.chunks.push_back(before);
                done = at;
            }
            self.chunks_len += piece.len();
            self.chunks.push_back(piece);
        }
        self.shared_len = 0;
        self.start = self.tail.len();
        total - HEADER_LEN
    }

    /// Reserves room for pieces of these lengths, so that the buffer does not reallocate. Pieces
    /// that will be queued by reference need none.
    pub fn reserve(&mut self, pieces: impl Iterator<Item = usize>) {
        let copied = pieces.filter(|len| *len < SHARE_MIN).map(|len| len.next_multiple_of(8));
        self.tail.reserve(copied.sum());
    }

    /// Discards the unfinished message.
    pub fn abandon(&mut self) {
        self.tail.truncate(self.start);
        self.shared.clear();
        self.shared_len = 0;
    }

    /// Bytes of the unfinished message so far, header included.
    #[must_use]
    pub fn message_len(&self) -> usize {
        self.tail.len() - self.start + self.shared_len
    }

    /// Adds bytes, by reference when there are many.
    pub fn put_shared(&mut self, bytes: &Bytes) {
        if bytes.len() < SHARE_MIN {
            self.tail.put_slice(bytes);
        } else {
            self.shared_len += bytes.len();
            self.shared.push((self.tail.len(), bytes.clone()));
        }
    }

    /// Adds zeros up to the next multiple of 8 bytes of the message.
    pub fn pad8(&mut self) {
        let len = self.message_len();
        self.tail.put_bytes(0, len.next_multiple_of(8) - len);
    }

    /// A place in the message where a number will be filled in by [`Gather::patch_u32`].
    #[must_use]
    pub fn mark(&self) -> usize {
        self.tail.len()
    }

    /// Fills in a number at a [`Gather::mark`] of the unfinished message.
    pub fn patch_u32(&mut self, mark: usize, value: u32) {
        self.tail[mark..mark + size_of::<u32>()].copy_from_slice(&value.to_le_bytes());
    }

    /// Points `slices` at the bytes to write next; returns how many entries were set.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES_MAX]) -> usize {
        let mut used = 0;
        let tail = std::iter::once(self.tail.as_ref()).filter(|tail| !tail.is_empty());
        let pieces = self.chunks.iter().map(AsRef::as_ref).chain(tail);
        for (slot, piece) in slices.iter_mut().zip(pieces) {
            *slot = IoSlice::new(piece);
            used += 1;
        }
        used
    }

    /// Removes `count` bytes, which were written, from the front.
    pub fn advance(&mut self, mut count: usize) {
        while let Some(front) = self.chunks.front_mut() {
            if count < front.len() {
                front.advance(count);
                self.chunks_len -= count;
                return;
            }
            count -= front.len();
            self.chunks_len -= front.len();
            self.chunks.pop_front();
        }
        if count < self.tail.len() {
            self.tail.advance(count);
        } else if self.tail.capacity() > KEEP_MAX {
            self.tail = BytesMut::new();
        } else {
            self.tail.clear();
        }
        self.start = self.tail.len();
    }

    /// Everything queued, as one piece.
    pub fn take_all(&mut self) -> Bytes {
        let mut all = BytesMut::with_capacity(self.len());
        self.chunks.drain(..).for_each(|chunk| all.put(chunk));
        all.put(self.tail.split());
        (self.chunks_len, self.start) = (0, 0);
        all.freeze()
    }

    /// Adds a byte.
    pub fn put_u8(&mut self, value: u8) {
        self.tail.put_u8(value);
    }

    /// Adds a number.
    pub fn put_u16(&mut self, value: u16) {
        self.tail.put_u16_le(value);
    }

    /// Adds a number.
    pub fn put_u32(&mut self, value: u32) {
        self.tail.put_u32_le(value);
    }

    /// Adds a number.
    pub fn put_u64(&mut self, value: u64) {
        self.tail.put_u64_le(value);
    }

    /// Adds bytes by copying.
    pub fn put_slice(&mut self, bytes: &[u8]) {
        self.tail.put_slice(bytes);
    }

    /// Adds text with its length before it; text over 65,535 bytes is cut at a character boundary.
    pub fn put_str(&mut self, text: &str) {
        let text = cut(text, usize::from(u16::MAX));
        self.put_u16(text.len() as u16);
        self.put_slice(text.as_bytes());
    }
}

/// The longest prefix of `text` of at most `max` bytes that ends at a character boundary.
pub(crate) fn cut(text: &str, max: usize) -> &str {
    if text.len() <= max {
        return text;
    }
    let end = (0..=max).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Header;

    #[test]
    fn large_pieces_are_shared_and_order_is_kept() {
        let large = Bytes::from(vec![7u8; SHARE_MIN]);
        let mut out = Gather::default();
        for _ in 0..2 {
            out.begin(Header::default());
            out.put_u8(1);
            out.put_shared(&large);
            out.put_u8(2);
            out.put_shared(&large);
            assert_eq!(out.finish(), 2 + 2 * SHARE_MIN);
        }
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let used = out.slices(&mut slices);
        assert_eq!(used, 8, "head, piece, byte, piece, twice");
        assert_eq!(slices[1].as_ptr(), large.as_ptr());
        let total = out.len();
        let flat: Vec<u8> = slices[..used].iter().flat_map(|slice| slice.to_vec()).collect();
        assert_eq!(flat.len(), total);
        for step in [1, 15, SHARE_MIN, total - 16 - SHARE_MIN] {
            out.advance(step);
        }
        assert!(out.is_empty());
        assert_eq!(u32::from_le_bytes(flat[..4].try_into().unwrap()) as usize, total / 2 - 4);
        assert_eq!((flat[16], flat[17 + SHARE_MIN]), (1, 2));
    }

    #[test]
    fn an_abandoned_message_leaves_nothing() {
        let mut out = Gather::default();
        out.put_raw(b"before");
        out.begin(Header::default());
        out.put_shared(&Bytes::from(vec![0; SHARE_MIN]));
        out.put_str("text");
        out.abandon();
        assert_eq!(out.take_all(), Bytes::from_static(b"before"));
        assert_eq!(cut("a\u{e4}", 2), "a");
    }
}
