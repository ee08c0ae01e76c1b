//! Frames on their way out of a store and into another, and out of the world.

use std::path::PathBuf;

use clap::ValueHint;
use xs_engine::Bound;

use super::SureArgs;
use super::read::{PatternArgs, bound};

/// `xs export`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xs export ./dump
  xs -a ./store export ./dump metrics. --since yesterday

Writes DIR/frames.jsonl, a line for each event, and their bodies into DIR/cas. The same line again
goes on where it stopped. xs import makes a store of it.")]
pub(crate) struct ExportArgs {
    /// The directory; made if it does not exist.
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,
    #[command(flatten)]
    pub(crate) patterns: PatternArgs,
    /// Only events at or after this time.
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// Only events before this time.
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<String>,
}

/// `xs import`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xs import ./dump ./new-store
  xs -a ./store import ./dump --new-ids

Takes what xs export or cross.stream's .export wrote. Ids are kept, which needs a store whose events
are all older, in practice a new one. Events that are there already are counted and left alone, so
the same line again goes on where it stopped. Exit code 1 when any was refused.")]
pub(crate) struct ImportArgs {
    /// The directory with frames.jsonl and cas/.
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,
    /// The store [default: that of --addr].
    #[arg(value_name = "STORE", value_hint = ValueHint::DirPath)]
    pub(crate) store: Option<PathBuf>,
    /// Give the events new ids, into a store in use; the old ones find them too.
    #[arg(long)]
    pub(crate) new_ids: bool,
}

/// `xs remove`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xs remove 03g4a5lk7bc9ucnxswp2nn1gj --yes
  xs remove 41 42 --now --yes           not a byte of them stays in the files")]
pub(crate) struct RemoveArgs {
    /// The events, by id or offset: all of them are removed, or none.
    #[arg(required = true, value_name = "ID", value_parser = bound)]
    pub(crate) places: Vec<Bound>,
    /// End only when their bytes are gone from the store's files. What other events have in common
    /// with them stays.
    #[arg(long)]
    pub(crate) now: bool,
    #[command(flatten)]
    pub(crate) sure: SureArgs,
}
