//! Turns an address into a client: of the server that listens there or, if the directory is not
//! served, of the store itself, opened for as long as this process needs it and served in process
//! through the same protocol. Subcommands see no difference.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::sync::Notify;
use xs_engine::names::{BLOB_DIR, LOCK, LOG_DIR, MANIFESTS, is_store};
use xs_engine::{OpenError, Store, StoreOptions};
use xs_protocol::{
    Address, Class, Client, ClientError, ClientOptions, Code, Listener, ProtocolError, Role,
    SOCKET_NAME, Server, ServerOptions,
};

use crate::exit::{self, Exit, ExitError};
use crate::output::notice;
use crate::reach::options;
use crate::serve::{Fullness, StoreService};

/// How long to wait for a process that holds the store but does not listen: it is starting, or it
/// is another subcommand that will end soon.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// Time between two attempts.
const LOCK_RETRY: Duration = Duration::from_millis(20);
/// The wait before the first attempt to reach a server that is waited for; it doubles up to the
/// longest.
pub(crate) const WAIT_FIRST: Duration = Duration::from_millis(50);
const WAIT_LONGEST: Duration = Duration::from_secs(2);
/// How long to wait for the reason why a connection ended.
const REASON_WAIT: Duration = Duration::from_secs(1);
/// Bytes in flight between the client and the server of one process.
const PIPE_BYTES: usize = 1024 * 1024;

/// What a subcommand needs of a store that is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// It must exist.
    Existing,
    /// It must exist, and other processes can connect too: a follower would otherwise lock them out
    /// while it waits for what they append.
    Follow,
    /// It may be created.
    Create,
    /// It may be created, and other processes can connect too: the pipe that feeds it may stay
    /// open.
    Feed,
    /// It must be served.
    Server,
}

/// A connection, and the store behind it when this process opened it.
pub(crate) struct Session {
    /// The connection.
    pub(crate) client: Client,
    /// The address under which others reach the same store.
    pub(crate) address: Address,
    local: Option<Local>,
}

struct Local {
    server: Server,
    store: Arc<Store>,
    /// The socket for other processes, if they can connect.
    socket: Option<PathBuf>,
}

impl Session {
    /// Connects to `address`, by default the user's own store.
    pub(crate) async fn open(address: Option<Address>, need: Need) -> anyhow::Result<Self> {
        Self::open_when(address, std::future::ready(Ok(need))).await
    }

    /// Connects like [`Session::open`]. An unserved store is opened only once `need` has resolved.
    pub(crate) async fn open_when(
        address: Option<Address>,
        need: impl Future<Output = anyhow::Result<Need>>,
    ) -> anyhow::Result<Self> {
        let address = address.map_or_else(default_address, Ok)?;
        let (mut to_come, mut known) = (std::pin::pin!(need), None);
        let mut give_up = Instant::now() + LOCK_WAIT;
        loop {
            let error = match Client::connect(&address, options()).await {
                Ok(client) => return Ok(Self { client, address, local: None }),
                Err(error) => error,
            };
            let Some(dir) = unserved(&address, &error) else { return Err(explain(error)) };
            let Some(need) = known else {
                known = Some(to_come.as_mut().await?);
                give_up = Instant::now() + LOCK_WAIT;
                // It may be served by now.
                continue;
            };
            if need == Need::Server {
                return ExitError::fail(Exit::Unreachable, no_server(dir));
            }
            match open_local(dir, &address, need).await? {
                Some(session) => return Ok(session),
                None if Instant::now() < give_up => tokio::time::sleep(LOCK_RETRY).await,
                None => {
                    return ExitError::fail(
                        Exit::Unreachable,
                        format!(
                            "{}: another process has the store open and does not answer; \
                             its id is in {}",
                            dir.display(),
                            dir.join(LOCK).display()
                        ),
                    );
                }
            }
        }
    }

    /// Connects to a server, and waits for it as long as it takes. Never opens a store that is not
    /// served: that would lock out the server that is awaited.
    pub(crate) async fn await_server(address: Option<Address>) -> anyhow::Result<Self> {
        let address = address.map_or_else(default_address, Ok)?;
        let client = match Client::connect(&address, options()).await {
            Ok(client) => client,
            Err(error) if may_pass(&error) => {
                let text = match unserved(&address, &error) {
                    Some(dir) => no_server(dir),
                    None => explain(error).to_string(),
                };
                notice(&format!("{text}; waiting for the server"));
                let client = when_it_answers(&address, &mut WAIT_FIRST.clone()).await?;
                notice("the server is there");
                client
            }
            Err(error) => return Err(explain(error)),
        };
        Ok(Self { client, address, local: None })
    }

    /// Whether a server answers, as opposed to a store opened by this process.
    pub(crate) const fn is_served(&self) -> bool {
        self.local.is_none()
    }

