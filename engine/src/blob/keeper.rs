//! The thread that prepares the next pack, seals full ones, and presses (compresses) those that
//! were sealed as written, so that no append waits for this.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Shared;
use super::open_pack::OpenPack;
use super::packs::{PackList, Packs};
use super::rate::{ArrivalRate, LOOK_MAX};
use super::seal::{NotSealed, seal};
use super::sweep::SweepError;
use crate::env::Env;
use crate::error::Shortage;
use crate::sys::{self, free_bytes};

/// Maximum unsealed packs, including the active one and the spare.
const OPEN_MAX: usize = 4;
/// With more full packs than this the next one is sealed as written.
const BACKLOG_MAX: usize = 2;
/// Interval before sealing is retried on a full disk, and before pressing is resumed after other
/// work.
const RETRY: Duration = Duration::from_secs(1);
/// Interval before pressing is retried after a failure, such as a lack of space.
const PRESS_RETRY: Duration = Duration::from_secs(60);

/// The pending work, and the threads that wait for it.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    chores: Mutex<Chores>,
    /// Notified when there may be work.
    work: Condvar,
    /// Notified when a pack was sealed or prepared, or will not be.
    room: Condvar,
    /// There is work more urgent than pressing.
    urgent: AtomicBool,
    /// Bytes of blobs stored by this process.
    taken: AtomicU64,
    stop: AtomicBool,
}

#[derive(Debug, Default)]
struct Chores {
    rate: ArrivalRate,
    /// No pressing before this time.
    press_after: Option<Instant>,
    want_spare: bool,
    making_spare: bool,
    spare: Option<Arc<OpenPack>>,
    /// The shortage that made the last attempt to seal fail.
    stuck: Option<Shortage>,
    /// The last attempt found no space: the next pack is sealed in place, which needs none.
    was_stuck: bool,
}

/// Why a full pack is not sealed.
#[derive(Debug)]
pub(super) enum Halted {
    /// For lack of this.
    Stuck(Shortage),
    /// The thread has ended: the store is closed, or a write failed.
    Ended,
}

enum Chore {
    MakeSpare,
    Seal { pack: Arc<OpenPack>, hurry: bool },
    Press,
}

/// The work due for the present packs.
enum Due {
    Seal {
        pack: Arc<OpenPack>,
        hurry: bool,
    },
    Press,
    /// Something is to be pressed, but not now.
    Later,
    Nothing,
}

impl Due {
    fn of(list: &PackList, env: &Env, now: &Now) -> Self {
        let plain = || list.sealed.iter().rev().filter(|pack| pack.is_plain());
        let mut full = list.open.iter().filter(|pack| pack.is_full());
        let count = full.clone().count();
        match full.next_back() {
            Some(pack) => {
                let backlog: u64 = plain().map(|pack| pack.line().length).sum();
                let may_wait = || {
                    let (max, free) = (env.options.compress.backlog_bytes, free_bytes(&env.dir));
                    backlog < max.min(free)
                };
                let hurry = count > BACKLOG_MAX || now.is_busy && may_wait();
                Self::Seal { pack: Arc::clone(pack), hurry }
            }
            // A process that only reads changes nothing.
            None if plain().next().is_none() || !now.wrote => Self::Nothing,
            None if now.is_busy || !now.may_press => Self::Later,
            None => Self::Press,
        }
    }
}

/// The conditions for choosing work.
struct Now {
    /// This process stored blobs.
    wrote: bool,
    /// Blobs arrive at a high rate.
    is_busy: bool,
    /// Pressing is not delayed.
    may_press: bool,
}

impl Keeper {
    /// Requests that a spare pack be prepared.
    pub(super) fn want_spare(&self) {
        let mut chores = self.chores.lock();
        if !chores.want_spare && !chores.making_spare && chores.spare.is_none() {
            chores.want_spare = true;
            self.urgent.store(true, Ordering::Relaxed);
            self.work.notify_one();
        }
    }

