//! The store as an isolate needs it, as a trait. The Host implements it over its connection, tests
//! in memory. Nothing here knows JavaScript, and nothing in an isolate knows the wire protocol.

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{StreamExt as _, stream};
use xs_engine::{
    BlobHash, Condition, Frame, FrameId, IdempotencyKey, NewFrame, Origin, ReadOptions,
    TopicPatterns,
};

/// Why the store refused or could not be reached. Cheap to clone, since several waiting outputs
/// can share one refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BackendError {
    /// What the caller can do about it.
    pub code: BackendCode,
    /// One line for people, lower case.
    pub message: String,
}

/// The reactions open to a caller of [`Backend`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackendCode {
    /// The request itself is wrong: a retry gets the same answer.
    Refused,
    /// A condition does not hold, or the key was used for something else.
    Conflict,
    /// The named frame, blob or command does not exist.
    NotFound,
    /// The store cannot take it now: it is full, read-only or unreachable.
    Unavailable,
    /// It took too long.
    TimedOut,
    /// The called command answered with an error.
    CallFailed,
}

impl BackendError {
    /// An error with a code and one line for people.
    #[must_use]
    pub fn new(code: BackendCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// Severity of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// For the author while writing the module.
    Debug,
    /// Normal events.
    Info,
    /// Something odd that was handled.
    Warn,
    /// Something failed.
    Error,
}

impl LogLevel {
    /// The name as it stands in a log frame.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// Statistics of one topic, as `ctx.topics()` returns them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicInfo {
    /// The topic.
    pub topic: String,
    /// Frames in it.
    pub count: u64,
    /// Bytes of those frames.
    pub bytes: u64,
    /// The oldest of them.
    pub first: FrameId,
    /// The newest of them.
    pub last: FrameId,
}

/// A call of another command.
#[derive(Debug, Clone)]
pub struct CallRequest {
    /// The command's name.
    pub name: String,
    /// JSON text of its arguments, an object.
    pub args: String,
    /// The body of the call frame.
    pub body: Bytes,
    /// Milliseconds without a result after which the caller gives up; `None` uses the command's own
    /// timeout.
    pub timeout_ms: Option<u64>,
    /// The caller, and the frame that caused the call.
    pub origin: Option<Origin>,
}

/// A sequence of frames; an error is the last item.
pub type FrameStream = BoxStream<'static, Result<Frame, BackendError>>;
/// The chunks of a blob; an error is the last item and means that there is no blob.
pub type ByteStream = BoxStream<'static, Result<Bytes, BackendError>>;

fn no<T: Send + 'static>(refusal: BackendError) -> BoxFuture<'static, Result<T, BackendError>> {
    Box::pin(async { Err(refusal) })
}

/// The store as an isolate sees it. Dropping a future or a stream cancels the request. Every method
/// refuses unless an implementation provides it.
pub trait Backend: Send + Sync + 'static {
    /// The error of a method that is not provided.
    fn refusal(&self) -> BackendError {
        BackendError::new(BackendCode::Unavailable, "this store does not support this")
    }
    /// Appends frames as one batch and returns them as stored. Their origin is set already.
    fn append(&self, _: Vec<NewFrame>) -> BoxFuture<'static, Result<Vec<Frame>, BackendError>> {
        no(self.refusal())
    }
    /// Appends frames as one batch if the conditions hold, and only once per key: a key that was
    /// used before returns what was stored then.
    fn append_if(
        &self,
        _: Vec<NewFrame>,
        _: Vec<Condition>,
        _: Option<IdempotencyKey>,
    ) -> BoxFuture<'static, Result<Vec<Frame>, BackendError>> {
        no(self.refusal())
    }
    /// Removes frames, all or none: none when one of them has a topic outside the given patterns. A
    /// missing frame is no error.
    fn remove(
        &self,
        _: Vec<FrameId>,
        _: Option<TopicPatterns>,
    ) -> BoxFuture<'static, Result<(), BackendError>> {
        no(self.refusal())
    }
    /// Reads frames; a following read continues until it is dropped.
    fn read(&self, _: ReadOptions) -> FrameStream {
        stream::iter([Err(self.refusal())]).boxed()
    }
    /// One frame by its id.
    fn get(&self, _: FrameId) -> BoxFuture<'static, Result<Option<Frame>, BackendError>> {
        no(self.refusal())
    }
    /// The newest frame of any of the topics.
    fn last(&self, _: TopicPatterns) -> BoxFuture<'static, Result<Option<Frame>, BackendError>> {
        no(self.refusal())
    }
    /// The newest frame of each of the topics, in log order.
    fn last_per_topic(
        &self,
        _: TopicPatterns,
    ) -> BoxFuture<'static, Result<Vec<Frame>, BackendError>> {
        no(self.refusal())
    }
    /// The existing topics that match.
    fn topics(&self, _: TopicPatterns) -> BoxFuture<'static, Result<Vec<TopicInfo>, BackendError>> {
        no(self.refusal())
    }
    /// Stores bytes as a blob.
    fn blob_put(&self, _: Bytes) -> BoxFuture<'static, Result<BlobHash, BackendError>> {
        no(self.refusal())
    }
    /// The bytes of a blob of at most `max` bytes; `None` when the store does not have it.
    fn blob_get(
        &self,
        _: BlobHash,
        _: u64,
    ) -> BoxFuture<'static, Result<Option<Bytes>, BackendError>> {
        no(self.refusal())
    }
    /// A blob in chunks; `None` when the store does not have it.
    fn blob_chunks(
        &self,
        _: BlobHash,
    ) -> BoxFuture<'static, Result<Option<ByteStream>, BackendError>> {
        no(self.refusal())
    }
    /// Stores what a stream yields as a blob; stores nothing if it yields an error.
    fn blob_put_from(&self, _: ByteStream) -> BoxFuture<'static, Result<BlobHash, BackendError>> {
        no(self.refusal())
    }
    /// Calls a command; the stream ends after its last result.
    fn call(&self, _: CallRequest) -> FrameStream {
        stream::iter([Err(self.refusal())]).boxed()
    }
    /// One line of the processor's log. Never blocks; may drop lines above the log's rate.
    fn log(&self, level: LogLevel, message: String, fields: Option<String>);
    /// A position stored for the processor under a key (of a tailed file, or of a generator's
    /// input).
    fn position_get(&self, _: String) -> BoxFuture<'static, Result<Option<Bytes>, BackendError>> {
        no(self.refusal())
    }
    /// Stores such a position.
    fn position_set(&self, _: String, _: Bytes) -> BoxFuture<'static, Result<(), BackendError>> {
        no(self.refusal())
    }
    /// The name of the processor with this `create` frame, for `frame.cause`.
    fn processor_name(&self, create: FrameId) -> Option<String>;
}
