//! The Host process: its standard input is the connection to the server, its standard output
//! carries crash reports. It dies with the server, whatever ends the server.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;
use std::process::ExitCode;

use rustix::process::{
    Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit,
};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use xs_protocol::{Client, ClientError, ClientOptions, Code};

use super::confine::{self, Measure, Opening};
use super::{CULPRITS_VARIABLE, EXIT_LOST, EXIT_WEDGED, EXIT_WORN, crash, priority};
use crate::env_file::{self, EnvFileError};
use crate::host::config::{Config, ModuleConfig};
use crate::host::{self, HostEnd, HostError, HostOptions, Part};
use crate::isolate::Limits;
use crate::permissions::Allow;
use crate::typescript;

/// File descriptors that the modules of a process share, if the machine allows as many. More would
/// only let one module take more.
const FILES_MAX: u64 = 65_536;

/// What the arguments tell a Host process.
#[derive(Debug, Clone)]
pub struct ChildOptions {
    /// The directory of the modules; without one, only what admins append runs.
    pub modules: Option<PathBuf>,
    /// The permissions that modules may request.
    pub allow: Allow,
    /// Isolates it may create beyond the first of each processor, in practice
    /// [`host::SPENT_ISOLATES_MAX`].
    pub spent_isolates_max: usize,
    /// A file of environment variables offered in addition to the process's own, which take
    /// precedence.
    pub env_file: Option<PathBuf>,
    /// The processors it runs. A process for one module is confined to what that module may use.
    pub part: Part,
}

#[derive(Debug, thiserror::Error)]
enum ChildError {
    #[error("cannot set up the process: {0}")]
    Setup(io::Error),
    #[error("cannot reach the server: {0}")]
    Connect(ClientError),
    #[error(transparent)]
    Variables(#[from] EnvFileError),
    #[error(transparent)]
    Host(#[from] HostError),
}

// Written by hand: an error included in the text is not also a source, or printing the chain
// repeats it.
impl From<io::Error> for ChildError {
    fn from(error: io::Error) -> Self {
        Self::Setup(error)
    }
}

impl From<ClientError> for ChildError {
    fn from(error: ClientError) -> Self {
        Self::Connect(error)
    }
}

impl ChildError {
    /// Whether the server is gone or going away.
    fn is_loss(&self) -> bool {
        // Not every temporary error: a full store is still there, and answers with an error.
        let gone = |code| matches!(code, Code::Draining | Code::Unauthenticated | Code::OtherHost);
        match self {
            Self::Connect(error) | Self::Host(HostError::Store(error)) => {
                matches!(error, ClientError::Disconnected(_)) || error.code().is_some_and(gone)
            }
            _ => false,
        }
    }
}

/// Runs a Host in this process, which a [`Supervisor`](super::Supervisor) has started for it, until
/// SIGTERM arrives or the Host cannot continue. Errors are logged with `tracing`.
#[must_use]
pub fn main(options: ChildOptions) -> ExitCode {
    match run(options) {
        Ok(HostEnd::Stopped) => ExitCode::SUCCESS,
        // Exits at once: waiting for the wedged thread would take forever.
        Ok(HostEnd::Wedged) => std::process::exit(i32::from(EXIT_WEDGED)),
        Ok(HostEnd::Worn) => ExitCode::from(EXIT_WORN),
        Err(error) if error.is_loss() => {
            tracing::warn!(%error, "the Host is shutting down");
            ExitCode::from(EXIT_LOST)
        }
        Err(error) => {
            tracing::error!(%error, "the Host is shutting down");
            ExitCode::FAILURE
        }
    }
}

fn run(options: ChildOptions) -> Result<HostEnd, ChildError> {
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from)?;
    crash::install()?;
    if let Err(error) = priority::lower() {
        tracing::warn!(%error, "cannot lower the priority of modules");
    }
    if let Err(error) = more_files() {
        tracing::warn!(%error, "cannot raise the limit of open files for modules");
    }
    let alone = alone(&options)?;
    // Read before the process is confined and cannot read the file any more.
    let env = variables(&options, alone.as_ref())?;
    let confined = confine(&options, alone.as_ref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("xs-host")
        .enable_all()
        .build()?;
    let end = runtime.block_on(serve(options, env, confined));
    runtime.shutdown_background();
    end
}

/// Raises the limit of file descriptors, which is 1,024 by default.
fn more_files() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.map_or(FILES_MAX, |hard| hard.min(FILES_MAX));
    if limit.current.is_none_or(|current| current >= most) {
        return Ok(());
    }
    Ok(setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: limit.maximum })?)
}

