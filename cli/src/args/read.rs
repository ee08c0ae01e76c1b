//! The options of reading, shared by every subcommand that prints events.

use std::ffi::OsString;
use std::ops::RangeInclusive;

use jiff::Zoned;
use xs_engine::{
    Bound, CursorName, FrameId, ReadOptions, Start, TopicPattern, TopicPatterns, ValueError,
};
use xs_protocol::limits::LAST_MAX;

use super::cursor::reader_cursor;
use super::script::WhereArgs;
use super::template::Template;
use super::time::{point, typed_point};

/// Which topics.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PatternArgs {
    /// Topics: exact (a.b), everything below (a.* or a.), comma lists [default: all but xs.*].
    #[arg(value_name = "TOPICS", value_parser = pattern_list)]
    lists: Vec<PatternList>,
}

#[derive(Debug, Clone)]
pub(super) struct PatternList(pub(super) Vec<TopicPattern>);

impl PatternArgs {
    /// The patterns of words that were taken for something else first.
    ///
    /// # Errors
    /// A sentence about the word that is none.
    pub(super) fn of(words: &[OsString]) -> Result<Self, String> {
        let list = |word: &OsString| {
            let text = word.to_str().ok_or_else(|| format!("{word:?} is not a topic"))?;
            pattern_list(text)
        };
        Ok(Self { lists: words.iter().map(list).collect::<Result<_, _>>()? })
    }

    /// Whether none were typed.
    pub(crate) const fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// The patterns, or `default` when none were typed.
    ///
    /// # Errors
    /// [`ValueError`] when there are too many.
    pub(crate) fn or(&self, default: TopicPatterns) -> Result<TopicPatterns, ValueError> {
        if self.lists.is_empty() {
            return Ok(default);
        }
        TopicPatterns::new(self.lists.iter().flat_map(|list| list.0.iter().cloned()).collect())
    }
}

/// What is printed of events.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct BodyArgs {
    /// Add the body to each event: "body" if it is text, otherwise "body_base64". A body of more
    /// than 64 MiB is left out, with a notice.
    #[arg(long)]
    pub(crate) with_body: bool,
    /// Print only the bodies, byte for byte, without separators. For one body per line, as append
    /// --lines took them, use --format '{body}'.
    #[arg(short = 'b', long = "body", conflicts_with = "with_body")]
    pub(crate) only: bool,
    /// Print each event with a template: '{time} {topic:<20} {meta.value} {body}'. See xs help
    /// templates.
    #[arg(long, value_name = "TEMPLATE", value_parser = Template::parse,
        conflicts_with_all = ["with_body", "only"])]
    pub(crate) format: Option<Template>,
}

impl BodyArgs {
    /// Whether bodies have to be fetched at all.
    pub(crate) fn wanted(&self) -> bool {
        self.only || self.with_frame()
    }

    /// Whether they are printed with their events.
    pub(crate) fn with_frame(&self) -> bool {
        self.with_body || self.format.as_ref().is_some_and(Template::wants_body)
    }
}

/// Where a read begins.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(crate) struct Begin {
    /// Start with the next event appended; implies --follow.
    #[arg(long, group = "begin")]
    pub(crate) new: bool,
    /// Start with this event, by id or offset.
    #[arg(long, value_name = "ID", value_parser = beginning, group = "begin")]
    from: Option<Bound>,
    /// Start after this event, by id or offset.
    #[arg(long, value_name = "ID", value_parser = beginning, group = "begin")]
    after: Option<Bound>,
    /// Start with the newest N events.
    #[arg(short = 'n', long, value_name = "N", group = "begin", value_parser = count(0..=u64::MAX))]
    last: Option<u64>,
}

impl Begin {
    /// As the store is asked for it.
    pub(crate) fn start(self) -> Start {
        match (self.new, self.from, self.after, self.last) {
            (true, ..) => Start::New,
            (_, Some(bound), ..) => Start::From(bound),
            (_, _, Some(bound), _) => Start::After(bound),
            (_, _, _, Some(count)) => Start::Last(count),
            _ => Start::First,
        }
    }
}

/// A range of time.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct TimeArgs {
    /// Only events at or after this time.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = typed_point)]
    since: Option<String>,
    /// Only events before this time.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = typed_point)]
    until: Option<String>,
}

