//! One connection: reads, serves, writes, all on one task, so that a request that the store can
//! answer at once is answered without a hop. Blocking work goes to other threads and comes back
//! through the mailbox.

use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};
use tokio_util::io::poll_read_buf;
use xs_engine::Frame;

use super::mailbox::{Mail, Mailbox};
use super::work::{Download, FeedWork, Listing, Next, Slot, Upload, Work};
use crate::codec::make_room;
use crate::error::{Code, Refusal};
use crate::gather::SLICES_MAX;
use crate::message::{AppendRequest, Op, Request, Role, StreamEvent, put_cursor, put_frames};
use crate::service::Service;
use crate::session::{Action, ServerSession, Ticket};

/// Rounds of reading, serving and writing before other tasks have their turn.
const ROUNDS: usize = 32;
/// Reads in one round before what they brought is answered.
const READS_PER_ROUND: usize = 4;

/// A connection and all it has under way.
pub(crate) struct Connection<S> {
    io: Pin<Box<S>>,
    session: ServerSession,
    service: Arc<dyn Service>,
    mailbox: Arc<Mailbox>,
    inbox: BytesMut,
    last_read: usize,
    /// The client sends nothing more.
    eof: bool,
    /// CLOSE is written and our direction shut.
    shut: bool,
    works: HashMap<u32, Slot>,
    /// Streams that may have something to do, in turn.
    ready: VecDeque<u32>,
    listings: VecDeque<Listing>,
    timer: Pin<Box<Sleep>>,
    /// Kept for their memory.
    mail: Vec<Mail>,
    scratch: Vec<Frame>,
}

