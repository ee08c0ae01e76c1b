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

The value of the last expression is printed: objects as JSON, one a line, text as lines, bytes as
they are; what can be iterated, value by value. console.log prints too, console.error on standard
error. It runs here and not in the server, with the limits of a module and the rights of whoever
runs it. What it throws ends it with exit code 1.")]
pub(crate) struct EvalArgs {
    /// JavaScript or TypeScript; - reads standard input. Without any there is a prompt on a
    /// terminal.
    #[arg(conflicts_with = "file")]
    pub(crate) code: Option<String>,
    /// Run a file; its imports are looked for below the working directory, or beside it.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
    /// A prompt, also where standard input is no terminal.
    #[arg(short, long, conflicts_with_all = ["code", "file"])]
    pub(crate) interactive: bool,
    #[command(flatten)]
    pub(crate) env: EnvArgs,
}

/// A file of variables.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct EnvArgs {
    /// Offer the variables of a file, NAME=value a line, beside those of the environment.
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

Runs the handler in the file over what the store holds of its topics, and prints what it would have
appended; nothing is. It begins with the state of its definition and reads the store as it was when
each event came; the network, files, programs and commands are not to be had, and a handler that
asks for them is told so. With --diff what differs from what the module of its name has appended is
printed, and the exit code is 1 if anything does: - is what was appended, + what would be.")]
pub(crate) struct ReplayArgs {
    /// The handler's file, best where a server would find it: DIR/handlers/NAME.ts.
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) module: PathBuf,
    /// The module that it is, or would be [default: by the file's name].
    #[arg(long, value_parser = name)]
    pub(crate) name: Option<ProcessorName>,
    /// Begin with this event, by id or offset.
    #[arg(long, value_name = "ID", value_parser = bound)]
    from: Option<Bound>,
    #[command(flatten)]
    times: TimeArgs,
    /// At most so many inputs.
    #[arg(long, value_name = "N", value_parser = count(0..=u64::MAX))]
    limit: Option<u64>,
    /// Begin behind this event, with the state that the module of its name had there.
    #[arg(long, value_name = "ID", value_parser = frame_id, conflicts_with = "from")]
    pub(crate) state_at: Option<FrameId>,
    /// Compare with what the module of its name has appended.
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
    /// Only events for which this JavaScript holds: an expression over f, as in f.meta.value > 9.
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
