//! What was typed, as types. Pure: nothing here opens a file, a socket or asks for the time.

mod address;
mod cursor;
mod expect;
mod maintain;
mod reach;
mod read;
mod serve;
mod time;
mod token;
mod transfer;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueHint};
use xs_engine::{BlobHash, FrameId, IdempotencyKey, Meta, SyncPolicy, Topic, Ttl};
use xs_protocol::Address;
use xs_protocol::limits::LAST_MAX;
use xs_runtime::permissions::Allow;

pub(crate) use address::lift;
pub(crate) use cursor::{CursorSubcommand, EachArgs, Place};
pub(crate) use expect::Expect;
pub(crate) use maintain::{
    BackupArgs, CompactArgs, CompletionsArgs, CopyArgs, FromTo, GcArgs, IdArgs, ManArgs,
    RepairArgs, UpgradeArgs, VerifyArgs,
};
pub(crate) use reach::ReachArgs;
pub(crate) use read::{BodyArgs, CatArgs, EffectsArgs, PatternArgs, TailArgs, WhyArgs, bound};
pub(crate) use serve::{LogArgs, LogFormat, MetricsArgs, TlsArgs};
pub(crate) use time::{duration, point};
pub(crate) use token::{TokenCreateArgs, TokenSubcommand};
pub(crate) use transfer::{ExportArgs, ImportArgs, RemoveArgs};

const ROOT_EXAMPLES: &str = "\
Examples:
  xs serve ./store --modules ./modules    keep a store and run its processors
  echo hello | xs append ./store notes    store one event
  xs tail ./store notes                   follow it live
  xs call ./store report topic=metrics.recv

Addresses: a store directory, its socket, :port, host:port, or xss://host:port with TLS. Give one
with -a, in $XS_ADDR, or as the first argument when it holds / or : or begins with a dot. The
default is ~/.local/share/xs/store. Nobody serves a directory? Then xs opens it itself, without
modules. A token is taken from --token-file or $XS_TOKEN.

Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 condition not met, 5 cannot reach a store,
6 timed out, 7 denied, 8 the store's files failed, 130 interrupted.";

/// An event store with live subscriptions and JavaScript processors next to the data.
#[derive(Debug, Parser)]
#[command(name = "xs", version, max_term_width = 100, after_help = ROOT_EXAMPLES)]
#[command(subcommand_value_name = "SUBCOMMAND", subcommand_help_heading = "Subcommands")]
pub(crate) struct Args {
    /// The store: a directory, a socket, :port, host:port or xss://host:port.
    #[arg(short = 'a', long, global = true, env = "XS_ADDR", value_name = "ADDR",
        value_parser = Address::parse)]
    pub(crate) addr: Option<Address>,
    #[command(flatten)]
    pub(crate) reach: ReachArgs,
    /// What to do.
    #[command(subcommand)]
    pub(crate) subcommand: Subcommand,
}

impl Args {
    /// Whether this process itself evaluates modules.
    pub(crate) const fn runs_javascript(&self) -> bool {
        matches!(
            self.subcommand,
            Subcommand::Modules(
                ModulesSubcommand::Check { .. } | ModulesSubcommand::State { at: Some(_), .. }
            ) | Subcommand::Test(_)
        )
    }
}

