//! Messages on standard error, for people or as JSON.

use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use xs_runtime::host::TOLD;

use crate::args::{LogArgs, LogFormat};

/// Sends log messages to standard error from now on.
pub(crate) fn start(args: LogArgs) {
    let log = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        // A line that cannot be written, to a full disk or a pipe without a reader, is dropped.
        // Reporting that on standard error too would panic, in the middle of a commit for example.
        .log_internal_errors(false)
        .with_max_level(args.log_level)
        .with_ansi(false);
    let wanted = filter_fn(move |meta| !(args.untold && meta.target() == TOLD));
    match args.log {
        LogFormat::Text => log.with_target(false).finish().with(wanted).init(),
        LogFormat::Json => log.json().flatten_event(true).finish().with(wanted).init(),
    }
}
