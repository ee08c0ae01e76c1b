//! The housekeeping thread: seals segments, allocates the next one, syncs for the `interval`
//! policy, and marks an idle log so that less of it is in doubt after a crash. Nothing that an
//! append waits for depends on its speed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::error::Shortage;
use crate::format::control::Mark;
use crate::io_error::IoError;
use crate::log::WriteError;
use crate::options::SyncPolicy;
use crate::store::Inner;
use crate::sys;
use crate::worker::Worker;

/// A log without writes for this long is marked.
const IDLE: Duration = Duration::from_secs(1);
/// Interval before retrying what a full disk prevented.
const RETRY: Duration = Duration::from_secs(1);
/// The next segment is allocated once the active one is this full, in percent.
const SPARE_AT_PERCENT: u64 = 50;

/// State shared by the writer and the thread.
#[derive(Debug, Default)]
pub(crate) struct Upkeep {
    /// Groups written; not counted under policies that ignore it.
    writes: AtomicU64,
    /// Blobs put outside of appends; counted only under timed syncs.
    puts: AtomicU64,
    /// Bytes of the log written since the last timed sync.
    unsynced: AtomicU64,
    /// Bytes of all blobs stored when the last timed sync began.
    blobs_synced: AtomicU64,
    /// More than the allowed bytes were written since, and the thread was woken; the next sync
    /// clears this.
    over: AtomicBool,
    /// The thread checks `writes` within its period; otherwise it must be woken.
    awake: AtomicBool,
    /// The active segment is full enough to allocate the next one.
    spare_due: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
    thread: Worker,
    /// Merges the table of topics, which takes longer than the other work here can wait.
    merge: Worker,
    stop_merge: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    woken: bool,
    stop: bool,
}

impl Upkeep {
    /// Starts the thread.
    pub(crate) fn start(&self, inner: &Arc<Inner>) -> std::io::Result<()> {
        let (shared, poisoned) = (Arc::clone(inner), Arc::clone(inner));
        // Without it, a policy with timed syncs would promise what nothing keeps.
        let on_panic = move || {
            poisoned.poison(IoError::other("the thread xs-upkeep has panicked"));
        };
        self.thread.start("xs-upkeep", move || run(&shared), on_panic)?;
        if inner.index.merge_is_due() {
            self.wake();
        }
        Ok(())
    }

    /// Ends the threads and waits for them.
    pub(crate) fn stop(&self) {
        self.state.lock().stop = true;
        self.changed.notify_all();
        self.stop_merge.store(true, Ordering::Relaxed);
        self.thread.join();
        self.merge.join();
    }

    /// Starts a merge of the table of topics if one is due and none is running.
    fn merge_topics(&self, inner: &Arc<Inner>) {
        if self.merge.is_running() || !inner.index.merge_is_due() {
            return;
        }
        let shared = Arc::clone(inner);
        let merge = move || {
            sys::give_way();
            // A derived file: what cannot be written now is retried after the next segment.
            let _ = shared.index.merge(&shared.upkeep.stop_merge);
        };
        let _ = self.merge.start("xs-topics", merge, || ());
    }

    /// Wakes the thread.
    pub(crate) fn wake(&self) {
        self.state.lock().woken = true;
        self.changed.notify_all();
    }

    /// Reports a written group to the thread. Called for each group, so it wakes the thread only if
    /// it sleeps.
    pub(crate) fn wrote(&self, inner: &Inner, bytes: u64, fill_percent: u64) {
        let mut wake = false;
        if inner.env.options.sync != SyncPolicy::None {
            // Sequentially consistent with the thread's store to `awake` and load of `writes`:
            // either it sees this write, or this sees that it is asleep.
            self.writes.fetch_add(1, Ordering::SeqCst);
            wake = !self.awake.load(Ordering::SeqCst);
        }
        self.unsynced.fetch_add(bytes, Ordering::Relaxed);
        wake |= self.note_over(inner);
        if fill_percent >= SPARE_AT_PERCENT && !self.spare_due.load(Ordering::Relaxed) {
            self.spare_due.store(true, Ordering::Relaxed);
            wake = true;
        }
        if wake {
            self.wake();
        }
    }

    /// Reports blobs that were put outside of appends.
    pub(crate) fn put(&self, inner: &Inner) {
        if matches!(inner.env.options.sync, SyncPolicy::Interval { .. }) {
            self.puts.fetch_add(1, Ordering::SeqCst);
            if !self.awake.load(Ordering::SeqCst) || self.note_over(inner) {
                self.wake();
            }
        }
    }

    /// Notes when enough bytes are unsynced that the timed sync should run early. Returns true the
    /// first time only.
    fn note_over(&self, inner: &Inner) -> bool {
        let SyncPolicy::Interval { bytes: max, .. } = inner.env.options.sync else { return false };
        // A sync that starts now may have noted more than was loaded here.
        let blobs = inner.blobs.taken().saturating_sub(self.blobs_synced.load(Ordering::Relaxed));
        let unsynced = self.unsynced.load(Ordering::Relaxed) + blobs;
        unsynced >= max && !self.over.swap(true, Ordering::Relaxed)
    }

    /// Resets the counts for a timed sync that begins now.
    fn begin_sync(&self, inner: &Inner) {
        self.unsynced.store(0, Ordering::Relaxed);
        self.blobs_synced.store(inner.blobs.taken(), Ordering::Relaxed);
        self.over.store(false, Ordering::Relaxed);
    }

