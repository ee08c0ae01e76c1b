//! The maximum lengths of lists, for the room they take while they are built and their final length
//! is unknown.

use xs_engine::limits::CURSORS_MAX;
use xs_engine::{CursorSummary, Frame, TopicPattern};

use crate::limits::LAST_MAX;
use crate::message::LastRequest;

/// A growing list may allocate twice the length of its entries.
const GROWTH: usize = 2;
/// Bytes of a cursor with the longest name.
const CURSOR_BYTES: usize = size_of::<CursorSummary>() + 255;

/// Maximum bytes of the answer to a LAST while it is built.
pub(crate) fn bytes_of_last(last: &LastRequest) -> usize {
    let is_exact = |of: &TopicPattern| matches!(of, TopicPattern::Exact(_));
    let topics = last.topics.as_slice();
    let most = match last.per_topic {
        false => last.n,
        true if topics.iter().all(is_exact) => last.n.saturating_mul(topics.len() as u64),
        true => LAST_MAX,
    };
    GROWTH * size_of::<Frame>() * most.min(LAST_MAX) as usize
}

/// Maximum bytes of the newest frames of a gap while they are looked up.
pub(crate) const fn bytes_of_gap() -> usize {
    GROWTH * size_of::<u64>() * LAST_MAX as usize
}

/// Maximum bytes of the cursors of a store while they are listed.
pub(crate) const fn bytes_of_cursors() -> usize {
    GROWTH * CURSOR_BYTES * CURSORS_MAX
}

#[cfg(test)]
mod tests {
    use xs_engine::TopicPatterns;

    use super::*;
    use crate::limits::LISTS_BYTES_MAX;

    #[test]
    fn a_list_counts_as_long_as_it_may_become() {
        let bytes = |topics: &str, n, per_topic| {
            let topics = TopicPatterns::parse(topics).unwrap();
            bytes_of_last(&LastRequest { topics, n, per_topic }) / size_of::<Frame>()
        };
        assert_eq!(bytes("*", 300, false), 600);
        assert_eq!(bytes("a, b", 300, true), 1200);
        assert_eq!(bytes("a, b.*", 1, true), 2 * LAST_MAX as usize);
        assert_eq!(bytes("a, b", u64::MAX, true), 2 * LAST_MAX as usize);
        // Each fits into the total: a larger one would be counted as the total.
        let all = [bytes_of_gap(), bytes_of_cursors(), GROWTH * size_of::<Frame>() * 1_000_000];
        assert!(all.into_iter().all(|bytes| bytes <= LISTS_BYTES_MAX));
    }
}
