//! Group commit. There is no writer thread: an appender that finds no leader becomes the leader,
//! and commits in one group all that others queued meanwhile; under `sync` it waits a moment for
//! those on their way (see `gather`). Once the leader has its own answer it passes the lead to a
//! waiting thread, so no thread works for others forever.

mod changes;
mod conditions;
mod durable;
mod gather;
mod handle;
mod placed;
mod timing;
mod writer;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::append::Pending;
use crate::error::AppendError;
use crate::io_error::IoError;
use crate::limits::GROUP_BATCHES_MAX;
use crate::options::SyncPolicy;
use crate::store::Inner;

use gather::Gather;
pub use handle::AppendHandle;
use handle::{Slot, Turn};
pub use timing::{CommitTimes, Histogram};
pub(crate) use timing::{Stage, Timing};
pub(crate) use writer::{Answer, Roll, Writer};

/// The reason for poisoning a store whose leader panicked.
fn panicked() -> IoError {
    IoError::other("the thread that committed has panicked")
}

/// Batches that wait for a leader.
#[derive(Debug, Default)]
pub(crate) struct Commits {
    queue: Mutex<Queue>,
    /// Notified when the queue holds as many batches as the leader waits for.
    gathered: Condvar,
    /// Notified when a leader has stepped down.
    idle: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<(Pending, Reply)>,
    /// Since when the first of them waits.
    since: Option<Instant>,
    /// A thread leads, or was chosen to.
    led: bool,
    /// Whether the next group waits for the callers answered last.
    gather: Gather,
}

/// Destination of an answer.
enum To {
    /// A thread that waits, or will.
    Slot(Arc<Slot>),
    /// A callback, called on the leader's thread.
    Call(Box<dyn FnOnce(Answer) + Send>),
}

/// The promise of an answer. If a panicking leader drops it, it answers `Indeterminate`.
struct Reply(Option<To>);

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

impl Reply {
    fn give(mut self, answer: Answer) {
        self.send(answer);
    }

    /// The slot of the waiting thread, if this is not a callback.
    fn slot(&mut self) -> Option<Arc<Slot>> {
        match self.0.take() {
            Some(To::Slot(slot)) => Some(slot),
            other => {
                self.0 = other;
                None
            }
        }
    }

    fn send(&mut self, answer: Answer) {
        match self.0.take() {
            Some(To::Slot(slot)) => slot.answer(answer),
            Some(To::Call(call)) => call(answer),
            None => {}
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.send(Err(AppendError::Indeterminate(panicked())));
    }
}

/// Held by the leader. A leader that panics leaves a poisoned store, not a hanging one.
struct Lead<'a> {
    commits: &'a Commits,
    inner: &'a Inner,
}