/// The operator's settings for the module of this Host, if it runs a single one.
fn alone(options: &ChildOptions) -> Result<Option<ModuleConfig>, ChildError> {
    let (Part::Only(name), Some(dir)) = (&options.part, &options.modules) else { return Ok(None) };
    Ok(Some(Config::load(dir).map_err(io::Error::other)?.module(name)))
}

/// The variables of the process and of the file. A single module gets only its own from the file.
fn variables(
    options: &ChildOptions,
    alone: Option<&ModuleConfig>,
) -> Result<BTreeMap<String, String>, ChildError> {
    let mut env: BTreeMap<String, String> = match &options.env_file {
        Some(file) => env_file::load(file)?,
        None => BTreeMap::new(),
    };
    if let Some(module) = alone {
        env.retain(|name, _| module.env.contains(name));
    }
    let texts = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    env.extend(texts);
    Ok(env)
}

/// Confines the process if it is for a single module.
fn confine(
    options: &ChildOptions,
    alone: Option<&ModuleConfig>,
) -> Result<Vec<Measure>, ChildError> {
    let (Some(module), Some(dir)) = (alone, &options.modules) else { return Ok(Vec::new()) };
    let base = |path: PathBuf| if path.is_absolute() { path } else { dir.join(path) };
    let read = module.read.iter().cloned().map(base).chain([dir.clone()]).collect();
    let run = module.widen(&options.allow).run;
    Ok(confine::enter(&Opening { read, run })?)
}

async fn serve(
    options: ChildOptions,
    mut env: BTreeMap<String, String>,
    confined: Vec<Measure>,
) -> Result<HostEnd, ChildError> {
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let asked = shutdown.clone();
    tokio::spawn(async move {
        terminate.recv().await;
        asked.cancel();
    });
    let socket = StdStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    socket.set_nonblocking(true)?;
    let name = concat!("xs-host/", env!("CARGO_PKG_VERSION")).to_owned();
    let how = ClientOptions { name, ..ClientOptions::default() };
    let client = Client::over(UnixStream::from_std(socket)?, how).await?;
    let culprits = env.remove(CULPRITS_VARIABLE).unwrap_or_default();
    let culprits = culprits.split(',').filter(|name| !name.is_empty()).map(str::to_owned);
    let culprits: Vec<_> = culprits.collect();
    typescript::avoid(&culprits);
    let options = HostOptions {
        client,
        modules: options.modules,
        env,
        allow: options.allow,
        limits: Limits::default(),
        culprits,
        spent_isolates_max: options.spent_isolates_max,
        processors_max: host::PROCESSORS_MAX,
        part: options.part,
        confined,
    };
    Ok(host::run(options, shutdown).await?)
}

#[cfg(test)]
mod tests {
    use xs_protocol::Refusal;

    use super::*;

    #[test]
    fn a_full_store_is_not_a_lost_server() {
        let refused = |code| ClientError::from(Refusal::new(code, "no"));
        let loss = |error| ChildError::Host(HostError::Store(error)).is_loss();
        for code in [Code::Draining, Code::Unauthenticated, Code::OtherHost] {
            assert!(loss(refused(code)), "{code:?}");
        }
        for code in [Code::StorageFull, Code::Busy, Code::Denied, Code::Internal] {
            assert!(!loss(refused(code)), "{code:?}");
        }
        assert!(!ChildError::Setup(io::ErrorKind::NotFound.into()).is_loss());
    }
}