    /// Returns the error with the exit code for the reason why the connection ended. A pending
    /// request reports only that it ended, since its outcome is unknown.
    pub(crate) async fn told(&self, error: anyhow::Error) -> anyhow::Error {
        if !exit::is_cut(&error) {
            return error;
        }
        // The connection that ended may have been a different one.
        match tokio::time::timeout(REASON_WAIT, self.client.closed()).await {
            Ok(why) if why.class() == Class::Access => {
                ExitError::new(Exit::Denied, exit::text(&error)).into()
            }
            _ => error,
        }
    }

    /// Ends the connection and closes the store if this process opened it.
    pub(crate) async fn close(self) -> anyhow::Result<()> {
        drop(self.client);
        let Some(local) = self.local else { return Ok(()) };
        local.server.stop().await;
        if let Some(socket) = local.socket {
            // This process still holds the store's lock, so the socket is its own.
            let _ = std::fs::remove_file(socket);
        }
        let store = local.store;
        tokio::task::spawn_blocking(move || store.close()).await?.context("cannot close the store")
    }
}

/// The directory of the store, if the error means that no server listens there.
pub(crate) fn unserved<'a>(address: &'a Address, error: &ClientError) -> Option<&'a Path> {
    let (Address::Unix(socket), ClientError::Connect { kind, .. }) = (address, error) else {
        return None;
    };
    let nobody = matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
    let own = socket.file_name().is_some_and(|name| name == SOCKET_NAME);
    if nobody && own { socket.parent() } else { None }
}

/// Opens the store in this process; `None` when another process has it open.
async fn open_local(dir: &Path, address: &Address, need: Need) -> anyhow::Result<Option<Session>> {
    // Opening a directory would create a store in it.
    if !matches!(need, Need::Create | Need::Feed) && !is_store(dir) {
        return ExitError::fail(Exit::Unreachable, no_store(dir));
    }
    leave_alone(dir)?;
    let path = dir.to_owned();
    let opened = tokio::task::spawn_blocking(move || Store::open(&path, StoreOptions::default()));
    let store = match opened.await? {
        Ok(store) => Arc::new(store),
        Err(OpenError::Locked { .. }) => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot open the store {}", dir.display()));
        }
    };
    let failed = Arc::new(Notify::new());
    let fullness = Arc::new(Fullness::of(dir.to_owned()));
    let service = StoreService::new(Arc::clone(&store), false, failed, fullness)?;
    let server = Server::new(Arc::new(service), ServerOptions::default());
    let socket = dir.join(SOCKET_NAME);
    let socket = if matches!(need, Need::Follow | Need::Feed) {
        let address = Address::Unix(socket.clone());
        let listener = Listener::bind(&address).await;
        let listener = listener.with_context(|| format!("cannot listen on {address}"))?;
        server.listen(listener, Role::Admin);
        Some(socket)
    } else {
        None
    };
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    server.adopt(theirs, Role::Admin);
    let client = Client::over(ours, ClientOptions::default()).await.map_err(explain)?;
    let address = address.clone();
    Ok(Some(Session { client, address, local: Some(Local { server, store, socket }) }))
}

/// Whether a directory contains any part of a store.
pub(crate) fn has_begun(dir: &Path) -> bool {
    is_store(dir) || [LOG_DIR, BLOB_DIR].iter().any(|name| dir.join(name).exists())
}

/// The message for a directory that holds segments but has lost its manifests.
pub(crate) fn beheaded(dir: &Path) -> Option<String> {
    let has_segments = |mut log: std::fs::ReadDir| log.next().is_some();
    if is_store(dir) || !std::fs::read_dir(dir.join(LOG_DIR)).is_ok_and(has_segments) {
        return None;
    }
    let dir = dir.display();
    Some(format!("{dir} has segments but no manifest; xs repair {dir} INTO salvages them"))
}

/// Refuses to create a store among unrelated files, as in a directory named by mistake.
///
/// # Errors
/// A usage error that names some of them.
pub(crate) fn leave_alone(dir: &Path) -> anyhow::Result<()> {
    // Whether the directory is usable at all shows when it is used.
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(()) };
    let mut names: Vec<_> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let begun = [MANIFESTS[0], MANIFESTS[1], LOG_DIR, BLOB_DIR, LOCK];
    if names.iter().any(|name| begun.contains(&name.as_str())) {
        return Ok(());
    }
    let left = [SOCKET_NAME, "lost+found"];
    names.retain(|name| !name.starts_with('.') && !left.contains(&name.as_str()));
    names.sort();
    let more = if names.len() > 3 { ", ..." } else { "" };
    names.truncate(3);
    if names.is_empty() {
        return Ok(());
    }
    let text = format!(
        "{} is not a store and not empty ({}{more}); choose an empty or new directory",
        dir.display(),
        names.join(", ")
    );
    ExitError::fail(Exit::Usage, text)
}

/// The process that has a store open, as text; its id may not be known yet.
pub(crate) fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

