//! An in-memory store for trials: what a module may do with a store, without a server. Bodies are
//! shared with the test, which inspects them afterwards.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt as _, Stream, StreamExt as _, stream};
use parking_lot::Mutex;
use tokio::sync::watch;
use xs_engine::{
    BlobHash, Body, Bound, Condition, Frame, FrameId, IdempotencyKey, NewFrame, ReadOptions, Start,
    TopicPatterns, Ttl,
};

use super::{Clock, Watch};
use crate::isolate::{
    Backend, BackendCode, BackendError, ByteStream, CallRequest, FrameStream, LogLevel, TopicInfo,
};

/// Maximum bytes of all bodies of a test file.
const BYTES_MAX: usize = 256 * 1024 * 1024;
/// Maximum number of frames of one trial.
const FRAMES_MAX: usize = 100_000;

/// Bodies by their hash.
#[derive(Default)]
pub(super) struct Blobs(Mutex<HashMap<BlobHash, Bytes>>);

impl Blobs {
    fn put(&self, bytes: Bytes) -> Result<BlobHash, BackendError> {
        let mut blobs = self.0.lock();
        let kept: usize = blobs.values().map(Bytes::len).sum();
        if kept + bytes.len() > BYTES_MAX {
            let text = format!("the bodies of a test file are over {BYTES_MAX} bytes");
            return Err(BackendError::new(BackendCode::Unavailable, text));
        }
        let hash = BlobHash::of(&bytes);
        blobs.insert(hash, bytes);
        Ok(hash)
    }

    fn get(&self, hash: &BlobHash) -> Option<Bytes> {
        self.0.lock().get(hash).cloned()
    }
}

/// What was appended under a key, and as which frames it was stored.
type Keyed = (Vec<NewFrame>, Vec<Frame>);

/// The store of one trial, or of the test file itself.
pub(super) struct Store {
    name: String,
    clock: Arc<Clock>,
    blobs: Arc<Blobs>,
    frames: Arc<Mutex<Vec<Frame>>>,
    removed: Mutex<HashSet<FrameId>>,
    keys: Mutex<HashMap<IdempotencyKey, Keyed>>,
    positions: Mutex<HashMap<String, Bytes>>,
    changed: watch::Sender<usize>,
    watch: Arc<dyn Watch>,
}

impl Store {
    /// An empty store for the processor `name`, whose frames have the times of this clock.
    pub(super) fn new(
        name: &str,
        clock: Arc<Clock>,
        blobs: Arc<Blobs>,
        watch: Arc<dyn Watch>,
    ) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            clock,
            blobs,
            frames: Arc::default(),
            removed: Mutex::default(),
            keys: Mutex::default(),
            positions: Mutex::default(),
            changed: watch::channel(0).0,
            watch,
        })
    }

    /// Every frame, including ephemeral ones.
    pub(super) fn frames(&self) -> Vec<Frame> {
        self.frames.lock().clone()
    }

    /// Watches the number of frames.
    pub(super) fn changes(&self) -> watch::Receiver<usize> {
        self.changed.subscribe()
    }

    /// Appends a frame.
    pub(super) fn push(&self, new: &NewFrame) -> Result<Frame, BackendError> {
        let body = match &new.body {
            Body::Inline(bytes) if !bytes.is_empty() => {
                Some((bytes.len() as u64, self.blobs.put(bytes.clone())?))
            }
            Body::Stored(hash) => self.blobs.get(hash).map(|bytes| (bytes.len() as u64, *hash)),
            Body::Inline(_) | Body::None => None,
        };
        let mut frames = self.frames.lock();
        let offset = frames.len() as u64;
        if frames.len() >= FRAMES_MAX {
            let text = format!("a trial has at most {FRAMES_MAX} frames");
            return Err(BackendError::new(BackendCode::Unavailable, text));
        }
        let now = FrameId::first_of_ms(self.clock.now_ms());
        let id = frames.last().map_or(now, |last| now.max(last.id().next()));
        let stored = (new.ttl != Ttl::Ephemeral).then_some(offset);
        let frame = Frame::assemble(new, id, stored, body)
            .map_err(|error| BackendError::new(BackendCode::Refused, error.to_string()))?;
        frames.push(frame.clone());
        if let Ttl::Last(n) = new.ttl {
            let n = usize::try_from(n.get()).unwrap_or(usize::MAX);
            let mut removed = self.removed.lock();
            let newest = frames.iter().rev().filter(|of| {
                of.offset().is_some() && of.topic() == frame.topic() && !removed.contains(&of.id())
            });
            let superseded: Vec<FrameId> = newest.skip(n).map(Frame::id).collect();
            removed.extend(superseded);
        }
        let count = frames.len();
        drop(frames);
        self.changed.send_replace(count);
        Ok(frame)
    }

    /// The stored frames that a read selects now, in order.
    fn selected(&self, options: &ReadOptions) -> Vec<Frame> {
        let at = |frame: &Frame, bound: Bound| match bound {
            Bound::Id(id) => frame.id().cmp(&id),
            Bound::Offset(offset) => frame.offset().unwrap_or_default().cmp(&offset),
        };
        let frames = self.frames.lock();
        let removed = self.removed.lock();
        let stored = frames
            .iter()
            .filter(|frame| frame.offset().is_some() && !removed.contains(&frame.id()));
        let mut found: Vec<Frame> = stored
            .filter(|frame| options.topics.matches(frame.topic()))
            .filter(|frame| match options.start {
                Start::From(bound) => at(frame, bound).is_ge(),
                Start::After(bound) => at(frame, bound).is_gt(),
                Start::New => false,
                Start::First | Start::Last(_) => true,
            })
            .filter(|frame| options.before.is_none_or(|bound| at(frame, bound).is_lt()))
            .filter(|frame| options.since_ms.is_none_or(|ms| frame.id().time_ms() >= ms))
            .filter(|frame| options.until_ms.is_none_or(|ms| frame.id().time_ms() < ms))
            .cloned()
            .collect();
        if let Start::Last(n) = options.start {
            let n = usize::try_from(n).unwrap_or(usize::MAX);
            found.drain(..found.len().saturating_sub(n));
        }
        if options.reverse {
            found.reverse();
        }
        found
    }
}

