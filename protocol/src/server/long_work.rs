//! Work that may take long, or whose outcome is in memory until it is sent. Of that of a connection
//! one piece is under way at a time: much costs no more threads and memory than one. All
//! connections together have some of the blocking threads for it: what is short finds others free.
//! Their memory is the shelf's, and while they are made the makers'.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use super::mailbox::{Mail, Mailbox};
use super::making::Makers;
use crate::limits::LONG_THREADS_MAX;

type Job = Box<dyn FnOnce() -> Mail + Send>;

/// What the connections of a server have to do that may take long: no more than one piece each.
#[derive(Default)]
pub(crate) struct Lane(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    threads: usize,
    waiting: VecDeque<(Arc<Mailbox>, Job)>,
}

impl Lane {
    /// Does a job on a blocking thread, behind those that came before it.
    fn add(self: &Arc<Self>, mailbox: &Arc<Mailbox>, job: Job) {
        {
            let mut queue = self.0.lock();
            queue.waiting.push_back((Arc::clone(mailbox), job));
            if queue.threads >= LONG_THREADS_MAX {
                return;
            }
            queue.threads += 1;
        }
        let lane = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            while let Some((mailbox, job)) = lane.next() {
                mailbox.work(job);
            }
        });
    }

    /// The next job; without one the thread that asks has no more to do.
    fn next(&self) -> Option<(Arc<Mailbox>, Job)> {
        let mut queue = self.0.lock();
        let next = queue.waiting.pop_front();
        if next.is_none() {
            queue.threads -= 1;
        }
        next
    }
}

/// What waits, in its order. It is no more than requests without an answer and streams.
pub(crate) struct Long {
    mailbox: Arc<Mailbox>,
    lane: Arc<Lane>,
    /// What only a stream waits for is under its number, the rest under 0.
    waiting: VecDeque<(u32, Job)>,
    busy: bool,
}

impl Long {
    /// The work of a connection.
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Self {
        let lane = mailbox.lane();
        Self { mailbox, lane, waiting: VecDeque::new(), busy: false }
    }

    /// Room for the lists that the work brings.
    pub(crate) fn makers(&self) -> Arc<Makers> {
        self.mailbox.makers()
    }

    /// Does a job of a stream, or of none (0), on a blocking thread when its turn has come. Who
    /// takes in what it posts ends it with [`Self::done`].
    pub(crate) fn add(&mut self, sub: u32, job: impl FnOnce() -> Mail + Send + 'static) {
        self.waiting.push_back((sub, Box::new(job)));
        self.go_on();
    }

    /// The job under way goes on with another, behind those of other connections.
    pub(crate) fn go_on_with(&self, job: impl FnOnce() -> Mail + Send + 'static) {
        self.lane.add(&self.mailbox, Box::new(job));
    }

    /// The job under way has come to its end.
    pub(crate) fn done(&mut self) {
        self.busy = false;
        self.go_on();
    }

    /// Forgets what a stream waits for.
    pub(crate) fn forget(&mut self, sub: u32) {
        self.waiting.retain(|(of, _)| *of != sub);
    }

    /// Forgets all that wait.
    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
    }

    fn go_on(&mut self) {
        if !self.busy
            && let Some((_, job)) = self.waiting.pop_front()
        {
            self.busy = true;
            self.lane.add(&self.mailbox, job);
        }
    }
}
