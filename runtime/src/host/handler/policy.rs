//! What to do with a frame whose handler threw. Decides from the definition's `onError`, the kind
//! of error and the number of attempts; acts on nothing itself.

use std::time::Duration;

use crate::isolate::limits::DURATION_MAX;
use crate::isolate::{LastResort, OnError, Verdict};

/// The first and the longest delay for a handler that throws `Retry` without naming one.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// What to do with the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// The handler ends; the frame stays the next one.
    Unregister,
    /// The frame is skipped.
    Skip,
    /// The frame is recorded and skipped.
    Park,
    /// It is retried after this delay.
    Retry(Duration),
}

/// Decides about a frame that has failed at attempt number `attempt`.
pub(super) fn decide(on_error: OnError, verdict: Verdict, attempt: u32) -> Decision {
    match (verdict, on_error) {
        (Verdict::Park, _) => Decision::Park,
        (Verdict::Policy, OnError::Now(resort)) => last_resort(resort),
        (Verdict::Policy, OnError::Retry { tries, then, .. }) if attempt > tries => {
            last_resort(then)
        }
        (Verdict::Retry { .. }, OnError::Retry { tries, then, .. }) if attempt > tries => {
            last_resort(then)
        }
        (Verdict::Retry { after_ms: Some(ms) }, _) => {
            Decision::Retry(Duration::from_millis(ms).min(DURATION_MAX))
        }
        (_, OnError::Retry { backoff, backoff_max, .. }) => {
            Decision::Retry(wait(backoff, backoff_max, attempt))
        }
        (Verdict::Retry { after_ms: None }, OnError::Now(_)) => {
            Decision::Retry(wait(RETRY_FIRST, RETRY_MAX, attempt))
        }
    }
}

fn wait(first: Duration, longest: Duration, attempt: u32) -> Duration {
    let doublings = attempt.saturating_sub(1).min(20);
    first.saturating_mul(1 << doublings).min(longest)
}

const fn last_resort(resort: LastResort) -> Decision {
    match resort {
        LastResort::Unregister => Decision::Unregister,
        LastResort::Skip => Decision::Skip,
        LastResort::Park => Decision::Park,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETRY: OnError = OnError::Retry {
        tries: 2,
        backoff: Duration::from_secs(2),
        backoff_max: Duration::from_secs(3),
        then: LastResort::Park,
    };

    #[test]
    fn the_definition_decides() {
        let now = |resort| decide(OnError::Now(resort), Verdict::Policy, 1);
        assert_eq!(decide(OnError::default(), Verdict::Policy, 1), Decision::Unregister);
        assert_eq!(now(LastResort::Skip), Decision::Skip);
        assert_eq!(now(LastResort::Park), Decision::Park);
        let secs = |secs| Decision::Retry(Duration::from_secs(secs));
        let tries: Vec<_> = (1..=3).map(|n| decide(RETRY, Verdict::Policy, n)).collect();
        assert_eq!(tries, [secs(2), secs(3), Decision::Park]);
    }

    #[test]
    fn what_is_thrown_decides_first() {
        let after = Verdict::Retry { after_ms: Some(5) };
        let plain = Verdict::Retry { after_ms: None };
        let unregister = OnError::default();
        assert_eq!(decide(unregister, Verdict::Park, 1), Decision::Park);
        assert_eq!(decide(unregister, after, 99), Decision::Retry(Duration::from_millis(5)));
        let forever = Verdict::Retry { after_ms: Some(u64::MAX) };
        assert_eq!(decide(unregister, forever, 1), Decision::Retry(DURATION_MAX));
        assert_eq!(decide(unregister, plain, 1), Decision::Retry(RETRY_FIRST));
        assert_eq!(decide(unregister, plain, u32::MAX), Decision::Retry(RETRY_MAX));
        assert_eq!(decide(RETRY, after, 3), Decision::Park, "also these tries are counted");
    }
}
