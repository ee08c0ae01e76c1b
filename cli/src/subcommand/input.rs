//! The body that `append` and `cas put` are given on a pipe or in a file. As much of it as fits in
//! memory is read before a store is opened for it: whoever feeds a pipe takes as long as they like,
//! and meanwhile nobody else could use the store.

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use rustix::fs::{FileType, fstat};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use xs_engine::BlobHash;
use xs_protocol::Client;

use crate::args::{AppendArgs, CasSubcommand, Subcommand};
use crate::connect::{Need, explain};
use crate::output::notice;

/// Bytes that are read ahead of the store, which is what travels with its frame.
const AHEAD_BYTES_MAX: usize = 1024 * 1024;

/// How long a pipe that nobody has named may say nothing before that is told.
const SILENCE: Duration = Duration::from_secs(2);

/// A body to be read, or what was read of it.
pub(super) struct Input {
    from: Source,
    head: BytesMut,
    /// What follows; `None` before it was opened.
    rest: Option<Box<dyn AsyncRead + Send + Unpin>>,
    is_whole: bool,
    is_regular: bool,
    /// Nobody has said that it is to be read.
    is_guess: bool,
}

/// Where it comes from.
enum Source {
    Stdin,
    /// A file, and what to call it.
    File(PathBuf, String),
}

impl Input {
    /// What a subcommand is to read as a whole, if anything.
    pub(super) fn of(subcommand: &Subcommand) -> Option<Self> {
        let from = match subcommand {
            Subcommand::Append(append) => of_append(append)?,
            Subcommand::Cas(CasSubcommand::Put { file: Some(path) }) => {
                Source::File(path.clone(), path.display().to_string())
            }
            Subcommand::Cas(CasSubcommand::Put { file: None }) => Source::Stdin,
            _ => return None,
        };
        let (head, is_whole, is_regular) = (BytesMut::new(), false, false);
        let is_guess = matches!((&from, subcommand), (Source::Stdin, Subcommand::Append(append))
            if append.file.is_none() && append.body.is_none());
        Some(Self { from, head, rest: None, is_whole, is_regular, is_guess })
    }

    /// Reads what fits in memory, and tells what is needed of a store then.
    pub(super) async fn need(&mut self) -> anyhow::Result<Need> {
        self.read_ahead().await?;
        // A file is there already, as is the rest of what was typed.
        Ok(if self.is_whole || self.is_regular { Need::Create } else { Need::Feed })
    }

    async fn read_ahead(&mut self) -> anyhow::Result<()> {
        let name = match &self.from {
            Source::Stdin => "standard input",
            Source::File(_, name) => name,
        };
        let rest = match &mut self.rest {
            Some(rest) => rest,
            rest => {
                let (opened, is_regular) =
                    open(&self.from).await.with_context(|| name.to_owned())?;
                self.is_regular = is_regular;
                rest.insert(opened)
            }
        };
        while self.head.len() <= AHEAD_BYTES_MAX && !self.is_whole {
            let is_guess = std::mem::take(&mut self.is_guess);
            let mut read = std::pin::pin!(rest.read_buf(&mut self.head));
            let count = tokio::select! {
                count = &mut read => count,
                () = tokio::time::sleep(SILENCE), if is_guess => {
                    notice("reading the body from standard input; -n appends without one");
                    read.await
                }
            };
            self.is_whole = count.with_context(|| name.to_owned())? == 0;
        }
        Ok(())
    }

    /// All of it, when that fits in memory.
    pub(super) async fn whole(&mut self) -> anyhow::Result<Option<Bytes>> {
        self.read_ahead().await?;
        Ok(self.is_whole.then(|| std::mem::take(&mut self.head).freeze()))
    }

    /// Stores it: its hash and length.
    pub(super) async fn put(mut self, client: &Client) -> anyhow::Result<(BlobHash, u64)> {
        self.read_ahead().await?;
        let rest: Box<dyn AsyncRead + Send + Unpin> = match self.rest {
            Some(rest) if !self.is_whole => rest,
            _ => Box::new(tokio::io::empty()),
        };
        client.blob_put(self.head.as_ref().chain(rest)).await.map_err(explain)
    }
}

fn of_append(append: &AppendArgs) -> Option<Source> {
    if append.lines || append.no_body {
        return None;
    }
    match (&append.file, append.body.as_deref()) {
        (Some(path), _) if path.as_os_str() != "-" => {
            Some(Source::File(path.clone(), format!("--file {}", path.display())))
        }
        (Some(_), _) | (None, Some("-")) => Some(Source::Stdin),
        (None, Some(_)) => None,
        // Nobody who types a topic on a terminal expects to be asked for a body.
        (None, None) if io::stdin().is_terminal() => None,
        (None, None) => Some(Source::Stdin),
    }
}

/// Opens it; whether it is a regular file.
async fn open(from: &Source) -> io::Result<(Box<dyn AsyncRead + Send + Unpin>, bool)> {
    match from {
        Source::File(path, _) => {
            let file = tokio::fs::File::open(path).await?;
            let is_regular = file.metadata().await?.is_file();
            Ok((Box::new(file), is_regular))
        }
        Source::Stdin => {
            let stat = fstat(io::stdin());
            let kind = stat.map(|stat| FileType::from_raw_mode(stat.st_mode));
            Ok((Box::new(tokio::io::stdin()), kind == Ok(FileType::RegularFile)))
        }
    }
}
