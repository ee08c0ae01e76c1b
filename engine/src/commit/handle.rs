//! The promise of an answer to a batch.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::Answer;
use crate::error::AppendError;
use crate::store::Inner;
use crate::value::Appended;

/// A submitted batch. Dropping the handle gives up the answer, not the batch, which is committed
/// with the next batch that is waited for, and at the latest by
/// [`Store::close`](crate::Store::close).
#[must_use = "the batch is committed once somebody waits for it, or for another one"]
#[derive(Debug)]
pub struct AppendHandle(State);

#[derive(Debug)]
enum State {
    Refused(AppendError),
    Queued(Arc<Inner>, Arc<Slot>),
}

impl AppendHandle {
    pub(crate) const fn refused(error: AppendError) -> Self {
        Self(State::Refused(error))
    }

    pub(crate) const fn queued(inner: Arc<Inner>, slot: Arc<Slot>) -> Self {
        Self(State::Queued(inner, slot))
    }

    /// Waits for the answer. The first caller to wait becomes the leader and commits everything
    /// submitted.
    ///
    /// # Errors
    /// [`AppendError`] says why the batch was refused or why its outcome is unknown.
    pub fn wait(self) -> Result<Appended, AppendError> {
        match self.0 {
            State::Refused(error) => Err(error),
            State::Queued(inner, slot) => inner.commits.wait(&inner, &slot),
        }
    }
}

/// Holds the answer for a thread that waits for it.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    inside: Mutex<Inside>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inside {
    answer: Option<Answer>,
    answered: bool,
    /// A thread sleeps on the slot.
    waited: bool,
    /// It has been made the leader.
    lead: bool,
}

/// Why a waiting thread woke up.
pub(super) enum Turn {
    Answer(Answer),
    Lead,
}

impl Slot {
    pub(super) fn answer(&self, answer: Answer) {
        if self.leave(answer) {
            self.wake();
        }
    }

    /// Stores the answer. Returns whether a thread sleeps on the slot and must be woken.
    pub(super) fn leave(&self, answer: Answer) -> bool {
        let mut inside = self.inside.lock();
        inside.answer = Some(answer);
        inside.answered = true;
        inside.waited
    }

    /// Wakes the thread that sleeps on this slot.
    pub(super) fn wake(&self) {
        self.changed.notify_one();
    }

    /// The answer, if there is one.
    pub(super) fn take(&self) -> Option<Answer> {
        self.inside.lock().answer.take()
    }

    pub(super) fn is_answered(&self) -> bool {
        self.inside.lock().answered
    }

    /// Passes the lead to the thread that sleeps on this slot, if one does.
    pub(super) fn pass_lead(&self) -> bool {
        let mut inside = self.inside.lock();
        if !inside.waited || inside.answered {
            return false;
        }
        inside.lead = true;
        self.changed.notify_one();
        true
    }

    /// Sleeps until there is an answer, or until this thread becomes the leader.
    pub(super) fn wait(&self) -> Turn {
        let mut inside = self.inside.lock();
        loop {
            // The lead first: a thread that was given it must use it or pass it on.
            if std::mem::take(&mut inside.lead) {
                return Turn::Lead;
            }
            if let Some(answer) = inside.answer.take() {
                return Turn::Answer(answer);
            }
            inside.waited = true;
            self.changed.wait(&mut inside);
            inside.waited = false;
        }
    }
}
