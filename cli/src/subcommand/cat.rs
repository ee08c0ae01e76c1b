//! `cat` and `tail`: prints stored frames, then new ones as they arrive.

use std::pin::Pin;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Zoned;
use tokio_util::sync::CancellationToken;
use xs_engine::{Bound, CursorName, Frame, ReadOptions, Start, Topic, TopicPatterns};
use xs_protocol::limits::BODY_WITH_FRAME_MAX;
use xs_protocol::{Client, Delivered, Gap, SubEvent, SubscribeOptions, Subscription};

use super::bodies::{self, Lost};
use super::filter::Filter;
use super::link::{self, Begun, Link};
use super::position::{Position, Resume};
use crate::alike::nearest;
use crate::args::{BodyArgs, CatArgs};
use crate::connect::Session;
use crate::exit::{self, Exit, ExitError};
use crate::output::{Output, notice, reader_gone};

/// How long to look for the topic that was meant.
const LOOK_FOR_LIKELY: Duration = Duration::from_millis(500);
/// Maximum bytes of a body whose beginning is shown to a person.
const PREVIEW_BYTES: u32 = 4 * 1024;

pub(super) async fn run(
    session: &Session,
    cat: &CatArgs,
    stop: &CancellationToken,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    out.use_template(cat.body.format.as_ref());
    let options = cat.options(&Zoned::now()).map_err(|text| ExitError::new(Exit::Usage, text))?;
    let filter = Filter::start(&cat.filter).await?;
    let mut reader = Reader {
        link: Link::new(&session.client, cat.reconnect),
        wanted: &cat.body,
        filter,
        begun: None,
        unread: 0,
        lost: Lost::default(),
        printed: false,
    };
    let gone = reader_gone();
    tokio::pin!(gone);
    let cursor = cat.cursor.as_ref();
    let mut ended = reader.go(&options, cursor, stop, gone.as_mut(), out).await;
    while let Err(lost) = &ended
        && reader.link.waits
        && exit::may_pass(lost)
    {
        let back = tokio::select! {
            back = link::back(session, &mut reader.link, lost, stop) => back,
            () = &mut gone => Ok(None),
        };
        ended = match back {
            Ok(Some(client)) => {
                reader.link.client = client;
                reader.go(&options, cursor, stop, gone.as_mut(), out).await
            }
            Ok(None) if stop.is_cancelled() => Ok(Exit::Interrupted),
            Ok(None) => Ok(Exit::Ok),
            Err(error) => Err(error),
        };
    }
    // What was printed counts as read, however it ended.
    let saved = match reader.begun.as_mut().and_then(|begun| begun.position.as_mut()) {
        Some(position) => position.save().await,
        None => Ok(()),
    };
    // The first error is the cause of the second.
    let ended = ended.and_then(|exit| saved.map(|()| exit));
    ended.map(|exit| match all_or_failed(exit, reader.unread + reader.lost.count()) {
        // The filter threw on every frame, so that nothing was printed means nothing.
        Exit::Ok if reader.filter.always_threw() => Exit::Failed,
        exit => exit,
    })
}

/// The exit code of a successful read that could not read some frames.
pub(super) const fn all_or_failed(exit: Exit, unread: u64) -> Exit {
    match exit {
        Exit::Ok if unread > 0 => Exit::Failed,
        exit => exit,
    }
}

/// Prints the frames of a subscription.
struct Reader<'a> {
    link: Link,
    wanted: &'a BodyArgs,
    filter: Filter,
    /// `None` until it is known where to begin.
    begun: Option<Begun>,
    /// Number of unreadable frames.
    unread: u64,
    /// Frames whose body cannot be read.
    lost: Lost,
    /// Something was printed.
    printed: bool,
}

