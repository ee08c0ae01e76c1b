//! CALL: appends one frame `<name>.call`, then delivers every frame with which the command answers
//! it, up to `<name>.complete` or `<name>.error`. The Host runs the command; this module only uses
//! the log.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant;
use xs_engine::{
    Batch, Body, Bound, Follower, FollowerEvent, Frame, FrameId, Meta, NewFrame, ReadOptions,
    Start, Topic, TopicPattern, TopicPatterns, Ttl,
};
use xs_protocol::limits::CALL_CANCEL_MS;
use xs_protocol::{CallRequest, Called, Code, Feed, Pulled, Refusal, Wake};
use xs_runtime::host::lifecycle::{Event, Key, Lifecycle};
use xs_runtime::{Kind, ProcessorName, Request};

use super::hooks::Hook;
use super::refuse;
use super::service::Core;
use crate::clock::now_ms;

/// Frames examined in one pull: all frames after the call pass through here.
const LOOK_MAX: usize = 1024;
/// The events that decide whether a command can be called. As exact topics, because
/// `xs.command.a.*` would also match a command named `a.b`.
const DECIDING: [Event; 7] = [
    Event::Create,
    Event::Term,
    Event::Active,
    Event::Invalid,
    Event::FinOk,
    Event::FinError,
    Event::FinTerm,
];
/// Extra time after the deadline, before the caller gives up on the Host too.
const GRACE: Duration = Duration::from_secs(5);
/// The Host counts a deadline by another clock, in milliseconds.
const CLOCKS_DIFFER: Duration = Duration::from_millis(20);

/// Appends the call and opens the feed of its results.
pub(super) async fn start(
    core: Arc<Core>,
    request: CallRequest,
    wake: Wake,
) -> Result<Called, Refusal> {
    let name = ProcessorName::parse(request.name.as_str())
        .map_err(|error| Refusal::new(Code::InvalidValue, error.to_string()))?;
    let (found, core) = tokio::task::spawn_blocking({
        let name = name.clone();
        move || (look_up(&core, &name), core)
    })
    .await
    .map_err(|error| Refusal::new(Code::Internal, error.to_string()))?;
    let ttl = found?;
    let id = append_call(&core, &name, &request, ttl).await?;
    let options = ReadOptions {
        topics: TopicPatterns::everything(),
        start: Start::After(Bound::Id(id)),
        follow: true,
        ..ReadOptions::default()
    };
    let hook = core.hooks.add(&core.store, Arc::clone(&wake));
    let follower = core.store.follow(&options).map_err(|error| refuse::read(&error))?;
    let give_up = request.deadline.map(|deadline| {
        let at = Instant::now() + deadline + GRACE;
        let timer = tokio::spawn(async move {
            tokio::time::sleep_until(at).await;
            wake();
        });
        (at, timer.abort_handle())
    });
    let feed = CallFeed {
        core,
        name,
        id,
        version: None,
        follower,
        _hook: hook,
        give_up,
        ended: false,
        expired: false,
    };
    Ok(Called { id, feed: Box::new(feed) })
}

/// Checks that, according to the log, the command runs, or will once the Host is there. Returns how
/// long its calls are kept.
fn look_up(core: &Core, name: &ProcessorName) -> Result<Ttl, Refusal> {
    let topics = DECIDING.map(|event| TopicPattern::Exact(command_topic(name, event)));
    let topics = TopicPatterns::new(topics.to_vec())?;
    let frames = core.store.last_per_topic(&topics).map_err(|error| refuse::read(&error))?;
    let mut lifecycle = Lifecycle::default();
    for frame in &frames {
        lifecycle.apply(frame);
    }
    let key = Key { kind: Kind::Command, name: name.clone() };
    let runs = lifecycle.get(&key).is_some_and(|slots| {
        // A command that waits for a place runs once there is one.
        slots.wants_to_run() && (!slots.is_down() || slots.waits().is_some())
    });
    if runs {
        let active = command_topic(name, Event::Active);
        let active = frames.iter().find(|frame| frame.topic() == active.as_str());
        return Ok(active.map_or(Ttl::Forever, kept));
    }
    let text = if frames.is_empty() {
        format!("no command {name}; xs modules list shows all modules")
    } else {
        format!("command {name} is not running; xs modules show {name} says why")
    };
    Err(Refusal::new(Code::UnknownCommand, text))
}

/// How long the calls of a command are kept, from its `active` frame.
fn kept(active: &Frame) -> Ttl {
    let meta: Value = serde_json::from_slice(active.meta()).unwrap_or_default();
    let ttl = meta["calls_ttl"].as_str().and_then(|text| Ttl::parse(text).ok());
    // With any other ttl, a call could be removed before its turn.
    ttl.filter(|ttl| matches!(ttl, Ttl::TimeMs(_))).unwrap_or_default()
}

async fn append_call(
    core: &Core,
    name: &ProcessorName,
    request: &CallRequest,
    ttl: Ttl,
) -> Result<FrameId, Refusal> {
    let args = match std::str::from_utf8(request.args.as_bytes()) {
        Ok(text) if !text.is_empty() => text,
        _ => "{}",
    };
    let deadline = request.deadline.map(|deadline| {
        let at = Duration::from_millis(now_ms()) + deadline;
        format!(",\"deadline\":{}", at.as_millis())
    });
    let meta = format!("{{\"args\":{args}{}}}", deadline.unwrap_or_default());
    let frame = NewFrame {
        meta: Meta::parse(meta)?,
        ttl,
        origin: request.origin,
        body: if request.body.is_empty() { Body::None } else { Body::Inline(request.body.clone()) },
        ..NewFrame::new(name.topic("call"))
    };
    let (done, appended) = oneshot::channel();
    core.submit(Batch::from(frame), move |result| {
        // The caller may have disconnected; the call is in the log all the same.
        let _ = done.send(result);
    });
    core.commit();
    let appended = appended
        .await
        .map_err(|_| Refusal::new(Code::Closed, "the store was closed before the call was stored"))?
        .map_err(|error| refuse::append(&error))?;
    appended
        .frames
        .first()
        .map(|stamp| stamp.id)
        .ok_or_else(|| Refusal::new(Code::Internal, "the call got no id"))
}

