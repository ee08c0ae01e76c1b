//! Looking through a file for the first thing of a kind, where nothing else tells where it is.

use super::Media;

/// Bytes looked through at a time.
const WINDOW_LEN: u64 = 1024 * 1024;
/// Bytes behind them that are at hand: no header is longer.
const OVERLAP_LEN: u64 = 128;

/// What `read` makes of the first place from `from` on, in steps of 8, that begins with `magic` and
/// that it accepts. Nothing when there is none, or when the file cannot be read that far.
pub(crate) fn find_first<T>(
    media: &dyn Media,
    from: u64,
    magic: &[u8],
    read: impl Fn(&[u8]) -> Option<T>,
) -> Option<T> {
    let mut at = from;
    while at < media.published() {
        let upto = (at + WINDOW_LEN).min(media.published());
        let bytes = media.view(at..(upto + OVERLAP_LEN).min(media.published())).ok()?;
        let len = (upto - at) as usize;
        let mut places = (0..len).step_by(8).filter(|&at| bytes[at..].starts_with(magic));
        if let Some(found) = places.find_map(|at| read(&bytes[at..])) {
            return Some(found);
        }
        at = upto;
    }
    None
}
