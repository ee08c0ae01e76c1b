//! What was typed, as types. Pure: nothing here opens a file, a socket or asks for the time.

mod address;
mod append;
mod cas;
mod cursor;
mod directory;
mod expect;
mod host;
mod maintain;
mod modules;
mod reach;
mod read;
mod script;
mod serve;
mod store;
mod template;
mod time;
mod token;
mod top;
mod transfer;

use std::time::Duration;

use clap::{Parser, ValueHint};
use xs_engine::{Meta, Topic};
use xs_protocol::Address;

pub(crate) use address::{address_at, innermost};
pub(crate) use append::{AppendArgs, meta_object};
pub(crate) use cas::CasSubcommand;
pub(crate) use cursor::{CursorSubcommand, CursorTarget, EachArgs};
pub(crate) use expect::Expect;
pub(crate) use host::{HostArgs, HostProcessArgs};
pub(crate) use maintain::{
    BackupArgs, CompactArgs, CompletionsArgs, CopyArgs, FromTo, GcArgs, IdArgs, ManArgs,
    RepairArgs, UpgradeArgs, VerifyArgs,
};
pub(crate) use modules::{DevArgs, KindArg, ModulesStoreSubcommand, ModulesSubcommand, TestArgs};
pub(crate) use reach::{REACH, ReachArgs};
pub(crate) use read::{
    BodyArgs, CatArgs, EffectsArgs, GetArgs, LastArgs, PatternArgs, TailArgs, WhyArgs,
};
pub(crate) use script::{EnvArgs, EvalArgs, ReplayArgs, WhereArgs};
pub(crate) use serve::{AllowArgs, LogArgs, LogFormat, MetricsArgs, ServeArgs};
pub(crate) use store::StoreSubcommand;
pub(crate) use template::Template;
pub(crate) use time::duration;
pub(crate) use token::{TokenCreateArgs, TokenSubcommand};
pub(crate) use top::{TopArgs, TopSort};
pub(crate) use transfer::{ExportArgs, ImportArgs, RemoveArgs, Target};

const ROOT_EXAMPLES: &str = "\
Examples:
  xs serve ./store --modules ./modules    keep a store and run its processors
  echo hello | xs append ./store notes    store one event
  xs tail ./store notes                   follow it live
  xs call ./store report topic=metrics.recv
  xs help concepts                        an overview; xs help topics lists all pages

Addresses: a store directory, its socket, :port, host:port, or xss://host:port with TLS. Give one
with -a, in $XS_ADDR, or as the first argument if it contains / or : or starts with a dot. The
default is ~/.local/share/xs/store. If no server has the directory open, xs opens it itself, without
modules. The token comes from --token-file or $XS_TOKEN.

Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 condition not met, 5 cannot reach a store,
6 timed out, 7 denied, 8 writing the store failed, 9 reading the store failed, 130 interrupted.";

/// An event store with live subscriptions and JavaScript processors next to the data.
#[derive(Debug, Parser)]
#[command(name = "xs", version, max_term_width = 100, after_help = ROOT_EXAMPLES)]
#[command(subcommand_value_name = "SUBCOMMAND", subcommand_help_heading = "Subcommands")]
pub(crate) struct Args {
    /// The store: a directory, a socket, :port, host:port or xss://host:port.
    #[arg(short = 'a', long, global = true, env = "XS_ADDR", value_name = "ADDR",
        help_heading = REACH, value_hint = ValueHint::DirPath, value_parser = Address::parse)]
    pub(crate) addr: Option<Address>,
    #[command(flatten)]
    pub(crate) reach: ReachArgs,
    /// What to do.
    #[command(subcommand)]
    pub(crate) program: Program,
}

/// What this process is to be.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Program {
    #[command(flatten)]
    Subcommand(Subcommand),
    /// The process that runs modules; started by `serve` and `host`, over a socket it inherits.
    #[command(name = "__host", hide = true)]
    HostProcess(HostProcessArgs),
}

/// The subcommands.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Subcommand {
    /// Serve a store and run its modules until SIGTERM or Ctrl-C.
    Serve(ServeArgs),
    /// Run modules for a server on another machine, until SIGTERM or Ctrl-C.
    Host(HostArgs),
    #[command(flatten)]
    Store(StoreSubcommand),
    /// Inspect and control the modules of a server.
    #[command(subcommand, subcommand_value_name = "SUBCOMMAND")]
    #[command(subcommand_help_heading = "Subcommands")]
    Modules(ModulesSubcommand),
    /// Develop modules: serve a scratch store and report the result of each save.
    Dev(DevArgs),
    /// Run module tests against an in-memory store.
    Test(TestArgs),
    /// Create, list and revoke access tokens.
    #[command(subcommand, subcommand_value_name = "SUBCOMMAND")]
    #[command(subcommand_help_heading = "Subcommands")]
    Token(TokenSubcommand),
    /// Check that a server answers.
    Ping(PingArgs),
    /// Diagnose a store's environment: its disk, its limits, its server.
    #[command(after_help = "Examples:\n  xs doctor\n  xs doctor ./store")]
    Doctor,
    /// Check every byte of a store or backup, even while a server runs.
    Verify(VerifyArgs),
    /// Salvage a damaged store into a new one.
    Repair(RepairArgs),
    /// Back up a store, incrementally after the first time.
    Backup(BackupArgs),
    /// Make an independent copy of a store, with its whole history, using hard links.
    Fork(CopyArgs),
    /// Create a store from a backup.
    Restore(CopyArgs),
    /// Upgrade a store to the current format.
    Upgrade(UpgradeArgs),
    /// Free the space of removed, expired and superseded events.
    Compact(CompactArgs),
    /// Free the space of bodies that no event refers to.
    Gc(GcArgs),
    /// Make an id, or print the time of one.
    Id(IdArgs),
    /// Print a completion script for a shell.
    Completions(CompletionsArgs),
    /// Print the manual, or write its pages into a directory.
    Man(ManArgs),
    /// Print the version of xs and the name of its JavaScript engine.
    Version,
}

