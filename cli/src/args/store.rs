//! The subcommands that work on an open store, through a client. The others are in `Subcommand`.

use super::{
    AppendArgs, CallArgs, CasSubcommand, CatArgs, CursorSubcommand, EachArgs, EffectsArgs,
    EvalArgs, ExportArgs, GetArgs, ImportArgs, LastArgs, RemoveArgs, ReplayArgs, TailArgs, TopArgs,
    TopicsArgs, WhyArgs,
};

/// Subcommands that work on a store, served or opened for them.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum StoreSubcommand {
    /// Append an event, or one event per line of input.
    Append(AppendArgs),
    /// Print events; with --follow, new ones too.
    Cat(CatArgs),
    /// Print the newest events, then new ones as they come: cat --follow --last 10.
    Tail(TailArgs),
    /// Run a command for each event, and remember the position.
    Each(EachArgs),
    /// Print the newest events of topics.
    Last(LastArgs),
    /// Print one event.
    Get(GetArgs),
    /// Print the chain of events that caused an event, oldest first.
    Why(WhyArgs),
    /// Print the events that an event caused, as a tree.
    Effects(EffectsArgs),
    /// Read and write bodies by their hash.
    #[command(subcommand, subcommand_value_name = "SUBCOMMAND")]
    #[command(subcommand_help_heading = "Subcommands")]
    Cas(CasSubcommand),
    /// Call a command module and print its results.
    Call(CallArgs),
    /// List topics with their sizes.
    Topics(TopicsArgs),
    /// Remove events for good.
    Remove(RemoveArgs),
    /// Export events and bodies to a directory or an archive.
    Export(ExportArgs),
    /// Import events and bodies from a directory or an archive.
    Import(ImportArgs),
    /// Print statistics of a store and its server.
    #[command(after_help = "Examples:\n  xs stats\n  xs stats ./store | jq .commit.sync")]
    Stats,
    /// Watch topics, modules and the server live.
    Top(TopArgs),
    /// Manage cursors, the named positions of readers.
    #[command(subcommand, subcommand_value_name = "SUBCOMMAND")]
    #[command(subcommand_help_heading = "Subcommands")]
    Cursor(CursorSubcommand),
    /// Run JavaScript against a store: a line, a file, or a prompt.
    Eval(EvalArgs),
    /// Run a handler over the store's history and print what it would have appended.
    Replay(ReplayArgs),
}

impl StoreSubcommand {
    /// Whether this process itself evaluates JavaScript.
    pub(super) const fn runs_javascript(&self) -> bool {
        match self {
            Self::Eval(_) | Self::Replay(_) => true,
            Self::Cat(cat) => cat.filter.is_given(),
            Self::Tail(tail) => tail.filter.is_given(),
            Self::Each(each) => each.filter.is_given(),
            _ => false,
        }
    }
}
