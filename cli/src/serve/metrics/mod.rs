//! The server's metrics over HTTP: `/metrics` for Prometheus, `/healthz` and `/readyz` for process
//! supervisors. It answers before the store is open, so that a long recovery is visible. Exposes no
//! topics, client names or tokens, and changes nothing.

mod http;
mod modules;
mod probe;
mod store;
mod text;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use xs_engine::Store;
use xs_protocol::{Address, Server, ServerTls, TokenGuard};

pub(super) use self::probe::Probe;
pub(super) use self::store::room;
use self::text::{Exposition, Kind};
use crate::args::MetricsArgs;
use crate::exit::{Exit, ExitError};
use crate::serve::Fullness;

/// How long an exposition is reused, so that many readers cost as much as one.
const FRESH: Duration = Duration::from_secs(1);

/// The sources of the metrics, once the store is open.
pub(super) struct Served {
    pub(super) store: Arc<Store>,
    pub(super) dir: PathBuf,
    pub(super) server: Server,
    pub(super) guard: Option<Arc<TokenGuard>>,
    pub(super) tls: Option<ServerTls>,
    pub(super) fullness: Arc<Fullness>,
}

/// The HTTP responder. Dropping it stops it.
pub(super) struct Metrics {
    pub(super) probe: Arc<Probe>,
    task: Option<JoinHandle<()>>,
}

impl Drop for Metrics {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Refuses an address that other machines could reach, unless explicitly allowed.
///
/// # Errors
/// A usage error.
pub(super) fn check(args: &MetricsArgs) -> anyhow::Result<()> {
    match args.metrics.as_ref() {
        None => Ok(()),
        Some(Address::Tcp(socket)) if socket.ip().is_loopback() || args.metrics_public => Ok(()),
        Some(address @ Address::Tcp(_)) => ExitError::fail(
            Exit::Usage,
            format!(
                "{address}: other machines could read the metrics; --metrics-public allows that"
            ),
        ),
        Some(address) => {
            ExitError::fail(Exit::Usage, format!("{address}: --metrics expects :port or host:port"))
        }
    }
}

impl Metrics {
    /// Starts to answer, if configured.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub(super) async fn start(args: &MetricsArgs) -> anyhow::Result<Self> {
        let probe = Arc::<Probe>::default();
        let Some(Address::Tcp(socket)) = args.metrics.as_ref() else {
            return Ok(Self { probe, task: None });
        };
        let listener = TcpListener::bind(socket).await;
        let listener = listener.with_context(|| format!("cannot serve HTTP on {socket}"))?;
        let address = listener.local_addr()?;
        tracing::info!(%address, "metrics");
        let pages = Arc::new(Pages::new(Arc::clone(&probe)));
        let task = tokio::spawn(http::serve(listener, move |path| {
            let pages = Arc::clone(&pages);
            async move { pages.page(&path).await }
        }));
        Ok(Self { probe, task: Some(task) })
    }
}

/// The pages.
struct Pages {
    probe: Arc<Probe>,
    began: SystemTime,
    last: Mutex<Option<(Instant, String)>>,
}

impl Pages {
    fn new(probe: Arc<Probe>) -> Self {
        Self { probe, began: SystemTime::now(), last: Mutex::default() }
    }

    /// The page at a path, if there is one.
    async fn page(&self, path: &str) -> Option<http::Page> {
        match path {
            "/metrics" => Some(http::Page {
                status: http::Status::Ok,
                content_type: text::CONTENT_TYPE,
                body: self.metrics().await,
            }),
            "/healthz" => Some(self.verdict(self.probe.health())),
            "/readyz" => Some(self.verdict(self.probe.readiness())),
            _ => None,
        }
    }

    fn verdict(&self, checks: Vec<probe::Check>) -> http::Page {
        let good = checks.iter().all(|check| check.failure.is_none());
        let status = if good { http::Status::Ok } else { http::Status::Unavailable };
        let line = |check: &probe::Check| match &check.failure {
            None => format!("ok {}\n", check.name),
            Some(why) => format!("failed {}: {why}\n", check.name),
        };
        let body = checks.iter().map(line).collect();
        http::Page { status, content_type: "text/plain; charset=utf-8", body }
    }

    /// The exposition, rebuilt when the last one is stale. Only one is built at a time.
    async fn metrics(&self) -> String {
        let mut last = self.last.lock().await;
        if let Some((made, text)) = &*last
            && made.elapsed() < FRESH
        {
            return text.clone();
        }
        let (probe, began) = (Arc::clone(&self.probe), self.began);
        let text = tokio::task::spawn_blocking(move || expose(&probe, began)).await;
        let text = text.unwrap_or_default();
        *last = Some((Instant::now(), text.clone()));
        text
    }
}

/// Builds the whole exposition.
fn expose(probe: &Probe, began: SystemTime) -> String {
    let mut out = Exposition::default();
    let version = env!("CARGO_PKG_VERSION");
    out.family("xs_build_info", Kind::Gauge, "Version of the server; always 1.")
        .value(&[("version", version)], 1);
    let ready = probe.readiness().iter().all(|check| check.failure.is_none());
    out.family("xs_ready", Kind::Gauge, "Whether /readyz reports that the store accepts appends.")
        .value(&[], u64::from(ready));
    process(&mut out, began);
    if let Some(served) = probe.served() {
        store::expose(&served.store, &served.dir, &mut out);
        store::expose_server(&served.server.stats(), &mut out);
        if let Some(guard) = &served.guard {
            store::expose_guard(guard, &mut out);
        }
        if let Some(end) = served.tls.as_ref().and_then(ServerTls::not_after) {
            out.family(
                "xs_tls_certificate_expiry_timestamp_seconds",
                Kind::Gauge,
                "Expiry of the certificate in use, in seconds since 1970.",
            )
            .number(&[], end as f64);
        }
        modules::expose(&served.store, &mut out);
    }
    out.finish()
}

/// Metrics of the process, under the names used by Prometheus client libraries.
fn process(out: &mut Exposition, began: SystemTime) {
    let since = began.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    out.family(
        "process_start_time_seconds",
        Kind::Gauge,
        "Start time of the process, in seconds since 1970.",
    )
    .number(&[], since.as_secs_f64());
    if let Some(bytes) = resident_bytes() {
        out.family("process_resident_memory_bytes", Kind::Gauge, "Resident memory.")
            .value(&[], bytes);
    }
    if let Ok(open) = count_descriptors() {
        out.family("process_open_fds", Kind::Gauge, "Open file descriptors.").value(&[], open);
    }
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

fn count_descriptors() -> io::Result<u64> {
    Ok(std::fs::read_dir("/proc/self/fd")?.count() as u64)
}
