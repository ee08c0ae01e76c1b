//! Times and durations as people type them: `2h`, `yesterday`, `2026-11-24`, RFC 3339. Bare dates
//! and times are local. The clock is an argument, so a test decides what now is.

use std::time::Duration;

use jiff::civil::{Date, DateTime};
use jiff::{Span, SpanRelativeTo, Timestamp, ToSpan as _, Zoned};

/// The longest duration an option takes.
pub(crate) const DURATION_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Examples of the forms that a point in time has.
const FORMS: &str = "2h, yesterday, 2026-11-24, 2026-11-24T08:30, RFC 3339, 1795518000";

/// A point in time, in milliseconds since 1970.
///
/// # Errors
/// A sentence that says which forms are known.
pub(crate) fn point(text: &str, now: &Zoned) -> Result<u64, String> {
    let zoned = named(text, now)
        .or_else(|| text.parse::<Timestamp>().ok().map(|at| at.to_zoned(now.time_zone().clone())))
        .or_else(|| text.parse::<Zoned>().ok())
        .or_else(|| civil(text, now))
        .or_else(|| since_1970(text, now))
        .or_else(|| ago(text, now));
    zoned
        .and_then(|at| u64::try_from(at.timestamp().as_millisecond()).ok())
        .ok_or_else(|| format!("{text:?} is not a time: {FORMS}"))
}

/// Text that is a point in time whenever it is read: what it is relative to is decided later, so it
/// stays as it was typed.
///
/// # Errors
/// As for [`point`].
pub(crate) fn typed_point(text: &str) -> Result<String, String> {
    point_now(text).map(|_| text.to_owned())
}

/// A point in time as seen from now.
///
/// # Errors
/// As for [`point`].
pub(crate) fn point_now(text: &str) -> Result<u64, String> {
    point(text, &Zoned::now())
}

/// A length of time: `500ms`, `30s`, `2m`, `1h 30m`, `30d`, `2w`; a day has 24
/// hours.
///
/// # Errors
/// A sentence that says which forms are known.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<jiff::SignedDuration>().ok();
    let days = || text.parse::<Span>().ok()?.to_duration(SpanRelativeTo::days_are_24_hours()).ok();
    parsed
        .or_else(days)
        .and_then(|signed| Duration::try_from(signed).ok())
        .filter(|length| *length <= DURATION_MAX)
        .ok_or_else(|| format!("{text:?} is not a duration: 500ms, 30s, 2m, 1h, 30d, 2w"))
}

fn named(text: &str, now: &Zoned) -> Option<Zoned> {
    match text {
        "now" => Some(now.clone()),
        "today" => now.start_of_day().ok(),
        "yesterday" => now.checked_sub(1.day()).ok()?.start_of_day().ok(),
        _ => None,
    }
}

fn civil(text: &str, now: &Zoned) -> Option<Zoned> {
    let local = match text.parse::<Date>() {
        Ok(date) if text.len() == "2026-11-24".len() => date.at(0, 0, 0, 0),
        _ => text.parse::<DateTime>().ok()?,
    };
    local.to_zoned(now.time_zone().clone()).ok()
}

/// Ten digits are seconds and thirteen milliseconds, up to now: others are more likely a slip, or a
/// date without its hyphens.
fn since_1970(text: &str, now: &Zoned) -> Option<Zoned> {
    let digits = text.strip_prefix('@').unwrap_or(text);
    let number: i64 =
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())??;
    let at = match digits.len() {
        10 => Timestamp::from_second(number),
        13 => Timestamp::from_millisecond(number),
        _ => return None,
    };
    at.ok().filter(|at| *at <= now.timestamp()).map(|at| at.to_zoned(now.time_zone().clone()))
}

/// `-2h` means the same as `2h`: there is nothing to look for in the future.
fn ago(text: &str, now: &Zoned) -> Option<Zoned> {
    let span = text.strip_suffix(" ago").unwrap_or(text).parse::<Span>().ok()?;
    now.checked_sub(span.abs()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Result<String, String> {
        let now: Zoned = "2026-11-24T12:00:00+01:00[Europe/Paris]".parse().unwrap();
        point(text, &now)
            .map(|ms| Timestamp::from_millisecond(i64::try_from(ms).unwrap()).unwrap().to_string())
    }

    #[test]
    fn points_are_read_in_local_time() {
        for (text, expected) in [
            ("now", "2026-11-24T11:00:00Z"),
            ("today", "2026-11-23T23:00:00Z"),
            ("yesterday", "2026-11-22T23:00:00Z"),
            ("2h", "2026-11-24T09:00:00Z"),
            ("-2h", "2026-11-24T09:00:00Z"),
            ("1795510800", "2026-11-24T09:00:00Z"),
            ("@1795510800", "2026-11-24T09:00:00Z"),
            ("1795510800123", "2026-11-24T09:00:00.123Z"),
            ("1d 2h", "2026-11-23T09:00:00Z"),
            ("1w", "2026-11-17T11:00:00Z"),
            ("30 minutes ago", "2026-11-24T10:30:00Z"),
            ("2026-11-01", "2026-10-31T23:00:00Z"),
            ("2026-11-01T08:30", "2026-11-01T07:30:00Z"),
            ("2026-11-01 08:30:15", "2026-11-01T07:30:15Z"),
            ("2026-11-01T08:30:00Z", "2026-11-01T08:30:00Z"),
            ("2026-11-01T08:30:00-05:00", "2026-11-01T13:30:00Z"),
        ] {
            assert_eq!(at(text).as_deref(), Ok(expected), "{text}");
        }
        for bad in [
            "",
            "@",
            "soon",
            "5",
            "17955108001",
            "2026112408",
            "202611240830",
            "25:00",
            "1960-01-01",
            "2026-13-01",
        ] {
            assert!(at(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_have_a_largest() {
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("30d"), Ok(Duration::from_secs(30 * 86_400)));
        assert_eq!(duration("2w"), Ok(Duration::from_secs(14 * 86_400)));
        for bad in ["", "-1s", "5", "20y", "100000d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
