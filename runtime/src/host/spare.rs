//! One isolate without a module, made while nothing starts and taken by the next version that does:
//! most of the time of a start is that of the engine alone. A Host for one module keeps none. It
//! counts as made when a module is put in it: unused, it leaves nothing behind. While modules keep
//! a processor busy it waits: beside one that fails again and again, and takes it each time, it
//! would keep another.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::version::{STARTS_MAX, Shared};
use crate::isolate::{Blank, ModuleError, Mould};

/// For how long nothing may have started before one is made: it must not compete with those that
/// are needed now.
const REST: Duration = Duration::from_millis(100);
/// The most that the Host may have used of a processor in that time.
const REST_CPU: Duration = Duration::from_millis(50);
/// So many times in a row that is waited for, and no longer.
const BUSY_RESTS_MAX: u32 = 50;

/// Its place.
#[derive(Default)]
pub(super) struct Spare {
    slot: Mutex<Option<Blank>>,
    taken: Notify,
}

impl Spare {
    /// Takes it, if it is there and of this mould.
    pub(super) fn take(&self, mould: Mould) -> Option<Blank> {
        let taken = self.slot.lock().take_if(|blank| blank.is_of(mould))?;
        self.taken.notify_one();
        Some(taken)
    }
}

/// Keeps one ready until the Host ends.
pub(super) async fn keep(shared: Arc<Shared>) {
    let shutdown = shared.shutdown.clone();
    let keep = async {
        loop {
            rest(&shared).await;
            match make(&shared).await {
                Ok(blank) => *shared.spare.slot.lock() = Some(blank),
                Err(error) => {
                    tracing::warn!(%error, "no isolate can be kept ready");
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
    blank.made().await?;
    Ok(blank)
}

/// Resolves when nothing has started for a while.
async fn rest(shared: &Shared) {
    let mut made = shared.made.subscribe();
    let mut busy = 0;
    loop {
        let before = used();
        let begun = tokio::time::timeout(REST, made.changed()).await.is_ok();
        let rests = used().saturating_sub(before) <= REST_CPU;
        busy = if rests { 0 } else { busy + 1 };
        let starts = begun || shared.starts.available_permits() < STARTS_MAX;
        if !starts && (rests || busy > BUSY_RESTS_MAX) {
            return;
        }
    }
}

/// What this process has used of the processors so far.
fn used() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(used).unwrap_or_default()
}
