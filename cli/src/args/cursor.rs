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
    /// List the cursors and how many events, of all topics, come after each.
    #[command(after_help = "Example:\n  xs cursor list ./store")]
    List,
    /// Show one cursor with its state.
    #[command(after_help = "Example:\n  xs cursor get mailer")]
    Get {
        /// The cursor's name.
        #[arg(value_parser = CursorName::parse)]
        name: CursorName,
    },
    /// Put a cursor before an event. It is made if it does not exist, otherwise it keeps its state.
    #[command(after_help = "\
Examples:
  xs cursor set mailer first                        read everything again
  xs cursor set mailer head                         skip what is stored
  xs cursor set mailer 03g4a5lk7bc9ucnxswp2nn1gj    go on with this event")]
    Set {
        /// The cursor's name.
        #[arg(value_parser = own_cursor)]
        name: CursorName,
        /// The next event to read: first, head, an id or an offset.
        #[arg(value_name = "PLACE", value_parser = target)]
        target: CursorTarget,
        /// Only if the cursor has this revision; 0: only if it does not exist.
        #[arg(long, value_name = "REVISION")]
        expect: Option<u64>,
    },
    /// Remove a cursor, its state included.
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
            Err(format!("the cursor belongs to a module; xs modules reset {name} begins it anew"))
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
XS_ADDR in its environment. The cursor moves when it exits with 0; an event is handled at least
once. Otherwise it is tried again, then parked or the end: the next run begins with that event.
One command runs at a time, so events stay in order; workers side by side take a topic and a
cursor each.
--limit and --last count events for which --where holds.")]
pub(crate) struct EachArgs {
    #[command(flatten)]
    pub(crate) patterns: PatternArgs,
    #[command(flatten)]
    pub(crate) begin: Begin,
    /// Go on with events as they are appended.
    #[arg(short = 'f', long)]
    pub(crate) follow: bool,
    /// Go on with events as they are appended, and when the server goes away wait for it: then go
    /// on where it was. Ephemeral events of the meantime are gone.
    #[arg(short = 'F', long)]
    pub(crate) reconnect: bool,
    /// Go on where this cursor is, and move it. Without one nothing is remembered.
    #[arg(long, value_name = "NAME", value_parser = reader_cursor)]
    pub(crate) cursor: Option<CursorName>,
    /// At most so many events.
    #[arg(long, value_name = "N", value_parser = count(0..=u64::MAX))]
    pub(crate) limit: Option<u64>,
    #[command(flatten)]
    pub(crate) filter: WhereArgs,
    /// Try so many more times when the command fails, after 1 s, 2 s, 4 s and so on to 30 s.
    #[arg(long, value_name = "N", default_value_t = 0,
        value_parser = count(0..=RETRIES_MAX))]
    pub(crate) retry: u64,
    /// Kill the command when one run takes longer; that is a failure.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,
    /// Append an event here for one that failed for good, with its body, and go on. Events of this
    /// topic are passed over; it may not be among TOPICS.
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
            assert!(own_cursor(name).unwrap_err().contains("modules reset a.b begins"), "{name}");
        }
        assert!(own_cursor("xs.a").is_err() && own_cursor("").is_err());
        for name in ["xs.handler.a", "xs.generator.a:tail", "xs.a", ""] {
            assert!(reader_cursor(name).is_err(), "{name}");
        }
    }
}
