//! One batch of a driver, carried through: waits while the store is busy or full, and sorts what
//! else can happen by what the driver has to do next.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use xs_protocol::{AppendRequest, Appended, Class, Client, ClientError, Detail};

/// Wait before the same batch is offered again, when the store does not say.
const AGAIN: Duration = Duration::from_secs(1);
/// The longest wait the store may ask for.
const AGAIN_MAX: Duration = Duration::from_secs(30);

/// What became of a batch.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is stored.
    Stored(Appended),
    /// Nothing was stored: the cursor is not where it was thought to be. Read it and go on.
    Conflict,
    /// It may or may not be stored. Read the cursor and go on.
    Unknown(ClientError),
    /// It can never be stored as it is.
    Refused(ClientError),
    /// The connection is gone.
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
        tracing::warn!(%error, "the store does not take a commit now; waiting");
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
