//! An in-memory store, as an isolate sees it.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, oneshot, watch};
use xs_engine::{
    BlobHash, Body, Bound, Condition, Frame, FrameId, IdempotencyKey, Meta, NewFrame, Origin,
    ReadOptions, Start, Topic, TopicPatterns, Ttl,
};
use xs_runtime::isolate::{
    Backend, BackendCode, BackendError, ByteStream, CallRequest, FrameStream, LogLevel, TopicInfo,
};

/// The size and the number of the pieces of a blob that is larger than any heap.
pub(crate) const PIECE: usize = 64 * 1024;
pub(crate) const PIECES: usize = 4 * 1024;

/// Its hash, by definition.
pub(crate) fn endless() -> BlobHash {
    BlobHash::of(b"endless")
}

pub(crate) struct Memory {
    inner: Arc<Mutex<Inner>>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    frames: Vec<Frame>,
    blobs: HashMap<BlobHash, Bytes>,
    positions: HashMap<String, Bytes>,
    logs: Vec<(LogLevel, String)>,
    /// Conditions and keys of appends.
    asked: Vec<String>,
    refuse: Option<BackendError>,
    /// Refuses one append, once the sender is used or dropped.
    refuse_one: Option<(BackendError, oneshot::Receiver<()>)>,
    /// Permits for answers to appends.
    answers: Option<Arc<Semaphore>>,
}

impl Memory {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { inner: Arc::default(), changed: watch::channel(0).0 })
    }

    pub(crate) fn add(&self, topic: &str, meta: &Value, body: &str) -> Frame {
        let mut new = NewFrame::new(Topic::parse(topic).unwrap());
        new.meta = Meta::parse(meta.to_string()).unwrap();
        new.body = Body::Inline(Bytes::copy_from_slice(body.as_bytes()));
        self.push(&new)
    }

    pub(crate) fn push(&self, new: &NewFrame) -> Frame {
        let mut inner = self.inner.lock();
        let offset = inner.frames.len() as u64;
        let id = FrameId::first_of_ms(1_700_000_000_000 + offset);
        let body = match &new.body {
            Body::Inline(bytes) if !bytes.is_empty() => {
                inner.blobs.insert(BlobHash::of(bytes), bytes.clone());
                Some((bytes.len() as u64, BlobHash::of(bytes)))
            }
            Body::Stored(hash) => Some((0, *hash)),
            _ => None,
        };
        let frame = Frame::assemble(new, id, Some(offset), body).unwrap();
        inner.frames.push(frame.clone());
        drop(inner);
        self.changed.send_modify(|count| *count += 1);
        frame
    }

    pub(crate) fn topic(&self, topic: &str) -> Vec<Frame> {
        self.inner.lock().frames.iter().filter(|frame| frame.topic() == topic).cloned().collect()
    }

    pub(crate) fn body(&self, frame: &Frame) -> String {
        let inner = self.inner.lock();
        let bytes = frame.hash().and_then(|hash| inner.blobs.get(&hash).cloned());
        String::from_utf8(bytes.unwrap_or_default().to_vec()).unwrap()
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.inner.lock().asked.clone()
    }

    pub(crate) fn logs(&self) -> Vec<(LogLevel, String)> {
        self.inner.lock().logs.clone()
    }

    pub(crate) fn set_position(&self, key: &str, position: Bytes) {
        self.inner.lock().positions.insert(key.to_owned(), position);
    }

    pub(crate) fn position(&self, key: &str) -> Option<Bytes> {
        self.inner.lock().positions.get(key).cloned()
    }

    pub(crate) fn refuse(&self, error: Option<BackendError>) {
        self.inner.lock().refuse = error;
    }

    /// Refuses the next append, once the returned sender is used or dropped.
    pub(crate) fn refuse_one(&self, text: &str) -> oneshot::Sender<()> {
        let (now, told) = oneshot::channel();
        let error = BackendError::new(BackendCode::Unavailable, text);
        self.inner.lock().refuse_one = Some((error, told));
        now
    }

    /// Makes appends wait for a permit before they are answered.
    pub(crate) fn hold(&self) -> Arc<Semaphore> {
        let answers = Arc::new(Semaphore::new(0));
        self.inner.lock().answers = Some(Arc::clone(&answers));
        answers
    }

    /// Waits until there are `count` frames in a topic.
    pub(crate) async fn wait(&self, topic: &str, count: usize) -> Vec<Frame> {
        let mut changes = self.changed.subscribe();
        loop {
            let frames = self.topic(topic);
            if frames.len() >= count {
                return frames;
            }
            changes.changed().await.unwrap();
        }
    }

    fn select(&self, options: &ReadOptions) -> Vec<Frame> {
        let bound = |frame: &Frame, bound: Bound| match bound {
            Bound::Offset(offset) => frame.offset().cmp(&Some(offset)),
            Bound::Id(id) => frame.id().cmp(&id),
        };
        let inner = self.inner.lock();
        let all = inner.frames.iter().filter(|frame| options.topics.matches(frame.topic()));
        let mut frames: Vec<Frame> = match options.start {
            Start::First | Start::Last(_) => all.cloned().collect(),
            Start::From(from) => all.filter(|frame| bound(frame, from).is_ge()).cloned().collect(),
            Start::After(after) => {
                all.filter(|frame| bound(frame, after).is_gt()).cloned().collect()
            }
            Start::New => Vec::new(),
        };
        if let Start::Last(last) = options.start {
            frames.drain(..frames.len().saturating_sub(usize::try_from(last).unwrap()));
        }
        if options.reverse {
            frames.reverse();
        }
        frames.truncate(options.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap()));
        frames
    }
}

