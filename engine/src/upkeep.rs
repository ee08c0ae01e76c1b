//! The housekeeping thread: seals segments, allocates the next one, syncs for the `interval`
//! policy, and marks an idle log so that less of it is in doubt after a crash. Nothing an append
//! waits for depends on it being quick.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::error::Shortage;
use crate::format::control::Mark;
use crate::log::Fault;
use crate::options::SyncPolicy;
use crate::store::Inner;
use crate::sys;

/// A log that was not written for so long is marked.
const IDLE: Duration = Duration::from_secs(1);
/// How long to wait before something is tried again that a full disk prevented.
const RETRY: Duration = Duration::from_secs(1);
/// The next segment is allocated once the active one is so full, in percent.
const SPARE_AT_PERCENT: u64 = 50;

/// What the writer and the thread tell each other.
#[derive(Debug, Default)]
pub(crate) struct Upkeep {
    /// Groups written; not counted when nothing is done about them.
    writes: AtomicU64,
    /// Blobs put that no append brought; counted only if they are synced by time.
    puts: AtomicU64,
    /// Bytes of the log written since the last timed sync.
    unsynced: AtomicU64,
    /// Bytes of all blobs that had been taken in when the last timed sync began.
    blobs_synced: AtomicU64,
    /// More bytes than may be were written since, and the thread was woken; the next sync clears
    /// it.
    over: AtomicBool,
    /// The thread looks at `writes` within its period; otherwise it must be woken.
    awake: AtomicBool,
    /// The active segment is so full that the next one should be allocated.
    spare_due: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Merges the table of topics, which may take longer than anything else here may wait.
    merge: Mutex<Option<JoinHandle<()>>>,
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
        let shared = Arc::clone(inner);
        let thread =
            std::thread::Builder::new().name("xs-upkeep".to_owned()).spawn(move || run(&shared))?;
        *self.thread.lock() = Some(thread);
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
        let thread = self.thread.lock().take();
        // A panic there was a panic of ours; the store closes all the same.
        let _ = thread.map(JoinHandle::join);
        let _ = self.merge.lock().take().map(JoinHandle::join);
    }

    /// Merges the table of topics if that is due and not being done.
    fn merge_topics(&self, inner: &Arc<Inner>) {
        let mut merge = self.merge.lock();
        let is_running = merge.as_ref().is_some_and(|merge| !merge.is_finished());
        if is_running || !inner.index.merge_is_due() {
            return;
        }
        let shared = Arc::clone(inner);
        let merged = std::thread::Builder::new().name("xs-topics".to_owned()).spawn(move || {
            sys::give_way();
            // Derived: what cannot be written now is tried again after the next segment.
            let _ = shared.index.merge(&shared.upkeep.stop_merge);
        });
        *merge = merged.ok();
    }

    /// Wakes the thread.
    pub(crate) fn wake(&self) {
        self.state.lock().woken = true;
        self.changed.notify_all();
    }

    /// Tells the thread of a group of so many bytes. Called for each, so it wakes only whoever
    /// sleeps.
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

    /// Tells the thread of blobs that were put on their own.
    pub(crate) fn put(&self, inner: &Inner) {
        if matches!(inner.env.options.sync, SyncPolicy::Interval { .. }) {
            self.puts.fetch_add(1, Ordering::SeqCst);
            if !self.awake.load(Ordering::SeqCst) || self.note_over(inner) {
                self.wake();
            }
        }
    }

    /// Notes that so many bytes wait for the timed sync that it should not wait for its time. True
    /// the first time only.
    fn note_over(&self, inner: &Inner) -> bool {
        let SyncPolicy::Interval { bytes: max, .. } = inner.env.options.sync else { return false };
        // A sync that begins now may have noted more than was loaded here.
        let blobs = inner.blobs.taken().saturating_sub(self.blobs_synced.load(Ordering::Relaxed));
        let unsynced = self.unsynced.load(Ordering::Relaxed) + blobs;
        unsynced >= max && !self.over.swap(true, Ordering::Relaxed)
    }

    /// Forgets what was counted for a timed sync that begins now.
    fn begin_sync(&self, inner: &Inner) {
        self.unsynced.store(0, Ordering::Relaxed);
        self.blobs_synced.store(inner.blobs.taken(), Ordering::Relaxed);
        self.over.store(false, Ordering::Relaxed);
    }

    /// Sleeps until woken or for `period`; says whether to go on.
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

