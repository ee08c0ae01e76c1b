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
  xs append readings --lines --file day.txt --key day-17
  xs append deploy.done -n
  xs append account.7 --expect 41 '-12.50'
  xs append orders --key \"$ORDER_ID\" --file order.json

Without BODY the body is read from standard input to its end; on a terminal there is none.")]
pub(crate) struct AppendArgs {
    /// The topic, for example metrics.cpu.
    pub(crate) topic: Topic,
    /// The body; - reads standard input.
    #[arg(conflicts_with_all = ["file", "no_body", "lines"], allow_negative_numbers = true)]
    pub(crate) body: Option<String>,
    /// Take the body from a file, byte for byte; - is standard input.
    #[arg(long, value_name = "PATH", conflicts_with = "no_body", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
    /// No body; standard input is not touched.
    #[arg(short = 'n', long)]
    pub(crate) no_body: bool,
    /// One event for each line, without the line feed, or CR and line feed, at its end; stored as
    /// the lines arrive. xs cat --format '{body}' prints the lines again.
    #[arg(long, conflicts_with = "no_body")]
    pub(crate) lines: bool,
    /// The body, or each line, is a JSON object that becomes the meta.
    #[arg(long, conflicts_with_all = ["no_body", "meta"])]
    pub(crate) json: bool,
    /// Meta: a JSON object.
    #[arg(long, value_name = "JSON", value_parser = meta_object)]
    pub(crate) meta: Option<Meta>,
    /// How long it is kept: forever, ephemeral, time:MS or time:3d (ms, s, m, h, d, w), or last:N,
    /// which leaves of the topic the newest N and hides all before them at once, also those that
    /// were to be kept forever.
    #[arg(long, default_value = "forever")]
    pub(crate) ttl: Ttl,
    /// Append only if the topic holds nothing (empty) or nothing newer than an offset; head=N: only
    /// if the next event gets offset N; TOPICS=... looks at other topics. Otherwise exit code 4.
    #[arg(long, value_name = "CONDITION", value_parser = Expect::parse, conflicts_with = "lines")]
    pub(crate) expect: Vec<Expect>,
    /// Store this once, however often it is sent with the same key within 24 hours, or the next
    /// million keys. With --lines each batch of 512 lines or 1 MiB has a key of its own, KEY:LINE,
    /// and is stored when it is full or the input ends: run again with the same input after a lost
    /// connection, it stores what is missing.
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
