//! Messages from other threads to a connection's task: results of requests, and feeds that have
//! more.

use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use xs_engine::{Appended, BlobHash, CursorSummary, Frame, TopicPatterns};

use super::census::{Census, Connections, Seat};
use super::lag::Leap;
use super::listing::Page;
use super::long_work::{LongRoom, LongTurn};
use super::shelf::Shelf;
use crate::auth::Secret;
use crate::error::{Code, Refusal};
use crate::message::{HostClaim, Imported, SubscribeRequest};
use crate::service::{BlobSink, BlobSource, Called, Feed, TopicsPage, Wake};
use crate::session::Ticket;

/// A message to a connection.
pub(crate) enum Mail {
    Appended {
        ticket: Ticket,
        result: Result<Appended, Refusal>,
    },
    Imported {
        ticket: Ticket,
        result: Result<Imported, Refusal>,
    },
    /// The result of STATS or MAINTAIN.
    Told {
        ticket: Ticket,
        result: Result<String, Refusal>,
    },
    /// The newest frames for a subscription that is too far behind.
    Newest {
        sub: u32,
        result: Result<Leap, Refusal>,
        turn: LongTurn,
    },
    /// Feeds that were idle may have more.
    Ready,
    /// A subscription whose start was searched for.
    Subscribed {
        subscribed: Box<Subscribed>,
        turn: LongTurn,
    },
    /// A page of a FETCH whose start was searched for.
    Page {
        ticket: Ticket,
        result: Result<Box<Page>, Refusal>,
        turn: LongTurn,
    },
    /// The result of a LAST.
    Frames {
        ticket: Ticket,
        result: Result<Vec<Frame>, Refusal>,
        turn: LongTurn,
    },
    /// Some of the topics that patterns select.
    Topics {
        ticket: Ticket,
        patterns: TopicPatterns,
        result: Result<TopicsPage, Refusal>,
        turn: LongTurn,
    },
    Cursors {
        ticket: Ticket,
        result: Result<Vec<CursorSummary>, Refusal>,
        turn: LongTurn,
    },
    Called {
        ticket: Ticket,
        sub: u32,
        bodies_up_to: u32,
        result: Result<Called, Refusal>,
    },
    /// A download was opened and its first bytes read.
    Opened {
        ticket: Ticket,
        sub: u32,
        asked: usize,
        result: Result<(Box<dyn BlobSource>, Bytes), Refusal>,
    },
    /// More bytes of a download.
    Piece {
        sub: u32,
        asked: usize,
        source: Box<dyn BlobSource>,
        result: Result<Bytes, Refusal>,
    },
    /// Bytes of an upload that were stored.
    Taken {
        sub: u32,
        result: Result<(Box<dyn BlobSink>, u64), Refusal>,
    },
    /// An upload has ended.
    Stored {
        sub: u32,
        result: Result<(BlobHash, u64), Refusal>,
    },
    /// A piece of long work is done, and its result sent or dropped.
    LongDone,
    /// The work for a request failed.
    Failed,
    /// Changed tokens were read, or could not be in time: decides on a client that waits for it.
    Admit {
        ticket: Ticket,
        token: Secret,
        host: Option<HostClaim>,
    },
    /// The server is stopping.
    Drain(Duration),
    /// The tokens have changed.
    Recheck,
    /// Other connections wait to say HELLO, and this one has not said it yet.
    GiveWay,
    /// This connection of the Host is dead: the Host has reconnected.
    Replaced,
}

/// A subscription that was opened, or failed to open.
pub(crate) struct Subscribed {
    pub(crate) ticket: Ticket,
    pub(crate) sub: u32,
    pub(crate) request: SubscribeRequest,
    pub(crate) result: Result<Box<dyn Feed>, Refusal>,
}

/// The message queue of a connection's task, and the connection's statistics.
#[derive(Default)]
pub(crate) struct Mailbox {
    inner: Mutex<Inner>,
    pub(crate) seat: Seat,
    /// The client has hung up: it waits for nothing that takes long.
    gone: AtomicBool,
    /// The connection has ended: messages are no longer read.
    ended: AtomicBool,
    /// All connections of the server, including this one.
    connections: Weak<Connections>,
}

#[derive(Default)]
struct Inner {
    mail: Vec<Mail>,
    waker: Option<Waker>,
    /// The task is being polled and will check again, so it need not be woken. This saves an append
    /// that is committed in place a second round through the scheduler.
    polling: bool,
}

impl Mailbox {
    /// The mailbox of one of these connections.
    pub(crate) fn among(connections: &Arc<Connections>) -> Self {
        Self { connections: Arc::downgrade(connections), ..Self::default() }
    }

    /// Notes that the client no longer waits for long work.
    pub(crate) fn close(&self) {
        self.gone.store(true, Ordering::Release);
    }

