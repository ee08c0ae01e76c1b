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

Writes one line per event to DIR/frames.jsonl and the bodies to DIR/cas. Run the same command again
to continue an interrupted export. An archive holds the same data in one file, which appears only
when it is complete, and is faster for many small bodies. The same events give the same bytes. xs
import reads both. Exits with code 1 if some events or bodies could not be read; all others are
exported.")]
pub(crate) struct ExportArgs {
    /// The directory, created if it does not exist (none with --archive), then topics: exact (a.b),
    /// everything below (a.* or a.), comma lists [default: all].
    #[arg(value_name = "[DIR] TOPICS", value_hint = ValueHint::DirPath)]
    words: Vec<OsString>,
    /// Write one file, a zstd-compressed tar, instead of a directory; - is standard output.
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
            (None, []) => return Err("give a directory, or a file with --archive".to_owned()),
        };
        let topics = PatternArgs::of(topics).map_err(|error| match self.words.as_slice() {
            // The order of words of backup and fork.
            [store, dir] if self.archive.is_none() && is_path(dir) => {
                let (store, dir) = (store.display(), dir.display());
                format!("{error}; use -a for the store: xs export -a {store} {dir}")
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

Reads what xs export or cross.stream's .export wrote. An archive is first unpacked below $TMPDIR. In
a frames.jsonl of your own, lines may contain their body, as the output of xs cat --with-body does,
up to 64 MiB each; longer ones take xs export.
Events keep their ids, so all events already in the store must be older; in practice, use a new
store. Events already there are counted and skipped, so run the same command again to continue.
Exits with code 1 if any event was refused.")]
pub(crate) struct ImportArgs {
    /// The directory with frames.jsonl and cas/, an archive, or - for an archive on standard input.
    #[arg(value_name = "DIR|FILE", value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,
    /// The store: a directory, or a server's address [default: that of --addr].
    #[arg(value_name = "STORE", value_hint = ValueHint::DirPath, value_parser = store())]
    pub(crate) store: Option<Address>,
    /// Assign new ids, to import into a store in use. Old ids still find the events.
    #[arg(long)]
    pub(crate) new_ids: bool,
}

/// `xs remove`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xs remove 03g4a5lk7bc9ucnxswp2nn1gj --yes
  xs remove 41 42 --now --yes           also erase their bytes from the files
  xs cat --format '{id}' spam | xargs xs remove --yes

Removes the events that exist, even if others do not: up to 4,096 in one step, more in several.
Exits with code 3 if any did not exist.")]
pub(crate) struct RemoveArgs {
    /// The events, by id or offset.
    #[arg(required = true, value_name = "ID", value_parser = bound)]
    pub(crate) places: Vec<Bound>,
    /// Return only when their bytes are erased from the store's files. Bodies shared with other
    /// events are kept.
    #[arg(long)]
    pub(crate) now: bool,
    #[command(flatten)]
    pub(crate) sure: SureArgs,
}
