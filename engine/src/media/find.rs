//! Looking through a file for the first thing of a kind, where nothing else tells where it is.

use std::io;

use super::Media;

/// Bytes looked through at a time.
const WINDOW_LEN: u64 = 1024 * 1024;
/// Bytes behind them that are at hand: no header is longer.
const OVERLAP_LEN: u64 = 128;

/// What `read` makes of the first place from `from` on, in steps of 8, that begins with `magic` and
/// that it accepts. Nothing when there is none.
///
/// # Errors
/// What the file answered, when it cannot be read that far.
pub(crate) fn find_first<T>(
    media: &dyn Media,
    from: u64,
    magic: &[u8],
    read: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<Option<T>> {
    let mut at = from;
    // What is known to be zero begins with no magic.
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
