//! The connection of a reader that outlives its server: with `--reconnect` it is made again, to the
//! same store, however long that takes.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use xs_engine::{Bound, CursorName, ReadOptions, ResumePoint, Start};
use xs_protocol::{
    Client, ClientError, Code, Detail, Refusal, SubEvent, SubscribeOptions, Subscription,
};

use super::filter::Filter;
use super::position::{Position, Resume};
use crate::connect::{Session, WAIT_FIRST, explain, when_it_answers};
use crate::exit::{self, Exit, ExitError};
use crate::output::notice;

/// A reader's connection, and where it goes on over it.
pub(super) struct Link {
    pub(super) client: Client,
    /// When the server goes away it is waited for.
    pub(super) waits: bool,
    /// Where to go on; `None` while the start of the read says so.
    pub(super) point: Option<ResumePoint>,
    cursor: Option<CursorName>,
    /// The point is that of the cursor, and nothing was read since.
    is_of_cursor: bool,
    /// The offset of the next frame when the reader was started.
    head: u64,
    /// The wait before the next attempt. A server that answers and then refuses is not asked
    /// without a pause.
    wait: Duration,
}

/// What a reader asks for, with what it found out before.
pub(super) struct Begun {
    pub(super) options: ReadOptions,
    /// How many more frames are wanted, when the reader counts them.
    pub(super) left: Option<u64>,
    pub(super) position: Option<Position>,
}

impl Link {
    /// Of a reader that is started now.
    pub(super) fn new(client: &Client, waits: bool) -> Self {
        let head = client.server().head;
        Self {
            client: client.clone(),
            waits,
            point: None,
            cursor: None,
            is_of_cursor: false,
            head,
            wait: WAIT_FIRST,
        }
    }

    /// Finds out where a read begins, and what has to be known of it to go on over another
    /// connection. That changes nothing until all is found: after an error it may be done again.
    pub(super) async fn begin(
        &mut self,
        wanted: &ReadOptions,
        cursor: Option<&CursorName>,
        filter: &mut Filter,
    ) -> anyhow::Result<Begun> {
        let mut options = wanted.clone();
        let position = match cursor {
            Some(name) => Some(Position::open(&self.client, name).await?),
            None => None,
        };
        // An offset of the cursor holds in the epoch in which it was set: where frames that it
        // counts as read are lost, it is refused.
        let point = position.as_ref().and_then(Position::point);
        if let Some(point) = &point {
            options.start = Start::From(Bound::Offset(point.offset));
        } else if self.waits {
            self.fix_start(&mut options, filter).await?;
        }
        let mut left = filter.widen(&self.client, &mut options).await?;
        if self.waits {
            left = left.or_else(|| options.limit.take());
        }
        self.cursor = cursor.cloned();
        self.is_of_cursor = point.is_some();
        self.point = point.or_else(|| match (wanted.start, options.start) {
            (Start::New | Start::Last(_), Start::From(Bound::Offset(offset))) => {
                Some(self.client.server().resume().point(offset))
            }
            _ => None,
        });
        Ok(Begun { options, left, position })
    }

    /// Turns a start that each request would count anew into an offset: what was appended since the
    /// reader was started is wanted, however many connections that takes.
    async fn fix_start(
        &self,
        options: &mut ReadOptions,
        filter: &mut Filter,
    ) -> anyhow::Result<()> {
        let head = Bound::Offset(self.head);
        options.start = match options.start {
            Start::New | Start::Last(0) => Start::From(head),
            Start::Last(count) => {
                let before = options.before.or(Some(head));
                let until_now = ReadOptions { before, ..options.clone() };
                filter.newest(&self.client, &until_now, count).await?
            }
            start => start,
        };
        Ok(())
    }

    /// Where something came of the stream, the server is well.
    pub(super) fn heard(&mut self, event: Option<&Result<SubEvent, ClientError>>) {
        if event.is_some_and(|event| !matches!(event, Err(_) | Ok(SubEvent::Dropped { .. }))) {
            self.wait = WAIT_FIRST;
        }
    }

    /// All before an offset was seen.
    pub(super) fn reach(&mut self, offset: Option<u64>) {
        if let Some(offset) = offset {
            self.point = Some(self.client.server().resume().point(offset));
            self.is_of_cursor = false;
        }
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
        events.map_err(|error| match &error {
            ClientError::Refused(refusal) if refusal.code == Code::CursorAhead => {
                ExitError::new(Exit::Condition, self.ahead(refusal)).into()
            }
            _ if self.waits => Resume::Waits.cut_off(error, None),
            _ => explain(error),
        })
    }

    /// What to say where the store does not have what was read of it.
    fn ahead(&self, refusal: &Refusal) -> String {
        let from = refusal.details.iter().find_map(|detail| match detail {
            Detail::Offset(offset) => Some(*offset),
            _ => None,
        });
        let from = from.map_or_else(|| "head".to_owned(), |offset| offset.to_string());
        match (&self.cursor, self.is_of_cursor) {
            (Some(cursor), true) => format!(
                "cursor {cursor} counts frames as read that are not there; \
                 xs cursor set {cursor} {from} goes on with those that are"
            ),
            (Some(cursor), false) => format!(
                "the store has lost frames that were read here, from offset {from} on; \
                 xs cursor set {cursor} {from} goes on with what takes their place"
            ),
            (None, _) => format!(
                "the store has lost frames that were read here, from offset {from} on; \
                 to go on with what takes their place, begin there: --from {from}"
            ),
        }
    }
}

/// Waits for the server behind a connection that ended: another one to the same store, or `None`
/// when `stop` came first.
///
/// # Errors
/// What no waiting mends.
pub(super) async fn back(
    session: &Session,
    link: &mut Link,
    lost: &anyhow::Error,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Client>> {
    notice(&format!("{}; waiting for the server", exit::text(lost)));
    let client = tokio::select! {
        client = when_it_answers(&session.address, &mut link.wait) => client?,
        () = stop.cancelled() => return Ok(None),
    };
    if client.server().uuid != session.client.server().uuid {
        let text = "another store is served there than before";
        return ExitError::fail(Exit::Unreachable, text);
    }
    notice("the server is back");
    Ok(Some(client))
}
