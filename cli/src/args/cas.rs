//! What `cas` is told.

use std::path::PathBuf;

use clap::ValueHint;
use xs_engine::BlobHash;

/// `xs cas`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum CasSubcommand {
    /// Write the bytes with this hash to standard output.
    #[command(
        after_help = "Example:\n  xs cas get sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
    )]
    Get {
        /// The hash, as an event shows it.
        hash: BlobHash,
    },
    /// Store bytes and print their hash.
    #[command(after_help = "Examples:\n  xs cas put < photo.jpg\n  xs cas put --file photo.jpg")]
    Put {
        /// Read a file instead of standard input.
        #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
        file: Option<PathBuf>,
    },
}