impl TimeArgs {
    /// Its two ends as they were typed.
    pub(crate) fn typed(&self) -> (Option<&str>, Option<&str>) {
        (self.since.as_deref(), self.until.as_deref())
    }

    /// Its two ends, in milliseconds since 1970.
    ///
    /// # Errors
    /// A sentence about the option that cannot be read.
    pub(crate) fn range(&self, now: &Zoned) -> Result<(Option<u64>, Option<u64>), String> {
        let time = |option: &str, text: &Option<String>| match text {
            Some(text) => point(text, now).map(Some).map_err(|error| format!("{option}: {error}")),
            None => Ok(None),
        };
        let (since, until) = (time("--since", &self.since)?, time("--until", &self.until)?);
        match (since, until) {
            (Some(since), Some(until)) if until < since => {
                Err("--until is before --since, so the range is empty".to_owned())
            }
            range => Ok(range),
        }
    }
}

/// `xs cat`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Examples:
  xs cat                            everything but xs.*
  xs cat -f --new metrics.          what is appended from now on below metrics
  xs cat --since 2h --until now     the last two hours
  xs cat --after 03g4a5lk7bc9ucnxswp2nn1gj --limit 100
  xs cat --last 1 -b notes          the newest body of notes
  xs cat --format '{time} {meta.cpu:>6} {topic}' metrics.
  xs cat --cursor report orders.    what is new since the last run
  xs cat --where 'f.meta.cpu > 0.9' --last 3 metrics.
  xs cat --where 'f.json().total > 100' orders

Times: 2h (ago), yesterday, 2026-11-24, 2026-11-24T08:30 (local), RFC 3339, 1795518000 (seconds
since 1970; with 13 digits milliseconds).

In --where, f is the event: id, offset, topic, time, ttl, meta, hash, and its body as text() and
json(). --limit and --last count only events that match; an event for which it throws does not.")]
pub(crate) struct CatArgs {
    #[command(flatten)]
    patterns: PatternArgs,
    /// Keep running and print new events as they are appended.
    #[arg(short = 'f', long)]
    follow: bool,
    /// Like --follow, and whenever no server answers, wait for it and continue from the same event;
    /// a store directory is waited for until xs serve serves it. Ephemeral events appended in
    /// between are missed.
    #[arg(short = 'F', long)]
    pub(crate) reconnect: bool,
    #[command(flatten)]
    begin: Begin,
    /// Continue from this cursor, and move it past what is printed. Options that say where to start
    /// apply only while the cursor does not exist.
    #[arg(long, value_name = "NAME", value_parser = reader_cursor, conflicts_with = "reverse")]
    pub(crate) cursor: Option<CursorName>,
    /// Stop before this event, by id or offset.
    #[arg(long, value_name = "ID", value_parser = bound)]
    before: Option<Bound>,
    #[command(flatten)]
    times: TimeArgs,
    /// Print at most N events.
    #[arg(long, value_name = "N", value_parser = count(0..=u64::MAX))]
    limit: Option<u64>,
    /// Print the newest events first.
    #[arg(long, conflicts_with_all = ["follow", "reconnect", "new"])]
    reverse: bool,
    #[command(flatten)]
    pub(crate) filter: WhereArgs,
    #[command(flatten)]
    pub(crate) body: BodyArgs,
}

impl CatArgs {
    /// Whether it goes on with what is appended. `--new` without `--follow` does too, for there is
    /// nothing else it could mean.
    pub(crate) fn follows(&self) -> bool {
        self.follow || self.reconnect || self.begin.new
    }

    /// What to ask of the store.
    ///
    /// # Errors
    /// A sentence about the option that cannot be read.
    pub(crate) fn options(&self, now: &Zoned) -> Result<ReadOptions, String> {
        let (since_ms, until_ms) = self.times.range(now)?;
        Ok(ReadOptions {
            topics: self.patterns.or(TopicPatterns::all()).map_err(|error| error.to_string())?,
            start: self.begin.start(),
            before: self.before,
            since_ms,
            until_ms,
            limit: self.limit,
            reverse: self.reverse,
            follow: self.follows(),
        })
    }
}

