//! The systems that are compared, each with the same few operations: what a user of it would write
//! with its usual client, in the way that suits it best.

mod cross_stream;
mod nats;
mod redis;
mod sqlite;
mod xs;

use std::cell::Cell;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use xs_bench::daemon::{Daemon, LOOK_AGAIN, PATIENCE};

pub(crate) use self::cross_stream::CrossStream;
pub(crate) use self::nats::Nats;
pub(crate) use self::redis::Redis;
pub(crate) use self::sqlite::Sqlite;
pub(crate) use self::xs::Xs;

/// Number of topics that messages go to in turn.
pub(crate) const TOPICS: u64 = 100;

/// What an acknowledgement promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Promise {
    /// A crash of the server loses nothing; a power cut loses what was not synced yet.
    Process,
    /// A power cut loses nothing.
    Power,
}

/// Where a server keeps its files, and its program.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) dir: PathBuf,
    pub(crate) program: PathBuf,
    pub(crate) promise: Promise,
}

impl Setup {
    /// Returns the file for the server's output.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("log")
    }
}

/// A system with one running server.
pub(crate) trait System: Sized {
    type Link: Link;
    /// Its name in rows.
    const NAME: &'static str;
    /// Whether it runs in the process of its client: it has no server and no subscribers.
    const IN_PROCESS: bool = false;
    /// Whether it stores many messages at once, in order.
    const BATCHES: bool = true;
    /// Maximum number of messages that it gets to read or to handle, and of deliveries that it
    /// makes: more would take too long.
    const MESSAGES_MAX: u64 = u64::MAX;

    /// Its settings, for people.
    fn settings(promise: Promise) -> &'static str;
    /// Starts a server on the contents of the directory.
    async fn start(setup: &Setup) -> anyhow::Result<Self>;
    /// The id of the server's process.
    fn pid(&self) -> u32;
    /// Opens a new connection.
    async fn link(&self) -> anyhow::Result<Self::Link>;
    /// Kills the server like a crash.
    fn kill(self) -> anyhow::Result<()>;
}

/// A connection.
pub(crate) trait Link: Clone {
    type Feed: Feed;
    /// The name of a blob.
    type Name;

    /// Appends a message and waits for the acknowledgement.
    fn append(&self, topic: u64, body: Bytes) -> impl Future<Output = anyhow::Result<()>>;
    /// Appends messages in one request, or as few as possible, to topics in turn beginning with
    /// `topic`.
    fn append_all(
        &self,
        topic: u64,
        bodies: Vec<Bytes>,
    ) -> impl Future<Output = anyhow::Result<()>>;
    /// Reads the stored messages, bodies included, and counts them.
    async fn read(&self, topic: Option<u64>, seen: &Cell<u64>) -> anyhow::Result<()>;
    /// Prepares reads of one topic, where they do not read what was appended: appends the topic's
    /// messages once more, and returns how many.
    async fn prepare_topic(&self, _topic: u64, _bodies: Vec<Bytes>) -> anyhow::Result<u64> {
        Ok(0)
    }
    /// Reads the newest message of a topic.
    fn last(&self, topic: u64) -> impl Future<Output = anyhow::Result<()>>;
    /// Follows what is appended from now on.
    async fn follow(&self) -> anyhow::Result<Self::Feed>;
    /// Stores a blob.
    async fn put(&self, number: u64, blob: Bytes) -> anyhow::Result<Self::Name>;
    /// Reads a blob and returns its length.
    async fn get(&self, name: &Self::Name) -> anyhow::Result<u64>;
}

/// Messages as they are appended.
pub(crate) trait Feed {
    /// Waits for the next messages.
    async fn next(&mut self, each: &mut dyn FnMut(&[u8])) -> anyhow::Result<()>;
}

/// The topics in turn, beginning with `topic`.
pub(crate) fn topics_from(topic: u64) -> impl Iterator<Item = u64> {
    (topic..).map(|topic| topic % TOPICS)
}

/// Returns a port of this machine that nothing listens on.
pub(crate) fn free_port() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
    Ok(listener.local_addr()?)
}

/// Repeats an attempt until it succeeds, while the server lives.
pub(crate) async fn until<T, F>(
    daemon: &mut Daemon,
    mut attempt: impl FnMut() -> F,
) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    let give_up = Instant::now() + PATIENCE;
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) if Instant::now() > give_up => return Err(error),
            Err(_) => {}
        }
        if let Some(status) = daemon.ended()? {
            bail!("a server ended with {status}:\n{}", daemon.said());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Finds a program by name, as a shell would.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut dirs = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    dirs.find_map(|dir| Some(dir.join(name)).filter(|program| program.is_file()))
}

/// Returns the first line that a program prints for an argument.
pub(crate) fn says(program: &Path, arg: &str) -> String {
    let said = Command::new(program).arg(arg).output().map(|run| run.stdout).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    said.lines().next().unwrap_or("unknown").to_owned()
}
