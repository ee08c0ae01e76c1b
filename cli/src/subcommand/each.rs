//! `each`: runs a command for every frame. The cursor moves when the command exits with 0, or
//! together with the frame that records a failure; a frame is handled at least once, never skipped.

use std::ffi::OsString;
use std::fmt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{ChildStdin, Command};
use tokio_util::sync::CancellationToken;
use xs_engine::{BlobHash, Body, Frame, Meta, NewFrame, ReadOptions, TopicPatterns};
use xs_protocol::limits::BODY_WITH_FRAME_MAX;
use xs_protocol::{
    Address, AppendRequest, BlobStream, Class, Delivered, SubEvent, SubscribeOptions,
};

use super::bodies;
use super::cat::{all_or_failed, passed_over};
use super::filter::Filter;
use super::link::{self, Begun, Link};
use super::position::{Position, Resume};
use crate::args::EachArgs;
use crate::connect::{Session, explain};
use crate::exit::{self, Exit, ExitError};
use crate::output::{counted, notice};

/// The delay before the first retry; it doubles up to the longest.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(30);
/// How much later this process may see a signal than its commands do: the time to wait for one
/// before an event counts as failed.
const LAG: Duration = Duration::from_millis(20);
/// How long to wait when the command seems to have ended by a signal.
const LAG_OF_SIGNAL: Duration = Duration::from_millis(500);
/// Bytes of frames the server may send ahead: commands are slow, and frames waiting here are read
/// again by the next run anyway.
const CREDIT: u32 = 256 * 1024;

pub(super) async fn run(
    session: &Session,
    each: &EachArgs,
    stop: &CancellationToken,
) -> anyhow::Result<Exit> {
    check_park(each)?;
    let filter = Filter::start(&each.filter).await?;
    let waits = each.reconnect;
    let link = Link::new(&session.client, waits);
    let mut runner = Runner {
        link,
        address: &session.address,
        each,
        stop,
        filter,
        options: None,
        left: None,
        unread: 0,
    };
    let mut position = None;
    let mut ended = runner.go(&mut position).await;
    while let Err(lost) = &ended
        && waits
        && exit::may_pass(lost)
    {
        ended = match link::back(session, &mut runner.link, lost, stop).await {
            Ok(Some(client)) => {
                runner.link.client = client;
                runner.go(&mut position).await
            }
            Ok(None) => Ok(Exit::Interrupted),
            Err(error) => Err(error),
        };
    }
    ended
}

/// Refuses a parking topic that is also read.
fn check_park(each: &EachArgs) -> anyhow::Result<()> {
    if let Some(park) = &each.park
        && !each.patterns.is_empty()
        && each.patterns.or(TopicPatterns::all())?.matches(park.as_str())
    {
        let text =
            format!("{park} is one of the topics being read, so parked events would be read again");
        return ExitError::fail(Exit::Usage, text);
    }
    Ok(())
}

async fn save(position: &mut Option<Position>) -> anyhow::Result<()> {
    match position {
        Some(position) => position.save().await,
        None => Ok(()),
    }
}

/// State shared by all frames.
struct Runner<'a> {
    link: Link,
    address: &'a Address,
    each: &'a EachArgs,
    stop: &'a CancellationToken,
    filter: Filter,
    /// The read; `None` until it is known where to begin.
    options: Option<ReadOptions>,
    /// How many more frames to handle, when they are counted here.
    left: Option<u64>,
    /// Frames that cannot be read.
    unread: u64,
}