/// `xs tail`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xs tail
  xs tail -n 100 alerts.
  xs tail -F                        also across restarts of the server
  xs tail --since 1h alerts.
  xs tail -n 0 --limit 1 deploys.done
  xs tail --where 'f.meta.level === \"error\"' logs.
  xs tail --with-body notes | jq -r .body
  xs tail --format '{topic:<20} {body:.60}'")]
pub(crate) struct TailArgs {
    #[command(flatten)]
    patterns: PatternArgs,
    /// Accepted for compatibility: tail always follows.
    #[arg(short = 'f', long = "follow")]
    _follow: bool,
    /// Whenever no server answers, wait for it and continue from the same event; a store directory
    /// is waited for until xs serve serves it. Ephemeral events appended in between are missed.
    #[arg(short = 'F', long)]
    pub(crate) reconnect: bool,
    /// Print the newest N stored events first.
    #[arg(short = 'n', long = "last", value_name = "N", default_value_t = 10,
        value_parser = count(0..=u64::MAX))]
    last: u64,
    /// Start with all events at or after this time instead.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, conflicts_with = "last",
        value_parser = typed_point)]
    since: Option<String>,
    /// Stop after N events.
    #[arg(long, value_name = "N", value_parser = count(0..=u64::MAX))]
    limit: Option<u64>,
    /// Continue from this cursor, and move it past what is printed.
    #[arg(long, value_name = "NAME", value_parser = reader_cursor)]
    pub(crate) cursor: Option<CursorName>,
    #[command(flatten)]
    pub(crate) filter: WhereArgs,
    #[command(flatten)]
    body: BodyArgs,
}

impl From<TailArgs> for CatArgs {
    fn from(tail: TailArgs) -> Self {
        Self {
            patterns: tail.patterns,
            follow: true,
            reconnect: tail.reconnect,
            begin: Begin { last: tail.since.is_none().then_some(tail.last), ..Begin::default() },
            cursor: tail.cursor,
            before: None,
            times: TimeArgs { since: tail.since, until: None },
            limit: tail.limit,
            reverse: false,
            filter: tail.filter,
            body: tail.body,
        }
    }
}

/// `xs last`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xs last metrics.recv
  xs last -n 5 'alerts.*'
  xs last --format '{meta.cpu}' metrics.recv
  xs last --per-topic metrics.")]
pub(crate) struct LastArgs {
    #[command(flatten)]
    pub(crate) patterns: PatternArgs,
    /// Print the newest N events, newest last.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1,
        value_parser = count(1..=LAST_MAX))]
    pub(crate) count: u64,
    /// Print the newest event of each topic instead.
    #[arg(long, conflicts_with = "count")]
    pub(crate) per_topic: bool,
    #[command(flatten)]
    pub(crate) body: BodyArgs,
}

/// `xs get`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xs get 03g4a5lk7bc9ucnxswp2nn1gj
  xs get 42 --body > body.bin
  xs get 42 --format '{hash}'")]
pub(crate) struct GetArgs {
    /// The event's id or offset.
    #[arg(value_parser = bound, value_name = "ID")]
    pub(crate) place: Bound,
    #[command(flatten)]
    pub(crate) body: BodyArgs,
}

/// `xs why`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  xs why 03g4a5lk7bc9ucnxswp2nn1gj")]
pub(crate) struct WhyArgs {
    /// The event's id or offset.
    #[arg(value_parser = bound, value_name = "ID")]
    pub(crate) place: Bound,
    #[command(flatten)]
    pub(crate) body: BodyArgs,
}

/// `xs effects`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xs effects 03g4a5lk7bc9ucnxswp2nn1gj
  xs effects 42 --limit 100

Reads the log from the event to its head.")]
pub(crate) struct EffectsArgs {
    /// The event's id or offset.
    #[arg(value_parser = bound, value_name = "ID")]
    pub(crate) place: Bound,
    /// Stop after N effects.
    #[arg(long, value_name = "N", value_parser = count(1..=u64::MAX))]
    pub(crate) limit: Option<u64>,
    #[command(flatten)]
    pub(crate) body: BodyArgs,
}

