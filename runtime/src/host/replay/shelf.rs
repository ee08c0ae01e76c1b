//! The store of a handler that is replayed: the log as it was at the frame being handled, and
//! nothing newer. It accepts no writes. The handler's log lines go to the caller.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt as _, future, stream};
use parking_lot::Mutex;
use xs_engine::{BlobHash, Bound, Frame, FrameId, ReadOptions, Start, TopicPatterns};
use xs_protocol::Client;

use crate::isolate::{
    Backend, BackendCode, BackendError, ByteStream, CallRequest, FrameStream, LogLevel,
};
use crate::remote::Remote;

/// Maximum bytes of a body that the handler streams to the store; only its hash is kept.
const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Called with each line that the handler logs.
pub type Said = Box<dyn Fn(LogLevel, &str) + Send + Sync>;

/// The newest visible frame.
type Present = Option<(u64, FrameId)>;

/// The log up to the present frame.
pub(super) struct Shelf {
    remote: Remote,
    said: Said,
    present: Arc<Mutex<Present>>,
}

impl Shelf {
    pub(super) fn new(client: Client, said: Said) -> Self {
        Self { remote: Remote::new(client), said, present: Arc::default() }
    }

    /// Sets the frame that is handled now.
    pub(super) fn turn_to(&self, frame: &Frame) {
        *self.present.lock() = frame.offset().map(|offset| (offset, frame.id()));
    }

    /// The newest visible frame of some topics.
    fn newest(
        &self,
        topics: TopicPatterns,
    ) -> BoxFuture<'static, Result<Option<Frame>, BackendError>> {
        let options =
            ReadOptions { topics, reverse: true, limit: Some(1), ..ReadOptions::default() };
        let mut frames = self.read(options);
        Box::pin(async move { frames.next().await.transpose() })
    }
}

fn refusal(what: &str) -> BackendError {
    let text = format!("a replayed handler {what}");
    BackendError::new(BackendCode::Unavailable, text)
}

impl Backend for Shelf {
    fn refusal(&self) -> BackendError {
        refusal("can only read the log as it was")
    }

    fn read(&self, mut options: ReadOptions) -> FrameStream {
        if options.follow || options.start == Start::New {
            return stream::iter([Err(refusal("cannot wait for new frames"))]).boxed();
        }
        let Some((offset, id)) = *self.present.lock() else {
            return stream::empty().boxed();
        };
        let earlier = match options.before {
            Some(Bound::Offset(before)) => before <= offset,
            Some(Bound::Id(before)) => before <= id,
            None => false,
        };
        if !earlier {
            options.before = Some(Bound::Offset(offset + 1));
        }
        self.remote.read(options)
    }

    fn get(&self, id: FrameId) -> BoxFuture<'static, Result<Option<Frame>, BackendError>> {
        match *self.present.lock() {
            Some((_, present)) if id <= present => self.remote.get(id),
            _ => Box::pin(future::ready(Ok(None))),
        }
    }

    fn last(
        &self,
        topics: TopicPatterns,
    ) -> BoxFuture<'static, Result<Option<Frame>, BackendError>> {
        self.newest(topics)
    }

    /// For topics that have newer frames, finds the newest visible one.
    fn last_per_topic(
        &self,
        topics: TopicPatterns,
    ) -> BoxFuture<'static, Result<Vec<Frame>, BackendError>> {
        let now = self.remote.last_per_topic(topics);
        let shelf = Self {
            remote: self.remote.clone(),
            said: Box::new(|_, _| {}),
            present: Arc::new(Mutex::new(*self.present.lock())),
        };
        Box::pin(async move {
            let present = shelf.present.lock().map(|(_, id)| id);
            let mut then = Vec::new();
            for frame in now.await? {
                if present.is_some_and(|present| frame.id() <= present) {
                    then.push(frame);
                    continue;
                }
                let topic = frame.topic();
                let exact = TopicPatterns::parse(topic).map_err(|_| shelf.refusal())?;
                then.extend(shelf.newest(exact).await?);
            }
            then.sort_by_key(Frame::id);
            Ok(then)
        })
    }

    /// Returns the hash; the bytes are not kept.
    fn blob_put(&self, bytes: Bytes) -> BoxFuture<'static, Result<BlobHash, BackendError>> {
        Box::pin(async move { Ok(BlobHash::of(&bytes)) })
    }

    fn blob_get(
        &self,
        hash: BlobHash,
        max: u64,
    ) -> BoxFuture<'static, Result<Option<Bytes>, BackendError>> {
        self.remote.blob_get(hash, max)
    }

    fn blob_chunks(
        &self,
        hash: BlobHash,
    ) -> BoxFuture<'static, Result<Option<ByteStream>, BackendError>> {
        self.remote.blob_chunks(hash)
    }

    fn blob_put_from(
        &self,
        mut pieces: ByteStream,
    ) -> BoxFuture<'static, Result<BlobHash, BackendError>> {
        Box::pin(async move {
            let mut all = Vec::new();
            while let Some(piece) = pieces.next().await {
                all.extend_from_slice(&piece?);
                if all.len() > BODY_BYTES_MAX {
                    let most = format!("cannot create bodies of more than {BODY_BYTES_MAX} bytes");
                    return Err(refusal(&most));
                }
            }
            Ok(BlobHash::of(&all))
        })
    }

    fn call(&self, _: CallRequest) -> FrameStream {
        let error = refusal("cannot call commands: the answer would be from today");
        stream::iter([Err(error)]).boxed()
    }

    fn log(&self, level: LogLevel, message: String, fields: Option<String>) {
        match fields {
            Some(fields) => (self.said)(level, &format!("{message} {fields}")),
            None => (self.said)(level, &message),
        }
    }

    fn processor_name(&self, _: FrameId) -> Option<String> {
        None
    }
}
