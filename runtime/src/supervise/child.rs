//! The Host's side of the Host process: its standard input is the connection to the server, its
//! standard output the report of its end. It dies with the server, whatever the server dies of.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;
use std::process::ExitCode;

use rustix::process::{Signal, set_parent_process_death_signal};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use xs_protocol::{Client, ClientError, ClientOptions};

use super::{CULPRITS_VARIABLE, EXIT_WEDGED, EXIT_WORN, crash};
use crate::env_file::{self, EnvFileError};
use crate::host::{self, HostEnd, HostError, HostOptions};
use crate::isolate::Limits;
use crate::permissions::Allow;

/// What a Host process is told by its arguments.
#[derive(Debug, Clone)]
pub struct ChildOptions {
    /// The directory of the modules; without one only what admins append is run.
    pub modules: Option<PathBuf>,
    /// What modules may ask for.
    pub allow: Allow,
    /// Isolates it may make beyond the first of each processor, in practice
    /// [`host::SPENT_ISOLATES_MAX`].
    pub spent_isolates_max: usize,
    /// A file of variables that are offered beside those of the process, which come first.
    pub env_file: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
enum ChildError {
    #[error("cannot set up the process: {0}")]
    Setup(#[from] io::Error),
    #[error("cannot reach the server: {0}")]
    Connect(#[from] ClientError),
    #[error(transparent)]
    Variables(#[from] EnvFileError),
    #[error(transparent)]
    Host(#[from] HostError),
}

/// Runs a Host in this process, which a [`Supervisor`](super::Supervisor) has started for it, until
/// SIGTERM comes or it cannot go on. What goes wrong is said with `tracing`.
#[must_use]
pub fn main(options: ChildOptions) -> ExitCode {
    match run(options) {
        Ok(HostEnd::Stopped) => ExitCode::SUCCESS,
        // Exits now: waiting for the thread that does not end would take for ever.
        Ok(HostEnd::Wedged) => std::process::exit(i32::from(EXIT_WEDGED)),
        Ok(HostEnd::Worn) => ExitCode::from(EXIT_WORN),
        Err(error) => {
            tracing::error!(%error, "the Host ends");
            ExitCode::FAILURE
        }
    }
}

fn run(options: ChildOptions) -> Result<HostEnd, ChildError> {
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from)?;
    crash::install()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("xs-host")
        .enable_all()
        .build()?;
    let end = runtime.block_on(serve(options));
    runtime.shutdown_background();
    end
}

async fn serve(options: ChildOptions) -> Result<HostEnd, ChildError> {
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
    let mut env: BTreeMap<String, String> = match &options.env_file {
        Some(file) => env_file::load(file)?,
        None => BTreeMap::new(),
    };
    let texts = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    env.extend(texts);
    let culprits = env.remove(CULPRITS_VARIABLE).unwrap_or_default();
    let culprits = culprits.split(',').filter(|name| !name.is_empty()).map(str::to_owned);
    let options = HostOptions {
        client,
        modules: options.modules,
        env,
        allow: options.allow,
        limits: Limits::default(),
        culprits: culprits.collect(),
        spent_isolates_max: options.spent_isolates_max,
    };
    Ok(host::run(options, shutdown).await?)
}