impl<S: AsyncRead + AsyncWrite> Connection<S> {
    pub(crate) fn new(
        io: S,
        role: Role,
        name: &str,
        service: Arc<dyn Service>,
        mailbox: Arc<Mailbox>,
    ) -> Self {
        let now = Instant::now();
        Self {
            io: Box::pin(io),
            session: ServerSession::new(role, name, now.into_std()),
            service,
            mailbox,
            inbox: BytesMut::new(),
            last_read: 0,
            eof: false,
            shut: false,
            works: HashMap::new(),
            ready: VecDeque::new(),
            listings: VecDeque::new(),
            timer: Box::pin(tokio::time::sleep_until(now)),
            mail: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// Runs until the connection has ended.
    ///
    /// # Errors
    /// The error of the transport that ended it.
    pub(crate) async fn run(mut self) -> io::Result<()> {
        let result = poll_fn(|cx| self.poll(cx)).await;
        let client = self.session.client_name();
        tracing::debug!(
            client,
            error = result.as_ref().err().map(tracing::field::display),
            "closed"
        );
        result
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.mailbox.begin();
        for _ in 0..ROUNDS {
            let mut moved = self.read(cx)?;
            moved |= self.serve();
            moved |= self.open_mail();
            moved |= self.pump();
            moved |= self.write(cx)?;
            if self.is_over(cx)? {
                return Poll::Ready(Ok(()));
            }
            if !moved && !self.time(cx) && self.mailbox.end(cx.waker()) {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads what has come, as far as it may.
    fn read(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut moved = false;
        for _ in 0..READS_PER_ROUND {
            if self.eof || !self.session.wants_input() {
                break;
            }
            make_room(&mut self.inbox, self.last_read);
            match poll_read_buf(self.io.as_mut(), cx, &mut self.inbox) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => self.ended(),
                Poll::Ready(Ok(count)) => {
                    self.last_read = count;
                    self.session.heard(now());
                }
                Poll::Ready(Err(error)) => return Err(error),
            }
            moved = true;
            if self.inbox.capacity() > self.inbox.len() {
                break;
            }
        }
        Ok(moved)
    }

    /// The client sends nothing more. Its requests are answered; its streams could never get more
    /// credit, so they end.
    fn ended(&mut self) {
        self.eof = true;
        let subs: Vec<u32> = self.works.keys().copied().collect();
        for sub in subs {
            self.session.forget(sub);
            self.cancel(sub);
        }
    }

    /// Serves the requests that have come whole.
    fn serve(&mut self) -> bool {
        let (mut moved, mut appended) = (false, false);
        while let Some(action) = self.session.receive(&mut self.inbox, now()) {
            moved = true;
            match action {
                Action::Welcome(ticket) => self.session.welcome(ticket, self.service.identity()),
                Action::Serve { ticket, sub, request } => {
                    appended |= self.request(ticket, sub, request);
                }
                Action::Credit { sub } => self.enqueue(sub),
                Action::Chunk { sub, bytes, last } => {
                    if let Some(Slot { work: Work::Upload(upload), .. }) = self.works.get_mut(&sub)
                    {
                        upload.push(bytes, last);
                        upload.step(sub, &self.service, &self.mailbox);
                    }
                }
                Action::Cancel { sub } => self.cancel(sub),
            }
        }
        if appended {
            self.service.commit();
        }
        moved
    }

    /// Serves one request; whether it was an append.
    fn request(&mut self, ticket: Ticket, sub: u32, request: Request) -> bool {
        match request {
            Request::Append(batch) => return self.append(ticket, batch),
            Request::CursorSet(change) => {
                let cursors = vec![change];
                return self.append(ticket, AppendRequest { cursors, ..AppendRequest::default() });
            }
            Request::Fetch(fetch) => self.listings.push_back(Listing::Fetch(ticket, fetch)),
            Request::Get(at) => match self.service.get(at) {
                Ok(frame) => {
                    let next = frame.as_ref().and_then(Frame::offset).map_or(0, |at| at + 1);
                    let frame = frame.as_slice();
                    self.session.reply(ticket, |out| put_frames(out, frame, &[], next));
                }
                Err(refusal) => self.session.refuse(ticket, &refusal),
            },
            Request::Last(last) => {
                self.block(move |service| Mail::Frames { ticket, result: service.last(&last) })
            }
            Request::Topics(topics) => {
                self.block(move |service| Mail::Topics { ticket, result: service.topics(&topics) })
            }
            Request::CursorList => {
                self.block(move |service| Mail::Cursors { ticket, result: service.cursors() });
            }
            Request::CursorGet(name) => match self.service.cursor(&name) {
                Ok(cursor) => self.session.reply(ticket, |out| put_cursor(out, cursor.as_ref())),
                Err(refusal) => self.session.refuse(ticket, &refusal),
            },
            Request::BlobHas(hash) => match self.service.has_blob(&hash) {
                Ok(has) => self.session.reply(ticket, |out| out.put_u8(u8::from(has))),
                Err(refusal) => self.session.refuse(ticket, &refusal),
            },
            Request::Subscribe(subscribe) => {
                let (wake, flag) = self.mailbox.wake_for(sub);
                let feed = match subscribe.options.follow {
                    true => self.service.follow(&subscribe.options, wake),
                    false => self.service.read(&subscribe.options),
                };
                match feed {
                    Ok(feed) => {
                        self.session.reply(ticket, |_| {});
                        let work = FeedWork::new(feed, flag, subscribe.how.bodies_up_to, false);
                        self.start(sub, Work::Feed(work));
                    }
                    Err(refusal) => self.refuse_stream(ticket, sub, &refusal),
                }
            }
            Request::BlobPut => self.start(sub, Work::Upload(Upload::new(ticket))),
            Request::BlobGet(get) => {
                let credit = self.session.credit(sub);
                let download =
                    Download::open(ticket, sub, get.hash, credit, &self.service, &self.mailbox);
                self.start(sub, Work::Download(download));
            }
            Request::Call { call, .. } => {
                let (wake, flag) = self.mailbox.wake_for(sub);
                let bodies_up_to = call.bodies_up_to;
                let call = self.service.call(call, wake);
                let mailbox = Arc::clone(&self.mailbox);
                tokio::spawn(async move {
                    let result = call.await;
                    mailbox.post(Mail::Called { ticket, sub, bodies_up_to, flag, result });
                });
            }
            // The session answers the others itself.
            Request::Hello(_)
            | Request::Ping(_)
            | Request::Pong(_)
            | Request::Credit(_)
            | Request::Unsubscribe
            | Request::BlobChunk { .. } => {}
        }
        false
    }

    fn append(&self, ticket: Ticket, batch: AppendRequest) -> bool {
        let mailbox = Arc::clone(&self.mailbox);
        let done = move |result| mailbox.post(Mail::Appended { ticket, result });
        self.service.append(batch, Box::new(done));
        true
    }

    fn block(&self, job: impl FnOnce(&dyn Service) -> Mail + Send + 'static) {
        let (service, mailbox) = (Arc::clone(&self.service), Arc::clone(&self.mailbox));
        tokio::task::spawn_blocking(move || mailbox.post(job(&*service)));
    }

    fn start(&mut self, sub: u32, work: Work) {
        self.works.insert(sub, Slot { work, queued: false });
        self.enqueue(sub);
    }

    fn enqueue(&mut self, sub: u32) {
        if let Some(slot) = self.works.get_mut(&sub)
            && !std::mem::replace(&mut slot.queued, true)
        {
            self.ready.push_back(sub);
        }
    }

    fn refuse_stream(&mut self, ticket: Ticket, sub: u32, refusal: &Refusal) {
        self.works.remove(&sub);
        self.session.forget(sub);
        self.session.refuse(ticket, refusal);
    }

    fn cancel(&mut self, sub: u32) {
        if let Some(Slot { work: Work::Upload(upload), .. }) = self.works.remove(&sub) {
            let refusal = Refusal::new(Code::InvalidValue, "the upload was given up");
            self.session.refuse(upload.ticket, &refusal);
        }
    }

    /// Takes in what other threads have to say.
    fn open_mail(&mut self) -> bool {
        let mut mail = std::mem::take(&mut self.mail);
        self.mailbox.take(&mut mail);
        let moved = !mail.is_empty();
        for news in mail.drain(..) {
            self.take_in(news);
        }
        self.mail = mail;
        moved
    }

    fn take_in(&mut self, news: Mail) {
        match news {
            Mail::Appended { ticket, result: Ok(appended) } => match ticket.op {
                Op::CursorSet => {
                    let revision = appended.cursors.first().copied().unwrap_or(0);
                    self.session.reply(ticket, |out| out.put_u64(revision));
                }
                _ => self.session.reply(ticket, |out| appended.put(out)),
            },
            Mail::Appended { ticket, result: Err(refusal) } => {
                self.session.refuse(ticket, &refusal);
            }
            Mail::Ready { sub } => self.enqueue(sub),
            Mail::Frames { ticket, result } => {
                self.list(ticket, result.map(|all| Listing::Frames(ticket, all.into_iter())));
            }
            Mail::Topics { ticket, result } => {
                self.list(ticket, result.map(|all| Listing::Topics(ticket, all.into_iter())));
            }
            Mail::Cursors { ticket, result } => {
                self.list(ticket, result.map(|all| Listing::Cursors(ticket, all.into_iter())));
            }
            Mail::Called { ticket, sub, bodies_up_to, flag, result } => match result {
                Ok(called) => {
                    self.session.reply(ticket, |out| out.put_slice(called.id.as_bytes()));
                    // A call that was given up meanwhile is cancelled by dropping its feed.
                    if self.session.has_stream(sub) {
                        let work = FeedWork::new(called.feed, flag, bodies_up_to, true);
                        self.start(sub, Work::Feed(work));
                    }
                }
                Err(refusal) => self.refuse_stream(ticket, sub, &refusal),
            },
            Mail::Opened { ticket, sub, result } => match result {
                Ok((source, first)) => {
                    let len = source.len();
                    self.session.reply(ticket, |out| out.put_u64(len));
                    if let Some(Slot { work: Work::Download(download), .. }) =
                        self.works.get_mut(&sub)
                    {
                        download.left = len;
                        let next = download.sent(sub, source, &first, &mut self.session);
                        self.after_step(sub, next);
                    }
                }
                Err(refusal) => self.refuse_stream(ticket, sub, &refusal),
            },
            Mail::Piece { sub, source, result } => {
                let Some(Slot { work: Work::Download(download), .. }) = self.works.get_mut(&sub)
                else {
                    return;
                };
                let next = match result {
                    Ok(bytes) => download.sent(sub, source, &bytes, &mut self.session),
                    Err(refusal) => {
                        let event = StreamEvent::Dropped { refusal, resume: 0 };
                        self.session.event(sub, &event);
                        Next::Done
                    }
                };
                self.after_step(sub, next);
            }
            Mail::Taken { sub, result } => {
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
            Mail::Stored { sub, result } => {
                let Some(Slot { work: Work::Upload(upload), .. }) = self.works.remove(&sub) else {
                    return;
                };
                match result {
                    Ok((hash, len)) => {
                        self.session.forget(sub);
                        self.session.reply(upload.ticket, |out| {
                            crate::message::put_stored(out, &hash, len);
                        });
                    }
                    Err(refusal) => self.refuse_stream(upload.ticket, sub, &refusal),
                }
            }
            Mail::Drain(time) => self.drain(time),
        }
    }

    fn list(&mut self, ticket: Ticket, listing: Result<Listing, Refusal>) {
        match listing {
            Ok(listing) => self.listings.push_back(listing),
            Err(refusal) => self.session.refuse(ticket, &refusal),
        }
    }

    /// Ends the subscriptions with the place to resume from; the rest may finish.
    fn drain(&mut self, time: std::time::Duration) {
        self.session.go_away(time, now());
        let session = &mut self.session;
        self.works.retain(|&sub, slot| match &slot.work {
            Work::Feed(feed) if !feed.is_call => {
                let refusal = Refusal::new(Code::Draining, "the server is stopping");
                session.event(sub, &StreamEvent::Dropped { refusal, resume: feed.resume() });
                false
            }
            _ => true,
        });
    }

    /// Sends what streams and long answers have, as far as there is room.
    fn pump(&mut self) -> bool {
        let mut moved = false;
        while self.session.has_room()
            && let Some(listing) = self.listings.pop_front()
        {
            moved = true;
            let rest = listing.step(&mut self.session, &*self.service, &mut self.scratch);
            if let Some(rest) = rest {
                self.listings.push_front(rest);
            }
        }
        while self.session.has_room()
            && let Some(sub) = self.ready.pop_front()
        {
            moved = true;
            let Some(slot) = self.works.get_mut(&sub) else { continue };
            slot.queued = false;
            let next = match &mut slot.work {
                Work::Feed(feed) => {
                    feed.step(sub, &mut self.session, &*self.service, &mut self.scratch)
                }
                Work::Download(download) => download.step(sub, &self.session, &self.mailbox),
                Work::Upload(_) => Next::Wait,
            };
            self.after_step(sub, next);
        }
        moved
    }

    fn after_step(&mut self, sub: u32, next: Next) {
        match next {
            Next::Again => self.enqueue(sub),
            Next::Wait => {}
            Next::Done => {
                self.works.remove(&sub);
            }
        }
    }

    /// Writes as much as the socket takes.
    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut moved = false;
        while !self.session.output().is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let used = self.session.output().slices(&mut slices);
            match self.io.as_mut().poll_write_vectored(cx, &slices[..used]) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(count)) => {
                    self.session.wrote(count, now());
                    moved = true;
                }
                Poll::Ready(Err(error)) => return Err(error),
            }
        }
        Ok(moved)
    }

    /// Whether all that was to be said is written and nothing is waited for.
    fn is_over(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let written = self.session.output().is_empty();
        if self.session.is_closing() && written && !self.shut {
            self.shut = self.io.as_mut().poll_shutdown(cx)?.is_ready();
        }
        let gone = self.eof && (self.session.is_closing() || (written && self.session.is_idle()));
        Ok(gone || self.session.is_over(now()))
    }

    /// Heeds the clock; whether it brought something to do.
    fn time(&mut self, cx: &mut Context<'_>) -> bool {
        let deadline = Instant::from_std(self.session.deadline());
        if deadline != self.timer.deadline() {
            self.timer.as_mut().reset(deadline);
        }
        if self.timer.as_mut().poll(cx).is_pending() {
            return false;
        }
        if self.inbox.is_empty() {
            // What a burst left is given back in the next quiet moment.
            (self.inbox, self.last_read) = (BytesMut::new(), 0);
        }
        for sub in self.session.tick(now()) {
            let resume = match self.works.remove(&sub) {
                Some(Slot { work: Work::Feed(feed), .. }) => feed.resume(),
                _ => 0,
            };
            let refusal = Refusal::new(Code::DeadlinePassed, "the call's deadline has passed");
            self.session.event(sub, &StreamEvent::Dropped { refusal, resume });
        }
        true
    }
}

/// The moment, as tests may drive it.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}
