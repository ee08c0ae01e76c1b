//! What `append` is told, and meta as it is typed.

use std::path::PathBuf;

use clap::ValueHint;
use xs_engine::{IdempotencyKey, Meta, Topic, Ttl};

use super::Expect;

/// `xs append`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xs append notes 'buy milk'
  date | xs append ticks
  xs append photos --file cat.jpg --meta '{\"width\":640}'
  journalctl -f -o cat | xs append journal --lines
  jq -c . data.json | xs append readings --lines --json
  jq -c . data.json | xs append readings --lines --json --topic-from sensor
  xs append readings --lines --file day.txt --key day-17
  xs append deploy.done -n
  xs append account.7 --expect 41 '-12.50'
  xs append orders --key \"$ORDER_ID\" --file order.json

Without BODY the body is read from standard input; on a terminal the event then has no body.")]
pub(crate) struct AppendArgs {
    /// The topic, for example metrics.cpu.
    pub(crate) topic: Topic,
    /// The body; - reads standard input.
    #[arg(conflicts_with_all = ["file", "no_body", "lines"], allow_negative_numbers = true)]
    pub(crate) body: Option<String>,
    /// Read the body from a file, byte for byte; - reads standard input.
    #[arg(long, value_name = "PATH", conflicts_with = "no_body", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
    /// Append without a body and do not read standard input.
    #[arg(short = 'n', long)]
    pub(crate) no_body: bool,
    /// Append one event per line, as the lines arrive. The body is the line without its line ending
    /// (LF or CRLF). xs cat --format '{body}' prints the lines again.
    #[arg(long, conflicts_with = "no_body")]
    pub(crate) lines: bool,
    /// Parse the input, or each line with --lines, as a JSON object and store it as the meta.
    #[arg(long, conflicts_with_all = ["no_body", "meta"])]
    pub(crate) json: bool,
    /// Append each line to TOPIC.VALUE, where VALUE is this field of the line: text, or a whole
    /// number. A dot leads into an object: sensor.name. Stops at a line that makes no topic.
    #[arg(long, value_name = "FIELD", requires = "lines", requires = "json")]
    pub(crate) topic_from: Option<String>,
    /// The event's meta, a JSON object.
    #[arg(long, value_name = "JSON", value_parser = meta_object)]
    pub(crate) meta: Option<Meta>,
    /// How long to keep the event: forever, ephemeral, time:MS, time:3d (ms, s, m, h, d, w) or
    /// last:N. last:N keeps the newest N events of the topic; older ones disappear at once, even if
    /// they were appended with forever.
    #[arg(long, default_value = "forever")]
    pub(crate) ttl: Ttl,
    /// Append only if a condition holds; otherwise exit with code 4. empty: the topic has no event;
    /// OFFSET: none after that offset; head=N: the next event gets offset N. TOPICS=empty and
    /// TOPICS=OFFSET check other topics.
    #[arg(long, value_name = "CONDITION", value_parser = Expect::parse, conflicts_with = "lines")]
    pub(crate) expect: Vec<Expect>,
    /// Idempotency key: retries with the same key store the event only once, within 24 hours or the
    /// next million keys. With --lines each batch of 512 lines or 1 MiB gets its own key, KEY:LINE,
    /// and is sent when it is full or the input ends. After a lost connection, run the same command
    /// with the same input to store the missing lines.
    #[arg(long, value_parser = IdempotencyKey::parse)]
    pub(crate) key: Option<IdempotencyKey>,
}

/// Meta that is a JSON object, as `--meta` and `--json` take it.
pub(crate) fn meta_object(text: &str) -> Result<Meta, String> {
    match serde_json::from_str::<serde::de::IgnoredAny>(text) {
        Ok(_) if text.trim_start().starts_with('{') => {
            Meta::parse(text.trim().to_owned()).map_err(|error| error.to_string())
        }
        Ok(_) => Err("a JSON object is expected, as in {\"key\":1}".to_owned()),
        Err(error) => Err(format!("not JSON: {error}")),
    }
}