/// The subcommands.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Subcommand {
    /// Serve a store and run its modules until SIGTERM or Ctrl-C.
    Serve(ServeArgs),
    /// Append an event, or one for each line of the input.
    Append(AppendArgs),
    /// Print events, and go on with new ones if asked to.
    Cat(CatArgs),
    /// Print the newest events and those that follow: cat --follow --last 10.
    Tail(TailArgs),
    /// Run a command for each event, and remember how far it came.
    Each(EachArgs),
    /// Print the newest events of topics.
    Last(LastArgs),
    /// Print one event.
    Get(GetArgs),
    /// Print what led to an event: its cause, the cause of that, and so on, the first one first.
    Why(WhyArgs),
    /// Print what came of an event, as a tree.
    Effects(EffectsArgs),
    /// Read and write the content-addressed bodies.
    #[command(subcommand)]
    Cas(CasSubcommand),
    /// Call a command module and print what it answers.
    Call(CallArgs),
    /// List topics with their sizes.
    Topics(TopicsArgs),
    /// Remove events for good.
    Remove(RemoveArgs),
    /// Write events and their bodies into a directory.
    Export(ExportArgs),
    /// Read events and their bodies from a directory.
    Import(ImportArgs),
    /// Tell about a store and its server in numbers.
    #[command(after_help = "Examples:\n  xs stats\n  xs stats ./store | jq .commit.sync")]
    Stats,
    /// Named positions of readers.
    #[command(subcommand)]
    Cursor(CursorSubcommand),
    /// See the modules that a server runs.
    #[command(subcommand)]
    Modules(ModulesSubcommand),
    /// Work on modules: serve a store of their own, and show what becomes of each save.
    Dev(DevArgs),
    /// Run the tests of modules, against a store in memory.
    Test(TestArgs),
    /// Make, list and revoke what lets others connect over the network.
    #[command(subcommand)]
    Token(TokenSubcommand),
    /// Ask a server whether it is there.
    Ping(PingArgs),
    /// Look for what is wrong with a store's surroundings: its disk, its limits, its server.
    #[command(after_help = "Examples:\n  xs doctor\n  xs doctor ./store")]
    Doctor,
    /// Check every byte of a store that nobody serves.
    Verify(VerifyArgs),
    /// Save what is left of a damaged store into a new one.
    Repair(RepairArgs),
    /// Copy a store; only what is new is copied the next time.
    Backup(BackupArgs),
    /// Make a store of its own out of another: its whole history, in no time.
    Fork(CopyArgs),
    /// Make a store out of a backup.
    Restore(CopyArgs),
    /// Bring a store to the present format.
    Upgrade(UpgradeArgs),
    /// Give back the space of events that are gone.
    Compact(CompactArgs),
    /// Give back the space of bodies that no event names any more.
    Gc(GcArgs),
    /// Make an id, or tell the time of one.
    Id(IdArgs),
    /// Print a completion script for a shell.
    Completions(CompletionsArgs),
    /// Print the manual, or write its pages into a directory.
    Man(ManArgs),
    /// Print the version of xs and of its JavaScript engine.
    Version,
    /// The process that runs modules; started by `serve`, over a socket it inherits.
    #[command(name = "__host", hide = true)]
    Host(HostArgs),
}

/// `xs serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xs serve ./store
  xs serve ./store --modules ./modules --listen :4000
  xs serve ./store --sync interval:50ms
  xs serve ./store --listen 0.0.0.0:4000 --tls-cert cert.pem --tls-key key.pem
  xs serve ./store --metrics :9100 --log json

Sync policies: sync acknowledges an event when it survives a power cut. interval:50ms acknowledges
at once and syncs 50 ms later: kill -9 loses nothing, a power cut at most that. none leaves the
writing to the operating system.")]
pub(crate) struct ServeArgs {
    /// Directory of the store, created if absent [default: that of --addr].
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) store: Option<PathBuf>,
    /// Directory with generators/, handlers/, commands/ and lib/ to run.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) modules: Option<PathBuf>,
    /// Also listen on this address, as :port or host:port; port 0 picks a free one. Beyond loopback
    /// that takes TLS and a token.
    #[arg(long, value_name = "ADDR", value_parser = Address::parse)]
    pub(crate) listen: Vec<Address>,
    #[command(flatten)]
    pub(crate) tls: TlsArgs,
    #[command(flatten)]
    pub(crate) metrics: MetricsArgs,
    #[command(flatten)]
    pub(crate) allow: AllowArgs,
    /// When an append is acknowledged: sync, interval:TIME or none.
    #[arg(long, value_name = "POLICY", default_value = "sync")]
    pub(crate) sync: SyncPolicy,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// What modules may ask for beyond named hosts, files and variables.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct AllowArgs {
    /// Let modules that ask for it reach every host.
    #[arg(long)]
    pub(crate) allow_net_any: bool,
    /// Let modules that name them reach private and loopback addresses.
    #[arg(long)]
    pub(crate) allow_net_private: bool,
    /// Let modules that name them run programs.
    #[arg(long)]
    pub(crate) allow_run: bool,
}

