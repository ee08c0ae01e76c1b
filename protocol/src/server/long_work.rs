//! Work that may take long, or whose result stays in memory until it is sent. Each connection runs
//! one piece at a time, so that queuing many costs no more threads or memory than one. All
//! connections together use a limited number of the blocking threads, which leaves others free for
//! short work, and a limited part of the memory for lists while these are built: work first waits
//! for that and only then takes a thread, so that it holds up none that needs no memory. The shelf
//! limits the memory of finished lists.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::mailbox::{Mail, Mailbox};
use crate::limits::{LIST_BYTES_COUNTED, LISTS_BYTES_MAX, LONG_THREADS_MAX};

/// Bytes of memory for lists that one permit stands for.
const PERMIT_BYTES: usize = 1024;

type Job = Box<dyn FnOnce(LongTurn) -> Mail + Send>;

/// What the long work of a server's connections shares, in order of arrival.
pub(crate) struct LongRoom {
    threads: Arc<Semaphore>,
    /// Memory for lists while they are built: each is counted at its maximum length.
    lists: Arc<Semaphore>,
}

impl Default for LongRoom {
    fn default() -> Self {
        let threads = Arc::new(Semaphore::new(LONG_THREADS_MAX));
        Self { threads, lists: Arc::new(Semaphore::new(LISTS_BYTES_MAX / PERMIT_BYTES)) }
    }
}

impl LongRoom {
    /// Waits for memory for a list of at most `bytes`; a short one needs none.
    async fn list(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        if bytes < LIST_BYTES_COUNTED {
            return None;
        }
        let permits = bytes.min(LISTS_BYTES_MAX).div_ceil(PERMIT_BYTES) as u32;
        // The semaphore is never closed.
        Arc::clone(&self.lists).acquire_many_owned(permits).await.ok()
    }

    /// Runs a job on a blocking thread, once one is free.
    async fn run(&self, mailbox: Arc<Mailbox>, turn: LongTurn, job: Job) {
        let thread = Arc::clone(&self.threads).acquire_owned().await;
        tokio::task::spawn_blocking(move || {
            mailbox.work(|| job(turn));
            drop(thread);
        });
    }
}

/// Held by a piece of long work, from its start until its result is sent or dropped: the next one
/// of the connection begins then.
pub(crate) struct LongTurn {
    /// Weak, as messages to the connection hold turns.
    mailbox: Weak<Mailbox>,
    list: Option<OwnedSemaphorePermit>,
}

impl LongTurn {
    /// The list is built, and its actual length is counted on the shelf.
    pub(crate) fn built(&mut self) {
        self.list = None;
    }
}

impl Drop for LongTurn {
    fn drop(&mut self) {
        if let Some(mailbox) = self.mailbox.upgrade() {
            mailbox.post(Mail::LongDone);
        }
    }
}

/// The queued work of a connection, at most one piece for each unanswered request and stream.
pub(crate) struct Long {
    mailbox: Arc<Mailbox>,
    room: Arc<LongRoom>,
    waiting: VecDeque<Piece>,
    busy: bool,
}

struct Piece {
    /// The stream that it is for, or 0.
    sub: u32,
    list_bytes: usize,
    job: Job,
}

impl Long {
    /// The work of a connection.
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Self {
        let room = mailbox.long_room();
        Self { mailbox, room, waiting: VecDeque::new(), busy: false }
    }

    /// Queues a job for a stream, or for none (0), to run on a blocking thread. It builds a list of
    /// at most `list_bytes`, or none.
    pub(crate) fn add(
        &mut self,
        sub: u32,
        list_bytes: usize,
        job: impl FnOnce(LongTurn) -> Mail + Send + 'static,
    ) {
        self.waiting.push_back(Piece { sub, list_bytes, job: Box::new(job) });
        self.begin();
    }

    /// Continues a turn with another job, queued after those of other connections.
    pub(crate) fn go_on(
        &self,
        turn: LongTurn,
        job: impl FnOnce(LongTurn) -> Mail + Send + 'static,
    ) {
        let (room, mailbox) = (Arc::clone(&self.room), Arc::clone(&self.mailbox));
        tokio::spawn(async move { room.run(mailbox, turn, Box::new(job)).await });
    }

    /// A turn is over.
    pub(crate) fn done(&mut self) {
        self.busy = false;
        self.begin();
    }

    /// Drops the queued work of a stream.
    pub(crate) fn forget(&mut self, sub: u32) {
        self.waiting.retain(|piece| piece.sub != sub);
    }

    /// Drops all queued work.
    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
    }

    fn begin(&mut self) {
        if self.busy {
            return;
        }
        let Some(Piece { list_bytes, job, .. }) = self.waiting.pop_front() else { return };
        self.busy = true;
        let (room, mailbox) = (Arc::clone(&self.room), Arc::clone(&self.mailbox));
        let mut turn = LongTurn { mailbox: Arc::downgrade(&mailbox), list: None };
        tokio::spawn(async move {
            turn.list = room.list(list_bytes).await;
            room.run(mailbox, turn, job).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn what_has_no_room_waits_in_its_order() {
        const HALF: usize = LISTS_BYTES_MAX / 2;
        let room = LongRoom::default();
        let (first, second) = (room.list(HALF).await, room.list(HALF).await);
        let [mut third, mut all, mut last] =
            [HALF, 2 * LISTS_BYTES_MAX, HALF].map(|bytes| Box::pin(room.list(bytes)));
        for one in [&mut third, &mut all, &mut last] {
            assert!(one.now_or_never().is_none());
        }
        assert!(room.list(LIST_BYTES_COUNTED - 1).await.is_none());
        drop(second);
        let third = third.await;
        assert!((&mut all).now_or_never().is_none(), "it needs all of it");
        drop(first);
        drop(third);
        assert!((&mut last).now_or_never().is_none(), "it is behind");
        drop(all.await);
        drop(last.await);
        assert_eq!(room.lists.available_permits(), LISTS_BYTES_MAX / PERMIT_BYTES);
    }
}
