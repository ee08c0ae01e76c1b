//! Replies that are built message by message, when the connection has room for them.

use std::mem;

use xs_engine::{CursorSummary, Frame, Topic, TopicPatterns, TopicSummary};

use super::long_work::LongTurn;
use super::shelf::Kept;
use crate::error::{Code, Detail, Refusal};
use crate::gather::Gather;
use crate::limits::DELIVER_BYTES;
use crate::message::{FetchRequest, put_cursor_summary, put_frames, put_page, put_topic_summary};
use crate::service::{Feed, Pulled, Service};
use crate::session::{ServerSession, Ticket};

/// A reply that is built when there is room for it. One that was long work to find keeps its turn
/// until it is sent.
pub(crate) enum Listing {
    Fetch(Ticket, FetchRequest),
    Page(Page, Option<LongTurn>),
    /// A LAST that was answered at once.
    Frames(Ticket, Vec<Frame>),
    /// A LAST that was looked up on another thread.
    Last(Ticket, Kept<Frame>, LongTurn),
    /// Some of the topics, and the name after which the next page begins.
    Topics(Ticket, Vec<TopicSummary>, TopicPatterns, Option<Topic>, LongTurn),
    Cursors(Ticket, Kept<CursorSummary>, LongTurn),
}

/// Topics or cursors in one message: each takes a few hundred bytes, so it stays far below the
/// maximum message length.
pub(super) const ENTRIES_MAX: usize = 1024;

impl Listing {
    /// Sends one message, or looks up its content; returns the listing when more must follow.
    pub(crate) fn step(
        self,
        session: &mut ServerSession,
        service: &dyn Service,
        scratch: &mut Vec<Frame>,
    ) -> Option<Self> {
        match self {
            Self::Fetch(ticket, fetch) => match Page::open(ticket, &fetch, service) {
                Ok(page) => page.step(session, scratch).map(|page| Self::Page(page, None)),
                Err(refusal) => {
                    session.refuse(ticket, &refusal);
                    None
                }
            },
            Self::Page(page, turn) => {
                page.step(session, scratch).map(|page| Self::Page(page, turn))
            }
            Self::Frames(ticket, frames) => {
                put_list(session, ticket, &frames, true);
                None
            }
            Self::Last(ticket, mut rest, turn) => {
                scratch.clear();
                let cost = |frame: &Frame| frame.record().len();
                match rest.take(DELIVER_BYTES, cost, scratch) {
                    Ok(is_last) => {
                        put_list(session, ticket, scratch, is_last);
                        (!is_last).then_some(Self::Last(ticket, rest, turn))
                    }
                    Err(refusal) => {
                        session.refuse(ticket, &refusal);
                        None
                    }
                }
            }
            Self::Topics(ticket, page, ..) => {
                session.reply(ticket, |out| put_topics(out, &page));
                None
            }
            Self::Cursors(ticket, mut rest, turn) => {
                let mut entries = Vec::new();
                match rest.take(ENTRIES_MAX, |_| 1, &mut entries) {
                    Ok(is_last) => {
                        let put = |out: &mut Gather| {
                            entries.iter().for_each(|one| put_cursor_summary(out, one))
                        };
                        part(session, ticket, is_last, put);
                        (!is_last).then_some(Self::Cursors(ticket, rest, turn))
                    }
                    Err(refusal) => {
                        session.refuse(ticket, &refusal);
                        None
                    }
                }
            }
        }
    }

    /// Sends some of the topics; the next page is looked up after them.
    pub(crate) fn part_of_topics(
        ticket: Ticket,
        page: &[TopicSummary],
        session: &mut ServerSession,
    ) {
        if !page.is_empty() {
            session.reply_part(ticket, |out| put_topics(out, page));
        }
    }
}

fn put_topics(out: &mut Gather, page: &[TopicSummary]) {
    page.iter().for_each(|one| put_topic_summary(out, one));
}

fn put_list(session: &mut ServerSession, ticket: Ticket, frames: &[Frame], is_last: bool) {
    session.shown(frames);
    part(session, ticket, is_last, |out| put_frames(out, frames, &[], 0));
}

fn part(session: &mut ServerSession, ticket: Ticket, is_last: bool, put: impl FnOnce(&mut Gather)) {
    if is_last {
        session.reply(ticket, put);
    } else {
        session.reply_part(ticket, put);
    }
}

/// A page of a FETCH that is being read.
pub(crate) struct Page {
    ticket: Ticket,
    reverse: bool,
    head: u64,
    feed: Box<dyn Feed>,
    frames: Vec<Frame>,
    /// Bytes of records still wanted.
    room: usize,
}

impl Page {
    /// Opens the read.
    ///
    /// # Errors
    /// [`Refusal`] when that fails.
    pub(crate) fn open(
        ticket: Ticket,
        fetch: &FetchRequest,
        service: &dyn Service,
    ) -> Result<Self, Refusal> {
        let head = service.head();
        let feed = service.read(&fetch.options)?;
        let (reverse, room) = (fetch.options.reverse, fetch.page_bytes as usize);
        Ok(Self { ticket, reverse, head, feed, frames: Vec::new(), room })
    }

    /// Reads on, and sends the page when it is complete. A filter that finds little delays nobody:
    /// others get their turn between steps.
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

    /// Reads on; returns where the page ends and whether there is more, once it is complete.
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
                let refusal = Refusal::new(Code::Corrupt, unreadable(from, to));
                return Err(refusal.with(Detail::Offset(behind)));
            }
            // The next page begins with the gap and reports it.
            Pulled::Gap { from, to } => (if self.reverse { to } else { from }, true),
            Pulled::CaughtUp { .. } | Pulled::Idle | Pulled::End => (self.feed.scanned_to(), false),
        }))
    }
}

/// The message for frames that cannot be read.
fn unreadable(from: u64, to: u64) -> String {
    match to.saturating_sub(1) {
        last if last <= from => format!("frame {from} cannot be read; go on behind it"),
        last => format!("frames {from} to {last} cannot be read; go on behind them"),
    }
}

#[cfg(test)]
mod tests {
    use super::unreadable;

    #[test]
    fn frames_that_are_missing_are_named_by_the_first_and_the_last() {
        assert!(unreadable(5, 6).starts_with("frame 5 cannot be read"));
        assert!(unreadable(5, 7).starts_with("frames 5 to 6 cannot be read"));
    }
}
