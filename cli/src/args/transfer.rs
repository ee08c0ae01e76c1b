//! Frames on their way out of a store and into another, and out of the world.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::ValueHint;
use xs_engine::Bound;
use xs_protocol::Address;

use super::SureArgs;
use super::directory::{path, store};
use super::read::{PatternArgs, TimeArgs, bound};

/// `xs export`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xs export ./dump
  xs -a ./store export ./dump metrics. --since yesterday
  xs export --archive events.tar.zst metrics.
  xs export --archive - | ssh elsewhere xs import - ./new-store

Writes DIR/frames.jsonl, a line for each event, and their bodies into DIR/cas. The same line again
goes on where it stopped. An archive holds the same in one file, which is there when it is whole,
and suits many small bodies: it makes no file of each. The same events make the same bytes. xs
import makes a store of either. Exit code 1 when events of the store, or bodies of them, could not
be read; the others are there.")]
pub(crate) struct ExportArgs {
    /// The directory, made if it does not exist, unless there is --archive. Then topics: exact
    /// (a.b), everything below (a.* or a.), comma lists [default: all].
    #[arg(value_name = "[DIR] TOPICS", value_hint = ValueHint::DirPath)]
    words: Vec<OsString>,
    /// Write a file instead of a directory: a tar in zstd; - is standard output.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    archive: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) times: TimeArgs,
}

/// Where an export goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target<'a> {
    /// A directory.
    Dir(&'a Path),
    /// A file.
    File(&'a Path),
    /// Standard output.
    Stdout,
}

impl ExportArgs {
    /// Where to, and of which topics.
    ///
    /// # Errors
    /// A sentence about what is missing or no topic.
    pub(crate) fn parts(&self) -> Result<(Target<'_>, PatternArgs), String> {
        let (target, topics) = match (&self.archive, self.words.as_slice()) {
            (Some(file), topics) if file.as_os_str() == "-" => (Target::Stdout, topics),
            (Some(file), topics) => (Target::File(file), topics),
            (None, [dir, topics @ ..]) => {
                path(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
                (Target::Dir(Path::new(dir)), topics)
            }
            (None, []) => return Err("name a directory, or a file with --archive".to_owned()),
        };
        let topics = PatternArgs::of(topics).map_err(|error| match self.words.as_slice() {
            // The order of words of backup and fork.
            [store, dir] if self.archive.is_none() && is_path(dir) => {
                let (store, dir) = (store.display(), dir.display());
                format!("{error}; the store is named with -a: xs export -a {store} {dir}")
            }
            _ => error,
        })?;
        Ok((target, topics))
    }
}

fn is_path(word: &OsStr) -> bool {
    word.to_str().is_none_or(|word| word.contains('/') || word.starts_with('.'))
}

/// `xs import`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xs import ./dump ./new-store
  xs import ./dump :4000 --new-ids
  xs import events.tar.zst ./new-store
  xs import - ./new-store < events.tar.zst

Takes what xs export or cross.stream's .export wrote; an archive is unpacked below $TMPDIR first. In
a frames.jsonl of your own lines may have their body in them, as those of xs cat --with-body do.
Ids are kept, which needs a store whose events are all older, in practice a new one. Events that are
there already are counted and left alone, so the same line again goes on where it stopped. Exit code
1 when any was refused.")]
pub(crate) struct ImportArgs {
    /// The directory with frames.jsonl and cas/, an archive, or - for one on standard input.
    #[arg(value_name = "DIR|FILE", value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,
    /// The store: a directory, or a server's address [default: that of --addr].
    #[arg(value_name = "STORE", value_hint = ValueHint::DirPath, value_parser = store())]
    pub(crate) store: Option<Address>,
    /// Give the events new ids, into a store in use; the old ones find them too.
    #[arg(long)]
    pub(crate) new_ids: bool,
}

/// `xs remove`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xs remove 03g4a5lk7bc9ucnxswp2nn1gj --yes
  xs remove 41 42 --now --yes           not a byte of them stays in the files
  xs cat --format '{id}' spam | xargs xs remove --yes

Those that are there are removed, also where others are not: up to 4,096 together, more in several
steps. Exit code 3 when any was not there.")]
pub(crate) struct RemoveArgs {
    /// The events, by id or offset.
    #[arg(required = true, value_name = "ID", value_parser = bound)]
    pub(crate) places: Vec<Bound>,
    /// End only when their bytes are gone from the store's files. What other events have in common
    /// with them stays.
    #[arg(long)]
    pub(crate) now: bool,
    #[command(flatten)]
    pub(crate) sure: SureArgs,
}
