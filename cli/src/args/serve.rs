//! What `serve` is told about its network, its messages and its numbers.

use std::path::PathBuf;

use clap::ValueHint;
use tracing::level_filters::LevelFilter;
use xs_protocol::Address;

/// How messages look on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// A line for people.
    Text,
    /// A JSON object a line.
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
    /// How messages look on standard error.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) log: LogFormat,
    /// Least important messages: error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub(crate) log_level: LevelFilter,
}

/// The certificate of a server.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct TlsArgs {
    /// Speak TLS on every --listen, with this certificate and those above it (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_key", value_hint = ValueHint::FilePath)]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The key of the certificate (PEM). Both are read again when they change.
    #[arg(long, value_name = "FILE", requires = "tls_cert", value_hint = ValueHint::FilePath)]
    pub(crate) tls_key: Option<PathBuf>,
}

/// The numbers of a server.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct MetricsArgs {
    /// Answer HTTP at this address: /metrics for Prometheus, /healthz and /readyz.
    #[arg(long, value_name = "ADDR", value_parser = Address::parse)]
    pub(crate) metrics: Option<Address>,
    /// Let --metrics be an address that other machines reach: it is not protected.
    #[arg(long, requires = "metrics")]
    pub(crate) metrics_public: bool,
}
