//! File descriptors: a server takes as many as the system lets it have, and no more connections
//! than leave enough for its store. Without one the store cannot begin its next segment.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use xs_protocol::limits::CONNECTIONS_MAX;

/// Descriptors that serve all connections that are allowed, and all else.
const WANTED: u64 = 65_536;

/// Raises the limit of this process; how many connections it then may have.
pub(super) fn connections() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(WANTED, |hard| hard.min(WANTED));
    let raised = Rlimit { current: Some(wanted), ..limit };
    let has = match limit.current {
        Some(soft) if soft < wanted && setrlimit(Resource::Nofile, raised).is_ok() => wanted,
        Some(soft) => soft,
        None => WANTED,
    };
    allowed(has)
}

/// Three quarters of them: the others are for the store and for uploads.
fn allowed(descriptors: u64) -> usize {
    usize::try_from(descriptors / 4 * 3).unwrap_or(usize::MAX).clamp(1, CONNECTIONS_MAX)
}

/// How many uploads may have a file each: an eighth of the descriptors, and `most` at most.
pub(super) fn uploads(most: usize) -> usize {
    let has = getrlimit(Resource::Nofile).current.unwrap_or(WANTED);
    usize::try_from(has / 8).unwrap_or(usize::MAX).clamp(1, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_the_store_what_it_needs() {
        for (descriptors, expected) in [(0, 1), (1024, 768), (4096, 3072), (20_000, 12_000)] {
            assert_eq!(allowed(descriptors), expected);
        }
        assert_eq!(allowed(u64::MAX), CONNECTIONS_MAX);
    }
}
