//! The connection under a [`Client`](super::Client): the state that its handles share, and the task
//! that reads. A caller writes its request to the socket itself when no other request is pending;
//! otherwise the task writes all queued requests in one go.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io::{ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::io::poll_read_buf;

use super::inlet::{Inlet, Outlet, pipe};
use crate::codec::{Codec, make_room};
use crate::error::{ClientError, DisconnectReason, ProtocolError};
use crate::gather::{Gather, SLICES_MAX};
use crate::limits::{CLIENT_QUEUE_MAX, LINGER, SERVER_MESSAGE_BYTES_MAX};
use crate::message::{
    FrameList, GoAway, Incoming, Op, OpRange, PeerLimits, Request, Response, StreamEvent,
};
use crate::session::{ClientEvent, ClientSession};

/// Bytes read before the task yields, so that another connection on the same thread can receive an
/// answer.
const TURN_BYTES: usize = 128 * 1024;

/// An item received on a stream.
#[derive(Debug)]
pub(super) enum Item {
    Deliver { list: FrameList, cost: usize },
    Event(StreamEvent),
    Chunk { bytes: Bytes, last: bool },
    Granted(u64),
    Failed(ClientError),
}

impl Item {
    /// Whether the item is the last of its stream.
    pub(super) const fn is_last(&self) -> bool {
        match self {
            Self::Failed(_) => true,
            Self::Event(event) => event.is_last(),
            Self::Chunk { last, .. } => *last,
            Self::Deliver { .. } | Self::Granted(_) => false,
        }
    }
}

type Answer = oneshot::Sender<Result<Response, ClientError>>;
/// Receives the answer to a request.
pub(super) type Answered = oneshot::Receiver<Result<Response, ClientError>>;

/// A stream whose request was sent.
pub(super) struct Opened {
    pub(super) sub: u32,
    /// Receives the items of the stream.
    pub(super) outlet: Outlet,
    pub(super) answered: Result<Answered, ClientError>,
}

struct Core {
    session: ClientSession,
    answers: HashMap<u32, Answer>,
    streams: HashMap<u32, Inlet>,
    writer: Pin<Box<dyn AsyncWrite + Send>>,
    /// Bytes that the writer has taken.
    written: u64,
    /// Wakes the task.
    task: Option<Waker>,
    /// Why the connection is closed; no request is accepted then.
    closed: Option<ClientError>,
    /// The last handle was dropped.
    unused: bool,
    /// The server's GOAWAY, sent when it begins to stop.
    going_away: Option<GoAway>,
}

pub(super) struct Shared {
    core: Mutex<Core>,
    closed: watch::Sender<Option<ClientError>>,
}

/// A shared handle to the connection. When the last is dropped the connection closes.
pub(super) struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        let mut core = self.0.core.lock();
        core.unused = true;
        core.wake();
    }
}

/// Starts the task of a connection and queues its HELLO; returns the handle and the future of the
/// answer.
pub(super) fn start<R, W>(
    reader: R,
    writer: W,
    name: String,
    token: String,
) -> Result<(Arc<Handle>, Answered), ClientError>
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + 'static,
{
    let (session, corr) = ClientSession::new(name, token, None)?;
    let (sender, answer) = oneshot::channel();
    let core = Core {
        session,
        answers: HashMap::from([(corr, sender)]),
        streams: HashMap::new(),
        writer: Box::pin(writer),
        written: 0,
        task: None,
        closed: None,
        unused: false,
        going_away: None,
    };
    let shared = Arc::new(Shared { core: Mutex::new(core), closed: watch::Sender::new(None) });
    let task = Task {
        shared: Arc::clone(&shared),
        reader,
        codec: Codec::new(SERVER_MESSAGE_BYTES_MAX),
        inbox: BytesMut::new(),
        last_read: 0,
        incoming: Vec::new(),
        lingering: None,
    };
    tokio::spawn(task.run());
    Ok((Arc::new(Handle(shared)), answer))
}

impl Handle {
    /// Applies the limits and ops from the server's HELLO.
    pub(super) fn set_server_limits(&self, limits: PeerLimits, ops: &[OpRange]) {
        let session = &mut self.0.core.lock().session;
        session.set_limits(limits);
        session.set_ops(ops.to_vec());
    }

    /// Sends a request; its answer comes through the receiver.
    pub(super) fn request(&self, request: &Request) -> Result<Answered, ClientError> {
        self.0.core.lock().ask(|session| session.request(request, 0))
    }

    /// Sends a request whose body `put` writes; its answer comes through the receiver.
    pub(super) fn borrowed(
        &self,
        op: Op,
        put: impl FnOnce(&mut Gather),
    ) -> Result<Answered, ClientError> {
        self.0.core.lock().ask(|session| session.borrowed(op, put))
    }

