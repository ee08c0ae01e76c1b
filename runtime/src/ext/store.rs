//! Ops that read and write the store through the Backend.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use deno_core::convert::Uint8Array;
use deno_core::{JsBuffer, OpState, op2};
use deno_error::JsErrorBox;
use futures::future::LocalBoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::oneshot;
use xs_engine::{
    BlobHash, Body, Bound, Condition, Frame, FrameId, IdempotencyKey, ReadOptions, Start,
    TopicPatterns,
};

use super::bridge::{Bridge, bridge, type_error};
use super::frames;
use super::outputs::{inline, stored};
use super::streams::Source;
use crate::isolate::limits::{LOG_CHARS_MAX, READ_BYTES_MAX, UNAWAITED_FRAMES_MAX};
use crate::isolate::{Backend, BackendCode, BackendError, CallRequest, FrameStream, LogLevel};

/// Maximum number of frames handed to JavaScript at once.
const FRAMES_MAX: usize = 256;

fn refused(error: BackendError) -> JsErrorBox {
    JsErrorBox::generic(error.message)
}

/// The options of `ctx.read()`, as JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadRequest {
    topics: Option<String>,
    from: Option<BoundArg>,
    after: Option<BoundArg>,
    before: Option<BoundArg>,
    since: Option<f64>,
    until: Option<f64>,
    last: Option<u64>,
    limit: Option<u64>,
    #[serde(default)]
    reverse: bool,
    #[serde(default)]
    follow: bool,
    #[serde(default)]
    new: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum BoundArg {
    Offset(u64),
    Id(String),
}

impl BoundArg {
    fn bound(self) -> Result<Bound, JsErrorBox> {
        Ok(match self {
            Self::Offset(offset) => Bound::Offset(offset),
            Self::Id(id) => Bound::Id(FrameId::parse(&id).map_err(type_error)?),
        })
    }
}

impl ReadRequest {
    fn options(self) -> Result<ReadOptions, JsErrorBox> {
        let start = match (self.from, self.after, self.last, self.new) {
            (None, None, None, false) => Start::First,
            (Some(from), None, None, false) => Start::From(from.bound()?),
            (None, Some(after), None, false) => Start::After(after.bound()?),
            (None, None, Some(last), false) => Start::Last(last),
            (None, None, None, true) => Start::New,
            _ => {
                return Err(JsErrorBox::type_error(
                    "read() takes one of from, after, last and new",
                ));
            }
        };
        if self.reverse && self.follow {
            return Err(JsErrorBox::type_error("read() cannot follow in reverse"));
        }
        // Times before 1970 or after the last id saturate, which selects what was meant.
        let time = |ms: Option<f64>| ms.map(|ms| ms as u64);
        Ok(ReadOptions {
            topics: self.topics.as_deref().map_or(Ok(TopicPatterns::all()), topics)?,
            start,
            before: self.before.map(BoundArg::bound).transpose()?,
            since_ms: time(self.since),
            until_ms: time(self.until),
            limit: self.limit,
            reverse: self.reverse,
            follow: self.follow || self.new,
        })
    }
}

fn topics(text: &str) -> Result<TopicPatterns, JsErrorBox> {
    TopicPatterns::parse(text).map_err(type_error)
}

/// The frames of a backend stream; those that are ready go together into one text.
struct Frames {
    bridge: Rc<Bridge>,
    stream: FrameStream,
    failed: Option<JsErrorBox>,
}

impl Source<String> for Frames {
    fn next(&mut self) -> LocalBoxFuture<'_, Result<Option<String>, JsErrorBox>> {
        async move {
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
            let mut ready: Vec<Frame> = Vec::new();
            let mut next = self.stream.next().await;
            loop {
                match next {
                    Some(Ok(frame)) => ready.push(frame),
                    // Frames before the error are handed over first.
                    Some(Err(error)) => {
                        self.failed = Some(refused(error));
                        break;
                    }
                    None => break,
                }
                if ready.len() >= FRAMES_MAX {
                    break;
                }
                match self.stream.next().now_or_never() {
                    Some(more) => next = more,
                    None => break,
                }
            }
            match (ready.is_empty(), self.failed.take()) {
                (true, Some(error)) => Err(error),
                (true, None) => Ok(None),
                (false, failed) => {
                    self.failed = failed;
                    Ok(Some(frames::encode(ready.iter(), &*self.bridge.backend)))
                }
            }
        }
        .boxed_local()
    }
}