    /// Sleeps until woken or for `period`; returns whether to continue.
    fn sleep(&self, period: Option<Duration>) -> bool {
        let mut state = self.state.lock();
        if !state.stop && !state.woken {
            match period {
                Some(period) => drop(self.changed.wait_for(&mut state, period)),
                None => self.changed.wait(&mut state),
            }
        }
        state.woken = false;
        !state.stop
    }
}

/// State of the thread between its rounds.
struct Rounds {
    /// Writes and puts that were durable after the last timed sync.
    synced: (u64, u64),
    /// The count of writes when the log was last marked.
    marked: u64,
    seen: u64,
    seen_at: Instant,
}

fn run(inner: &Arc<Inner>) {
    let upkeep = &inner.upkeep;
    let mut rounds = Rounds { synced: (0, 0), marked: 0, seen: 0, seen_at: Instant::now() };
    let mut period = None;
    while upkeep.sleep(period) {
        if inner.is_poisoned() {
            period = None;
            continue;
        }
        upkeep.awake.store(true, Ordering::SeqCst);
        period = match round(inner, &mut rounds) {
            Ok(Some(period)) => Some(period),
            Ok(None) => {
                upkeep.awake.store(false, Ordering::SeqCst);
                let missed = upkeep.writes.load(Ordering::SeqCst) != rounds.marked
                    || upkeep.puts.load(Ordering::SeqCst) != rounds.synced.1;
                missed.then_some(Duration::ZERO)
            }
            Err(WriteError::Full(_)) => Some(RETRY),
            Err(WriteError::Failed(error)) => {
                inner.poison(&error);
                None
            }
        };
    }
}

/// Does what is due, and returns when to check again; `None` when nothing is left to do.
fn round(inner: &Arc<Inner>, rounds: &mut Rounds) -> Result<Option<Duration>, WriteError> {
    // A full disk does not prevent syncing what was written.
    let is_full = match make_ready(inner) {
        Err(WriteError::Full(_)) => true,
        ready => ready.map(|()| false)?,
    };
    let next = make_durable(inner, rounds)?;
    Ok(if is_full { Some(next.map_or(RETRY, |next| next.min(RETRY))) } else { next })
}

/// Seals and indexes full segments, and prepares the next one.
fn make_ready(inner: &Arc<Inner>) -> Result<(), WriteError> {
    let upkeep = &inner.upkeep;
    let sealed = inner.sealing.seal_now(inner);
    crate::journal::settle(inner)?;
    sealed?;
    inner.journal.open_if_asked(&inner.env).map_err(WriteError::Failed)?;
    let indexed = inner.sealing.index_sealed(inner);
    upkeep.merge_topics(inner);
    if matches!(indexed, Ok(true)) {
        inner.compaction.wake();
    }
    if upkeep.spare_due.load(Ordering::Relaxed) {
        inner.sealing.prepare_spare(inner).map_err(WriteError::when_preparing)?;
        let used = inner.writer.lock().appender().fill_percent() < SPARE_AT_PERCENT;
        upkeep.spare_due.store(!used, Ordering::Relaxed);
    }
    // Other failures are retried with the next segment.
    match indexed.err().as_ref().and_then(Shortage::of) {
        Some(shortage) => Err(WriteError::Full(shortage)),
        None => Ok(()),
    }
}

/// Syncs what is due, and marks an idle log.
fn make_durable(inner: &Arc<Inner>, rounds: &mut Rounds) -> Result<Option<Duration>, WriteError> {
    let upkeep = &inner.upkeep;
    let written @ (writes, _) =
        (upkeep.writes.load(Ordering::SeqCst), upkeep.puts.load(Ordering::SeqCst));
    if writes != rounds.seen {
        (rounds.seen, rounds.seen_at) = (writes, Instant::now());
    }
    match inner.env.options.sync {
        // Under this policy nothing is synced early, and an unsynced log cannot be marked.
        SyncPolicy::None => return Ok(None),
        SyncPolicy::Interval { ms, .. } if written != rounds.synced => {
            sync_log(inner)?;
            rounds.synced = written;
            return Ok(Some(Duration::from_millis(ms)));
        }
        SyncPolicy::Sync | SyncPolicy::Interval { .. } => {}
    }
    if writes == rounds.marked {
        return Ok(None);
    }
    let idle = rounds.seen_at.elapsed();
    if idle < IDLE {
        return Ok(Some(IDLE - idle));
    }
    let mut writer = inner.writer.lock();
    if upkeep.writes.load(Ordering::SeqCst) == writes && !writer.closed {
        writer.check_not_poisoned(inner)?;
        // Also in place, so that an idle store needs nothing from the journal.
        writer.settle(inner).map_err(WriteError::Failed)?;
        writer.mark(inner, Mark::Sync)?;
        rounds.marked = writes;
        return Ok(None);
    }
    Ok(Some(IDLE))
}

/// Syncs what was written so far without blocking the writer.
pub(crate) fn sync_log(inner: &Inner) -> Result<(), WriteError> {
    inner.upkeep.begin_sync(inner);
    let (media, seq) = {
        let writer = inner.writer.lock();
        writer.check_not_poisoned(inner)?;
        let waiting = inner.sealing.waiting();
        let media: Vec<_> = waiting.into_iter().chain(writer.appender().media().cloned()).collect();
        (media, writer.appender().next_seq())
    };
    inner.sync_files(&media.iter().collect::<Vec<_>>()).map_err(WriteError::Failed)?;
    inner.durable_upto.fetch_max(seq, Ordering::AcqRel);
    Ok(())
}
