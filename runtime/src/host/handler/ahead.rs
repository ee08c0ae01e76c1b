//! The commit in flight while the isolate already works on the next inputs. There is at most one,
//! and its result arrives before the next is sent, since each is conditional on the revision before
//! it.

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use xs_engine::{Bound, FrameId, NewFrame};
use xs_protocol::{AppendRequest, ClientError};

use super::cursor::{HandlerCursor, State};
use super::{Break, Handler, Step};
use crate::host::commit::{Outcome, commit};
use crate::host::driver::Ending;
use crate::isolate::{FailureKind, ModuleError};

/// A commit in flight.
pub(super) struct UnderWay {
    outcome: JoinHandle<Outcome>,
    /// The handler's place once it is stored.
    next: HandlerCursor,
    /// Whether it holds output of the module's code, not only reports about the module.
    made: bool,
}

impl Handler {
    /// Stores frames and the current place, in one batch.
    pub(super) async fn store(
        &mut self,
        frames: Vec<NewFrame>,
        state: Option<bytes::Bytes>,
        stop: &CancellationToken,
    ) -> Step {
        self.land().await?;
        let next = self.next_saved(state);
        self.store_place(frames, next, stop).await
    }

    /// Waits for the commit in flight, then starts one that stores the module's output and the
    /// current place and removes frames.
    pub(super) async fn begin_store(
        &mut self,
        frames: Vec<NewFrame>,
        removes: Vec<FrameId>,
        state: Option<bytes::Bytes>,
        stop: &CancellationToken,
    ) -> Step {
        self.land().await?;
        let next = self.next_saved(state);
        self.begin(frames, removes, next, true, stop);
        Ok(())
    }

    /// The current place, with the stored state if there is no newer one. A pending retry is kept
    /// as long as its frame is still the first one.
    fn next_saved(&self, state: Option<bytes::Bytes>) -> HandlerCursor {
        let code = self.version.code();
        let state = state.map(|json| State { json, code }).or_else(|| self.saved.state.clone());
        let retry = self.retry.filter(|_| self.seen == self.saved.offset);
        HandlerCursor { revision: 0, offset: self.seen, state, retry, began: self.saved.began }
    }

    /// Stores frames and a place that follows the stored one: no commit may be in flight.
    pub(super) async fn store_place(
        &mut self,
        frames: Vec<NewFrame>,
        next: HandlerCursor,
        stop: &CancellationToken,
    ) -> Step {
        self.begin(frames, Vec::new(), next, false, stop);
        self.land().await
    }

    fn begin(
        &mut self,
        mut frames: Vec<NewFrame>,
        removes: Vec<FrameId>,
        next: HandlerCursor,
        made: bool,
        stop: &CancellationToken,
    ) {
        if self.is_retrying && next.retry.is_none() {
            frames.push(self.version.recovered(&self.started.definition));
        }
        let change = self.saved.change(&self.cursor, &next);
        let removes_within = match removes.is_empty() {
            true => None,
            false => self.started.definition.permissions.remove.clone(),
        };
        let batch = AppendRequest {
            frames,
            cursors: vec![change],
            removes: removes.into_iter().map(Bound::Id).collect(),
            removes_within,
            ..AppendRequest::default()
        };
        let (client, stop) = (self.version.shared().client.clone(), stop.clone());
        let outcome = tokio::spawn(async move { commit(&client, &batch, &stop).await });
        self.under_way = Some(UnderWay { outcome, next, made });
        self.move_at = None;
    }

    /// Waits until the commit in flight is stored, or returns why it was not. Cancel-safe.
    pub(super) async fn land(&mut self) -> Step {
        let Some(under_way) = &mut self.under_way else { return Ok(()) };
        let outcome = (&mut under_way.outcome).await.unwrap_or_else(|error| {
            Outcome::Lost(ClientError::Disconnected(format!("a commit failed: {error}").into()))
        });
        let Some(UnderWay { next, made, .. }) = self.under_way.take() else { return Ok(()) };
        if let Outcome::Stored(appended) = outcome {
            let revision = appended.cursors.first().copied().unwrap_or_default();
            self.is_retrying = next.retry.is_some();
            self.saved = HandlerCursor { revision, ..next };
            return Ok(());
        }
        // Inputs passed since are not handled either.
        let seen = std::mem::replace(&mut self.seen, self.saved.offset);
        self.retry = self.saved.retry;
        self.move_at = None;
        match outcome {
            Outcome::Stored(_) => Ok(()),
            Outcome::Conflict | Outcome::Unknown(_) => Err(Break::Again),
            Outcome::Lost(error) => Err(Break::End(Ending::Lost(error))),
            Outcome::Stopped => Err(Break::End(Ending::Stopped)),
            Outcome::Refused(error) => {
                let text = format!("the store refused what the handler made: {error}");
                let error = ModuleError::new(FailureKind::Store, text);
                if made {
                    self.alone_to = self.alone_to.max(seen).max(1);
                    return Err(Break::Refused(error));
                }
                Err(Break::End(Ending::FinError { error, input: None }))
            }
        }
    }
}
