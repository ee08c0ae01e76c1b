//! A thread that syncs the packs while another thread syncs the log. It is kept between syncs:
//! starting one for each group would cost more than a sync on some disks.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::{Condvar, Mutex};

use super::Shared;

/// The thread, started on first use, and its current request.
#[derive(Debug, Default)]
pub(super) struct Beside {
    turn: Mutex<Turn>,
    changed: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
enum Turn {
    /// No request.
    #[default]
    Free,
    /// A request; its caller waits, or will.
    Asked,
    /// The result, and whether the thread is still alive.
    Done(io::Result<()>, bool),
    /// The thread has ended.
    Ended,
}

/// A requested sync. Dropping it waits for the result too.
pub(super) struct Asked<'a>(Option<&'a Beside>);

impl Beside {
    /// Requests a sync of the packs. `None` when the thread is busy or cannot be started.
    pub(super) fn ask(&self, shared: &Arc<Shared>) -> Option<Asked<'_>> {
        let mut turn = self.turn.lock();
        if !matches!(*turn, Turn::Free) {
            return None;
        }
        let mut thread = self.thread.lock();
        if thread.is_none() {
            let shared = Arc::clone(shared);
            let named = thread::Builder::new().name("xs-sync".to_owned());
            *thread = Some(named.spawn(move || shared.beside.run(&shared)).ok()?);
        }
        *turn = Turn::Asked;
        self.changed.notify_all();
        Some(Asked(Some(self)))
    }

    /// Ends the thread and waits for it. Later syncs run on the caller's thread.
    pub(super) fn stop(&self) {
        {
            let mut turn = self.turn.lock();
            while !matches!(*turn, Turn::Free | Turn::Ended) {
                self.changed.wait(&mut turn);
            }
            *turn = Turn::Ended;
        }
        self.changed.notify_all();
        if let Some(thread) = self.thread.lock().take() {
            // A panic was already answered with an error.
            let _ = thread.join();
        }
    }

    fn run(&self, shared: &Shared) {
        loop {
            {
                let mut turn = self.turn.lock();
                while !matches!(*turn, Turn::Asked | Turn::Ended) {
                    self.changed.wait(&mut turn);
                }
                if matches!(*turn, Turn::Ended) {
                    return;
                }
            }
            let died = Err(io::Error::other("the thread that syncs packs died"));
            let mut answer = Answer { to: self, synced: Some(died) };
            answer.synced = Some(shared.sync());
        }
    }
}

/// Delivers the result on drop, even if the sync panicked.
struct Answer<'a> {
    to: &'a Beside,
    synced: Option<io::Result<()>>,
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        let synced = self.synced.take().unwrap_or(Ok(()));
        *self.to.turn.lock() = Turn::Done(synced, !thread::panicking());
        self.to.changed.notify_all();
    }
}

impl Asked<'_> {
    /// Waits for the result.
    pub(super) fn wait(mut self) -> io::Result<()> {
        self.0.take().map_or(Ok(()), Self::answer)
    }

    fn answer(beside: &Beside) -> io::Result<()> {
        let mut turn = beside.turn.lock();
        loop {
            match std::mem::take(&mut *turn) {
                Turn::Done(synced, is_there) => {
                    if !is_there {
                        *turn = Turn::Ended;
                    }
                    // The thread in [`stop`](Beside::stop) waits for this.
                    beside.changed.notify_all();
                    return synced;
                }
                other => *turn = other,
            }
            beside.changed.wait(&mut turn);
        }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let _ = self.0.take().map(Self::answer);
    }
}