impl Reader<'_> {
    /// Begins to read, or continues over another connection.
    async fn go(
        &mut self,
        wanted: &ReadOptions,
        cursor: Option<&CursorName>,
        stop: &CancellationToken,
        gone: Pin<&mut impl Future<Output = ()>>,
        out: &mut Output,
    ) -> anyhow::Result<Exit> {
        let (is_back, mut begun) = match self.begun.take() {
            Some(begun) => (true, begun),
            None => {
                let begun = self.link.begin(wanted, cursor, &mut self.filter).await?;
                let text = beyond(begun.options.start, self.link.client.server().head);
                if let Some(text) = text.filter(|_| self.link.point.is_none()) {
                    notice(&text);
                }
                (false, begun)
            }
        };
        let ended = async {
            if let Some(position) = begun.position.as_mut().filter(|_| is_back) {
                position.go_on(&self.link.client).await?;
            }
            self.print_events(&mut begun, stop, gone, out).await
        };
        let ended = ended.await;
        self.begun = Some(begun);
        ended
    }

    async fn subscribe(
        &self,
        options: &ReadOptions,
        is_person: bool,
    ) -> anyhow::Result<Subscription> {
        let bodies_up_to = match (self.wanted.wanted(), is_person) {
            (true, _) => BODY_WITH_FRAME_MAX,
            (false, true) => PREVIEW_BYTES.max(self.filter.bodies_up_to()),
            (false, false) => self.filter.bodies_up_to(),
        };
        let how = SubscribeOptions { bodies_up_to, ..SubscribeOptions::default() };
        self.link.subscribe(options, how).await
    }

    async fn print_events(
        &mut self,
        begun: &mut Begun,
        stop: &CancellationToken,
        mut gone: Pin<&mut impl Future<Output = ()>>,
        out: &mut Output,
    ) -> anyhow::Result<Exit> {
        let Begun { options, left, position } = begun;
        if *left == Some(0) {
            return Ok(Exit::Ok);
        }
        let resume = match (&position, &options) {
            _ if self.link.waits => Resume::Waits,
            (Some(_), _) => Resume::Cursor,
            (None, ReadOptions { reverse: true, .. }) => Resume::Never,
            (None, ReadOptions { follow: true, .. }) => Resume::From("xs cat -f"),
            (None, _) => Resume::From("xs cat"),
        };
        let mut events = self.subscribe(options, out.is_person()).await?;
        loop {
            self.link.reach(events.position());
            let event = tokio::select! {
                event = events.next() => event,
                () = &mut gone => return Ok(Exit::Ok),
                () = stop.cancelled() => return Ok(Exit::Interrupted),
                () = save_is_due(position.as_ref()) => {
                    if let Some(position) = &mut *position {
                        position.save().await?;
                    }
                    continue;
                }
            };
            self.link.heard(event.as_ref());
            match event.transpose().map_err(|error| resume.cut_off(error, events.position()))? {
                None => {
                    if out.is_person() && !self.printed && self.unread == 0 {
                        tell_of_none(&self.link.client, &options.topics).await;
                    }
                    if let (Some(position), Some(offset)) = (position, events.position()) {
                        position.reach(offset);
                    }
                    return Ok(Exit::Ok);
                }
                Some(SubEvent::Frames { frames, .. }) => {
                    let last = self.print_frames(&frames, left, out).await;
                    out.flush()?;
                    let reached = match &last {
                        Ok(Some(last)) => last.offset().map(|offset| offset + 1),
                        Ok(None) => events.position(),
                        // All frames before this point were printed.
                        Err(_) => self.link.point.map(|point| point.offset),
                    };
                    if let (Some(position), Some(reached)) = (&mut *position, reached) {
                        position.reach(reached);
                    }
                    if last?.is_some() {
                        return Ok(Exit::Ok);
                    }
                }
                Some(SubEvent::Gap(gap)) => self.unread += passed_over(gap),
                Some(SubEvent::Dropped { refusal, resume: from }) => {
                    let from = events.position().unwrap_or(from);
                    self.link.reach(Some(from));
                    return Err(resume.dropped(refusal, from));
                }
                Some(SubEvent::CaughtUp { .. } | SubEvent::Pulse) => {}
            }
        }
    }

    /// Prints the frames that pass the filter; returns the last wanted frame, if it is among them.
    async fn print_frames<'f>(
        &mut self,
        frames: &'f [Delivered],
        left: &mut Option<u64>,
        out: &mut Output,
    ) -> anyhow::Result<Option<&'f Frame>> {
        let passed = self.filter.pass(&self.link.client, frames).await?;
        for (delivered, _) in frames.iter().zip(passed).filter(|(_, passed)| *passed) {
            self.print(delivered, out).await?;
            self.link.reach(delivered.frame.offset().map(|offset| offset + 1));
            self.printed = true;
            if let Some(left) = left {
                *left -= 1;
                if *left == 0 {
                    return Ok(Some(&delivered.frame));
                }
            }
        }
        Ok(None)
    }

    async fn print(&mut self, delivered: &Delivered, out: &mut Output) -> anyhow::Result<()> {
        let Delivered { frame, body } = delivered;
        // The body may have been delivered for the filter only.
        match body.as_ref().filter(|_| self.wanted.wanted() || out.is_person()) {
            Some(body) if self.wanted.only => {
                if out.body_begin(body)? {
                    out.body_end(body.last().copied())?;
                }
                Ok(())
            }
            Some(body) => Ok(out.frame(frame, Some(body))?),
            None => {
                bodies::print_among(&self.link.client, frame, self.wanted, &mut self.lost, out)
                    .await
            }
        }
    }
}