impl AllowArgs {
    /// The same as the runtime takes it. No module may read below `read_denied`.
    pub(crate) fn allow(self, read_denied: Vec<PathBuf>) -> Allow {
        Allow {
            net_any: self.allow_net_any,
            net_private: self.allow_net_private,
            run: self.allow_run,
            read_denied,
        }
    }
}

/// `xs __host`.
#[derive(Debug, clap::Args)]
pub(crate) struct HostArgs {
    /// The modules directory.
    #[arg(long)]
    pub(crate) modules: PathBuf,
    /// The store's directory, which no module may read.
    #[arg(long)]
    pub(crate) store: PathBuf,
    #[command(flatten)]
    pub(crate) allow: AllowArgs,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// `xs append`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xs append notes 'buy milk'
  date | xs append ticks
  xs append photos --file cat.jpg --meta '{\"width\":640}'
  journalctl -f -o cat | xs append journal --lines
  jq -c . data.json | xs append readings --lines --json
  xs append deploy.done -n
  xs append account.7 --expect 41 '-12.50'
  xs append orders --key \"$ORDER_ID\" --file order.json

Without BODY the body is read from standard input to its end; on a terminal there is none.")]
pub(crate) struct AppendArgs {
    /// The topic, for example metrics.cpu.
    pub(crate) topic: Topic,
    /// The body; - reads standard input.
    #[arg(conflicts_with_all = ["file", "no_body", "lines"])]
    pub(crate) body: Option<String>,
    /// Take the body from a file, byte for byte.
    #[arg(long, value_name = "PATH", conflicts_with = "no_body", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
    /// No body; standard input is not touched.
    #[arg(short = 'n', long)]
    pub(crate) no_body: bool,
    /// One event for each line; stored as the lines arrive.
    #[arg(long, conflicts_with = "no_body")]
    pub(crate) lines: bool,
    /// The body, or each line, is a JSON object that becomes the meta.
    #[arg(long, conflicts_with_all = ["no_body", "meta"])]
    pub(crate) json: bool,
    /// Meta: a JSON object.
    #[arg(long, value_name = "JSON", value_parser = meta_object)]
    pub(crate) meta: Option<Meta>,
    /// How long it is kept: forever, ephemeral, time:MS or last:N.
    #[arg(long, default_value = "forever")]
    pub(crate) ttl: Ttl,
    /// Append only if the topic holds nothing (empty) or nothing newer than an offset; head=N: only
    /// if the next event gets offset N; TOPICS=... looks at other topics. Otherwise exit code 4.
    #[arg(long, value_name = "CONDITION", value_parser = Expect::parse, conflicts_with = "lines")]
    pub(crate) expect: Vec<Expect>,
    /// Store this once, however often it is sent with the same key within 24 hours.
    #[arg(long, value_parser = IdempotencyKey::parse, conflicts_with = "lines")]
    pub(crate) key: Option<IdempotencyKey>,
}

/// `xs last`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xs last metrics.recv
  xs last -n 5 'alerts.*'
  xs last --per-topic metrics.")]
pub(crate) struct LastArgs {
    #[command(flatten)]
    pub(crate) patterns: PatternArgs,
    /// How many, the newest last.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(1..=LAST_MAX))]
    pub(crate) count: u64,
    /// The newest event of each topic instead.
    #[arg(long, conflicts_with = "count")]
    pub(crate) per_topic: bool,
    #[command(flatten)]
    pub(crate) body: BodyArgs,
}

/// `xs get`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xs get 03g4a5lk7bc9ucnxswp2nn1gj
  xs get 42 --body > body.bin")]
pub(crate) struct GetArgs {
    /// Its id, or its offset.
    #[arg(value_parser = bound, value_name = "ID")]
    pub(crate) place: xs_engine::Bound,
    #[command(flatten)]
    pub(crate) body: BodyArgs,
}

/// `xs cas`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum CasSubcommand {
    /// Write the bytes with this hash to standard output.
    #[command(
        after_help = "Example:\n  xs cas get sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
    )]
    Get {
        /// The hash, as an event shows it.
        hash: BlobHash,
    },
    /// Store bytes and print their hash.
    #[command(after_help = "Examples:\n  xs cas put < photo.jpg\n  xs cas put --file photo.jpg")]
    Put {
        /// Read a file instead of standard input.
        #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
        file: Option<PathBuf>,
    },
}