/// The message for a directory that holds no store.
pub(crate) fn no_store(dir: &Path) -> String {
    beheaded(dir).unwrap_or_else(|| {
        format!("no store at {0}; create one with `xs serve {0}`, or append to it", dir.display())
    })
}

/// The message when a server is required.
pub(crate) fn no_server(dir: &Path) -> String {
    format!("no server at {0}; start one with `xs serve {0}`", dir.display())
}

/// The address of the user's default store.
pub(crate) fn default_address() -> anyhow::Result<Address> {
    default_store().map(|dir| Address::Unix(dir.join(SOCKET_NAME)))
}

/// The user's default store.
pub(crate) fn default_store() -> anyhow::Result<PathBuf> {
    match std::env::var_os("HOME") {
        Some(home) if !home.is_empty() => Ok(PathBuf::from(home).join(".local/share/xs/store")),
        _ => ExitError::fail(Exit::Usage, "HOME is not set; name a store with -a or $XS_ADDR"),
    }
}

/// A client's error with its exit code.
pub(crate) fn explain(error: ClientError) -> anyhow::Error {
    let exit = match (error.code(), error.class()) {
        _ if matches!(
            error,
            ClientError::Connect { .. }
                | ClientError::Untrusted { .. }
                | ClientError::NoCa { .. }
                | ClientError::Protocol(ProtocolError::Preface(_))
        ) =>
        {
            Exit::Unreachable
        }
        (Some(Code::DeadlinePassed), _) => Exit::TimedOut,
        (Some(Code::Indeterminate), _) => Exit::StoreFailed,
        (Some(Code::KeyReused), _) => Exit::Condition,
        (_, Class::Absent) => Exit::NotFound,
        (_, Class::Condition) => Exit::Condition,
        (_, Class::Access) => Exit::Denied,
        _ => Exit::Failed,
    };
    let text = match &error {
        ClientError::Refused(refusal) => refusal.message.clone(),
        ClientError::Connect { kind: io::ErrorKind::ConnectionRefused, .. } => {
            format!("{error}; no server listens there; start one with xs serve STORE --listen ADDR")
        }
        ClientError::Connect { kind: io::ErrorKind::PermissionDenied, .. } => {
            format!("{error}; only its owner may use it: others need xs serve --listen and a token")
        }
        ClientError::Connect { kind: io::ErrorKind::NotADirectory, .. } => {
            format!("{error}; a store is a directory")
        }
        // Another program listens there, which is not a protocol violation.
        ClientError::Protocol(stranger @ ProtocolError::Preface(_)) => stranger.to_string(),
        ClientError::NoCa { .. } => {
            format!("{error}; give the server's CA with --tls-ca or $XS_TLS_CA")
        }
        other => other.to_string(),
    };
    match error {
        ClientError::Disconnected(_) => ExitError::cut(text).into(),
        error if may_pass(&error) => ExitError::new(exit, text).passing().into(),
        _ => ExitError::new(exit, text).into(),
    }
}

/// Whether a server that ended a stream with this error, or did not answer, may come back.
pub(crate) fn may_pass(error: &ClientError) -> bool {
    match error {
        ClientError::Refused(refusal) => {
            let is_late = matches!(refusal.code, Code::HelloTimeout | Code::Stalled);
            is_late || refusal.code.class().may_retry()
        }
        // Some addresses can never be reached.
        ClientError::Connect { .. } => error.class().may_retry(),
        other => matches!(other, ClientError::Disconnected(_)),
    }
}

/// Runs work that asks nothing of the server but needs it to stay up.
///
/// # Errors
/// The connection ended, or the work failed.
pub(crate) async fn while_served<T>(
    client: &Client,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    tokio::select! {
        biased;
        done = work => done,
        why = client.closed() => Err(ExitError::cut(format!("the server is gone ({why})")).into()),
    }
}

/// Connects to a server that does not answer yet, as soon as it does. Each attempt is preceded by
/// `wait`, which grows.
///
/// # Errors
/// An error that waiting cannot fix.
pub(crate) async fn when_it_answers(
    address: &Address,
    wait: &mut Duration,
) -> anyhow::Result<Client> {
    loop {
        tokio::time::sleep(*wait).await;
        *wait = (*wait * 2).min(WAIT_LONGEST);
        match Client::connect(address, options()).await {
            Ok(client) => return Ok(client),
            Err(error) if may_pass(&error) => {}
            Err(error) => return Err(explain(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_not_use_a_socket_is_told_in_a_line() {
        let kind = io::ErrorKind::PermissionDenied;
        let (address, reason) = ("s/xs.sock".to_owned(), kind.to_string());
        let said = explain(ClientError::Connect { address, kind, reason }).to_string();
        assert!(said.starts_with("cannot connect to s/xs.sock: permission denied; "), "{said}");
        assert!(said.contains("--listen and a token") && said.len() < 128, "{said}");
    }
}