    /// Whether long work may end, as nobody waits for it.
    pub(crate) fn is_closed(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Notes that the connection has ended.
    pub(crate) fn leave(&self) {
        self.close();
        self.ended.store(true, Ordering::Release);
    }

    /// What the long work of all connections shares.
    pub(crate) fn long_room(&self) -> Arc<LongRoom> {
        self.connections.upgrade().map(|all| Arc::clone(&all.long_room)).unwrap_or_default()
    }

    /// Holds the lists of all connections until they are sent.
    pub(crate) fn shelf(&self) -> Arc<Shelf> {
        self.connections.upgrade().map(|all| Arc::clone(&all.shelf)).unwrap_or_default()
    }

    /// Totals over the connections of the server.
    pub(crate) fn census(&self, head: u64) -> Census {
        let connections = self.connections.upgrade();
        connections.map_or_else(Census::default, |connections| Census::of(&connections, head))
    }

    /// Posts a message.
    pub(crate) fn post(&self, mail: Mail) {
        let waker = {
            let mut inner = self.inner.lock();
            inner.mail.push(mail);
            if inner.polling { None } else { inner.waker.take() }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Runs work that may block on another thread, and posts its result.
    pub(crate) fn post_from(self: &Arc<Self>, work: impl FnOnce() -> Mail + Send + 'static) {
        let mailbox = Arc::clone(self);
        tokio::task::spawn_blocking(move || mailbox.work(work));
    }

    /// Runs work here, and posts its result. Work not started when the connection ends is skipped.
    pub(crate) fn work(&self, work: impl FnOnce() -> Mail) {
        if self.ended.load(Ordering::Acquire) {
            return;
        }
        // A panic was printed where it happened; the waiting client is answered too.
        let news = panic::catch_unwind(AssertUnwindSafe(work));
        self.post(news.unwrap_or(Mail::Failed));
    }

    /// The task starts polling.
    pub(crate) fn begin(&self) {
        self.inner.lock().polling = true;
    }

    /// Swaps the messages for an empty vector.
    pub(crate) fn take(&self, into: &mut Vec<Mail>) {
        std::mem::swap(&mut self.inner.lock().mail, into);
    }

    /// The task wants to sleep; returns `false` when there are messages to handle first.
    pub(crate) fn end(&self, waker: &Waker) -> bool {
        let mut inner = self.inner.lock();
        if !inner.mail.is_empty() {
            return false;
        }
        inner.polling = false;
        inner.waker = Some(waker.clone());
        true
    }

    /// A wake for all feeds: a publish notifies a connection once, however many feeds it has. It
    /// posts once until [`ReadyFlag::clear`].
    pub(crate) fn wake(self: &Arc<Self>) -> (Wake, ReadyFlag) {
        let flag = ReadyFlag::default();
        let (mailbox, queued) = (Arc::downgrade(self), Arc::clone(&flag.0));
        let wake = move || {
            if !queued.swap(true, Ordering::AcqRel)
                && let Some(mailbox) = mailbox.upgrade()
            {
                mailbox.post(Mail::Ready);
            }
        };
        (Arc::new(wake), flag)
    }
}

/// An append or import that waits for its result. If the service drops it, the client still gets an
/// answer.
pub(crate) struct ReplyOnDrop {
    ticket: Ticket,
    /// `None` once the result was posted.
    mailbox: Option<Arc<Mailbox>>,
}

impl ReplyOnDrop {
    pub(crate) fn new(ticket: Ticket, mailbox: &Arc<Mailbox>) -> Self {
        Self { ticket, mailbox: Some(Arc::clone(mailbox)) }
    }

    /// Posts the result.
    pub(crate) fn post(mut self, mail: impl FnOnce(Ticket) -> Mail) {
        if let Some(mailbox) = self.mailbox.take() {
            mailbox.post(mail(self.ticket));
        }
    }
}

impl Drop for ReplyOnDrop {
    fn drop(&mut self) {
        if let Some(mailbox) = self.mailbox.take() {
            let text = "the server failed at this request; its log says more";
            let result = Err(Refusal::new(Code::Indeterminate, text));
            mailbox.post(Mail::Appended { ticket: self.ticket, result });
        }
    }
}

/// Whether the wake was posted and not handled yet.
#[derive(Default)]
pub(crate) struct ReadyFlag(Arc<AtomicBool>);

impl ReadyFlag {
    /// Call it before feeds are pulled: a later wake must post again.
    pub(crate) fn clear(&self) {
        self.0.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_waits_for_is_not_begun() {
        let (mailbox, mut mail) = (Mailbox::default(), Vec::new());
        // A client that has closed its end still receives answers.
        mailbox.close();
        mailbox.work(|| Mail::Ready);
        mailbox.leave();
        mailbox.work(|| panic!("nobody is there"));
        mailbox.take(&mut mail);
        assert!(matches!(mail[..], [Mail::Ready]));
    }
}
