//! A cursor that follows what a reader has handled. It is saved periodically and when the reader
//! ends, never ahead of what was handled, so that after a crash the rest is handled again.

use std::time::{Duration, Instant};

use bytes::Bytes;
use xs_engine::{Cursor, CursorChange, CursorName, CursorValue, ExpectRevision, ResumePoint};
use xs_protocol::{Class, Client, ClientError, Refusal};

use crate::connect::{explain, may_pass};
use crate::exit::{Exit, ExitError};

/// Interval between saves of a moving position.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// How to resume after a stream ended early.
#[derive(Debug, Clone, Copy)]
pub(super) enum Resume {
    /// With the same command, which has a cursor.
    Cursor,
    /// With this command, from an offset.
    From(&'static str),
    /// Not at all: it reads backwards.
    Never,
    /// Automatically, when the server is back.
    Waits,
}

impl Resume {
    /// The advice at the end of a message.
    pub(super) fn advice(self, from: Option<u64>) -> String {
        match (self, from) {
            (Self::Cursor, _) => "; the same command continues from its cursor".to_owned(),
            (Self::From(command), Some(from)) => {
                format!("; to continue, run {command} --from {from} with the same store and topics")
            }
            _ => String::new(),
        }
    }

    /// The error when a stream ends with its connection.
    pub(super) fn cut_off(self, error: ClientError, from: Option<u64>) -> anyhow::Error {
        match error {
            ClientError::Disconnected(why) => {
                let text = format!("the server is gone ({why}){}", self.advice(from));
                ExitError::cut(text).into()
            }
            other if matches!(self, Self::Waits) && may_pass(&other) => {
                ExitError::cut(format!("the server is gone ({other})")).into()
            }
            other => explain(other),
        }
    }

    /// The error of a stream that the server ended.
    pub(super) fn dropped(self, refusal: Refusal, from: u64) -> anyhow::Error {
        match self {
            Self::Waits => self.cut_off(refusal.into(), Some(from)),
            _ => {
                ExitError::new(Exit::Unreachable, refusal.message + &self.advice(Some(from))).into()
            }
        }
    }
}

/// Where a reader is.
pub(super) struct Position {
    client: Client,
    name: CursorName,
    /// The cursor as last seen; 0 when there was none.
    revision: u64,
    state: Bytes,
    saved: Option<u64>,
    /// The cursor as it was found, in the epoch in which it was set.
    found: Option<ResumePoint>,
    reached: Option<u64>,
    /// The offset of the last save that was sent; it may not be answered.
    asked: Option<u64>,
    due: Instant,
}

impl Position {
    /// Reads the cursor.
    pub(super) async fn open(client: &Client, name: &CursorName) -> anyhow::Result<Self> {
        let cursor = client.cursor_get(name).await.map_err(explain)?;
        let saved = cursor.as_ref().map(|cursor| cursor.offset);
        let store = Some(client.server().uuid);
        let point = |cursor: &Cursor| {
            let Cursor { epoch, offset, .. } = *cursor;
            ResumePoint { store, epoch, offset }
        };
        let found = cursor.as_ref().map(point);
        let (revision, state) =
            cursor.map_or_else(Default::default, |cursor| (cursor.revision, cursor.state));
        Ok(Self {
            client: client.clone(),
            name: name.clone(),
            revision,
            state,
            saved,
            found,
            reached: saved,
            asked: None,
            due: Instant::now(),
        })
    }

    /// Continues over another connection. A save whose answer was lost with the previous one may
    /// have been made.
    pub(super) async fn go_on(&mut self, client: &Client) -> anyhow::Result<()> {
        self.client = client.clone();
        let cursor = client.cursor_get(&self.name).await.map_err(explain)?;
        let revision = cursor.as_ref().map_or(0, |cursor| cursor.revision);
        if revision == self.revision {
            return Ok(());
        }
        match (cursor, self.asked) {
            (Some(cursor), Some(asked)) if cursor.offset == asked => {
                (self.revision, self.saved) = (revision, Some(asked));
                self.reached = self.reached.max(self.saved);
                Ok(())
            }
            // Changes only raise the revision.
            _ if revision < self.revision => {
                let name = &self.name;
                let text = format!(
                    "cursor {name} was set back while the server was away: the store has lost \
                     its last changes, or it was removed; the same command goes on where it is now"
                );
                ExitError::fail(Exit::Condition, text)
            }
            _ => ExitError::fail(Exit::Condition, self.in_use()),
        }
    }

    /// Where the cursor was found; `None` when it did not exist.
    pub(super) const fn point(&self) -> Option<ResumePoint> {
        self.found
    }

    /// The first frame that was not handled, even if that is not saved yet.
    pub(super) const fn reached(&self) -> Option<u64> {
        self.reached
    }

    /// Moves back: frames from `to` on were not handled after all.
    pub(super) const fn retreat(&mut self, to: Option<u64>) {
        self.reached = to;
    }

    /// Records that all frames before `offset` have been handled.
    pub(super) fn reach(&mut self, offset: u64) {
        self.reached = self.reached.max(Some(offset));
    }

    /// When the next save is due; `None` when there is nothing to save.
    pub(super) fn due(&self) -> Option<Instant> {
        (self.reached != self.saved).then_some(self.due)
    }

    /// The change that saves the position, for a batch with other changes.
    pub(super) fn change(&mut self) -> Option<CursorChange> {
        let offset = self.reached.filter(|_| self.reached != self.saved)?;
        self.asked = Some(offset);
        Some(CursorChange {
            name: self.name.clone(),
            expect: ExpectRevision::Is(self.revision),
            set: Some(CursorValue { offset, state: self.state.clone() }),
        })
    }

    /// Records that the change was made.
    pub(super) fn changed(&mut self, revision: u64) {
        self.revision = revision;
        self.saved = self.reached;
        self.due = Instant::now() + SAVE_EVERY;
    }

    /// Saves the position if it moved.
    pub(super) async fn save(&mut self) -> anyhow::Result<()> {
        let Some(change) = self.change() else { return Ok(()) };
        match self.client.cursor_set(change).await {
            Ok(revision) => {
                self.changed(revision);
                Ok(())
            }
            Err(error) if error.class() == Class::Condition => {
                ExitError::fail(Exit::Condition, self.in_use())
            }
            // A save may find the connection closed before the stream does.
            Err(error) => Err(Resume::Cursor.cut_off(error, None)),
        }
    }

    /// The message when another reader moved the cursor.
    pub(super) fn in_use(&self) -> String {
        let name = &self.name;
        format!("cursor {name} was moved by another reader; give each reader its own cursor")
    }
}