/// An event by its id, or by its offset: up to 20 digits.
///
/// # Errors
/// A sentence that says what is expected.
pub(crate) fn bound(text: &str) -> Result<Bound, String> {
    if text.len() <= 20
        && text.bytes().all(|byte| byte.is_ascii_digit())
        && let Ok(offset) = text.parse()
    {
        return Ok(Bound::Offset(offset));
    }
    match FrameId::parse(text) {
        Ok(id) => Ok(Bound::Id(id)),
        Err(_) => Err("an id of 25 digits and letters or an offset is expected".to_owned()),
    }
}

/// The event that a read begins at.
fn beginning(text: &str) -> Result<Bound, String> {
    bound(text).map_err(|error| match reader_cursor(text) {
        Ok(name) => format!("{error}; to continue from a cursor, use --cursor {name}"),
        Err(_) => error,
    })
}

/// A comma list of patterns, where `a.` is short for `a.*`.
///
/// # Errors
/// A sentence about the pattern that is none.
pub(super) fn pattern_list(text: &str) -> Result<PatternList, String> {
    let one = |part: &str| match part.strip_suffix('.') {
        Some(prefix) => TopicPattern::parse(&format!("{prefix}.*")),
        None => TopicPattern::parse(part),
    };
    let parts: Vec<_> = text.split(',').map(str::trim).collect();
    if parts.iter().any(|part| part.is_empty()) {
        let what = if parts.len() == 1 { "the pattern is empty" } else { "a pattern is empty" };
        return Err(what.to_owned());
    }
    let list = parts.into_iter().map(one).collect::<Result<Vec<_>, _>>();
    list.map(PatternList).map_err(|error| error.to_string())
}

/// A number of things within a range.
pub(super) fn count(
    range: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<u64, String> + Clone + Send + Sync + 'static {
    move |text| match text.parse() {
        Ok(count) if range.contains(&count) => Ok(count),
        Ok(count) if *range.end() == u64::MAX => {
            Err(format!("{count} is less than {}", range.start()))
        }
        Ok(count) => Err(format!("{count} is not in {}..={}", range.start(), range.end())),
        Err(_) => Err("a whole number is expected".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Args, Program, StoreSubcommand, Subcommand};
    use super::*;
    use clap::Parser as _;

    fn options(line: &str) -> ReadOptions {
        let now: Zoned = "2026-11-24T12:00:00+00:00[UTC]".parse().unwrap();
        let args = Args::try_parse_from(line.split(' ')).unwrap();
        let cat = match args.program {
            Program::Subcommand(Subcommand::Store(StoreSubcommand::Cat(cat))) => cat,
            Program::Subcommand(Subcommand::Store(StoreSubcommand::Tail(tail))) => tail.into(),
            _ => unreachable!("a line of cat or tail"),
        };
        cat.options(&now).unwrap()
    }

    #[test]
    fn a_range_of_time_is_not_reversed() {
        let now: Zoned = "2026-11-24T12:00:00+00:00[UTC]".parse().unwrap();
        let range = |since: &str, until: &str| {
            let (since, until) = (Some(since.to_owned()), Some(until.to_owned()));
            TimeArgs { since, until }.range(&now)
        };
        assert!(range("2h", "3h").unwrap_err().contains("before --since"));
        assert!(range("3h", "2h").is_ok() && range("2h", "2h").is_ok());
    }

    #[test]
    fn options_become_a_read() {
        let id = "03g4a5lk7bc9ucnxswp2nn1gj";
        let cat = options(&format!("xs cat --after {id} --limit 5 --since 1h metrics. a,b.c"));
        assert_eq!(cat.start, Start::After(Bound::Id(FrameId::parse(id).unwrap())));
        assert_eq!(cat.topics.to_string(), "metrics.*,a,b.c");
        assert_eq!((cat.limit, cat.follow), (Some(5), false));
        assert_eq!(cat.since_ms, Some(1_795_518_000_000));
        assert_eq!(options("xs cat"), ReadOptions::default());
        assert_eq!(options("xs cat --from 42").start, Start::From(Bound::Offset(42)));
        let new = options("xs cat --new");
        assert_eq!((new.start, new.follow), (Start::New, true));
        for tail in ["xs tail a", "xs tail -f a"].map(options) {
            assert_eq!((tail.start, tail.follow), (Start::Last(10), true));
        }
    }
}
