//! The options of subcommands that run JavaScript of the user's own.

use std::path::PathBuf;

use clap::ValueHint;
use jiff::Zoned;
use xs_engine::{Bound, FrameId, ReadOptions, Start};
use xs_runtime::ProcessorName;

use super::read::{TimeArgs, bound, count};

/// `xs eval`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xs eval 'ctx.read({ last: 3 })'
  xs eval 'await ctx.append(\"notes\", { body: \"buy milk\" })'
  xs eval 'let n = 0; for await (const f of ctx.read({ topics: \"orders\" })) n += f.meta.total; n'
  xs eval 'import { sse } from \"xs\"; sse(await fetch(\"https://example.com/events\"))'
  xs eval --file report.ts > report.json
  xs eval ./store                         a prompt, where ctx is the store

Prints the value of the last expression: objects as JSON, one per line; text as lines; bytes
unchanged; iterables value by value. console.log prints on standard output, console.error on
standard error. The code runs in this process, not in the server, with the limits of a module and
your permissions. An uncaught error ends it with exit code 1.")]
pub(crate) struct EvalArgs {
    /// JavaScript or TypeScript; - reads standard input. Without code, a prompt opens on a
    /// terminal.
    #[arg(conflicts_with = "file")]
    pub(crate) code: Option<String>,
    /// Run a file. Imports resolve below the working directory, or beside a file outside it.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
    /// Open a prompt even if standard input is not a terminal.
    #[arg(short, long, conflicts_with_all = ["code", "file"])]
    pub(crate) interactive: bool,
    #[command(flatten)]
    pub(crate) env: EnvArgs,
}

/// A file of variables.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct EnvArgs {
    /// Add environment variables from a file, one NAME=value per line.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) env_file: Option<PathBuf>,
}

/// `xs replay`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xs replay modules/handlers/anomaly.ts --since 1d
  xs replay modules/handlers/anomaly.ts --diff
  xs replay ../new/anomaly.ts --state-at 03g4a5lk7bc9ucnxswp2nn1gj --limit 1000 --diff

Runs the handler over the stored events of its topics and prints what it would append; nothing is
appended. It starts with the initial state of its definition and sees the store as it was at each
event. Network, files, programs and commands are unavailable; using them throws an error.
With --diff only differences from what the module of this name appended are printed (- was appended,
+ would be appended), and the exit code is 1 if there are any.")]
pub(crate) struct ReplayArgs {
    /// The handler's file, ideally where a server would find it: DIR/handlers/NAME.ts.
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) module: PathBuf,
    /// The name of the module [default: from the file name].
    #[arg(long, value_parser = name)]
    pub(crate) name: Option<ProcessorName>,
    /// Start with this event, by id or offset.
    #[arg(long, value_name = "ID", value_parser = bound)]
    from: Option<Bound>,
    #[command(flatten)]
    times: TimeArgs,
    /// Stop after N inputs.
    #[arg(long, value_name = "N", value_parser = count(0..=u64::MAX))]
    limit: Option<u64>,
    /// Start after this event, with the state that the module of this name had there.
    #[arg(long, value_name = "ID", value_parser = frame_id, conflicts_with = "from")]
    pub(crate) state_at: Option<FrameId>,
    /// Compare with what the module of this name appended.
    #[arg(long)]
    pub(crate) diff: bool,
    #[command(flatten)]
    pub(crate) env: EnvArgs,
}

impl ReplayArgs {
    /// The inputs, of whatever topics.
    ///
    /// # Errors
    /// A sentence about the option that cannot be read.
    pub(crate) fn range(&self, now: &Zoned) -> Result<ReadOptions, String> {
        let (since_ms, until_ms) = self.times.range(now)?;
        Ok(ReadOptions {
            start: self.from.map_or(Start::First, Start::From),
            since_ms,
            until_ms,
            limit: self.limit,
            ..ReadOptions::default()
        })
    }
}

fn name(text: &str) -> Result<ProcessorName, String> {
    ProcessorName::parse(text).map_err(|error| error.to_string())
}

fn frame_id(text: &str) -> Result<FrameId, String> {
    FrameId::parse(text).map_err(|error| error.to_string())
}

/// Which events, by more than their topic.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct WhereArgs {
    /// Only events that match this JavaScript expression over f, as in f.meta.value > 9.
    #[arg(long = "where", value_name = "EXPRESSION", value_parser = expression)]
    pub(crate) expression: Option<String>,
}

impl WhereArgs {
    /// Whether there is JavaScript to run.
    pub(crate) const fn is_given(&self) -> bool {
        self.expression.is_some()
    }
}

/// An expression, looked at before anything is read.
fn expression(text: &str) -> Result<String, String> {
    xs_runtime::script::check(text).map(|()| text.to_owned()).map_err(|error| error.to_string())
}
