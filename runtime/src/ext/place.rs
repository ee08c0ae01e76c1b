//! Where a source goes on in the next run: the newest place that was reached is kept, one write at
//! a time, each behind the frames that were made of what lies before it. A crash may repeat what
//! came since the last write, never lose any.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;

use super::bridge::Bridge;
use super::outbox::Outbox;

/// The place of one source of a run.
pub(super) struct Place {
    bridge: Rc<Bridge>,
    outbox: Rc<Outbox>,
    /// Its name among the positions of the processor.
    key: String,
    next: Cell<Option<Bytes>>,
    busy: Cell<bool>,
}

impl Place {
    pub(super) fn new(bridge: &Rc<Bridge>, outbox: Rc<Outbox>, key: String) -> Rc<Self> {
        let (next, busy) = (Cell::new(None), Cell::new(false));
        Rc::new(Self { bridge: Rc::clone(bridge), outbox, key, next, busy })
    }

    /// What was kept last, in this run or one before.
    pub(super) async fn get(&self) -> Result<Option<Bytes>, deno_error::JsErrorBox> {
        let kept = self.bridge.backend.position_get(self.key.clone()).await;
        kept.map_err(super::bridge::type_error)
    }

    /// Keeps a place; of several that come while one is written the last.
    pub(super) fn keep(self: &Rc<Self>, place: Bytes) {
        self.next.set(Some(place));
        if self.busy.replace(true) {
            return;
        }
        let keeping = Rc::clone(self);
        drop(deno_core::unsync::spawn(async move {
            while let Some(place) = keeping.next.take() {
                // What was made of what lies before is stored before it counts as taken.
                keeping.outbox.empty().await;
                let place = keeping.next.take().unwrap_or(place);
                let _ = keeping.bridge.backend.position_set(keeping.key.clone(), place).await;
            }
            keeping.busy.set(false);
        }));
    }
}
