//! The options of subcommands that run JavaScript of the user's own.

use std::path::PathBuf;

use clap::ValueHint;

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
