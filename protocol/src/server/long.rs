//! Requests that may take long, or whose answers are in memory as a whole until they are sent. Of
//! those of a connection one is under way at a time: many cost no more threads and memory than one.

use std::collections::VecDeque;
use std::sync::Arc;

use super::mailbox::{Mail, Mailbox};

type Job = Box<dyn FnOnce() -> Mail + Send>;

/// Those that wait, in their order. There are no more than requests without an answer.
#[derive(Default)]
pub(crate) struct Long {
    waiting: VecDeque<Job>,
    busy: bool,
}

impl Long {
    /// Does a job on a blocking thread when its turn has come. What it posts ends with
    /// [`Self::done`].
    pub(crate) fn add(
        &mut self,
        mailbox: &Arc<Mailbox>,
        job: impl FnOnce() -> Mail + Send + 'static,
    ) {
        self.waiting.push_back(Box::new(job));
        self.go_on(mailbox);
    }

    /// The one under way has come to its end.
    pub(crate) fn done(&mut self, mailbox: &Arc<Mailbox>) {
        self.busy = false;
        self.go_on(mailbox);
    }

    /// Forgets all that wait.
    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
    }

    fn go_on(&mut self, mailbox: &Arc<Mailbox>) {
        if !self.busy
            && let Some(job) = self.waiting.pop_front()
        {
            self.busy = true;
            mailbox.post_from(job);
        }
    }
}
