//! Commits one batch of a driver: retries while the store is busy or full, and classifies every
//! other result by what the driver must do next.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use xs_protocol::{AppendRequest, Appended, Class, Client, ClientError, Detail};

/// Delay before the same batch is retried, when the store does not name one.
const AGAIN: Duration = Duration::from_secs(1);
/// The longest delay the store may ask for.
const AGAIN_MAX: Duration = Duration::from_secs(30);

/// The result of committing a batch.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is stored.
    Stored(Appended),
    /// Nothing was stored: the cursor's revision is not the expected one. Read it and continue.
    Conflict,
    /// It may or may not be stored. Read the cursor and continue.
    Unknown(ClientError),
    /// It can never be stored as it is.
    Refused(ClientError),
    /// The connection is lost.
    Lost(ClientError),
    /// Stopped while waiting; nothing was stored.
    Stopped,
}

/// Appends a batch that is conditional on a cursor.
pub(super) async fn commit(
    client: &Client,
    batch: &AppendRequest,
    stop: &CancellationToken,
) -> Outcome {
    loop {
        let error = match client.append(batch).await {
            Ok(appended) => return Outcome::Stored(appended),
            Err(error) => error,
        };
        if let ClientError::Disconnected(_) = error {
            return Outcome::Lost(error);
        }
        let wait = match error.class() {
            Class::Condition => return Outcome::Conflict,
            Class::Unknown => return Outcome::Unknown(error),
            Class::Busy | Class::Storage => retry_after(&error),
            Class::Invalid | Class::Access | Class::Absent => return Outcome::Refused(error),
            Class::Protocol => return Outcome::Lost(error),
        };
        tracing::warn!(%error, "the store cannot take a commit now; it will be retried");
        tokio::select! {
            () = stop.cancelled() => return Outcome::Stopped,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

fn retry_after(error: &ClientError) -> Duration {
    let ClientError::Refused(refusal) = error else { return AGAIN };
    let asked = refusal.details.iter().find_map(|detail| match detail {
        Detail::RetryAfterMs(ms) => Some(Duration::from_millis(u64::from(*ms))),
        _ => None,
    });
    asked.unwrap_or(AGAIN).min(AGAIN_MAX)
}