impl Store {
    /// Frames of these topics that come after the first `next`, as the module appends them.
    fn appended_after(
        &self,
        next: usize,
        topics: TopicPatterns,
    ) -> impl Stream<Item = Result<Frame, BackendError>> + Send + 'static {
        let state = (Arc::clone(&self.frames), self.changed.subscribe(), next);
        stream::unfold(state, move |(frames, mut changes, next)| {
            let topics = topics.clone();
            async move {
                loop {
                    changes.borrow_and_update();
                    let found = {
                        let frames = frames.lock();
                        let mut new = frames.iter().enumerate().skip(next);
                        new.find(|(_, frame)| topics.matches(frame.topic()))
                            .map(|(at, frame)| (at, frame.clone()))
                    };
                    if let Some((at, frame)) = found {
                        return Some((Ok(frame), (frames, changes, at + 1)));
                    }
                    changes.changed().await.ok()?;
                }
            }
        })
    }
}

fn ready<T: Send + 'static>(value: T) -> BoxFuture<'static, Result<T, BackendError>> {
    futures::future::ready(Ok(value)).boxed()
}

impl Backend for Store {
    fn append(
        &self,
        frames: Vec<NewFrame>,
    ) -> BoxFuture<'static, Result<Vec<Frame>, BackendError>> {
        let stored: Result<Vec<_>, _> = frames.iter().map(|frame| self.push(frame)).collect();
        futures::future::ready(stored).boxed()
    }

    fn append_if(
        &self,
        frames: Vec<NewFrame>,
        conditions: Vec<Condition>,
        key: Option<IdempotencyKey>,
    ) -> BoxFuture<'static, Result<Vec<Frame>, BackendError>> {
        if let Some((new, stored)) = key.as_ref().and_then(|key| self.keys.lock().get(key).cloned())
        {
            if new == frames {
                return ready(stored);
            }
            let text = "the key was used for something else";
            let error = BackendError::new(BackendCode::Conflict, text);
            return futures::future::ready(Err(error)).boxed();
        }
        let newest = |topics: &TopicPatterns| {
            let topics = topics.clone();
            let newest = self.selected(&ReadOptions { topics, ..ReadOptions::default() }).pop();
            newest.and_then(|frame| frame.offset())
        };
        let holds = |condition: &Condition| match condition {
            Condition::LastAtMost { topics, offset } => newest(topics).is_none_or(|n| n <= *offset),
            Condition::Empty(topics) => newest(topics).is_none(),
            Condition::HeadIs(head) => self.frames().len() as u64 == *head,
        };
        if !conditions.iter().all(holds) {
            let error = BackendError::new(BackendCode::Conflict, "a condition does not hold");
            return futures::future::ready(Err(error)).boxed();
        }
        let stored: Result<Vec<_>, _> = frames.iter().map(|frame| self.push(frame)).collect();
        if let (Some(key), Ok(stored)) = (key, &stored) {
            self.keys.lock().insert(key, (frames, stored.clone()));
        }
        futures::future::ready(stored).boxed()
    }

    fn remove(
        &self,
        frames: Vec<FrameId>,
        within: Option<TopicPatterns>,
    ) -> BoxFuture<'static, Result<(), BackendError>> {
        let known = self.frames.lock();
        let named = known.iter().filter(|frame| frames.contains(&frame.id()));
        let mut topics = named.map(Frame::topic);
        let other = topics.find(|topic| within.as_ref().is_some_and(|all| !all.matches(topic)));
        if let Some(other) = other {
            let text = format!("frames of {other} may not be removed");
            return futures::future::ready(Err(BackendError::new(BackendCode::Refused, text)))
                .boxed();
        }
        self.removed.lock().extend(frames);
        ready(())
    }

    fn read(&self, options: ReadOptions) -> FrameStream {
        let limit = options.limit.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
        let next = self.frames.lock().len();
        let found = stream::iter(self.selected(&options).into_iter().map(Ok));
        match options.follow {
            true => found.chain(self.appended_after(next, options.topics)).take(limit).boxed(),
            false => found.take(limit).boxed(),
        }
    }

    fn get(&self, id: FrameId) -> BoxFuture<'static, Result<Option<Frame>, BackendError>> {
        let found = self.frames.lock().iter().find(|frame| frame.id() == id).cloned();
        ready(found.filter(|frame| !self.removed.lock().contains(&frame.id())))
    }

    fn last(
        &self,
        topics: TopicPatterns,
    ) -> BoxFuture<'static, Result<Option<Frame>, BackendError>> {
        ready(self.selected(&ReadOptions { topics, ..ReadOptions::default() }).pop())
    }

    fn last_per_topic(
        &self,
        topics: TopicPatterns,
    ) -> BoxFuture<'static, Result<Vec<Frame>, BackendError>> {
        let mut last: HashMap<String, Frame> = HashMap::new();
        for frame in self.selected(&ReadOptions { topics, ..ReadOptions::default() }) {
            last.insert(frame.topic().to_owned(), frame);
        }
        let mut last: Vec<Frame> = last.into_values().collect();
        last.sort_by_key(Frame::id);
        ready(last)
    }

    fn topics(
        &self,
        topics: TopicPatterns,
    ) -> BoxFuture<'static, Result<Vec<TopicInfo>, BackendError>> {
        let mut infos: Vec<TopicInfo> = Vec::new();
        for frame in self.selected(&ReadOptions { topics, ..ReadOptions::default() }) {
            let bytes = frame.record().len() as u64;
            match infos.iter_mut().find(|info| info.topic == frame.topic()) {
                Some(info) => {
                    info.count += 1;
                    info.bytes += bytes;
                    info.last = frame.id();
                }
                None => infos.push(TopicInfo {
                    topic: frame.topic().to_owned(),
                    count: 1,
                    bytes,
                    first: frame.id(),
                    last: frame.id(),
                }),
            }
        }
        ready(infos)
    }

    fn blob_put(&self, bytes: Bytes) -> BoxFuture<'static, Result<BlobHash, BackendError>> {
        futures::future::ready(self.blobs.put(bytes)).boxed()
    }

    fn blob_get(
        &self,
        hash: BlobHash,
        _max: u64,
    ) -> BoxFuture<'static, Result<Option<Bytes>, BackendError>> {
        ready(self.blobs.get(&hash))
    }

    fn blob_chunks(
        &self,
        hash: BlobHash,
    ) -> BoxFuture<'static, Result<Option<ByteStream>, BackendError>> {
        ready(self.blobs.get(&hash).map(|bytes| stream::iter([Ok(bytes)]).boxed()))
    }

    fn blob_put_from(
        &self,
        mut pieces: ByteStream,
    ) -> BoxFuture<'static, Result<BlobHash, BackendError>> {
        let blobs = Arc::clone(&self.blobs);
        Box::pin(async move {
            let mut all = Vec::new();
            while let Some(piece) = pieces.next().await {
                all.extend_from_slice(&piece?);
                if all.len() > BYTES_MAX {
                    let text = format!("a body of a trial is over {BYTES_MAX} bytes");
                    return Err(BackendError::new(BackendCode::Unavailable, text));
                }
            }
            blobs.put(Bytes::from(all))
        })
    }

    fn call(&self, request: CallRequest) -> FrameStream {
        let text = format!("a trial has no other commands, so {} cannot be called", request.name);
        stream::iter([Err(BackendError::new(BackendCode::NotFound, text))]).boxed()
    }

    fn log(&self, level: LogLevel, message: String, fields: Option<String>) {
        self.watch.log(&self.name, level, &message, fields.as_deref());
    }

    fn position_get(&self, key: String) -> BoxFuture<'static, Result<Option<Bytes>, BackendError>> {
        ready(self.positions.lock().get(&key).cloned())
    }

    fn position_set(
        &self,
        key: String,
        value: Bytes,
    ) -> BoxFuture<'static, Result<(), BackendError>> {
        self.positions.lock().insert(key, value);
        ready(())
    }

    fn processor_name(&self, create: FrameId) -> Option<String> {
        (create == FrameId::ZERO).then(|| self.name.clone())
    }
}
