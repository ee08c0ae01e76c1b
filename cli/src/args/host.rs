//! What `host` is told, and what the process is told that runs modules.

use std::path::PathBuf;

use clap::ValueHint;
use xs_runtime::ProcessorName;

use super::directory::directory;
use super::{AllowArgs, EnvArgs, LogArgs};

/// `xs host`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xs host ./modules -a ./store
  xs host ./modules -a xss://store.example.com:4000 --token-file host.token --tls-ca ca.pem

The server must run without --modules. It accepts one Host at a time; a second one waits until the
first is gone. The token needs the role host: xs token create NAME --role host. While the server is
unreachable no module runs; afterwards each continues where it was.

Exits with code 7 when the server refuses it for good: the token is wrong or has another role, or
the server runs modules itself.")]
pub(crate) struct HostArgs {
    /// The modules directory, with generators/, handlers/, commands/ and lib/.
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath, value_parser = directory())]
    pub(crate) modules: PathBuf,
    #[command(flatten)]
    pub(crate) allow: AllowArgs,
    #[command(flatten)]
    pub(crate) env: EnvArgs,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// `xs __host`.
#[derive(Debug, clap::Args)]
pub(crate) struct HostProcessArgs {
    /// The modules directory.
    #[arg(long)]
    pub(crate) modules: PathBuf,
    /// Files and directories that no module may read: the store, a token.
    #[arg(long, value_name = "PATH")]
    pub(crate) shut: Vec<PathBuf>,
    /// Modules that have a Host of their own.
    #[arg(long, value_name = "NAME", value_parser = ProcessorName::parse)]
    pub(crate) apart: Vec<ProcessorName>,
    /// The module that this Host is for.
    #[arg(long, value_name = "NAME", value_parser = ProcessorName::parse)]
    pub(crate) only: Option<ProcessorName>,
    #[command(flatten)]
    pub(crate) allow: AllowArgs,
    #[command(flatten)]
    pub(crate) env: EnvArgs,
    #[command(flatten)]
    pub(crate) log: LogArgs,
    /// Do not log what the store's log already says about modules.
    #[arg(long)]
    pub(crate) untold: bool,
}