/// `xs call`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xs call report topic=metrics.recv
  xs call resize width:=640 - < photo.jpg > small.jpg
  xs call ask --timeout 2m 'What is new?'

Objects are printed as JSON, one a line, text as lines, bytes as they are. Ctrl-C cancels the call.
An error of the module goes to standard error and ends with exit code 1.")]
pub(crate) struct CallArgs {
    /// The command's name.
    pub(crate) name: Topic,
    /// key=text or key:=json for each argument; a last word without = is the body, - reads standard
    /// input.
    #[arg(value_name = "KEY=TEXT|KEY:=JSON|BODY")]
    pub(crate) words: Vec<String>,
    /// All arguments as one JSON object; single ones are set on top.
    #[arg(long, value_name = "JSON", value_parser = meta_object)]
    pub(crate) args: Option<Meta>,
    /// Give the call up after this time in total [default: 30s without a result].
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,
}

/// `xs topics`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  xs topics\n  xs topics 'xs.*' metrics.")]
pub(crate) struct TopicsArgs {
    #[command(flatten)]
    pub(crate) patterns: PatternArgs,
}

/// `xs modules`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum ModulesSubcommand {
    /// List the modules and how they are.
    #[command(after_help = "Examples:\n  xs modules list ./store\n  xs modules list --check")]
    List {
        /// End with exit code 1 when any has failed or is invalid.
        #[arg(long)]
        check: bool,
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
        /// After this frame: its present code over all it was given up to there.
        #[arg(long, value_name = "ID", value_parser = frame_id)]
        at: Option<FrameId>,
    },
    /// Print what a module has said with console and ctx.log.
    #[command(
        after_help = "Examples:\n  xs modules logs anomaly\n  xs modules logs -f -n 0 anomaly"
    )]
    Logs {
        /// The module's name.
        name: Topic,
        /// How many lines, the newest last.
        #[arg(short = 'n', long, value_name = "N", default_value_t = 50,
            value_parser = clap::value_parser!(u64).range(0..=LAST_MAX))]
        count: u64,
        /// Go on with what it says from now on.
        #[arg(short, long)]
        follow: bool,
    },
    /// Evaluate the modules of a directory without running them, and say what is wrong.
    #[command(after_help = "Example:\n  xs modules check ./modules")]
    Check {
        /// The modules directory.
        #[arg(value_hint = ValueHint::DirPath)]
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
        #[arg(long, default_value = ".", value_hint = ValueHint::DirPath)]
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

/// What makes a destructive subcommand go on.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct SureArgs {
    /// Do not ask. Needed where there is no terminal to ask on.
    #[arg(short = 'y', long)]
    pub(crate) yes: bool,
    /// Only say what would be done.
    #[arg(long)]
    pub(crate) dry_run: bool,
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
    #[arg(default_value = ".", value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,
    #[command(flatten)]
    pub(crate) allow: AllowArgs,
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
    /// The modules directory.
    #[arg(default_value = ".", value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,
    /// Only the files whose path holds one of these.
    pub(crate) only: Vec<String>,
}

/// `xs ping`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  xs ping\n  xs ping ./store --wait 30s")]
pub(crate) struct PingArgs {
    /// Keep trying for so long until a server answers.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) wait: Option<Duration>,
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
            "xs append t --json --meta {}",
            "xs append t --meta 1",
            "xs append t --ttl soon",
            "xs append 9t",
            "xs cat --last 3 --new",
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
