//! Following across lost connections: a subscription that is reopened at its last position when its
//! connection is lost. It keeps nothing on disk; [`Follow::point`] lets a caller resume in another
//! process.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures::Stream;
use futures::future::BoxFuture;
use xs_engine::{Bound, ReadOptions, ResumePoint, Start};

use super::retry::{Backoff, Retry, chance};
use super::{Client, ClientOptions, Subscription};
use crate::address::Address;
use crate::error::{Class, ClientError, Code, Detail, ProtocolError, Refusal};
use crate::message::{Delivered, Gap, Resume, SubEvent, SubscribeOptions};

/// What to follow, and how.
#[derive(Debug, Clone, Default)]
pub struct FollowOptions {
    /// How to connect.
    pub client: ClientOptions,
    /// What is read; `follow` need not be set.
    pub read: ReadOptions,
    /// How it is served.
    pub how: SubscribeOptions,
    /// Resume from here; overrides the start in `read`.
    pub from: Option<ResumePoint>,
    /// How to retry while the server is unreachable or busy.
    pub retry: Retry,
    /// How long [`Follow::open`] waits for a first server; zero, the default, is a single attempt,
    /// and [`Duration::MAX`] is as long as it takes.
    pub wait: Duration,
}

/// An event that [`Follow`] yields.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum FollowEvent {
    /// A frame: each stored frame once, in log order.
    Frame(Delivered),
    /// All frames that were stored at the start have been yielded; comes once.
    CaughtUp {
        /// The offset of the next frame at that time.
        head: u64,
    },
    /// The requested pulse interval has passed.
    Pulse,
    /// Frames are missing here.
    Gap(Gap),
    /// The connection was lost and the follow has resumed over another: no stored frame is missing
    /// or repeated, but ephemeral frames sent in between are lost.
    Resumed {
        /// Where it resumed; `None` when nothing had been received before.
        offset: Option<u64>,
        /// What ended the connection.
        lost: ClientError,
    },
}

/// Stored frames, then new ones as they are appended, over as many connections as it takes.
/// Dropping it ends it. It buffers at most one server message, up to 2 MiB, and the credit of one
/// subscription.
#[must_use = "following does nothing unless it is polled"]
pub struct Follow {
    address: Address,
    options: ClientOptions,
    /// The rest of the read.
    rest: ReadOptions,
    how: SubscribeOptions,
    retry: Retry,
    backoff: Backoff,
    state: State,
    /// The newest connection.
    client: Client,
    /// The first event, received while the subscription was opened.
    first: Option<SubEvent>,
    /// Frames received and not yet yielded.
    frames: VecDeque<Delivered>,
    /// The offset to resume from after everything received; `None` while the start of `rest` still
    /// decides.
    seen: Option<u64>,
    /// The offset to resume from after everything yielded.
    given: Option<u64>,
    /// The store and epoch in which `seen` holds.
    seen_in: Resume,
    is_caught_up: bool,
    /// Why the last connection was lost, until the next one is made.
    lost: Option<ClientError>,
    /// When the connection was lost, until something is received.
    silent_since: Option<Instant>,
}

type Coming = BoxFuture<'static, Result<(Client, Subscription), ClientError>>;

enum State {
    On(Subscription),
    /// Waits, connects and subscribes.
    Away(Coming),
    Over,
}

impl fmt::Debug for Follow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follow")
            .field("address", &self.address)
            .field("rest", &self.rest)
            .field("seen", &self.seen)
            .finish_non_exhaustive()
    }
}

impl Follow {
    /// Connects and subscribes. [`Start::New`] and [`Start::Last`] are relative to the first
    /// connection, even when it is lost later. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`ClientError`] when there is no server within [`FollowOptions::wait`], so that by default a
    /// wrong address is reported at once. A wrong token always is, and so is an address at which
    /// there can be no server: [`ClientError::class`] decides. Once open, it is retried.
    pub async fn open(address: &Address, options: FollowOptions) -> Result<Self, ClientError> {
        let FollowOptions { client: options, read, how, from, retry, wait } = options;
        let mut rest = ReadOptions { follow: true, ..read };
        let client = first_server(address, &options, retry, wait).await?;
        let seen_in = client.server().resume();
        // As an offset, the start can be sent again if this connection is lost before an answer.
        let now = || client.server().resume().point(client.server().head);
        let from = from.or_else(|| (rest.start == Start::New).then(now));
        let seen = from.map(|point| point.offset);
        let mut subscription = match from {
            Some(point) => {
                rest.start = Start::From(Bound::Offset(point.offset));
                client.subscribe_from(&point, &rest, how).await?
            }
            None => client.subscribe(&rest, how).await?,
        };
        // The first event fixes which frames are the last ones. A later request would count from a
        // later head.
        let first = match rest.start {
            Start::Last(_) => first_of(&mut subscription).await?,
            _ => None,
        };
        Ok(Self {
            address: address.clone(),
            options,
            rest,
            how,
            retry,
            backoff: Backoff::new(retry),
            state: State::On(subscription),
            client,
            first,
            frames: VecDeque::new(),
            seen,
            given: seen,
            seen_in,
            is_caught_up: false,
            lost: None,
            silent_since: None,
        })
    }

