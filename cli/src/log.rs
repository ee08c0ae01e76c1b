//! Messages on standard error, for people or as JSON.

use crate::args::{LogArgs, LogFormat};

/// From now on messages go to standard error.
pub(crate) fn start(args: LogArgs) {
    let log = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(args.log_level)
        .with_ansi(false);
    match args.log {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}
