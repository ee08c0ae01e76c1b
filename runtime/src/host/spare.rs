//! Keeps one blank isolate ready, without a module. Starting the engine takes most of the time of a
//! start, so it is done while nothing else starts, and the next version to start takes the isolate.
//! A Host for a single module keeps none. An isolate counts as made once it gets a module: one that
//! is never used leaks nothing.
//!
//! None is made while modules keep a processor core busy. A module that fails again and again would
//! take the isolate at each start, and making the next one each time would keep another core busy.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::version::{STARTS_MAX, Shared};
use crate::isolate::{Blank, ModuleError, Mould};

/// Time without a start before an isolate is made: making it must not compete with isolates that
/// are needed now.
const REST: Duration = Duration::from_millis(100);
/// The most CPU time that the Host may use in that time.
const REST_CPU: Duration = Duration::from_millis(50);
/// After this many busy rests in a row the isolate is made anyway.
const BUSY_RESTS_MAX: u32 = 50;

/// Holds the spare isolate.
#[derive(Default)]
pub(super) struct Spare {
    slot: Mutex<Option<Blank>>,
    taken: Notify,
}

impl Spare {
    /// Takes the spare isolate, if there is one of this mould.
    pub(super) fn take(&self, mould: Mould) -> Option<Blank> {
        let taken = self.slot.lock().take_if(|blank| blank.is_of(mould))?;
        self.taken.notify_one();
        Some(taken)
    }
}

/// Keeps one isolate ready until the Host ends.
pub(super) async fn keep(shared: Arc<Shared>) {
    let shutdown = shared.shutdown.clone();
    let keep = async {
        loop {
            rest(&shared).await;
            match make(&shared).await {
                Ok(blank) => *shared.spare.slot.lock() = Some(blank),
                Err(error) => {
                    tracing::warn!(%error, "cannot keep a spare isolate ready");
                    return;
                }
            }
            shared.spare.taken.notified().await;
        }
    };
    tokio::select! {
        () = keep => {}
        () = shutdown.cancelled() => {}
    }
    drop(shared.spare.slot.lock().take());
}

async fn make(shared: &Shared) -> Result<Blank, ModuleError> {
    let mut blank = Blank::start(Mould::of_heap(shared.limits.heap_bytes))?;
    blank.made(shared.limits.engine).await?;
    Ok(blank)
}

/// Resolves when nothing has started for a while.
async fn rest(shared: &Shared) {
    let mut made = shared.made.subscribe();
    let mut quiet = Quiet::default();
    loop {
        let before = used();
        let begun = tokio::time::timeout(REST, made.changed()).await.is_ok();
        let starts = begun || shared.starts.available_permits() < STARTS_MAX;
        if quiet.note(starts, used().saturating_sub(before)) {
            return;
        }
    }
}

/// Decides when to make the spare isolate.
#[derive(Default)]
struct Quiet {
    /// How many times in a row the Host was busy.
    busy: u32,
}

impl Quiet {
    /// Notes a rest during which modules started, if `starts`, and the Host spent `used` of CPU
    /// time; returns whether to make the isolate after it.
    fn note(&mut self, starts: bool, used: Duration) -> bool {
        let rests = used <= REST_CPU;
        self.busy = if rests { 0 } else { self.busy + 1 };
        !starts && (rests || self.busy > BUSY_RESTS_MAX)
    }
}

/// The CPU time this process has used so far.
fn used() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(used).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_millis(1);
    const HOG: Duration = Duration::from_millis(99);

    #[test]
    fn one_is_made_as_soon_as_nothing_starts() {
        let mut quiet = Quiet::default();
        assert!(!quiet.note(true, IDLE));
        assert!(!quiet.note(true, HOG));
        assert!(quiet.note(false, IDLE));
        assert!(quiet.note(false, REST_CPU));
    }

    /// A module that failed repeatedly took each spare isolate, so that making the next kept a
    /// second core busy.
    #[test]
    fn beside_modules_that_keep_a_processor_busy_it_waits_but_not_for_ever() {
        let waits = |quiet: &mut Quiet| (0..).take_while(|_| !quiet.note(false, HOG)).count();
        let mut quiet = Quiet::default();
        assert_eq!(waits(&mut quiet), 50);
        // A moment of idleness restarts the wait.
        assert!(quiet.note(false, IDLE));
        assert_eq!(waits(&mut quiet), 50);
        // It waits while something else starts, however long it has waited before.
        assert!(!quiet.note(true, HOG));
        assert!(quiet.note(false, HOG));
    }
}
