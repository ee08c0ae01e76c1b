//! Work that may take long, or whose result stays in memory until it is sent. Each connection runs
//! one piece at a time, so that queuing many costs no more threads or memory than one. All
//! connections together use a limited number of the blocking threads, which leaves others free for
//! short work. The shelf limits the memory of results, and the makers limit it while they are
//! built.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use super::mailbox::{Mail, Mailbox};
use super::making::Makers;
use crate::limits::LONG_THREADS_MAX;

type Job = Box<dyn FnOnce() -> Mail + Send>;

/// The long work of a server's connections: at most one piece each.
#[derive(Default)]
pub(crate) struct Lane(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    threads: usize,
    waiting: VecDeque<(Arc<Mailbox>, Job)>,
}

impl Lane {
    /// Runs a job on a blocking thread, after those queued before it.
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

    /// The next job; without one the calling thread is done.
    fn next(&self) -> Option<(Arc<Mailbox>, Job)> {
        let mut queue = self.0.lock();
        let next = queue.waiting.pop_front();
        if next.is_none() {
            queue.threads -= 1;
        }
        next
    }
}

/// The queued work of a connection, at most one piece for each unanswered request and stream.
pub(crate) struct Long {
    mailbox: Arc<Mailbox>,
    lane: Arc<Lane>,
    /// Work for a stream only is keyed by its number, the rest by 0.
    waiting: VecDeque<(u32, Job)>,
    busy: bool,
}

impl Long {
    /// The work of a connection.
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Self {
        let lane = mailbox.lane();
        Self { mailbox, lane, waiting: VecDeque::new(), busy: false }
    }

    /// Room for the lists that the work builds.
    pub(crate) fn makers(&self) -> Arc<Makers> {
        self.mailbox.makers()
    }

    /// Queues a job for a stream, or for none (0), to run on a blocking thread. The handler of the
    /// mail that it posts must call [`Self::done`].
    pub(crate) fn add(&mut self, sub: u32, job: impl FnOnce() -> Mail + Send + 'static) {
        self.waiting.push_back((sub, Box::new(job)));
        self.go_on();
    }

    /// Continues the running job with another one, queued after those of other connections.
    pub(crate) fn go_on_with(&self, job: impl FnOnce() -> Mail + Send + 'static) {
        self.lane.add(&self.mailbox, Box::new(job));
    }

    /// The running job is done.
    pub(crate) fn done(&mut self) {
        self.busy = false;
        self.go_on();
    }

    /// Drops the queued work of a stream.
    pub(crate) fn forget(&mut self, sub: u32) {
        self.waiting.retain(|(of, _)| *of != sub);
    }

    /// Drops all queued work.
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