impl Subcommand {
    /// Whether this process itself evaluates modules.
    pub(crate) const fn runs_javascript(&self) -> bool {
        match self {
            Self::Test(_)
            | Self::Modules(
                ModulesSubcommand::Check { .. }
                | ModulesSubcommand::Store(ModulesStoreSubcommand::State { at: Some(_), .. }),
            ) => true,
            Self::Store(subcommand) => subcommand.runs_javascript(),
            _ => false,
        }
    }
}

/// `xs call`.
#[derive(Debug, clap::Args)]
#[command(
    disable_help_flag = true,
    after_help = "\
Examples:
  xs call report topic=metrics.recv
  xs call resize width:=640 - < photo.jpg > small.jpg
  xs call ask --timeout 2m 'What is new?'
  xs call resize --help                   the help of the module itself

Standard input is read only when the body is -, so a call in a shell loop does not consume the
loop's input.
Objects are printed as JSON, one per line; text as lines; bytes unchanged. Ctrl-C cancels the call.
An error of the module is printed on standard error; the exit code is 1, or 6 after a timeout."
)]
pub(crate) struct CallArgs {
    /// The command's name.
    #[arg(required_unless_present = "help")]
    pub(crate) name: Option<Topic>,
    /// Arguments, each as key=text or key:=json. A last word without = is the body; - reads it from
    /// standard input.
    #[arg(value_name = "KEY=TEXT|KEY:=JSON|BODY")]
    pub(crate) words: Vec<String>,
    /// All arguments as one JSON object; key=text and key:=json override its fields.
    #[arg(long, value_name = "JSON", value_parser = meta_object)]
    pub(crate) args: Option<Meta>,
    /// Cancel the call after this time in total [default: 30s without a result].
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,
    /// Print the help of the command; without a name, print this help.
    #[arg(short, long)]
    pub(crate) help: bool,
}

/// `xs topics`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xs topics
  xs topics 'xs.*' metrics.

count and first exclude removed and superseded events, but include expired ones for a while. bytes
covers events and bodies, including dead ones until they are compacted.")]
pub(crate) struct TopicsArgs {
    #[command(flatten)]
    pub(crate) patterns: PatternArgs,
}

/// What makes a destructive subcommand go on.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct SureArgs {
    /// Do not ask for confirmation. Required when there is no terminal.
    #[arg(short = 'y', long)]
    pub(crate) yes: bool,
    /// Only print what would be done.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// `xs ping`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  xs ping\n  xs ping ./store --wait 30s")]
pub(crate) struct PingArgs {
    /// Keep trying for up to this long until a server answers.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) wait: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_help_fits_and_has_an_example() {
        fn check(command: &mut clap::Command) {
            let help = command.render_long_help().to_string();
            for line in help.lines() {
                assert!(line.chars().count() <= 100, "{line}");
            }
            let leaf = !command.has_subcommands() && !command.is_hide_set();
            let plain = ["version", "help"].contains(&command.get_name());
            assert!(!leaf || plain || help.contains("Example"), "{}", command.get_name());
            command.get_subcommands_mut().for_each(check);
        }
        check(&mut Args::command());
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for line in [
            "xs append t body --file f",
            "xs append t -n --lines",
            "xs append t --lines --topic-from a",
            "xs append t --json --topic-from a",
            "xs append t --json --meta {}",
            "xs append t --meta 1",
            "xs append t --ttl soon",
            "xs append 9t",
            "xs cat --last 3 --new",
            "xs cat --format {topic} --with-body",
            "xs cat --format {topik}",
            "xs cat --reverse --follow",
            "xs last -n 2 --per-topic",
            "xs last -n 0",
            "xs last -n 1000001",
            "xs get !",
            "xs call name --timeout soon",
            "xs each a",
            "xs each a --cursor xs.handler.b -- true",
            "xs cat --cursor a --reverse",
            "xs cursor set a last",
            "xs backup",
            "xs backup a b c",
            "xs compact --dead-percent 0",
            "xs serve --tls-cert cert.pem",
            "xs serve --metrics-public",
            "xs token create a",
            "xs token create a --role root",
            "xs token create a --role read --read b --no-read",
        ] {
            assert!(Args::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