    /// Sends a message that has no answer; does nothing on a closed connection.
    pub(super) fn tell(&self, message: &Request, sub: u32) -> Result<(), ClientError> {
        let mut core = self.0.core.lock();
        if core.closed.is_none() {
            core.session.tell(message, sub)?;
            core.flush(true);
        }
        Ok(())
    }

    /// Grants the server `bytes` more credit on a stream.
    pub(super) fn grant(&self, sub: u32, bytes: u64) {
        if let Some(stream) = self.0.core.lock().streams.get_mut(&sub) {
            stream.grant(bytes);
        }
        // A number is within every limit.
        let _ = self.tell(&Request::Credit(bytes), sub);
    }

    /// Sends a request that opens a stream with `credit` bytes of credit. The number is assigned
    /// and the request queued under one lock: a server closes a connection whose streams are not
    /// opened in the order of their numbers.
    pub(super) fn open(&self, request: &Request, credit: u32) -> Opened {
        let (inlet, outlet) = pipe(credit);
        let mut core = self.0.core.lock();
        let sub = match core.session.new_sub() {
            Ok(sub) => sub,
            // Nothing is sent; no stream has the number 0.
            Err(error) => return Opened { sub: 0, outlet, answered: Err(error) },
        };
        core.streams.insert(sub, inlet);
        let answered = core.ask(|session| session.request(request, sub));
        drop(core);
        Opened { sub, outlet, answered }
    }

    /// Forgets a stream; with `tell`, unsubscribes it at the server as well.
    pub(super) fn forget(&self, sub: u32, tell: bool) {
        self.0.core.lock().streams.remove(&sub);
        if tell && sub != 0 {
            // An empty message is within every limit.
            let _ = self.tell(&Request::Unsubscribe, sub);
        }
    }

    pub(super) fn going_away(&self) -> Option<GoAway> {
        self.0.core.lock().going_away.clone()
    }

    /// Waits until the connection is closed, and returns the reason.
    pub(super) async fn closed(&self) -> ClientError {
        let mut closed = self.0.closed.subscribe();
        let why = closed.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        why.unwrap_or_else(gone)
    }
}

/// The error for a connection that ended without a better reason.
pub(super) fn gone() -> ClientError {
    ClientError::Disconnected("the connection is closed".into())
}

impl Core {
    fn ask(
        &mut self,
        queue: impl FnOnce(&mut ClientSession) -> Result<u32, ClientError>,
    ) -> Result<Answered, ClientError> {
        if let Some(error) = &self.closed {
            return Err(error.clone());
        }
        let waiting = self.session.in_flight();
        if waiting >= CLIENT_QUEUE_MAX {
            return Err(ClientError::TooManyRequests(waiting));
        }
        let (sender, receiver) = oneshot::channel();
        let corr = queue(&mut self.session)?;
        self.answers.insert(corr, sender);
        // A single request is fastest written here; with others pending it is better batched with
        // them.
        self.flush(waiting == 0);
        Ok(receiver)
    }

    fn wake(&mut self) {
        if let Some(task) = self.task.take() {
            task.wake();
        }
    }

    /// Writes what is queued: right here, or by waking the task.
    fn flush(&mut self, here: bool) {
        if here {
            // On a partial write the task retries and waits for the socket.
            let mut cx = Context::from_waker(Waker::noop());
            if self.write(&mut cx).is_ok_and(|all| all) {
                return;
            }
        }
        self.wake();
    }

    /// Writes what is queued; returns whether all of it was written and flushed. TLS may hold some
    /// back.
    fn write(&mut self, cx: &mut Context<'_>) -> std::io::Result<bool> {
        while !self.session.output().is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let used = self.session.output().slices(&mut slices);
            match self.writer.as_mut().poll_write_vectored(cx, &slices[..used]) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Ok(0)) => return Err(std::io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(count)) => {
                    self.session.wrote(count);
                    self.written += count as u64;
                }
                Poll::Ready(Err(error)) => return Err(error),
            }
        }
        Ok(self.writer.as_mut().poll_flush(cx)?.is_ready())
    }

    fn accept(&mut self, incoming: Incoming) -> Result<(), ClientError> {
        let Some(event) = self.session.accept(incoming)? else { return Ok(()) };
        let (sub, item) = match event {
            ClientEvent::Answer { corr, result } => {
                if let Some(answer) = self.answers.remove(&corr) {
                    // The caller may have dropped its reply.
                    let _ = answer.send(result.map_err(ClientError::Refused));
                }
                return Ok(());
            }
            ClientEvent::GoAway(goaway) => {
                self.going_away = Some(goaway);
                return Ok(());
            }
            ClientEvent::Deliver { sub, list, cost } => (sub, Item::Deliver { list, cost }),
            ClientEvent::Event { sub, event } => (sub, Item::Event(event)),
            ClientEvent::Chunk { sub, bytes, last } => (sub, Item::Chunk { bytes, last }),
            ClientEvent::Granted { sub, bytes } => (sub, Item::Granted(bytes)),
        };
        // Items that were in flight when a stream was dropped, or that follow its end, are
        // discarded.
        if let Some(stream) = self.streams.get_mut(&sub)
            && stream.put(item)?
        {
            self.streams.remove(&sub);
        }
        Ok(())
    }
}

