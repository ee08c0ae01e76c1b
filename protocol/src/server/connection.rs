//! One connection: reads, serves, writes, all on one task, so that a request that the store can
//! answer at once is answered without a hop. Blocking work goes to other threads and comes back
//! through the mailbox.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};
use tokio_util::io::poll_read_buf;

use super::admission::Visitor;
use super::desk::Desk;
use super::mailbox::Mailbox;
use super::meter::Meter;
use crate::codec::make_room;
use crate::gather::SLICES_MAX;
use crate::limits::LINGER;
use crate::service::Service;

/// Rounds of reading, serving and writing before other tasks have their turn.
const ROUNDS: usize = 32;
/// Bytes written before they have it: two who read all there is leave little of the processors to
/// who appends.
const TURN_BYTES: usize = 256 * 1024;
/// Time before they have it, when it is not bytes that take it.
const TURN_TIME: Duration = Duration::from_micros(500);
/// How much more a byte that is read counts for than one that is written: requests are parsed and
/// their frames stored, while what readers are sent is sent as it lies there.
const READ_WEIGHT: usize = 4;
/// Bytes written that a step of a stream or list counts for, which may look at much and send
/// nothing.
const STEP_WEIGHT: usize = 8 * 1024;
/// Bytes of requests that wait to be served beyond which no more are read.
const UNSERVED_MAX: usize = 256 * 1024;
/// Reads in one round before what they brought is answered.
const READS_PER_ROUND: usize = 4;

/// What a turn has come to.
enum Turn {
    /// There is more to do at once.
    Again,
    /// The connection has ended.
    Over,
}

/// A connection: its socket and what is under way on it.
pub(super) struct Connection<S> {
    io: Pin<Box<S>>,
    desk: Desk,
    inbox: BytesMut,
    last_read: usize,
    /// The client sends nothing more.
    eof: bool,
    /// What was written may still be in the hands of TLS.
    unflushed: bool,
    /// CLOSE is written and our direction shut.
    shut: bool,
    timer: Pin<Box<Sleep>>,
}

impl<S: AsyncRead + AsyncWrite> Connection<S> {
    pub(super) fn new(
        io: S,
        visitor: Visitor,
        name: &str,
        service: Arc<dyn Service>,
        mailbox: Arc<Mailbox>,
        meter: Arc<Meter>,
    ) -> Self {
        let now = Instant::now();
        Self {
            io: Box::pin(io),
            desk: Desk::new(visitor, name, service, mailbox, meter, now.into_std()),
            inbox: BytesMut::new(),
            last_read: 0,
            eof: false,
            unflushed: false,
            shut: false,
            timer: Box::pin(tokio::time::sleep_until(now)),
        }
    }