/// Opens a read and returns its stream's number.
#[op2(fast)]
pub(super) fn op_xs_read(
    state: &mut OpState,
    #[string] request: String,
) -> Result<u32, JsErrorBox> {
    let request: ReadRequest = serde_json::from_str(&request)
        .map_err(|error| type_error(format!("read() was called with invalid options: {error}")))?;
    let bridge = Rc::clone(state.borrow::<Rc<Bridge>>());
    let stream = bridge.backend.read(request.options()?);
    let source = Frames { bridge: Rc::clone(&bridge), stream, failed: None };
    bridge.streams.open(Box::new(source))
}

/// Opens a call of another command and returns its stream's number.
#[op2]
pub(super) fn op_xs_call(
    state: &mut OpState,
    #[string] name: String,
    #[string] args: String,
    #[buffer] body: JsBuffer,
    timeout_ms: f64,
    run: u32,
    input: u32,
) -> Result<u32, JsErrorBox> {
    let bridge = Rc::clone(state.borrow::<Rc<Bridge>>());
    let stream = bridge.backend.call(CallRequest {
        origin: bridge.origin_of(run, input as usize),
        name,
        args,
        body: Bytes::copy_from_slice(&body),
        timeout_ms: (timeout_ms >= 0.0).then_some(timeout_ms as u64),
    });
    let source = Frames { bridge: Rc::clone(&bridge), stream, failed: None };
    bridge.streams.open(Box::new(source))
}

/// The next items of a stream; empty at its end.
#[op2]
#[string]
pub(super) async fn op_xs_stream_next(
    state: Rc<RefCell<OpState>>,
    number: u32,
) -> Result<String, JsErrorBox> {
    Ok(bridge(&state).streams.next(number).await?.unwrap_or_default())
}

/// Closes a stream.
#[op2(fast)]
pub(super) fn op_xs_stream_close(state: &mut OpState, number: u32) {
    state.borrow::<Rc<Bridge>>().streams.close(number);
}

fn one(frame: Option<Frame>, backend: &dyn Backend) -> String {
    frame.map(|frame| frames::encode(std::iter::once(&frame), backend)).unwrap_or_default()
}

/// One frame by id; empty when it does not exist.
#[op2]
#[string]
pub(super) async fn op_xs_get(
    state: Rc<RefCell<OpState>>,
    #[string] id: String,
) -> Result<String, JsErrorBox> {
    let backend = bridge(&state).backend.clone();
    let frame = backend.get(FrameId::parse(&id).map_err(type_error)?).await.map_err(refused)?;
    Ok(one(frame, &*backend))
}

/// The newest frame of the topics; empty when there is none.
#[op2]
#[string]
pub(super) async fn op_xs_last(
    state: Rc<RefCell<OpState>>,
    #[string] patterns: String,
) -> Result<String, JsErrorBox> {
    let backend = bridge(&state).backend.clone();
    let frame = backend.last(topics(&patterns)?).await.map_err(refused)?;
    Ok(one(frame, &*backend))
}

/// The newest frame of each of the topics.
#[op2]
#[string]
pub(super) async fn op_xs_last_per_topic(
    state: Rc<RefCell<OpState>>,
    #[string] patterns: String,
) -> Result<String, JsErrorBox> {
    let backend = bridge(&state).backend.clone();
    let frames = backend.last_per_topic(topics(&patterns)?).await.map_err(refused)?;
    Ok(frames::encode(frames.iter(), &*backend))
}

/// Statistics of the topics as JSON.
#[op2]
#[string]
pub(super) async fn op_xs_topics(
    state: Rc<RefCell<OpState>>,
    #[string] patterns: String,
) -> Result<String, JsErrorBox> {
    let backend = bridge(&state).backend.clone();
    let infos = backend.topics(topics(&patterns)?).await.map_err(refused)?;
    let shown = infos.into_iter().map(|info| {
        json!({
            "topic": info.topic, "count": info.count, "bytes": info.bytes,
            "first": info.first.to_string(), "last": info.last.to_string(),
        })
    });
    Ok(serde_json::Value::Array(shown.collect()).to_string())
}

