//! Postings: the locations of one topic's frames in a segment, as LEB128 differences that can be
//! read from either end. The same bytes are used in a `.top` file and in memory.

use bytes::Bytes;

/// Maximum length of a u32 in LEB128.
const LEB_LEN_MAX: usize = 5;

/// The location of one frame in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Posting {
    /// Its offset, less the segment's base.
    pub(crate) delta: u32,
    /// The position of its record divided by 8.
    pub(crate) slot: u32,
}

impl Posting {
    /// The position of the record in the file.
    pub(crate) const fn position(self) -> u64 {
        self.slot as u64 * 8
    }
}

/// Appends `next`, which follows `last`.
pub(crate) fn push(out: &mut Vec<u8>, last: Posting, next: Posting) {
    push_leb(out, next.delta.wrapping_sub(last.delta));
    push_leb(out, next.slot.wrapping_sub(last.slot));
}

/// Appends a number in LEB128.
pub(super) fn push_leb(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A run of postings: their bytes, the posting before the first (zero when there is none), and the
/// last one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Chunk {
    pub(crate) bytes: Bytes,
    pub(crate) before: Posting,
    pub(crate) last: Posting,
}

impl Chunk {
    /// The postings from the first to the last.
    pub(crate) fn forward(self) -> Forward {
        Forward { at: 0, current: self.before, bytes: self.bytes }
    }

    /// The postings from the last to the first.
    pub(crate) fn backward(self) -> Backward {
        Backward { end: self.bytes.len(), current: self.last, bytes: self.bytes }
    }
}

/// Reads a chunk from its beginning. Ends early at invalid bytes.
#[derive(Debug)]
pub(crate) struct Forward {
    bytes: Bytes,
    at: usize,
    current: Posting,
}

impl Forward {
    fn leb(&mut self) -> Option<u32> {
        leb(&self.bytes, &mut self.at)
    }
}

/// Reads a LEB128 number and advances `at` past it.
pub(super) fn leb(bytes: &[u8], at: &mut usize) -> Option<u32> {
    let mut value = 0u32;
    for shift in 0..LEB_LEN_MAX as u32 {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u32::from(byte & 0x7f) << (7 * shift);
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

impl Iterator for Forward {
    type Item = Posting;

    fn next(&mut self) -> Option<Posting> {
        let (delta, slot) = (self.leb()?, self.leb()?);
        self.current.delta = self.current.delta.checked_add(delta)?;
        self.current.slot = self.current.slot.checked_add(slot)?;
        Some(self.current)
    }
}

/// Reads a chunk from its end. Ends early at invalid bytes.
#[derive(Debug)]
pub(crate) struct Backward {
    bytes: Bytes,
    end: usize,
    current: Posting,
}

impl Backward {
    /// The number that ends where the unread bytes end: its last byte has no high bit, and the
    /// preceding bytes that have it belong to it.
    fn leb(&mut self) -> Option<u32> {
        let mut value = 0u32;
        for read in 0..LEB_LEN_MAX {
            let byte = self.end.checked_sub(1).and_then(|at| self.bytes.get(at).copied());
            let Some(byte) = byte.filter(|&byte| (byte < 0x80) == (read == 0)) else {
                return (read > 0).then_some(value);
            };
            self.end -= 1;
            value = value << 7 | u32::from(byte & 0x7f);
        }
        Some(value)
    }
}

impl Iterator for Backward {
    type Item = Posting;

    fn next(&mut self) -> Option<Posting> {
        let found = (self.end > 0).then_some(self.current)?;
        let (slot, delta) = (self.leb()?, self.leb()?);
        self.current = Posting {
            delta: found.delta.saturating_sub(delta),
            slot: found.slot.saturating_sub(slot),
        };
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_agree() {
        let steps = [0, 1, 127, 128, 16_383, 16_384, 1 << 21, 1 << 27, 1 << 28, 5];
        let mut last = Posting::default();
        let (mut bytes, mut all) = (Vec::new(), Vec::new());
        for (n, &step) in steps.iter().enumerate() {
            let slot = last.slot + steps[steps.len() - 1 - n];
            let next = Posting { delta: last.delta + step, slot };
            push(&mut bytes, last, next);
            all.push(next);
            last = next;
        }
        let chunk = Chunk { bytes: Bytes::from(bytes), before: Posting::default(), last };
        assert_eq!(chunk.clone().forward().collect::<Vec<_>>(), all);
        all.reverse();
        assert_eq!(chunk.backward().collect::<Vec<_>>(), all);
    }

    #[test]
    fn nonsense_ends_the_run() {
        for bytes in [&[0x80u8; 16][..], &[0xff; 9], &[1], &[0x80], &[1, 0x80, 0x80]] {
            let chunk = Chunk { bytes: Bytes::copy_from_slice(bytes), ..Chunk::default() };
            assert!(chunk.clone().forward().count() <= 1);
            assert!(chunk.backward().count() <= bytes.len());
        }
    }
}
