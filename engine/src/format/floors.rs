//! Which topics may have a floor: a filter of fixed size, in files and in memory. It has no false
//! negatives: a topic that is not in it has no floor.

use super::u64_at;

const WORDS: usize = 16;
/// Bytes of the filter in a file.
pub(crate) const FLOORS_LEN: usize = WORDS * size_of::<u64>();

/// The filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Floors(pub(crate) [u64; WORDS]);

impl Floors {
    /// Adds a topic.
    pub(crate) fn add(&mut self, topic: &[u8]) {
        let (word, bit) = place(topic);
        self.0[word] |= bit;
    }

    /// Appends the encoded filter.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        self.0.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
    }

    /// Reads the filter at a position.
    pub(crate) fn read(bytes: &[u8], at: usize) -> Option<Self> {
        let mut floors = Self::default();
        for (number, word) in floors.0.iter_mut().enumerate() {
            *word = u64_at(bytes, at + number * size_of::<u64>())?;
        }
        Some(floors)
    }
}

/// The word and the bit of a topic, from its length and its last bytes, in which names with a
/// common prefix differ.
pub(crate) fn place(topic: &[u8]) -> (usize, u64) {
    let last = topic.last_chunk().map_or_else(
        || topic.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte)),
        |last| u64::from_le_bytes(*last),
    );
    let mixed = (last ^ topic.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed >> 60) as usize % WORDS, 1 << (mixed >> 54 & 63))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_pinned() {
        let mut floors = Floors::default();
        floors.add(b"state");
        floors.add(b"metrics.cpu");
        let mut bytes = Vec::new();
        floors.encode(&mut bytes);
        assert_eq!(bytes.len(), FLOORS_LEN);
        assert_eq!(Floors::read(&bytes, 0), Some(floors));
        assert_eq!(Floors::read(&bytes, 1), None);
        assert_eq!((place(b"state"), place(b"metrics.cpu")), ((13, 1 << 13), (7, 1 << 62)));
    }
}
