//! Bytes to values and back: the layouts of docs/format.md. Takes slices and returns values; does
//! no I/O, and returns a value or a typed error for any input.
//!
//! What is public is what an independent program needs to read the files of a store: the layouts of
//! stored data, not of derived files, and the encoders that turn a value back into the bytes it was
//! read from. The fuzz targets check both directions.

#[cfg(feature = "store")]
pub mod batch;
#[cfg(feature = "store")]
pub mod control;
#[cfg(feature = "store")]
pub(crate) mod dead;
#[cfg(feature = "store")]
pub mod file;
#[cfg(feature = "store")]
pub(crate) mod floors;
#[cfg(feature = "store")]
pub(crate) mod index;
#[cfg(feature = "store")]
pub mod journal;
#[cfg(feature = "store")]
pub(crate) mod key_index;
#[cfg(feature = "store")]
pub mod pack;
#[cfg(feature = "store")]
pub mod pack_index;
#[cfg(feature = "store")]
pub(crate) mod postings;
pub mod record;
#[cfg(feature = "store")]
pub mod super_file;
#[cfg(feature = "store")]
pub(crate) mod topic_index;
#[cfg(feature = "store")]
pub(crate) mod topic_table;

/// Rounds `n` up to a multiple of 8.
#[must_use]
pub const fn align8(n: usize) -> usize {
    n.next_multiple_of(8)
}

/// Reads a fixed number of bytes at a position, or `None` when the slice is too short.
#[inline]
pub(crate) fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// Reads a u32 at a position.
#[inline]
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at(bytes, at).map(u32::from_le_bytes)
}

/// Reads a u64 at a position.
#[inline]
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes_at(bytes, at).map(u64::from_le_bytes)
}