    /// Bytes of blobs stored by this process.
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Counts bytes of stored blobs.
    pub(super) fn took(&self, bytes: u64) {
        self.taken.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether pressing should stop for more urgent work.
    fn makes_way(&self) -> bool {
        self.urgent.load(Ordering::Relaxed) || self.stop.load(Ordering::Relaxed)
    }

    /// Reports a full pack.
    pub(super) fn wake(&self) {
        // Under the lock, or the thread could check before this and sleep after it.
        let _chores = self.chores.lock();
        self.urgent.store(true, Ordering::Relaxed);
        self.work.notify_one();
    }

    /// Keeps a prepared pack as the spare.
    pub(super) fn put_spare(&self, pack: Arc<OpenPack>) {
        self.chores.lock().spare = Some(pack);
    }

    /// The spare pack, or `None` when there is room to create one; waits until either is the case.
    ///
    /// # Errors
    /// [`Halted`].
    pub(super) fn next_pack(&self, packs: &Packs) -> Result<Option<Arc<OpenPack>>, Halted> {
        let mut chores = self.chores.lock();
        loop {
            if let Some(spare) = chores.spare.take() {
                return Ok(Some(spare));
            }
            if !chores.making_spare && packs.list().open.len() < OPEN_MAX {
                chores.want_spare = false;
                return Ok(None);
            }
            if self.stop.load(Ordering::Relaxed) {
                return Err(Halted::Ended);
            }
            if let Some(shortage) = chores.stuck {
                return Err(Halted::Stuck(shortage));
            }
            self.urgent.store(true, Ordering::Relaxed);
            self.room.wait(&mut chores);
        }
    }

    /// Waits until no full pack is left to seal. What there was no room for is tried again now: who
    /// asks for this may have made some.
    ///
    /// # Errors
    /// [`Halted`].
    pub(super) fn wait_sealed(&self, packs: &Packs) -> Result<(), Halted> {
        let mut chores = self.chores.lock();
        if chores.stuck.take().is_some() {
            chores.was_stuck = true;
            self.work.notify_one();
        }
        while packs.list().open.iter().any(|pack| pack.is_full()) {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Halted::Ended);
            }
            if let Some(shortage) = chores.stuck {
                return Err(Halted::Stuck(shortage));
            }
            self.room.wait(&mut chores);
        }
        Ok(())
    }

    /// Ends the thread after at most one more entry.
    pub(super) fn stop(&self) {
        let _chores = self.chores.lock();
        self.stop.store(true, Ordering::Relaxed);
        self.work.notify_all();
        self.room.notify_all();
    }

    fn next(&self, packs: &Packs, env: &Env) -> Option<Chore> {
        let mut chores = self.chores.lock();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            self.urgent.store(false, Ordering::Relaxed);
            let (now, taken) = (Instant::now(), self.taken());
            let is_busy = chores.rate.look(now, taken, env.options.compress.busy_bytes_per_second);
            let list = packs.list();
            if chores.want_spare && list.open.len() < OPEN_MAX {
                chores.want_spare = false;
                chores.making_spare = true;
                return Some(Chore::MakeSpare);
            }
            let may_press = chores.press_after.is_none_or(|after| after <= now);
            let due = Due::of(&list, env, &Now { wrote: taken > 0, is_busy, may_press });
            // Holding a list would keep the files of packs that are replaced meanwhile.
            drop(list);
            match due {
                Due::Nothing => self.work.wait(&mut chores),
                Due::Seal { .. } if chores.stuck.is_some() => {
                    self.work.wait_for(&mut chores, RETRY);
                    (chores.stuck, chores.was_stuck) = (None, true);
                }
                Due::Seal { pack, hurry } => {
                    let hurry = hurry || chores.was_stuck;
                    return Some(Chore::Seal { pack, hurry });
                }
                Due::Press => return Some(Chore::Press),
                Due::Later => drop(self.work.wait_for(&mut chores, LOOK_MAX)),
            }
        }
    }

    fn done(&self, change: impl FnOnce(&mut Chores)) {
        change(&mut self.chores.lock());
        self.room.notify_all();
    }
}

fn later(wait: Duration) -> Instant {
    Instant::now() + wait
}

/// The thread's loop, until it is stopped.
pub(super) fn run(shared: &Arc<Shared>) {
    sys::give_way();
    let keeper = &shared.keeper;
    let zero = shared.env.options.zero_ahead;
    while let Some(chore) = keeper.next(&shared.packs, &shared.env) {
        match chore {
            Chore::MakeSpare => {
                // If it cannot be created here, the writer that needs it creates it and gets the
                // error.
                let made = shared.add_pack(zero).ok();
                keeper.done(|chores| {
                    chores.making_spare = false;
                    chores.spare = made;
                });
            }
            Chore::Seal { pack, hurry } => {
                let sealed = seal(&shared.env, &shared.packs, &pack, hurry, &keeper.stop);
                drop(pack);
                match sealed {
                    Ok(()) => keeper.done(|chores| chores.was_stuck = false),
                    Err(NotSealed::Full(shortage)) => {
                        keeper.done(|chores| chores.stuck = Some(shortage));
                    }
                    Err(NotSealed::Stopped) => break,
                    Err(NotSealed::Failed(error)) => {
                        shared.fail(&error);
                        keeper.stop();
                    }
                }
            }
            Chore::Press => match shared.press(&|| keeper.makes_way()) {
                Ok(true) => {}
                Ok(false) => keeper.done(|chores| chores.press_after = Some(later(RETRY))),
                Err(SweepError::Failed(_)) => keeper.stop(),
                Err(_) => keeper.done(|chores| chores.press_after = Some(later(PRESS_RETRY))),
            },
        }
    }
}
