//! Handles the results of work that other threads did for a connection.

use std::time::{Duration, Instant};

use bytes::Bytes;
use xs_engine::{Appended, BlobHash};

use super::desk::Desk;
use super::feed::{FeedKind, FeedWork};
use super::lag::Leap;
use super::listing::Listing;
use super::mailbox::Mail;
use super::work::{Next, Slot, Work};
use crate::error::{Code, Refusal};
use crate::message::{Op, StreamEvent, put_appended, put_stored};
use crate::service::{BlobSink, BlobSource};
use crate::session::Ticket;

impl Desk {
    /// Handles the messages of other threads.
    pub(super) fn open_mail(&mut self, now: Instant) -> bool {
        let mut mail = std::mem::take(&mut self.mail);
        self.mailbox.take(&mut mail);
        let moved = !mail.is_empty();
        for news in mail.drain(..) {
            self.take_in(news, now);
        }
        self.mail = mail;
        moved
    }

    fn take_in(&mut self, news: Mail, now: Instant) {
        match news {
            Mail::Appended { ticket, result } => self.appended(ticket, result),
            Mail::Imported { ticket, result } => match result {
                Ok(imported) => self.session.reply(ticket, |out| imported.put(out)),
                Err(refusal) => self.session.refuse(ticket, &refusal),
            },
            Mail::Told { ticket, result } => match result {
                Ok(text) => self.session.reply(ticket, |out| out.put_slice(text.as_bytes())),
                Err(refusal) => self.session.refuse(ticket, &refusal),
            },
            Mail::Newest { sub, result, turn } => {
                self.newest(sub, result, now);
                drop(turn);
            }
            Mail::Ready => self.wake_feeds(),
            Mail::Subscribed { subscribed, turn } => {
                self.subscribed(*subscribed);
                drop(turn);
            }
            Mail::Page { ticket, result, turn } => {
                self.list(ticket, result.map(|page| Listing::Page(*page, Some(turn))));
            }
            Mail::Frames { ticket, result, mut turn } => {
                let kept = result.and_then(|all| self.mailbox.shelf().keep_frames(all, now));
                turn.built();
                self.list(ticket, kept.map(|kept| Listing::Last(ticket, kept, turn)));
            }
            Mail::Topics { ticket, patterns, result, turn } => {
                let listing = |(page, after)| Listing::Topics(ticket, page, patterns, after, turn);
                self.list(ticket, result.map(listing));
            }
            Mail::Cursors { ticket, result, mut turn } => {
                let kept = result.and_then(|mut all| {
                    all.retain(|cursor| self.session.sees_cursor(&cursor.name));
                    self.mailbox.shelf().keep_cursors(all, now)
                });
                turn.built();
                self.list(ticket, kept.map(|kept| Listing::Cursors(ticket, kept, turn)));
            }
            Mail::Called { ticket, sub, bodies_up_to, result } => match result {
                Ok(called) => {
                    self.session.reply(ticket, |out| out.put_slice(called.id.as_bytes()));
                    // If the call was cancelled meanwhile, dropping its feed cancels it in the
                    // store.
                    if self.session.has_stream(sub) {
                        let (feed, kind) = (called.feed, FeedKind::Call);
                        let work = FeedWork::new(feed, bodies_up_to, kind, &self.mailbox);
                        self.start(sub, Work::Feed(work));
                    }
                }
                Err(refusal) => self.refuse_stream(ticket, sub, &refusal),
            },
            Mail::Opened { ticket, sub, asked, result } => {
                self.session.release(asked);
                self.opened(ticket, sub, result);
            }
            Mail::Piece { sub, asked, source, result } => {
                self.session.release(asked);
                self.piece(sub, source, result);
            }
            Mail::Taken { sub, result } => self.taken(sub, result),
            Mail::Stored { sub, result } => self.stored(sub, result),
            Mail::LongDone => self.long.done(),
            Mail::Failed => self.failed(now),
            Mail::Admit { ticket, token, host } => self.admit_now(ticket, &token, host, now),
            Mail::Drain(time) => self.drain(time, now),
            Mail::Recheck => self.recheck(now),
            Mail::GiveWay => self.give_way(now),
            Mail::Replaced => self.replaced(now),
        }
    }

