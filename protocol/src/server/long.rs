//! Work that may take long, or whose outcome is in memory as a whole until it is sent. Of that of a
//! connection one piece is under way at a time: much costs no more threads and memory than one.

use std::collections::VecDeque;
use std::sync::Arc;

use super::mailbox::{Mail, Mailbox};

type Job = Box<dyn FnOnce() -> Mail + Send>;

/// What waits, in its order. It is no more than requests without an answer and streams.
pub(crate) struct Long {
    mailbox: Arc<Mailbox>,
    /// What only a stream waits for is under its number, the rest under 0.
    waiting: VecDeque<(u32, Job)>,
    busy: bool,
}

impl Long {
    /// The work of a connection.
    pub(crate) const fn new(mailbox: Arc<Mailbox>) -> Self {
        Self { mailbox, waiting: VecDeque::new(), busy: false }
    }

    /// Does a job of a stream, or of none (0), on a blocking thread when its turn has come. Who
    /// takes in what it posts ends it with [`Self::done`].
    pub(crate) fn add(&mut self, sub: u32, job: impl FnOnce() -> Mail + Send + 'static) {
        self.waiting.push_back((sub, Box::new(job)));
        self.go_on();
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
            self.mailbox.post_from(job);
        }
    }
}
