//! Calls that their callers have given up, by command. The Host hears of them beside the calls: a
//! command whose queue is full reads no more of the log, and must hear of them all the same. It
//! ends no call and answers none; that is the command's own business.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use xs_engine::{Frame, FrameId};

use super::calls::{CANCEL, cancelled_call};
use crate::name::{Kind, ProcessorName};

/// Calls of one command that are remembered; beyond it the oldest are forgotten.
const CANCELS_MAX: usize = 65_536;

/// Those of all commands of a Host.
#[derive(Default)]
pub(in crate::host) struct AllCancels(Mutex<HashMap<ProcessorName, Arc<Cancels>>>);

impl AllCancels {
    /// Those of one command. There is an entry for each name that was asked for.
    pub(in crate::host) fn of(&self, name: &ProcessorName) -> Arc<Cancels> {
        Arc::clone(self.0.lock().entry(name.clone()).or_default())
    }
}

/// Those of one command.
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

    /// Resolves when there may be one more. Cancelling it loses nothing.
    pub(super) async fn told(&self) {
        self.told.notified().await;
    }

    pub(super) fn has(&self, call: FrameId) -> bool {
        self.calls.lock().contains(&call)
    }

    /// Forgets those that `keep` does not want.
    pub(super) fn retain(&self, mut keep: impl FnMut(FrameId) -> bool) {
        self.calls.lock().retain(|call| keep(*call));
    }
}

/// The command and the call that a frame is about, if it cancels one.
pub(in crate::host) fn cancel_of(frame: &Frame) -> Option<(ProcessorName, FrameId)> {
    let rest = frame.topic().strip_prefix("xs.")?.strip_prefix(Kind::Command.as_str())?;
    let name = rest.strip_prefix('.')?.strip_suffix(CANCEL)?.strip_suffix('.')?;
    Some((ProcessorName::parse(name).ok()?, cancelled_call(frame)?))
}

#[cfg(test)]
mod tests {
    use super::*;

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
