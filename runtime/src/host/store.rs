//! The store as one processor's isolate sees it: [`Backend`] over the Host's connection. Adds
//! nothing to what a module may do; what it appends is in the order in which it was said.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_util::io::StreamReader;
use xs_engine::{
    BlobHash, Body, Bound, Condition, CursorChange, CursorName, ExpectRevision, Frame, FrameId,
    IdempotencyKey, Meta, NewFrame, ReadOptions, Topic, TopicPatterns,
};
use xs_protocol::{
    AppendRequest, Appended, Class, Client, ClientError, Code, LastRequest, SubEvent,
    SubscribeOptions, Subscription,
};

use super::lifecycle::{Key, Versions};
use super::pace::{Pace, Verdict};
use super::report;
use crate::isolate::{
    Backend, BackendCode, BackendError, ByteStream, CallRequest, FrameStream, LogLevel, TopicInfo,
};

/// Frames that end a call, to be committed together with the cursor of the command.
pub(super) struct Finish {
    /// The call.
    pub(super) call: FrameId,
    /// Its last frames; the very last is `<name>.complete`.
    pub(super) frames: Vec<NewFrame>,
    /// Told when they are stored.
    pub(super) answer: oneshot::Sender<Result<Appended, BackendError>>,
}

/// One version of a processor, as a client of the store.
pub(super) struct ProcessorStore {
    client: Client,
    key: Key,
    create: FrameId,
    versions: Versions,
    pace: Mutex<Pace>,
    finishes: Option<mpsc::UnboundedSender<Finish>>,
    complete: Topic,
}

impl ProcessorStore {
    /// The store for the version `create` of `key`. A command's finished calls go to `finishes`.
    pub(super) fn new(
        client: Client,
        key: Key,
        create: FrameId,
        versions: Versions,
        finishes: Option<mpsc::UnboundedSender<Finish>>,
    ) -> Self {
        let complete = key.name.topic("complete");
        Self { client, key, create, versions, pace: Mutex::default(), finishes, complete }
    }

    /// The call that these frames end, if they do.
    fn ends(&self, frames: &[NewFrame]) -> Option<FrameId> {
        let last = frames.last().filter(|frame| frame.topic == self.complete)?;
        last.origin.and_then(|origin| origin.input)
    }

    fn cursor(&self, key: &str) -> CursorName {
        position_cursor(&self.key, key)
    }
}

