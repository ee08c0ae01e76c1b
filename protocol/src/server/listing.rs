//! Answers that are made message by message, when the connection has room for them.

use std::mem;
use std::vec::IntoIter;

use xs_engine::Frame;

use crate::error::{Code, Detail, Refusal};
use crate::gather::Gather;
use crate::limits::DELIVER_BYTES;
use crate::message::{CursorSummary, FetchRequest, TopicSummary, put_frames, put_page};
use crate::service::{Feed, Pulled, Service};
use crate::session::{ServerSession, Ticket};

/// An answer that is made when there is room for it.
pub(crate) enum Listing {
    Fetch(Ticket, FetchRequest),
    Page(Page),
    /// Of a LAST, and whether it was looked for as long work.
    Frames(Ticket, IntoIter<Frame>, bool),
    Topics(Ticket, IntoIter<TopicSummary>),
    Cursors(Ticket, IntoIter<CursorSummary>),
}

impl Listing {
    /// Whether it may be a long list: all of it is in memory until it is sent.
    pub(crate) const fn is_long(&self) -> bool {
        match self {
            Self::Fetch(..) => false,
            Self::Page(page) => page.is_long,
            Self::Frames(_, _, is_long) => *is_long,
            Self::Topics(..) | Self::Cursors(..) => true,
        }
    }

    /// Sends one message, or looks for what is in it; the listing itself when more must follow.
    pub(crate) fn step(
        self,
        session: &mut ServerSession,
        service: &dyn Service,
        scratch: &mut Vec<Frame>,
    ) -> Option<Self> {
        match self {
            Self::Fetch(ticket, fetch) => match Page::open(ticket, &fetch, false, service) {
                Ok(page) => page.step(session, scratch).map(Self::Page),
                Err(refusal) => {
                    session.refuse(ticket, &refusal);
                    None
                }
            },
            Self::Page(page) => page.step(session, scratch).map(Self::Page),
            Self::Frames(ticket, mut rest, is_long) => {
                scratch.clear();
                let mut bytes = 0;
                while bytes < DELIVER_BYTES
                    && let Some(frame) = rest.next()
                {
                    bytes += frame.record().len();
                    scratch.push(frame);
                }
                let is_last = rest.as_slice().is_empty();
                session.shown(scratch);
                part(session, ticket, is_last, |out| put_frames(out, scratch, &[], 0));
                (!is_last).then_some(Self::Frames(ticket, rest, is_long))
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

fn part(session: &mut ServerSession, ticket: Ticket, is_last: bool, put: impl FnOnce(&mut Gather)) {
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
    put: impl Fn(&T, &mut Gather),
) -> bool {
    /// Entries have a few hundred bytes at most: so many stay far below a message.
    const ENTRIES: usize = 1024;
    let is_last = rest.as_slice().len() <= ENTRIES;
    let entries = rest.by_ref().take(ENTRIES);
    part(session, ticket, is_last, |out| entries.for_each(|entry| put(&entry, out)));
    is_last
}

/// A page of a FETCH that is being read.
pub(crate) struct Page {
    ticket: Ticket,
    is_long: bool,
    reverse: bool,
    head: u64,
    feed: Box<dyn Feed>,
    frames: Vec<Frame>,
    /// Bytes of records that are still wanted.
    room: usize,
}

impl Page {
    /// Opens the read. `is_long`: [`Listing::is_long`].
    ///
    /// # Errors
    /// [`Refusal`] when that cannot be done.
    pub(crate) fn open(
        ticket: Ticket,
        fetch: &FetchRequest,
        is_long: bool,
        service: &dyn Service,
    ) -> Result<Self, Refusal> {
        let head = service.head();
        let feed = service.read(&fetch.options)?;
        let (reverse, room) = (fetch.options.reverse, fetch.page_bytes as usize);
        Ok(Self { ticket, is_long, reverse, head, feed, frames: Vec::new(), room })
    }

    /// Reads on, and sends the page when it is whole. A filter that finds little holds up nobody:
    /// others have their turn before it is looked further.
    fn step(mut self, session: &mut ServerSession, scratch: &mut Vec<Frame>) -> Option<Self> {
        if self.frames.is_empty() {
            scratch.clear();
            mem::swap(&mut self.frames, scratch);
        }
        let (scanned_to, more) = match self.pull() {
            Ok(None) => return Some(self),
            Ok(Some(end)) => end,
            Err(refusal) => {
                session.refuse(self.ticket, &refusal);
                return None;
            }
        };
        let Self { ticket, frames, head, .. } = self;
        session.shown(&frames);
        session.reply(ticket, |out| put_page(out, &frames, scanned_to, more, head));
        *scratch = frames;
        None
    }

    /// Reads on; where the page ends and whether there is more, once it is whole.
    fn pull(&mut self) -> Result<Option<(u64, bool)>, Refusal> {
        let before = self.frames.len();
        let pulled = self.feed.pull(&mut self.frames, self.room)?;
        let bytes = self.frames[before..].iter().map(|frame| frame.record().len()).sum();
        self.room = self.room.saturating_sub(bytes);
        Ok(Some(match pulled {
            Pulled::Lost { .. } => return Ok(None),
            Pulled::More if self.room > 0 => return Ok(None),
            Pulled::More => (self.feed.scanned_to(), true),
            Pulled::Gap { from, to } if self.frames.is_empty() => {
                let behind = if self.reverse { from } else { to };
                let text = format!("the frames {from} to {to} cannot be read; go on behind them");
                return Err(Refusal::new(Code::Corrupt, text).with(Detail::Offset(behind)));
            }
            // The next page begins with the gap and says so.
            Pulled::Gap { from, to } => (if self.reverse { to } else { from }, true),
            Pulled::CaughtUp { .. } | Pulled::Idle | Pulled::End => (self.feed.scanned_to(), false),
        }))
    }
}