    /// The next event; `None` after the end: the limit or a bound of the read was reached. Cancel
    /// safe: the future may be dropped and `next` called again, and nothing is lost.
    ///
    /// # Errors
    /// An error that reconnecting cannot fix, which ends the follow: a refusal that is not
    /// [`Class::Busy`], [`Code::TooSlow`] for a caller that asked to be dropped, a server that
    /// breaks the protocol or cannot be trusted, a socket that may not be used or a path that is no
    /// longer one of directories; or the last error when [`Retry::give_up`] has
    /// passed.
    pub async fn next(&mut self) -> Option<Result<FollowEvent, ClientError>> {
        poll_fn(|cx| self.poll_event(cx)).await
    }

    /// The point to resume from after everything yielded so far, in this process or another; `None`
    /// before anything is known.
    #[must_use]
    pub fn point(&self) -> Option<ResumePoint> {
        self.given.map(|offset| self.seen_in.point(offset))
    }

    /// The newest connection, for example to fetch bodies that are too long to come with their
    /// frames. While the server is unreachable, its requests fail.
    #[must_use]
    pub const fn client(&self) -> &Client {
        &self.client
    }

    fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<FollowEvent, ClientError>>> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                let after = frame.frame.offset().map(|offset| offset + 1);
                self.given = if self.frames.is_empty() { self.seen } else { after.or(self.given) };
                return Poll::Ready(Some(Ok(FollowEvent::Frame(frame))));
            }
            if self.rest.limit == Some(0) {
                self.state = State::Over;
            }
            let outcome = match &mut self.state {
                State::Over => return Poll::Ready(None),
                State::On(subscription) => {
                    let event = match self.first.take() {
                        Some(first) => Some(Ok(first)),
                        None => ready!(subscription.poll_event(cx)),
                    };
                    let position = subscription.position();
                    match event {
                        Some(Ok(event)) => self.take(event, position),
                        Some(Err(error)) => self.part(error, is_cut),
                        None => {
                            self.saw(position);
                            self.given = self.seen;
                            self.state = State::Over;
                            Ok(None)
                        }
                    }
                }
                State::Away(coming) => match ready!(coming.as_mut().poll(cx)) {
                    Ok((client, subscription)) => Ok(self.resumed(client, subscription)),
                    Err(error) => self.part(error, is_passing),
                },
            };
            match outcome {
                Ok(None) => {}
                Ok(Some(event)) => return Poll::Ready(Some(Ok(event))),
                Err(error) => {
                    self.state = State::Over;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }

    /// Processes an event of the subscription, which leaves it at `position`; returns the event to
    /// yield. Frames are queued instead.
    fn take(
        &mut self,
        event: SubEvent,
        position: Option<u64>,
    ) -> Result<Option<FollowEvent>, ClientError> {
        if let SubEvent::Dropped { refusal, .. } = event {
            self.saw(position);
            return self.part(refusal.into(), is_passing);
        }
        self.backoff.reset();
        self.silent_since = None;
        if let SubEvent::Frames { frames, .. } = &event {
            check_order(frames, self.seen.unwrap_or(0))?;
        }
        self.saw(position);
        let event = match event {
            SubEvent::Frames { frames, .. } => {
                self.rest.limit =
                    self.rest.limit.map(|limit| limit.saturating_sub(frames.len() as u64));
                self.frames = frames.into();
                None
            }
            SubEvent::CaughtUp { head } => {
                let is_first = !std::mem::replace(&mut self.is_caught_up, true);
                is_first.then_some(FollowEvent::CaughtUp { head })
            }
            SubEvent::Pulse => Some(FollowEvent::Pulse),
            SubEvent::Gap(gap) => Some(FollowEvent::Gap(gap)),
            SubEvent::Dropped { .. } => None,
        };
        if self.frames.is_empty() {
            self.given = self.seen;
        }
        Ok(event)
    }

    /// Records the subscription's position, unless it is still at its start.
    const fn saw(&mut self, position: Option<u64>) {
        if let Some(offset) = position {
            self.seen = position;
            self.rest.start = Start::From(Bound::Offset(offset));
        }
    }

    fn resumed(&mut self, client: Client, subscription: Subscription) -> Option<FollowEvent> {
        self.seen_in = client.server().resume();
        self.client = client;
        self.state = State::On(subscription);
        let lost = self.lost.take()?;
        Some(FollowEvent::Resumed { offset: self.seen, lost })
    }

    /// Schedules a reconnect after `error` ended the connection or an attempt; returns the error
    /// when a retry would not help.
    fn part(
        &mut self,
        error: ClientError,
        may_pass: fn(&ClientError) -> bool,
    ) -> Result<Option<FollowEvent>, ClientError> {
        self.given = self.seen;
        if !may_pass(&error) {
            return Err(error);
        }
        let wait = self.backoff.wait(retry_after(&error), chance());
        let silent = self.silent_since.get_or_insert_with(Instant::now).elapsed();
        if self.retry.give_up.is_some_and(|most| silent.saturating_add(wait) > most) {
            return Err(error);
        }
        self.lost.get_or_insert(error);
        self.state = State::Away(self.connect_after(wait));
        Ok(None)
    }

    fn connect_after(&self, wait: Duration) -> Coming {
        let (address, options) = (self.address.clone(), self.options.clone());
        let (rest, seen, seen_in) = (self.rest.clone(), self.seen, self.seen_in);
        let resume = seen.map(|_| seen_in).or(self.how.resume);
        let how = SubscribeOptions { resume, ..self.how };
        Box::pin(async move {
            tokio::time::sleep(wait).await;
            let client = Client::connect(&address, options).await?;
            // Before anything was received there is no offset that the server could check.
            if client.server().uuid != seen_in.store {
                let text = "another store is served there than before";
                return Err(Refusal::new(Code::OtherStore, text).into());
            }
            let subscription = client.subscribe_at(rest, how, seen).await?;
            Ok((client, subscription))
        })
    }
}

