//! One connection: reads, serves and writes on one task, so that a request the store can answer at
//! once is answered without a task switch. Blocking work runs on other threads and returns through
//! the mailbox.

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

/// Rounds of reading, serving and writing before the task yields.
const ROUNDS: usize = 32;
/// Bytes written before the task yields: two readers at full speed would otherwise leave little
/// processor time for appends.
const TURN_BYTES: usize = 256 * 1024;
/// Time before the task yields, when it is not limited by bytes.
const TURN_TIME: Duration = Duration::from_micros(500);
/// Weight of a byte read, relative to a byte written: requests are parsed and their frames stored,
/// while outgoing frames are sent as they are.
const READ_WEIGHT: usize = 4;
/// Bytes written that a step of a stream or list counts for; a step may examine much and send
/// nothing.
const STEP_WEIGHT: usize = 8 * 1024;
/// Bytes of unserved requests beyond which no more are read.
const UNSERVED_MAX: usize = 256 * 1024;
/// Reads per round before their requests are answered.
const READS_PER_ROUND: usize = 4;

/// The result of a turn.
enum Turn {
    /// There is more to do right away.
    Again,
    /// The connection has ended.
    Over,
}

/// A connection: its socket and its work in progress.
pub(super) struct Connection<S> {
    io: Pin<Box<S>>,
    desk: Desk,
    inbox: BytesMut,
    last_read: usize,
    /// The client has stopped sending.
    eof: bool,
    /// Written bytes may still be buffered by TLS.
    unflushed: bool,
    /// CLOSE is written and our direction is shut down.
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

    /// Runs until the connection ends.
    ///
    /// # Errors
    /// The error of the transport that ended it.
    pub(super) async fn run(mut self) -> io::Result<()> {
        let result = loop {
            match poll_fn(|cx| self.poll(cx)).await {
                // Yield to other tasks and to socket events, which a busy runtime polls only now
                // and then.
                Ok(Turn::Again) => tokio::task::yield_now().await,
                Ok(Turn::Over) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        if result.is_ok() && !self.shut {
            // Over TLS this close_notify lets the client distinguish an intended end from a
            // truncation.
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
                // In each round: requests served after the end of input must end, too.
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
        // The timer is checked at rest; a busy connection checks the clock once per turn.
        if now() >= self.desk.session.deadline() {
            self.desk.expire(now());
        }
        Poll::Ready(Ok(Turn::Again))
    }

    /// Reads available bytes, as far as allowed; returns whether there were any, and how many.
    fn read(&mut self, cx: &mut Context<'_>) -> io::Result<(bool, usize)> {
        let (mut moved, mut bytes) = (false, 0);
        for _ in 0..READS_PER_ROUND {
            if self.eof {
                break;
            }
            if !self.desk.session.wants_input() {
                // A client that is not being read does not count as silent.
                self.desk.session.heard(now());
                break;
            }
            if self.desk.has_unserved && self.inbox.len() >= UNSERVED_MAX {
                // The socket was not polled, so nothing will wake the task: request another round,
                // after the buffered requests were served.
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

    /// Writes as much as the socket accepts; returns how many bytes.
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

    /// Whether everything is written and nothing is pending.
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

    /// Checks the timer; returns whether there was something to do.
    fn time(&mut self, cx: &mut Context<'_>) -> bool {
        let deadline = Instant::from_std(self.desk.session.deadline());
        if deadline != self.timer.deadline() {
            self.timer.as_mut().reset(deadline);
        }
        if self.timer.as_mut().poll(cx).is_pending() {
            return false;
        }
        if self.inbox.is_empty() {
            // Frees the buffer of a burst once the connection is quiet.
            (self.inbox, self.last_read) = (BytesMut::new(), 0);
        }
        self.desk.expire(now());
        true
    }
}

/// The current time, which tests may control.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}
