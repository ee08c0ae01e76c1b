//! Calls that their callers have cancelled, by command. The Host reads the cancels separately from
//! the calls: a command whose queue is full stops reading the log, but must still learn of them.
//! Ends no call and answers none; the command does that.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use xs_engine::{Frame, FrameId};

use super::calls::cancelled_call;
use crate::name::{ProcessorName, Request};

/// Maximum number of cancelled calls remembered per command; beyond it the oldest are forgotten.
const CANCELS_MAX: usize = 65_536;

/// The cancelled calls of all commands of a Host.
#[derive(Default)]
pub(in crate::host) struct AllCancels(Mutex<HashMap<ProcessorName, Arc<Cancels>>>);

impl AllCancels {
    /// The cancelled calls of one command. Creates an entry for each requested name.
    pub(in crate::host) fn of(&self, name: &ProcessorName) -> Arc<Cancels> {
        Arc::clone(self.0.lock().entry(name.clone()).or_default())
    }

    /// Drops the entry of a command that does not run, unless it holds cancelled calls that wait.
    pub(in crate::host) fn forget(&self, name: &ProcessorName) {
        let mut all = self.0.lock();
        let is_needed = |cancels: &Arc<Cancels>| {
            Arc::strong_count(cancels) > 1 || !cancels.calls.lock().is_empty()
        };
        if all.get(name).is_some_and(|cancels| !is_needed(cancels)) {
            all.remove(name);
        }
    }
}

/// The cancelled calls of one command.
#[derive(Default)]
pub(in crate::host) struct Cancels {
    calls: Mutex<BTreeSet<FrameId>>,
    told: Notify,
}

impl Cancels {
    pub(in crate::host) fn add(&self, call: FrameId) {
        let mut calls = self.calls.lock();
        calls.insert(call);
        if calls.len() > CANCELS_MAX {
            calls.pop_first();
        }
        drop(calls);
        self.told.notify_one();
    }

    /// Resolves when there may be a new cancelled call. Cancel-safe.
    pub(super) async fn told(&self) {
        self.told.notified().await;
    }

    pub(super) fn has(&self, call: FrameId) -> bool {
        self.calls.lock().contains(&call)
    }

    /// Forgets the calls for which `keep` returns false.
    pub(super) fn retain(&self, mut keep: impl FnMut(FrameId) -> bool) {
        self.calls.lock().retain(|call| keep(*call));
    }
}

/// The command and the call that a frame cancels, if it is a cancel.
pub(in crate::host) fn cancel_of(frame: &Frame) -> Option<(ProcessorName, FrameId)> {
    let cancel = Request::Cancel;
    let rest = frame.topic().strip_prefix("xs.")?.strip_prefix(cancel.kind().as_str())?;
    let name = rest.strip_prefix('.')?.strip_suffix(cancel.as_str())?.strip_suffix('.')?;
    Some((ProcessorName::parse(name).ok()?, cancelled_call(frame)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_of_a_command_that_runs_or_of_calls_that_wait_are_kept() {
        let (all, name) = (AllCancels::default(), ProcessorName::parse("a").unwrap());
        let (held, call) = (all.of(&name), FrameId::first_of_ms(1));
        all.forget(&name);
        held.add(call);
        assert!(all.of(&name).has(call), "it runs");
        drop(held);
        all.forget(&name);
        assert!(all.of(&name).has(call), "it may begin the call when it starts again");
        all.of(&name).retain(|_| false);
        all.forget(&name);
        assert!(all.0.lock().is_empty());
    }

    #[test]
    fn the_oldest_are_forgotten_first() {
        let cancels = Cancels::default();
        let id = |n: usize| FrameId::first_of_ms(n as u64 + 1);
        (0..=CANCELS_MAX).for_each(|n| cancels.add(id(n)));
        assert!(!cancels.has(id(0)) && cancels.has(id(1)) && cancels.has(id(CANCELS_MAX)));
        cancels.retain(|call| call == id(7));
        assert!(cancels.has(id(7)) && !cancels.has(id(8)));
    }
}
