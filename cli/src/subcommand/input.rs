//! The body that `append` and `cas put` get on a pipe or in a file. As much of it as fits in memory
//! is read before a store is opened for it: a pipe may be slow, and others could not use the store
//! meanwhile.

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use rustix::fs::{FileType, fstat};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use xs_engine::BlobHash;
use xs_protocol::Client;

use crate::args::{AppendArgs, CasSubcommand, StoreSubcommand};
use crate::connect::{Need, explain, while_served};
use crate::output::notice;

/// Bytes read before the store is opened: as many as fit in a frame's own message.
const AHEAD_BYTES_MAX: usize = 1024 * 1024;

/// How long an implicitly read standard input may be silent before a notice.
const SILENCE: Duration = Duration::from_secs(2);

/// A body to be read, and the part read so far.
pub(super) struct Input {
    from: Source,
    head: BytesMut,
    /// The rest; `None` until it is opened.
    rest: Option<Box<dyn AsyncRead + Send + Unpin>>,
    is_whole: bool,
    is_regular: bool,
    /// Whether standard input is read without having been requested.
    is_guess: bool,
}

/// Where the body comes from.
enum Source {
    Stdin,
    /// A file, and its name in messages.
    File(PathBuf, String),
}

impl Input {
    /// The body that a subcommand reads, if it reads one.
    pub(super) fn of(subcommand: &StoreSubcommand) -> Option<Self> {
        let from = match subcommand {
            StoreSubcommand::Append(append) => of_append(append)?,
            StoreSubcommand::Cas(CasSubcommand::Put { file: Some(path) }) => {
                Source::File(path.clone(), path.display().to_string())
            }
            StoreSubcommand::Cas(CasSubcommand::Put { file: None }) => Source::Stdin,
            _ => return None,
        };
        let (head, is_whole, is_regular) = (BytesMut::new(), false, false);
        let names_none = match subcommand {
            StoreSubcommand::Append(append) => append.file.is_none() && append.body.is_none(),
            _ => false,
        };
        let is_guess = names_none && matches!(from, Source::Stdin);
        Some(Self { from, head, rest: None, is_whole, is_regular, is_guess })
    }

    /// Reads what fits in memory, and returns what is then needed of a store.
    pub(super) async fn need(&mut self) -> anyhow::Result<Need> {
        self.read_ahead().await?;
        // A regular file does not block, nor does a body read completely.
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

    /// The whole body, if it fits in memory. The server may go away while the input is silent.
    pub(super) async fn whole(&mut self, client: &Client) -> anyhow::Result<Option<Bytes>> {
        while_served(client, self.read_ahead()).await?;
        Ok(self.is_whole.then(|| std::mem::take(&mut self.head).freeze()))
    }

    /// Stores the body; returns its hash and length.
    pub(super) async fn put(mut self, client: &Client) -> anyhow::Result<(BlobHash, u64)> {
        while_served(client, self.read_ahead()).await?;
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
        // A user who types a topic on a terminal does not expect to be asked for a body.
        (None, None) if io::stdin().is_terminal() => None,
        (None, None) => Some(Source::Stdin),
    }
}

/// Opens the source; returns whether it is a regular file.
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
