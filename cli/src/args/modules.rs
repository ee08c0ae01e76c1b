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
    /// List the modules and how they are.
    #[command(after_help = "Examples:\n  xs modules list ./store\n  xs modules list --check")]
    List {
        /// End with exit code 1 when any has failed or is invalid.
        #[arg(long)]
        check: bool,
        /// Those whose file was deleted, too.
        #[arg(long)]
        all: bool,
    },
    /// Show one module: its state, its position, what went wrong and where, and what helps.
    #[command(after_help = "Example:\n  xs modules show anomaly")]
    Show {
        /// The module's name.
        name: Topic,
    },
    /// Print what a handler remembers, as JSON.
    #[command(after_help = "Examples:\n  xs modules state anomaly\n  \
        xs modules state anomaly --at 03g4a5lk7bc9ucnxswp2nn1gj")]
    State {
        /// The handler's name.
        name: Topic,
        /// After this frame, by id or offset: its present code over all it was given up to there.
        #[arg(long, value_name = "ID", value_parser = bound)]
        at: Option<Bound>,
    },
    /// Print what a module has said with console and ctx.log, and the errors that ended it.
    #[command(
        after_help = "Examples:\n  xs modules logs anomaly\n  xs modules logs -f -n 0 anomaly"
    )]
    Logs {
        /// The module's name.
        name: Topic,
        /// How many lines, the newest last.
        #[arg(short = 'n', long, value_name = "N", default_value_t = 50,
            value_parser = count(0..=LAST_MAX))]
        count: u64,
        /// Go on with what it says from now on.
        #[arg(short, long)]
        follow: bool,
    },
    /// Evaluate the modules of a directory without running them, and say what is wrong.
    #[command(after_help = "Examples:\n  xs modules check ./modules\n  \
        xs modules check modules/handlers/anomaly.ts\n\n\
        Exit code 1 when one is wrong, 3 when there is none.")]
    Check {
        /// The modules directory, or one of its files.
        #[arg(default_value = ".", value_hint = ValueHint::AnyPath, value_parser = directory())]
        dir: PathBuf,
        #[command(flatten)]
        allow: AllowArgs,
    },
    /// Stop a module; it stays stopped until it is started or its file is saved.
    #[command(after_help = "Example:\n  xs modules stop anomaly")]
    Stop {
        /// The module's name.
        name: Topic,
    },
    /// Start a module that was stopped or has failed, from where it was.
    #[command(after_help = "Example:\n  xs modules start anomaly")]
    Start {
        /// The module's name.
        name: Topic,
    },
    /// Forget the position and the state of a module, so that it begins anew.
    #[command(
        after_help = "Examples:\n  xs modules reset anomaly --dry-run\n  xs modules reset anomaly --yes"
    )]
    Reset {
        /// The module's name.
        name: Topic,
        #[command(flatten)]
        sure: SureArgs,
    },
    /// List the inputs that a handler has set aside.
    #[command(after_help = "Example:\n  xs modules parked webhook")]
    Parked {
        /// The handler's name.
        name: Topic,
    },
    /// Have parked inputs handled again.
    #[command(after_help = "Examples:\n  xs modules unpark webhook\n  \
        xs modules unpark webhook 03g4a5lk7bc9ucnxswp2nn1gj")]
    Unpark {
        /// The handler's name.
        name: Topic,
        /// Ids of parked inputs, or of the frames they are about [default: all].
        #[arg(value_name = "ID", value_parser = frame_id)]
        ids: Vec<FrameId>,
    },
    /// Give parked inputs up.
    #[command(after_help = "Example:\n  xs modules discard webhook --yes")]
    Discard {
        /// The handler's name.
        name: Topic,
        /// Ids of parked inputs, or of the frames they are about [default: all].
        #[arg(value_name = "ID", value_parser = frame_id)]
        ids: Vec<FrameId>,
        #[command(flatten)]
        sure: SureArgs,
    },
    /// Write a first version of a module.
    #[command(after_help = "Example:\n  xs modules new handler anomaly --dir ./modules")]
    New {
        /// What it is to be.
        kind: KindArg,
        /// Its name: xs modules new handler disk.usage makes handlers/disk.usage.ts.
        name: String,
        /// The modules directory.
        #[arg(long, default_value = ".", value_hint = ValueHint::DirPath,
            value_parser = directory())]
        dir: PathBuf,
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

The store is DIR/.xs/dev. A line tells what became of each save; what modules log and the frames
that are appended follow as they come. Ctrl-C ends it.")]
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

Runs every *.test.ts below the directory: import { test, trial } from \"xs/test\". Nothing outside is
reached: files, variables and answers of fetch are those that a test makes up.")]
pub(crate) struct TestArgs {
    /// The modules directory, or one of its test files.
    #[arg(default_value = ".", value_hint = ValueHint::AnyPath, value_parser = directory())]
    pub(crate) dir: PathBuf,
    /// Only the files whose path holds one of these.
    pub(crate) only: Vec<String>,
    #[command(flatten)]
    pub(crate) env: EnvArgs,
}
