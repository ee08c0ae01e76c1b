//! What `top` is told.

use std::time::Duration;

use super::read::PatternArgs;
use super::time::duration;

/// The shortest and the longest time between two looks.
const EVERY_MIN: Duration = Duration::from_millis(100);
const EVERY_MAX: Duration = Duration::from_secs(3600);

/// `xs top`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Examples:
  xs top
  xs top ./store metrics. --sort bytes
  xs top --once | jq 'select(.topic)'

Keys: q quits; n c r b s sort by name, count, rate, bytes, last seen; / filters by part of the name
(Enter keeps the filter, Esc clears it); arrows, PgUp, PgDn and Home scroll. A handler's lag counts
the events of its topics that it has not handled, up to 1000. Each refresh visits every topic: with
a million topics use --every 1m.")]
pub(crate) struct TopArgs {
    #[command(flatten)]
    pub(crate) patterns: PatternArgs,
    /// Time between refreshes, from 100ms to 1h.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = every)]
    pub(crate) every: Duration,
    /// Sort topics by this column.
    #[arg(long, value_name = "KEY", default_value = "rate")]
    pub(crate) sort: TopSort,
    /// Only topics and modules whose name contains this.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub(crate) filter: String,
    /// Sample twice, print the result and exit. Needs no terminal.
    #[arg(long)]
    pub(crate) once: bool,
}

/// What rows of topics are sorted by: names from a to z, numbers from the largest down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum TopSort {
    /// Name of the topic.
    Name,
    /// Number of events.
    Count,
    /// Events per second.
    Rate,
    /// Bytes of events and bodies.
    Bytes,
    /// Time of the newest event.
    Seen,
}

fn every(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        every if (EVERY_MIN..=EVERY_MAX).contains(&every) => Ok(every),
        _ => Err("from 100ms to 1h".to_owned()),
    }
}