fn command_topic(name: &ProcessorName, event: Event) -> Topic {
    name.event_topic(Kind::Command, event)
}

/// As the connection says it, whose timer may be first.
fn passed() -> Refusal {
    Refusal::new(Code::DeadlinePassed, "the call's deadline has passed")
}

/// The results of one call.
struct CallFeed {
    core: Arc<Core>,
    name: ProcessorName,
    id: FrameId,
    /// The version that answers, once known.
    version: Option<FrameId>,
    follower: Follower,
    _hook: Arc<Hook>,
    /// When the call ends though the Host has not ended it: [`GRACE`] after its deadline.
    give_up: Option<(Instant, tokio::task::AbortHandle)>,
    ended: bool,
    /// The Host has ended it for its deadline.
    expired: bool,
}

impl CallFeed {
    /// Whether a frame is an answer to the call by any version of the command. A handler that reads
    /// calls also makes frames from it, and the command itself may call others.
    fn answers(&mut self, frame: &Frame) -> Result<bool, Refusal> {
        if frame.topic().ends_with(".call") {
            return Ok(false);
        }
        let Some(origin) = frame.origin().filter(|origin| origin.input == Some(self.id)) else {
            return Ok(false);
        };
        if self.version != Some(origin.processor) {
            let create = self.core.store.get(origin.processor);
            let create = create.map_err(|error| refuse::read(&error))?;
            let topic = command_topic(&self.name, Event::Create);
            if create.is_none_or(|create| create.topic() != topic.as_str()) {
                return Ok(false);
            }
            self.version = Some(origin.processor);
        }
        Ok(true)
    }

    /// Whether a frame that ends the call says that its deadline has passed: the caller is told of
    /// that in one way, whether the Host or the connection notices it first.
    fn is_expiry(&self, frame: &Frame) -> bool {
        let is_over = |(at, _): &(Instant, _)| Instant::now() + GRACE + CLOCKS_DIFFER >= *at;
        self.give_up.as_ref().is_some_and(is_over)
            && frame.topic().ends_with(".error")
            && serde_json::from_slice::<Value>(frame.meta())
                .is_ok_and(|meta| meta["code"] == "timeout")
    }

    /// Whether a frame ends the call.
    fn is_last(&self, frame: &Frame) -> bool {
        let ending = frame.topic().strip_prefix(self.name.as_str());
        matches!(ending, Some(".complete" | ".error"))
    }
}

impl Feed for CallFeed {
    fn pull(&mut self, frames: &mut Vec<Frame>, room: usize) -> Result<Pulled, Refusal> {
        if self.expired {
            return Err(passed());
        }
        if self.ended {
            return Ok(Pulled::End);
        }
        let mut bytes = 0;
        for _ in 0..LOOK_MAX {
            if bytes >= room {
                break;
            }
            match self.follower.try_recv().map_err(|error| refuse::read(&error))? {
                Some(FollowerEvent::Frame(frame)) => {
                    if !self.answers(&frame)? {
                        continue;
                    }
                    bytes += frame.record().len();
                    self.ended = self.is_last(&frame);
                    self.expired = self.ended && self.is_expiry(&frame);
                    if self.expired {
                        // What came before is delivered first.
                        return if frames.is_empty() { Err(passed()) } else { Ok(Pulled::More) };
                    }
                    frames.push(frame);
                    if self.ended {
                        return Ok(Pulled::End);
                    }
                }
                Some(FollowerEvent::CaughtUp { .. } | FollowerEvent::Lost { .. }) => {}
                None => {
                    if self.give_up.as_ref().is_some_and(|(at, _)| Instant::now() >= *at) {
                        return Err(passed());
                    }
                    return Ok(Pulled::Idle);
                }
            }
        }
        Ok(Pulled::More)
    }

    fn scanned_to(&self) -> u64 {
        self.follower.next_offset()
    }
}

impl Drop for CallFeed {
    fn drop(&mut self) {
        if let Some((_, timer)) = &self.give_up {
            timer.abort();
        }
        if self.ended {
            return;
        }
        let Ok(meta) = Meta::parse(format!("{{\"call\":\"{}\"}}", self.id)) else { return };
        let topic = self.name.request_topic(Request::Cancel);
        let cancel = NewFrame { meta, ttl: Ttl::TimeMs(CALL_CANCEL_MS), ..NewFrame::new(topic) };
        let brief = NewFrame { ttl: Ttl::Ephemeral, ..cancel.clone() };
        let (core, runtime) = (Arc::clone(&self.core), Handle::try_current());
        self.core.submit(Batch::from(cancel), move |result| {
            // If there is no space for it, an ephemeral frame still reaches a listening Host. Not
            // appended here: this callback runs while batches are being answered.
            if let (Err(_), Ok(runtime)) = (result, runtime) {
                runtime.spawn(async move {
                    core.submit(Batch::from(brief), |_| ());
                    core.commit();
                });
            }
        });
        self.core.commit();
    }
}
