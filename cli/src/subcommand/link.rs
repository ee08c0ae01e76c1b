//! The connection of a reader that outlives its server: with `--reconnect` it is made again, to the
//! same store, however long that takes.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use xs_engine::{CursorName, ReadOptions, ResumePoint};
use xs_protocol::{Client, ClientError, Code, Detail, SubscribeOptions, Subscription};

use super::position::{Position, Resume};
use crate::connect::{Session, explain};
use crate::exit::{self, Exit, ExitError};
use crate::output::notice;
use crate::reach::options;

/// The wait before the first attempt; it doubles up to the longest.
const WAIT_FIRST: Duration = Duration::from_millis(50);
const WAIT_LONGEST: Duration = Duration::from_secs(2);

/// A reader's connection, and where it goes on over it.
pub(super) struct Link {
    pub(super) client: Client,
    /// When the server goes away it is waited for.
    pub(super) waits: bool,
    /// Where to go on; `None` while the start of the read says so.
    pub(super) point: Option<ResumePoint>,
    /// The cursor that said so at first.
    cursor: Option<CursorName>,
}

impl Link {
    /// Of a reader that begins at its cursor, if that exists. An offset of the cursor holds in the
    /// epoch in which it was set: where frames that it counts as read are lost, it is refused.
    pub(super) fn new(client: &Client, waits: bool, position: Option<&Position>) -> Self {
        let point = position.and_then(Position::point);
        let cursor = position.map(|position| position.name().clone());
        Self { client: client.clone(), waits, point, cursor }
    }

    /// All before an offset was seen.
    pub(super) fn reach(&mut self, offset: Option<u64>) {
        let point = offset.map(|offset| self.client.server().resume().point(offset));
        self.point = point.or(self.point);
    }

    /// Subscribes there.
    pub(super) async fn subscribe(
        &self,
        options: &ReadOptions,
        how: SubscribeOptions,
    ) -> anyhow::Result<Subscription> {
        let events = match &self.point {
            Some(point) => self.client.subscribe_from(point, options, how).await,
            None => self.client.subscribe(options, how).await,
        };
        events.map_err(|error| match (&error, &self.cursor) {
            (ClientError::Refused(refusal), Some(cursor)) if refusal.code == Code::CursorAhead => {
                let from = refusal.details.iter().find_map(|detail| match detail {
                    Detail::Offset(offset) => Some(*offset),
                    _ => None,
                });
                let from = from.map_or_else(|| "head".to_owned(), |offset| offset.to_string());
                let text = format!(
                    "cursor {cursor} counts frames as read that are not there; \
                     xs cursor set {cursor} {from} goes on with those that are"
                );
                ExitError::new(Exit::Condition, text).into()
            }
            _ if self.waits => Resume::Waits.cut_off(error, None),
            _ => explain(error),
        })
    }
}

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
