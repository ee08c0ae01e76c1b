//! What all drivers share: how they end, and how they stop their isolate.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use xs_engine::FrameId;
use xs_protocol::{Class, ClientError, Code};

use crate::isolate::{FailureKind, Isolate, ModuleError};

/// Wait before resubscribing after the server ended a subscription.
pub(super) const RESUBSCRIBE: Duration = Duration::from_millis(250);

/// Why a driver ended.
#[derive(Debug)]
pub(super) enum Ending {
    /// It was stopped on request.
    Stopped,
    /// The processor failed and is not restarted.
    FinError {
        /// Why.
        error: ModuleError,
        /// The frame that was being handled.
        input: Option<FrameId>,
    },
    /// The module's thread does not end: only a new Host can get rid of it.
    Wedged {
        /// Why.
        error: ModuleError,
        /// The frame that was being handled.
        input: Option<FrameId>,
    },
    /// The connection to the store is lost.
    Lost(ClientError),
}

impl Ending {
    /// A failure of the processor that belongs to no frame.
    pub(super) fn failed(kind: FailureKind, text: String) -> Self {
        Self::FinError { error: ModuleError::new(kind, text), input: None }
    }

    /// The error for a version that is not running yet. It has kind `Stopped` when the Host is
    /// ending, which says nothing about the version.
    pub(super) fn into_error(self) -> ModuleError {
        match self {
            Self::FinError { error, .. } | Self::Wedged { error, .. } => error,
            Self::Stopped => ModuleError::new(FailureKind::Stopped, "the Host is shutting down"),
            Self::Lost(error) => ModuleError::new(FailureKind::Stopped, error.to_string()),
        }
    }
}

/// Whether the request had no effect and can be retried later.
pub(super) fn passes(error: &ClientError) -> bool {
    error.class() == Class::Busy || error.code() == Some(Code::TooManyStreams)
}

/// Whether the connection is lost or no longer usable, so that the Host ends. Any other error, lack
/// of space for example, affects only the module it concerns.
pub(super) fn is_lost(error: &ClientError) -> bool {
    matches!(error.class(), Class::Unknown | Class::Protocol)
        && !matches!(error, ClientError::Integrity(_))
}

/// Sends a request until the store answers it: a temporary refusal is retried after a wait.
///
/// # Errors
/// The [`Ending`] of a processor that cannot run without the answer.
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
        tracing::warn!(%error, "the store is busy; the request will be retried");
        tokio::select! {
            () = stop.cancelled() => return Err(Ending::Stopped),
            () = tokio::time::sleep(RESUBSCRIBE) => {}
        }
    }
}

/// Stops an isolate that is no longer needed. If it cannot be stopped, the ending becomes `Wedged`.
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

/// Whether an error means that the module's thread is still running.
pub(super) fn is_wedged(error: &ModuleError) -> bool {
    error.kind == FailureKind::Wedged
}
