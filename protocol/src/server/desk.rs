//! The state of a connection, without its socket: serves requests and drives streams.

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::BytesMut;
use futures::FutureExt as _;
use xs_engine::{Bound, Frame, FrameId, Origin, ReadOptions, Start, Topic, TopicPatterns};

use super::admission::{Admission, Visitor};
use super::feed::{FeedKind, FeedWork};
use super::lag::Lag;
use super::last_few;
use super::listing::{ENTRIES_MAX, Listing, Page};
use super::long_work::{Long, LongTurn};
use super::mailbox::{Mail, Mailbox, ReadyFlag, ReplyOnDrop, Subscribed};
use super::making::{bytes_of_cursors, bytes_of_last};
use super::meter::Meter;
use super::transfer::{Download, Upload};
use super::work::{Next, Slot, Work};
use crate::access;
use crate::error::{Code, Refusal};
use crate::limits::STATS_BYTES_MAX;
use crate::message::{
    AppendRequest, CallRequest, FetchRequest, ImportRequest, LastRequest, MaintainRequest, Op,
    RemoveRequest, Request, Slow, StreamEvent, SubscribeRequest, put_cursor, put_frames,
};
use crate::service::{HostGuard, Service, Wake};
use crate::session::{Action, ServerSession, Ticket};

/// Bytes queued before they are written to the socket.
const PUMP_BYTES: usize = 128 * 1024;

/// Maximum steps of streams and lists before that: a step may examine much and send nothing.
const PUMP_STEPS: usize = 32;

/// Minimum requests to serve together, if that many arrived: fewer are not worth a write.
const PART_REQUESTS_MIN: usize = 4;

/// A session with all its work in progress.
pub(super) struct Desk {
    pub(super) session: ServerSession,
    pub(super) visitor: Visitor,
    pub(super) service: Arc<dyn Service>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) meter: Arc<Meter>,
    pub(super) works: HashMap<u32, Slot>,
    /// Notifies that feeds may have more, and whether it was called.
    wake: Wake,
    was_woken: ReadyFlag,
    /// Queue of streams that may have something to do.
    ready: VecDeque<u32>,
    pub(super) listings: VecDeque<Listing>,
    /// Whether it is a list's turn, if there is one.
    is_lists_turn: bool,
    pub(super) long: Long,
    /// Kept to reuse its allocation.
    pub(super) mail: Vec<Mail>,
    scratch: Vec<Frame>,
    /// Bytes of the requests that were last served together.
    last_part: usize,
    /// When the task should yield: reads of the log take longer the more topics they select.
    pub(super) turn_ends: Instant,
    /// The buffer may hold complete requests that are not served yet: enough were served, or the
    /// session accepts none at the moment.
    pub(super) has_unserved: bool,
    /// For the host of a single processor: the processor version whose origin was last verified.
    own_version: Option<FrameId>,
    /// Held while the client is a host; dropped with the connection.
    pub(super) host: Option<HostGuard>,
}

impl Desk {
    pub(super) fn new(
        visitor: Visitor,
        name: &str,
        service: Arc<dyn Service>,
        mailbox: Arc<Mailbox>,
        meter: Arc<Meter>,
        now: Instant,
    ) -> Self {
        let (wake, was_woken) = mailbox.wake();
        Self {
            session: match &visitor.admission {
                Admission::Role(role) => ServerSession::new(*role, name, now),
                Admission::Alone(processor) => ServerSession::alone(processor, name, now),
                Admission::Token { .. } => ServerSession::guarded(name, now),
            },
            visitor,
            service,
            long: Long::new(Arc::clone(&mailbox)),
            mailbox,
            meter,
            works: HashMap::new(),
            wake,
            was_woken,
            ready: VecDeque::new(),
            listings: VecDeque::new(),
            is_lists_turn: false,
            mail: Vec::new(),
            scratch: Vec::new(),
            last_part: 0,
            turn_ends: now,
            has_unserved: false,
            own_version: None,
            host: None,
        }
    }

