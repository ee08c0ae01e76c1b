//! Answers that are made message by message, when the connection has room for them.

use std::vec::IntoIter;

use xs_engine::Frame;

use crate::error::{Code, Detail, Refusal};
use crate::gather::Gather;
use crate::limits::DELIVER_BYTES;
use crate::message::{CursorSummary, FetchRequest, TopicSummary, put_frames, put_page};
use crate::service::{Pulled, Service};
use crate::session::{ServerSession, Ticket};

/// Pulls for one page before what was found is sent, so that a sparse filter holds up nobody.
const PULLS_PER_PAGE: usize = 16;

/// An answer that is made when there is room for it.
pub(crate) enum Listing {
    Fetch(Ticket, FetchRequest),
    /// Of a LAST, and whether that may be long.
    Frames(Ticket, IntoIter<Frame>, bool),
    Topics(Ticket, IntoIter<TopicSummary>),
    Cursors(Ticket, IntoIter<CursorSummary>),
}

impl Listing {
    /// Whether it may be a long list: all of it is in memory until it is sent.
    pub(crate) const fn is_long(&self) -> bool {
        match self {
            Self::Fetch(..) => false,
            Self::Frames(_, _, is_long) => *is_long,
            Self::Topics(..) | Self::Cursors(..) => true,
        }
    }

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
                        session.shown(scratch);
                        session.reply(ticket, |out| put_page(out, scratch, scanned_to, more, head))
                    }
                    Err(refusal) => session.refuse(ticket, &refusal),
                }
                None
            }
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
