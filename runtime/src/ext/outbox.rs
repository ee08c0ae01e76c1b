//! The frames of one run on their way to the store: in order, batched while an append is in flight,
//! bounded. The run continues as soon as there is room. The refusal of an awaited frame is reported
//! to the waiter. That of any other frame is a loss: the frames queued after it are not stored
//! either, and the run gets the error at its next frame, while it waits for more, or at its end.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Add;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{Notify, oneshot};
use xs_engine::{Body, Frame, NewFrame};

use crate::isolate::limits::{
    OUTSTANDING_BYTES_MAX, OUTSTANDING_FRAMES_MAX, UNAWAITED_BYTES_MAX, UNAWAITED_FRAMES_MAX,
};
use crate::isolate::{Backend, BackendCode, BackendError};

type Stored = oneshot::Sender<Result<Frame, BackendError>>;

pub(super) struct Outbox {
    backend: Arc<dyn Backend>,
    inner: RefCell<Inner>,
    moved: Notify,
}

#[derive(Default)]
struct Inner {
    queue: VecDeque<(NewFrame, Option<Stored>)>,
    /// Frames handed over in total, and those still unanswered.
    handed: u64,
    frames: usize,
    bytes: usize,
    pumping: bool,
    /// Refusals of unawaited frames, and how many of them were reported to the run.
    losses: u64,
    told: u64,
    /// The latest of them.
    refused: Option<BackendError>,
}

/// Maximum bytes of a record besides topic and meta.
const RECORD_BYTES: usize = 160;

/// What one or more frames add to a batch of the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Weight {
    /// Maximum bytes of records, without the bodies.
    pub(super) records: usize,
    /// Bytes of inline bodies.
    pub(super) bodies: usize,
}

impl Weight {
    pub(super) fn of(frame: &NewFrame) -> Self {
        let bodies = match &frame.body {
            Body::Inline(bytes) => bytes.len(),
            Body::None | Body::Stored(_) => 0,
        };
        let name = frame.topic.as_str().len();
        Self { records: RECORD_BYTES + name + frame.meta.as_bytes().len(), bodies }
    }

    const fn total(self) -> usize {
        self.records + self.bodies
    }
}

impl Add for Weight {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { records: self.records + other.records, bodies: self.bodies + other.bodies }
    }
}

impl Outbox {
    pub(super) fn new(backend: Arc<dyn Backend>) -> Rc<Self> {
        Rc::new(Self { backend, inner: RefCell::default(), moved: Notify::new() })
    }

    /// Queues a frame; `stored` receives the result.
    pub(super) fn push(self: &Rc<Self>, frame: NewFrame, stored: Option<Stored>) {
        let start = {
            let mut inner = self.inner.borrow_mut();
            inner.handed += 1;
            inner.frames += 1;
            inner.bytes += Weight::of(&frame).total();
            inner.queue.push_back((frame, stored));
            !std::mem::replace(&mut inner.pumping, true)
        };
        if start {
            let outbox = Rc::clone(self);
            drop(deno_core::unsync::spawn(async move { outbox.pump().await }));
        }
    }

    pub(super) fn is_full(&self) -> bool {
        let inner = self.inner.borrow();
        inner.frames >= OUTSTANDING_FRAMES_MAX || inner.bytes >= OUTSTANDING_BYTES_MAX
    }

    /// Whether the outstanding frames or their bytes have reached the limit at which `ctx.append`
    /// throws: a run that never awaits it must not pile them up without bound.
    pub(super) fn is_flooded(&self) -> bool {
        let inner = self.inner.borrow();
        inner.frames >= UNAWAITED_FRAMES_MAX || inner.bytes >= UNAWAITED_BYTES_MAX
    }

    /// Returns a loss that was not reported to the run yet, and counts it as reported.
    pub(super) fn take_loss(&self) -> Option<BackendError> {
        let loss = self.lost_since(self.told());
        let mut inner = self.inner.borrow_mut();
        inner.told = inner.losses;
        loss
    }

    /// Waits for a loss, and counts it as reported.
    pub(super) async fn loss(&self) -> BackendError {
        loop {
            if let Some(loss) = self.take_loss() {
                return loss;
            }
            // No await lies between the check and this registration: one thread, no lost wake-up.
            self.moved.notified().await;
        }
    }

    /// How many losses were reported to the run.
    pub(super) fn told(&self) -> u64 {
        self.inner.borrow().told
    }

