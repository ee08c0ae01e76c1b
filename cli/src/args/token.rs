//! What `token` is told.

use std::time::Duration;

use xs_engine::TopicPatterns;
use xs_protocol::Role;

use super::duration;

/// `xs token`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum TokenSubcommand {
    /// Create a token and print it. Only its hash is stored, so it cannot be shown again.
    Create(TokenCreateArgs),
    /// List the tokens of a store.
    #[command(after_help = "Example:\n  xs token list ./store")]
    List,
    /// Revoke a token. Connections that use it are closed.
    #[command(after_help = "Example:\n  xs token revoke ./store ci")]
    Revoke {
        /// The token's name.
        name: String,
    },
}

/// `xs token create`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  xs token create ci --role append --topics 'builds.*' --expires 30d > ci.token
  xs token create sensor-7 --role append --append sensors.7 --no-read
  xs token create dashboard --role read --read 'metrics.*,alerts.*'

Clients pass the token in $XS_TOKEN or in a file named by --token-file. A running server notices
tokens that are created or revoked.")]
pub(crate) struct TokenCreateArgs {
    /// The token's name: 1 to 64 of a-z A-Z 0-9 . _ -
    pub(crate) name: String,
    /// What the token allows: read, append, admin or host.
    #[arg(long)]
    pub(crate) role: Role,
    /// Topics to read and, with the role append, to append to [default: all but xs.*].
    #[arg(long, value_name = "PATTERNS")]
    pub(crate) topics: Option<TopicPatterns>,
    /// Topics to read, instead of --topics.
    #[arg(long, value_name = "PATTERNS")]
    pub(crate) read: Option<TopicPatterns>,
    /// Topics to append to, instead of --topics.
    #[arg(long, value_name = "PATTERNS")]
    pub(crate) append: Option<TopicPatterns>,
    /// Allow no reading.
    #[arg(long, conflicts_with = "read")]
    pub(crate) no_read: bool,
    /// Expire after this time: 12h, 30d, 52w.
    #[arg(long, value_name = "TIME", value_parser = some_time)]
    pub(crate) expires: Option<Duration>,
}

/// A duration that is not over when it begins.
fn some_time(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("the token would expire as soon as it is created".to_owned()),
        time => Ok(time),
    }
}
