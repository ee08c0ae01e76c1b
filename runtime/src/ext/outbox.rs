//! Frames of one run on their way to the store: in order, many to a batch while one is under way,
//! bounded. The run goes on as soon as there is room; a refusal is told at its next frame.

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
    frames: usize,
    bytes: usize,
    pumping: bool,
    refused: Option<BackendError>,
}

/// Bytes of a record at most beside topic and meta.
const RECORD_BYTES: usize = 160;

/// What a frame, or several, add to a batch of the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Weight {
    /// Bytes of records at most, without the bodies.
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

    /// Queues a frame; `stored` is told what became of it.
    pub(super) fn push(self: &Rc<Self>, frame: NewFrame, stored: Option<Stored>) {
        let start = {
            let mut inner = self.inner.borrow_mut();
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

    /// Whether nobody waits for what is handed over, so that it would pile up without end.
    pub(super) fn is_flooded(&self) -> bool {
        let inner = self.inner.borrow();
        inner.frames >= UNAWAITED_FRAMES_MAX || inner.bytes >= UNAWAITED_BYTES_MAX
    }

    /// A refusal that nobody was told yet.
    pub(super) fn take_refusal(&self) -> Option<BackendError> {
        self.inner.borrow_mut().refused.take()
    }

    /// Waits until there is room again.
    pub(super) async fn room(&self) {
        self.until(|outbox| !outbox.is_full()).await;
    }

    /// Waits until everything queued has been answered.
    pub(super) async fn empty(&self) {
        self.until(|outbox| outbox.inner.borrow().frames == 0).await;
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
            let answer = self.backend.append(frames).await;
            self.settle(answer, waiting);
            let mut inner = self.inner.borrow_mut();
            inner.frames -= count;
            inner.bytes -= bytes;
            drop(inner);
            self.moved.notify_waiters();
        }
    }

    /// What goes into the next batch; nothing ends the pump.
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

    fn settle(&self, answer: Result<Vec<Frame>, BackendError>, waiting: Vec<Option<Stored>>) {
        let mut told = false;
        match answer {
            Ok(frames) => {
                let mut frames = frames.into_iter();
                for stored in waiting {
                    let frame = frames.next().ok_or_else(|| {
                        BackendError::new(
                            BackendCode::Unavailable,
                            "the store answered with fewer frames than it was given",
                        )
                    });
                    // The run may have ended meanwhile; the frame is stored all the same.
                    stored.map(|stored| stored.send(frame).is_ok());
                }
            }
            Err(error) => {
                for stored in waiting.into_iter().flatten() {
                    told |= stored.send(Err(error.clone())).is_ok();
                }
                if !told {
                    self.inner.borrow_mut().refused = Some(error);
                }
            }
        }
    }
}
