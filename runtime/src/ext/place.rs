//! Where a source goes on in the next run: the newest place that was reached is kept, one write at
//! a time, each behind the frames that were made of what lies before it. A crash may repeat what
//! came since the last write, never lose any; nor does it move past a frame that the store refused,
//! unless the run was told and goes on.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};

use bytes::Bytes;
use deno_core::{OpState, op2};
use deno_error::JsErrorBox;
use tokio::sync::Notify;

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

/// The places that are in use, by their keys, and what was handed over of the streams that keep
/// one, by the numbers of these.
#[derive(Default)]
pub(super) struct SourcePlaces {
    places: RefCell<HashMap<String, Weak<SourcePlace>>>,
    given: RefCell<HashMap<u32, Weak<Given>>>,
}

impl SourcePlaces {
    /// The place with a key. Whoever opens a source anew shares the place of the one before, so
    /// that what is being written of it counts.
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

    /// What a stream hands over is to be found by its number.
    pub(super) fn note(&self, stream: u32, given: Weak<Given>) {
        let mut all = self.given.borrow_mut();
        all.retain(|_, given| given.strong_count() > 0);
        all.insert(stream, given);
    }

    /// Waits until no place is on its way to the store.
    pub(super) async fn written(&self) {
        let places: Vec<_> = self.places.borrow().values().filter_map(Weak::upgrade).collect();
        for place in places {
            place.written().await;
        }
    }
}

/// Things that were handed over together.
struct Handed {
    count: usize,
    /// The place behind each of them.
    behind: Box<dyn Fn(usize) -> Bytes>,
    /// How many losses the run was told of before.
    told: u64,
}

/// What a stream has handed over last: where the next run goes on once it is done with.
pub(super) struct Given {
    pub(super) place: Rc<SourcePlace>,
    handed: RefCell<Option<Handed>>,
}

impl Given {
    pub(super) fn new(place: Rc<SourcePlace>) -> Rc<Self> {
        Rc::new(Self { place, handed: RefCell::default() })
    }

    /// So many things are handed over; `behind` tells the place behind each.
    pub(super) fn hand_over(&self, count: usize, behind: impl Fn(usize) -> Bytes + 'static) {
        let (behind, told) = (Box::new(behind), self.place.outbox.told());
        self.handed.replace(Some(Handed { count, behind, told }));
    }

    /// Whoever asks for more has done with all of them, and was told of what was refused.
    pub(super) fn all_taken(&self) {
        if let Some(Handed { count, behind, .. }) = self.handed.take()
            && let Some(last) = count.checked_sub(1)
        {
            self.place.keep(behind(last), self.place.outbox.told());
        }
    }

    /// The first so many of them are done with, and nobody asks for those behind. Of what was
    /// refused since they were handed over the run may have been told, but then it did not go on.
    fn left(&self, count: usize) {
        if let Some(Handed { behind, told, count: handed }) = self.handed.take()
            && let Some(last) = count.min(handed).checked_sub(1)
        {
            self.place.keep(behind(last), told);
        }
    }
}

/// The loop over a stream that keeps its place was left: the first so many of the things handed
/// over last are done with.
#[op2(fast)]
pub(super) fn op_xs_left(state: &mut OpState, stream: u32, count: u32) {
    let given = state.borrow::<Rc<Bridge>>().places.given.borrow();
    if let Some(given) = given.get(&stream).and_then(Weak::upgrade) {
        given.left(count as usize);
    }
}

/// The place of one source of a run.
pub(super) struct SourcePlace {
    bridge: Rc<Bridge>,
    outbox: Rc<Outbox>,
    /// Its name among the positions of the processor.
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

    /// What was kept last, in this run or one before.
    pub(super) async fn get(&self) -> Result<Option<Bytes>, JsErrorBox> {
        self.written().await;
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

    /// Keeps the place that a source has reached by itself.
    pub(super) fn reached(self: &Rc<Self>, place: Bytes) {
        self.keep(place, self.outbox.told());
    }

    /// Waits until nothing is on its way to the store.
    async fn written(&self) {
        while self.busy.get() {
            // No await lies between the look and this registration: no lost wake-up.
            self.rested.notified().await;
        }
    }

    /// Keeps a place, unless something was refused behind the first `told` losses; of several that
    /// come while one is written the last.
    fn keep(self: &Rc<Self>, place: Bytes, told: u64) {
        let handed = self.outbox.handed();
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
            keeping.rested.notify_waiters();
        }));
    }
}
