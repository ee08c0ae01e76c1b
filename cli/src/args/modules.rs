//! What is typed about modules: those of a server, and those that are being written.

use std::path::PathBuf;

use clap::ValueHint;
use xs_engine::{Bound, FrameId, Topic};
use xs_protocol::limits::LAST_MAX;

use super::directory::directory;
use super::read::{bound, count};
use super::{AllowArgs, EnvArgs, SureArgs};

/// `xs modules`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum ModulesSubcommand {
    #[command(flatten)]
    Store(ModulesStoreSubcommand),
    /// Check the modules of a directory for errors without running them.
    #[command(after_help = "Examples:\n  xs modules check ./modules\n  \
        xs modules check modules/handlers/anomaly.ts\n\n\
        Exits with code 1 if a module is invalid, 3 if there are none.")]
    Check {
        /// The modules directory, or one of its files.
        #[arg(default_value = ".", value_hint = ValueHint::AnyPath, value_parser = directory())]
        dir: PathBuf,
        #[command(flatten)]
        allow: AllowArgs,
    },
    /// Create a module from a template.
    #[command(after_help = "Example:\n  xs modules new handler anomaly --dir ./modules")]
    New {
        /// The kind of module.
        kind: KindArg,
        /// Its name: xs modules new handler disk.usage creates handlers/disk.usage.ts.
        name: String,
        /// The modules directory.
        #[arg(long, default_value = ".", value_hint = ValueHint::DirPath,
            value_parser = directory())]
        dir: PathBuf,
    },
}

/// Subcommands about the modules of a store.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum ModulesStoreSubcommand {
    /// List modules and their states.
    #[command(after_help = "Examples:\n  xs modules list ./store\n  xs modules list --check")]
    List {
        /// Exit with code 1 if any module has failed or is invalid.
        #[arg(long)]
        check: bool,
        /// Include modules whose file was deleted.
        #[arg(long)]
        all: bool,
    },
    /// Show one module: its state, position, last error and how to fix it.
    #[command(after_help = "Example:\n  xs modules show anomaly")]
    Show {
        /// The module's name.
        name: Topic,
    },
    /// Print the state of a handler as JSON.
    #[command(after_help = "Examples:\n  xs modules state anomaly\n  \
        xs modules state anomaly --at 03g4a5lk7bc9ucnxswp2nn1gj")]
    State {
        /// The handler's name.
        name: Topic,
        /// The state after this event, by id or offset, computed by running the current code over
        /// its inputs up to there.
        #[arg(long, value_name = "ID", value_parser = bound)]
        at: Option<Bound>,
    },
    /// Print what a module logged with console and ctx.log, and its fatal errors.
    #[command(
        after_help = "Examples:\n  xs modules logs anomaly\n  xs modules logs -f -n 0 anomaly"
    )]
    Logs {
        /// The module's name.
        name: Topic,
        /// Print the last N lines.
        #[arg(short = 'n', long, value_name = "N", default_value_t = 50,
            value_parser = count(0..=LAST_MAX))]
        count: u64,
        /// Keep printing new lines.
        #[arg(short, long)]
        follow: bool,
    },
    /// Stop a module; it stays stopped until it is started or its file is saved.
    #[command(after_help = "Example:\n  xs modules stop anomaly")]
    Stop {
        /// The module's name.
        name: Topic,
    },
    /// Start a stopped or failed module where it left off.
    #[command(after_help = "Example:\n  xs modules start anomaly")]
    Start {
        /// The module's name.
        name: Topic,
    },
    /// Delete the position and state of a module, so that it starts over.
    #[command(
        after_help = "Examples:\n  xs modules reset anomaly --dry-run\n  xs modules reset anomaly --yes"
    )]
    Reset {
        /// The module's name.
        name: Topic,
        #[command(flatten)]
        sure: SureArgs,
    },
    /// List the parked inputs of a handler.
    #[command(after_help = "Example:\n  xs modules parked webhook")]
    Parked {
        /// The handler's name.
        name: Topic,
    },
    /// Retry parked inputs.
    #[command(after_help = "Examples:\n  xs modules unpark webhook\n  \
        xs modules unpark webhook 03g4a5lk7bc9ucnxswp2nn1gj")]
    Unpark {
        /// The handler's name.
        name: Topic,
        /// Ids of parked inputs, or of the events that were parked [default: all].
        #[arg(value_name = "ID", value_parser = frame_id)]
        ids: Vec<FrameId>,
    },
    /// Discard parked inputs.
    #[command(after_help = "Example:\n  xs modules discard webhook --yes")]
    Discard {
        /// The handler's name.
        name: Topic,
        /// Ids of parked inputs, or of the events that were parked [default: all].
        #[arg(value_name = "ID", value_parser = frame_id)]
        ids: Vec<FrameId>,
        #[command(flatten)]
        sure: SureArgs,
    },
}

/// A kind of module.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum KindArg {
    /// Emits events.
    Generator,
    /// Reacts to events.
    Handler,
    /// Answers calls.
    Command,
}

fn frame_id(text: &str) -> Result<FrameId, String> {
    FrameId::parse(text).map_err(|error| error.to_string())
}

/// `xs dev`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xs dev ./modules
  xs append ./modules/.xs/dev hello -n

The store is DIR/.xs/dev. The result of each save is printed on a line; log output of modules and
appended events are printed as they come. Ctrl-C stops it.")]
pub(crate) struct DevArgs {
    /// The modules directory.
    #[arg(default_value = ".", value_hint = ValueHint::DirPath, value_parser = directory())]
    pub(crate) dir: PathBuf,
    #[command(flatten)]
    pub(crate) allow: AllowArgs,
    #[command(flatten)]
    pub(crate) env: EnvArgs,
}

/// `xs test`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xs test ./modules
  xs test ./modules anomaly

Runs every *.test.ts below the directory: import { test, trial } from \"xs/test\". Tests see
only the files, variables and fetch responses that they provide.")]
pub(crate) struct TestArgs {
    /// The modules directory, or one of its test files.
    #[arg(default_value = ".", value_hint = ValueHint::AnyPath, value_parser = directory())]
    pub(crate) dir: PathBuf,
    /// Run only test files whose path contains one of these.
    pub(crate) only: Vec<String>,
    #[command(flatten)]
    pub(crate) env: EnvArgs,
}
