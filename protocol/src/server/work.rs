//! The streams and long answers of one connection: what each still has to send.

use std::collections::VecDeque;
use std::sync::Arc;
use std::vec::IntoIter;

use bytes::Bytes;
use xs_engine::Frame;

use super::mailbox::{Mail, Mailbox, ReadyFlag};
use crate::error::{Code, Detail, Refusal};
use crate::limits::{CHUNK_BYTES_MAX, DELIVER_BYTES};
use crate::message::{
    CursorSummary, FetchRequest, Gap, StreamEvent, TopicSummary, put_frames, put_page,
};
use crate::service::{BlobSink, BlobSource, Feed, Pulled, Service};
use crate::session::{ServerSession, Ticket};

/// A filtered subscription that finds nothing says how far it has looked when it is so many
/// offsets further than it said last.
const SCANNED_STEP: u64 = 1024;
/// Pulls for one page before what was found is sent, so that a sparse filter holds up nobody.
const PULLS_PER_PAGE: usize = 16;

/// A stream, and whether it stands in the queue of those with something to do.
pub(crate) struct Slot {
    pub(crate) work: Work,
    pub(crate) queued: bool,
}

/// What a stream is.
pub(crate) enum Work {
    Feed(FeedWork),
    Upload(Upload),
    Download(Download),
}

/// Whether a stream has more to do at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    Again,
    /// It waits for credit, a wake or a blocking thread.
    Wait,
    Done,
}

/// A subscription or call.
pub(crate) struct FeedWork {
    feed: Box<dyn Feed>,
    flag: ReadyFlag,
    bodies_up_to: u32,
    /// A call is not ended by a drain: its results may still come in time.
    pub(crate) is_call: bool,
    /// Frames that were pulled and not yet sent, and what comes after them.
    pulled: VecDeque<Frame>,
    after: Pulled,
    /// Where a reader goes on after what was sent.
    sent_to: u64,
}

impl FeedWork {
    pub(crate) fn new(
        feed: Box<dyn Feed>,
        flag: ReadyFlag,
        bodies_up_to: u32,
        is_call: bool,
    ) -> Self {
        let sent_to = feed.scanned_to();
        let pulled = VecDeque::new();
        Self { feed, flag, bodies_up_to, is_call, pulled, after: Pulled::More, sent_to }
    }

    /// Where a reader goes on after what was sent.
    pub(crate) const fn resume(&self) -> u64 {
        self.sent_to
    }

    /// Sends one message of frames, or what is said between them.
    pub(crate) fn step(
        &mut self,
        sub: u32,
        session: &mut ServerSession,
        service: &dyn Service,
        scratch: &mut Vec<Frame>,
    ) -> Next {
        let credit = session.credit(sub);
        if credit <= 0 {
            return Next::Wait;
        }
        let room = usize::try_from(credit).unwrap_or(usize::MAX).min(DELIVER_BYTES);
        if self.pulled.is_empty() {
            self.flag.clear();
            scratch.clear();
            self.after = match self.feed.pull(scratch, room) {
                Ok(after) => after,
                Err(refusal) => {
                    let resume = self.sent_to;
                    session.event(sub, &StreamEvent::Dropped { refusal, resume });
                    return Next::Done;
                }
            };
            if self.bodies_up_to == 0 {
                if !scratch.is_empty() {
                    self.sent_to = self.feed.scanned_to();
                    session.deliver(sub, scratch, &[], self.sent_to);
                }
                return self.say_after(sub, session);
            }
            self.pulled.extend(scratch.drain(..));
        }
        if !self.pulled.is_empty() {
            self.deliver_with_bodies(sub, room, session, service);
            if !self.pulled.is_empty() {
                return Next::Again;
            }
        }
        self.say_after(sub, session)
    }

    /// Sends the first of the pulled frames with their bodies, as many as have room.
    fn deliver_with_bodies(
        &mut self,
        sub: u32,
        room: usize,
        session: &mut ServerSession,
        service: &dyn Service,
    ) {
        let (mut bytes, mut frames, mut bodies) = (0, Vec::new(), Vec::new());
        while bytes < room
            && let Some(frame) = self.pulled.pop_front()
        {
            bytes += frame.record().len();
            if let Some(hash) = frame.hash()
                && frame.body_len() <= u64::from(self.bodies_up_to)
                // A body that cannot be read is left out; asking for the blob says why.
                && let Ok(Some(body)) = service.small_blob(&hash, self.bodies_up_to as usize)
                && body.len() as u64 == frame.body_len()
            {
                bytes += body.len();
                bodies.push((frames.len() as u32, body));
            }
            frames.push(frame);
        }
        self.sent_to = match frames.iter().rev().find_map(Frame::offset) {
            _ if self.pulled.is_empty() => self.feed.scanned_to(),
            Some(offset) => offset + 1,
            None => self.sent_to,
        };
        session.deliver(sub, &frames, &bodies, self.sent_to);
    }