    /// Updates the statistics of the connection.
    pub(super) fn tell(&self) {
        let (requests, streams) = self.session.under_way();
        self.mailbox.seat.requests.store(requests, Ordering::Relaxed);
        self.mailbox.seat.streams.store(streams, Ordering::Relaxed);
    }

    /// Serves complete requests: if there are many, about half of those the client keeps in flight.
    /// The client takes the replies to that half and sends new requests while the other half is
    /// served; if all were served at once, client and server would wait for each other in turn.
    pub(super) fn serve(&mut self, inbox: &mut BytesMut, now: Instant) -> bool {
        let (mut served, mut appended, mut is_late) = (0, false, false);
        let whole = inbox.len();
        // In flight are the requests that arrived now, and new ones in place of those answered
        // last.
        let part = (self.last_part + whole) / 2;
        // Pipelined requests mostly have one op: a run of them is counted at once.
        let mut run = (Op::Ping, 0);
        self.has_unserved = false;
        while let Some(action) = self.session.receive(inbox, now) {
            served += 1;
            match action {
                Action::Welcome { ticket, host } => self.welcome(ticket, host, now),
                Action::Admit { ticket, token, host } => self.admit(ticket, token, host, now),
                Action::Serve { ticket, sub, request } => {
                    if run.0 != ticket.op {
                        self.meter.requested(run.0, run.1);
                        run = (ticket.op, 0);
                    }
                    run.1 += 1;
                    let looks = looks(&request);
                    appended |= self.request(ticket, sub, request);
                    is_late = looks && Instant::now() >= self.turn_ends;
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
            self.has_unserved =
                (served >= PART_REQUESTS_MIN && whole - inbox.len() >= part) || is_late;
            if self.has_unserved {
                break;
            }
        }
        if run.1 > 0 {
            self.meter.requested(run.0, run.1);
        }
        if appended {
            self.service.commit();
        }
        self.last_part = whole - inbox.len();
        // Replies that the client has not read yet block further requests.
        self.has_unserved |= !inbox.is_empty() && !self.session.wants_input();
        served > 0
    }

    /// Passes the session's counts to the meter.
    pub(super) fn count_refusals(&mut self) {
        if let Some(counts) = self.session.take_refused() {
            self.meter.refused(&counts);
        }
    }

    /// The tokens have changed: closes the connection if its token no longer grants its access.
    pub(super) fn recheck(&mut self, now: Instant) {
        let Admission::Token { guard, or } = &self.visitor.admission else { return };
        if !self.session.is_open() {
            return;
        }
        if let Err(refusal) = guard.recheck(self.session.access(), *or) {
            self.close(&refusal, now);
        }
    }

    /// A request will never be answered: closes the connection, so that neither it nor requests
    /// after it wait.
    pub(super) fn failed(&mut self, now: Instant) {
        let text = "the server failed at a request of this connection; its log says more";
        self.close(&Refusal::new(Code::Internal, text), now);
    }

    /// Ends the connection and all its work.
    pub(super) fn close(&mut self, why: &Refusal, now: Instant) {
        self.works.clear();
        self.listings.clear();
        self.long.clear();
        self.session.close(why, now);
    }

    /// Serves one request; returns whether it was an append.
    fn request(&mut self, ticket: Ticket, sub: u32, request: Request) -> bool {
        match request {
            Request::Append(batch) => return self.append(ticket, batch),
            Request::Remove(remove) => return self.remove(ticket, remove),
            Request::Import(import) => return self.import(ticket, import),
            Request::CursorSet(change) => {
                let cursors = vec![change];
                return self.append(ticket, AppendRequest { cursors, ..AppendRequest::default() });
            }
            Request::Fetch(fetch) => self.fetch(ticket, fetch),
            Request::Get(at) => self.get(ticket, at),
            Request::Last(last) => self.last(ticket, last),
            Request::Topics(patterns) => {
                self.long(0, move |service, turn| {
                    topics_page(service, ticket, patterns, None, turn)
                });
            }
            Request::CursorList => {
                self.long(bytes_of_cursors(), move |service, turn| Mail::Cursors {
                    ticket,
                    result: service.cursors(),
                    turn,
                });
            }
            Request::CursorGet(name) => match self.service.cursor(&name) {
                Ok(cursor) => self.session.reply(ticket, |out| put_cursor(out, cursor.as_ref())),
                Err(refusal) => self.session.refuse(ticket, &refusal),
            },
            Request::BlobHas(hash) if !self.session.may_use(&hash) => {
                self.session.reply(ticket, |out| out.put_u8(0));
            }
            Request::BlobHas(hash) => match self.service.has_blob(&hash) {
                Ok(has) => self.session.reply(ticket, |out| out.put_u8(u8::from(has))),
                Err(refusal) => self.session.refuse(ticket, &refusal),
            },
            Request::Subscribe(subscribe) => self.subscribe(ticket, sub, subscribe),
            Request::BlobPut => self.start(sub, Work::Upload(Upload::new(ticket))),
            Request::BlobGet(get) => {
                let (session, service) = (&mut self.session, &self.service);
                let download =
                    Download::open(ticket, sub, get.hash, session, service, &self.mailbox);
                self.start(sub, Work::Download(download));
            }
            Request::Call { call, .. } => self.call(ticket, sub, call),
            Request::Stats => self.stats(ticket),
            Request::Maintain(maintain) => self.maintain(ticket, maintain),
            // The session itself answers the others.
            Request::Hello(_)
            | Request::Ping(_)
            | Request::Pong(_)
            | Request::Credit(_)
            | Request::Unsubscribe
            | Request::BlobChunk { .. } => {}
        }
        false
    }

    fn fetch(&mut self, ticket: Ticket, fetch: FetchRequest) {
        if !looks_back(&fetch.options) {
            return self.listings.push_back(Listing::Fetch(ticket, fetch));
        }
        // Opened at once: a `last:n` frame appended before its turn would hide what was found.
        let head = self.service.head();
        if let Some(options) = last_few::begin(&fetch.options, &*self.service)
            && let Ok(page) =
                Page::open(ticket, &FetchRequest { options, ..fetch.clone() }, &*self.service)
            && self.service.head() == head
        {
            return self.listings.push_back(Listing::Page(page, None));
        }
        self.long(0, move |service, turn| {
            let result = Page::open(ticket, &fetch, service).map(Box::new);
            Mail::Page { ticket, result, turn }
        });
    }

    fn last(&mut self, ticket: Ticket, last: LastRequest) {
        if let Some(frames) = last_few::last(&last, &*self.service) {
            return self.listings.push_back(Listing::Frames(ticket, frames));
        }
        // However few they are, finding them may require examining the whole log.
        self.long(bytes_of_last(&last), move |service, turn| Mail::Frames {
            ticket,
            result: service.last(&last),
            turn,
        });
    }

    fn get(&mut self, ticket: Ticket, at: Bound) {
        match self.service.get(at) {
            Ok(frame) => {
                // A frame that this client may not read does not exist for it.
                let read = &self.session.access().read;
                let frame = frame.filter(|frame| read.holds(frame.topic()));
                let next = frame.as_ref().and_then(Frame::offset).map_or(0, |at| at + 1);
                let frame = frame.as_slice();
                self.session.shown(frame);
                self.session.reply(ticket, |out| put_frames(out, frame, &[], next));
            }
            Err(refusal) => self.session.refuse(ticket, &refusal),
        }
    }

    fn subscribe(&mut self, ticket: Ticket, sub: u32, request: SubscribeRequest) {
        let wake = Arc::clone(&self.wake);
        let open = move |request: &SubscribeRequest, service: &dyn Service| {
            let SubscribeRequest { options, how } = request;
            if let (Some(resume), Start::From(Bound::Offset(offset))) = (how.resume, options.start)
            {
                service.check_resume(resume, offset)?;
            }
            match options.follow {
                true => service.follow(options, Arc::clone(&wake)),
                false => service.read(options),
            }
        };
        if !looks_back(&request.options) {
            let result = open(&request, &*self.service);
            return self.subscribed(Subscribed { ticket, sub, request, result });
        }
        let head = self.service.head();
        if let Some(options) = last_few::begin(&request.options, &*self.service) {
            let request = SubscribeRequest { options, ..request.clone() };
            let result = open(&request, &*self.service);
            // As for FETCH; a follower gets the frame that hides what was found.
            if request.options.follow || self.service.head() == head {
                return self.subscribed(Subscribed { ticket, sub, request, result });
            }
        }
        self.long(0, move |service, turn| {
            let result = open(&request, service);
            let subscribed = Box::new(Subscribed { ticket, sub, request, result });
            Mail::Subscribed { subscribed, turn }
        });
    }

    /// A subscription was opened, or failed to open.
    pub(super) fn subscribed(&mut self, subscribed: Subscribed) {
        let Subscribed { ticket, sub, request, result } = subscribed;
        let SubscribeRequest { options, how } = &request;
        // Time may have passed since the request.
        match result.and_then(|feed| self.session.check_open().map(|()| feed)) {
            Ok(feed) => {
                self.session.reply(ticket, |_| {});
                // It may have been cancelled meanwhile.
                if self.session.has_stream(sub) {
                    let lag = (how.slow != Slow::Wait)
                        .then(|| Lag::new(how.slow, options, Arc::clone(&self.wake)));
                    let kind = FeedKind::Subscription { reverse: options.reverse, lag };
                    let work = FeedWork::new(feed, how.bodies_up_to, kind, &self.mailbox);
                    self.start(sub, Work::Feed(work));
                }
            }
            Err(refusal) => self.refuse_stream(ticket, sub, &refusal),
        }
    }

    fn remove(&mut self, ticket: Ticket, remove: RemoveRequest) -> bool {
        let now = remove.now;
        let batch = remove.into_batch();
        if !now {
            return self.append(ticket, batch);
        }
        self.block(move |service| Mail::Appended { ticket, result: service.remove_now(batch) });
        false
    }

    fn import(&self, ticket: Ticket, import: ImportRequest) -> bool {
        let due = ReplyOnDrop::new(ticket, &self.mailbox);
        let done = move |result| due.post(|ticket| Mail::Imported { ticket, result });
        self.service.import(import, Box::new(done));
        true
    }

    fn stats(&self, ticket: Ticket) {
        let (mailbox, meter) = (Arc::clone(&self.mailbox), Arc::clone(&self.meter));
        self.block(move |service| {
            let census = mailbox.census(service.head());
            let text = service.stats().map(|store| census.with_store(&meter, &store));
            let result = text.and_then(|text| match text.len() <= STATS_BYTES_MAX {
                true => Ok(text),
                false => Err(Refusal::new(Code::Internal, "the statistics are too long to send")),
            });
            Mail::Told { ticket, result }
        });
    }

    fn maintain(&mut self, ticket: Ticket, request: MaintainRequest) {
        if request.path().is_some() && self.visitor.peer.is_some() {
            // An admin of the store is not an admin of the machine.
            let text = "this writes files where the server runs: ask over its Unix socket";
            return self.session.refuse(ticket, &Refusal::new(Code::Denied, text));
        }
        let mailbox = Arc::clone(&self.mailbox);
        self.block(move |service| {
            let result = service.maintain(&request, &|| mailbox.is_closed());
            Mail::Told { ticket, result }
        });
    }

    fn call(&mut self, ticket: Ticket, sub: u32, call: CallRequest) {
        if let Err(refusal) = self.check_origins(call.origin) {
            return self.refuse_stream(ticket, sub, &refusal);
        }
        let wake = Arc::clone(&self.wake);
        let bodies_up_to = call.bodies_up_to;
        let call = self.service.call(call, wake);
        let mailbox = Arc::clone(&self.mailbox);
        tokio::spawn(async move {
            // A panic was printed where it happened; the waiting client is answered too.
            let result = AssertUnwindSafe(call).catch_unwind().await;
            mailbox.post(result.map_or(Mail::Failed, |result| Mail::Called {
                ticket,
                sub,
                bodies_up_to,
                result,
            }));
        });
    }

    fn append(&mut self, ticket: Ticket, batch: AppendRequest) -> bool {
        if let Err(refusal) =
            self.check_origins(batch.frames.iter().filter_map(|frame| frame.origin))
        {
            self.session.refuse(ticket, &refusal);
            return false;
        }
        let due = ReplyOnDrop::new(ticket, &self.mailbox);
        let done = move |result| due.post(|ticket| Mail::Appended { ticket, result });
        self.service.append(batch, Box::new(done));
        true
    }

    /// Restricts the host of one processor to its own origins; the store knows which processor an
    /// origin names.
    fn check_origins(&mut self, origins: impl IntoIterator<Item = Origin>) -> Result<(), Refusal> {
        let access = self.session.access();
        if access.alone.is_none() {
            return Ok(());
        }
        for origin in origins {
            if self.own_version != Some(origin.processor) {
                let create = self.service.get(Bound::Id(origin.processor))?;
                access::check_origin(access, origin.processor, create.as_ref())?;
                self.own_version = Some(origin.processor);
            }
        }
        Ok(())
    }

    fn block(&self, job: impl FnOnce(&dyn Service) -> Mail + Send + 'static) {
        let service = Arc::clone(&self.service);
        self.mailbox.post_from(move || job(&*service));
    }

    /// Runs work on a blocking thread that may take long, one piece at a time for this connection.
    /// It builds a list of at most `list_bytes`, or none.
    fn long(
        &mut self,
        list_bytes: usize,
        job: impl FnOnce(&dyn Service, LongTurn) -> Mail + Send + 'static,
    ) {
        let service = Arc::clone(&self.service);
        self.long.add(0, list_bytes, move |turn| job(&*service, turn));
    }

    pub(super) fn start(&mut self, sub: u32, work: Work) {
        self.works.insert(sub, Slot { work, queued: false });
        self.enqueue(sub);
    }

    pub(super) fn enqueue(&mut self, sub: u32) {
        if let Some(slot) = self.works.get_mut(&sub)
            && !std::mem::replace(&mut slot.queued, true)
        {
            self.ready.push_back(sub);
        }
    }

    /// Queues the feeds for which a publish is news.
    pub(super) fn wake_feeds(&mut self) {
        self.was_woken.clear();
        let has_room = self.session.has_room();
        for (&sub, slot) in &mut self.works {
            let Work::Feed(feed) = &mut slot.work else { continue };
            let credit = self.session.credit(sub);
            feed.note_news(credit > 0 && has_room);
            if feed.waits(credit) && !std::mem::replace(&mut slot.queued, true) {
                self.ready.push_back(sub);
            }
        }
    }

    pub(super) fn refuse_stream(&mut self, ticket: Ticket, sub: u32, refusal: &Refusal) {
        self.works.remove(&sub);
        self.session.forget(sub);
        self.session.refuse(ticket, refusal);
    }

    fn cancel(&mut self, sub: u32) {
        self.long.forget(sub);
        if let Some(Slot { work: Work::Upload(upload), .. }) = self.works.remove(&sub) {
            let refusal = Refusal::new(Code::InvalidValue, "the upload was given up");
            self.session.refuse(upload.ticket, &refusal);
        }
    }

    /// Ends the streams whose deadline has passed.
    pub(super) fn expire(&mut self, now: Instant) {
        for sub in self.session.tick(now) {
            let resume = match self.works.remove(&sub) {
                Some(Slot { work: Work::Feed(feed), .. }) => feed.resume(),
                _ => 0,
            };
            let refusal = Refusal::new(Code::DeadlinePassed, "the call's deadline has passed");
            self.session.event(sub, &StreamEvent::Dropped { refusal, resume });
        }
    }

    /// The client has stopped sending. Its requests are answered, long ones with what was done so
    /// far; its streams could never get more credit, so they end.
    pub(super) fn hang_up(&mut self) {
        self.mailbox.close();
        // Calls that are still being opened have no work yet, and will find their stream removed.
        self.session.forget_all();
        let subs: Vec<u32> = self.works.keys().copied().collect();
        subs.into_iter().for_each(|sub| self.cancel(sub));
    }

    /// Sends what streams and long replies have, as far as there is room, and a limited amount
    /// before the socket's turn; returns the number of steps. Lists and streams alternate, so that
    /// neither starves the other.
    pub(super) fn pump(&mut self) -> usize {
        let mut steps = 0;
        let enough = self.session.output().len() + PUMP_BYTES;
        while steps < PUMP_STEPS
            && self.session.has_room()
            && self.session.output().len() < enough
            && match self.is_lists_turn {
                true => self.step_list() || self.step_stream(),
                false => self.step_stream() || self.step_list(),
            }
        {
            self.is_lists_turn = !self.is_lists_turn;
            steps += 1;
            if Instant::now() >= self.turn_ends {
                break;
            }
        }
        // Frames keep their files open.
        self.scratch.clear();
        steps
    }

    /// Advances the first list; returns whether there is one.
    fn step_list(&mut self) -> bool {
        let Some(listing) = self.listings.pop_front() else { return false };
        if let Listing::Topics(ticket, page, patterns, Some(after), turn) = listing {
            Listing::part_of_topics(ticket, &page, &mut self.session);
            let service = Arc::clone(&self.service);
            let next = move |turn| topics_page(&*service, ticket, patterns, Some(&after), turn);
            self.long.go_on(turn, next);
            return true;
        }
        let rest = listing.step(&mut self.session, &*self.service, &mut self.scratch);
        if let Some(rest) = rest {
            self.listings.push_front(rest);
        }
        true
    }

    /// Advances the next stream; returns whether there is one.
    fn step_stream(&mut self) -> bool {
        let Some(sub) = self.ready.pop_front() else { return false };
        let Some(slot) = self.works.get_mut(&sub) else { return true };
        slot.queued = false;
        let next = match &mut slot.work {
            Work::Feed(feed) => {
                let (service, long) = (&self.service, &mut self.long);
                feed.step(sub, &mut self.session, service, long, &mut self.scratch)
            }
            Work::Download(download) => download.step(sub, &mut self.session, &self.mailbox),
            Work::Upload(_) => Next::Wait,
        };
        self.after_step(sub, next);
        true
    }

    pub(super) fn after_step(&mut self, sub: u32, next: Next) {
        match next {
            Next::Again => self.enqueue(sub),
            Next::Wait => {}
            Next::Done => {
                self.works.remove(&sub);
            }
        }
    }
}

/// One page of the topics after a name.
fn topics_page(
    service: &dyn Service,
    ticket: Ticket,
    patterns: TopicPatterns,
    after: Option<&Topic>,
    turn: LongTurn,
) -> Mail {
    let result = service.topics(&patterns, after, ENTRIES_MAX);
    Mail::Topics { ticket, patterns, result, turn }
}

/// Whether a read must search backward for its start, however far.
const fn looks_back(options: &ReadOptions) -> bool {
    matches!(options.start, Start::Last(_)) && !options.reverse
}

/// Whether a request may read the log on the connection's task.
const fn looks(request: &Request) -> bool {
    matches!(request, Request::Fetch(_) | Request::Last(_) | Request::Subscribe(_))
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.mailbox.leave();
    }
}