/// What the thread remembers between its rounds.
struct Rounds {
    /// Writes and puts that were durable after the last timed sync.
    synced: (u64, u64),
    /// Writes that the log was marked after.
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
            Err(Fault::Full(_)) => Some(RETRY),
            Err(Fault::Failed(error)) => {
                inner.poison(&error);
                None
            }
        };
    }
}

/// Does what is due, and says when to look again; `None` when nothing is left to do.
fn round(inner: &Arc<Inner>, rounds: &mut Rounds) -> Result<Option<Duration>, Fault> {
    // A full disk keeps nothing from being synced that was written.
    let is_full = match make_ready(inner) {
        Err(Fault::Full(_)) => true,
        ready => ready.map(|()| false)?,
    };
    let next = make_durable(inner, rounds)?;
    Ok(if is_full { Some(next.map_or(RETRY, |next| next.min(RETRY))) } else { next })
}

/// Seals and indexes what is full, and makes the next segment ready.
fn make_ready(inner: &Arc<Inner>) -> Result<(), Fault> {
    let upkeep = &inner.upkeep;
    let sealed = inner.sealing.seal_now(inner);
    crate::journal::settle(inner)?;
    sealed?;
    inner.journal.open_if_asked(&inner.env).map_err(Fault::Failed)?;
    let indexed = inner.sealing.index_sealed(inner);
    upkeep.merge_topics(inner);
    if matches!(indexed, Ok(true)) {
        inner.compaction.wake();
    }
    if upkeep.spare_due.load(Ordering::Relaxed) {
        inner.sealing.prepare_spare(inner).map_err(Fault::when_preparing)?;
        let used = inner.writer.lock().appender().fill_percent() < SPARE_AT_PERCENT;
        upkeep.spare_due.store(!used, Ordering::Relaxed);
    }
    // What else fails is tried again with the next segment.
    match indexed.err().as_ref().and_then(Shortage::of) {
        Some(shortage) => Err(Fault::Full(shortage)),
        None => Ok(()),
    }
}

/// Syncs what it is time for, and marks a log that is idle.
fn make_durable(inner: &Arc<Inner>, rounds: &mut Rounds) -> Result<Option<Duration>, Fault> {
    let upkeep = &inner.upkeep;
    let written @ (writes, _) =
        (upkeep.writes.load(Ordering::SeqCst), upkeep.puts.load(Ordering::SeqCst));
    if writes != rounds.seen {
        (rounds.seen, rounds.seen_at) = (writes, Instant::now());
    }
    match inner.env.options.sync {
        // Nothing is synced before its time, and an unsynced log cannot be marked.
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
        // In its place too: an idle store needs nothing of the journal.
        writer.settle(inner).map_err(Fault::Failed)?;
        writer.mark(inner, Mark::Sync)?;
        rounds.marked = writes;
        return Ok(None);
    }
    Ok(Some(IDLE))
}

/// Syncs what was written so far without keeping the writer from writing more.
pub(crate) fn sync_log(inner: &Inner) -> Result<(), Fault> {
    inner.upkeep.begin_sync(inner);
    let (media, seq) = {
        let writer = inner.writer.lock();
        writer.check_not_poisoned(inner)?;
        let waiting = inner.sealing.waiting();
        let media: Vec<_> = waiting.into_iter().chain(writer.appender().media().cloned()).collect();
        (media, writer.appender().next_seq())
    };
    inner.sync_files(&media.iter().collect::<Vec<_>>()).map_err(Fault::Failed)?;
    inner.durable_upto.fetch_max(seq, Ordering::AcqRel);
    Ok(())
}
