//! What all drivers have in common: how they end, and how an isolate is ended with them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use xs_engine::FrameId;
use xs_protocol::ClientError;

use crate::isolate::{FailureKind, Isolate, ModuleError};

/// Wait before a subscription that the server ended is made anew.
pub(super) const RESUBSCRIBE: Duration = Duration::from_millis(250);

/// Why a driver is over.
#[derive(Debug)]
pub(super) enum Ending {
    /// It was told to.
    Stopped,
    /// The processor failed and is not tried again.
    FinError {
        /// Why.
        error: ModuleError,
        /// The frame that was being handled.
        input: Option<FrameId>,
    },
    /// The module's thread does not end: only a new Host gets rid of it.
    Wedged {
        /// Why.
        error: ModuleError,
        /// The frame that was being handled.
        input: Option<FrameId>,
    },
    /// The connection to the store is gone.
    Lost(ClientError),
}

/// Stops an isolate that is not needed any more. One that cannot be stopped changes the ending.
pub(super) async fn stop_isolate(isolate: Isolate, ending: Ending) -> Ending {
    match isolate.stop().await {
        Ok(()) => ending,
        Err(error) => {
            let input = match ending {
                Ending::FinError { input, .. } | Ending::Wedged { input, .. } => input,
                Ending::Stopped | Ending::Lost(_) => None,
            };
            Ending::Wedged { error, input }
        }
    }
}

/// Whether an error means that the thread is still there.
pub(super) fn is_wedged(error: &ModuleError) -> bool {
    error.kind == FailureKind::Wedged
}

/// Milliseconds since 1970.
pub(super) fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
