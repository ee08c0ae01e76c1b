//! Scans a file for the first match of a magic, where no index says where it is.

use std::io;

use super::Media;

/// Bytes scanned at a time.
const WINDOW_LEN: u64 = 1024 * 1024;
/// Extra bytes available after the window: no header is longer.
const OVERLAP_LEN: u64 = 128;

/// The result of `read` at the first position from `from` on, in steps of 8, that begins with
/// `magic` and for which `read` returns a value. `None` if there is no such position.
///
/// # Errors
/// The I/O error, when the file cannot be read that far.
pub(crate) fn find_first<T>(
    media: &dyn Media,
    from: u64,
    magic: &[u8],
    read: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<Option<T>> {
    let mut at = from;
    // Bytes known to be zero contain no magic.
    let end = media.published().min(media.zero_from());
    while at < end {
        let upto = (at + WINDOW_LEN).min(end);
        let bytes = media.view(at..(upto + OVERLAP_LEN).min(media.published()))?;
        let len = (upto - at) as usize;
        let mut places = (0..len).step_by(8).filter(|&at| bytes[at..].starts_with(magic));
        if let Some(found) = places.find_map(|at| read(&bytes[at..])) {
            return Ok(Some(found));
        }
        at = upto;
    }
    Ok(None)
}
