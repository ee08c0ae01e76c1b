//! What `serve` is told.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueHint;
use tracing::level_filters::LevelFilter;
use xs_engine::{CollectOptions, SyncPolicy};
use xs_protocol::Address;
use xs_runtime::permissions::Allow;

use super::EnvArgs;
use super::time::duration;

/// `xs serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xs serve ./store
  xs serve ./store --modules ./modules --listen :4000
  xs serve ./store --sync interval:50ms
  xs serve ./store --listen 0.0.0.0:4000 --tls-cert cert.pem --tls-key key.pem
  xs serve ./store --metrics :9100 --log json
  xs serve --config /etc/xs/serve.toml
  xs serve ./store --sync none --print-config > serve.toml

Sync policies: sync acknowledges an event once it would survive a power cut. interval:50ms
acknowledges at once and syncs within 50 ms: kill -9 loses nothing, a power cut at most the last
50 ms. none leaves writing to the operating system.")]
pub(crate) struct ServeArgs {
    /// The store's directory, created if it does not exist [default: that of --addr].
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) store: Option<PathBuf>,
    /// Run the modules of this directory: generators/, handlers/, commands/ and lib/.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) modules: Option<PathBuf>,
    /// Also listen on this address, :port or host:port; port 0 picks a free one. An address beyond
    /// loopback requires TLS and a token.
    #[arg(long, value_name = "ADDR", value_parser = listen)]
    pub(crate) listen: Vec<Address>,
    #[command(flatten)]
    pub(crate) tls: TlsArgs,
    #[command(flatten)]
    pub(crate) metrics: MetricsArgs,
    #[command(flatten)]
    pub(crate) allow: AllowArgs,
    #[command(flatten)]
    pub(crate) env: EnvArgs,
    /// When an append is acknowledged: sync, interval:TIME (1ms to 1m) or none.
    #[arg(long, value_name = "POLICY", default_value = "sync", value_parser = sync)]
    pub(crate) sync: SyncPolicy,
    /// Collect bodies by itself that no event names, when the newest of their pack is this old: a
    /// TIME; or off, which leaves them to xs gc.
    #[arg(long, value_name = "GRACE", default_value = "24h", value_parser = gc)]
    pub(crate) gc: Gc,
    #[command(flatten)]
    pub(crate) log: LogArgs,
    /// Read options from a TOML file: each key is an option's name without its dashes. Paths are
    /// relative to the file. The command line overrides the file.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,
    /// Print the options in effect as such a file, and exit.
    #[arg(long)]
    pub(crate) print_config: bool,
}

/// An address to listen at: TCP, or a socket beside the store's own, which is a file of that name.
fn listen(text: &str) -> Result<Address, String> {
    match Address::parse(text).map_err(|error| error.to_string())? {
        Address::Unix(_) if !text.ends_with(".sock") => {
            Err("expected: :port, host:port, or the path of a socket, DIR/NAME.sock".to_owned())
        }
        address => Ok(address),
    }
}

/// A sync policy, whose interval is any duration within the store's bounds.
fn sync(text: &str) -> Result<SyncPolicy, String> {
    let time = text.strip_prefix("interval:").and_then(|time| duration(time).ok());
    let plain = time.map(|time| format!("interval:{}ms", time.as_millis()));
    let forms = "expected: sync, interval:TIME from 1ms to 1m, as in interval:50ms, or none";
    plain.as_deref().unwrap_or(text).parse().map_err(|_| forms.to_owned())
}

/// How long bodies that no event names are kept, if they are collected without being asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gc(Option<Duration>);

impl Gc {
    /// The same as the store takes it.
    pub(crate) fn collection(self) -> Option<CollectOptions> {
        self.0.map(|grace| CollectOptions { grace, ..CollectOptions::default() })
    }
}

fn gc(text: &str) -> Result<Gc, String> {
    match (text, duration(text)) {
        ("off", _) => Ok(Gc(None)),
        (_, Ok(grace)) => Ok(Gc(Some(grace))),
        _ => Err("expected: a TIME, as in 24h or 30m, or off".to_owned()),
    }
}

/// What modules may ask for beyond named hosts, files and variables.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct AllowArgs {
    /// Let modules that request it connect to any host.
    #[arg(long)]
    pub(crate) allow_net_any: bool,
    /// Let modules that list them connect to private and loopback addresses.
    #[arg(long)]
    pub(crate) allow_net_private: bool,
    /// Let modules run the programs they list.
    #[arg(long)]
    pub(crate) allow_run: bool,
}

impl AllowArgs {
    /// The same as the runtime takes it. No module may read below `read_denied`.
    pub(crate) fn allow(self, read_denied: Vec<PathBuf>) -> Allow {
        Allow {
            net_any: self.allow_net_any,
            net_private: self.allow_net_private,
            run: self.allow_run,
            read_denied,
            apart: None,
        }
    }
}

/// How messages look on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// Plain text lines.
    Text,
    /// One JSON object per line.
    Json,
}

impl LogFormat {
    /// As it is typed.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// Messages on standard error.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct LogArgs {
    /// Format of log messages on standard error.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) log: LogFormat,
    /// Lowest level to log: error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub(crate) log_level: LevelFilter,
    /// Whether what the log of the store tells of modules is left out, since it is shown beside.
    #[arg(skip)]
    pub(crate) untold: bool,
}

/// The certificate of a server.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct TlsArgs {
    /// Use TLS on every --listen address, with this certificate chain (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_key", value_hint = ValueHint::FilePath)]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The private key of the certificate (PEM). Both files are reloaded when they change.
    #[arg(long, value_name = "FILE", requires = "tls_cert", value_hint = ValueHint::FilePath)]
    pub(crate) tls_key: Option<PathBuf>,
}

/// The numbers of a server.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct MetricsArgs {
    /// Serve HTTP on this address: /metrics for Prometheus, /healthz and /readyz.
    #[arg(long, value_name = "ADDR", value_parser = Address::parse)]
    pub(crate) metrics: Option<Address>,
    /// Allow a --metrics address that other machines can reach. It has no access control.
    #[arg(long, requires = "metrics")]
    pub(crate) metrics_public: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_collected_after_a_time_or_not_at_all() {
        let grace = |text: &str| gc(text).map(|gc| gc.collection().map(|how| how.grace));
        assert_eq!(grace("off"), Ok(None));
        assert_eq!(grace("24h"), Ok(Some(CollectOptions::default().grace)));
        assert_eq!(grace("0s"), Ok(Some(Duration::ZERO)));
        assert!(grace("on").unwrap_err().starts_with("expected: "));
    }

    #[test]
    fn a_sync_policy_takes_any_duration_within_its_bounds() {
        let read = |text: &str| sync(text).map(|policy| policy.to_string());
        for (text, policy) in [
            ("sync", "sync"),
            ("none", "none"),
            ("interval:50ms", "interval:50ms"),
            ("interval:50", "interval:50ms"),
            ("interval:1s", "interval:1000ms"),
            ("interval:1m", "interval:60000ms"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(policy), "{text}");
        }
        for text in ["soon", "interval:", "interval:0s", "interval:10us", "interval:61s", "1s"] {
            assert!(read(text).unwrap_err().starts_with("expected: "), "{text}");
        }
    }
}