    /// Handles the newest frames for a subscription that is too far behind.
    fn newest(&mut self, sub: u32, result: Result<Leap, Refusal>, now: Instant) {
        let Some(Slot { work: Work::Feed(feed), .. }) = self.works.get_mut(&sub) else { return };
        let shelf = self.mailbox.shelf();
        let kept = result.and_then(|mut leap| {
            let newest = shelf.keep_offsets(std::mem::take(&mut leap.newest), now)?;
            Ok((leap, newest))
        });
        let next = match kept {
            Ok((leap, newest)) => feed.leap(sub, leap, newest, &mut self.session),
            Err(refusal) => feed.end(sub, refusal, &mut self.session),
        };
        self.after_step(sub, next);
    }

    fn appended(&mut self, ticket: Ticket, result: Result<Appended, Refusal>) {
        match result {
            Ok(appended) if ticket.op == Op::CursorSet => {
                let revision = appended.cursors.first().copied().unwrap_or(0);
                self.session.reply(ticket, |out| out.put_u64(revision));
            }
            Ok(appended) => self.session.reply(ticket, |out| put_appended(out, &appended)),
            Err(refusal) => self.session.refuse(ticket, &refusal),
        }
    }

    /// A download was opened.
    fn opened(
        &mut self,
        ticket: Ticket,
        sub: u32,
        result: Result<(Box<dyn BlobSource>, Bytes), Refusal>,
    ) {
        match result {
            Ok((source, first)) => {
                let len = source.len();
                self.session.reply(ticket, |out| out.put_u64(len));
                if let Some(Slot { work: Work::Download(download), .. }) = self.works.get_mut(&sub)
                {
                    download.left = len;
                    let next = download.sent(sub, source, &first, &mut self.session);
                    self.after_step(sub, next);
                }
            }
            Err(refusal) => self.refuse_stream(ticket, sub, &refusal),
        }
    }

    /// A piece of a download was read.
    fn piece(&mut self, sub: u32, source: Box<dyn BlobSource>, result: Result<Bytes, Refusal>) {
        let Some(Slot { work: Work::Download(download), .. }) = self.works.get_mut(&sub) else {
            return;
        };
        let next = match result {
            Ok(bytes) => download.sent(sub, source, &bytes, &mut self.session),
            Err(refusal) => {
                self.session.event(sub, &StreamEvent::Dropped { refusal, resume: 0 });
                Next::Done
            }
        };
        self.after_step(sub, next);
    }

    /// A part of an upload was stored.
    fn taken(&mut self, sub: u32, result: Result<(Box<dyn BlobSink>, u64), Refusal>) {
        let Some(Slot { work: Work::Upload(upload), .. }) = self.works.get_mut(&sub) else {
            return;
        };
        match result {
            Ok((sink, taken)) => {
                upload.returned(sink);
                upload.step(sub, &self.service, &self.mailbox);
                self.session.grant(sub, taken);
            }
            Err(refusal) => {
                let ticket = upload.ticket;
                self.refuse_stream(ticket, sub, &refusal);
            }
        }
    }

    /// An upload has ended.
    fn stored(&mut self, sub: u32, result: Result<(BlobHash, u64), Refusal>) {
        let Some(Slot { work: Work::Upload(upload), .. }) = self.works.remove(&sub) else { return };
        match result {
            Ok((hash, len)) => {
                self.session.forget(sub);
                self.session.allow_blob(hash);
                self.session.reply(upload.ticket, |out| put_stored(out, &hash, len));
            }
            Err(refusal) => self.refuse_stream(upload.ticket, sub, &refusal),
        }
    }

    /// The result of a request that is answered with a list.
    fn list(&mut self, ticket: Ticket, listing: Result<Listing, Refusal>) {
        match listing {
            Ok(listing) => self.listings.push_back(listing),
            Err(refusal) => self.session.refuse(ticket, &refusal),
        }
    }

    /// Ends the subscriptions, with the position to resume from; other streams may finish.
    fn drain(&mut self, time: Duration, now: Instant) {
        self.session.go_away(time, now);
        let session = &mut self.session;
        self.works.retain(|&sub, slot| match &slot.work {
            Work::Feed(feed) if !feed.is_call() => {
                let refusal = Refusal::new(Code::Draining, "the server is stopping");
                session.event(sub, &StreamEvent::Dropped { refusal, resume: feed.resume() });
                false
            }
            _ => true,
        });
    }
}