async fn append(
    bridge: Rc<Bridge>,
    run: u32,
    topic: String,
    meta: String,
    ttl: String,
    body: Body,
) -> Result<String, JsErrorBox> {
    let stored = {
        let mut runs = bridge.runs.borrow_mut();
        let Some(run) = runs.get_mut(&run).filter(|run| !run.is_cut()) else {
            return Err(JsErrorBox::generic("this run has ended and can append nothing more"));
        };
        if run.outbox.is_flooded() {
            return Err(JsErrorBox::range_error(format!(
                "{UNAWAITED_FRAMES_MAX} frames are on their way to the store; await ctx.append()"
            )));
        }
        // An earlier loss is reported to the next append, which does not go past it.
        if let Some(loss) = run.outbox.take_loss() {
            return Err(refused(loss));
        }
        let frame = bridge.frame(&topic, meta, &ttl, body, run.origin)?;
        let (stored, answer) = oneshot::channel();
        run.outbox.push(frame, Some(stored));
        run.results += 1;
        answer
    };
    match stored.await {
        Ok(Ok(frame)) => Ok(one(Some(frame), &*bridge.backend)),
        Ok(Err(error)) => Err(refused(error)),
        Err(_) => Err(JsErrorBox::generic("the run ended before the frame was stored")),
    }
}

/// Appends at once and returns the stored frame.
#[op2]
#[string]
pub(super) async fn op_xs_append(
    state: Rc<RefCell<OpState>>,
    run: u32,
    #[string] topic: String,
    #[string] meta: String,
    #[string] ttl: String,
    #[string] body: String,
) -> Result<String, JsErrorBox> {
    append(bridge(&state), run, topic, meta, ttl, inline(body)).await
}

/// Appends a frame with a body of bytes; otherwise like `op_xs_append`.
#[op2]
#[string]
pub(super) async fn op_xs_append_bytes(
    state: Rc<RefCell<OpState>>,
    run: u32,
    #[string] topic: String,
    #[string] meta: String,
    #[string] ttl: String,
    #[buffer] body: JsBuffer,
) -> Result<String, JsErrorBox> {
    append(bridge(&state), run, topic, meta, ttl, inline(Bytes::copy_from_slice(&body))).await
}

/// Appends a frame with a body that is already in the store; otherwise like `op_xs_append`.
#[op2]
#[string]
pub(super) async fn op_xs_append_stored(
    state: Rc<RefCell<OpState>>,
    run: u32,
    #[string] topic: String,
    #[string] meta: String,
    #[string] ttl: String,
    #[string] hash: String,
) -> Result<String, JsErrorBox> {
    append(bridge(&state), run, topic, meta, ttl, stored(&hash)?).await
}

/// The condition and the idempotency key of an append.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Terms {
    expect: Option<Expect>,
    key: Option<String>,
}

/// What an append expects of the log.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expect {
    last: BoundArg,
    of: Option<String>,
}

impl Expect {
    /// The condition. An id is resolved to the offset of its frame.
    async fn condition(self, bridge: &Bridge, topic: &str) -> Result<Condition, JsErrorBox> {
        let topics = topics(self.of.as_deref().unwrap_or(topic))?;
        let offset = match self.last {
            BoundArg::Id(none) if none == "none" => return Ok(Condition::Empty(topics)),
            BoundArg::Offset(offset) => offset,
            BoundArg::Id(id) => {
                let parsed = FrameId::parse(&id).map_err(type_error)?;
                let frame = bridge.backend.get(parsed).await.map_err(refused)?;
                let offset = frame.and_then(|frame| frame.offset());
                let missing = || type_error(format!("expect: no stored frame has the id {id}"));
                offset.ok_or_else(missing)?
            }
        };
        Ok(Condition::LastAtMost { topics, offset })
    }
}

