//! The connection of a reader that may outlive its server: with `--reconnect` it is made anew, to
//! the same store, however long that takes.

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

/// A reader's connection, and where to continue over it.
pub(super) struct Link {
    pub(super) client: Client,
    /// Whether to wait for the server when it goes away.
    pub(super) waits: bool,
    /// Where to continue; `None` while that is still the start of the read.
    pub(super) point: Option<ResumePoint>,
    cursor: Option<CursorName>,
    /// The point is that of the cursor, and nothing has been read since.
    is_of_cursor: bool,
    /// The offset of the next frame when the reader was started.
    head: u64,
    /// The wait before the next attempt, which also follows when a server answers and then refuses.
    wait: Duration,
}

/// What a reader requests, with what was determined for it.
pub(super) struct Begun {
    pub(super) options: ReadOptions,
    /// How many more frames are wanted, when the reader counts them.
    pub(super) left: Option<u64>,
    pub(super) position: Option<Position>,
}

impl Link {
    /// The link of a reader that starts now.
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

    /// Determines where a read begins, and what is needed to continue it over another connection.
    /// Changes nothing until all of that is known, so it may be repeated after an error.
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
        // The cursor's offset holds in the epoch in which it was set: if frames that it counts as
        // read are lost, the server refuses it.
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

    /// Turns a start that each request would count anew into an offset: all that was appended since
    /// the reader started is wanted, however many connections that takes.
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

    /// Resets the wait after an event of the stream, which shows that the server is well.
    pub(super) fn heard(&mut self, event: Option<&Result<SubEvent, ClientError>>) {
        if event.is_some_and(|event| !matches!(event, Err(_) | Ok(SubEvent::Dropped { .. }))) {
            self.wait = WAIT_FIRST;
        }
    }

    /// Records that all frames before an offset were seen.
    pub(super) fn reach(&mut self, offset: Option<u64>) {
        if let Some(offset) = offset {
            self.point = Some(self.client.server().resume().point(offset));
            self.is_of_cursor = false;
        }
    }

    /// Subscribes from the current point.
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

    /// The message when the store no longer has what was read from it.
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

/// Waits for the server after its connection ended. Returns a new connection to the same store, or
/// `None` when `stop` came first.
///
/// # Errors
/// An error that waiting cannot fix.
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