impl Stream for Follow {
    type Item = Result<FollowEvent, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_event(cx)
    }
}

/// Connects to a server, which may appear within `wait`.
async fn first_server(
    address: &Address,
    options: &ClientOptions,
    retry: Retry,
    wait: Duration,
) -> Result<Client, ClientError> {
    let (mut backoff, begun) = (Backoff::new(retry), Instant::now());
    loop {
        let error = match Client::connect(address, options.clone()).await {
            Ok(client) => return Ok(client),
            Err(error) => error,
        };
        let pause = backoff.wait(retry_after(&error), chance());
        if !is_passing(&error) || begun.elapsed().saturating_add(pause) > wait {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
    }
}

/// The first event of a subscription other than a pulse.
async fn first_of(subscription: &mut Subscription) -> Result<Option<SubEvent>, ClientError> {
    loop {
        match subscription.next().await.transpose()? {
            Some(SubEvent::Pulse) => {}
            other => return Ok(other),
        }
    }
}

/// Whether to reconnect after this error ended a connection. What a closing server reports is its
/// own state, so only a lost right and a broken protocol are final.
fn is_cut(error: &ClientError) -> bool {
    match error {
        ClientError::Refused(refusal) => match refusal.code.class() {
            Class::Access => false,
            Class::Protocol => is_late(refusal.code),
            _ => true,
        },
        other => matches!(other, ClientError::Disconnected(_)),
    }
}

/// Whether to retry after this error ended a subscription or an attempt to open one.
fn is_passing(error: &ClientError) -> bool {
    match error {
        ClientError::Refused(refusal) => {
            let is_asked_for = refusal.code == Code::TooSlow;
            (refusal.code.class().may_retry() && !is_asked_for) || is_late(refusal.code)
        }
        // Some addresses lead nowhere, whoever listens.
        ClientError::Connect { .. } => error.class().may_retry(),
        other => matches!(other, ClientError::Disconnected(_)),
    }
}

/// Whether only the network was too slow.
const fn is_late(code: Code) -> bool {
    matches!(code, Code::HelloTimeout | Code::Stalled)
}

/// The retry delay that the server asked for.
fn retry_after(error: &ClientError) -> Duration {
    let ClientError::Refused(refusal) = error else { return Duration::ZERO };
    let ms = refusal.details.iter().find_map(|detail| match detail {
        Detail::RetryAfterMs(ms) => Some(*ms),
        _ => None,
    });
    Duration::from_millis(ms.unwrap_or(0).into())
}

/// Checks the order, so that "each once, in order" holds whatever the server does.
fn check_order(frames: &[Delivered], mut next: u64) -> Result<(), ProtocolError> {
    for offset in frames.iter().filter_map(|one| one.frame.offset()) {
        if offset < next {
            return Err(ProtocolError::Unexpected("a frame that was to have come before"));
        }
        next = offset + 1;
    }
    Ok(())
}