fn ready<T: Send + 'static>(value: T) -> BoxFuture<'static, Result<T, BackendError>> {
    futures::future::ready(Ok(value)).boxed()
}

impl Backend for Memory {
    fn append(
        &self,
        frames: Vec<NewFrame>,
    ) -> BoxFuture<'static, Result<Vec<Frame>, BackendError>> {
        if let Some(error) = self.inner.lock().refuse.clone() {
            return futures::future::ready(Err(error)).boxed();
        }
        if let Some((error, told)) = self.inner.lock().refuse_one.take() {
            return async move {
                drop(told.await);
                Err(error)
            }
            .boxed();
        }
        let stored: Vec<Frame> = frames.iter().map(|frame| self.push(frame)).collect();
        let answers = self.inner.lock().answers.clone();
        // Like a real store, it answers later, not at once.
        async move {
            if let Some(answers) = answers {
                answers.acquire().await.unwrap().forget();
            }
            tokio::task::yield_now().await;
            Ok(stored)
        }
        .boxed()
    }

    fn append_if(
        &self,
        frames: Vec<NewFrame>,
        conditions: Vec<Condition>,
        key: Option<IdempotencyKey>,
    ) -> BoxFuture<'static, Result<Vec<Frame>, BackendError>> {
        self.inner.lock().asked.push(format!("{conditions:?} {key:?}"));
        match conditions.is_empty() {
            true => self.append(frames),
            false => {
                let error = BackendError::new(BackendCode::Conflict, "it does not hold");
                futures::future::ready(Err(error)).boxed()
            }
        }
    }

    fn read(&self, options: ReadOptions) -> FrameStream {
        let frames = futures::stream::iter(self.select(&options).into_iter().map(Ok));
        if !options.follow {
            return frames.boxed();
        }
        frames.chain(futures::stream::pending()).boxed()
    }

    fn get(&self, id: FrameId) -> BoxFuture<'static, Result<Option<Frame>, BackendError>> {
        ready(self.inner.lock().frames.iter().find(|frame| frame.id() == id).cloned())
    }

    fn last(
        &self,
        topics: TopicPatterns,
    ) -> BoxFuture<'static, Result<Option<Frame>, BackendError>> {
        let inner = self.inner.lock();
        ready(inner.frames.iter().rev().find(|frame| topics.matches(frame.topic())).cloned())
    }

    fn last_per_topic(
        &self,
        topics: TopicPatterns,
    ) -> BoxFuture<'static, Result<Vec<Frame>, BackendError>> {
        let inner = self.inner.lock();
        let frames = inner.frames.iter().filter(|frame| topics.matches(frame.topic()));
        let latest: HashMap<&str, &Frame> = frames.map(|frame| (frame.topic(), frame)).collect();
        let mut latest: Vec<Frame> = latest.into_values().cloned().collect();
        latest.sort_by_key(Frame::id);
        ready(latest)
    }

    fn topics(
        &self,
        topics: TopicPatterns,
    ) -> BoxFuture<'static, Result<Vec<TopicInfo>, BackendError>> {
        let inner = self.inner.lock();
        let mut infos: Vec<TopicInfo> = Vec::new();
        for frame in inner.frames.iter().filter(|frame| topics.matches(frame.topic())) {
            match infos.iter_mut().find(|info| info.topic == frame.topic()) {
                Some(info) => {
                    info.count += 1;
                    info.last = frame.id();
                }
                None => infos.push(TopicInfo {
                    topic: frame.topic().to_owned(),
                    count: 1,
                    bytes: 0,
                    first: frame.id(),
                    last: frame.id(),
                }),
            }
        }
        ready(infos)
    }

    fn remove(
        &self,
        frames: Vec<FrameId>,
        within: Option<TopicPatterns>,
    ) -> BoxFuture<'static, Result<(), BackendError>> {
        let within = within.expect("a module removes within topics that it names");
        let mut inner = self.inner.lock();
        inner.frames.retain(|frame| {
            !frames.contains(&frame.id()) || {
                assert!(within.matches(frame.topic()), "{}", frame.topic());
                false
            }
        });
        ready(())
    }

    fn blob_put(&self, bytes: Bytes) -> BoxFuture<'static, Result<BlobHash, BackendError>> {
        let hash = BlobHash::of(&bytes);
        self.inner.lock().blobs.insert(hash, bytes);
        ready(hash)
    }

    fn blob_get(
        &self,
        hash: BlobHash,
        _max: u64,
    ) -> BoxFuture<'static, Result<Option<Bytes>, BackendError>> {
        ready(self.inner.lock().blobs.get(&hash).cloned())
    }

    fn blob_chunks(
        &self,
        hash: BlobHash,
    ) -> BoxFuture<'static, Result<Option<ByteStream>, BackendError>> {
        if hash == endless() {
            let piece = |_| Ok(Bytes::from_static(&[7; PIECE]));
            return ready(Some(futures::stream::iter((0..PIECES).map(piece)).boxed()));
        }
        let blob = self.inner.lock().blobs.get(&hash).cloned();
        ready(blob.map(|bytes| futures::stream::iter([Ok(bytes)]).boxed()))
    }

    fn blob_put_from(
        &self,
        mut pieces: ByteStream,
    ) -> BoxFuture<'static, Result<BlobHash, BackendError>> {
        let inner = Arc::clone(&self.inner);
        Box::pin(async move {
            let (mut all, mut len) = (Vec::new(), 0);
            while let Some(piece) = pieces.next().await {
                let piece = piece?;
                len += piece.len();
                // No more is kept: a blob as long as the endless one is taken for it.
                if len <= 16 * 1024 * 1024 {
                    all.extend_from_slice(&piece);
                }
            }
            if len == PIECE * PIECES {
                return Ok(endless());
            }
            let hash = BlobHash::of(&all);
            inner.lock().blobs.insert(hash, Bytes::from(all));
            Ok(hash)
        })
    }

    fn call(&self, request: CallRequest) -> FrameStream {
        let args: Value = serde_json::from_str(&request.args).unwrap();
        let frames = match request.name.as_str() {
            "echo" => vec![
                Ok(self.add("echo.recv", &args, &String::from_utf8_lossy(&request.body))),
                Ok(self.add("echo.complete", &json!({}), "")),
            ],
            "fails" => {
                let failure = json!({ "message": "it is broken", "code": "throw" });
                vec![
                    Ok(self.add("fails.recv", &args, "")),
                    Ok(self.add("fails.error", &failure, "")),
                ]
            }
            _ => vec![Err(BackendError::new(BackendCode::NotFound, "no such command"))],
        };
        futures::stream::iter(frames).boxed()
    }

    fn log(&self, level: LogLevel, message: String, fields: Option<String>) {
        let line = fields.map_or_else(|| message.clone(), |fields| format!("{message} {fields}"));
        self.inner.lock().logs.push((level, line));
    }

    fn position_get(&self, key: String) -> BoxFuture<'static, Result<Option<Bytes>, BackendError>> {
        ready(self.position(&key))
    }

    fn position_set(
        &self,
        key: String,
        value: Bytes,
    ) -> BoxFuture<'static, Result<(), BackendError>> {
        self.inner.lock().positions.insert(key, value);
        self.changed.send_modify(|count| *count += 1);
        ready(())
    }

    fn processor_name(&self, _create: FrameId) -> Option<String> {
        Some("other".to_owned())
    }
}

#[test]
fn a_frame_keeps_what_it_was_given() {
    let memory = Memory::new();
    let mut new = NewFrame::new(Topic::parse("a").unwrap());
    new.ttl = Ttl::Last(NonZeroU64::MIN);
    let processor = FrameId::first_of_ms(1);
    new.origin = Some(Origin { processor, input: None, input_offset: None, hops: 2 });
    assert_eq!(memory.push(&new).origin(), new.origin);
}
