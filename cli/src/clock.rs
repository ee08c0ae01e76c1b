//! The machine's clock, and events that are ahead of it. Ids ascend whatever the clock does, so
//! after a wrong clock a store continues from the time it had reached, and everything that uses the
//! time of events is off too.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use xs_engine::FrameId;

/// Clocks of different machines may differ by this much.
const AHEAD_MAX: Duration = Duration::from_secs(5 * 60);

/// Milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A warning if the newest event with this id is ahead of this machine's clock.
pub(crate) fn ahead(newest: FrameId) -> Option<String> {
    let at = Duration::from_millis(newest.time_ms());
    let ahead =
        at.checked_sub(Duration::from_millis(now_ms())).filter(|ahead| *ahead > AHEAD_MAX)?;
    let seconds = i64::try_from(at.as_secs()).unwrap_or(i64::MAX);
    let at = Timestamp::from_second(seconds).map_or_else(|_| "?".to_owned(), |at| at.to_string());
    Some(format!(
        "the newest event is of {at}, {} ahead of this clock: new ids continue from there, and \
         --since, --until and ttl time: use those times; if the clock was wrong then, xs export \
         and xs import --new-ids into a new store (xs help operations)",
        length(ahead)
    ))
}

/// A duration in the largest unit that fits at least twice.
fn length(time: Duration) -> String {
    const UNITS: [(u64, &str); 4] =
        [(365 * 24 * 3600, "years"), (24 * 3600, "days"), (3600, "hours"), (60, "minutes")];
    let seconds = time.as_secs();
    let unit = UNITS.iter().find(|(unit, _)| seconds >= 2 * unit);
    unit.map_or_else(|| format!("{seconds} s"), |(unit, name)| format!("{} {name}", seconds / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ahead_of_now: i64) -> FrameId {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let seconds = now.as_secs().checked_add_signed(ahead_of_now).unwrap();
        FrameId::first_of_ms(seconds * 1000)
    }

    #[test]
    fn a_clock_that_is_a_little_behind_is_no_matter() {
        assert_eq!((ahead(of(-60)), ahead(of(0)), ahead(of(240))), (None, None, None));
        let text = ahead(of(31 * 365 * 24 * 3600 + 60)).unwrap();
        assert!(text.contains("31 years ahead of this clock"), "{text}");
        assert!(ahead(FrameId::MAX).unwrap().contains("years ahead"));
    }

    #[test]
    fn lengths_are_told_in_what_they_have_two_of() {
        let told = |seconds| length(Duration::from_secs(seconds));
        assert_eq!((told(90), told(301)), ("90 s".to_owned(), "5 minutes".to_owned()));
        assert_eq!((told(7200), told(90 * 24 * 3600)), ("2 hours".into(), "90 days".into()));
    }
}