    fn say_after(&mut self, sub: u32, session: &mut ServerSession) -> Next {
        let event = match self.after {
            Pulled::More => return Next::Again,
            Pulled::Idle => {
                let scanned_to = self.feed.scanned_to();
                if scanned_to >= self.sent_to.saturating_add(SCANNED_STEP) {
                    self.sent_to = scanned_to;
                    session.deliver(sub, &[], &[], scanned_to);
                }
                return Next::Wait;
            }
            Pulled::CaughtUp { head } => StreamEvent::CaughtUp { head },
            Pulled::Lost { ephemeral } => StreamEvent::Gap(Gap::Ephemeral { count: ephemeral }),
            Pulled::Gap { from, to } => StreamEvent::Gap(Gap::Corrupt { from, to }),
            Pulled::End => StreamEvent::Ended { scanned_to: self.feed.scanned_to() },
        };
        session.event(sub, &event);
        if event.is_last() { Next::Done } else { Next::Again }
    }
}

/// A blob on its way in.
pub(crate) struct Upload {
    pub(crate) ticket: Ticket,
    sink: Option<Box<dyn BlobSink>>,
    chunks: Vec<Bytes>,
    /// A blocking thread has the sink.
    busy: bool,
    ended: bool,
}

impl Upload {
    pub(crate) const fn new(ticket: Ticket) -> Self {
        Self { ticket, sink: None, chunks: Vec::new(), busy: false, ended: false }
    }

    /// Takes a piece that came.
    pub(crate) fn push(&mut self, bytes: Bytes, last: bool) {
        if !self.ended {
            self.chunks.push(bytes);
            self.ended = last;
        }
    }

    /// The sink is back.
    pub(crate) fn returned(&mut self, sink: Box<dyn BlobSink>) {
        (self.sink, self.busy) = (Some(sink), false);
    }

    /// Gives what has come to a blocking thread.
    pub(crate) fn step(&mut self, sub: u32, service: &Arc<dyn Service>, mailbox: &Arc<Mailbox>) {
        if self.busy || self.chunks.is_empty() {
            return;
        }
        self.busy = true;
        let (chunks, sink, ended) =
            (std::mem::take(&mut self.chunks), self.sink.take(), self.ended);
        let (service, mailbox) = (Arc::clone(service), Arc::clone(mailbox));
        tokio::task::spawn_blocking(move || {
            let write = || {
                let mut sink = sink.map_or_else(|| service.blob_sink(), Ok)?;
                chunks.iter().try_for_each(|chunk| sink.write(chunk))?;
                Ok((sink, chunks.iter().map(|chunk| chunk.len() as u64).sum()))
            };
            let written = write();
            mailbox.post(match (written, ended) {
                (Ok((sink, _)), true) => Mail::Stored { sub, result: sink.finish() },
                (Err(refusal), true) => Mail::Stored { sub, result: Err(refusal) },
                (result, false) => Mail::Taken { sub, result },
            });
        });
    }
}

/// A blob on its way out.
pub(crate) struct Download {
    /// With the connection while no blocking thread has it.
    source: Option<Box<dyn BlobSource>>,
    /// Bytes not yet sent, once the blob is open.
    pub(crate) left: u64,
    /// Bytes that the read under way asked for.
    asked: usize,
}

impl Download {
    /// Opens a blob and reads its first bytes on a blocking thread.
    pub(crate) fn open(
        ticket: Ticket,
        sub: u32,
        hash: xs_engine::BlobHash,
        credit: i64,
        service: &Arc<dyn Service>,
        mailbox: &Arc<Mailbox>,
    ) -> Self {
        let (service, mailbox) = (Arc::clone(service), Arc::clone(mailbox));
        let asked = piece_len(credit);
        tokio::task::spawn_blocking(move || {
            let open = || {
                let Some(mut source) = service.blob(&hash)? else {
                    let text = format!("the store has no blob {hash}");
                    return Err(Refusal::new(Code::UnknownBlob, text));
                };
                let first = if asked == 0 { Bytes::new() } else { source.read(asked)? };
                Ok((source, first))
            };
            mailbox.post(Mail::Opened { ticket, sub, result: open() });
        });
        Self { source: None, left: 0, asked }
    }

    /// Sends a piece and, when there is credit, has the next one read.
    pub(crate) fn sent(
        &mut self,
        sub: u32,
        source: Box<dyn BlobSource>,
        bytes: &Bytes,
        session: &mut ServerSession,
    ) -> Next {
        self.left = self.left.saturating_sub(bytes.len() as u64);
        if bytes.is_empty() && self.left > 0 && self.asked > 0 {
            let refusal = Refusal::new(Code::Corrupt, "the blob ended before its length");
            session.event(sub, &StreamEvent::Dropped { refusal, resume: 0 });
            return Next::Done;
        }
        if !bytes.is_empty() || self.left == 0 {
            session.chunk(sub, bytes, self.left == 0);
        }
        self.source = Some(source);
        if self.left == 0 { Next::Done } else { Next::Again }
    }

