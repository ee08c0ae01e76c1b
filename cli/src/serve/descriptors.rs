//! File descriptors: a server takes as many as the system allows, and no more connections than
//! leave enough for its store. Without a descriptor the store cannot start its next segment.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use xs_protocol::limits::CONNECTIONS_MAX;

/// Enough descriptors for all allowed connections and everything else.
const WANTED: u64 = 65_536;

/// Raises the limit of this process; returns how many connections it allows.
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

/// Three quarters of the descriptors: the rest is for the store and for uploads.
fn allowed(descriptors: u64) -> usize {
    usize::try_from(descriptors / 4 * 3).unwrap_or(usize::MAX).clamp(1, CONNECTIONS_MAX)
}

/// How many uploads may have a file each: an eighth of the descriptors, but at most `most`.
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
