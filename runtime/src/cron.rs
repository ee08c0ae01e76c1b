//! Cron expressions: five fields as in crontab(5), and the next time that matches in a time zone.
//! Has no clock.

use jiff::civil::{Date, Time};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{Timestamp, ToSpan as _};

/// Days searched before an expression counts as one that never matches: the next 29 February on a
/// given day of the week may be 40 years away.
const DAYS_MAX: u32 = 41 * 366;
/// Maximum bytes of an expression.
const BYTES_MAX: usize = 256;

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// Why a text is not a cron expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CronError {
    /// There are not five fields.
    #[error(
        "{0:?} is not a cron expression; write five fields: minute hour day month weekday, \
         as in \"0 9 * * mon-fri\""
    )]
    Fields(String),
    /// A field cannot be read.
    #[error("{field:?} is not a valid {name}; use {min} to {max}, *, lists, ranges or steps")]
    Field {
        /// The field.
        field: String,
        /// Its name.
        name: &'static str,
        /// The smallest value.
        min: u32,
        /// The largest value.
        max: u32,
    },
    /// The zone is not known.
    #[error("{0:?} is not a time zone; write one such as \"Europe/Paris\" or \"UTC\"")]
    Zone(String),
    /// No day matches.
    #[error("the cron expression never matches")]
    Never,
}

/// A set of numbers below 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Set(u64);

const EVERY_HOUR: Set = Set((1 << 24) - 1);

impl Set {
    const fn has(self, value: u32) -> bool {
        self.0 >> value & 1 == 1
    }
}

/// A cron expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cron {
    minutes: Set,
    hours: Set,
    days: Set,
    months: Set,
    weekdays: Set,
    /// Whether a day need match only its day of the month or its weekday: true if both are
    /// restricted.
    either: bool,
}

impl Cron {
    /// Parses an expression.
    ///
    /// # Errors
    /// [`CronError`] names the field that cannot be read.
    pub(crate) fn parse(text: &str) -> Result<Self, CronError> {
        let fields = || CronError::Fields(text.chars().take(BYTES_MAX).collect());
        if text.len() > BYTES_MAX {
            return Err(fields());
        }
        let named = match text.trim() {
            "@hourly" => "0 * * * *",
            "@daily" | "@midnight" => "0 0 * * *",
            "@weekly" => "0 0 * * 0",
            "@monthly" => "0 0 1 * *",
            "@yearly" | "@annually" => "0 0 1 1 *",
            other => other,
        };
        let parts: Vec<&str> = named.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = parts[..] else { return Err(fields()) };
        let either = !days.starts_with('*') && !weekdays.starts_with('*');
        let of_week = Field { name: "weekday", min: 0, max: 7, words: &DAYS, first: 0 };
        let Set(week) = of_week.parse(weekdays)?;
        Ok(Self {
            minutes: Field::plain("minute", 0, 59).parse(minutes)?,
            hours: Field::plain("hour", 0, 23).parse(hours)?,
            days: Field::plain("day", 1, 31).parse(days)?,
            months: Field { name: "month", min: 1, max: 12, words: &MONTHS, first: 1 }
                .parse(months)?,
            // Sunday is both 0 and 7.
            weekdays: Set(week | week >> 7 & 1),
            either,
        })
    }

    fn on(&self, date: Date) -> bool {
        let part = |value: i8| u32::try_from(value).unwrap_or_default();
        let day = self.days.has(part(date.day()));
        let weekday = self.weekdays.has(part(date.weekday().to_sunday_zero_offset()));
        let either = if self.either { day || weekday } else { day && weekday };
        self.months.has(part(date.month())) && either
    }