    /// The latest loss, unless it is among the first `told`.
    pub(super) fn lost_since(&self, told: u64) -> Option<BackendError> {
        let inner = self.inner.borrow();
        inner.refused.clone().filter(|_| told < inner.losses)
    }

    /// Waits until there is room again.
    pub(super) async fn room(&self) {
        self.until(|outbox| !outbox.is_full()).await;
    }

    /// How many frames were handed over so far.
    pub(super) fn handed(&self) -> u64 {
        self.inner.borrow().handed
    }

    /// Waits until the first `handed` frames have been answered, whatever follows them.
    pub(super) async fn answered(&self, handed: u64) {
        let is_answered = |inner: &Inner| inner.handed - inner.frames as u64 >= handed;
        self.until(|outbox| is_answered(&outbox.inner.borrow())).await;
    }

    /// Waits until everything queued so far has been answered.
    pub(super) async fn empty(&self) {
        self.answered(self.handed()).await;
    }

    /// Waits until everything queued so far is stored, for an action that must not happen
    /// otherwise.
    ///
    /// # Errors
    /// A loss that was not reported to the run before.
    pub(super) async fn stored(&self) -> Result<(), BackendError> {
        let told = self.told();
        self.empty().await;
        self.lost_since(told).map_or(Ok(()), Err)
    }

    async fn until(&self, condition: impl Fn(&Self) -> bool) {
        while !condition(self) {
            // No await lies between the check and this registration: one thread, no lost wake-up.
            self.moved.notified().await;
        }
    }

    async fn pump(&self) {
        loop {
            let (frames, waiting, bytes) = self.take();
            if frames.is_empty() {
                return;
            }
            let count = frames.len();
            match self.backend.append(frames).await {
                Ok(stored) if stored.len() == count => answer(stored, waiting),
                Ok(_) => self.refuse(&short(), waiting),
                Err(error) => self.refuse(&error, waiting),
            }
            let mut inner = self.inner.borrow_mut();
            inner.frames -= count;
            inner.bytes -= bytes;
            drop(inner);
            self.moved.notify_waiters();
        }
    }

    /// The frames of the next batch; an empty batch ends the pump.
    fn take(&self) -> (Vec<NewFrame>, Vec<Option<Stored>>, usize) {
        let mut inner = self.inner.borrow_mut();
        let (mut frames, mut waiting, mut bytes) = (Vec::new(), Vec::new(), 0);
        while frames.len() < OUTSTANDING_FRAMES_MAX {
            let Some((next, _)) = inner.queue.front() else { break };
            let more = Weight::of(next).total();
            if !frames.is_empty() && bytes + more > xs_engine::limits::BATCH_BYTES_MAX {
                break;
            }
            let Some((frame, stored)) = inner.queue.pop_front() else { break };
            bytes += more;
            frames.push(frame);
            waiting.push(stored);
        }
        inner.pumping = !frames.is_empty();
        (frames, waiting, bytes)
    }

    /// Reports to the waiters of a batch that it is not stored. If one of its frames is a loss, no
    /// queued frame may overtake it.
    fn refuse(&self, error: &BackendError, waiting: Vec<Option<Stored>>) {
        if tell(error, waiting) {
            return;
        }
        let behind = {
            let mut inner = self.inner.borrow_mut();
            inner.losses += 1;
            inner.refused = Some(error.clone());
            let behind = std::mem::take(&mut inner.queue);
            inner.frames -= behind.len();
            inner.bytes -= behind.iter().map(|(frame, _)| Weight::of(frame).total()).sum::<usize>();
            behind
        };
        // The unawaited frames among them are part of the same loss.
        tell(error, behind.into_iter().map(|(_, stored)| stored));
    }
}

fn answer(frames: Vec<Frame>, waiting: Vec<Option<Stored>>) {
    for (frame, stored) in frames.into_iter().zip(waiting) {
        // The run may have ended meanwhile; the frame is stored all the same.
        stored.map(|stored| stored.send(Ok(frame)).is_ok());
    }
}

/// Reports a refusal; returns whether all frames had a waiter.
fn tell(error: &BackendError, waiting: impl IntoIterator<Item = Option<Stored>>) -> bool {
    let mut all = true;
    for stored in waiting {
        all &= stored.is_some_and(|stored| stored.send(Err(error.clone())).is_ok());
    }
    all
}

fn short() -> BackendError {
    let text = "the store answered with fewer frames than it was given";
    BackendError::new(BackendCode::Unavailable, text)
}