thread_local! {
    /// Addresses of the stores whose commits this thread leads.
    static LEADS: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

impl<'a> Lead<'a> {
    fn new(commits: &'a Commits, inner: &'a Inner) -> Self {
        LEADS.with_borrow_mut(|leads| leads.push(std::ptr::from_ref(inner).addr()));
        Self { commits, inner }
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        LEADS.with_borrow_mut(Vec::pop);
        if std::thread::panicking() {
            self.inner.poison(panicked());
            let waiting = {
                let mut queue = self.commits.queue.lock();
                self.commits.release(&mut queue);
                std::mem::take(&mut queue.waiting)
            };
            drop(waiting);
        }
    }
}

impl Queue {
    fn push(&mut self, pending: Pending, reply: Reply) {
        if self.waiting.is_empty() {
            self.since = Some(Instant::now());
        }
        self.waiting.push_back((pending, reply));
    }
}

impl Commits {
    /// Queues a batch; a leader will pass the answer to `call`.
    pub(crate) fn enqueue(&self, pending: Pending, call: impl FnOnce(Answer) + Send + 'static) {
        self.push(pending, Reply(Some(To::Call(Box::new(call)))));
    }

    /// Queues a batch whose answer a thread waits for.
    pub(crate) fn enqueue_slot(&self, pending: Pending) -> Arc<Slot> {
        let slot = Arc::new(Slot::default());
        self.push(pending, Reply(Some(To::Slot(Arc::clone(&slot)))));
        slot
    }

    fn push(&self, pending: Pending, reply: Reply) {
        let mut queue = self.queue.lock();
        queue.push(pending, reply);
        if queue.gather.is_enough(queue.waiting.len()) {
            self.gathered.notify_one();
        }
    }

    /// Commits a batch. With no leader, an empty queue and no other caller expected, the batch
    /// bypasses the queue.
    pub(crate) fn append(&self, inner: &Inner, pending: Pending) -> Answer {
        {
            let mut queue = self.queue.lock();
            if queue.led || !queue.waiting.is_empty() || queue.gather.expects_others() {
                drop(queue);
                let slot = self.enqueue_slot(pending);
                return self.wait(inner, &slot);
            }
            queue.led = true;
        }
        let _lead = Lead::new(self, inner);
        let mut answers = Vec::with_capacity(1);
        commit(inner, std::slice::from_ref(&pending), &mut answers);
        self.lead_on(inner, true);
        answers.pop().expect("a group of one has one answer")
    }

    /// Waits for an answer; this thread leads if the lead passes to it.
    pub(crate) fn wait(&self, inner: &Inner, slot: &Slot) -> Answer {
        loop {
            if let Some(answer) = slot.take() {
                return answer;
            }
            let free = {
                let mut queue = self.queue.lock();
                !slot.is_answered() && !std::mem::replace(&mut queue.led, true)
            };
            if free {
                self.lead_until(inner, slot);
            }
            match slot.wait() {
                Turn::Answer(answer) => return answer,
                Turn::Lead => self.lead_until(inner, slot),
            }
        }
    }

    /// Commits what is queued, unless there is a leader already. Returns whether this call led.
    pub(crate) fn lead(&self, inner: &Inner) -> bool {
        {
            let mut queue = self.queue.lock();
            if queue.led || queue.waiting.is_empty() {
                return false;
            }
            queue.led = true;
        }
        let _lead = Lead::new(self, inner);
        self.lead_on(inner, false);
        true
    }

    /// Whether one batch is queued, there is no leader, and no other batch is expected.
    pub(crate) fn waits_alone(&self) -> bool {
        let queue = self.queue.lock();
        !queue.led && queue.waiting.len() == 1 && !queue.gather.expects_others()
    }

    /// Commits one group, unless there is a leader already. Returns whether the queue is then
    /// empty; if it is not, another thread must become the leader.
    #[must_use]
    pub(crate) fn lead_once(&self, inner: &Inner) -> bool {
        {
            let mut queue = self.queue.lock();
            if queue.led || queue.waiting.is_empty() {
                return queue.waiting.is_empty();
            }
            queue.led = true;
        }
        let _lead = Lead::new(self, inner);
        self.commit_group(inner);
        let mut queue = self.queue.lock();
        self.release(&mut queue);
        queue.waiting.is_empty()
    }

    /// Commits what is queued and waits for a leader that is already at work. Returns at once when
    /// this thread is that leader: a callback closes the store, and the leader commits the rest
    /// when the callback returns. A callback of another store waits for no leader either, who may
    /// wait for that one.
    pub(crate) fn drain(&self, inner: &Inner) {
        let own = std::ptr::from_ref(inner).addr();
        let (leads_own, leads_any) =
            LEADS.with_borrow(|leads| (leads.contains(&own), !leads.is_empty()));
        if leads_own {
            return;
        }
        while !self.lead(inner) {
            let mut queue = self.queue.lock();
            if leads_any || (!queue.led && queue.waiting.is_empty()) {
                return;
            }
            while queue.led {
                self.idle.wait(&mut queue);
            }
        }
    }

    /// Steps down as leader.
    fn release(&self, queue: &mut Queue) {
        queue.led = false;
        self.idle.notify_all();
    }

    /// Leads until the slot's answer is there, then passes the lead on.
    fn lead_until(&self, inner: &Inner, slot: &Slot) {
        let _lead = Lead::new(self, inner);
        while !slot.is_answered() {
            self.commit_group(inner);
        }
        self.lead_on(inner, true);
    }

    /// Leads until the queue is empty. With `hand_on`, passes the lead to a waiting thread if there
    /// is one.
    fn lead_on(&self, inner: &Inner, hand_on: bool) {
        loop {
            {
                let mut queue = self.queue.lock();
                if queue.waiting.is_empty() {
                    self.release(&mut queue);
                    return;
                }
                // A thread that already waits will answer its own batch and those around it; a
                // handle nobody waits on yet may never be waited on.
                let passed = hand_on
                    && queue.waiting.iter().any(|(_, reply)| match &reply.0 {
                        Some(To::Slot(slot)) => slot.pass_lead(),
                        Some(To::Call(_)) | None => false,
                    });
                if passed {
                    return;
                }
            }
            self.commit_group(inner);
        }
    }

    /// Waits for the callers that are expected to return, if worthwhile.
    fn gather(&self, queue: &mut MutexGuard<'_, Queue>) {
        let waiting = queue.waiting.len();
        let Some(patience) = queue.gather.begin(waiting) else { return };
        let until = Instant::now() + patience;
        while !queue.gather.is_enough(queue.waiting.len()) {
            if self.gathered.wait_until(queue, until).timed_out() {
                break;
            }
        }
        let waiting = queue.waiting.len();
        queue.gather.end(waiting);
    }

    /// Commits one group from the front of the queue.
    fn commit_group(&self, inner: &Inner) {
        let (mut group, mut replies) = (Vec::new(), VecDeque::new());
        // Without syncs a group is too cheap to delay.
        let gathers = inner.env.options.sync == SyncPolicy::Sync;
        {
            let mut queue = self.queue.lock();
            if gathers {
                self.gather(&mut queue);
            }
            let count = queue.waiting.len().min(GROUP_BATCHES_MAX);
            if let Some(since) = queue.since.take() {
                inner.timing.add(Stage::Queue, since.elapsed());
            }
            for (pending, reply) in queue.waiting.drain(..count) {
                group.push(pending);
                replies.push_back(reply);
            }
        }
        let mut answers = Vec::with_capacity(group.len());
        while answers.len() < group.len() {
            let (before, begun) = (answers.len(), gathers.then(Instant::now));
            commit(inner, &group[before..], &mut answers);
            if let Some(begun) = begun {
                let mut queue = self.queue.lock();
                let waiting = queue.waiting.len() + group.len() - answers.len();
                queue.gather.answered(answers.len() - before, waiting, begun.elapsed());
            }
            // Answered at once and without the writer's lock: these callers need not wait for the
            // next group, and a callback may call the store.
            reply(replies.drain(..answers.len() - before), &mut answers[before..]);
        }
    }
}

/// Commits batches through the writer, and wakes followers.
fn commit(inner: &Inner, group: &[Pending], answers: &mut Vec<Answer>) {
    let is_news = inner.writer.lock().commit(inner, group, answers);
    if is_news {
        inner.tail.publish();
    }
}

/// Delivers the answers to their callers.
fn reply(replies: impl Iterator<Item = Reply>, answers: &mut [Answer]) {
    let (mut asleep, mut calls) = (Vec::new(), Vec::new());
    for (mut reply, answer) in replies.zip(answers) {
        let answer = std::mem::replace(answer, Err(AppendError::Closed));
        let Some(slot) = reply.slot() else {
            calls.push((reply, answer));
            continue;
        };
        if slot.leave(answer) {
            asleep.push(slot);
        }
    }
    // Woken once all answers are delivered: a thread may wait for several in turn, and one woken
    // for the first would sleep again for the second.
    asleep.iter().for_each(|slot| slot.wake());
    calls.into_iter().for_each(|(reply, answer)| reply.give(answer));
}