    /// The first match after `after_ms`, in milliseconds since the Unix epoch. A local time skipped
    /// by a clock change matches right after the change. One that occurs twice matches the first
    /// time, but with `*` for the hour both times, as in crontab(5): what is due every few minutes
    /// is due in the repeated hour too.
    ///
    /// # Errors
    /// [`CronError::Never`] when nothing matches.
    pub(crate) fn next(&self, after_ms: i64, zone: &TimeZone) -> Result<i64, CronError> {
        let after = Timestamp::from_millisecond(after_ms).map_err(|_| CronError::Never)?;
        let mut date = after.to_zoned(zone.clone()).date();
        for _ in 0..DAYS_MAX {
            if self.on(date)
                && let Some(found) = self.on_day(date, after, zone)
            {
                return Ok(found.as_millisecond());
            }
            date = date.checked_add(1.day()).map_err(|_| CronError::Never)?;
        }
        Err(CronError::Never)
    }

    fn on_day(&self, date: Date, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let small = |value: u32| i8::try_from(value).unwrap_or_default();
        let hours = (0..24).filter(|hour| self.hours.has(*hour));
        let minutes = |hour| (0..60).filter(|at| self.minutes.has(*at)).map(move |at| (hour, at));
        let times = hours.flat_map(minutes);
        let times = times.filter_map(|(hour, minute)| {
            let time = Time::new(small(hour), small(minute), 0, 0).ok()?;
            Some(zone.to_ambiguous_zoned(date.to_datetime(time)))
        });
        let first = times.clone().filter_map(|time| Some(time.compatible().ok()?.timestamp()));
        let first = first.filter(|time| *time > after).min();
        if self.hours != EVERY_HOUR || !is_longer(date, zone) {
            return first;
        }
        let folded = |offset| matches!(offset, AmbiguousOffset::Fold { .. });
        let again = times.filter(|time| folded(time.offset()));
        let again = again.filter_map(|time| Some(time.later().ok()?.timestamp()));
        first.into_iter().chain(again.filter(|time| *time > after)).min()
    }
}

/// Whether a part of the day occurs twice.
fn is_longer(date: Date, zone: &TimeZone) -> bool {
    let begins = |date: Date| Some(date.to_zoned(zone.clone()).ok()?.timestamp().as_second());
    let next = date.tomorrow().ok().and_then(begins);
    begins(date).zip(next).is_some_and(|(begins, next)| next - begins > 24 * 60 * 60)
}

/// The time zone of a name; the system's own without one.
///
/// # Errors
/// [`CronError::Zone`] when it is not known.
pub(crate) fn zone(name: Option<&str>) -> Result<TimeZone, CronError> {
    match name {
        None => Ok(TimeZone::system()),
        Some(name) => TimeZone::get(name).map_err(|_| CronError::Zone(name.to_owned())),
    }
}

/// One field of an expression.
struct Field {
    name: &'static str,
    min: u32,
    max: u32,
    words: &'static [&'static str],
    /// The number of the first word.
    first: u32,
}

impl Field {
    const fn plain(name: &'static str, min: u32, max: u32) -> Self {
        Self { name, min, max, words: &[], first: 0 }
    }

    fn parse(&self, text: &str) -> Result<Set, CronError> {
        let mut parts = text.split(',').map(|part| self.part(part));
        let set = parts.try_fold(0, |set, part| Some(set | part?));
        set.map(Set).ok_or_else(|| CronError::Field {
            field: text.to_owned(),
            name: self.name,
            min: self.min,
            max: self.max,
        })
    }

    /// `*`, a value or a range, with or without a step.
    fn part(&self, text: &str) -> Option<u64> {
        let (range, step) = match text.split_once('/') {
            Some((range, step)) => (range, step.parse().ok().filter(|step| *step > 0)?),
            None => (text, 1),
        };
        let (low, high) = match range.split_once('-') {
            _ if range == "*" => (self.min, self.max),
            Some((low, high)) => (self.value(low)?, self.value(high)?),
            // A value with a step extends to the maximum.
            None if range.len() < text.len() => (self.value(range)?, self.max),
            None => (self.value(range)?, self.value(range)?),
        };
        if low > high {
            return None;
        }
        Some((low..=high).step_by(step).fold(0, |set, value| set | 1 << value))
    }