impl Runner<'_> {
    /// Begins, or continues over another connection, from the cursor if there is one.
    async fn go(&mut self, position: &mut Option<Position>) -> anyhow::Result<Exit> {
        let Some(options) = self.options.clone() else {
            let options = self.begin(position).await?;
            self.options = Some(options.clone());
            return self.read(&options, position).await;
        };
        if let Some(position) = position {
            let before = position.reached();
            position.go_on(&self.link.client).await?;
            if position.reached() > before {
                // A frame was parked, and the answer was lost.
                self.left = self.left.map(|left| left.saturating_sub(1));
            }
            if let (Some(point), Some(reached)) = (&mut self.link.point, position.reached()) {
                point.offset = reached;
            }
        }
        self.read(&options, position).await
    }

    /// Determines where to begin.
    async fn begin(&mut self, position: &mut Option<Position>) -> anyhow::Result<ReadOptions> {
        let each = self.each;
        let wanted = ReadOptions {
            topics: each.patterns.or(TopicPatterns::all())?,
            start: each.begin.start(),
            limit: each.limit,
            follow: each.follow || each.reconnect || each.begin.new,
            ..ReadOptions::default()
        };
        let begun = self.link.begin(&wanted, each.cursor.as_ref(), &mut self.filter).await?;
        let Begun { mut options, mut left, position: found } = begun;
        if each.park.is_some() && each.patterns.is_empty() {
            // The store would count parked frames, which are among all topics.
            left = left.or_else(|| options.limit.take());
        }
        (self.left, *position) = (left, found);
        Ok(options)
    }

    async fn read(
        &mut self,
        options: &ReadOptions,
        position: &mut Option<Position>,
    ) -> anyhow::Result<Exit> {
        let resume = match self.each.cursor {
            _ if self.link.waits => Resume::Waits,
            Some(_) => Resume::Cursor,
            None => Resume::From("xs each"),
        };
        let how = SubscribeOptions {
            credit: CREDIT,
            bodies_up_to: BODY_WITH_FRAME_MAX,
            ..Default::default()
        };
        let mut events = self.link.subscribe(options, how).await?;
        while self.left != Some(0) {
            self.link.reach(events.position());
            let event = tokio::select! {
                event = events.next() => event,
                () = self.stop.cancelled() => break,
            };
            self.link.heard(event.as_ref());
            match event.transpose().map_err(|error| resume.cut_off(error, events.position()))? {
                None => {
                    if let (Some(position), Some(offset)) = (&mut *position, events.position()) {
                        position.reach(offset);
                    }
                    break;
                }
                Some(SubEvent::Frames { frames, .. }) => {
                    if !self.handle_all(frames, position).await? {
                        break;
                    }
                    if let (Some(position), Some(offset)) = (&mut *position, events.position()) {
                        position.reach(offset);
                    }
                }
                Some(SubEvent::Gap(gap)) => self.unread += passed_over(gap),
                Some(SubEvent::Dropped { refusal, resume: from }) => {
                    let from = events.position().unwrap_or(from);
                    self.link.reach(Some(from));
                    return Err(resume.dropped(refusal, from));
                }
                Some(SubEvent::CaughtUp { .. }) => save(position).await?,
                Some(SubEvent::Pulse) => {}
            }
        }
        self.end(position).await
    }

    /// Handles the frames that pass the filter; returns false when it must stop before all are
    /// handled.
    async fn handle_all(
        &mut self,
        frames: Vec<Delivered>,
        position: &mut Option<Position>,
    ) -> anyhow::Result<bool> {
        let passed = self.filter.pass(&self.link.client, &frames).await?;
        let wanted = frames.into_iter().zip(passed).filter(|(_, passed)| *passed);
        for (delivered, _) in wanted {
            if self.is_parked(&delivered) {
                continue;
            }
            let offset = delivered.frame.offset();
            if self.stop.is_cancelled() {
                return Ok(false);
            }
            let handled = self.handle(delivered, position).await;
            let is_done = match &handled {
                Ok(is_done) => *is_done,
                // If the position is past the frame, the command did its work and only recording
                // that failed.
                Err(_) => {
                    let reached = position.as_ref().and_then(Position::reached);
                    offset.is_some() && reached > offset
                }
            };
            if is_done {
                self.link.reach(offset.map(|offset| offset + 1));
                self.left = self.left.map(|left| left - 1);
            }
            if !handled? || self.left == Some(0) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a frame is on the parking topic. That is among all topics, but the command is not
    /// run for its frames.
    fn is_parked(&self, one: &Delivered) -> bool {
        self.each.park.as_ref().is_some_and(|park| one.frame.topic() == park.as_str())
    }

    async fn end(&self, position: &mut Option<Position>) -> anyhow::Result<Exit> {
        save(position).await?;
        let exit = if self.stop.is_cancelled() { Exit::Interrupted } else { Exit::Ok };
        Ok(all_or_failed(exit, self.unread))
    }

    /// Handles one frame; returns false when it must stop before the frame is handled.
    async fn handle(
        &self,
        delivered: Delivered,
        position: &mut Option<Position>,
    ) -> anyhow::Result<bool> {
        let frame = &delivered.frame;
        let mut wait = RETRY_FIRST;
        let mut attempts = 1;
        let failure = loop {
            let Some(failure) = self.attempt(&delivered).await? else { break None };
            if attempts > self.each.retry {
                break Some(failure);
            }
            let id = frame.id();
            notice(&format!(
                "{id}: {failure}; attempt {attempts}, retrying in {} s",
                wait.as_secs()
            ));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.stop.cancelled() => return Ok(false),
            }
            wait = (wait * 2).min(RETRY_LONGEST);
            attempts += 1;
        };
        if let Some(failure) = &failure
            && self.interrupted_with(failure).await
        {
            return Ok(false);
        }
        let done = failure.is_none() || self.each.park.is_some();
        let before = position.as_ref().and_then(Position::reached);
        if let (true, Some(position), Some(offset)) = (done, position.as_mut(), frame.offset()) {
            position.reach(offset + 1);
        }
        match failure {
            None => save(position).await?,
            Some(failure) => {
                let given_up = self.give_up(frame, &failure, attempts, position).await;
                if let (Err(_), Some(position)) = (&given_up, position) {
                    position.retreat(before);
                }
                given_up?;
            }
        }
        Ok(true)
    }

    /// Waits a moment for the signal that a failure may be due to, and returns whether it came:
    /// Ctrl-C and service managers signal the command too, and this process may see it end before
    /// it sees its own signal. Then the failure is not the frame's fault.
    async fn interrupted_with(&self, failure: &Failure) -> bool {
        let lag = match failure {
            Failure::Exited(status) if status.code().is_none_or(|code| code > 128) => LAG_OF_SIGNAL,
            Failure::Exited(_) => LAG,
            Failure::TimedOut(_) | Failure::Lost(_) => Duration::ZERO,
        };
        tokio::time::timeout(lag, self.stop.cancelled()).await.is_ok()
    }

    /// Runs the command once; returns the failure, if any.
    async fn attempt(&self, delivered: &Delivered) -> anyhow::Result<Option<Failure>> {
        let frame = &delivered.frame;
        let [program, arguments @ ..] = self.each.command.as_slice() else {
            return ExitError::fail(Exit::Usage, "there is no command");
        };
        // Fetched before the command starts, which could not tell a lost body from an empty one.
        let input = match (&delivered.body, frame.hash()) {
            (Some(body), _) => Input::Bytes(body.clone()),
            (None, None) => Input::None,
            (None, Some(hash)) => match bodies::find(&self.link.client, &hash).await? {
                Some(blob) => Input::Blob(blob),
                None => return Ok(Some(Failure::Lost(hash))),
            },
        };
        let mut command = Command::new(program);
        command.args(arguments).envs(environment(frame, self.address)).kill_on_drop(true);
        command.stdin(if matches!(input, Input::None) { Stdio::null() } else { Stdio::piped() });
        let mut child =
            command.spawn().with_context(|| format!("cannot run {}", program.to_string_lossy()))?;
        let mut stdin = child.stdin.take();
        let give = async {
            if let Some(to) = &mut stdin {
                feed(to, input).await?;
            }
            // Closes the input after a complete body; a lost one gets no end.
            stdin = None;
            Ok(())
        };
        let wait = async { child.wait().await.map_err(|error| Cut::Failed(error.into())) };
        let run = async { tokio::try_join!(give, wait).map(|((), status)| status) };
        let ended = match self.each.timeout {
            None => Some(run.await),
            Some(limit) => tokio::time::timeout(limit, run).await.ok(),
        };
        let failure = match (ended, self.each.timeout, frame.hash()) {
            (Some(Ok(status)), ..) => {
                return Ok((!status.success()).then_some(Failure::Exited(status)));
            }
            (Some(Err(Cut::Failed(error))), ..) => return Err(error),
            (Some(Err(Cut::Lost)), _, Some(hash)) => Failure::Lost(hash),
            (_, limit, _) => Failure::TimedOut(limit.unwrap_or_default()),
        };
        child.kill().await.context("cannot kill the command")?;
        Ok(Some(failure))
    }

    /// Parks the frame, or fails.
    async fn give_up(
        &self,
        frame: &Frame,
        failure: &Failure,
        attempts: u64,
        position: &mut Option<Position>,
    ) -> anyhow::Result<()> {
        let id = frame.id();
        let Some(topic) = &self.each.park else {
            let next = match (&self.each.cursor, frame.offset()) {
                (Some(name), Some(offset)) => {
                    format!(
                        "; the next run starts with it; xs cursor set {name} {} skips it",
                        offset + 1
                    )
                }
                _ => String::new(),
            };
            return ExitError::fail(Exit::Failed, format!("{id}: {failure}{next}"));
        };
        let meta = json!({
            "input": id.to_string(),
            "topic": frame.topic(),
            "error": failure.to_string(),
            "attempts": attempts,
        });
        let parked = NewFrame {
            meta: Meta::parse(meta.to_string())?,
            body: match (failure, frame.hash()) {
                (Failure::Lost(_), _) | (_, None) => Body::None,
                (_, Some(hash)) => Body::Stored(hash),
            },
            ..NewFrame::new(topic.clone())
        };
        let change = position.as_mut().and_then(Position::change);
        let request = AppendRequest {
            cursors: change.into_iter().collect(),
            ..AppendRequest::frames(vec![parked])
        };
        let appended = match self.link.client.append(&request).await {
            Ok(appended) => appended,
            Err(error) if error.class() == Class::Condition => {
                let text = position.as_ref().map_or_else(|| error.to_string(), Position::in_use);
                return ExitError::fail(Exit::Condition, text);
            }
            Err(error) => return Err(explain(error)),
        };
        if let (Some(position), Some(revision)) = (position, appended.cursors.first()) {
            position.changed(*revision);
        }
        let tries = counted(attempts, "attempt");
        notice(&format!("{id}: {failure}; parked in {topic} after {tries}"));
        Ok(())
    }
}

