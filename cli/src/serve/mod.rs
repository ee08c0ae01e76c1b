//! `serve`: one process that owns a store, listens, and keeps the Host running. It starts parts in
//! order, waits for a reason to stop, and stops them in reverse order, so that neither a child
//! process nor a socket is left behind.

mod call;
mod commit;
mod descriptors;
mod feed;
mod fullness;
mod hooks;
mod hosts;
mod import;
mod inherited;
mod listen;
mod maintain;
mod metrics;
mod newest;
mod refuse;
mod remove;
mod service;
mod stats;
mod upload;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use xs_engine::{
    Batch, FrameId, Health, Meta, NewFrame, OpenError, RecoveryReport, Store, StoreOptions, Topic,
};
use xs_protocol::{Address, SOCKET_NAME, Server, ServerOptions};

use crate::again::asked_again;
use crate::args::ServeArgs;
use crate::clock;
use crate::connect::{default_store, holder, leave_alone};
use crate::exit::{Exit, ExitError};
use crate::host;
use crate::manager::Manager;
use crate::signals::{Asked, Signals};
use crate::variables;

use self::listen::Plan;
use self::metrics::{Metrics, Probe, Served};
pub(crate) use fullness::Fullness;
pub(crate) use inherited::take as take_sockets;
pub(crate) use service::StoreService;

/// How long a server waits for a process that holds its store, and the interval of its attempts.
const HELD_FOR_MAX: Duration = Duration::from_secs(3);
const HELD_LOOK: Duration = Duration::from_millis(20);

/// Serves until SIGTERM, SIGINT, `stop` or a failure of the store's files.
pub(crate) async fn run(
    args: ServeArgs,
    addr: Option<Address>,
    stop: &CancellationToken,
) -> anyhow::Result<Exit> {
    crate::log::start(args.log);
    let mut signals = Signals::new()?;
    metrics::check(&args.metrics)?;
    if let Some(modules) = &args.modules {
        host::check_modules(modules)?;
    }
    let dir = store_dir(args.store.clone(), addr)?;
    leave_alone(&dir)?;
    let plan = Plan::make(&args, &dir)?;
    // The Host reads it; errors in it are reported here, at once.
    variables::of_file(&args.env)?;
    let metrics = Metrics::start(&args.metrics).await?;
    let (sync, collection) = (args.sync, args.gc.collection());
    let options = StoreOptions { sync, collection, ..StoreOptions::default() };
    let opened = tokio::select! {
        biased;
        // A recovery may take long, and the next start repeats it as after kill -9.
        () = signals.stop_only() => {
            info!("stopping before the store was open");
            return Ok(Exit::Ok);
        }
        opened = open(&dir, options) => opened?,
    };
    if let Err(OpenError::Locked { pid, .. }) = &opened {
        let (dir, who, waited) = (dir.display(), holder(*pid), HELD_FOR_MAX.as_secs());
        let text = format!(
            "{dir} is still open in {who} after {waited} s; stop it, or use it with -a {dir}"
        );
        return ExitError::fail(Exit::Unreachable, text);
    }
    let store =
        Arc::new(opened.with_context(|| format!("cannot open the store {}", dir.display()))?);
    log_recovery(&store.info().recovery);
    if let Health::ReadOnly(reason) = store.health() {
        error!(%reason, "the store is open read-only");
    }
    let connections = descriptors::connections();
    let failed = Arc::new(Notify::new());
    let fullness = Arc::new(Fullness::of(dir.clone()));
    let service = StoreService::new(
        Arc::clone(&store),
        args.modules.is_some(),
        failed.clone(),
        Arc::clone(&fullness),
    )?;
    let options = ServerOptions { connections, ..ServerOptions::default() };
    let server = Server::new(Arc::new(service), options);
    let socket = dir.join(SOCKET_NAME);
    let served = Served {
        store: Arc::clone(&store),
        dir: dir.clone(),
        server: server.clone(),
        guard: plan.guard(),
        tls: plan.tls(),
        fullness,
    };
    let keeps_socket = plan.leaves_socket(&dir);
    let heeded = Heeded { signals: &mut signals, failed: &failed, stop };
    let served = serve(&args, plan, served, &metrics.probe, heeded).await;
    drop(metrics);
    if !keeps_socket {
        // Only the holder of the store's lock gets here, so the socket is its own.
        let _ = std::fs::remove_file(&socket);
    }
    let closing = Arc::clone(&store);
    let closed = tokio::task::spawn_blocking(move || closing.close()).await?;
    match served? {
        Exit::Ok => closed.map(|()| Exit::Ok).context("cannot close the store"),
        exit => Ok(exit),
    }
}

/// Logs what opening the store did, unless it had been closed cleanly.
fn log_recovery(report: &RecoveryReport) {
    if report.clean {
        return;
    }
    let RecoveryReport { journal_groups, batches_kept, .. } = report;
    let cut_at = report.cut.as_ref().map(|cut| cut.offset);
    let said = "the store was not closed cleanly; recovering it";
    match report.blobs_dropped.len() {
        0 => info!(journal_groups, batches_kept, cut_at, "{said}"),
        // Torn and never acknowledged, or damaged: xs verify tells.
        blobs_dropped => {
            warn!(
                journal_groups,
                batches_kept, cut_at, blobs_dropped, "{said}; run xs verify for details"
            );
        }
    }
}