/// Reads from the server, and writes what callers left queued.
struct Task<R> {
    shared: Arc<Shared>,
    reader: R,
    codec: Codec,
    inbox: BytesMut,
    last_read: usize,
    /// Kept to reuse its allocation.
    incoming: Vec<Incoming>,
    /// Once the last handle was dropped: how many bytes were written, and until when the peer must
    /// take more of the rest.
    lingering: Option<(u64, Pin<Box<Sleep>>)>,
}

impl<R: AsyncRead + Unpin> Task<R> {
    async fn run(mut self) {
        let why = loop {
            match poll_fn(|cx| self.poll(cx)).await {
                Some(why) => break why,
                // Yield to other sockets and to the readers of what was received.
                None => tokio::task::yield_now().await,
            }
        };
        let (answers, streams, told) = {
            let mut core = self.shared.core.lock();
            // HELLO fails with the reason as it is, a request with the converted reason.
            let is_met = core.session.is_met();
            let told = if is_met { why.clone().of_request() } else { why.clone() };
            core.closed = Some(told.clone());
            (std::mem::take(&mut core.answers), std::mem::take(&mut core.streams), told)
        };
        for answer in answers.into_values() {
            let _ = answer.send(Err(told.clone()));
        }
        for mut stream in streams.into_values() {
            // The end costs no credit.
            let _ = stream.put(Item::Failed(why.clone()));
        }
        self.shared.closed.send_replace(Some(why));
        // TLS first writes what it holds back, which a peer that has stopped reading never takes.
        let shut = poll_fn(|cx| self.shared.core.lock().writer.as_mut().poll_shutdown(cx));
        let _ = tokio::time::timeout(LINGER, shut).await;
        // Handles may live on; the socket is not theirs to keep.
        self.shared.core.lock().writer = Box::pin(tokio::io::sink());
    }

    /// One turn of the task; returns why the connection has ended, if it has.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<ClientError>> {
        let mut taken = 0;
        while taken < TURN_BYTES {
            {
                let mut core = self.shared.core.lock();
                core.task = Some(cx.waker().clone());
                if let Err(error) = core.write(cx) {
                    return Poll::Ready(Some(disconnected(&error)));
                }
                if core.unused {
                    let (left, written) = (core.session.output().len(), core.written);
                    drop(core);
                    if left == 0 || self.has_stalled(written, cx) {
                        return Poll::Ready(Some(gone()));
                    }
                }
            }
            make_room(&mut self.inbox, self.last_read);
            match poll_read_buf(Pin::new(&mut self.reader), cx, &mut self.inbox) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) => {
                    let kind = ErrorKind::UnexpectedEof;
                    let why =
                        DisconnectReason::Io { kind, reason: "the server closed it".to_owned() };
                    return Poll::Ready(Some(ClientError::Disconnected(why)));
                }
                Poll::Ready(Ok(count)) => (self.last_read, taken) = (count, taken + count),
                Poll::Ready(Err(error)) => return Poll::Ready(Some(disconnected(&error))),
            }
            if let Err(error) = self.take_in() {
                return Poll::Ready(Some(error));
            }
        }
        Poll::Ready(None)
    }

    /// Whether the peer of a connection that nobody uses any more has taken nothing for too long.
    fn has_stalled(&mut self, written: u64, cx: &mut Context<'_>) -> bool {
        let until = Instant::now() + LINGER;
        let (before, timer) =
            self.lingering.get_or_insert_with(|| (written, Box::pin(sleep_until(until))));
        if *before != written {
            *before = written;
            timer.as_mut().reset(until);
        }
        timer.as_mut().poll(cx).is_ready()
    }

    /// Handles every complete message in the buffer. Records are checked before the lock is taken.
    fn take_in(&mut self) -> Result<(), ClientError> {
        let read = self.decode();
        let mut core = self.shared.core.lock();
        for incoming in self.incoming.drain(..) {
            core.accept(incoming)?;
        }
        Ok(read?)
    }

    fn decode(&mut self) -> Result<(), ProtocolError> {
        while let Some(envelope) = self.codec.next(&mut self.inbox)? {
            self.incoming.push(Incoming::read(envelope)?);
        }
        Ok(())
    }
}

fn disconnected(error: &std::io::Error) -> ClientError {
    ClientError::Disconnected(error.into())
}

/// A future for one answer.
pub(super) enum Awaited {
    Failed(Option<ClientError>),
    Waiting(Answered),
}

impl Awaited {
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response, ClientError>> {
        match self {
            Self::Failed(error) => Poll::Ready(Err(error.take().unwrap_or_else(gone))),
            Self::Waiting(receiver) => {
                Pin::new(receiver).poll(cx).map(|answer| answer.unwrap_or_else(|_| Err(gone())))
            }
        }
    }
}
