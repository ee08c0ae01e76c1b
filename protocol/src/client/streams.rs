//! Streams of a client: subscriptions, calls, bounded reads. Each grants the server credit as its
//! items are taken, and cancels itself when it is dropped.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::Stream;
use xs_engine::{Frame, FrameId, ReadOptions, ResumePoint, Topic};

use super::Reply;
use super::core::{Handle, Item, Opened, gone};
use super::inlet::Outlet;
use super::place::Place;
use crate::error::{ClientError, ProtocolError};
use crate::limits::PAGE_BYTES_MAX;
use crate::message::{
    Delivered, FetchRequest, Page, Request, Response, Resume, StreamEvent, SubEvent, after_page,
};

/// State that all streams share.
pub(super) struct Line {
    handle: Arc<Handle>,
    pub(super) sub: u32,
    outlet: Outlet,
    /// Initial credit; whenever half of it was taken, that is granted again.
    credit: u32,
    /// Bytes taken and not yet granted again.
    owed: u64,
    /// The server knows that the stream is over.
    done: bool,
}

impl Line {
    /// Opens a stream with a request; the reply resolves to its answer.
    pub(super) fn open<T>(
        handle: &Arc<Handle>,
        credit: u32,
        request: &Request,
        convert: fn(Response) -> Option<T>,
    ) -> (Self, Reply<T>) {
        let Opened { sub, outlet, answered } = handle.open(request, credit);
        let line = Self { handle: Arc::clone(handle), sub, outlet, credit, owed: 0, done: false };
        (line, Reply::of(handle, answered, convert))
    }

    /// The next item; `None` when the stream is over.
    pub(super) fn poll_item(&mut self, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        if self.done {
            return Poll::Ready(None);
        }
        let item = ready!(self.outlet.items.poll_recv(cx)).unwrap_or_else(|| Item::Failed(gone()));
        self.outlet.took(&item);
        self.done = item.is_last();
        Poll::Ready(Some(item))
    }

    /// The next item.
    pub(super) async fn item(&mut self) -> Option<Item> {
        poll_fn(|cx| self.poll_item(cx)).await
    }

    /// Records that bytes were taken: the server may send as many more.
    pub(super) fn took(&mut self, bytes: usize) {
        self.owed += bytes as u64;
        if !self.done && self.owed >= u64::from(self.credit / 2) {
            self.handle.grant(self.sub, self.owed);
            self.owed = 0;
        }
    }

    /// Records that the request was refused: there is nothing to cancel.
    pub(super) const fn refused(&mut self) {
        self.done = true;
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.handle.forget(self.sub, !self.done);
    }
}

/// A subscription. Dropping it ends it.
#[must_use = "dropping a subscription ends it"]
pub struct Subscription {
    line: Line,
    place: Place,
    seen_in: Resume,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("position", &self.position()).finish_non_exhaustive()
    }
}

impl Subscription {
    pub(super) const fn new(line: Line, place: Place, seen_in: Resume) -> Self {
        Self { line, place, seen_in }
    }

    /// The next event; `None` after the end: the limit was reached, or it does not follow and
    /// everything was delivered. An error is the last item.
    pub async fn next(&mut self) -> Option<Result<SubEvent, ClientError>> {
        poll_fn(|cx| self.poll_event(cx)).await
    }

    /// The offset to resume from after everything taken so far, never below the start; `None` while
    /// that is the start as given. This lasts, for an offset above the head, until something after
    /// it is stored, and for an id, until a frame arrives.
    #[must_use]
    pub const fn position(&self) -> Option<u64> {
        self.place.offset()
    }

    /// The position with the store and the epoch it holds for:
    /// [`Client::subscribe_from`](super::Client::subscribe_from) resumes there, over another
    /// connection or in another process. Meaningless for a reverse read.
    #[must_use]
    pub fn point(&self) -> Option<ResumePoint> {
        self.position().map(|offset| self.seen_in.point(offset))
    }

    pub(super) fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<SubEvent, ClientError>>> {
        let Some(item) = ready!(self.line.poll_item(cx)) else { return Poll::Ready(None) };
        let event = match item {
            Item::Deliver { list, cost } => {
                self.line.took(cost);
                self.place.came(list.frames.len(), list.scanned_to);
                SubEvent::Frames { frames: list.frames, scanned_to: list.scanned_to }
            }
            Item::Event(StreamEvent::CaughtUp { head }) => {
                self.place.caught_up(head);
                SubEvent::CaughtUp { head }
            }
            Item::Event(StreamEvent::Pulse) => SubEvent::Pulse,
            Item::Event(StreamEvent::Gap(gap)) => {
                self.place.passed_by(&gap);
                SubEvent::Gap(gap)
            }
            Item::Event(StreamEvent::Dropped { refusal, resume }) => {
                self.place.dropped(resume);
                SubEvent::Dropped { refusal, resume }
            }
            Item::Event(StreamEvent::Ended { scanned_to }) => {
                self.place.looked_to(scanned_to);
                return Poll::Ready(None);
            }
            Item::Failed(error) => return Poll::Ready(Some(Err(error))),
            Item::Chunk { .. } | Item::Granted(_) => return Poll::Ready(Some(Err(misplaced()))),
        };
        Poll::Ready(Some(Ok(event)))
    }
}

