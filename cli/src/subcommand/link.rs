//! The connection of a reader that outlives its server: with `--reconnect` it is made again, to the
//! same store, however long that takes.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use xs_protocol::{Client, ClientError, Code};

use crate::connect::{Session, explain};
use crate::exit::{self, Exit, ExitError};
use crate::output::notice;
use crate::reach::options;

/// The wait before the first attempt; it doubles up to the longest.
const WAIT_FIRST: Duration = Duration::from_millis(50);
const WAIT_LONGEST: Duration = Duration::from_secs(2);

/// Whether a server that ended a stream so, or did not answer, may come back.
pub(super) fn may_pass(error: &ClientError) -> bool {
    match error {
        ClientError::Refused(refusal) => {
            let is_late = matches!(refusal.code, Code::HelloTimeout | Code::Stalled);
            is_late || refusal.code.class().may_retry()
        }
        other => matches!(other, ClientError::Disconnected(_) | ClientError::Connect { .. }),
    }
}

/// Waits for the server behind a connection that ended: another one to the same store, or `None`
/// when `stop` came first.
///
/// # Errors
/// What no waiting mends.
pub(super) async fn back(
    session: &Session,
    lost: &anyhow::Error,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Client>> {
    notice(&format!("{}; waiting for the server", exit::text(lost)));
    let mut wait = WAIT_FIRST;
    loop {
        let coming = async {
            tokio::time::sleep(wait).await;
            Client::connect(&session.address, options()).await
        };
        let come = tokio::select! {
            come = coming => come,
            () = stop.cancelled() => return Ok(None),
        };
        match come {
            Ok(client) if client.server().uuid != session.client.server().uuid => {
                let text = "another store is served there than before";
                return ExitError::fail(Exit::Unreachable, text);
            }
            Ok(client) => {
                notice("the server is back");
                return Ok(Some(client));
            }
            Err(error) if may_pass(&error) => wait = (wait * 2).min(WAIT_LONGEST),
            Err(error) => return Err(explain(error)),
        }
    }
}