impl Backend for ProcessorStore {
    fn append(
        &self,
        frames: Vec<NewFrame>,
    ) -> BoxFuture<'static, Result<Vec<Frame>, BackendError>> {
        if let (Some(finishes), Some(call)) = (&self.finishes, self.ends(&frames)) {
            let (answer, answered) = oneshot::channel();
            let finish = Finish { call, frames: frames.clone(), answer };
            let sent = finishes.send(finish).is_ok();
            return Box::pin(async move {
                let gone = || BackendError::new(BackendCode::Unavailable, "the command has ended");
                let answer = if sent { answered.await.ok() } else { None };
                stored(&frames, &answer.unwrap_or_else(|| Err(gone()))?)
            });
        }
        // Sent before the future is polled: outputs are stored in the order they were said in.
        let request = AppendRequest::frames(frames);
        let reply = self.client.append(&request);
        Box::pin(async move { stored(&request.frames, &reply.await.map_err(refused)?) })
    }

    fn append_if(
        &self,
        frames: Vec<NewFrame>,
        conditions: Vec<Condition>,
        key: Option<IdempotencyKey>,
    ) -> BoxFuture<'static, Result<Vec<Frame>, BackendError>> {
        let request = AppendRequest { frames, conditions, key, ..AppendRequest::default() };
        let reply = self.client.append(&request);
        Box::pin(async move { stored(&request.frames, &reply.await.map_err(refused)?) })
    }

    fn read(&self, options: ReadOptions) -> FrameStream {
        if !options.follow {
            return self.client.fetch(&options).map(|frame| frame.map_err(refused)).boxed();
        }
        let client = self.client.clone();
        let subscribed = async move {
            match client.subscribe(&options, SubscribeOptions::default()).await {
                Ok(subscription) => frames_of(subscription).boxed(),
                Err(error) => stream::iter([Err(refused(error))]).boxed(),
            }
        };
        stream::once(subscribed).flatten().boxed()
    }

    fn get(&self, id: FrameId) -> BoxFuture<'static, Result<Option<Frame>, BackendError>> {
        let reply = self.client.get(Bound::Id(id));
        Box::pin(async move { reply.await.map_err(refused) })
    }

    fn last(
        &self,
        topics: TopicPatterns,
    ) -> BoxFuture<'static, Result<Option<Frame>, BackendError>> {
        let reply = self.client.last(&LastRequest { topics, n: 1, per_topic: false });
        Box::pin(async move { Ok(reply.await.map_err(refused)?.pop()) })
    }

    fn last_per_topic(
        &self,
        topics: TopicPatterns,
    ) -> BoxFuture<'static, Result<Vec<Frame>, BackendError>> {
        let reply = self.client.last(&LastRequest { topics, n: 1, per_topic: true });
        Box::pin(async move { reply.await.map_err(refused) })
    }

    fn topics(
        &self,
        topics: TopicPatterns,
    ) -> BoxFuture<'static, Result<Vec<TopicInfo>, BackendError>> {
        let reply = self.client.topics(&topics);
        Box::pin(async move {
            let infos = reply.await.map_err(refused)?.into_iter().map(|summary| TopicInfo {
                topic: summary.topic.as_str().to_owned(),
                count: summary.count,
                bytes: summary.bytes,
                first: summary.first,
                last: summary.last,
            });
            Ok(infos.collect())
        })
    }

    fn blob_put(&self, bytes: Bytes) -> BoxFuture<'static, Result<BlobHash, BackendError>> {
        let client = self.client.clone();
        Box::pin(async move { client.blob_put_bytes(bytes).await.map_err(refused) })
    }

    fn blob_get(
        &self,
        hash: BlobHash,
        max: u64,
    ) -> BoxFuture<'static, Result<Option<Bytes>, BackendError>> {
        let client = self.client.clone();
        Box::pin(async move {
            let Some(blob) = client.blob_get(&hash).await.map_err(refused)? else {
                return Ok(None);
            };
            let max = usize::try_from(max).unwrap_or(usize::MAX);
            blob.bytes(max).await.map(Some).map_err(refused)
        })
    }

    fn blob_chunks(
        &self,
        hash: BlobHash,
    ) -> BoxFuture<'static, Result<Option<ByteStream>, BackendError>> {
        let client = self.client.clone();
        Box::pin(async move {
            let Some(blob) = client.blob_get(&hash).await.map_err(refused)? else {
                return Ok(None);
            };
            let pieces = stream::unfold(blob, |mut blob| async move {
                let piece = blob.chunk().await?;
                Some((piece.map_err(refused), blob))
            });
            Ok(Some(pieces.boxed()))
        })
    }

    fn blob_put_from(
        &self,
        pieces: ByteStream,
    ) -> BoxFuture<'static, Result<BlobHash, BackendError>> {
        let client = self.client.clone();
        let source = StreamReader::new(pieces.map(|piece| piece.map_err(std::io::Error::other)));
        Box::pin(
            async move { client.blob_put(source).await.map(|(hash, _)| hash).map_err(refused) },
        )
    }

    fn call(&self, request: CallRequest) -> FrameStream {
        let client = self.client.clone();
        let called = async move {
            let request = match call_request(request) {
                Ok(request) => request,
                Err(error) => return stream::iter([Err(error)]).boxed(),
            };
            match client.call(&request).await {
                Ok(results) => results
                    .map(|result| result.map(|delivered| delivered.frame).map_err(refused))
                    .boxed(),
                Err(error) => stream::iter([Err(refused(error))]).boxed(),
            }
        };
        stream::once(called).flatten().boxed()
    }

    fn log(&self, level: LogLevel, message: String, fields: Option<String>) {
        let Verdict::Write { dropped } = self.pace.lock().line(Instant::now()) else { return };
        let mut lines = Vec::with_capacity(2);
        if dropped > 0 {
            let text = format!("{dropped} lines were left out: at most 100 are kept in 10 s");
            lines.push(report::log(&self.key, self.create, LogLevel::Warn, &text, None));
        }
        lines.push(report::log(&self.key, self.create, level, &message, fields.as_deref()));
        // A log line is said once; nobody waits for it, and a store that is full loses it.
        drop(self.client.append(&AppendRequest::frames(lines)));
    }

    fn position_get(&self, key: String) -> BoxFuture<'static, Result<Option<Bytes>, BackendError>> {
        let reply = self.client.cursor_get(&self.cursor(&key));
        Box::pin(async move { Ok(reply.await.map_err(refused)?.map(|cursor| cursor.state)) })
    }

    fn position_set(
        &self,
        key: String,
        value: Bytes,
    ) -> BoxFuture<'static, Result<(), BackendError>> {
        let name = self.cursor(&key);
        let change = CursorChange { name, expect: ExpectRevision::Any, set: Some((0, value)) };
        let reply = self.client.cursor_set(change);
        Box::pin(async move { reply.await.map(|_| ()).map_err(refused) })
    }

    fn processor_name(&self, create: FrameId) -> Option<String> {
        self.versions.name(create).map(|name| name.as_str().to_owned())
    }
}