/// Appends a frame on terms, given as JSON. The body must already be in the store; an empty hash
/// means none. A failed condition is returned after a `!`.
#[op2]
#[string]
pub(super) async fn op_xs_append_if(
    state: Rc<RefCell<OpState>>,
    run: u32,
    #[string] topic: String,
    #[string] meta: String,
    #[string] ttl: String,
    #[string] hash: String,
    #[string] terms: String,
) -> Result<String, JsErrorBox> {
    let bridge = bridge(&state);
    let known = {
        let runs = bridge.runs.borrow();
        let open = runs.get(&run).filter(|run| !run.is_cut());
        open.map(|run| (Rc::clone(&run.outbox), run.origin))
    };
    let Some((outbox, origin)) = known else {
        let text = "this run has ended and can append nothing more";
        return Err(JsErrorBox::generic(text));
    };
    let body = if hash.is_empty() { Body::None } else { stored(&hash)? };
    let frame = bridge.frame(&topic, meta, &ttl, body, origin)?;
    let Terms { expect, key } = serde_json::from_str(&terms)
        .map_err(|_| type_error("expect is { last: \"none\" | offset | id, of?: topics }"))?;
    let conditions = match expect {
        Some(expect) => vec![expect.condition(&bridge, &topic).await?],
        None => Vec::new(),
    };
    let key = key.map(|key| IdempotencyKey::parse(&key)).transpose().map_err(type_error)?;
    // Earlier output is stored first.
    outbox.stored().await.map_err(refused)?;
    match bridge.backend.append_if(vec![frame], conditions, key).await {
        Ok(frames) => Ok(one(frames.into_iter().next(), &*bridge.backend)),
        Err(error) if error.code == BackendCode::Conflict => Ok(format!("!{}", error.message)),
        Err(error) => Err(refused(error)),
    }
}

/// Stores a blob and returns its hash.
#[op2]
#[string]
pub(super) async fn op_xs_blob_put(
    state: Rc<RefCell<OpState>>,
    #[buffer] bytes: JsBuffer,
) -> Result<String, JsErrorBox> {
    let backend = bridge(&state).backend.clone();
    let hash = backend.blob_put(Bytes::copy_from_slice(&bytes)).await.map_err(refused)?;
    Ok(hash.to_string())
}

async fn blob(bridge: Rc<Bridge>, hash: &str) -> Result<Bytes, JsErrorBox> {
    let parsed = BlobHash::parse(hash).map_err(type_error)?;
    if let Some(bytes) = bridge.body_at_hand(parsed) {
        return Ok(bytes);
    }
    let found = bridge.backend.blob_get(parsed, READ_BYTES_MAX).await.map_err(refused)?;
    found.ok_or_else(|| JsErrorBox::generic(format!("the store has no blob {hash}")))
}

/// A body that was delivered with its frame, as text.
#[op2]
#[string]
pub(super) fn op_xs_body_now(state: &mut OpState, #[string] hash: String) -> Option<String> {
    let hash = BlobHash::parse(&hash).ok()?;
    let bytes = state.borrow::<Rc<Bridge>>().body_at_hand(hash)?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// A blob as text; bytes that are not UTF-8 become U+FFFD.
#[op2]
#[string]
pub(super) async fn op_xs_blob_text(
    state: Rc<RefCell<OpState>>,
    #[string] hash: String,
) -> Result<String, JsErrorBox> {
    let bytes = blob(bridge(&state), &hash).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A blob as bytes.
#[op2]
pub(super) async fn op_xs_blob_bytes(
    state: Rc<RefCell<OpState>>,
    #[string] hash: String,
) -> Result<Uint8Array, JsErrorBox> {
    Ok(blob(bridge(&state), &hash).await?.to_vec().into())
}

/// A line of the processor's log.
#[op2(fast)]
pub(super) fn op_xs_log(
    state: &mut OpState,
    level: u32,
    #[string] message: String,
    #[string] fields: String,
) {
    let level = match level {
        0 => LogLevel::Debug,
        1 => LogLevel::Info,
        2 => LogLevel::Warn,
        _ => LogLevel::Error,
    };
    let bridge = state.borrow::<Rc<Bridge>>();
    let mut message = bridge.masked(message);
    if let Some((at, _)) = message.char_indices().nth(LOG_CHARS_MAX) {
        message.truncate(at);
        message.push_str("...");
    }
    let fields = Some(fields).filter(|fields| !fields.is_empty());
    let graph = &bridge.spec.graph;
    let fields = fields.map(|fields| graph.retold(bridge.masked(fields), "\\n"));
    bridge.backend.log(level, graph.retold(message, "\n"), fields);
}

/// The time in an id, in milliseconds since the Unix epoch; NaN when it is not an id.
#[op2(fast)]
pub(super) fn op_xs_id_time(#[string] id: String) -> f64 {
    FrameId::parse(&id).map_or(f64::NAN, |id| id.time_ms() as f64)
}