    fn value(&self, text: &str) -> Option<u32> {
        let word = self.words.iter().position(|word| word.eq_ignore_ascii_case(text));
        let value = match word {
            Some(at) => self.first + u32::try_from(at).ok()?,
            None => text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())??,
        };
        (self.min..=self.max).contains(&value).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(text: &str, zone_name: &str, after: &str) -> String {
        let zone = zone(Some(zone_name)).unwrap();
        let after: Timestamp = after.parse().unwrap();
        let found = Cron::parse(text).unwrap().next(after.as_millisecond(), &zone);
        found.map_or_else(
            |error| error.to_string(),
            |ms| Timestamp::from_millisecond(ms).unwrap().to_string(),
        )
    }

    #[test]
    fn expressions_come_true_when_they_say() {
        for (text, after, want) in [
            ("* * * * *", "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"),
            ("* * * * *", "2026-01-01T00:00:59.999Z", "2026-01-01T00:01:00Z"),
            ("*/15 * * * *", "2026-01-01T00:46:00Z", "2026-01-01T01:00:00Z"),
            ("5/20 * * * *", "2026-01-01T00:26:00Z", "2026-01-01T00:45:00Z"),
            ("30 9 * * mon-fri", "2026-01-02T09:30:00Z", "2026-01-05T09:30:00Z"),
            ("0 0 * * 7", "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z"),
            ("0 0 * * SUN", "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z"),
            ("0 0 13 * 5", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
            ("0 0 31 2,4,12 *", "2026-01-01T00:00:00Z", "2026-12-31T00:00:00Z"),
            ("0 0 29 feb *", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("@monthly", "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"),
            ("0 0 30 2 *", "2026-01-01T00:00:00Z", "the cron expression never matches"),
        ] {
            assert_eq!(next(text, "UTC", after), want, "{text}");
        }
    }

    #[test]
    fn a_change_of_the_clock_leaves_nothing_out_and_doubles_nothing() {
        // Berlin goes from 2:00 to 3:00 on 29 March 2026 and from 3:00 to 2:00 on 25 October.
        let at = |after: &str| next("30 2 * * *", "Europe/Berlin", after);
        assert_eq!(at("2026-03-28T12:00:00Z"), "2026-03-29T01:30:00Z");
        assert_eq!(at("2026-03-29T01:30:00Z"), "2026-03-30T00:30:00Z");
        assert_eq!(at("2026-10-24T12:00:00Z"), "2026-10-25T00:30:00Z");
        assert_eq!(at("2026-10-25T00:30:00Z"), "2026-10-26T01:30:00Z");
    }

    #[test]
    fn what_is_due_in_every_hour_is_due_in_one_that_is_repeated() {
        let mut at = "2026-10-25T00:29:00Z".to_owned();
        for want in ["00:30", "00:45", "01:00", "01:15", "01:30", "01:45", "02:00", "02:15"] {
            at = next("*/15 * * * *", "Europe/Paris", &at);
            assert_eq!(at, format!("2026-10-25T{want}:00Z"));
        }
        // Half an hour is repeated here.
        let at = |after: &str| next("10 * * * *", "Australia/Lord_Howe", after);
        assert_eq!(at("2026-04-04T14:41:00Z"), "2026-04-04T15:40:00Z");
        assert_eq!(at("2026-04-04T14:00:00Z"), "2026-04-04T14:10:00Z");
        assert_eq!(next("@hourly", "Europe/Paris", "2026-10-25T00:00:00Z"), "2026-10-25T01:00:00Z");
        // Not every hour: once.
        let at = |after: &str| next("0 1-3 * * *", "Europe/Paris", after);
        assert_eq!(at("2026-10-25T00:00:00Z"), "2026-10-25T02:00:00Z");
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in [
            "",
            "* * * *",
            "* * * * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "* * * * 8",
            "a * * * *",
            "*/0 * * * *",
            "5-1 * * * *",
            "1- * * * *",
            "-1 * * * *",
            ", * * * *",
            "+1 * * * *",
            "@never",
        ] {
            assert!(Cron::parse(text).is_err(), "{text}");
        }
        assert!(Cron::parse(&"1,".repeat(200)).is_err());
        assert!(zone(Some("Mars/Base")).is_err());
    }
}
