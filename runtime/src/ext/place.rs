//! Where a source goes on in the next run: the newest place that was reached is kept, one write at
//! a time, each behind the frames that were made of what lies before it. A crash may repeat what
//! came since the last write, never lose any; nor does it move past a frame that the store refused,
//! unless the run was told and goes on.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use deno_error::JsErrorBox;

use super::bridge::Bridge;
use super::outbox::Outbox;

/// The newest place.
struct Reached {
    place: Bytes,
    /// How many frames were handed over by then.
    handed: u64,
    /// How many losses the run was told of by then.
    told: u64,
}

/// The place of one source of a run.
pub(super) struct Place {
    bridge: Rc<Bridge>,
    outbox: Rc<Outbox>,
    /// Its name among the positions of the processor.
    key: String,
    next: Cell<Option<Reached>>,
    busy: Cell<bool>,
}

impl Place {
    pub(super) fn new(bridge: &Rc<Bridge>, outbox: Rc<Outbox>, key: String) -> Rc<Self> {
        let (next, busy) = (Cell::new(None), Cell::new(false));
        Rc::new(Self { bridge: Rc::clone(bridge), outbox, key, next, busy })
    }

    /// What was kept last, in this run or one before.
    pub(super) async fn get(&self) -> Result<Option<Bytes>, JsErrorBox> {
        let kept = self.bridge.backend.position_get(self.key.clone()).await;
        kept.map_err(super::bridge::type_error)
    }

    /// What the source has next, unless what came of it before was refused: then nobody may wait
    /// for more, since only a new run has it again.
    pub(super) async fn unless_lost<T>(
        &self,
        next: impl Future<Output = Result<T, JsErrorBox>>,
    ) -> Result<T, JsErrorBox> {
        tokio::select! {
            biased;
            loss = self.outbox.loss() => Err(JsErrorBox::generic(loss.message)),
            next = next => next,
        }
    }

    /// Keeps a place; of several that come while one is written the last.
    pub(super) fn keep(self: &Rc<Self>, place: Bytes) {
        let (handed, told) = (self.outbox.handed(), self.outbox.told());
        self.next.set(Some(Reached { place, handed, told }));
        if self.busy.replace(true) {
            return;
        }
        let keeping = Rc::clone(self);
        drop(deno_core::unsync::spawn(async move {
            while let Some(Reached { place, handed, told }) = keeping.next.take() {
                // What was made of what lies before is stored before it counts as taken.
                keeping.outbox.answered(handed).await;
                if keeping.outbox.lost_since(told).is_some() {
                    continue;
                }
                let _ = keeping.bridge.backend.position_set(keeping.key.clone(), place).await;
            }
            keeping.busy.set(false);
        }));
    }
}
