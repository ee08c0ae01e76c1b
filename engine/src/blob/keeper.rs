//! The thread that seals full packs and makes the next one ready, so that neither happens while
//! somebody waits for an acknowledgement.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::Shared;
use super::open_pack::OpenPack;
use super::packs::Packs;
use super::seal::{NotSealed, seal};
use crate::sys;

/// Unsealed packs, the active one and the one made ready included.
const OPEN_MAX: usize = 4;
/// With more full packs than this the next is sealed as it is.
const BACKLOG_MAX: usize = 2;
/// How long until sealing is tried again on a full disk.
const RETRY: Duration = Duration::from_secs(1);

/// What there is to do, and who waits for it.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    chores: Mutex<Chores>,
    /// Something may be to do.
    work: Condvar,
    /// A pack was sealed or made ready, or will not be.
    room: Condvar,
    stop: AtomicBool,
}

#[derive(Debug, Default)]
struct Chores {
    want_spare: bool,
    making_spare: bool,
    spare: Option<Arc<OpenPack>>,
    /// The last attempt to seal found no space.
    stuck: bool,
}

enum Chore {
    MakeSpare,
    Seal { pack: Arc<OpenPack>, hurry: bool },
}

impl Keeper {
    /// Asks for a pack to be made ready.
    pub(super) fn want_spare(&self) {
        let mut chores = self.chores.lock();
        if !chores.want_spare && !chores.making_spare && chores.spare.is_none() {
            chores.want_spare = true;
            self.work.notify_one();
        }
    }

    /// Says that a pack is full.
    pub(super) fn wake(&self) {
        // Under the lock, or the thread could look before and sleep after.
        let _chores = self.chores.lock();
        self.work.notify_one();
    }

    /// Keeps a pack that is ready for later.
    pub(super) fn put_spare(&self, pack: Arc<OpenPack>) {
        self.chores.lock().spare = Some(pack);
    }

    /// The pack that was made ready, or nothing when there is room to make one; waits until one of
    /// them is true.
    ///
    /// # Errors
    /// `StorageFull` when full packs cannot be sealed for want of space; anything else when the
    /// thread is gone.
    pub(super) fn next_pack(&self, packs: &Packs) -> io::Result<Option<Arc<OpenPack>>> {
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
                return Err(io::ErrorKind::NotConnected.into());
            }
            if chores.stuck {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room.wait(&mut chores);
        }
    }

    /// Waits until no full pack is left to seal.
    ///
    /// # Errors
    /// As those of [`next_pack`](Self::next_pack).
    pub(super) fn wait_sealed(&self, packs: &Packs) -> io::Result<()> {
        let mut chores = self.chores.lock();
        while packs.list().open.iter().any(|pack| pack.is_full()) {
            if self.stop.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::NotConnected.into());
            }
            if chores.stuck {
                return Err(io::ErrorKind::StorageFull.into());
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

    fn next(&self, packs: &Packs) -> Option<Chore> {
        let mut chores = self.chores.lock();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            let list = packs.list();
            if chores.want_spare && list.open.len() < OPEN_MAX {
                chores.want_spare = false;
                chores.making_spare = true;
                return Some(Chore::MakeSpare);
            }
            let mut full = list.open.iter().filter(|pack| pack.is_full());
            let hurry = full.clone().count() > BACKLOG_MAX;
            let oldest = full.next_back().cloned();
            // A list that is held keeps the files of packs that are replaced meanwhile.
            drop(list);
            match oldest {
                None => self.work.wait(&mut chores),
                Some(_) if chores.stuck => {
                    self.work.wait_for(&mut chores, RETRY);
                    chores.stuck = false;
                }
                Some(pack) => return Some(Chore::Seal { pack, hurry }),
            }
        }
    }

    fn done(&self, change: impl FnOnce(&mut Chores)) {
        change(&mut self.chores.lock());
        self.room.notify_all();
    }
}

/// The thread: does what there is to do until it is stopped.
pub(super) fn run(shared: &Arc<Shared>) {
    sys::give_way();
    let keeper = &shared.keeper;
    let zero = shared.env.options.zero_ahead;
    while let Some(chore) = keeper.next(&shared.packs) {
        match chore {
            Chore::MakeSpare => {
                // Whoever needs the pack makes it, and is told, when it cannot be made here.
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
                    Ok(()) => keeper.done(|_| ()),
                    Err(NotSealed::Full) => keeper.done(|chores| chores.stuck = true),
                    Err(NotSealed::Stopped) => break,
                    Err(NotSealed::Failed(error)) => {
                        shared.fail(error);
                        keeper.stop();
                    }
                }
            }
        }
    }
}