/// A command's standard input.
enum Input {
    None,
    Bytes(Bytes),
    Blob(BlobStream),
}

/// Why the input was cut off.
enum Cut {
    Lost,
    Failed(anyhow::Error),
}

/// Writes to a command, which need not read it: one that ends early is judged by its exit code.
async fn feed(to: &mut ChildStdin, input: Input) -> Result<(), Cut> {
    match input {
        Input::None => {}
        Input::Bytes(body) => {
            let _ = to.write_all(&body).await;
        }
        Input::Blob(mut blob) => {
            while let Some(chunk) = blob.chunk().await {
                let chunk = match chunk {
                    Ok(chunk) => chunk,
                    Err(error) if bodies::is_damage(&error) => return Err(Cut::Lost),
                    Err(error) => return Err(Cut::Failed(explain(error))),
                };
                if to.write_all(&chunk).await.is_err() {
                    break;
                }
            }
        }
    }
    Ok(())
}

/// Why a frame was not handled.
enum Failure {
    Exited(ExitStatus),
    TimedOut(Duration),
    /// The body of the frame is lost.
    Lost(BlobHash),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => match status.code() {
                Some(code) => write!(f, "the command exited with {code}"),
                None => write!(f, "the command was killed: {status}"),
            },
            Self::TimedOut(limit) => write!(f, "the command took longer than {limit:?}"),
            Self::Lost(hash) => write!(f, "its body {hash} is lost or damaged"),
        }
    }
}

/// The address in absolute form, for a command that may change its directory.
fn absolute(address: &Address) -> OsString {
    match address {
        Address::Unix(socket) => match std::path::absolute(socket) {
            Ok(socket) => socket.into(),
            Err(_) => socket.into(),
        },
        other => other.to_string().into(),
    }
}

/// The environment variables that describe the frame.
fn environment(frame: &Frame, address: &Address) -> Vec<(&'static str, OsString)> {
    let meta: &[u8] = if frame.meta().is_empty() { b"{}" } else { frame.meta() };
    vec![
        ("XS_ID", frame.id().to_string().into()),
        ("XS_TOPIC", frame.topic().into()),
        ("XS_META", String::from_utf8_lossy(meta).into_owned().into()),
        ("XS_OFFSET", frame.offset().map(|offset| offset.to_string()).unwrap_or_default().into()),
        ("XS_HASH", frame.hash().map(|hash| hash.to_string()).unwrap_or_default().into()),
        ("XS_ADDR", absolute(address)),
    ]
}
