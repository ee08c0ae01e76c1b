//! What all drivers have in common: how they end, and how an isolate is ended with them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;
use xs_engine::FrameId;
use xs_protocol::{Class, ClientError, Code};

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

impl Ending {
    /// A failure of the processor that belongs to no frame.
    pub(super) fn failed(kind: FailureKind, text: String) -> Self {
        Self::FinError { error: ModuleError::new(kind, text), input: None }
    }

    /// What it means for a version that is not running yet; of the kind `Stopped` where the Host
    /// ends, which says nothing about the version.
    pub(super) fn into_error(self) -> ModuleError {
        match self {
            Self::FinError { error, .. } | Self::Wedged { error, .. } => error,
            Self::Stopped => ModuleError::new(FailureKind::Stopped, "the Host ends"),
            Self::Lost(error) => ModuleError::new(FailureKind::Stopped, error.to_string()),
        }
    }
}

/// Whether nothing was done, and the same may be asked again later.
pub(super) fn passes(error: &ClientError) -> bool {
    error.class() == Class::Busy || error.code() == Some(Code::TooManyStreams)
}

/// Whether the connection is gone, or not to be used any more: the Host ends. Whatever else the
/// store says, for want of space for one, ends no module but the one it is about.
pub(super) fn is_lost(error: &ClientError) -> bool {
    matches!(error.class(), Class::Unknown | Class::Protocol)
        && !matches!(error, ClientError::Integrity(_))
}

/// Asks the store until it answers: what it does not do now is asked again after a wait.
///
/// # Errors
/// The [`Ending`] of a processor that cannot do without the answer.
pub(super) async fn ask<T, R>(
    stop: &CancellationToken,
    mut request: impl FnMut() -> R,
) -> Result<T, Ending>
where
    R: Future<Output = Result<T, ClientError>>,
{
    loop {
        let error = match request().await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if is_lost(&error) {
            return Err(Ending::Lost(error));
        }
        if !passes(&error) {
            let text = format!("the store refused: {error}");
            return Err(Ending::failed(FailureKind::Store, text));
        }
        tracing::warn!(%error, "the store does not answer now; asking again");
        tokio::select! {
            () = stop.cancelled() => return Err(Ending::Stopped),
            () = tokio::time::sleep(RESUBSCRIBE) => {}
        }
    }
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