/// The notice for a start at which nothing is stored yet.
fn beyond(start: Start, head: u64) -> Option<String> {
    let (is_beyond, which) = match start {
        Start::From(Bound::Offset(offset)) => (offset > head, format!("from {offset} on")),
        Start::After(Bound::Offset(offset)) => (offset >= head, format!("after {offset}")),
        _ => return None,
    };
    is_beyond.then(|| format!("nothing stored {which} yet: the next offset is {head}"))
}

/// Tells a person that nothing matched.
async fn tell_of_none(client: &Client, topics: &TopicPatterns) {
    let meant = likely(client, topics).await;
    let hint = meant.map_or_else(String::new, |name| format!("; did you mean {name}?"));
    notice(&format!("no matching frames in {topics}{hint}"));
}

/// The topic that was most likely meant by one that does not exist.
async fn likely(client: &Client, topics: &TopicPatterns) -> Option<String> {
    let typed = topics.to_string();
    let typed = Topic::parse(&typed).ok()?;
    // A mere courtesy, not worth a wait where there are a million topics.
    let all = tokio::time::timeout(LOOK_FOR_LIKELY, client.topics(&TopicPatterns::all()));
    let all = all.await.ok()?.ok()?;
    let mut names = all.iter().map(|one| one.topic.as_str());
    if names.clone().any(|name| name == typed.as_str()) {
        return None;
    }
    nearest(typed.as_str(), &mut names).map(str::to_owned)
}

/// Resolves when the position is due to be saved; never if there is none or it has not moved.
async fn save_is_due(position: Option<&Position>) {
    match position.and_then(Position::due) {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// Reports frames that a reader misses; returns how many of them cannot be read.
pub(super) fn passed_over(gap: Gap) -> u64 {
    notice(&describe(gap));
    match gap {
        Gap::Corrupt { from, to } => to.saturating_sub(from),
        Gap::Ephemeral { .. } | Gap::Conflated { .. } => 0,
    }
}

fn describe(gap: Gap) -> String {
    match gap {
        Gap::Corrupt { from, to } => format!("{} cannot be read: skipped", frames(from, to)),
        Gap::Ephemeral { count } => {
            format!("{count} ephemeral frames came too fast and were skipped")
        }
        Gap::Conflated { from, to } => {
            format!("of the {} only the newest of each topic follow", frames(from, to))
        }
    }
}

/// The frames in a half-open range, by the first and the last.
fn frames(from: u64, to: u64) -> String {
    match to.saturating_sub(1) {
        last if last <= from => format!("frame {from}"),
        last => format!("frames {from} to {last}"),
    }
}

/// Prints frames that were delivered without their bodies.
pub(super) async fn print_all(
    client: &Client,
    frames: &[Frame],
    wanted: &BodyArgs,
    out: &mut Output,
) -> anyhow::Result<u64> {
    let mut lost = Lost::default();
    for frame in frames {
        let printed = bodies::print_among(client, frame, wanted, &mut lost, out).await;
        printed.with_context(|| frame.id().to_string())?;
    }
    Ok(lost.count())
}
