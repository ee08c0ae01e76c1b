//! `cat` and `tail`: prints stored frames, then new ones as they arrive.

use anyhow::Context as _;
use jiff::Zoned;
use tokio_util::sync::CancellationToken;
use xs_engine::{Bound, Frame, ReadOptions, Start};
use xs_protocol::limits::BODY_WITH_FRAME_MAX;
use xs_protocol::{Client, Delivered, Gap, SubEvent, SubscribeOptions};

use super::bodies;
use super::filter::Filter;
use super::position::{Position, Resume};
use crate::args::{BodyArgs, CatArgs};
use crate::connect::explain;
use crate::exit::{Exit, Fault};
use crate::output::{Output, notice, reader_gone};

/// Bytes of a body whose beginning a person is shown.
const PREVIEW_BYTES: u32 = 4 * 1024;

pub(super) async fn run(
    client: &Client,
    cat: &CatArgs,
    stop: &CancellationToken,
    out: &mut Output,
) -> anyhow::Result<Exit> {
    out.use_template(cat.body.format.as_ref());
    let mut options = cat.options(&Zoned::now()).map_err(|text| Fault::new(Exit::Usage, text))?;
    let mut filter = Filter::start(&cat.filter).await?;
    let mut position = match &cat.cursor {
        Some(name) => Some(Position::open(client, name).await?),
        None => None,
    };
    if let Some(offset) = position.as_ref().and_then(Position::offset) {
        options.start = Start::From(Bound::Offset(offset));
    }
    let left = filter.widen(client, &mut options).await?;
    let mut reader = Reader { client, wanted: &cat.body, filter, left, unread: 0, printed: false };
    let ended = reader.print_events(&options, position.as_mut(), stop, out).await;
    // What was printed counts as read, however the read ended.
    let saved = match &mut position {
        Some(position) => position.save().await,
        None => Ok(()),
    };
    // The first error is the cause of the second.
    let ended = ended.and_then(|exit| saved.map(|()| exit));
    ended.map(|exit| match all_or_failed(exit, reader.unread) {
        // Nothing was printed, but not for lack of frames.
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
    client: &'a Client,
    wanted: &'a BodyArgs,
    filter: Filter,
    /// How many more frames to print, when that is counted here.
    left: Option<u64>,
    /// Number of unreadable frames.
    unread: u64,
    /// Whether anything was printed.
    printed: bool,
}

impl Reader<'_> {
    async fn print_events(
        &mut self,
        options: &ReadOptions,
        mut position: Option<&mut Position<'_>>,
        stop: &CancellationToken,
        out: &mut Output,
    ) -> anyhow::Result<Exit> {
        let bodies_up_to = match (self.wanted.wanted(), out.is_person()) {
            (true, _) => BODY_WITH_FRAME_MAX,
            (false, true) => PREVIEW_BYTES.max(self.filter.bodies_up_to()),
            (false, false) => self.filter.bodies_up_to(),
        };
        let how = SubscribeOptions { bodies_up_to, ..SubscribeOptions::default() };
        if self.left == Some(0) {
            return Ok(Exit::Ok);
        }
        let mut events = self.client.subscribe(options, how).await.map_err(explain)?;
        let resume = match (&position, options) {
            (Some(_), _) => Resume::Cursor,
            (None, ReadOptions { reverse: true, .. }) => Resume::Never,
            (None, ReadOptions { follow: true, .. }) => Resume::From("xs cat -f"),
            (None, _) => Resume::From("xs cat"),
        };
        let gone = reader_gone();
        tokio::pin!(gone);
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = &mut gone => return Ok(Exit::Ok),
                () = stop.cancelled() => return Ok(Exit::Interrupted),
                () = save_is_due(position.as_deref()) => {
                    if let Some(position) = &mut position {
                        position.save().await?;
                    }
                    continue;
                }
            };
            match event.transpose().map_err(|error| resume.cut_off(error, events.position()))? {
                None => {
                    if out.is_person() && !self.printed && self.unread == 0 {
                        notice(&format!("no frame in {} that was asked for", options.topics));
                    }
                    if let (Some(position), Some(offset)) = (position, events.position()) {
                        position.reach(offset);
                    }
                    return Ok(Exit::Ok);
                }
                Some(SubEvent::Frames { frames, .. }) => {
                    let last = self.print_frames(&frames, out).await?;
                    out.flush()?;
                    let reached = match last {
                        Some(last) => last.offset().map(|offset| offset + 1),
                        None => events.position(),
                    };
                    if let (Some(position), Some(reached)) = (&mut position, reached) {
                        position.reach(reached);
                    }
                    if last.is_some() {
                        return Ok(Exit::Ok);
                    }
                }
                Some(SubEvent::Gap(gap)) => self.unread += passed_over(gap),
                Some(SubEvent::Dropped { refusal, .. }) => {
                    let text = refusal.message + &resume.advice(events.position());
                    return Fault::fail(Exit::Unreachable, text);
                }
                Some(SubEvent::CaughtUp { .. } | SubEvent::Pulse) => {}
            }
        }
    }

    /// Prints the frames that pass the filter; returns the last wanted frame, if it is among them.
    async fn print_frames<'f>(
        &mut self,
        frames: &'f [Delivered],
        out: &mut Output,
    ) -> anyhow::Result<Option<&'f Frame>> {
        let passed = self.filter.pass(self.client, frames).await?;
        for (delivered, _) in frames.iter().zip(passed).filter(|(_, passed)| *passed) {
            print(self.client, delivered, self.wanted, out).await?;
            self.printed = true;
            if let Some(left) = &mut self.left {
                *left -= 1;
                if *left == 0 {
                    return Ok(Some(&delivered.frame));
                }
            }
        }
        Ok(None)
    }
}

/// Resolves when the position must be saved; never when there is none or it did not move.
async fn save_is_due(position: Option<&Position<'_>>) {
    match position.and_then(Position::due) {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

async fn print(
    client: &Client,
    delivered: &Delivered,
    wanted: &BodyArgs,
    out: &mut Output,
) -> anyhow::Result<()> {
    let Delivered { frame, body } = delivered;
    // The body may have been delivered only for the filter.
    match body.as_ref().filter(|_| wanted.wanted() || out.is_person()) {
        Some(body) if wanted.only => {
            if out.body_begin(body)? {
                out.body_end(body.last().copied())?;
            }
        }
        Some(body) => out.frame(frame, Some(body))?,
        None => bodies::print(client, frame, wanted, out).await?,
    }
    Ok(())
}

/// Reports frames that are missing from a read; returns how many of them are unreadable.
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
        Gap::Ephemeral { count } => format!("{count} ephemeral frames came too fast: skipped"),
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
) -> anyhow::Result<()> {
    for frame in frames {
        bodies::print(client, frame, wanted, out).await.with_context(|| frame.id().to_string())?;
    }
    Ok(())
}