    /// Runs until the connection has ended.
    ///
    /// # Errors
    /// The error of the transport that ended it.
    pub(super) async fn run(mut self) -> io::Result<()> {
        let result = loop {
            match poll_fn(|cx| self.poll(cx)).await {
                // Behind other tasks and behind news of sockets, for which a runtime that is woken
                // at once looks only now and then.
                Ok(Turn::Again) => tokio::task::yield_now().await,
                Ok(Turn::Over) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        if result.is_ok() && !self.shut {
            // Over TLS a client tells an end that was meant from a cut by this last word.
            let shut = poll_fn(|cx| self.io.as_mut().poll_shutdown(cx));
            let _ = tokio::time::timeout(LINGER, shut).await;
        }
        let client = self.desk.session.client_name();
        tracing::debug!(
            client,
            error = result.as_ref().err().map(tracing::field::display),
            "closed"
        );
        result
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Turn>> {
        self.desk.mailbox.begin();
        self.desk.turn_ends = std::time::Instant::now() + TURN_TIME;
        let mut done = 0;
        for _ in 0..ROUNDS {
            let (mut moved, read) = self.read(cx)?;
            moved |= self.desk.serve(&mut self.inbox, now());
            if self.eof {
                // Each time: what is served after the end was read is to end, too.
                self.desk.hang_up();
            }
            moved |= self.desk.open_mail(now());
            let steps = self.desk.pump();
            self.desk.tell();
            self.desk.count_refusals();
            let written = self.write(cx)?;
            moved |= steps > 0 || written > 0;
            done += written + read * READ_WEIGHT + steps * STEP_WEIGHT;
            if self.is_over(cx)? {
                return Poll::Ready(Ok(Turn::Over));
            }
            if !moved && !self.time(cx) && self.desk.mailbox.end(cx.waker()) {
                return Poll::Pending;
            }
            if done >= TURN_BYTES || std::time::Instant::now() >= self.desk.turn_ends {
                break;
            }
        }
        // The clock is heeded at rest; who is never at rest looks at it once in a turn.
        if now() >= self.desk.session.deadline() {
            self.desk.expire(now());
        }
        Poll::Ready(Ok(Turn::Again))
    }

    /// Reads what has come, as far as it may; whether that was something, and how many bytes.
    fn read(&mut self, cx: &mut Context<'_>) -> io::Result<(bool, usize)> {
        let (mut moved, mut bytes) = (false, 0);
        for _ in 0..READS_PER_ROUND {
            if self.eof {
                break;
            }
            if !self.desk.session.wants_input() {
                // Whoever is not listened to is not silent.
                self.desk.session.heard(now());
                break;
            }
            if self.desk.has_unserved && self.inbox.len() >= UNSERVED_MAX {
                // Nobody wakes whoever has not asked the socket: there is another round for that,
                // once what there is was served.
                moved = true;
                break;
            }
            make_room(&mut self.inbox, self.last_read);
            match poll_read_buf(self.io.as_mut(), cx, &mut self.inbox) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => {
                    self.eof = true;
                }
                Poll::Ready(Ok(count)) => {
                    self.last_read = count;
                    bytes += count;
                    self.desk.meter.read(count);
                    self.desk.session.heard(now());
                }
                Poll::Ready(Err(error)) => return Err(error),
            }
            moved = true;
            if self.inbox.capacity() > self.inbox.len() {
                break;
            }
        }
        Ok((moved, bytes))
    }

    /// Writes as much as the socket takes; how many bytes that were.
    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<usize> {
        let mut written = 0;
        while !self.desk.session.output().is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let used = self.desk.session.output().slices(&mut slices);
            match self.io.as_mut().poll_write_vectored(cx, &slices[..used]) {
                Poll::Pending => {
                    self.desk.session.blocked(now());
                    break;
                }
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(count)) => {
                    self.desk.session.wrote(count);
                    self.desk.meter.wrote(count);
                    (written, self.unflushed) = (written + count, true);
                }
                Poll::Ready(Err(error)) => return Err(error),
            }
        }
        if self.unflushed && self.desk.session.output().is_empty() {
            self.unflushed = self.io.as_mut().poll_flush(cx)?.is_pending();
        }
        Ok(written)
    }

    /// Whether all that was to be said is written and nothing is waited for.
    fn is_over(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let written = self.desk.session.output().is_empty() && !self.unflushed;
        let idle = self.desk.session.is_idle() && !self.desk.has_unserved;
        if written && idle {
            self.desk.session.end_drain(now());
        }
        if self.desk.session.is_closing() && written && !self.shut {
            self.shut = self.io.as_mut().poll_shutdown(cx)?.is_ready();
        }
        let gone = self.eof && (self.desk.session.is_closing() || (written && idle));
        Ok(gone || self.desk.session.is_over(now()))
    }

    /// Heeds the clock; whether it brought something to do.
    fn time(&mut self, cx: &mut Context<'_>) -> bool {
        let deadline = Instant::from_std(self.desk.session.deadline());
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
        self.desk.expire(now());
        true
    }
}

/// The moment, as tests may drive it.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}