/// Opens the store. Waits a moment for a process that has it open, which may be a subcommand that
/// needs no server.
async fn open(dir: &Path, options: StoreOptions) -> anyhow::Result<Result<Store, OpenError>> {
    let (until, mut waits) = (Instant::now() + HELD_FOR_MAX, false);
    loop {
        let (path, options) = (dir.to_owned(), options.clone());
        let opened = tokio::task::spawn_blocking(move || Store::open(&path, options)).await?;
        if !matches!(opened, Err(OpenError::Locked { .. })) || Instant::now() >= until {
            return Ok(opened);
        }
        if !std::mem::replace(&mut waits, true) {
            info!("another process has the store open; waiting for it");
        }
        tokio::time::sleep(HELD_LOOK).await;
    }
}

/// The reasons for a server to end.
struct Heeded<'a> {
    signals: &'a mut Signals,
    /// Notified when a write to the store has failed.
    failed: &'a Notify,
    /// Cancelled by the code that runs the server in this process.
    stop: &'a CancellationToken,
}

/// Runs from the first listener to the last connection.
async fn serve(
    args: &ServeArgs,
    plan: Plan,
    served: Served,
    probe: &Probe,
    heeded: Heeded<'_>,
) -> anyhow::Result<Exit> {
    let Heeded { signals, failed, stop } = heeded;
    let (store, server) = (Arc::clone(&served.store), served.server.clone());
    let (store, server, dir) = (&store, &server, &served.dir.clone());
    let listening = plan.listen(dir, server).await?;
    let modules = args.modules.as_deref();
    let start = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "listen": listening,
        "modules": modules.map(|dir| dir.display().to_string()),
        "sync": args.sync.to_string(),
    });
    let started = announce(store, "xs.start", &start).await;
    if let Some(text) = started.and_then(clock::ahead) {
        warn!("{text}");
    }
    let modules =
        modules.map(|modules| host::start_beside(modules, dir, args, server)).transpose()?;
    info!(store = %dir.display(), listening = listening.join(" "), "serving");
    probe.serving(served);
    let mut manager = Manager::find();
    manager.tell(&format!("READY=1\nSTATUS=serving {}", dir.display()));
    let exit = loop {
        tokio::select! {
            asked = signals.asked() => match asked {
                Asked::Stop(name) => {
                    info!(signal = name, "stopping");
                    break Exit::Ok;
                }
                Asked::Look => server.look_at_files(),
            },
            () = stop.cancelled() => break Exit::Ok,
            () = manager.beat() => manager.tell("WATCHDOG=1"),
            () = failed.notified() => {
                let why = match store.health() {
                    Health::Poisoned(why) => why.to_string(),
                    _ => String::new(),
                };
                error!(%why, "a write failed; stopping: only a restart can tell what was stored");
                break Exit::StoreFailed;
            }
        }
    };
    probe.stopping();
    manager.tell("STOPPING=1\nSTATUS=stopping");
    if exit == Exit::Ok {
        announce(store, "xs.stopping", &json!({ "pid": std::process::id() })).await;
    }
    let stopped = async {
        if let Some(modules) = modules {
            modules.stop().await;
        }
        server.stop().await;
        // Commits what Hosts had queued when their connections closed.
        let last = Arc::clone(store);
        let commit = move || while last.lead() {};
        if let Err(error) = tokio::task::spawn_blocking(commit).await {
            error!(%error, "cannot commit the last queued appends");
        }
    };
    tokio::select! {
        () = stopped => Ok(exit),
        () = asked_again(async || signals.stop().await) => {
            ExitError::fail(Exit::Interrupted, "stopped at once by a second signal")
        }
    }
}

/// Appends a frame of the server itself and returns its id. On failure it only logs: the store can
/// still serve reads.
async fn announce(
    store: &Arc<Store>,
    topic: &'static str,
    meta: &serde_json::Value,
) -> Option<FrameId> {
    let (topic, meta) = (Topic::parse(topic).ok()?, Meta::parse(meta.to_string()).ok()?);
    let frame = NewFrame { meta, ..NewFrame::new(topic) };
    let store = Arc::clone(store);
    let append = move || store.append(Batch::from(frame));
    match tokio::task::spawn_blocking(append).await {
        Ok(Ok(appended)) => return appended.frames.first().map(|stamp| stamp.id),
        Ok(Err(error)) => error!(%error, "cannot append a frame of the server"),
        Err(error) => error!(%error, "cannot append a frame of the server"),
    }
    None
}

fn store_dir(typed: Option<PathBuf>, addr: Option<Address>) -> anyhow::Result<PathBuf> {
    match (typed, addr) {
        (Some(dir), _) => match dir.to_str().map(Address::parse) {
            Some(Ok(Address::Tcp(_) | Address::Tls { .. })) => ExitError::fail(
                Exit::Usage,
                format!(
                    "{0} is not a directory; to listen there: xs serve STORE --listen {0}",
                    dir.display()
                ),
            ),
            Some(Err(error)) => ExitError::fail(Exit::Usage, error.to_string()),
            _ => Ok(dir),
        },
        (None, None) => default_store(),
        (None, Some(Address::Unix(socket))) => {
            Ok(socket.parent().map_or_else(PathBuf::new, Path::to_owned))
        }
        (None, Some(address)) => ExitError::fail(
            Exit::Usage,
            format!(
                "{address} is not a directory; give the store's directory, and --listen {address}"
            ),
        ),
    }
}
