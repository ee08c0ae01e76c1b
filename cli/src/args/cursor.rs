//! Cursors as they are typed: their names, where they are put, and who moves one while reading.

use clap::ValueHint;
use std::ffi::OsString;
use std::time::Duration;

use xs_engine::{Bound, CursorName, Topic};

use super::SureArgs;
use super::read::{Begin, PatternArgs, bound, count};
use super::script::WhereArgs;
use super::time::duration;

/// Attempts of one frame, at most.
const RETRIES_MAX: u64 = 1000;

/// `xs cursor`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum CursorSubcommand {
    /// List cursors and how many events, of all topics, each has yet to read.
    #[command(after_help = "Example:\n  xs cursor list ./store")]
    List,
    /// Show one cursor with its state.
    #[command(after_help = "Example:\n  xs cursor get mailer")]
    Get {
        /// The cursor's name.
        #[arg(value_parser = CursorName::parse)]
        name: CursorName,
    },
    /// Move a cursor, or create it. An existing cursor keeps its state.
    #[command(after_help = "\
Examples:
  xs cursor set mailer first                        read everything again
  xs cursor set mailer head                         skip what is stored
  xs cursor set mailer 03g4a5lk7bc9ucnxswp2nn1gj    continue with this event")]
    Set {
        /// The cursor's name.
        #[arg(value_parser = own_cursor)]
        name: CursorName,
        /// The next event to read: first, head, an id or an offset.
        #[arg(value_name = "PLACE", value_parser = target)]
        target: CursorTarget,
        /// Move the cursor only if it has this revision; 0: only if it does not exist.
        #[arg(long, value_name = "REVISION")]
        expect: Option<u64>,
    },
    /// Delete a cursor and its state.
    #[command(after_help = "Example:\n  xs cursor rm mailer --yes")]
    Rm {
        /// The cursor's name.
        #[arg(value_parser = own_cursor)]
        name: CursorName,
        #[command(flatten)]
        sure: SureArgs,
    },
}

/// Where a cursor is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CursorTarget {
    /// Before everything.
    First,
    /// Behind everything.
    Head,
    /// Before an event.
    Before(Bound),
}

fn target(text: &str) -> Result<CursorTarget, String> {
    match text {
        "first" => Ok(CursorTarget::First),
        "head" => Ok(CursorTarget::Head),
        other => bound(other).map(CursorTarget::Before).map_err(|_| {
            "expected: first, head, an id of 25 digits and letters or an offset".to_owned()
        }),
    }
}

/// The name of a cursor that is moved by hand. A processor would lose its state with its position,
/// or be given one that is not of it, while it runs.
fn own_cursor(text: &str) -> Result<CursorName, String> {
    match text.strip_prefix("xs.").map(|rest| rest.split_once('.').unwrap_or(("", rest))) {
        Some((_, rest)) => {
            let name = rest.split(':').next().unwrap_or(rest);
            Err(format!("the cursor belongs to a module; xs modules reset {name} starts it over"))
        }
        None => CursorName::parse(text).map_err(|error| error.to_string()),
    }
}

/// The name of a cursor that a reader moves, which is none of a processor's.
pub(crate) fn reader_cursor(text: &str) -> Result<CursorName, String> {
    if text.starts_with("xs.") {
        return Err("the cursor belongs to a processor; choose another name".to_owned());
    }
    CursorName::parse(text).map_err(|error| error.to_string())
}

/// `xs each`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Examples:
  xs each alerts. --cursor pager -f -- ./page-me
  xs each photos --cursor thumbs -- sh -c 'convert - thumbs/$XS_ID.png'
  xs each orders -f --cursor bill --retry 5 --park orders.failed -- ./bill
  xs each orders -f --where 'f.meta.total > 100' -- ./thank

The command gets the body on standard input, and XS_ID, XS_TOPIC, XS_META, XS_OFFSET, XS_HASH and
XS_ADDR in its environment. The cursor moves when the command exits with 0, so each event is handled
at least once. A failed command is retried (--retry); after that the event is parked (--park), or xs
each stops, and the next run starts with that event.
One command runs at a time, so events stay in order. To work in parallel, give each worker its own
topic and cursor.
--limit and --last count only events that match --where.")]
pub(crate) struct EachArgs {
    #[command(flatten)]
    pub(crate) patterns: PatternArgs,
    #[command(flatten)]
    pub(crate) begin: Begin,
    /// Keep running and handle new events as they are appended.
    #[arg(short = 'f', long)]
    pub(crate) follow: bool,
    /// Like --follow, and whenever no server answers, wait for it and continue from the same event;
    /// a store directory is waited for until xs serve serves it. Ephemeral events appended in
    /// between are missed.
    #[arg(short = 'F', long)]
    pub(crate) reconnect: bool,
    /// Continue from this cursor and move it. Without a cursor no position is saved.
    #[arg(long, value_name = "NAME", value_parser = reader_cursor)]
    pub(crate) cursor: Option<CursorName>,
    /// Stop after N events.
    #[arg(long, value_name = "N", value_parser = count(0..=u64::MAX))]
    pub(crate) limit: Option<u64>,
    #[command(flatten)]
    pub(crate) filter: WhereArgs,
    /// Retry a failed command up to N times, after 1 s, 2 s, 4 s and so on, at most 30 s.
    #[arg(long, value_name = "N", default_value_t = 0,
        value_parser = count(0..=RETRIES_MAX))]
    pub(crate) retry: u64,
    /// Kill a command that runs longer than this; that counts as a failure.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,
    /// When an event fails for good, append a record of it, with its body, to this topic and
    /// continue. TOPICS must not match it; without TOPICS it is skipped.
    #[arg(long, value_name = "TOPIC")]
    pub(crate) park: Option<Topic>,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND",
        value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<OsString>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_word_an_id_or_an_offset() {
        assert_eq!(target("first"), Ok(CursorTarget::First));
        assert_eq!(target("head"), Ok(CursorTarget::Head));
        assert_eq!(target("7"), Ok(CursorTarget::Before(Bound::Offset(7))));
        assert!(target("03g4a5lk7bc9ucnxswp2nn1gj").is_ok() && target("last").is_err());
    }

    #[test]
    fn the_cursors_of_processors_are_left_alone() {
        assert!(reader_cursor("mailer").is_ok() && own_cursor("mailer").is_ok());
        for name in ["xs.handler.a.b", "xs.generator.a.b:tail"] {
            assert!(own_cursor(name).unwrap_err().contains("modules reset a.b starts"), "{name}");
        }
        assert!(own_cursor("xs.a").is_err() && own_cursor("").is_err());
        for name in ["xs.handler.a", "xs.generator.a:tail", "xs.a", ""] {
            assert!(reader_cursor(name).is_err(), "{name}");
        }
    }
}
