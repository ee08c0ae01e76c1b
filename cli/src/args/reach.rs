//! What every subcommand may be told about reaching a server.

use std::path::PathBuf;

use clap::ValueHint;

/// The heading of these options in every help, below those of the subcommand itself.
pub(crate) const REACH: &str = "Reaching the store";

/// How to show who one is, and whom to trust.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ReachArgs {
    /// File with the token; $XS_TOKEN if not given. No option takes the token itself, because other
    /// users of this machine can read command lines.
    #[arg(long, global = true, help_heading = REACH, value_name = "FILE",
        value_hint = ValueHint::FilePath)]
    pub(crate) token_file: Option<PathBuf>,
    /// File with the CA certificates to trust for xss:// addresses (PEM).
    #[arg(long, global = true, env = "XS_TLS_CA", help_heading = REACH,
        value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) tls_ca: Option<PathBuf>,
}
