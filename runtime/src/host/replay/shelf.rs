//! The store of a handler that is run anew: the bodies of what it is given, and nothing else. What
//! it says goes to whoever runs it.

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt as _, stream};
use xs_engine::{
    BlobHash, Condition, Frame, FrameId, IdempotencyKey, NewFrame, ReadOptions, TopicPatterns,
};
use xs_protocol::Client;

use crate::isolate::{
    Backend, BackendCode, BackendError, ByteStream, CallRequest, FrameStream, LogLevel, TopicInfo,
};
use crate::remote::Remote;

/// Bytes of a body that it makes and that is not kept.
const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Told of each line that it says.
pub type Said = Box<dyn Fn(LogLevel, &str) + Send + Sync>;

/// Bodies to be read.
pub(super) struct Shelf {
    remote: Remote,
    said: Said,
}

impl Shelf {
    pub(super) fn new(client: Client, said: Said) -> Self {
        Self { remote: Remote(client), said }
    }
}

fn refusal() -> BackendError {
    let text = "a handler that is run anew sees only what it is given: the log is not what it was";
    BackendError::new(BackendCode::Unavailable, text)
}

fn refused<T: Send + 'static>() -> BoxFuture<'static, Result<T, BackendError>> {
    Box::pin(async { Err(refusal()) })
}

fn no_frames() -> FrameStream {
    stream::iter([Err(refusal())]).boxed()
}

impl Backend for Shelf {
    fn append(&self, _: Vec<NewFrame>) -> BoxFuture<'static, Result<Vec<Frame>, BackendError>> {
        refused()
    }

    fn append_if(
        &self,
        _: Vec<NewFrame>,
        _: Vec<Condition>,
        _: Option<IdempotencyKey>,
    ) -> BoxFuture<'static, Result<Vec<Frame>, BackendError>> {
        refused()
    }

    fn remove(
        &self,
        _: Vec<FrameId>,
        _: Option<TopicPatterns>,
    ) -> BoxFuture<'static, Result<(), BackendError>> {
        refused()
    }

    fn read(&self, _: ReadOptions) -> FrameStream {
        no_frames()
    }

    fn get(&self, _: FrameId) -> BoxFuture<'static, Result<Option<Frame>, BackendError>> {
        refused()
    }

    fn last(&self, _: TopicPatterns) -> BoxFuture<'static, Result<Option<Frame>, BackendError>> {
        refused()
    }

    fn last_per_topic(
        &self,
        _: TopicPatterns,
    ) -> BoxFuture<'static, Result<Vec<Frame>, BackendError>> {
        refused()
    }

    fn topics(&self, _: TopicPatterns) -> BoxFuture<'static, Result<Vec<TopicInfo>, BackendError>> {
        refused()
    }

    /// The hash is told; the bytes are not kept.
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
                    let text =
                        format!("a body of a handler run anew is over {BODY_BYTES_MAX} bytes");
                    return Err(BackendError::new(BackendCode::Unavailable, text));
                }
            }
            Ok(BlobHash::of(&all))
        })
    }

    fn call(&self, _: CallRequest) -> FrameStream {
        no_frames()
    }

    fn log(&self, level: LogLevel, message: String, fields: Option<String>) {
        match fields {
            Some(fields) => (self.said)(level, &format!("{message} {fields}")),
            None => (self.said)(level, &message),
        }
    }

    fn position_get(&self, _: String) -> BoxFuture<'static, Result<Option<Bytes>, BackendError>> {
        refused()
    }

    fn position_set(&self, _: String, _: Bytes) -> BoxFuture<'static, Result<(), BackendError>> {
        refused()
    }

    fn processor_name(&self, _: FrameId) -> Option<String> {
        None
    }
}
