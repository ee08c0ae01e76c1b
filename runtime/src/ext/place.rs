//! Where a source resumes in the next run: its newest position is stored, one write at a time, each
//! after the frames made from the data before it. A crash may repeat what arrived since the last
//! write, but loses nothing; nor does the position move past a frame that the store refused, unless
//! the run got the error and continued.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};

use bytes::Bytes;
use deno_core::{OpState, op2};
use deno_error::JsErrorBox;
use tokio::sync::Notify;

use super::bridge::Bridge;
use super::outbox::Outbox;

/// The newest position.
struct Reached {
    place: Bytes,
    /// How many frames had been handed over by then.
    handed: u64,
    /// How many losses had been reported to the run by then.
    told: u64,
}

/// The positions in use, by key, and the items last handed over by their streams, by stream number.
#[derive(Default)]
pub(super) struct SourcePlaces {
    places: RefCell<HashMap<String, Weak<SourcePlace>>>,
    given: RefCell<HashMap<u32, Weak<Given>>>,
}

impl SourcePlaces {
    /// The position with a key. A source that is reopened shares the position of the previous one,
    /// so that a pending write of it counts.
    pub(super) fn of(bridge: &Rc<Bridge>, outbox: Rc<Outbox>, key: String) -> Rc<SourcePlace> {
        let mut places = bridge.places.places.borrow_mut();
        places.retain(|_, place| place.strong_count() > 0);
        let known = places.get(&key).and_then(Weak::upgrade);
        if let Some(known) = known.filter(|known| Rc::ptr_eq(&known.outbox, &outbox)) {
            return known;
        }
        let place = SourcePlace::new(bridge, outbox, key.clone());
        places.insert(key, Rc::downgrade(&place));
        place
    }

    /// Registers what a stream hands over under its number.
    pub(super) fn note(&self, stream: u32, given: Weak<Given>) {
        let mut all = self.given.borrow_mut();
        all.retain(|_, given| given.strong_count() > 0);
        all.insert(stream, given);
    }

    /// Waits until no position is being written to the store.
    pub(super) async fn written(&self) {
        let places: Vec<_> = self.places.borrow().values().filter_map(Weak::upgrade).collect();
        for place in places {
            place.written().await;
        }
    }
}

/// Items that were handed over together.
struct Handed {
    count: usize,
    /// Computes the position after each item.
    behind: Box<dyn Fn(usize) -> Bytes>,
    /// How many losses had been reported to the run before.
    told: u64,
}

/// The items a stream handed over last: the next run resumes after them once they are done.
pub(super) struct Given {
    pub(super) place: Rc<SourcePlace>,
    handed: RefCell<Option<Handed>>,
}

impl Given {
    pub(super) fn new(place: Rc<SourcePlace>) -> Rc<Self> {
        Rc::new(Self { place, handed: RefCell::default() })
    }

    /// Records that `count` items are handed over; `behind` computes the position after each.
    pub(super) fn hand_over(&self, count: usize, behind: impl Fn(usize) -> Bytes + 'static) {
        let (behind, told) = (Box::new(behind), self.place.outbox.told());
        self.handed.replace(Some(Handed { count, behind, told }));
    }

    /// A request for more means that all of them are done, and refusals have been reported.
    pub(super) fn all_taken(&self) {
        if let Some(Handed { count, behind, .. }) = self.handed.take()
            && let Some(last) = count.checked_sub(1)
        {
            self.place.keep(behind(last), self.place.outbox.told());
        }
    }

    /// The first `count` of them are done, and no more will be requested. Refusals since they were
    /// handed over may have been reported to the run, but then it did not continue.
    fn left(&self, count: usize) {
        if let Some(Handed { behind, told, count: handed }) = self.handed.take()
            && let Some(last) = count.min(handed).checked_sub(1)
        {
            self.place.keep(behind(last), told);
        }
    }
}

/// The loop over a stream with a position was left: of the items handed over last, the first
/// `count` are done.
#[op2(fast)]
pub(super) fn op_xs_left(state: &mut OpState, stream: u32, count: u32) {
    let given = state.borrow::<Rc<Bridge>>().places.given.borrow();
    if let Some(given) = given.get(&stream).and_then(Weak::upgrade) {
        given.left(count as usize);
    }
}

/// The position of one source of a run.
pub(super) struct SourcePlace {
    bridge: Rc<Bridge>,
    outbox: Rc<Outbox>,
    /// Its key among the positions of the processor.
    key: String,
    next: Cell<Option<Reached>>,
    busy: Cell<bool>,
    rested: Notify,
}

impl SourcePlace {
    fn new(bridge: &Rc<Bridge>, outbox: Rc<Outbox>, key: String) -> Rc<Self> {
        let (next, busy, rested) = (Cell::new(None), Cell::new(false), Notify::new());
        Rc::new(Self { bridge: Rc::clone(bridge), outbox, key, next, busy, rested })
    }

    /// The position stored last, in this run or an earlier one.
    pub(super) async fn get(&self) -> Result<Option<Bytes>, JsErrorBox> {
        self.written().await;
        let kept = self.bridge.backend.position_get(self.key.clone()).await;
        kept.map_err(super::bridge::type_error)
    }

    /// The source's next item, unless earlier output was refused: then waiting for more is an
    /// error, since only a new run gets the input again.
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

    /// Stores a position that a source has reached without handing over an item.
    pub(super) fn reached(self: &Rc<Self>, place: Bytes) {
        self.keep(place, self.outbox.told());
    }

    /// Waits until no write is in flight.
    async fn written(&self) {
        while self.busy.get() {
            // No await lies between the check and this registration: no lost wake-up.
            self.rested.notified().await;
        }
    }

    /// Stores a position, unless there was a loss after the first `told`. Of several that arrive
    /// during a write, only the last is stored.
    fn keep(self: &Rc<Self>, place: Bytes, told: u64) {
        let handed = self.outbox.handed();
        self.next.set(Some(Reached { place, handed, told }));
        if self.busy.replace(true) {
            return;
        }
        let keeping = Rc::clone(self);
        drop(deno_core::unsync::spawn(async move {
            while let Some(Reached { place, handed, told }) = keeping.next.take() {
                // Output made from the data before it is stored before that data counts as taken.
                keeping.outbox.answered(handed).await;
                if keeping.outbox.lost_since(told).is_some() {
                    continue;
                }
                let _ = keeping.bridge.backend.position_set(keeping.key.clone(), place).await;
            }
            keeping.busy.set(false);
            keeping.rested.notify_waiters();
        }));
    }
}