/// The cursor of a processor itself.
///
/// # Panics
/// Never: a name leaves room for a kind.
#[must_use]
pub fn processor_cursor(key: &Key) -> CursorName {
    CursorName::parse(&format!("xs.{}.{}", key.kind, key.name))
        .expect("a name leaves room for a kind")
}

/// The cursor of a position kept under a key of the module's, which may be longer than a name.
fn position_cursor(processor: &Key, key: &str) -> CursorName {
    let prefix = format!("xs.{}.{}", processor.kind, processor.name);
    CursorName::parse(&format!("{prefix}:{key}")).unwrap_or_else(|_| {
        let hash = BlobHash::of(key.as_bytes());
        let short: String = hash.as_bytes()[..16].iter().map(|b| format!("{b:02x}")).collect();
        CursorName::parse(&format!("{prefix}:{short}")).expect("a name leaves room for a hash")
    })
}

/// What the frames of a batch became.
fn stored(frames: &[NewFrame], appended: &Appended) -> Result<Vec<Frame>, BackendError> {
    let pairs = frames.iter().zip(&appended.frames);
    let made = pairs.map(|(new, stamp)| {
        let body = match &new.body {
            Body::Inline(bytes) if !bytes.is_empty() => {
                Some((bytes.len() as u64, BlobHash::of(bytes)))
            }
            Body::Stored(hash) => Some((0, *hash)),
            Body::Inline(_) | Body::None => None,
        };
        Frame::assemble(new, stamp.id, stamp.offset, body)
            .map_err(|error| BackendError::new(BackendCode::Refused, error.to_string()))
    });
    made.collect()
}

fn call_request(request: CallRequest) -> Result<xs_protocol::CallRequest, BackendError> {
    let invalid =
        |error: xs_engine::ValueError| BackendError::new(BackendCode::Refused, error.to_string());
    let mut call = xs_protocol::CallRequest::new(Topic::parse(&request.name).map_err(invalid)?);
    call.args = Meta::parse(request.args).map_err(invalid)?;
    call.body = request.body;
    call.deadline = request.timeout_ms.map(std::time::Duration::from_millis);
    Ok(call)
}

/// The frames of a subscription, one by one; what a module cannot act on is left out.
fn frames_of(
    subscription: Subscription,
) -> impl futures::Stream<Item = Result<Frame, BackendError>> + Send {
    stream::unfold(subscription, |mut subscription| async move {
        let event = subscription.next().await?;
        let items = match event {
            Ok(SubEvent::Frames { frames, .. }) => {
                frames.into_iter().map(|delivered| Ok(delivered.frame)).collect()
            }
            Ok(SubEvent::Dropped { refusal, .. }) => vec![Err(refused(refusal.into()))],
            Ok(SubEvent::CaughtUp { .. } | SubEvent::Pulse | SubEvent::Gap(_)) => Vec::new(),
            Err(error) => vec![Err(refused(error))],
        };
        Some((stream::iter(items), subscription))
    })
    .flatten()
}

/// A client's error as an isolate understands it.
pub(super) fn refused(error: ClientError) -> BackendError {
    let code = match (error.code(), error.class()) {
        (Some(Code::DeadlinePassed), _) => BackendCode::TimedOut,
        (_, Class::Absent) => BackendCode::NotFound,
        (_, Class::Busy | Class::Storage | Class::Unknown) => BackendCode::Unavailable,
        (_, Class::Condition) => BackendCode::Conflict,
        (_, Class::Protocol | Class::Access | Class::Invalid) => BackendCode::Refused,
    };
    BackendError::new(code, error.to_string())
}

/// The backend as the isolates take it.
pub(super) fn shared(store: ProcessorStore) -> Arc<dyn Backend> {
    Arc::new(store)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::{Kind, ProcessorName};

    #[test]
    fn every_position_has_a_cursor() {
        let longest = "a".repeat(crate::name::NAME_BYTES_MAX);
        let key = Key { kind: Kind::Generator, name: ProcessorName::parse(&longest).unwrap() };
        assert_eq!(processor_cursor(&key).as_str(), format!("xs.generator.{longest}"));
        assert!(position_cursor(&key, "input").as_str().ends_with(":input"));
        let (one, two) = (position_cursor(&key, &"x".repeat(300)), position_cursor(&key, "a\nb"));
        assert_ne!(one, two);
    }
}
