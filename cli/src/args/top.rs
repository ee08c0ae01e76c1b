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

Keys: q ends, n c r b s sort by name, count, rate, bytes, last seen; / filters by a part of the name
(Enter keeps it, Esc forgets it); arrows and PgUp, PgDn, Home scroll. A handler is behind by the
events of its topics that it has not seen, counted to 1000. Each look visits every topic: with a
million of them let --every be a minute.")]
pub(crate) struct TopArgs {
    #[command(flatten)]
    pub(crate) patterns: PatternArgs,
    /// Time between two looks, from 100ms to 1h.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = every)]
    pub(crate) every: Duration,
    /// What topics are sorted by.
    #[arg(long, value_name = "KEY", default_value = "rate")]
    pub(crate) sort: TopSort,
    /// Only topics and modules whose name holds this.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub(crate) filter: String,
    /// Look twice, print what there is, and end. Needs no terminal.
    #[arg(long)]
    pub(crate) once: bool,
}

/// What rows of topics are sorted by: names from a to z, numbers from the largest down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum TopSort {
    /// Its name.
    Name,
    /// How many events it holds.
    Count,
    /// Events a second.
    Rate,
    /// Bytes of its events and bodies.
    Bytes,
    /// When the newest event came.
    Seen,
}

fn every(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        every if (EVERY_MIN..=EVERY_MAX).contains(&every) => Ok(every),
        _ => Err("from 100ms to 1h".to_owned()),
    }
}