    /// Has the next piece read, when there is credit and nobody reads.
    pub(crate) fn step(
        &mut self,
        sub: u32,
        session: &ServerSession,
        mailbox: &Arc<Mailbox>,
    ) -> Next {
        let credit = session.credit(sub);
        if credit > 0
            && let Some(mut source) = self.source.take()
        {
            let (mailbox, asked) = (Arc::clone(mailbox), piece_len(credit));
            self.asked = asked;
            tokio::task::spawn_blocking(move || {
                let result = source.read(asked);
                mailbox.post(Mail::Piece { sub, source, result });
            });
        }
        Next::Wait
    }
}

fn piece_len(credit: i64) -> usize {
    usize::try_from(credit).unwrap_or(0).min(CHUNK_BYTES_MAX)
}

/// An answer that is made when there is room for it.
pub(crate) enum Listing {
    Fetch(Ticket, FetchRequest),
    Frames(Ticket, IntoIter<Frame>),
    Topics(Ticket, IntoIter<TopicSummary>),
    Cursors(Ticket, IntoIter<CursorSummary>),
}

impl Listing {
    /// Sends one message; the listing itself when another must follow.
    pub(crate) fn step(
        self,
        session: &mut ServerSession,
        service: &dyn Service,
        scratch: &mut Vec<Frame>,
    ) -> Option<Self> {
        match self {
            Self::Fetch(ticket, fetch) => {
                match page(&fetch, service, scratch) {
                    Ok((scanned_to, more, head)) => {
                        session.reply(ticket, |out| put_page(out, scratch, scanned_to, more, head))
                    }
                    Err(refusal) => session.refuse(ticket, &refusal),
                }
                None
            }
            Self::Frames(ticket, mut rest) => {
                scratch.clear();
                let mut bytes = 0;
                while bytes < DELIVER_BYTES
                    && let Some(frame) = rest.next()
                {
                    bytes += frame.record().len();
                    scratch.push(frame);
                }
                let is_last = rest.as_slice().is_empty();
                part(session, ticket, is_last, |out| put_frames(out, scratch, &[], 0));
                (!is_last).then_some(Self::Frames(ticket, rest))
            }
            Self::Topics(ticket, mut rest) => {
                let is_last = list(session, ticket, &mut rest, |one, out| one.put(out));
                (!is_last).then_some(Self::Topics(ticket, rest))
            }
            Self::Cursors(ticket, mut rest) => {
                let is_last = list(session, ticket, &mut rest, |one, out| one.put(out));
                (!is_last).then_some(Self::Cursors(ticket, rest))
            }
        }
    }
}

fn part(
    session: &mut ServerSession,
    ticket: Ticket,
    is_last: bool,
    put: impl FnOnce(&mut crate::Gather),
) {
    if is_last {
        session.reply(ticket, put);
    } else {
        session.reply_part(ticket, put);
    }
}

/// Sends the next entries of a list; whether they were the last.
fn list<T>(
    session: &mut ServerSession,
    ticket: Ticket,
    rest: &mut IntoIter<T>,
    put: impl Fn(&T, &mut crate::Gather),
) -> bool {
    /// Entries have a few hundred bytes at most: so many stay far below a message.
    const ENTRIES: usize = 1024;
    let is_last = rest.as_slice().len() <= ENTRIES;
    let entries = rest.by_ref().take(ENTRIES);
    part(session, ticket, is_last, |out| entries.for_each(|entry| put(&entry, out)));
    is_last
}

/// Reads one page into `frames`: `scanned_to`, whether there is more, and the head at the time.
fn page(
    fetch: &FetchRequest,
    service: &dyn Service,
    frames: &mut Vec<Frame>,
) -> Result<(u64, bool, u64), Refusal> {
    frames.clear();
    let head = service.identity().head;
    let mut feed = service.read(&fetch.options)?;
    let (mut counted, mut bytes) = (0, 0);
    for _ in 0..PULLS_PER_PAGE {
        let pulled = feed.pull(frames, fetch.page_bytes as usize - bytes)?;
        bytes += frames[counted..].iter().map(|frame| frame.record().len()).sum::<usize>();
        counted = frames.len();
        match pulled {
            Pulled::More if bytes < fetch.page_bytes as usize => {}
            Pulled::More => break,
            Pulled::Gap { from, to } if frames.is_empty() => {
                let text = format!("the frames {from} to {to} cannot be read; go on after them");
                return Err(Refusal::new(Code::Corrupt, text).with(Detail::Offset(to)));
            }
            // The next page begins with the gap and says so.
            Pulled::Gap { from, .. } => return Ok((from, true, head)),
            Pulled::Lost { .. } => {}
            Pulled::CaughtUp { .. } | Pulled::Idle | Pulled::End => {
                return Ok((feed.scanned_to(), false, head));
            }
        }
    }
    Ok((feed.scanned_to(), true, head))
}
