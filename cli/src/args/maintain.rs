//! Looking after a store, and what needs no store at all.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueHint;
use clap_complete::Shell;
use xs_engine::FrameId;
use xs_protocol::Address;

use super::SureArgs;
use super::directory::{address, path, store};
use super::time::{duration, point_now};

/// A store and a directory, or that alone when the store is named by `--addr`, $XS_ADDR or the
/// default.
#[derive(Debug, Clone)]
pub(crate) struct FromTo {
    /// The store; `None`: that of the address.
    pub(crate) from: Option<Address>,
    /// The new directory.
    pub(crate) to: PathBuf,
}

fn from_to(words: &[OsString]) -> Result<FromTo, String> {
    let (to, before) = words.split_last().ok_or("a directory is missing")?;
    let from = before.first();
    let named = |word: &OsString, error: String| format!("{}: {error}", word.display());
    let from = from.map(|word| address(word).map_err(|error| named(word, error.to_string())));
    Ok(FromTo { from: from.transpose()?, to: path(to).map_err(|error| named(to, error))? })
}

/// `xs verify`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xs verify ./store
  xs verify /backups/store && echo sound

Prints each problem, then a summary. Exits with code 1 when events, cursors or bodies are lost.")]
pub(crate) struct VerifyArgs {
    /// The store or backup: a directory, or a server's address [default: that of --addr].
    #[arg(value_hint = ValueHint::DirPath, value_parser = store())]
    pub(crate) store: Option<Address>,
}

/// `xs repair`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  xs repair ./store ./saved

The damaged store is not changed. Events keep their ids and offsets; losses are listed.")]
pub(crate) struct RepairArgs {
    /// The damaged store, if not that of --addr, and a directory that is empty or does not exist.
    #[arg(value_name = "[STORE] INTO", required = true, num_args = 1..=2,
        value_hint = ValueHint::DirPath)]
    paths: Vec<OsString>,
}

impl RepairArgs {
    /// From where to where.
    ///
    /// # Errors
    /// A sentence about the word that is neither.
    pub(crate) fn paths(&self) -> Result<FromTo, String> {
        from_to(&self.paths)
    }
}

/// `xs backup`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xs backup ./store /backups/store
  xs backup /backups/store            the store of --addr or $XS_ADDR

Every byte copied is checked. xs restore turns a backup into a store. A running server makes the
backup of its store itself and keeps serving.")]
pub(crate) struct BackupArgs {
    /// The store, if not that of --addr, and the directory of the backup.
    #[arg(value_name = "[STORE] DEST", required = true, num_args = 1..=2,
        value_hint = ValueHint::DirPath)]
    paths: Vec<OsString>,
    /// Hard-link immutable files instead of copying them: fast and without extra space, but no
    /// protection from a bad disk.
    #[arg(long)]
    pub(crate) link: bool,
}

impl BackupArgs {
    /// From where to where.
    ///
    /// # Errors
    /// A sentence about the word that is neither.
    pub(crate) fn paths(&self) -> Result<FromTo, String> {
        from_to(&self.paths)
    }
}

/// `xs fork` and `xs restore`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xs fork ./store ./sandbox
  xs restore /backups/store ./store

The new store has its own id, so positions of readers in the old one are not valid in it.")]
pub(crate) struct CopyArgs {
    /// The store or backup, if not that of --addr, and a directory that is empty or does not exist.
    #[arg(value_name = "[STORE] DEST", required = true, num_args = 1..=2,
        value_hint = ValueHint::DirPath)]
    paths: Vec<OsString>,
}

impl CopyArgs {
    /// From where to where.
    ///
    /// # Errors
    /// A sentence about the word that is neither.
    pub(crate) fn paths(&self) -> Result<FromTo, String> {
        from_to(&self.paths)
    }
}

/// `xs upgrade`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  xs upgrade ./store")]
pub(crate) struct UpgradeArgs {
    /// Directory of the store [default: that of --addr].
    #[arg(value_hint = ValueHint::DirPath, value_parser = store())]
    pub(crate) store: Option<Address>,
}

/// `xs compact`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  xs compact ./store\n  xs compact ./store --dead-percent 1")]
pub(crate) struct CompactArgs {
    /// The store: a directory, or a server's address [default: that of --addr].
    #[arg(value_hint = ValueHint::DirPath, value_parser = store())]
    pub(crate) store: Option<Address>,
    /// Rewrite segments of which at least this much is dead.
    #[arg(long, value_name = "PERCENT", default_value_t = 50,
        value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(crate) dead_percent: u8,
}

/// `xs gc`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xs gc ./store --dry-run
  xs gc ./store --grace 1h --yes")]
pub(crate) struct GcArgs {
    /// The store: a directory, or a server's address [default: that of --addr].
    #[arg(value_hint = ValueHint::DirPath, value_parser = store())]
    pub(crate) store: Option<Address>,
    /// Keep unreferenced bodies until the newest body in their pack is this old.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "24h")]
    pub(crate) grace: Duration,
    /// Rewrite packs of which at least this much is dead; 0 with --grace 0s frees all that is dead.
    #[arg(long, value_name = "PERCENT", default_value_t = 25,
        value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) dead_percent: u8,
    #[command(flatten)]
    pub(crate) sure: SureArgs,
}

/// `xs id`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xs id
  xs id 03g4a5lk7bc9ucnxswp2nn1gj
  xs cat --after $(xs id --at yesterday)")]
pub(crate) struct IdArgs {
    /// Print the time of this id.
    #[arg(value_parser = FrameId::parse, conflicts_with = "at")]
    pub(crate) id: Option<FrameId>,
    /// Print the lowest id of this time, to read from there.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = point_now)]
    pub(crate) at: Option<u64>,
}

/// `xs completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xs completions bash > ~/.local/share/bash-completion/completions/xs
  xs completions fish > ~/.config/fish/completions/xs.fish
  xs completions zsh > ~/.zfunc/_xs")]
pub(crate) struct CompletionsArgs {
    /// The shell.
    pub(crate) shell: Shell,
}

/// `xs man`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  xs man | man -l -\n  xs man --dir /usr/local/share/man/man1")]
pub(crate) struct ManArgs {
    /// Write a page for xs and one per subcommand into this directory.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dir: Option<PathBuf>,
}