impl Stream for Subscription {
    type Item = Result<SubEvent, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_event(cx)
    }
}

/// The results of a call, ending with `<name>.complete` or `<name>.error`. Dropping it before that
/// cancels the call.
#[must_use = "dropping the results of a call cancels it"]
pub struct CallStream {
    line: Line,
    id: FrameId,
    name: Topic,
    results: VecDeque<Delivered>,
    /// The last of the results has come.
    is_answered: bool,
}

impl fmt::Debug for CallStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallStream").field("id", &self.id).finish_non_exhaustive()
    }
}

impl CallStream {
    pub(super) const fn new(line: Line, id: FrameId, name: Topic) -> Self {
        Self { line, id, name, results: VecDeque::new(), is_answered: false }
    }

    /// Id of the frame `<name>.call`.
    #[must_use]
    pub const fn id(&self) -> FrameId {
        self.id
    }

    /// The next result; `None` after the last.
    pub async fn next(&mut self) -> Option<Result<Delivered, ClientError>> {
        poll_fn(|cx| self.poll_result(cx)).await
    }

    fn poll_result(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Delivered, ClientError>>> {
        loop {
            if let Some(result) = self.results.pop_front() {
                return Poll::Ready(Some(Ok(result)));
            }
            let Some(item) = ready!(self.line.poll_item(cx)) else { return Poll::Ready(None) };
            match item {
                Item::Deliver { list, cost } => {
                    self.line.took(cost);
                    self.is_answered |= list.frames.iter().any(|one| self.ends_with(one));
                    self.results.extend(list.frames);
                }
                // Only the notice of the end is lost. A caller that received an error would repeat
                // the call.
                Item::Event(StreamEvent::Dropped { .. }) | Item::Failed(_) if self.is_answered => {
                    return Poll::Ready(None);
                }
                Item::Event(StreamEvent::Dropped { refusal, .. }) => {
                    return Poll::Ready(Some(Err(refusal.into())));
                }
                Item::Failed(error) => return Poll::Ready(Some(Err(error.of_request()))),
                // Calls are followed from their own frame on; other events are not results.
                Item::Event(_) => {}
                Item::Chunk { .. } | Item::Granted(_) => {
                    return Poll::Ready(Some(Err(misplaced())));
                }
            }
        }
    }

    fn ends_with(&self, result: &Delivered) -> bool {
        let event = result.frame.topic().strip_prefix(self.name.as_str());
        matches!(event, Some(".complete" | ".error"))
    }
}

impl Stream for CallStream {
    type Item = Result<Delivered, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_result(cx)
    }
}

/// A bounded read. The next page is requested while the current one is read.
#[must_use = "a read does nothing unless it is polled"]
pub struct FrameStream {
    handle: Arc<Handle>,
    /// The options of the latest page request.
    options: ReadOptions,
    page: VecDeque<Frame>,
    coming: Option<Reply<Page>>,
}

impl fmt::Debug for FrameStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameStream").field("options", &self.options).finish_non_exhaustive()
    }
}

impl FrameStream {
    pub(super) fn new(handle: &Arc<Handle>, options: &ReadOptions) -> Self {
        let coming = Some(ask_page(handle, options));
        let options = options.clone();
        Self { handle: Arc::clone(handle), options, page: VecDeque::new(), coming }
    }

    /// The next frame; `None` at the end and after an error.
    pub async fn next(&mut self) -> Option<Result<Frame, ClientError>> {
        poll_fn(|cx| self.poll_frame(cx)).await
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, ClientError>>> {
        loop {
            if let Some(frame) = self.page.pop_front() {
                return Poll::Ready(Some(Ok(frame)));
            }
            let Some(coming) = &mut self.coming else { return Poll::Ready(None) };
            let page = ready!(coming.poll_reply(cx));
            self.coming = None;
            match page.and_then(|page| self.turn(page)) {
                Ok(()) => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }

    /// Takes a page and asks for the next.
    fn turn(&mut self, page: Page) -> Result<(), ClientError> {
        let taken = page.list.frames.len();
        if page.more {
            let next = after_page(&self.options, &page, taken as u64);
            if taken == 0 && next == self.options {
                return Err(ProtocolError::Unexpected("a page that leads to itself").into());
            }
            self.options = next;
            if self.options.limit != Some(0) {
                self.coming = Some(ask_page(&self.handle, &self.options));
            }
        }
        self.page = page.list.frames.into_iter().map(|one| one.frame).collect();
        Ok(())
    }
}

impl Stream for FrameStream {
    type Item = Result<Frame, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_frame(cx)
    }
}

fn ask_page(handle: &Arc<Handle>, options: &ReadOptions) -> Reply<Page> {
    let fetch = FetchRequest { options: options.clone(), page_bytes: PAGE_BYTES_MAX };
    Reply::ask(handle, &Request::Fetch(fetch), |response| match response {
        crate::message::Response::Page(page) => Some(page),
        _ => None,
    })
}

pub(super) fn misplaced() -> ClientError {
    ProtocolError::Unexpected("an item that does not belong on this stream").into()
}
